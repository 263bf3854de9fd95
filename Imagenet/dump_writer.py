"""Writes dumps row by row, and resumes where an earlier run was stopped.

Until a pass is complete, its files are called `NAME.clf0.clf1.unfinished`,
after the classifiers of the run. Rows are appended in order, so the sizes of
the files say how far a run has come: on resuming, the batches that all files
hold whole are done, and all files are cut back to them. One more file says what
the rows are of, from when the others have been made until they all have their
names. No TensorFlow.
"""

import contextlib
import glob
import io
import json
import os
import shutil
import sys
import tempfile

import numpy as np

import shared_dumps
import shared_files
from shared_dumps import NUM_TOP
from shared_files import explain_content, explain_error
from shared_terminal import UserError

_REMEDY = 'free some space and run the same command again: it continues'


@contextlib.contextmanager
def locked_classifiers(folder, classifier_ids, shard=None):
  """Makes the folder and waits for other runs that dump these classifiers.

  The shards of a pass (`shared_dumps.DumpShard`; None for all rows) share their
  classifiers. They exclude runs that dump these whole, and each excludes a
  second run of the same shard.
  """
  with contextlib.ExitStack() as stack:
    for k in sorted(classifier_ids):  # So that no two runs wait for each other.
      def say_waiting(k=k):
        sys.stderr.write(f'clf{k}: waiting for another run to finish its dump '
                         f'in {folder}\n')
      path = os.path.join(folder, f'.clf{k}.lock')
      with explain_error(path, 'name another --softmax_dir'):
        os.makedirs(folder, exist_ok=True)
        stack.enter_context(
            shared_files.locked(path, say_waiting, is_shared=shard is not None))
        if shard:
          stack.enter_context(shared_files.locked(
              f'{path}.{shard.number}', say_waiting))
    yield


class DumpWriter:
  """Writes the dumps of some classifiers over all splits, or a shard of them.

      with DumpWriter(...) as writer:
        for split in writer.rows:
          for batch in ...:  # From row `writer.next_row(split)` on.
            writer.append(split, labels, outputs)
          writer.finish_split(split)
        writer.give_names()

  If it is left by an exception, the rows stay for the next run. The caller
  holds the classifiers' locks.

  Attributes:
    rows: a dict from split to the range of its rows that this run dumps.
    num_written: how many of them are written, by this run or an earlier one.
  """

  def __init__(self, folder, num_images, num_classes, classifier_ids,
               identity=None, shard=None, batch_size=1):
    """Describes the files and touches none.

    Args:
      num_images: a dict from split to its number of images, those of other
        shards included.
      num_classes: outputs of each classifier, background class included.
      identity: a dict, ready for JSON, of all that the rows depend on, such as
        weights, records and batch size. Only the rows of a run with the same
        identity are resumed.
      shard: a `shared_dumps.DumpShard`, to write its rows; None for all.
      batch_size: of the caller; runs are cut and resumed between batches.
    """
    self.rows = {
        split: range(*(shared_dumps.shard_rows(count, *shard, batch_size)
                       if shard else (0, count)))
        for split, count in num_images.items()}
    self._folder = folder
    self._num_images = num_images
    self._num_classes = num_classes
    self._classifier_ids = list(classifier_ids)
    self._suffix = ''.join(
        f'.clf{k}' for k in classifier_ids) + shared_files.UNFINISHED_SUFFIX
    self._identity = json.loads(json.dumps(identity or {}))
    self._shard = shard
    self._batch_size = batch_size
    self._identity_path = self._path('dump_identity.json') + self._suffix
    self._files = {split: self._describe_files(split) for split in self.rows}
    self._all_files = sum(self._files.values(), [])
    self.num_written = dict.fromkeys(self.rows, 0)

  def _path(self, name):
    return os.path.join(
        self._folder, shared_dumps.shard_file_name(name, self._shard))

  def _describe_files(self, split):
    """The `_NpyFile`s of a split; its labels come first."""
    rows, num_images = self.rows[split], self._num_images[split]
    top_shape = (min(NUM_TOP, self._num_classes),)
    described = []

    def add(name, dtype, row_shape, source, bounds=(0, num_images)):
      start, stop = [min(max(row, rows.start), rows.stop) - rows.start
                     for row in bounds]
      path = self._path(name)
      described.append(_NpyFile(
          path, path + self._suffix, dtype, row_shape, source, start, stop))

    add(shared_dumps.labels_file_name(split), np.int32, (), None)
    for k in self._classifier_ids:
      for name, bounds in zip(shared_dumps.probabilities_file_names(k, split),
                              shared_dumps.part_bounds(split, num_images)):
        add(name, np.float32, (self._num_classes,), (k, 0), bounds)
      add(shared_dumps.top5_classes_file_name(k, split), np.int32, top_shape,
          (k, 1))
      add(shared_dumps.top5_probabilities_file_name(k, split), np.float32,
          top_shape, (k, 2))
    return described

  def check_folder(self):
    """Makes the folder, and checks it.

    Raises:
      UserError: it cannot be written, its disk is too full, or it holds dumps
        of other records.
    """
    with explain_error('--softmax_dir ' + self._folder, 'name another folder'):
      os.makedirs(self._folder, exist_ok=True)
      tempfile.TemporaryFile(dir=self._folder).close()
      free_bytes = shutil.disk_usage(self._folder).free
    for split in self.rows:
      self._check_labels(split)
    missing_bytes = 0 if self._is_complete() else sum(
        file.num_missing_bytes() for file in self._all_files)
    if missing_bytes > free_bytes:
      raise UserError(
          f'--softmax_dir {self._folder}: the dumps take '
          f'{missing_bytes // 10**6:,} MB and {free_bytes // 10**6:,} MB are '
          'free; free some space or name a folder on another disk')

  def _check_labels(self, split, labels=(), start=0):
    """Compares the run's labels from `start` on with any in the folder.

    They are read each time: another run may have put them there just now.
    """
    rows, name = self.rows[split], shared_dumps.labels_file_name(split)
    for path, first, length in (
        (os.path.join(self._folder, name), rows.start, self._num_images[split]),
        (self._path(name), 0, len(rows))):
      if not os.path.exists(path):
        continue
      with explain_content(path, 'remove it or name another --softmax_dir'):
        found = _load(path)
        own = found[first + start:][:len(labels)]
        is_same = found.shape == (length,) and np.array_equal(own, labels)
      if not is_same:
        raise UserError(
            f'--softmax_dir {self._folder}: holds {split} labels of other '
            'records; classifiers of one cascade are dumped from the same '
            'records: remove the old dumps or name another folder')

  def __enter__(self):
    is_resumed = self._may_resume()
    if is_resumed and self._is_complete():
      self.num_written = {split: len(rows) for split, rows in self.rows.items()}
      return self
    for split, files in self._files.items():
      if is_resumed:
        self.num_written[split] = self._num_resumed(split)
      for file in files:
        file.open(self.num_written[split])
    if not is_resumed:  # The rows of another run are gone by now.
      with explain_error(self._identity_path, _REMEDY):
        with open(self._identity_path, 'w', encoding='utf-8') as stream:
          json.dump(self._identity, stream)
    return self

  def _num_resumed(self, split):
    """Rows that all files hold whole, in whole batches.

    In other batches, softmaxes may differ in their last bits.
    """
    total = len(self.rows[split])
    num_rows = min(file.num_rows(total) for file in self._files[split])
    return total if num_rows == total else (
        num_rows // self._batch_size * self._batch_size)

  def _is_complete(self):
    """Whether a run was stopped while it gave the files their names."""
    return os.path.exists(self._identity_path) and not os.path.exists(
        self._all_files[0].unfinished_path)  # It gets its name first.

  def _may_resume(self):
    """Whether the rows on the disk are of this identity; says why not."""
    if not os.path.exists(self._identity_path):
      return False
    try:
      with open(self._identity_path, encoding='utf-8') as stream:
        found = json.load(stream)
    except ValueError:  # Stopped as it was written, before the first row.
      found = {}
    different = [name for name in sorted({**found, **self._identity})
                 if found.get(name) != self._identity.get(name)]
    if not different:
      return True
    title = ' '.join(f'clf{k}' for k in self._classifier_ids)
    sys.stderr.write(f'{title}: starting over: the interrupted dump used '
                     f'different {", ".join(different)}\n')
    return False

  def next_row(self, split):
    """The row of the whole split to append next."""
    return self.rows[split].start + self.num_written[split]

  def append(self, split, labels, outputs):
    """Adds the next rows of a split.

    Args:
      split: 'validation' or 'train'.
      labels: int [rows].
      outputs: a dict from classifier to (probabilities float32 [rows,
        classes], top-5 classes int [rows, 5], top-5 probabilities float32
        [rows, 5]), best first.

    Raises:
      UserError: the labels are not those in the folder, or a file cannot be
        written.
    """
    labels = np.asarray(labels)
    start = self.num_written[split]
    self._check_labels(split, labels, start)
    for file in self._files[split]:
      file.append(start, labels, outputs)
    self.num_written[split] += len(labels)

  def finish_split(self, split):
    """Checks that a split is complete; its top-1 and top-5 accuracy.

    Returns:
      A dict from classifier to (top-1, top-5), fractions; 0 without images.

    Raises:
      UserError: there were fewer records than counted, or more.
    """
    num_images = len(self.rows[split])
    if self.num_written[split] != num_images:
      raise UserError(
          f'{split} gave {self.num_written[split]:,} images where its shards '
          f'hold {num_images:,} records; did the data change during the run?')
    paths = {file.source: file.written_path() for file in self._files[split]}
    labels = _load(paths[None])[:, np.newaxis]  # [images, 1]
    accuracies = {}
    for k in self._classifier_ids:
      is_label = _load(paths[k, 1]) == labels  # [images, 5]
      accuracies[k] = (int(is_label[:, 0].sum()) / max(num_images, 1),
                       int(is_label.sum()) / max(num_images, 1))
    return accuracies

  def give_names(self):
    """Gives every file its name, once everything is on the disk.

    The caller has checked the counts and holds the folder's lock.

    Raises:
      UserError: the disk is full, or the folder holds other labels by now.
    """
    for file in self._all_files:
      file.sync()
    self._close()
    for split, files in self._files.items():
      self._check_labels(split, _load(files[0].written_path()))
    with explain_error(self._folder, _REMEDY):
      # Another run that was stopped between its first name and its last cannot
      # go on from files that are replaced now.
      identity, labels = self._path('dump_identity.json'), self._all_files[0]
      for path in glob.glob(glob.escape(identity) + '.*'):
        suffix = path[len(identity):]
        if (suffix != self._suffix and
            any(f'.clf{k}.' in suffix for k in self._classifier_ids) and
            not os.path.exists(labels.path + suffix)):
          os.remove(path)
      for file in self._all_files:
        if os.path.exists(file.unfinished_path):
          os.replace(file.unfinished_path, file.path)

  def __exit__(self, exception_type, *unused):
    self._close()
    if exception_type is None:
      with contextlib.suppress(FileNotFoundError):
        os.remove(self._identity_path)

  def _close(self):
    for file in self._all_files:
      file.close()


class _NpyFile:
  """A `.npy` file of a split, written row by row."""

  def __init__(self, path, unfinished_path, dtype, row_shape, source, start,
               stop):
    self.path = path
    self.unfinished_path = unfinished_path  # Until all splits are complete.
    self.source = source  # (classifier, output); None for labels.
    self._dtype = np.dtype(dtype)
    self._row_shape = row_shape  # () for labels.
    self._row_bytes = self._dtype.itemsize * int(np.prod(row_shape))
    self._start, self._stop = start, stop  # The rows of the run that it takes.
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {
        'descr': np.lib.format.dtype_to_descr(self._dtype),
        'fortran_order': False, 'shape': (stop - start,) + row_shape})
    self._header = header.getvalue()
    self._stream = None

  def written_path(self):
    """Where its rows are: under its name once it has that."""
    return (self.unfinished_path if os.path.exists(self.unfinished_path) else
            self.path)

  def _num_bytes(self, num_rows):
    """Its size when the run has written `num_rows`."""
    num_own_rows = min(max(num_rows, self._start), self._stop) - self._start
    return len(self._header) + num_own_rows * self._row_bytes

  def num_missing_bytes(self):
    """What it will still take on the disk."""
    return max(self._num_bytes(self._stop) - _size(self.unfinished_path), 0)

  def num_rows(self, total):
    """How far the run has come, as this file has it; `total` if it is whole.

    If it takes the rows from 10 to 14 and holds two of them, that is 12.
    """
    num_own_rows = max(
        _size(self.unfinished_path) - len(self._header), 0) // self._row_bytes
    return (total if num_own_rows >= self._stop - self._start else
            self._start + num_own_rows)

  def open(self, num_rows):
    """Opens the file for appending, cut back to what `num_rows` gave it."""
    with explain_error(self.path, 'name another --softmax_dir'):
      self._stream = open(self.unfinished_path, 'ab')
      if self._stream.tell() < len(self._header):
        self._stream.truncate(0)
        self._stream.write(self._header)
        self._stream.flush()
      self._stream.truncate(self._num_bytes(num_rows))

  def append(self, first, labels, outputs):
    """Writes its part of the run's rows from `first` on."""
    rows = labels
    if self.source:
      k, index = self.source
      rows = outputs[k][index]
    rows = np.ascontiguousarray(
        rows[max(self._start - first, 0):max(self._stop - first, 0)],
        self._dtype)
    assert rows.shape[1:] == self._row_shape, (self.path, rows.shape)
    with explain_error(self.path, _REMEDY):
      self._stream.write(rows.tobytes())
      self._stream.flush()

  def sync(self):
    if self._stream:
      with explain_error(self.path, _REMEDY):
        os.fsync(self._stream.fileno())

  def close(self):
    stream, self._stream = self._stream, None
    if stream:
      with contextlib.suppress(OSError):  # The sizes say what was lost.
        stream.close()


def _load(path):
  return np.lib.format.open_memmap(path, mode='r')


def _size(path):
  return os.path.getsize(path) if os.path.exists(path) else 0
