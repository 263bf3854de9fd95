"""Reads dump folders: what each classifier said of every image of a split.

A folder of 16 GB is read in blocks of rows, in little memory. File names and
parts have their home in `Imagenet/softmax_dump.py`.
"""

import collections
import os

import numpy as np

import softmax_dump
from cascade.array_files import load_array
from user_error import UserError

# The exits of the cascade, the network's own classifier last.
CLASSIFIER_IDS = (0, 1, 2)

# Rows in a block: 4 MB of float32 at 1001 classes, about what a cache holds.
BLOCK_ROWS = 1024

# Softmax rows per file that are held against the top-5 file when both exist.
CHECKED_ROWS = 100

# `classes` int64 [images]; `path` is the file they were read from.
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
  found = [
      k for k in CLASSIFIER_IDS
      if any(os.path.exists(os.path.join(folder, name))
             for split in softmax_dump.SPLITS
             for name in softmax_dump.probabilities_file_names(k, split) +
             [softmax_dump.top5_classes_file_name(k, split)])]
  if not found:
    raise UserError(
        '-softmax_dir_to_validate_against {!r}: holds no dump (such as {}); '
        'step 3 makes them'.format(
            folder, softmax_dump.probabilities_file_names(
                CLASSIFIER_IDS[0], 'validation')[0]))
  return found


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
                        dataset_folder, softmax_dump.labels_file_name(split)))
  found = []
  for folder in (dataset_folder, dump_folder):
    if folder is not None:
      path = os.path.join(folder, softmax_dump.labels_file_name(split))
      if os.path.exists(path):
        found.append(Labels(_load_classes(path, num_dimensions=1), path))
  if not found:
    raise UserError(
        '{}: no such file, neither here nor beside the dumps; step 2 makes it '
        'in $IMAGENET_HOME'.format(os.path.join(
            dataset_folder or dump_folder,
            softmax_dump.labels_file_name(split))))
  _check_same_labels(found[0], found[-1])
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
    path: for messages, the file that gave `num_images`.
    num_images: rows.
    num_classes: columns of the softmax; None where only a top-5 file is there.
    top5_classes: int64 [images, min(5, classes)], best first; None where
      there is no such file.
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
    self._parts = self._open_parts(folder, classifier_id, split)
    self.top5_classes = None
    top5_path = os.path.join(
        folder, softmax_dump.top5_classes_file_name(classifier_id, split))
    if os.path.exists(top5_path):
      self.top5_classes = _load_classes(top5_path, num_dimensions=2)
    elif not self._parts:
      raise _missing_dump_error(os.path.join(
          folder, softmax_dump.probabilities_file_names(
              classifier_id, split)[0]), classifier_id)
    if self._parts:
      self.path = self._parts[0][0]
      self.num_images = sum(len(part) for _, part in self._parts)
      self.num_classes = self._parts[0][1].shape[1]
      if self.top5_classes is not None:
        self._check_top5(top5_path)
    else:
      self.path = top5_path
      self.num_images, self.num_classes = len(self.top5_classes), None

  def _open_parts(self, folder, classifier_id, split):
    """A list of (path, float32 [rows, classes]), or an empty list."""
    paths = [os.path.join(folder, name) for name in
             softmax_dump.probabilities_file_names(classifier_id, split)]
    if not any(map(os.path.exists, paths)):
      return []
    parts = []
    for path in paths:
      if not os.path.exists(path):
        raise _missing_dump_error(path, classifier_id)
      part = load_array(path)
      if (part.dtype.kind, part.dtype.itemsize) != ('f', 4) or (
          part.ndim != 2 or part.shape[1] == 0):
        raise UserError('{}: {} {}, where softmaxes are float32 [images, '
                        'classes]'.format(path, part.dtype, part.shape))
      if part.shape[1] != (parts or [(path, part)])[0][1].shape[1]:
        raise UserError('{}: {:,} classes, where {} has {:,}'.format(
            path, part.shape[1], parts[0][0], parts[0][1].shape[1]))
      parts.append((path, part))
    return parts

  def _check_top5(self, top5_path):
    """Holds the top-5 file against a few rows of each softmax file.

    Values are compared, not classes: equal softmaxes have no order.
    """
    shape = (self.num_images, min(5, self.num_classes))
    if self.top5_classes.shape != shape:
      raise UserError('{}: {} where the softmaxes beside it ask for {}'.format(
          top5_path, self.top5_classes.shape, shape))
    _check_below(self.top5_classes, self.num_classes, top5_path)
    start = 0
    for path, part in self._parts:
      rows = np.unique(np.linspace(
          0, max(len(part) - 1, 0), min(len(part), CHECKED_ROWS)).astype(int))
      probabilities = part[rows]  # [checked, classes]
      _check_finite(probabilities, rows, path)
      best = np.sort(probabilities)[:, ::-1][:, :shape[1]]
      claimed = np.take_along_axis(
          probabilities, self.top5_classes[start + rows], axis=1)
      differs = (best != claimed).any(axis=1)
      if differs.any():
        row = rows[differs.argmax()]
        raise UserError(
            '{}: row {:,} does not name the largest softmaxes, best first, of '
            'row {:,} of {}; remove the file that is wrong'.format(
                top5_path, start + row, row, path))
      start += len(part)

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

  def blocks(self, max_rows=BLOCK_ROWS):
    """Iterates over the softmaxes in row order, across the parts.

    No block spans two parts. Two dumps with parts of the same lengths give
    blocks of the same rows, so that `zip` walks classifiers side by side.

    Args:
      max_rows: rows in a block at most.

    Yields:
      `(rows, probabilities)`: the slice of the split's rows, and float32
      [rows, classes], aligned and in native byte order.

    Raises:
      UserError: a value is NaN or infinite.
    """
    part_start = 0
    for path, part in self._parts:
      for start in range(0, len(part), max_rows):
        block = np.require(
            part[start:start + max_rows], np.float32, ['ALIGNED'])
        _check_finite(block, np.arange(start, start + len(block)), path)
        first = part_start + start
        yield slice(first, first + len(block)), block
      part_start += len(part)


# The published script filled arrays of zeros and, with records lost, left
# their last rows so. A softmax is never zero throughout, and no image has one
# class in all of its five best places; label 0 alone proves nothing, since a
# network of one's own may use class 0.


def unfilled_softmaxes(probabilities):
  """Which rows of float [rows, classes] were never filled; bool [rows]."""
  return ~probabilities.any(axis=1)


def unfilled_top5(top5_classes):
  """Which rows of int [rows, 1 to 5] were never filled; bool [rows]."""
  if top5_classes.shape[1] == 1:  # A single class: [0] is all it can say.
    return np.zeros(len(top5_classes), bool)
  return ~top5_classes.any(axis=1)


def _load_classes(path, num_dimensions):
  """Loads class numbers, [images] or [images, 1 to 5], as int64."""
  array = load_array(path)
  shape = '[images]' if num_dimensions == 1 else '[images, at most 5]'
  if array.dtype.kind not in 'iu' or array.ndim != num_dimensions or (
      array.ndim == 2 and not 1 <= array.shape[1] <= 5):
    raise UserError('{}: {} {}, where classes are integers {}'.format(
        path, array.dtype, array.shape, shape))
  classes = np.array(array, np.int64)
  _refuse(classes < 0, classes, path, 'no class')
  return classes


def _check_below(classes, num_classes, path):
  _refuse(classes >= num_classes, classes, path,
          'beyond the {:,} classes of the softmaxes'.format(num_classes))


def _refuse(wrong, classes, path, reason):
  if wrong.any():
    where = tuple(np.argwhere(wrong)[0])
    raise UserError('{}: row {:,} holds {}, {}'.format(
        path, where[0], classes[where], reason))


def _check_finite(probabilities, rows, path):
  finite = np.isfinite(probabilities)
  if not finite.all():
    row = rows[(~finite).any(axis=1).argmax()]
    raise UserError('{}: row {:,} holds NaN or infinity; dump this classifier '
                    'again (step 3)'.format(path, row))


def _missing_dump_error(path, classifier_id):
  return UserError('{}: no such file; step 3, --classifier_id {}, makes it'
                   .format(path, classifier_id))
