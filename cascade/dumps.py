"""Reads dump folders: what each classifier says about each image of a split.

File names and parts are defined in `Imagenet/shared_dumps.py`. Softmaxes are
read in blocks of rows. Any file may come in shards; the rows are the same.
"""

import itertools
import os
import typing

import numpy as np

from cascade.npy_files import (
    find_files, find_shards, load_array, load_files, read_rows)
from cascade.shared import UserError, shared_cascade_json, shared_dumps

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

  A run that replaces the dumps of a classifier takes it off `cascade.json`
  until all new files are there. If it is interrupted, the splits may be from
  two networks: a `UserError`. Published dumps have no `cascade.json`.
  """
  found = shared_dumps.dumped_classifiers(folder)
  if not found:
    raise UserError(f'-softmax_dir_to_validate_against {folder!r}: no such '
                    'folder, or no dumps in it; step 3 makes them')
  path = os.path.join(folder, shared_dumps.CASCADE_FILE_NAME)
  if os.path.exists(path):
    record = shared_cascade_json.read(
        path, 'dump the classifiers again (step 3), or remove it if the dumps '
        'are the published ones')
    for k in found:
      if k not in record.origins:
        raise UserError(
            f'{path}: does not list classifier {k}, of which there are dumps, '
            'as a run that replaces them was interrupted; dump them again '
            f'(step 3, --classifier_id {k})')
  return found


def holds_split(folder, split):
  """Whether `folder` holds a dump of `split`, of any classifier."""
  return any(shared_dumps.holds_dump(folder, k, split)
             for k in shared_dumps.dumped_classifiers(folder))


def num_classes_of(opened):
  """The number of classes of all opened dumps; None if none has softmaxes."""
  known = {dump.num_classes: dump.path for dump in opened if dump.num_classes}
  if len(known) > 1:
    raise UserError(f'{", ".join(known.values())}: the classifiers of one '
                    'cascade know the same number of classes')
  num_classes = next(iter(known), None)
  for dump in opened:
    if num_classes and not dump.num_classes:
      _check_below(dump.top5_classes, num_classes, dump.path)
  return num_classes


def read_labels(dataset_folder, dump_folder, split):
  """Reads the `Labels` of `split`, which may be in either folder or in both.

  `dataset_folder` is `-dataset_path` or None; labels in `dump_folder` belong to
  the dumps' own records. Two label files that differ are a `UserError`.
  """
  name = shared_dumps.labels_file_name(split)
  if dataset_folder is not None and not os.path.isdir(dataset_folder):
    raise UserError(f'-dataset_path {dataset_folder!r}: no such folder')
  folders = [folder for folder in (dataset_folder, dump_folder) if folder]
  # After whole and shared passes, labels lie side by side in both forms.
  found = [Labels(_load_classes(paths, num_dimensions=1), paths[0])
           for folder in folders
           for paths in ([os.path.join(folder, name)],
                         find_shards(folder, name))
           if paths and os.path.exists(paths[0])]
  if not found:
    raise UserError(f'{os.path.join(folders[0], name)}: no such file, neither '
                    'here nor beside the dumps; step 2 makes it in '
                    '$IMAGENET_HOME')
  labels, *others = found
  for other in others:
    if not np.array_equal(labels.classes, other.classes):
      raise UserError(
          f'{labels.path} and {other.path} are labels of different records; '
          'name the -dataset_path that the dumps were made from')
  return labels


class ClassifierDump:
  """What one classifier says about each image of one split.

  Opening a dump checks the shapes and types of its files and reads only a few
  rows; a `UserError` says what is missing, damaged, or disagrees.

  Attributes:
    name: for messages, the classifier and the split.
    path: for messages, the file that gave `num_images`.
    num_images: rows.
    num_classes: columns of the softmax; None if there is only a top-5 file.
    has_softmaxes: whether there are more than top-5 files.
    top5_classes: int32 [images, min(5, classes)], best first, or None.
    top5_probabilities: float32 of the same shape, or None.
  """

  def __init__(self, folder, classifier_id, split):
    self.name = f'classifier {classifier_id}, {split}'
    self.folder = folder
    self.classifier_id = classifier_id
    self.split = split
    self._parts = self._open_parts()  # A list of (path, float [rows, classes]).
    self.has_softmaxes = bool(self._parts)
    self.top5_classes = self.top5_probabilities = self.num_classes = None
    top5_paths = find_files(
        folder, shared_dumps.top5_classes_file_name(classifier_id, split))
    if self._parts:
      self.path, first_part = self._parts[0]
      self.num_images = sum(len(part) for _, part in self._parts)
      self.num_classes = first_part.shape[1]
    elif not top5_paths:
      raise self._missing_file_error(
          shared_dumps.probabilities_file_names(classifier_id, split)[0])
    if top5_paths:
      self._top5_path = top5_paths[0]
      self.top5_classes = _load_classes(top5_paths, num_dimensions=2)
      if self._parts:
        shape = (self.num_images, min(shared_dumps.NUM_TOP, self.num_classes))
        if self.top5_classes.shape != shape:
          raise UserError(f'{self._top5_path}: {self.top5_classes.shape}, but '
                          f'the softmaxes beside it need {shape}')
        _check_below(self.top5_classes, self.num_classes, self._top5_path)
      else:
        self.path, self.num_images = self._top5_path, len(self.top5_classes)
      self._open_top5_probabilities()
      self._check_top5_sample()

  def _missing_file_error(self, name):
    remedy = ('; -fit_on validation does without the training split'
              if self.split == 'train' else '')
    return UserError(f'{os.path.join(self.folder, name)}: no such file; step '
                     f'3, --classifier_id {self.classifier_id}, makes it'
                     f'{remedy}')

  def _open_parts(self):
    names = shared_dumps.probabilities_file_names(
        self.classifier_id, self.split)
    files = [find_files(self.folder, name) for name in names]
    whole = find_files(self.folder, shared_dumps.whole_train_file_name(
        self.classifier_id)) if self.split == 'train' else []
    if whole and any(files):
      raise UserError(f'{whole[0]}: there is this file and also parts; remove '
                      'what belongs to the other dump')
    files = [whole] if whole else files
    if not any(files):
      return []
    for name, paths in zip(names, files):
      if not paths:
        raise self._missing_file_error(name)
    parts = [(path, load_array(path)) for path in itertools.chain(*files)]
    num_classes = parts[0][1].shape[-1:]
    for path, part in parts:
      if part.dtype.kind != 'f' or part.ndim != 2 or not (
          part.shape[1:] == num_classes > (0,)):
        raise UserError(
            f'{path}: {part.dtype} {part.shape}, but softmaxes are float32 '
            '[images, classes], of as many classes in each file')
    return parts

  def _open_top5_probabilities(self):
    paths = find_files(self.folder, shared_dumps.top5_probabilities_file_name(
        self.classifier_id, self.split))
    if not paths:
      return
    path, top5 = paths[0], load_files(paths)
    if top5.dtype.kind != 'f' or top5.shape != self.top5_classes.shape:
      raise UserError(
          f'{path}: {top5.dtype} {top5.shape}, but the classes beside it need '
          f'float32 {self.top5_classes.shape}')
    top5 = np.require(top5, np.float32, ['ALIGNED'])
    with np.errstate(invalid='ignore'):  # False if a value is NaN.
      is_right = (top5[:, 1:] <= top5[:, :-1]).all(axis=1) & (
          top5[:, -1] >= 0) & (top5.sum(axis=1) <= 1 + SUM_TOLERANCE)
    if not is_right.all():
      row = is_right.argmin()
      raise UserError(
          f'{path}: row {row:,} is {top5[row].tolist()}, but must be the '
          'largest softmaxes, best first; remove this file, or dump this '
          'classifier again (step 3)')
    self.top5_probabilities = top5

  def _check_top5_sample(self):
    """Compares the top-5 files with a few rows of each softmax file."""
    start = 0
    for _, part in self._parts:
      for row in np.linspace(
          start, start + len(part) - 1, min(len(part), CHECKED_ROWS)):
        for rows, softmax in self.blocks(int(row), int(row) + 1):
          best = np.sort(softmax)[:, ::-1][:, :shared_dumps.NUM_TOP]
          self.check_top5_rows(rows, softmax, best)
      start += len(part)

  def check_top5_rows(self, rows, probabilities, best):
    """Compares the top-5 files, if there are any, with softmaxes.

    Values are compared, not classes: equal softmaxes have no order. `rows` are
    those of the split, a slice, `probabilities` their softmaxes [checked,
    classes], and `best` the largest of these, best first.
    """
    if self.top5_classes is None:
      return
    claimed = np.take_along_axis(
        probabilities, self.top5_classes[rows].astype(np.int64), axis=1)
    differs = (best != claimed).any(axis=1)
    if self.top5_probabilities is not None:
      differs |= (best != self.top5_probabilities[rows]).any(axis=1)
    if differs.any():
      raise UserError(
          f'{self._top5_path}: row {rows.start + differs.argmax():,} of the '
          'top-5 files does not name the largest softmaxes, best first, of '
          f'{self.path}; remove the file that is wrong')

  def check_labels(self, labels):
    """Raises a `UserError` unless each row has a label that is a class."""
    if len(labels.classes) != self.num_images:
      raise UserError(
          f'{labels.path}: {len(labels.classes):,} labels, and {self.name} has '
          f'{self.num_images:,} rows ({self.path}); both must come from the '
          'same records')
    if self.num_classes is not None:
      _check_below(labels.classes, self.num_classes, labels.path)

  def blocks(self, start, stop, max_rows=BLOCK_ROWS):
    """Iterates over softmaxes in row order; no block spans two parts.

    Yields `(rows, probabilities)`: a slice of the split's rows, and float32
    [rows, classes]. A row that is no softmax is a `UserError`.
    """
    part_start = 0
    for path, part in self._parts:
      last = min(stop - part_start, len(part))
      for row in range(max(start - part_start, 0), last, max_rows):
        block = read_rows(part, row, min(row + max_rows, last))
        _check_softmaxes(block, row, path)
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
  if array.dtype.kind not in 'iu' or array.ndim != num_dimensions or (
      array.ndim == 2 and not 1 <= array.shape[1] <= shared_dumps.NUM_TOP):
    shape = '[images]' if num_dimensions == 1 else '[images, at most 5]'
    raise UserError(f'{path}: {array.dtype} {array.shape}, but classes are '
                    f'integers {shape}')
  _check_below(array, _MOST_CLASSES, path)
  # An array of this type stays mapped.
  return np.require(array, np.int32, ['ALIGNED'])


def _check_below(classes, num_classes, path):
  is_beyond = (classes < 0) | (classes >= num_classes)
  if is_beyond.any():
    index = np.unravel_index(is_beyond.argmax(), classes.shape)
    raise UserError(f'{path}: row {index[0]:,} holds {classes[index]}, and '
                    f'there are {num_classes:,} classes from 0 on')


def _check_softmaxes(probabilities, first_row, path):
  """Checks that each row sums to 1, or was never filled."""
  sums = probabilities.sum(axis=1)
  with np.errstate(invalid='ignore'):  # False for NaN and infinity.
    is_softmax = np.abs(sums - 1) <= SUM_TOLERANCE
  for i in np.flatnonzero(~is_softmax):
    if probabilities[i].any():
      raise UserError(
          f'{path}: row {first_row + i:,} sums up to {sums[i]:.6g}, and a '
          'softmax to 1; dump this classifier again (step 3)')
