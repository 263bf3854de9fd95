"""Writes dumps row by row, and resumes where an earlier run was stopped.

Until a pass is complete, its files are called `NAME.clf0.clf1.unfinished`,
after the classifiers of the run. Now and then the rows so far are brought to
the disk, and then one journal says how many there are. Whatever stops the run,
the same command cuts the files back to the journal's rows and continues; they
end in the same bytes. No TensorFlow.
"""

import contextlib
import glob
import io
import json
import os
import shutil
import sys
import tempfile
import time
import typing

import numpy as np

import dump_names
import files
from dump_names import NUM_TOP
from files import check_regular, explain_error
from user_error import UserError

# A journal is written after so much: what a kill may cost, against the time
# spent waiting for the disk.
_BLOCK_BYTES = 100 * 10**6
_BLOCK_SECONDS = 30

_REMEDY = 'free some space and run the same command again: it continues'

_SMALLEST = np.finfo(np.float32).tiny  # A probability of 0 has no logarithm.


class Means(typing.NamedTuple):
  """Of one classifier, over the rows written so far."""
  loss: float  # Cross-entropy.
  top1: float  # Fraction of the images.
  top5: float


class _Written(typing.NamedTuple):
  """How far a split has come: one object, so that Ctrl-C cannot tear it."""
  num_rows: int  # Of those that this run dumps.
  sums: dict     # Classifier to [cross-entropy, top-1 hits, top-5 hits].


@contextlib.contextmanager
def locked_classifiers(folder, classifier_ids, shard=None):
  """Holds the locks of classifiers; waits for runs that dump any of them.

  The shards of a pass share their classifiers. They exclude runs that dump
  these whole, and each excludes a second run of the same shard.

  Args:
    folder: made if it is not there.
    classifier_ids: which ones. They are locked in ascending order, so that no
      two runs wait for each other.
    shard: the `dump_names.DumpShard` of the run, or None.
  """
  with contextlib.ExitStack() as stack:
    for k in sorted(classifier_ids):
      def say_waiting(k=k):
        sys.stderr.write(f'clf{k}: waiting for another run to finish its dump '
                         f'in {folder}\n')
      path = os.path.join(folder, f'clf{k}.lock')
      with explain_error(path, 'name another --softmax_dir'):
        os.makedirs(folder, exist_ok=True)
        stack.enter_context(
            files.lock_file(path, say_waiting, is_shared=shard is not None))
        if shard:
          stack.enter_context(files.lock_file(
              dump_names.shard_file_name(path, shard), say_waiting))
    yield


class DumpWriter:
  """Writes the dumps of some classifiers over all splits, or a shard of them.

      with DumpWriter(...) as writer:
        for split in writer.rows:
          for batch in ...:  # From row `writer.next_row(split)` on.
            writer.append(split, labels, outputs)
          writer.check_count(split)
        writer.complete()
        writer.give_names()

  If it is left by an exception, the rows stay for the next run. The caller
  holds the classifiers' locks.

  Attributes:
    rows: a dict from split to the range of its rows that this run dumps.
  """

  def __init__(self, folder, num_images, num_classes, classifier_ids,
               identity=None, shard=None, batch_size=None):
    """Describes the files and touches none.

    Args:
      folder: of the dumps.
      num_images: a dict from split to its number of images, those of other
        shards included.
      num_classes: outputs of each classifier, background class included.
      classifier_ids: whose softmaxes will be appended.
      identity: a dict, ready for JSON, of all that the rows depend on, such as
        weights, records and batch size. Only the rows of a run with the same
        identity are resumed.
      shard: a `dump_names.DumpShard`, to write its rows; None for all.
      batch_size: of the caller; shards are cut between batches.
    """
    self.rows = {
        split: range(*(dump_names.shard_rows(count, *shard, batch_size)
                       if shard else (0, count)))
        for split, count in num_images.items()}
    self._folder = folder
    self._num_images = num_images
    self._num_classes = num_classes
    self._classifier_ids = list(classifier_ids)
    self._suffix = ''.join(
        f'.clf{k}' for k in classifier_ids) + files.UNFINISHED_SUFFIX
    self._identity = json.loads(json.dumps(identity or {}))
    self._shard = shard
    self._journal_path = self._path('dump_journal.json') + self._suffix
    self._files = {split: self._describe_files(split) for split in self.rows}
    self._all_files = sum(self._files.values(), [])
    self._written = {
        split: _Written(0, {k: [0, 0, 0] for k in classifier_ids})
        for split in self.rows}
    self._stamps = {}  # Of the files, by name, when all are complete.
    self._num_new_bytes, self._journal_time = 0, time.monotonic()

  def _path(self, name):
    return os.path.join(
        self._folder, dump_names.shard_file_name(name, self._shard))

  def _describe_files(self, split):
    """The `_NpyFile`s of a split; its labels come first."""
    rows, num_images = self.rows[split], self._num_images[split]

    def describe(name, dtype, row_shape, source=None, bounds=(0, num_images)):
      start, stop = [min(max(row, rows.start), rows.stop) - rows.start
                     for row in bounds]
      path = self._path(name)
      return _NpyFile(
          path, path + self._suffix, dtype, row_shape, source, start, stop)

    top_shape = (min(NUM_TOP, self._num_classes),)
    described = [describe(dump_names.labels_file_name(split), np.int32, ())]
    for k in self._classifier_ids:
      described += [
          describe(name, np.float32, (self._num_classes,), (k, 0), bounds)
          for name, bounds in zip(
              dump_names.probabilities_file_names(k, split),
              dump_names.part_bounds(split, num_images))]
      described += [
          describe(dump_names.top5_classes_file_name(k, split), np.int32,
                   top_shape, (k, 1)),
          describe(dump_names.top5_probabilities_file_name(k, split),
                   np.float32, top_shape, (k, 2))]
    return described

  def check_folder(self):
    """Makes the folder and checks it.

    Raises:
      UserError: it cannot be written, its disk is too full, or it holds dumps
        of other records or other shards.
    """
    with explain_error('--softmax_dir ' + self._folder, 'name another folder'):
      os.makedirs(self._folder, exist_ok=True)
      tempfile.TemporaryFile(dir=self._folder).close()
      free_bytes = shutil.disk_usage(self._folder).free
    check_regular(self._journal_path)
    for file in self._all_files:
      check_regular(file.path)
      check_regular(file.unfinished_path)
    for split in self.rows:
      self._check_shards(split)
      self._check_labels(split)
    has_journal = os.path.exists(self._journal_path)
    missing_bytes = sum(
        file.num_missing_bytes(has_journal) for file in self._all_files)
    if missing_bytes > free_bytes:
      raise UserError(
          f'--softmax_dir {self._folder}: the dumps take '
          f'{missing_bytes // 10**6:,} MB and {free_bytes // 10**6:,} MB are '
          'free; free some space or name a folder on another disk')

  def _check_shards(self, split):
    """The analysis reads dumps that are whole, or all shards of one total.

    Whole labels may lie beside shards of dumps, and the other way round.
    """
    own_total, plan = None, 'a whole dump is to be written'
    if self._shard:
      number, own_total = self._shard
      plan = (f'--dump_shard {number}/{own_total} would write a shard of '
              f'{own_total}')
    names = [name for k in self._classifier_ids
             for name in dump_names.classifier_file_names(k, split)]
    for name in dump_names.names_in(self._folder):
      whole_name, shard = dump_names.split_shard_name(name)
      total = shard.total if shard else None
      is_labels = whole_name == dump_names.labels_file_name(split)
      if total != own_total and (
          (whole_name or name) in names or (is_labels and own_total)):
        found = f'a shard of {total}' if shard else 'a whole dump'
        raise UserError(
            f'{os.path.join(self._folder, name)}: {found}, where {plan}; '
            'remove it and what belongs to it, or name another folder')

  def _check_labels(self, split, labels=(), start=0):
    """Compares the run's labels from `start` on with any in the folder.

    They are read each time: another run may have put them there just now.
    """
    rows, name = self.rows[split], dump_names.labels_file_name(split)
    for path, first, length in (
        (os.path.join(self._folder, name), rows.start, self._num_images[split]),
        (self._path(name), 0, len(rows))):
      check_regular(path)
      if not os.path.exists(path):
        continue
      found, difference = _load_labels(path), None
      if found.shape != (length,):
        difference = f'{found.size:,} labels, here {length:,}'
      else:
        first += start
        differs = found[first:first + len(labels)] != labels
        if np.any(differs):
          row = rows[start + int(differs.argmax())]
          difference = f'row {row:,}'
      if difference:
        raise UserError(
            f'--softmax_dir {self._folder}: holds {split} dumps of other '
            f'records ({difference}); classifiers of one cascade are dumped '
            'from the same records: remove the old dumps or name another '
            'folder')

  def __enter__(self):
    try:
      is_resumed = os.path.exists(self._journal_path)
      with explain_error(self._journal_path, 'name another --softmax_dir'):
        reason = self._resume() if is_resumed else None
        if reason:
          is_resumed = False
          title = ' '.join(f'clf{k}' for k in self._classifier_ids)
          sys.stderr.write(f'{title}: starting over: {reason}\n')
          os.remove(self._journal_path)
      if not self._stamps:  # Otherwise every file is complete.
        for split in self.rows:
          for file in self._files[split]:
            file.open(self._written[split].num_rows if is_resumed else None)
    except BaseException:
      self._leave()
      raise
    return self

  def _resume(self):
    """Takes over the journal's rows; returns None, or why it cannot."""
    try:
      with open(self._journal_path, 'rb') as stream:
        journal = json.loads(stream.read().decode())
      identity, stamps = dict(journal['identity']), dict(journal['stamps'])
      written = {
          split: _Written(int(journal['written'][split]['num_rows']), {
              k: journal['written'][split]['sums'][str(k)]
              for k in self._classifier_ids})
          for split in self.rows}
    except (ValueError, KeyError, TypeError):
      return f'{self._journal_path} is damaged'
    different = [name for name in sorted({**identity, **self._identity})
                 if identity.get(name) != self._identity.get(name)]
    if different:
      return 'the interrupted dump used different ' + ', '.join(different)
    lost = [os.path.basename(file.path)
            for split in self.rows for file in self._files[split]
            if not file.holds(written[split].num_rows) and
            not file.is_finished(stamps)]
    if lost:
      return f'{lost[0]} has lost rows'
    self._written, self._stamps = written, stamps
    return None

  def _write_journal(self):
    """Brings all rows to the disk, then says how many there are."""
    for file in self._all_files:
      file.sync()
    content = json.dumps({
        'identity': self._identity,
        'written': {split: written._asdict()
                    for split, written in self._written.items()},
        'stamps': self._stamps,
    }, indent=1) + '\n'
    with explain_error(self._journal_path, _REMEDY):
      files.write_atomically(self._journal_path, content.encode())
    self._num_new_bytes, self._journal_time = 0, time.monotonic()

  def num_written(self, split):
    """How many of `rows` are written, by this run or an earlier one."""
    return self._written[split].num_rows

  def next_row(self, split):
    """The row of the whole split to append next."""
    return self.rows[split].start + self.num_written(split)

  def means(self, split, classifier_id):
    """`Means` of the rows written so far."""
    num_rows, sums = self._written[split]
    return Means(*(total / max(num_rows, 1) for total in sums[classifier_id]))

  def append(self, split, labels, outputs):
    """Adds the next rows of a split.

    Args:
      split: 'validation' or 'train'.
      labels: int [rows].
      outputs: a dict from classifier to (probabilities float32 [rows,
        classes], top-5 classes int [rows, 5], top-5 probabilities float32
        [rows, 5]), best first.

    Raises:
      UserError: there are more rows than images, the labels are not those in
        the folder, or a file cannot be written.
    """
    labels = np.asarray(labels)
    start = self.num_written(split)
    stop = start + len(labels)
    if stop > len(self.rows[split]):
      raise UserError(
          f'{split} has more than the {len(self.rows[split]):,} records '
          'counted at the start; did the data change during the run?')
    self._check_labels(split, labels, start)
    for file in self._files[split]:
      self._num_new_bytes += file.append(start, labels, outputs)
    self._written[split] = _Written(stop, {
        k: [total + new for total, new in zip(sums, _sums(labels, outputs[k]))]
        for k, sums in self._written[split].sums.items()})
    if (self._num_new_bytes >= _BLOCK_BYTES or
        time.monotonic() - self._journal_time >= _BLOCK_SECONDS):
      self._write_journal()

  def check_count(self, split):
    """Raises a UserError if a split is not complete."""
    num_rows = len(self.rows[split])
    if self.num_written(split) != num_rows:
      raise UserError(
          f'{split} gave {self.num_written(split):,} images where its shards '
          f'hold {num_rows:,} records; did the data change during the run?')

  def complete(self):
    """Brings everything to the disk; the caller has checked the counts."""
    if self._stamps:  # An earlier run came as far as this.
      return
    for file in self._all_files:
      file.sync()
    self._stamps = {os.path.basename(file.path): _stamp(file.unfinished_path)
                    for file in self._all_files}
    self._write_journal()  # For a kill between the first name and the last.

  def give_names(self):
    """Gives every file its name. The caller holds the folder's lock.

    Raises:
      UserError: another run, which no lock kept away, has replaced a file.
    """
    for split in self.rows:
      own_labels = self._files[split][0]
      if os.path.exists(own_labels.unfinished_path):
        self._check_labels(split, _load_labels(own_labels.unfinished_path))
    for file in self._all_files:
      file.close()
      if os.path.exists(file.unfinished_path):
        with explain_error(file.path, _REMEDY):
          os.replace(file.unfinished_path, file.path)
    for file in self._all_files:
      if not file.is_finished(self._stamps):
        raise UserError(
            f'{file.path}: was replaced by another run while this one was '
            'writing; run one after the other')

  def __exit__(self, exception_type, exception, traceback):
    if exception_type is None:  # Kills may have left more than one.
      for path in glob.glob(glob.escape(self._journal_path) + '*'):
        os.remove(path)
    # A disk that has lost rows says so once, in a UserError, so after that the
    # last journal counts.
    elif not issubclass(exception_type, UserError) and any(
        written.num_rows for written in self._written.values()):
      with contextlib.suppress(UserError):  # The rows since the last are lost.
        self._write_journal()
    self._leave()

  def _leave(self):
    """Closes all files. Those that no journal vouches for are removed."""
    for file in self._all_files:
      file.close()
      if not os.path.exists(self._journal_path):
        with contextlib.suppress(OSError):
          os.remove(file.unfinished_path)


class _NpyFile:
  """A `.npy` file of a split, written row by row."""

  def __init__(self, path, unfinished_path, dtype, row_shape, source, start,
               stop):
    self.path = path
    self.unfinished_path = unfinished_path  # Until all splits are complete.
    self._dtype = np.dtype(dtype)
    self._row_shape = row_shape  # () for labels.
    self._source = source  # (classifier, output); None for labels.
    self._start, self._stop = start, stop  # The rows of the run that it takes.
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {
        'descr': np.lib.format.dtype_to_descr(self._dtype),
        'fortran_order': False, 'shape': (stop - start,) + row_shape})
    self._header = header.getvalue()
    self._stream = None

  def _num_bytes(self, num_rows):
    """Its size when the run has written `num_rows`."""
    num_own_rows = min(max(num_rows, self._start), self._stop) - self._start
    return len(self._header) + num_own_rows * (
        self._dtype.itemsize * int(np.prod(self._row_shape)))

  def num_missing_bytes(self, has_journal):
    """What it will still take on the disk."""
    size = _size(self.unfinished_path)
    if has_journal and not size:  # It has its name already.
      size = _size(self.path)
    return max(self._num_bytes(self._stop) - size, 0)

  def holds(self, num_rows):
    """Whether the unfinished file has what a run wrote in `num_rows`."""
    return _size(self.unfinished_path) >= self._num_bytes(num_rows)

  def is_finished(self, stamps):
    """Whether it has its name and no other run has replaced it since.

    Labels do not matter: they are the same, whichever run wrote them.
    """
    name = os.path.basename(self.path)
    return name in stamps and os.path.exists(self.path) and (
        self._source is None or _stamp(self.path) == stamps[name])

  def open(self, num_rows=None):
    """Starts the file, or cuts it back to what it had after `num_rows`."""
    with explain_error(self.path, 'name another --softmax_dir'):
      self._stream = open(self.unfinished_path, 'ab')
      if num_rows is None:
        self._stream.truncate(0)
        self._stream.write(self._header)
      else:
        self._stream.truncate(self._num_bytes(num_rows))

  def append(self, first, labels, outputs):
    """Writes its part of the run's rows from `first` on; returns its bytes."""
    rows = labels
    if self._source:
      k, index = self._source
      rows = outputs[k][index]
    rows = np.ascontiguousarray(
        rows[max(self._start - first, 0):max(self._stop - first, 0)],
        self._dtype)
    assert rows.shape[1:] == self._row_shape, (self.path, rows.shape)
    with explain_error(self.path, _REMEDY):
      return self._stream.write(rows.tobytes())

  def sync(self):
    if self._stream:
      with explain_error(self.path, _REMEDY):
        self._stream.flush()
        os.fsync(self._stream.fileno())

  def close(self):
    stream, self._stream = self._stream, None
    if stream:
      with contextlib.suppress(OSError):  # What counts is synced.
        stream.close()


def _load_labels(path):
  try:
    return np.lib.format.open_memmap(path, mode='r')
  except (OSError, ValueError):
    raise UserError(f'{path}: not a readable .npy file of labels; remove it or '
                    'name another --softmax_dir')


def _size(path):
  return os.path.getsize(path) if os.path.exists(path) else 0


def _stamp(path):
  """What changes when a file gets other content; ready for JSON."""
  status = os.stat(path)
  return [status.st_size, status.st_mtime_ns]


def _sums(labels, outputs):
  """Cross-entropy, top-1 hits and top-5 hits of a batch, each summed up."""
  probabilities, top5_classes, _ = outputs
  of_labels = np.asarray(probabilities)[np.arange(len(labels)), labels]
  is_label = np.asarray(top5_classes) == labels[:, np.newaxis]
  return (-float(np.log(np.maximum(of_labels, _SMALLEST)).sum()),
          int(is_label[:, 0].sum()), int(is_label.sum()))
