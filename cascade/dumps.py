"""Reads dump folders: what each classifier says about each image of a split.

File names and parts are defined in `Imagenet/dump_names.py`. Softmaxes are read
in blocks of rows. Any file may come in shards; the rows are the same.
"""

import itertools
import os
import typing

import numpy as np

import dump_names
import dump_record
from cascade import UserError
from cascade.npy_files import (
    RowReader, find_files, find_shards, load_array, load_files)
from dump_names import NUM_TOP

# Rows in a block: 2 MB of float32 at 1001 classes, about what a cache holds.
BLOCK_ROWS = 512

# How far the sum of a softmax may be from 1: half-precision networks round
# each value.
SUM_TOLERANCE = 5e-3

# Softmax rows per file that are compared with the top-5 file if both exist.
CHECKED_ROWS = 100

# No classifier has as many classes; a larger number is damage.
_MOST_CLASSES = 1 << 20


class Labels(typing.NamedTuple):
  classes: np.ndarray  # int32 [images].
  path: str            # The file they were read from.


def find_classifiers(folder):
  """Classifiers of which `folder` holds a dump of either split, ascending.

  Raises:
    UserError: there is no such folder or no dump in it, or a dump does not
      belong to the cascade that the folder's `cascade.json` describes.
  """
  option = f'-softmax_dir_to_validate_against {folder!r}'
  if not os.path.isdir(folder):
    raise UserError(f'{option}: no such folder; step 3 makes it')
  found = dump_names.dumped_classifiers(folder)
  if not found:
    example, = dump_names.probabilities_file_names(0, 'validation')
    raise UserError(
        f'{option}: holds no dump (such as {example}); step 3 makes them')
  _check_recorded(folder, found)
  return found


def _check_recorded(folder, classifier_ids):
  """Refuses dumps that the folder's `cascade.json` does not list.

  A run that replaces the dumps of a classifier takes it off that list until
  all new files are there. If the run is interrupted, the train split may be
  from one network and the validation split from another. Published dumps have
  no `cascade.json`.
  """
  path = os.path.join(folder, dump_names.CASCADE_FILE_NAME)
  if not os.path.exists(path):
    return
  exits = dump_record.load(
      path, 'dump the classifiers again (step 3), or remove it if the dumps '
      'are the published ones').get('exits')
  listed = [entry.get('classifier_id') for entry in exits
            if isinstance(entry, dict)] if isinstance(exits, list) else []
  for k in classifier_ids:
    if k not in listed:
      raise UserError(
          f'{path}: does not list classifier {k}, of which there are dumps: a '
          'run that replaces them was interrupted or is not finished, so they '
          'may come from two networks; dump them again (step 3, '
          f'--classifier_id {k})')


def holds_split(folder, split):
  """Whether `folder` holds a dump of `split`, of any classifier."""
  return any(dump_names.holds_dump(folder, k, split)
             for k in dump_names.dumped_classifiers(folder))


def num_classes_of(opened):
  """The number of classes of all opened dumps; None if none has softmaxes.

  Raises:
    UserError: softmaxes of different lengths, or a class beyond them.
  """
  known = [dump for dump in opened if dump.num_classes is not None]
  if not known:
    return None
  first, num_classes = known[0], known[0].num_classes
  for dump in known:
    if dump.num_classes != num_classes:
      raise UserError(
          f'{dump.path}: softmaxes of {dump.num_classes:,} classes, and '
          f'{first.path} has {num_classes:,}; the classifiers of one cascade '
          'know the same classes')
  for dump in opened:
    if dump.num_classes is None:
      _check_below(dump.top5_classes, num_classes, dump.path)
  return num_classes


def read_labels(dataset_folder, dump_folder, split):
  """Reads the `Labels` of `split`, which may be in either folder or in both.

  `dataset_folder` is `-dataset_path` or None; labels in `dump_folder` belong to
  the dumps' own records.

  Raises:
    UserError: no labels, labels that are no classes, or two label files that
      differ.
  """
  name = dump_names.labels_file_name(split)
  if dataset_folder is not None and not os.path.isdir(dataset_folder):
    raise UserError(f'-dataset_path {dataset_folder!r}: no such folder; name '
                    f'the folder that holds {name}')
  found = []
  for folder in (dataset_folder, dump_folder):
    if folder is not None:
      # After whole and shared passes, labels lie side by side in both forms.
      for paths in ([os.path.join(folder, name)], find_shards(folder, name)):
        if paths and os.path.exists(paths[0]):
          found.append(Labels(_load_classes(paths, num_dimensions=1), paths[0]))
  if not found:
    path = os.path.join(dataset_folder or dump_folder, name)
    raise UserError(f'{path}: no such file, neither here nor beside the dumps; '
                    'step 2 makes it in $IMAGENET_HOME')
  labels = found[0]
  for other in found[1:]:
    if np.array_equal(labels.classes, other.classes):
      continue
    difference = f'{len(labels.classes):,} and {len(other.classes):,} rows'
    if len(labels.classes) == len(other.classes):
      row = (labels.classes != other.classes).argmax()
      difference = (f'row {row:,} is {labels.classes[row]} and '
                    f'{other.classes[row]}')
    raise UserError(
        f'{labels.path} and {other.path} are labels of different records '
        f'({difference}); name the -dataset_path that the dumps were made from')
  return labels


class ClassifierDump:
  """What one classifier says about each image of one split.

  Opening a dump checks the shapes and types of its files and reads only a few
  rows; a `UserError` says what is missing, damaged, or disagrees.

  Attributes:
    name: for messages, the classifier and the split.
    folder, classifier_id, split: where it is and what it is of.
    path: for messages, the file that gave `num_images`.
    num_images: rows.
    num_classes: columns of the softmax; None if there is only a top-5 file.
    softmax_paths: the files of the softmaxes, in row order; may be empty.
    top5_classes: int32 [images, min(5, classes)], best first, or None.
    top5_probabilities: float32 of the same shape, or None.
  """

  def __init__(self, folder, classifier_id, split):
    self.name = f'classifier {classifier_id}, {split}'
    self.folder = folder
    self.classifier_id = classifier_id
    self.split = split
    self._parts = self._open_parts()
    self.softmax_paths = [path for path, _ in self._parts]
    self.top5_classes = self.top5_probabilities = self.num_classes = None
    top5_paths = find_files(
        folder, dump_names.top5_classes_file_name(classifier_id, split))
    if not self._parts and not top5_paths:
      raise self._missing_file_error(
          dump_names.probabilities_file_names(classifier_id, split)[0])
    if self._parts:
      self.path, first_part = self._parts[0]
      self.num_images = sum(len(part) for _, part in self._parts)
      self.num_classes = first_part.shape[1]
    if top5_paths:
      self._top5_path = top5_paths[0]
      self.top5_classes = _load_classes(top5_paths, num_dimensions=2)
      if self._parts:
        self._check_top5_classes()
      else:
        self.path, self.num_images = self._top5_path, len(self.top5_classes)
      self._open_top5_probabilities()
      self._check_top5_sample()

  def _missing_file_error(self, name):
    remedy = ''
    if self.split == 'train':
      remedy = '; -fit_on validation does without the training split'
    return UserError(f'{os.path.join(self.folder, name)}: no such file; step '
                     f'3, --classifier_id {self.classifier_id}, makes it'
                     f'{remedy}')

  def _open_parts(self):
    """A list of (path, float32 [rows, classes]), or an empty list."""
    names = dump_names.probabilities_file_names(self.classifier_id, self.split)
    files = [find_files(self.folder, name) for name in names]
    if not any(files):
      return []
    most = max(files, key=len)
    for name, paths in zip(names, files):
      if not paths:
        raise self._missing_file_error(name)
      if len(paths) != len(most):
        raise UserError(
            f'{paths[0]}: one of {len(paths)} file(s), and '
            f'{os.path.basename(most[0])} is one of {len(most)}; remove what '
            'belongs to the other pass')
    parts = []
    for path in itertools.chain(*files):
      part = load_array(path)
      if (part.dtype.kind, part.dtype.itemsize) != ('f', 4) or (
          part.ndim != 2 or part.shape[1] == 0):
        raise UserError(f'{path}: {part.dtype} {part.shape}, but softmaxes are '
                        'float32 [images, classes]')
      parts.append((path, part))
      first_path, first_part = parts[0]
      if part.shape[1] != first_part.shape[1]:
        raise UserError(f'{path}: {part.shape[1]:,} classes, and {first_path} '
                        f'has {first_part.shape[1]:,}')
    return parts

  def _open_top5_probabilities(self):
    paths = find_files(self.folder, dump_names.top5_probabilities_file_name(
        self.classifier_id, self.split))
    if not paths:
      return
    path, top5 = paths[0], load_files(paths)
    if top5.dtype != np.float32 or top5.shape != self.top5_classes.shape:
      raise UserError(
          f'{path}: {top5.dtype} {top5.shape}, but the classes beside it need '
          f'float32 {self.top5_classes.shape}')
    with np.errstate(invalid='ignore'):  # False if a value is NaN.
      falls = top5[:, 1:] <= top5[:, :-1]
      is_positive = top5[:, -1] >= 0
      is_part = top5.sum(axis=1) <= 1 + SUM_TOLERANCE
    if not (falls.all() and is_positive.all() and is_part.all()):
      row = (falls.all(axis=1) & is_positive & is_part).argmin()
      raise UserError(
          f'{path}: row {row:,} is {top5[row].tolist()}, but must be the '
          'largest softmaxes, best first; remove this file, or dump this '
          'classifier again (step 3)')
    self.top5_probabilities = top5

  def _check_top5_classes(self):
    shape = (self.num_images, min(NUM_TOP, self.num_classes))
    if self.top5_classes.shape != shape:
      raise UserError(f'{self._top5_path}: {self.top5_classes.shape}, but the '
                      f'softmaxes beside it need {shape}')
    _check_below(self.top5_classes, self.num_classes, self._top5_path)

  def _check_top5_sample(self):
    """Compares the top-5 files with a few rows of each softmax file."""
    start = 0
    for path, part in self._parts:
      rows = np.unique(np.linspace(
          0, max(len(part) - 1, 0), min(len(part), CHECKED_ROWS)).astype(int))
      probabilities = np.empty((len(rows), self.num_classes), np.float32)
      reader = RowReader(part)
      for i, row in enumerate(rows):
        reader.read(row, row + 1, probabilities[i:i + 1])
      _check_softmaxes(probabilities, rows, path)
      best = np.sort(probabilities)[:, ::-1][:, :NUM_TOP]
      self.check_top5_rows(start + rows, probabilities, best)
      start += len(part)

  def check_top5_rows(self, rows, probabilities, best):
    """Compares the top-5 files, if there are any, with softmaxes.

    Values are compared, not classes: equal softmaxes have no order. `rows` are
    rows of the split, int [checked] or a slice, `probabilities` their softmaxes
    [checked, classes], and `best` the largest of these, best first.
    """
    if self.top5_classes is None:
      return
    claimed = np.take_along_axis(
        probabilities, self.top5_classes[rows].astype(np.int64), axis=1)
    differs = (best != claimed).any(axis=1)
    if self.top5_probabilities is not None:
      differs |= (best != self.top5_probabilities[rows]).any(axis=1)
    if differs.any():
      row = part_row = np.arange(self.num_images)[rows][differs.argmax()]
      for path, part in self._parts:
        if part_row < len(part):
          break
        part_row -= len(part)
      raise UserError(
          f'{self._top5_path}: row {row:,} of the top-5 files does not name '
          f'the largest softmaxes, best first, of row {part_row:,} of {path}; '
          'remove the file that is wrong')

  def check_labels(self, labels):
    """Raises a `UserError` unless each row has a label that is a class."""
    if len(labels.classes) != self.num_images:
      raise UserError(
          f'{labels.path}: {len(labels.classes):,} labels, and {self.name} has '
          f'{self.num_images:,} rows ({self.path}); both must come from the '
          'same records')
    if self.num_classes is not None:
      _check_below(labels.classes, self.num_classes, labels.path)

  def blocks(self, start=0, stop=None, max_rows=BLOCK_ROWS):
    """Iterates over softmaxes in row order; no block spans two parts.

    Yields:
      `(rows, probabilities)`: a slice of the split's rows, and float32
      [rows, classes], valid until the next block.

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


def unfilled_top5(top5_classes):
  """Which rows of int [rows, 1 to 5] were never filled; bool [rows].

  The published script filled arrays of zeros. It lost the last records, so the
  last rows stayed zero. No image has the same class in all five places. Label
  0 alone proves nothing: somebody's own network may use class 0.
  """
  if top5_classes.shape[1] == 1:  # A single class: [0] is all it can say.
    return np.zeros(len(top5_classes), bool)
  return ~top5_classes.any(axis=1)


def _load_classes(paths, num_dimensions):
  """Loads class numbers, [images] or [images, 1 to 5], as int32."""
  path, array = paths[0], load_files(paths)
  shape = '[images]' if num_dimensions == 1 else '[images, at most 5]'
  if array.dtype.kind not in 'iu' or array.ndim != num_dimensions or (
      array.ndim == 2 and not 1 <= array.shape[1] <= NUM_TOP):
    raise UserError(f'{path}: {array.dtype} {array.shape}, but classes are '
                    f'integers {shape}')
  _refuse_beyond(array, _MOST_CLASSES - 1, path, 'which is no class')
  # An array of this type stays mapped.
  return np.require(array, np.int32, ['ALIGNED'])


def _check_below(classes, num_classes, path):
  _refuse_beyond(classes, num_classes - 1, path,
                 f'beyond the {num_classes:,} classes of the softmaxes')


def _refuse_beyond(classes, highest, path, reason):
  if classes.size and (classes.min() < 0 or classes.max() > highest):
    row, *column = np.argwhere((classes < 0) | (classes > highest))[0]
    value = classes[(row, *column)]
    raise UserError(f'{path}: row {row:,} holds {value}, {reason}')


def _check_softmaxes(probabilities, rows, path):
  """Checks that each row sums to 1, or was never filled."""
  sums = probabilities.sum(axis=1)
  with np.errstate(invalid='ignore'):  # False for NaN and infinity.
    is_softmax = np.abs(sums - 1) <= SUM_TOLERANCE
  for i in np.flatnonzero(~is_softmax):
    if not np.isfinite(probabilities[i]).all():
      problem = 'holds NaN or infinity'
    elif probabilities[i].any():
      problem = f'sums up to {sums[i]:.6g}, and a softmax to 1'
    else:
      continue
    raise UserError(f'{path}: row {rows[i]:,} {problem}; dump this classifier '
                    'again (step 3)')
