"""Dumps that are killed, interrupted or tampered with, and gone on with."""

import json
import os
import random
import signal

import numpy as np
import pytest

import dump_names
import softmax_dump
from background_writer import BackgroundWriter
from dump_folders import best_classes, random_softmaxes
from dump_names import DumpShard
from file_system import LocalFileSystem
from softmax_dump import SplitDump
from user_error import UserError

NUM_IMAGES, NUM_CLASSES, BATCH_SIZE, BLOCK_ROWS = 23, 9, 3, 5
IDENTITY = {'weights': 'a0', 'batch_size': BATCH_SIZE}
LABELS = np.random.RandomState(7).randint(0, NUM_CLASSES, NUM_IMAGES)
SOFTMAXES = {k: random_softmaxes(k, NUM_IMAGES, NUM_CLASSES) for k in (0, 2)}


@pytest.fixture(autouse=True)
def three_parts(monkeypatch):
  monkeypatch.setattr(dump_names, 'TRAIN_PART_STARTS', (0, 10, 14))


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
  """A killed process loses nothing that it has given to the system."""
  monkeypatch.setattr(os, 'fsync', lambda descriptor: None)


def outputs(rows):
  result = {}
  for k, softmaxes in SOFTMAXES.items():
    top5 = best_classes(softmaxes[rows])
    result[k] = (softmaxes[rows], top5,
                 np.take_along_axis(softmaxes[rows], top5, axis=1))
  return result


def start(folder, identity=IDENTITY, **more):
  arguments = dict(split='train', num_images=NUM_IMAGES,
                   num_classes=NUM_CLASSES, classifier_ids=[0, 2],
                   identity=identity, block_rows=BLOCK_ROWS)
  arguments.update(more)
  return SplitDump(str(folder), **arguments)


def go_on(dump, num_batches=None, writer=None):
  """Appends batches as a run does that reads from the next row on."""
  stop = dump.first_row + dump.num_rows
  for row in range(dump.next_row, stop, BATCH_SIZE)[:num_batches]:
    rows = slice(row, min(row + BATCH_SIZE, stop))
    (writer or dump).append(LABELS[rows], outputs(rows))


def whole_pass(folder, in_background=False, **more):
  with start(folder, **more) as dump:
    if in_background:
      with BackgroundWriter(dump) as writer:
        go_on(dump, writer=writer)
    else:
      go_on(dump)
  return dump


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def expected(tmp_path):
  (tmp_path / 'undisturbed').mkdir()
  whole_pass(tmp_path / 'undisturbed', identity=None)
  files = contents(tmp_path / 'undisturbed')
  assert len(files) == 1 + 2 * 5
  return files


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'dumps').mkdir()
  return tmp_path / 'dumps'


def interrupted(folder, num_batches=5, **more):
  """Leaves what Ctrl-C leaves after some batches."""
  with pytest.raises(KeyboardInterrupt):
    with start(folder, **more) as dump:
      go_on(dump, num_batches)
      raise KeyboardInterrupt


# Killed.


class KillingFileSystem(LocalFileSystem):
  """Kills its process before a certain operation that changes the disk."""

  def __init__(self, num_operations):
    self.num_left = num_operations

  def count(self):
    self.num_left -= 1
    if self.num_left == 0:
      os.kill(os.getpid(), signal.SIGKILL)

  def open_to_write(self, *args):
    self.count()
    return KillingStream(
        super(KillingFileSystem, self).open_to_write(*args), self.count)


class KillingStream(object):
  """A stream that writes in pieces, as a full buffer would."""

  def __init__(self, stream, count):
    self._stream = stream
    self._count = count

  def write(self, content):
    self._count()
    self._stream.write(content[:7])
    if self._stream.tell() % 2:
      self._stream.flush()
    self._count()
    self._stream.write(content[7:])

  def __getattr__(self, name):
    return getattr(self._stream, name)


def counting(name):
  def method(self, *args):
    self.count()
    return getattr(LocalFileSystem, name)(self, *args)
  return method


for _name in ('sync', 'replace', 'remove', 'claim'):
  setattr(KillingFileSystem, _name, counting(_name))


def run_killed(folder, num_operations, **more):
  """Dumps in a process of its own; whether it was killed."""
  child = os.fork()
  if not child:
    try:
      whole_pass(folder, file_system=KillingFileSystem(num_operations), **more)
    finally:
      os._exit(0)
  _, status = os.waitpid(child, 0)
  assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
  return os.WIFSIGNALED(status)


def test_killed_anywhere_it_ends_in_the_same_bytes(folder, expected, capfd):
  """Before every single operation on the disk."""
  num_operations, taken_over = 0, set()
  while True:
    num_operations += 1
    if not run_killed(folder, num_operations):
      break
    dump = start(folder)
    taken_over.add(dump.num_written)
    with dump:
      go_on(dump)
    assert contents(folder) == expected, num_operations
    for path in folder.iterdir():
      path.unlink()
  assert contents(folder) == expected
  assert num_operations > 200
  assert taken_over == {0, 6, 12, 18, 23}  # The ends of blocks.
  assert capfd.readouterr().err == ''


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('in_background', [False, True])
def test_killed_again_and_again(folder, expected, seed, in_background):
  """And killed while it goes on."""
  rng = random.Random(seed)
  num_kills, num_written = 0, 0
  while run_killed(folder, rng.randrange(20, 90), in_background=in_background):
    num_kills += 1
    if not journal(folder).exists():  # In the last step: it was complete.
      num_written = 0
    with pytest.raises(SystemExit):
      with start(folder) as dump:
        assert dump.num_written >= num_written
        num_written = dump.num_written
        raise SystemExit
  assert num_kills > 5
  assert contents(folder) == expected


def test_a_kill_between_two_names_replaces_the_old_dump(folder, expected):
  """Files that have their names are not taken for those of the old dump."""
  old = {name: b'old' for name in expected if not name.startswith('train')}
  for num_operations in range(180, 400):
    for name, content in old.items():
      (folder / name).write_bytes(content)
    is_killed = run_killed(folder, num_operations)
    whole_pass(folder)
    assert contents(folder) == expected
    for path in folder.iterdir():
      path.unlink()
    if not is_killed:
      return
  raise AssertionError('was killed always')


# Complete, in a pass that is not.


def test_a_complete_dump_is_not_begun_again(folder, expected, capsys):
  whole_pass(folder, keeps_journal=True)
  before = contents(folder)
  assert set(before) - set(expected) == {journal(folder).name}
  for _ in range(2):
    dump = start(folder, keeps_journal=True)
    assert dump.num_written == NUM_IMAGES
    with dump:
      pass
    assert dump.accuracy(2)[0] == (
        SOFTMAXES[2].argmax(axis=1) == LABELS).mean()
    assert contents(folder) == before
  dump.forget()
  dump.forget()
  assert contents(folder) == expected
  assert start(folder).num_written == 0
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize('name', [
    'clf0_train_1of3_all_probabilities.npy', 'clf2_train_top5_classes.npy'])
@pytest.mark.parametrize('is_gone', [False, True])
def test_a_complete_dump_that_was_replaced(
    folder, expected, capsys, name, is_gone):
  """By a run for other classifiers, which has another journal."""
  whole_pass(folder, keeps_journal=True)
  content = (folder / name).read_bytes()
  (folder / name).unlink()
  if not is_gone:
    (folder / name).write_bytes(content)
    os.utime(str(folder / name), (1, 1))
  begins_anew(folder, expected, capsys,
              name + ' has lost rows that were written')


def test_labels_are_those_of_every_run(folder, expected):
  whole_pass(folder, keeps_journal=True)
  path = folder / 'train_non_onehot.npy'
  os.utime(str(path), (1, 1))
  dump = start(folder)
  assert dump.num_written == NUM_IMAGES
  with dump:
    pass
  assert contents(folder) == expected


# Interrupted.


def test_ctrl_c_keeps_every_batch(folder, expected, capsys):
  interrupted(folder)
  assert all('.unfinished' in name for name in contents(folder))
  dump = start(folder)
  assert dump.num_written == dump.next_row == 5 * BATCH_SIZE
  with dump:
    go_on(dump)
  assert contents(folder) == expected
  assert capsys.readouterr().err == ''


def test_accuracy_counts_what_was_taken_over(folder, tmp_path, expected):
  interrupted(folder)
  dump = whole_pass(folder)
  for k, softmaxes in SOFTMAXES.items():
    assert dump.accuracy(k) == (
        (softmaxes.argmax(axis=1) == LABELS).mean(),
        (best_classes(softmaxes) == LABELS[:, np.newaxis]).any(axis=1).mean())


def test_ctrl_c_in_the_middle_of_a_batch(folder, expected, monkeypatch):
  """Some of its files have the rows, others have not."""
  append, num_left = softmax_dump.NpyRows.append, [40]

  def interrupted_append(self, rows):
    num_left[0] -= 1
    if not num_left[0]:
      raise KeyboardInterrupt
    append(self, rows)

  with monkeypatch.context() as patch:
    patch.setattr(softmax_dump.NpyRows, 'append', interrupted_append)
    with pytest.raises(KeyboardInterrupt):
      whole_pass(folder)
  dump = start(folder)
  assert dump.num_written == 3 * BATCH_SIZE
  with dump:
    go_on(dump)
  assert contents(folder) == expected


def test_what_would_come_again_leaves_nothing(folder):
  with pytest.raises(UserError):
    with start(folder) as dump:
      go_on(dump, 5)
      raise UserError
  assert contents(folder) == {}


def test_a_failure_costs_no_rows(folder, expected):
  with pytest.raises(ValueError):
    with start(folder) as dump:
      go_on(dump, 5)
      raise ValueError
  with start(folder) as dump:
    assert dump.num_written == 15
    go_on(dump)
  assert contents(folder) == expected


def test_without_an_identity_nothing_is_taken_over(folder, expected):
  interrupted(folder)
  dump = start(folder, identity=None)
  assert dump.num_written == 0
  with dump:
    go_on(dump)
  assert contents(folder) == expected


def test_a_full_disk_while_the_journal_is_written(folder, monkeypatch):
  def fail(*args):
    raise OSError(28, 'No space left on device')
  monkeypatch.setattr(softmax_dump.dump_journal, 'replace_content', fail)
  with pytest.raises(UserError, match='dump_train.clf0.clf2.unfinished.json: '
                     'cannot be written .No space'):
    whole_pass(folder)
  assert contents(folder) == {}


@pytest.mark.parametrize('name, method', [
    ('clf2_train_top5_classes.npy.clf0.clf2.unfinished', 'open_to_write'),
    ('clf2_train_top5_classes.npy.clf0.clf2.unfinished', 'open_to_read'),
    ('dump_train.clf0.clf2.unfinished.json', 'open_to_read')])
def test_rows_are_kept_where_a_file_cannot_be_opened(
    folder, expected, name, method):
  interrupted(folder)
  before = contents(folder)

  class Failing(LocalFileSystem):
    pass

  def failing(self, path, *args):
    if path == str(folder / name):
      raise OSError(24, 'Too many open files')
    return getattr(LocalFileSystem, method)(self, path, *args)

  setattr(Failing, method, failing)
  with pytest.raises(UserError, match=name.split('.')[0] + '.*: cannot be wri'):
    start(folder, file_system=Failing())
  assert contents(folder) == before
  whole_pass(folder)
  assert contents(folder) == expected


# What cannot be gone on with.


def begins_anew(folder, expected, capsys, reason, **more):
  dump = start(folder, **more)
  assert dump.num_written == 0
  error, = capsys.readouterr().err.splitlines()
  assert error == 'clf0 clf2 train: begins anew, since ' + reason
  with dump:
    go_on(dump)
  assert contents(folder) == expected


@pytest.mark.parametrize('identity, different', [
    ({'weights': 'b1', 'batch_size': 3}, 'weights'),
    ({'weights': 'a0', 'batch_size': 4}, 'batch_size'),
    ({'weights': 'a0'}, 'batch_size'),
    ({'weights': 'b1', 'batch_size': 3, 'image_size': 5},
     'image_size, weights'),
])
def test_another_identity(folder, expected, capsys, identity, different):
  interrupted(folder)
  begins_anew(folder, expected, capsys,
              'what was interrupted differs in ' + different,
              identity=identity)


def journal(folder):
  return folder / 'dump_train.clf0.clf2.unfinished.json'


@pytest.mark.parametrize('content', [
    b'', b'\0' * 50, b'{"num_rows": 6', b'[]', b'7', b'{}', b'\xff',
    b'[' * 100000])
def test_a_damaged_journal(folder, expected, capsys, content):
  interrupted(folder)
  journal(folder).write_bytes(content)
  begins_anew(folder, expected, capsys,
              '{} is damaged'.format(journal(folder)))


@pytest.mark.parametrize('field, value', [
    ('num_rows', -1), ('num_rows', 24), ('num_rows', 'six'), ('hits', {}),
    ('hits', {'0': [1, 2]}), ('hits', {'0': [1, 2], '2': [1]}),
    ('hits', {'0': [1, 2], '1': [1, 2]}), ('hits', [3]), ('identity', 5),
])
def test_a_journal_that_says_what_cannot_be(
    folder, expected, capsys, field, value):
  interrupted(folder)
  fields = json.loads(journal(folder).read_text())
  fields[field] = value
  journal(folder).write_text(json.dumps(fields))
  begins_anew(folder, expected, capsys,
              '{} is damaged'.format(journal(folder)))


@pytest.mark.parametrize('name', [
    'train_non_onehot.npy', 'clf0_train_1of3_all_probabilities.npy',
    'clf2_train_3of3_all_probabilities.npy', 'clf2_train_top5_classes.npy'])
@pytest.mark.parametrize('damage', ['cut', 'gone', 'header'])
def test_an_unfinished_file_that_lacks_rows(
    folder, expected, capsys, name, damage):
  interrupted(folder)
  path = folder / (name + '.clf0.clf2.unfinished')
  content = path.read_bytes()
  if damage == 'gone':
    path.unlink()
  else:
    path.write_bytes(content[:-1] if damage == 'cut' else
                     content.replace(b'descr', b'DESCR'))
  begins_anew(folder, expected, capsys,
              name + ' has lost rows that were written')


def test_a_file_longer_than_the_journal_says_is_cut(folder, expected):
  interrupted(folder)
  for path in folder.iterdir():
    if '.npy' in path.name:
      with open(str(path), 'ab') as stream:
        stream.write(b'rows of a batch that was never complete')
  assert whole_pass(folder).num_written == NUM_IMAGES
  assert contents(folder) == expected


# Two at once.


def test_two_processes_for_the_same_dump(folder, expected):
  with start(folder) as first:
    go_on(first, 4)
    before = contents(folder)
    for classifier_ids in ([0, 2], [2], [1, 0]):
      with pytest.raises(UserError, match='another process is writing'):
        start(folder, classifier_ids=classifier_ids)
    with pytest.raises(UserError, match='another process is writing'):
      start(folder, identity=None)
    assert contents(folder) == before
    go_on(first)
  assert contents(folder) == expected


def test_the_lock_ends_with_its_process(folder, expected):
  """However it ends; until then the other process is kept out."""
  ready, child_is_ready = os.pipe()
  child = os.fork()
  if not child:
    try:
      dump = start(folder)
      go_on(dump, 4)
      os.write(child_is_ready, b'!')
      signal.pause()
    finally:
      os._exit(1)
  os.close(child_is_ready)
  assert os.read(ready, 1) == b'!'
  os.close(ready)
  with pytest.raises(UserError, match='another process is writing'):
    start(folder)
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
  dump = start(folder)
  assert dump.num_written == 4 * BATCH_SIZE
  with dump:
    go_on(dump)
  assert contents(folder) == expected


def test_two_processes_for_different_dumps(folder, expected):
  with start(folder) as first:
    go_on(first, 4)
    with pytest.raises(UserError):
      with start(folder, classifier_ids=[1]), start(
          folder, split='validation'), start(
              folder, shard=DumpShard(1, 2), batch_size=3):
        raise UserError
    go_on(first)
  assert contents(folder) == expected


def test_a_file_system_without_locks(folder, expected, monkeypatch):
  import errno
  import fcntl

  def no_locks(*args):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', no_locks)
  interrupted(folder)
  whole_pass(folder)
  assert contents(folder) == expected


# When a journal is written, and space.


@pytest.mark.parametrize('num_bytes, seconds, num_rows', [
    (10**9, 10**9, 0), (4 * 468, 10**9, 12), (10**9, 0, 21)])
def test_blocks_end_after_bytes_or_seconds(
    folder, monkeypatch, num_bytes, seconds, num_rows):
  """A row takes 4 + 2 * (36 + 40) = 156 bytes, a batch 468."""
  monkeypatch.setattr(softmax_dump, '_BLOCK_BYTES', num_bytes)
  monkeypatch.setattr(softmax_dump, '_BLOCK_SECONDS', seconds)
  dump = start(folder, block_rows=None)
  go_on(dump, 7)
  written = (json.loads(journal(folder).read_text())['num_rows']
             if journal(folder).exists() else 0)
  with pytest.raises(ValueError), dump:
    raise ValueError
  assert written == num_rows


def test_space_that_unfinished_files_hold_counts(folder, monkeypatch):
  interrupted(folder)
  held = sum(len(content) for name, content in contents(folder).items()
             if '.npy' in name)
  monkeypatch.setattr(LocalFileSystem, 'free_bytes',
                      lambda self, path: 156 * NUM_IMAGES - held)
  softmax_dump.prepare_folder(
      str(folder), {'train': NUM_IMAGES}, NUM_CLASSES, [0, 2])
  with pytest.raises(UserError, match='are free'):
    softmax_dump.prepare_folder(
        str(folder), {'train': NUM_IMAGES + 1}, NUM_CLASSES, [0, 2])
  with pytest.raises(UserError, match='are free'):
    softmax_dump.prepare_folder(
        str(folder), {'train': NUM_IMAGES}, NUM_CLASSES, [0, 1])
