"""Softmax dumps: writing them row by row, and going on where a run was killed.

Names, parts and shards have their home in `dump_names.py`; the content is real
`.npy`, where the published files are pickles under that name. Nothing here
needs TensorFlow.
"""

import collections
import contextlib
import os
import re
import sys
import time
import uuid

import numpy as np

import dump_journal
import dump_names
from dump_names import UNFINISHED_SUFFIX
from file_system import LOCAL, explain_error
from npy_rows import DUMP_REMEDY, NpyRows
from user_error import UserError

# A journal is written when so much has come since the last one: what a kill may
# cost, against the time that waiting for the disk takes.
_BLOCK_BYTES = 100 * 10**6
_BLOCK_SECONDS = 30


def prepare_folder(folder, num_images, num_classes, classifier_ids, shard=None,
                   batch_size=None, file_system=LOCAL):
  """Makes the dump folder and checks it, before any work.

  Args:
    folder: made if it is not there.
    num_images: a dict from split to the images that will be dumped, by all
      shards together.
    num_classes: outputs of each classifier, background class included.
    classifier_ids: those that will be dumped in one pass.
    shard, batch_size, file_system: as for `SplitDump`.

  Raises:
    UserError: the folder cannot be made or written, its disk is too full, or
      it holds dumps of other records or other shards.
  """
  required_bytes = 0
  with explain_error('--softmax_dir ' + folder, 'name another folder'):
    file_system.make_folder(folder)
    # Shards may be begun at the same moment, on several machines.
    probe = os.path.join(folder, '.write_probe.' + uuid.uuid4().hex)
    file_system.open_to_write(probe).close()
    file_system.remove(probe)
    free_bytes = file_system.free_bytes(folder)
    for split in num_images:
      _check_shards(folder, split, classifier_ids, shard, file_system)
      start, stop = _rows(num_images[split], shard, batch_size)
      _labels_in_folder(
          folder, split, num_images[split], (start, stop), shard, file_system)
      required_bytes += dump_names.dump_bytes(
          stop - start, num_classes, len(classifier_ids))
      # What an interrupted run has left is gone on with, or removed.
      for path in _paths(folder, split, classifier_ids, shard):
        unfinished_path = path + _unfinished_suffix(classifier_ids)
        if file_system.exists(unfinished_path):
          required_bytes -= file_system.size(unfinished_path)
  if free_bytes is not None and required_bytes > free_bytes:
    raise UserError(
        '--softmax_dir {}: the dumps take {:,} MB and {:,} MB are free; free '
        'some space or name a folder on another disk'.format(
            folder, required_bytes // 10**6, free_bytes // 10**6))


def _rows(num_images, shard, batch_size):
  """The rows `(start, stop)` of a split that a run dumps."""
  if shard is None:
    return 0, num_images
  return dump_names.shard_rows(
      num_images, shard.number, shard.total, batch_size)


def _unfinished_suffix(classifier_ids):
  # Runs for other classifiers may be writing the same labels at the same time;
  # a run for the same classifiers takes over what this one leaves.
  return ''.join('.clf{}'.format(k) for k in classifier_ids) + UNFINISHED_SUFFIX


def _paths(folder, split, classifier_ids, shard):
  """Paths of all files of a run, when they are complete."""
  names = [dump_names.labels_file_name(split)] + [
      name for k in classifier_ids
      for name in dump_names.classifier_file_names(k, split)]
  return [os.path.join(folder, dump_names.shard_file_name(name, shard))
          for name in names]


def _check_shards(folder, split, classifier_ids, shard, file_system):
  """Refuses a folder in which shards would meet what they do not fit.

  The analysis reads a dump that is whole, or all shards of one total.
  """
  dump_file_names = [
      name for k in classifier_ids
      for name in dump_names.classifier_file_names(k, split)]
  remedy = 'remove it and what belongs to it, or name another folder'
  for name in dump_names.names_in(folder, file_system):
    whole_name, other = dump_names.split_shard_name(name)
    path = os.path.join(folder, name)
    if shard and name in dump_file_names:
      raise UserError('{}: a whole dump, where --dump_shard {}/{} would write '
                      'a shard; {}'.format(
                          path, shard.number, shard.total, remedy))
    if whole_name in dump_file_names and not shard:
      raise UserError('{}: a shard, where a whole dump is to be written; {}'
                      .format(path, remedy))
    if shard and other and other.total != shard.total and (
        whole_name in dump_file_names + [dump_names.labels_file_name(split)]):
      raise UserError('{}: a shard of {}, where --dump_shard {}/{} would write '
                      'one of {}; {}'.format(
                          path, other.total, shard.number, shard.total,
                          shard.total, remedy))


def _labels_in_folder(folder, split, num_images, rows, shard, file_system):
  """Labels that an earlier run has left of the rows to be dumped.

  Args:
    num_images: of the split.
    rows: `(start, stop)`, those to be dumped.

  Returns:
    int [stop - start], or None where there are none.
  """
  name = dump_names.labels_file_name(split)
  for file_name, start, length in (
      (name, rows[0], num_images),
      (dump_names.shard_file_name(name, shard), 0, rows[1] - rows[0])):
    path = os.path.join(folder, file_name)
    if not file_system.exists(path):
      continue
    try:
      with file_system.open_to_read(path) as stream:
        labels = np.lib.format.read_array(stream, allow_pickle=False)
    except (OSError, ValueError):
      raise UserError('{}: not a readable .npy file of labels; remove it or '
                      'name another --softmax_dir'.format(path))
    if labels.shape != (length,):
      raise _other_records_error(
          folder, split, '{:,} labels, here {:,}'.format(labels.size, length))
    return labels[start:start + rows[1] - rows[0]]
  return None


def _other_records_error(folder, split, difference):
  return UserError(
      '--softmax_dir {}: holds {} dumps of other records ({}); classifiers of '
      'one cascade are dumped from the same records: remove the old dumps or '
      'name another folder'.format(folder, split, difference))


class SplitDump(object):
  """Streams the dumps of one or more classifiers over one split, or a shard.

  Use as a context manager: left normally, every file gets its name; left by a
  `UserError` (a full disk), the unfinished files are removed. Files of an
  earlier run stay as they are.

  With an `identity`, a run that is killed can be gone on with. Whenever a block
  of rows has been appended it is brought to the disk and a journal written,
  beside the unfinished files. These stay when the process is killed or
  interrupted (Ctrl-C), or fails, and the next `SplitDump` of the same identity takes over
  the rows that the journal speaks of; the files end in the same bytes as those
  of an undisturbed run. File systems that cannot cut off what was written
  behind these rows (`can_resume`) have no journal: there, a run begins anew.

  A pass over several splits asks to keep the journals of those that are
  complete, so that it does not begin with them again, and has them forgotten
  when all are.

  Attributes:
    first_row: of the split, where the range of this dump begins.
    num_rows: rows in this range.
    num_written: rows of it that are written, taken over or appended.
    next_row: of the split, the one to append next.
  """

  def __init__(self, folder, split, num_images, num_classes, classifier_ids,
               identity=None, shard=None, batch_size=None, block_rows=None,
               keeps_journal=False, file_system=LOCAL):
    """
    Args:
      folder: an existing folder.
      split: 'validation' or 'train'.
      num_images: rows of the split.
      num_classes: outputs of each classifier, background class included.
      classifier_ids: which classifiers' softmaxes will be appended.
      identity: a dict, ready for JSON, of all that the content depends on
        (weights, records, batch size, what it is computed with); None to begin
        anew always.
      shard: a `dump_names.DumpShard`, to dump its rows; None for all.
      batch_size: of the caller, between whose batches shards are cut; needed
        with `shard` only.
      block_rows: rows between two journals at least; None for what comes in
        half a minute, or 100 MB.
      keeps_journal: whether the journal stays until `forget`. As long as the
        files stay too, the next `SplitDump` of the same identity finds all rows
        written.
      file_system: one like `file_system.LOCAL`.

    Raises:
      UserError: another process is dumping the same; or the folder holds
        labels of other records or other shards; or it cannot be written.
    """
    self._folder = folder
    self._split = split
    self._classifier_ids = list(classifier_ids)
    self._file_system = file_system
    self.first_row, stop = _rows(num_images, shard, batch_size)
    self.num_rows = stop - self.first_row
    # One object, so that an interruption finds rows and hits in agreement.
    self._written = dump_journal.Written(0, {
        k: np.zeros(2, np.int64) for k in self._classifier_ids}, {})
    self._block_rows = block_rows
    self._keeps_journal = keeps_journal
    self._journal_rows, self._journal_time = 0, time.monotonic()
    self._row_bytes = dump_names.dump_bytes(
        1, num_classes, len(self._classifier_ids))
    with explain_error('--softmax_dir ' + folder, 'name another folder'):
      _check_shards(folder, split, classifier_ids, shard, file_system)
      self._labels_in_folder = _labels_in_folder(
          folder, split, num_images, (self.first_row, stop), shard, file_system)
    self._describe_files(num_images, num_classes, shard)
    self._stem = 'dump_{}{}'.format(
        split, '.{}-of-{}'.format(*shard) if shard else '')
    self._lock_path = os.path.join(
        folder, self._stem + _unfinished_suffix(classifier_ids))
    self._journal = dump_journal.Journal(
        self._lock_path + dump_journal.FILE_SUFFIX,
        dict(identity or {}, num_images=num_images, num_classes=num_classes,
             rows=[self.first_row, stop]), file_system)
    self._is_resumable = identity is not None and file_system.can_resume
    self._claim = self._claim_files()
    begins_anew = False
    try:
      with explain_error(self._journal.path, 'name another --softmax_dir'):
        written = self._written_by_earlier_run()
        begins_anew = written is None
        if begins_anew:
          self._journal.remove()
      self._open_files(written)
    except BaseException as error:
      # What another run has written is not given up for a file that cannot be
      # opened now.
      self._leave(keeps_rows=not begins_anew or (
          self._is_resumable and not isinstance(error, Exception)))
      raise

  @property
  def num_written(self):
    return self._written.num_rows

  @property
  def next_row(self):
    return self.first_row + self.num_written

  def _describe_files(self, num_images, num_classes, shard):
    """Lists the files and which rows of this dump belong into each."""
    suffix = _unfinished_suffix(self._classifier_ids)

    def describe(name, dtype, row_shape, bounds=(0, num_images)):
      start, stop = [min(max(row - self.first_row, 0), self.num_rows)
                     for row in bounds]
      path = os.path.join(
          self._folder, dump_names.shard_file_name(name, shard))
      return _File(start, stop, NpyRows(
          path, path + suffix, dtype, (stop - start,) + row_shape,
          self._file_system))

    num_top = min(5, num_classes)
    self._labels = describe(
        dump_names.labels_file_name(self._split), np.int32, ())
    self._parts, self._top5_classes, self._top5_probabilities = {}, {}, {}
    for k in self._classifier_ids:
      self._parts[k] = [
          describe(name, np.float32, (num_classes,), bounds)
          for name, bounds in zip(
              dump_names.probabilities_file_names(k, self._split),
              dump_names.part_bounds(self._split, num_images))]
      self._top5_classes[k] = describe(
          dump_names.top5_classes_file_name(k, self._split), np.int32,
          (num_top,))
      self._top5_probabilities[k] = describe(
          dump_names.top5_probabilities_file_name(k, self._split), np.float32,
          (num_top,))
    self._files = [self._labels] + [
        described for k in self._classifier_ids
        for described in self._parts[k] + [
            self._top5_classes[k], self._top5_probabilities[k]]]

  def _claim_files(self):
    """Keeps out others that would dump one of these classifiers."""
    pattern = re.compile(r'{}((?:\.clf\d+)+){}$'.format(
        re.escape(self._stem), re.escape(UNFINISHED_SUFFIX)))
    own_name = os.path.basename(self._lock_path)
    with explain_error(self._lock_path, 'name another --softmax_dir'), (
        self._file_system.locked(self._folder)):
      for name in self._file_system.names(self._folder) + [own_name]:
        match = pattern.match(name)
        if not match or not set(self._classifier_ids).intersection(
            map(int, re.findall(r'\d+', match.group(1)))):
          continue
        claim = self._file_system.claim(os.path.join(self._folder, name))
        if claim is None:
          raise UserError(
              '--softmax_dir {}: another process is writing this dump ({}); '
              'wait for it or name another folder'.format(self._folder, name))
        if name == own_name:
          return claim
        claim.close()
    raise AssertionError(own_name)

  def _open_files(self, written):
    if written is not None:
      self._written = written
      self._journal_rows = written.num_rows
    for described in self._files:
      described.npy.open(
          None if written is None else described.num_rows(written.num_rows))

  def _written_by_earlier_run(self):
    """`Written` to go on from, or None; says why there is none."""
    written, reason = self._journal.read()
    if written is not None and not self._is_resumable:
      return None
    if written is not None:
      if written.hits.keys() != set(self._classifier_ids) or not (
          0 <= written.num_rows <= self.num_rows):
        written, reason = None, '{} is damaged'.format(self._journal.path)
      else:
        for described in self._files:
          if not described.npy.holds(
              described.num_rows(written.num_rows),
              self._stamp(described, written)):
            written, reason = None, (
                '{} has lost rows that were written'.format(
                    os.path.basename(described.npy.path)))
            break
    if reason is not None:
      sys.stderr.write('{} {}: begins anew, since {}\n'.format(
          ' '.join('clf{}'.format(k) for k in self._classifier_ids),
          self._split, reason))
    return written

  def _stamp(self, described, written):
    """The stamp that a complete file has if it is the one written, or None."""
    path = described.npy.path
    stamp = written.stamps.get(os.path.basename(path))
    if stamp and described is self._labels and self._file_system.exists(path):
      # Another run may have put its own there: they are the same, or it would
      # have been refused.
      return self._file_system.stamp(path)
    return stamp

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
    if stop > self.num_rows:
      raise UserError(
          '{} has more than the {:,} records counted at the start; did the '
          'data change during the run?'.format(self._split, self.num_rows))
    self._check_labels_match_folder(labels)
    self._labels.append(start, labels)
    hits = dict(self._written.hits)
    for k, (probabilities, top5_classes, top5_probabilities) in outputs.items():
      for part in self._parts[k]:
        part.append(start, probabilities)
      self._top5_classes[k].append(start, top5_classes)
      self._top5_probabilities[k].append(start, top5_probabilities)
      is_label = np.asarray(top5_classes) == labels[:, np.newaxis]
      hits[k] = hits[k] + np.array([is_label[:, 0].sum(), is_label.sum()])
    self._written = dump_journal.Written(stop, hits, {})
    if self._is_resumable and self._is_block_complete():
      self._write_journal()

  def _check_labels_match_folder(self, labels):
    if self._labels_in_folder is None:
      return
    start = self.num_written
    differs = labels != self._labels_in_folder[start:start + len(labels)]
    if differs.any():
      raise _other_records_error(self._folder, self._split, 'row {:,}'.format(
          self.next_row + int(differs.argmax())))

  def _is_block_complete(self):
    num_rows = self.num_written - self._journal_rows
    if self._block_rows is not None:
      return num_rows >= self._block_rows
    return (num_rows * self._row_bytes >= _BLOCK_BYTES or
            time.monotonic() - self._journal_time >= _BLOCK_SECONDS)

  def _write_journal(self):
    for described in self._files:
      described.npy.sync()
    with explain_error(self._journal.path, DUMP_REMEDY):
      self._journal.write(self._written)
    self._journal_rows = self.num_written
    self._journal_time = time.monotonic()

  def accuracy(self, classifier_id):
    """Top-1 and top-5 accuracy, fractions, of the rows written so far."""
    written = self._written  # Once: another thread may be appending.
    top1, top5 = np.array(written.hits[classifier_id]) / float(
        max(written.num_rows, 1))
    return top1, top5

  def __enter__(self):
    return self

  def __exit__(self, exception_type, exception, traceback):
    if exception_type is None:
      self._complete()
      return
    # What a `UserError` speaks of, a full disk or other data, another run would
    # meet again. After anything else, such as a failing GPU, it may go on.
    keeps_rows = (self._is_resumable and self.num_written and
                  not issubclass(exception_type, UserError))
    if keeps_rows:
      with contextlib.suppress(UserError):  # The last block is then lost.
        self._write_journal()
    self._leave(keeps_rows)

  def _complete(self):
    try:
      if self.num_written != self.num_rows:
        raise UserError(
            '{} gave {:,} images where its shards hold {:,} records; did the '
            'data change during the run?'.format(
                self._split, self.num_written, self.num_rows))
      for described in self._files:
        described.npy.complete()
      if self._is_resumable:  # For a kill between the first name and the last.
        self._written = self._written._replace(stamps={
            os.path.basename(described.npy.path): described.npy.stamp()
            for described in self._files})
        self._write_journal()
      with explain_error(self._folder, DUMP_REMEDY), (
          self._file_system.locked(self._folder)):
        for described in self._files:
          described.npy.give_name()
    except BaseException as error:
      self._leave(keeps_rows=self._is_resumable and (
          not isinstance(error, Exception)))
      raise
    self._leave(keeps_rows=False, keeps_journal=self._keeps_journal)

  def forget(self):
    """Removes the journal of a complete dump that was kept."""
    with explain_error(self._journal.path, 'remove it'):
      self._journal.remove()

  def _leave(self, keeps_rows, keeps_journal=False):
    """Closes all files, and removes those that are not complete nor kept."""
    # Under the lock: who claims a file there is sure that it is not removed.
    with contextlib.suppress(OSError), self._file_system.locked(self._folder):
      if not keeps_rows and not keeps_journal:
        self._journal.remove()
      for described in self._files:
        if keeps_rows:
          described.npy.close()
        else:
          described.npy.discard()
      if self._file_system.exists(self._lock_path):
        self._file_system.remove(self._lock_path)
    self._claim.close()


class _File(collections.namedtuple('_File', 'start stop npy')):
  """An `NpyRows` that takes rows `start` to `stop` of a dump."""

  def num_rows(self, num_written):
    """Rows it has when the dump has `num_written`."""
    return min(max(num_written, self.start), self.stop) - self.start

  def append(self, first, rows):
    """Appends those of `rows`, of the dump from row `first` on, it takes."""
    self.npy.append(rows[max(self.start - first, 0):
                         max(self.stop - first, 0)])
