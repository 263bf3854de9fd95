"""Softmax dumps: file names, parts, and writing them row by row.

A dump is what one classifier says of every image of one split: one row per
image, in reading order. The file names are those of the paper's repository
(README, steps 3 to 6); the content is real `.npy`, where the published files
are pickles under that name.

Nothing here needs TensorFlow, so that the analysis shares the names.
"""

import contextlib
import os
import shutil

import numpy as np

from user_error import UserError

SPLITS = ('validation', 'train')

# The published training dumps come in three files, cut at these rows.
TRAIN_PART_STARTS = (0, 400000, 800000)

# An unfinished file carries this suffix; it gets its name when it is whole.
UNFINISHED_SUFFIX = '.unfinished'


def labels_file_name(split):
  """Name of the labels of `split`, int32 [images]."""
  return '{}_non_onehot.npy'.format(split)


def probabilities_file_names(classifier_id, split):
  """Names of the softmax files, float32 [images, classes], in row order."""
  if split == 'validation':
    return ['clf{}_all_probabilities.npy'.format(classifier_id)]
  num_parts = len(TRAIN_PART_STARTS)
  return ['clf{}_train_{}of{}_all_probabilities.npy'.format(
      classifier_id, part, num_parts) for part in range(1, num_parts + 1)]


def top5_classes_file_name(classifier_id, split):
  """Name of the five most probable classes, int32 [images, 5], best first."""
  return 'clf{}_{}top5_classes.npy'.format(classifier_id, _infix(split))


def top5_probabilities_file_name(classifier_id, split):
  """Name of the five largest softmaxes, float32 [images, 5], best first."""
  return 'clf{}_{}top5_probabilities.npy'.format(classifier_id, _infix(split))


def holds_dump(folder, classifier_id, split):
  """Whether `folder` holds anything of a classifier's dump of `split`."""
  names = probabilities_file_names(classifier_id, split) + [
      top5_classes_file_name(classifier_id, split)]
  return any(os.path.exists(os.path.join(folder, name)) for name in names)


def _infix(split):
  return '' if split == 'validation' else 'train_'


def part_bounds(split, num_images):
  """Rows `(start, stop)` of each file of `probabilities_file_names`.

  A split that ends before a part begins leaves that part with no rows.
  """
  starts = TRAIN_PART_STARTS if split == 'train' else (0,)
  stops = starts[1:] + (max(num_images, starts[-1]),)
  return [(min(start, num_images), min(stop, num_images))
          for start, stop in zip(starts, stops)]


def dump_bytes(num_images, num_classes, num_classifiers):
  """Bytes that the dumps of a split take on disk, headers aside."""
  probabilities, top5, label = 4 * num_classes, 5 * (4 + 4), 4
  return num_images * (num_classifiers * (probabilities + top5) + label)


def prepare_folder(folder, num_images, num_classes, num_classifiers):
  """Makes the dump folder and checks it, before any work.

  Args:
    folder: made if it is not there.
    num_images: a dict from split to the images that will be dumped.
    num_classes: outputs of each classifier, background class included.
    num_classifiers: how many will be dumped.

  Raises:
    UserError: the folder cannot be made or written, its disk is too full, or
      it holds dumps of other records.
  """
  try:
    os.makedirs(folder, exist_ok=True)
    probe = os.path.join(folder, '.write_probe')
    with open(probe, 'wb'):
      pass
    os.remove(probe)
  except OSError as error:
    raise UserError('--softmax_dir {}: cannot be written ({}); name another '
                    'folder'.format(folder, error.strerror))
  for split in num_images:
    _labels_in_folder(folder, split, num_images[split])
  required_bytes = sum(dump_bytes(count, num_classes, num_classifiers)
                       for count in num_images.values())
  free_bytes = shutil.disk_usage(folder).free
  if required_bytes > free_bytes:
    raise UserError(
        '--softmax_dir {}: the dumps take {:,} MB and {:,} MB are free; free '
        'some space or name a folder on another disk'.format(
            folder, required_bytes // 10**6, free_bytes // 10**6))


def _labels_in_folder(folder, split, num_images):
  """Labels an earlier run left in `folder`, or None where there are none."""
  path = os.path.join(folder, labels_file_name(split))
  if not os.path.exists(path):
    return None
  try:
    with open(path, 'rb') as stream:
      labels = np.lib.format.read_array(stream, allow_pickle=False)
  except (OSError, ValueError):
    raise UserError('{}: not a readable .npy file of labels; remove it or name '
                    'another --softmax_dir'.format(path))
  if labels.shape != (num_images,):
    raise _other_records_error(folder, split, '{:,} labels, here {:,}'.format(
        labels.size, num_images))
  return labels


def _other_records_error(folder, split, difference):
  return UserError(
      '--softmax_dir {}: holds {} dumps of other records ({}); classifiers of '
      'one cascade are dumped from the same records: remove the old dumps or '
      'name another folder'.format(folder, split, difference))


class _NpyFile(object):
  """A `.npy` file written row by row, named only when it is complete."""

  def __init__(self, path, unfinished_path, dtype, shape):
    self.path = path
    self._unfinished_path = unfinished_path
    self._rows_missing = shape[0]
    self._dtype = np.dtype(dtype)
    self._row_shape = tuple(shape[1:])
    with self._explain_write_error():
      self._file = open(unfinished_path, 'wb')
    np.lib.format.write_array_header_1_0(self._file, {
        'descr': np.lib.format.dtype_to_descr(self._dtype),
        'fortran_order': False, 'shape': tuple(shape)})

  def append(self, rows):
    rows = np.ascontiguousarray(rows, self._dtype)
    assert rows.shape[1:] == self._row_shape, (self.path, rows.shape)
    self._rows_missing -= len(rows)
    with self._explain_write_error():
      self._file.write(rows.tobytes())

  def complete(self):
    assert self._rows_missing == 0, (self.path, self._rows_missing)
    with self._explain_write_error():
      self._file.flush()
      os.fsync(self._file.fileno())
      self._file.close()

  def give_name(self):
    with self._explain_write_error():
      os.replace(self._unfinished_path, self.path)

  def discard(self):
    try:
      self._file.close()
    except OSError:  # The disk is full and the last rows cannot be flushed.
      pass
    if os.path.exists(self._unfinished_path):
      os.remove(self._unfinished_path)

  @contextlib.contextmanager
  def _explain_write_error(self):
    try:
      yield
    except OSError as error:
      raise UserError('{}: cannot be written ({}); this dump is given up, '
                      'earlier ones are untouched'.format(
                          self.path, error.strerror))


class SplitDump(object):
  """Streams the dumps of one or more classifiers over one split.

  Use as a context manager: left normally, every file gets its name; left by an
  exception (Ctrl-C, a full disk), the unfinished files are removed and files
  of an earlier run stay as they are.

  Attributes:
    num_written: rows appended so far.
  """

  def __init__(self, folder, split, num_images, num_classes, classifier_ids):
    """
    Args:
      folder: an existing folder.
      split: 'validation' or 'train'.
      num_images: rows to come; leaving with fewer or more is an error.
      num_classes: outputs of each classifier, background class included.
      classifier_ids: which classifiers' softmaxes will be appended.
    """
    self._folder = folder
    self._split = split
    self._num_images = num_images
    self._part_bounds = part_bounds(split, num_images)
    self._labels_in_folder = _labels_in_folder(folder, split, num_images)
    self._hits = {k: np.zeros(2, np.int64) for k in classifier_ids}
    self.num_written = 0
    self._files = []
    # Runs for other classifiers may be writing the same labels beside this
    # one; a run for the same classifiers replaces what this one left.
    self._unfinished_suffix = ''.join(
        '.clf{}'.format(k) for k in classifier_ids) + UNFINISHED_SUFFIX
    num_top = min(5, num_classes)
    try:
      self._labels = self._open(labels_file_name(split), np.int32, num_images)
      self._parts, self._top5_classes, self._top5_probabilities = {}, {}, {}
      for k in classifier_ids:
        self._parts[k] = [
            self._open(name, np.float32, stop - start, num_classes)
            for name, (start, stop) in zip(
                probabilities_file_names(k, split), self._part_bounds)]
        self._top5_classes[k] = self._open(
            top5_classes_file_name(k, split), np.int32, num_images, num_top)
        self._top5_probabilities[k] = self._open(
            top5_probabilities_file_name(k, split), np.float32, num_images,
            num_top)
    except BaseException:
      self._discard()
      raise

  def _open(self, name, dtype, *shape):
    path = os.path.join(self._folder, name)
    npy = _NpyFile(path, path + self._unfinished_suffix, dtype, shape)
    self._files.append(npy)
    return npy

  def append(self, labels, outputs):
    """Adds the next rows.

    Args:
      labels: int [rows].
      outputs: a dict from classifier to `(probabilities, top5_classes,
        top5_probabilities)`: float32 [rows, classes], int [rows, 5] best
        first, float32 [rows, 5].
    """
    labels = np.asarray(labels)
    start, stop = self.num_written, self.num_written + len(labels)
    if stop > self._num_images:
      raise UserError(
          '{} has more than the {:,} records counted at the start; did the '
          'data change during the run?'.format(self._split, self._num_images))
    self._check_labels_match_folder(labels)
    self._labels.append(labels)
    for k, (probabilities, top5_classes, top5_probabilities) in outputs.items():
      for part, (part_start, part_stop) in zip(
          self._parts[k], self._part_bounds):
        rows = slice(max(part_start, start) - start,
                     max(min(part_stop, stop) - start, 0))
        part.append(probabilities[rows])
      self._top5_classes[k].append(top5_classes)
      self._top5_probabilities[k].append(top5_probabilities)
      is_label = np.asarray(top5_classes) == labels[:, np.newaxis]
      self._hits[k] += [is_label[:, 0].sum(), is_label.sum()]
    self.num_written = stop

  def _check_labels_match_folder(self, labels):
    if self._labels_in_folder is None:
      return
    start = self.num_written
    differs = labels != self._labels_in_folder[start:start + len(labels)]
    if differs.any():
      raise _other_records_error(self._folder, self._split, 'row {:,}'.format(
          start + int(differs.argmax())))

  def accuracy(self, classifier_id):
    """Top-1 and top-5 accuracy, fractions, of the rows appended so far."""
    top1, top5 = self._hits[classifier_id] / float(max(self.num_written, 1))
    return top1, top5

  def __enter__(self):
    return self

  def __exit__(self, exception_type, exception, traceback):
    if exception_type is not None:
      self._discard()
      return
    try:
      if self.num_written != self._num_images:
        raise UserError(
            '{} gave {:,} images where its shards hold {:,} records; did the '
            'data change during the run?'.format(
                self._split, self.num_written, self._num_images))
      for npy in self._files:
        npy.complete()
      for npy in self._files:
        npy.give_name()
    except BaseException:
      self._discard()
      raise

  def _discard(self):
    for npy in self._files:
      npy.discard()
