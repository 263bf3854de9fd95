"""Reads dump folders: what each classifier said of every image of a split.

A folder of 16 GB is read in blocks of rows, in little memory. File names and
parts have their home in `Imagenet/dump_names.py`. A file may be there in shards
(`dump_files.py`); the rows are the same.
"""

import collections
import itertools
import os

import numpy as np

import dump_names
from cascade import dump_files
from cascade.array_files import RowReader, load_array
from resnet_tables import CLASSIFIER_IDS
from user_error import UserError

# Rows in a block: 2 MB of float32 at 1001 classes, about what a cache holds.
BLOCK_ROWS = 512

# How far the softmaxes of a row may sum up from 1: half-precision networks
# round each of them.
SUM_TOLERANCE = 5e-3

# Softmax rows per file that are held against the top-5 file when both exist.
CHECKED_ROWS = 100

# `classes` int32 [images]; `path` is the file they were read from.
Labels = collections.namedtuple('Labels', 'classes path')


def find_classifiers(folder):
  """Classifiers of which `folder` holds a dump of either split.

  Returns:
    A non-empty list of ints, ascending.

  Raises:
    UserError: there is no such folder, or no dump in it.
  """
  if not os.path.isdir(folder):
    raise UserError('-softmax_dir_to_validate_against {!r}: no such folder; '
                    'step 3 makes it'.format(folder))
  found = [k for k in CLASSIFIER_IDS
           if any(dump_names.holds_dump(folder, k, split)
                  for split in dump_names.SPLITS)]
  if not found:
    raise UserError(
        '-softmax_dir_to_validate_against {!r}: holds no dump (such as {}); '
        'step 3 makes them'.format(
            folder, dump_names.probabilities_file_names(
                CLASSIFIER_IDS[0], 'validation')[0]))
  return found


def holds_split(folder, split):
  """Whether `folder` holds a dump of `split`, of whichever classifier."""
  return any(dump_names.holds_dump(folder, k, split) for k in CLASSIFIER_IDS)


def check_same_classes(opened):
  """Raises `UserError` unless all `ClassifierDump`s have as many classes."""
  known = [dump for dump in opened if dump.num_classes is not None]
  for dump in known:
    if dump.num_classes != known[0].num_classes:
      raise UserError(
          '{}: softmaxes of {:,} classes, where {} has {:,}; the classifiers '
          'of one cascade know the same classes'.format(
              dump.path, dump.num_classes, known[0].path,
              known[0].num_classes))


def read_labels(dataset_folder, dump_folder, split):
  """Reads the labels of `split`, which may lie in either folder or in both.

  Args:
    dataset_folder: `-dataset_path`, or None.
    dump_folder: labels there are of the dumps' own records.
    split: 'validation' or 'train'.

  Returns:
    `Labels`.

  Raises:
    UserError: no labels, labels that are no classes, or two label files that
      differ.
  """
  if dataset_folder is not None and not os.path.isdir(dataset_folder):
    raise UserError('-dataset_path {!r}: no such folder; name the folder that '
                    'holds {}'.format(
                        dataset_folder, dump_names.labels_file_name(split)))
  name, found = dump_names.labels_file_name(split), []
  for folder in (dataset_folder, dump_folder):
    if folder is not None:
      # Passes over whole splits and shared ones leave labels side by side.
      for paths in ([os.path.join(folder, name)],
                    dump_files.find_shards(folder, name)):
        if paths and os.path.exists(paths[0]):
          found.append(Labels(_load_classes(paths, num_dimensions=1), paths[0]))
  if not found:
    raise UserError(
        '{}: no such file, neither here nor beside the dumps; step 2 makes it '
        'in $IMAGENET_HOME'.format(os.path.join(
            dataset_folder or dump_folder, name)))
  for others in found[1:]:
    _check_same_labels(found[0], others)
  return found[0]


def _check_same_labels(labels, others):
  if len(labels.classes) != len(others.classes):
    difference = '{:,} and {:,} rows'.format(
        len(labels.classes), len(others.classes))
  else:
    differs = labels.classes != others.classes
    if not differs.any():
      return
    row = int(differs.argmax())
    difference = 'row {:,} is {} and {}'.format(
        row, labels.classes[row], others.classes[row])
  raise UserError(
      '{} and {} are labels of different records ({}); name the -dataset_path '
      'that the dumps were made from'.format(
          labels.path, others.path, difference))


class ClassifierDump(object):
  """What one classifier said of every image of one split.

  Opening one checks the files' shapes and types and reads only a few rows.

  Attributes:
    name: for messages, the classifier and the split.
    folder, classifier_id, split: where it is and what it is of.
    path: for messages, the file that gave `num_images`.
    num_images: rows.
    num_classes: columns of the softmax; None where only a top-5 file is there.
    top5_classes: int32 [images, min(5, classes)], best first; None where
      there is no such file.
    top5_probabilities: float32, of the same shape; None where there is no such
      file.
    has_softmaxes: whether the softmaxes are there.
    softmax_paths: their files, in row order.
  """

  def __init__(self, folder, classifier_id, split):
    """
    Args:
      folder: an existing folder.
      classifier_id: 0, 1 or 2.
      split: 'validation' or 'train'.

    Raises:
      UserError: a file is missing, damaged, or disagrees with another.
    """
    self.name = 'classifier {}, {}'.format(classifier_id, split)
    self.folder = folder
    self.classifier_id = classifier_id
    self.split = split
    self._parts = self._open_parts(folder, classifier_id, split)
    self.has_softmaxes = bool(self._parts)
    self.softmax_paths = [path for path, _ in self._parts]
    self.top5_classes = self.top5_probabilities = None
    top5_paths = dump_files.find(
        folder, dump_names.top5_classes_file_name(classifier_id, split))
    if top5_paths:
      self._top5_path = top5_paths[0]
      self.top5_classes = _load_classes(top5_paths, num_dimensions=2)
    elif not self._parts:
      raise _missing_dump_error(os.path.join(
          folder, dump_names.probabilities_file_names(
              classifier_id, split)[0]), classifier_id)
    if self._parts:
      self.path = self._parts[0][0]
      self.num_images = sum(len(part) for _, part in self._parts)
      self.num_classes = self._parts[0][1].shape[1]
    else:
      self.path = self._top5_path
      self.num_images, self.num_classes = len(self.top5_classes), None
    if self.top5_classes is not None:
      if self._parts:
        self._check_top5_classes()
      self._open_top5_probabilities(dump_files.find(
          folder, dump_names.top5_probabilities_file_name(
              classifier_id, split)))
      self._check_top5_sample()

  def _open_parts(self, folder, classifier_id, split):
    """A list of (path, float32 [rows, classes]), or an empty list."""
    names = dump_names.probabilities_file_names(classifier_id, split)
    files = [dump_files.find(folder, name) for name in names]
    if not any(files):
      return []
    most = max(files, key=len)
    for name, paths in zip(names, files):
      if not paths:
        raise _missing_dump_error(os.path.join(folder, name), classifier_id)
      if len(paths) != len(most):
        raise UserError('{}: one of {} file(s), where {} is one of {}; remove '
                        'what is of another pass'.format(
                            paths[0], len(paths), os.path.basename(most[0]),
                            len(most)))
    parts = []
    for path in itertools.chain(*files):
      part = load_array(path)
      if (part.dtype.kind, part.dtype.itemsize) != ('f', 4) or (
          part.ndim != 2 or part.shape[1] == 0):
        raise UserError('{}: {} {}, where softmaxes are float32 [images, '
                        'classes]'.format(path, part.dtype, part.shape))
      if part.shape[1] != (parts or [(path, part)])[0][1].shape[1]:
        raise UserError('{}: {:,} classes, where {} has {:,}'.format(
            path, part.shape[1], parts[0][0], parts[0][1].shape[1]))
      parts.append((path, part))
    if len(files[0]) > 1:
      _check_shards(parts, split, len(files[0]))
    return parts

  def _open_top5_probabilities(self, paths):
    if not paths:
      return
    path, top5 = paths[0], dump_files.load(paths)
    if top5.dtype != np.float32 or top5.shape != self.top5_classes.shape:
      raise UserError('{}: {} {}, where the classes beside it ask for float32 '
                      '{}'.format(path, top5.dtype, top5.shape,
                                  self.top5_classes.shape))
    with np.errstate(invalid='ignore'):  # False where a value is NaN.
      falls = top5[:, 1:] <= top5[:, :-1]
      is_positive = top5[:, -1] >= 0
      is_part = top5.sum(axis=1) <= 1 + SUM_TOLERANCE
    if not (falls.all() and is_positive.all() and is_part.all()):
      row = (falls.all(axis=1) & is_positive & is_part).argmin()
      raise UserError(
          '{}: row {:,} is {}, where the largest softmaxes are expected, best '
          'first; remove this file, or dump this classifier again (step 3)'
          .format(path, row, top5[row].tolist()))
    self.top5_probabilities = top5

  def _check_top5_classes(self):
    shape = (self.num_images, min(5, self.num_classes))
    if self.top5_classes.shape != shape:
      raise UserError('{}: {} where the softmaxes beside it ask for {}'.format(
          self._top5_path, self.top5_classes.shape, shape))
    _check_below(self.top5_classes, self.num_classes, self._top5_path)

  def _check_top5_sample(self):
    """Holds the top-5 files against a few rows of each softmax file."""
    start = 0
    for path, part in self._parts:
      rows = np.unique(np.linspace(
          0, max(len(part) - 1, 0), min(len(part), CHECKED_ROWS)).astype(int))
      probabilities = np.empty((len(rows), self.num_classes), np.float32)
      reader = RowReader(part)
      for i, row in enumerate(rows):
        reader.read(row, row + 1, probabilities[i:i + 1])
      _check_softmaxes(probabilities, rows, path)
      best = np.sort(probabilities)[:, ::-1][:, :5]
      self.check_top5_rows(start + rows, probabilities, best)
      start += len(part)

  def check_top5_rows(self, rows, probabilities, best):
    """Holds the top-5 files, where there are any, against softmaxes.

    Values are compared, not classes: equal softmaxes have no order.

    Args:
      rows: int [checked], rows of the split, or a slice of them.
      probabilities: float32 [checked, classes], their softmaxes.
      best: float32 [checked, 5], the largest of these, best first.

    Raises:
      UserError: a row differs.
    """
    if self.top5_classes is None:
      return
    claimed = np.take_along_axis(
        probabilities, self.top5_classes[rows].astype(np.int64), axis=1)
    differs = (best != claimed).any(axis=1)
    if self.top5_probabilities is not None:
      differs |= (best != self.top5_probabilities[rows]).any(axis=1)
    if differs.any():
      checked = np.arange(self.num_images)[rows]
      row = checked[differs.argmax()]
      path, part_row = self._softmax_row(row)
      raise UserError(
          '{}: row {:,} of the top-5 files does not name the largest softmaxes, '
          'best first, of row {:,} of {}; remove the file that is wrong'.format(
              self._top5_path, row, part_row, path))

  def _softmax_row(self, row):
    """`(path, row in it)` of a row of the split."""
    for path, part in self._parts:
      if row < len(part):
        return path, row
      row -= len(part)
    raise IndexError(row)

  def check_labels(self, labels):
    """Checks that there is one label per row and none beyond the classes.

    Args:
      labels: `Labels`.

    Raises:
      UserError: the labels do not fit this dump.
    """
    if len(labels.classes) != self.num_images:
      raise UserError(
          '{}: {:,} labels, where {} has {:,} rows ({}); both must come from '
          'the same records'.format(
              labels.path, len(labels.classes), self.name, self.num_images,
              self.path))
    if self.num_classes is not None:
      _check_below(labels.classes, self.num_classes, labels.path)

  def blocks(self, start=0, stop=None, max_rows=BLOCK_ROWS):
    """Iterates over softmaxes in row order, across the parts.

    No block spans two parts.

    Args:
      start: the first row of the split.
      stop: the row behind the last; None: all.
      max_rows: rows in a block at most.

    Yields:
      `(rows, probabilities)`: the slice of the split's rows, and float32
      [rows, classes], valid until the next is asked for.

    Raises:
      UserError: a row is no softmax.
    """
    stop = self.num_images if stop is None else stop
    buffer = np.empty((max_rows, self.num_classes or 0), np.float32)
    part_start = 0
    for path, part in self._parts:
      reader = RowReader(part)
      first, last = max(start - part_start, 0), min(
          stop - part_start, len(part))
      for row in range(first, last, max_rows):
        block = reader.read(row, min(row + max_rows, last), buffer)
        _check_softmaxes(block, range(row, row + len(block)), path)
        yield slice(part_start + row, part_start + row + len(block)), block
      part_start += len(part)


# The published script filled arrays of zeros and, with records lost, left
# their last rows so. A softmax is never zero throughout, and no image has one
# class in all of its five best places; label 0 alone proves nothing, since a
# network of one's own may use class 0.


def unfilled_top5(top5_classes):
  """Which rows of int [rows, 1 to 5] were never filled; bool [rows]."""
  if top5_classes.shape[1] == 1:  # A single class: [0] is all it can say.
    return np.zeros(len(top5_classes), bool)
  return ~top5_classes.any(axis=1)


def _check_shards(parts, split, num_shards):
  """Checks that the shards of softmaxes were cut from one pass.

  Args:
    parts: a list of (path, softmaxes); of each file, all its shards.
    split: 'validation' or 'train'.
    num_shards: of each file.
  """
  rows = np.array([len(part) for _, part in parts]).reshape(-1, num_shards)
  rows_in_shards = rows.sum(axis=0).tolist()
  dump_files.check_rows([path for path, _ in parts], rows_in_shards)
  stops = np.cumsum(rows_in_shards)  # [shards]
  bounds = np.array(dump_names.part_bounds(split, stops[-1]))  # [files, 2]
  expected = np.maximum(
      np.minimum(bounds[:, 1:], stops) -
      np.maximum(bounds[:, :1], stops - rows_in_shards), 0)
  for (path, part), num_rows in zip(parts, expected.ravel()):
    if len(part) != num_rows:
      raise UserError('{}: {:,} rows, where the other shards ask for {:,}; dump '
                      'it again (step 3)'.format(path, len(part), num_rows))


def _load_classes(paths, num_dimensions):
  """Loads class numbers, [images] or [images, 1 to 5], as int32."""
  path, array = paths[0], dump_files.load(paths)
  shape = '[images]' if num_dimensions == 1 else '[images, at most 5]'
  if array.dtype.kind not in 'iu' or array.ndim != num_dimensions or (
      array.ndim == 2 and not 1 <= array.shape[1] <= 5):
    raise UserError('{}: {} {}, where classes are integers {}'.format(
        path, array.dtype, array.shape, shape))
  _refuse(array, 0, np.iinfo(np.int32).max, path, 'no class')
  # Of this type it stays mapped.
  return np.require(array, np.int32, ['ALIGNED'])


def _check_below(classes, num_classes, path):
  _refuse(classes, 0, num_classes - 1, path,
          'beyond the {:,} classes of the softmaxes'.format(num_classes))


def _refuse(classes, lowest, highest, path, reason):
  if classes.size and (classes.min() < lowest or classes.max() > highest):
    where = tuple(np.argwhere((classes < lowest) | (classes > highest))[0])
    raise UserError('{}: row {:,} holds {}, {}'.format(
        path, where[0], classes[where], reason))


def _check_softmaxes(probabilities, rows, path):
  """Checks that each row sums up to 1, or was never filled."""
  sums = probabilities.sum(axis=1)
  with np.errstate(invalid='ignore'):  # False for NaN and infinity.
    is_softmax = np.abs(sums - 1) <= SUM_TOLERANCE
  if is_softmax.all():
    return
  for i in np.flatnonzero(~is_softmax):
    if not np.isfinite(probabilities[i]).all():
      raise UserError('{}: row {:,} holds NaN or infinity; dump this '
                      'classifier again (step 3)'.format(path, rows[i]))
    if probabilities[i].any():
      raise UserError('{}: row {:,} sums up to {:.6g}, and a softmax to 1; '
                      'dump this classifier again (step 3)'.format(
                          path, rows[i], sums[i]))


def _missing_dump_error(path, classifier_id):
  return UserError('{}: no such file; step 3, --classifier_id {}, makes it'
                   .format(path, classifier_id))
