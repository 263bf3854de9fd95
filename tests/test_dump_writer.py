"""Imagenet/dump_writer.py: rows to files, resumed after any interruption."""

import json
import os
import resource
import select
import shutil
import signal
import sys

import numpy as np
import pytest

import dump_names
import dump_writer
import files
from dump_folders import best_classes, random_softmaxes
from dump_names import DumpShard
from dump_writer import DumpWriter
from user_error import UserError

NUM_CLASSES, BATCH_SIZE = 9, 3
NUM_IMAGES = {'validation': 7, 'train': 23}
BOUNDS = {'validation': [(0, 7)], 'train': [(0, 10), (10, 14), (14, 23)]}
IDENTITY = {'weights': 'a0', 'batch_size': BATCH_SIZE}
LABELS = {split: np.random.RandomState(7).randint(0, NUM_CLASSES, count)
          for split, count in NUM_IMAGES.items()}
SOFTMAXES = {split: {k: random_softmaxes(k, count, NUM_CLASSES) for k in (0, 2)}
             for split, count in NUM_IMAGES.items()}
NUM_FILES = (1 + 2 * 3) + (1 + 2 * 5)
ROW_BYTES = 4 + 2 * (4 * NUM_CLASSES + 5 * 8)


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """Three parts of training dumps, and no waiting for the disk."""
  monkeypatch.setattr(dump_names, 'TRAIN_PART_STARTS', (0, 10, 14))
  monkeypatch.setattr(os, 'fsync', lambda descriptor: None)


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'dumps').mkdir()
  return tmp_path / 'dumps'


def make_writer(folder, identity=IDENTITY, classifier_ids=(0, 2), **more):
  return DumpWriter(str(folder), NUM_IMAGES, NUM_CLASSES, classifier_ids,
                    identity, batch_size=BATCH_SIZE, **more)


def append(writer, num_batches=None, batch_size=BATCH_SIZE, labels=LABELS,
           classifier_ids=(0, 2)):
  """Appends what is missing, as a run does; stops after `num_batches`."""
  for split in writer.rows:
    for row in range(writer.next_row(split), writer.rows[split].stop,
                     batch_size):
      if num_batches == 0:
        return
      num_batches = num_batches and num_batches - 1
      rows = slice(row, min(row + batch_size, writer.rows[split].stop))
      outputs = {}
      for k in classifier_ids:
        softmaxes = SOFTMAXES[split][k][rows]
        top5 = best_classes(softmaxes)
        outputs[k] = (softmaxes, top5,
                      np.take_along_axis(softmaxes, top5, axis=1))
      writer.append(split, labels[split][rows], outputs)


def write(folder, batch_size=BATCH_SIZE, classifier_ids=(0, 2), **more):
  """A run, to its end; the writer."""
  writer = make_writer(folder, classifier_ids=classifier_ids, **more)
  writer.check_folder()
  with writer:
    append(writer, batch_size=batch_size, classifier_ids=classifier_ids)
    writer.complete()
    writer.give_names()
  return writer


def interrupt(folder, num_batches, exception=KeyboardInterrupt, **more):
  with pytest.raises(exception):
    with make_writer(folder, **more) as writer:
      append(writer, num_batches)
      raise exception


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def num_resumed(folder, **more):
  """Rows of each split that a run takes over; it leaves them as they are."""
  with pytest.raises(SystemExit):
    with make_writer(folder, **more) as writer:
      found = [writer.num_written(split) for split in writer.rows]
      raise SystemExit
  return found


@pytest.fixture
def expected(tmp_path):
  """The files of a pass, as NumPy writes them; built without the writer."""
  (tmp_path / 'expected').mkdir()

  def save(name, array):
    np.save(str(tmp_path / 'expected' / name), array)

  for split, labels in LABELS.items():
    save(dump_names.labels_file_name(split), labels.astype(np.int32))
    for k, softmaxes in SOFTMAXES[split].items():
      for name, (start, stop) in zip(
          dump_names.probabilities_file_names(k, split), BOUNDS[split]):
        save(name, softmaxes[start:stop])
      save(dump_names.top5_classes_file_name(k, split),
           best_classes(softmaxes).astype(np.int32))
      save(dump_names.top5_probabilities_file_name(k, split),
           -np.sort(-softmaxes, axis=1)[:, :5])
  return contents(tmp_path / 'expected')


# ---- Rows and files ----------------------------------------------------------

@pytest.mark.parametrize('batch_size', [1, 4, 40])
def test_batches_of_any_size_give_the_same_files(folder, expected, batch_size):
  writer = write(folder, batch_size)
  assert contents(folder) == expected and len(expected) == NUM_FILES
  for split, labels in LABELS.items():
    for k, softmaxes in SOFTMAXES[split].items():
      means = writer.means(split, k)
      assert means.top1 == (softmaxes.argmax(axis=1) == labels).mean()
      assert means.top5 == np.mean([
          label in row for row, label in zip(best_classes(softmaxes), labels)])
      np.testing.assert_allclose(  # Sums of float32, in another order.
          means.loss, -np.log(softmaxes[range(len(labels)), labels]).mean(),
          rtol=1e-5)


def test_names_appear_at_the_end_of_the_whole_pass(folder, expected):
  """An old dump stays whole until then."""
  old = {name: b'old' for name in expected if 'non_onehot' not in name}
  for name, content in old.items():
    (folder / name).write_bytes(content)
  with make_writer(folder) as writer:
    append(writer)
    writer.complete()
    found = contents(folder)
    assert old.items() <= found.items()
    assert all('.unfinished' in name for name in set(found) - set(old))
    writer.give_names()
  assert contents(folder) == expected


def test_a_failure_before_the_first_row_leaves_the_old_dump(folder, expected):
  write(folder)
  interrupt(folder, 0)
  assert contents(folder) == expected


def test_wrong_row_counts(folder):
  with pytest.raises(UserError, match='validation gave 6 images where its sh'):
    with make_writer(folder) as writer:
      append(writer, 2)
      writer.check_count('validation')
  with pytest.raises(UserError, match='more than the 7 records'):
    with make_writer(folder) as writer:
      writer.append('validation', np.zeros(8, int), {})


# ---- Resuming ----------------------------------------------------------------

def run_killed(folder, num_lines):
  """Runs in a process that kills itself; whether it came so far.

  Args:
    folder: of the dumps.
    num_lines: how many lines of the writer and of `files` it executes.
  """
  child = os.fork()
  if child:
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
  signal.alarm(60)  # A fork of a process with threads might wait for ever.
  num_left = [num_lines]

  def trace(frame, event, _):
    if frame.f_code.co_filename not in (
        dump_writer.__file__, files.__file__):
      return None
    if event == 'line':
      num_left[0] -= 1
      if not num_left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return trace

  try:
    dump_writer._BLOCK_BYTES = 2 * BATCH_SIZE * ROW_BYTES
    writer = make_writer(folder)
    sys.settrace(trace)
    with writer:
      append(writer)
      writer.complete()
      writer.give_names()
  finally:
    os._exit(0)


def test_killed_anywhere_it_ends_in_the_same_bytes(folder, expected, capfd):
  """At lines all over a run that replaces an old dump."""
  num_lines, found = 0, set()
  while True:
    num_lines += 149
    for name in expected:
      if 'non_onehot' not in name:
        (folder / name).write_bytes(b'old')
    if not run_killed(folder, num_lines):
      break
    found.add(tuple(num_resumed(folder)))
    write(folder)
    assert contents(folder) == expected, num_lines
  assert num_lines > 3000
  # The ends of blocks (of two batches of 3 rows at least), and of the pass.
  assert found == {(0, 0), (6, 0), (7, 6), (7, 12), (7, 18), (7, 23)}
  assert capfd.readouterr().err == ''


def test_interrupted_again_and_again(folder, expected, capsys):
  for exception in (KeyboardInterrupt, ValueError, SystemExit) * 3:
    interrupt(folder, 1, exception)
  assert num_resumed(folder) == [7, 18]
  writer = write(folder)
  assert contents(folder) == expected
  assert writer.means('train', 2).top1 == (
      SOFTMAXES['train'][2].argmax(axis=1) == LABELS['train']).mean()
  assert capsys.readouterr().err == ''


def starts_over(folder, expected, capsys, reason, **more):
  assert num_resumed(folder, **more) == [0, 0]
  assert capsys.readouterr().err == f'clf0 clf2: starting over: {reason}\n'
  write(folder, **more)
  assert contents(folder) == expected


def test_another_identity(folder, expected, capsys):
  interrupt(folder, 5)
  starts_over(folder, expected, capsys,
              'the interrupted dump used different records, weights',
              identity=dict(IDENTITY, weights='b1', records=1))


@pytest.mark.parametrize('content', [
    b'', b'\0' * 50, b'\xff', b'{}',
    b'{"identity": {}, "stamps": {}, "written": [7]}'])
def test_a_damaged_journal(folder, expected, capsys, content):
  interrupt(folder, 5)
  path, = folder.glob('dump_journal.json*')
  path.write_bytes(content)
  starts_over(folder, expected, capsys, f'{path} is damaged')


@pytest.mark.parametrize('name, is_gone', [
    ('train_non_onehot.npy', True),
    ('clf2_train_1of3_all_probabilities.npy', False)])
def test_an_unfinished_file_that_lacks_rows(
    folder, expected, capsys, name, is_gone):
  interrupt(folder, 5)
  path = folder / (name + '.clf0.clf2.unfinished')
  content = path.read_bytes()
  path.unlink()
  if not is_gone:
    path.write_bytes(content[:-1])
  starts_over(folder, expected, capsys, name + ' has lost rows')


@pytest.mark.parametrize('num_bytes, seconds, num_rows', [
    (10**9, 10**9, None), (3 * BATCH_SIZE * ROW_BYTES, 10**9, 3),
    (10**9, 0, 6)])
def test_journals_are_written_after_bytes_or_seconds(
    folder, monkeypatch, num_bytes, seconds, num_rows):
  """Five batches: 3, 3 and 1 rows of validation, 3 and 3 of train."""
  monkeypatch.setattr(dump_writer, '_BLOCK_BYTES', num_bytes)
  monkeypatch.setattr(dump_writer, '_BLOCK_SECONDS', seconds)
  found = []
  with pytest.raises(KeyboardInterrupt):
    with make_writer(folder) as writer:
      append(writer, 5)
      for path in folder.glob('dump_journal.json*'):
        found.append(
            json.loads(path.read_text())['written']['train']['num_rows'])
      raise KeyboardInterrupt
  assert found == ([] if num_rows is None else [num_rows])


# ---- Disks that are full -----------------------------------------------------

def test_a_full_disk_keeps_the_rows_of_the_journal(
    folder, expected, monkeypatch):
  """Defect 16: they were deleted. A limit on file sizes is the full disk."""
  monkeypatch.setattr(dump_writer, '_BLOCK_SECONDS', 0)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  try:
    with pytest.raises(UserError, match=r'\.npy: cannot be written .File too '
                       r'large.; free some space and run the same command'):
      with make_writer(folder) as writer:
        append(writer, 6)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
        append(writer)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)
  assert num_resumed(folder) == [7, 9]
  write(folder)
  assert contents(folder) == expected


def test_rows_that_a_disk_has_lost_are_not_vouched_for(
    folder, expected, monkeypatch):
  """A full disk may say so once, when rows are brought to it."""
  def fail_once(_):
    monkeypatch.setattr(os, 'fsync', lambda _: None)
    raise OSError(28, 'No space left on device')

  with pytest.raises(UserError, match='cannot be written .No space'):
    with make_writer(folder) as writer:
      append(writer, 2)
      writer._write_journal()
      append(writer, 2)
      monkeypatch.setattr(os, 'fsync', fail_once)
      writer._write_journal()
  assert num_resumed(folder) == [6, 0]


def test_the_space_that_is_needed(folder, monkeypatch):
  """Defect 15: what is written already counted once more."""
  total = ROW_BYTES * sum(NUM_IMAGES.values()) + 128 * NUM_FILES
  usage = shutil.disk_usage(str(folder))

  def has_space(num_bytes):
    monkeypatch.setattr(
        shutil, 'disk_usage', lambda _: usage._replace(free=num_bytes))
    try:
      make_writer(folder).check_folder()
      return True
    except UserError as error:
      assert 'the dumps take 0 MB and 0 MB are free' in str(error)
      return False

  assert has_space(total) and not has_space(total - 1)
  interrupt(folder, 5)  # Validation is complete, and 6 rows of train.
  missing = ROW_BYTES * (NUM_IMAGES['train'] - 6)
  assert has_space(missing) and not has_space(missing - 1)
  with pytest.raises(KeyboardInterrupt):
    with make_writer(folder) as writer:
      append(writer)
      writer.complete()
      writer.give_names()
      raise KeyboardInterrupt
  assert has_space(0)
  with make_writer(folder) as writer:
    writer.complete()
    writer.give_names()
  # A new dump needs its own space until it replaces this one.
  assert has_space(total) and not has_space(total - 1)


# ---- Other runs in the folder ------------------------------------------------

def test_runs_for_two_classifiers_at_the_same_time(folder, expected):
  """Both write the labels, which are the same."""
  with make_writer(folder, classifier_ids=[2]) as slow:
    append(slow, 3, classifier_ids=[2])
    write(folder, classifier_ids=[0])
    append(slow, classifier_ids=[2])
    slow.complete()
    slow.give_names()
  assert contents(folder) == expected


def test_dumps_of_other_records_are_not_mixed(folder):
  write(folder, classifier_ids=[0])
  before = contents(folder)
  labels = dict(LABELS, train=LABELS['train'].copy())
  labels['train'][4] += 1
  writer = make_writer(folder, classifier_ids=[2])
  writer.check_folder()
  with pytest.raises(UserError, match='train dumps of other records .row 4'):
    with writer:
      append(writer, labels=labels, classifier_ids=[2])
  assert before.items() <= contents(folder).items()
  with pytest.raises(UserError, match='other records .7 labels, here 8'):
    DumpWriter(str(folder), {'validation': 8}, NUM_CLASSES, [2]).check_folder()


def test_other_labels_that_appear_during_the_run(folder):
  labels = dict(LABELS, train=LABELS['train'][::-1])
  with pytest.raises(UserError, match='train dumps of other records .row 0'):
    with make_writer(folder, classifier_ids=[2]) as writer:
      append(writer, labels=labels, classifier_ids=[2])
      write(folder, classifier_ids=[0])
      writer.complete()
      writer.give_names()
  assert not (folder / 'clf2_top5_classes.npy').exists()


@pytest.mark.parametrize('content', [b'', b'\x93NUMPY\x01', b'\x80\x03]q\x00.'])
def test_unreadable_labels_in_the_folder(folder, content):
  (folder / 'train_non_onehot.npy').write_bytes(content)
  with pytest.raises(UserError, match='train_non_onehot.npy: not a readable'):
    make_writer(folder).check_folder()


@pytest.mark.parametrize('name', [
    'train_non_onehot.npy', 'clf0_top5_classes.npy',
    'clf0_top5_classes.npy.clf0.clf2.unfinished',
    'dump_journal.json.clf0.clf2.unfinished'])
def test_a_fifo_where_a_file_should_be(folder, name):
  """Defect 18: it was waited for, or silently replaced."""
  os.mkfifo(str(folder / name))
  with pytest.raises(UserError, match=f'{name}: not a regular file'):
    make_writer(folder).check_folder()


def test_a_file_that_cannot_be_opened_leaves_nothing(folder):
  (folder / 'clf0_top5_classes.npy.clf0.clf2.unfinished').mkdir()
  with pytest.raises(UserError, match='clf0_top5_classes.npy: cannot be writ'):
    with make_writer(folder):
      pass
  assert len(os.listdir(str(folder))) == 1


def test_folders_that_cannot_be_made(folder):
  make_writer(folder / 'a' / 'b').check_folder()
  assert contents(folder / 'a' / 'b') == {}
  (folder / 'file').touch()
  for wrong in ('file', 'file/below'):
    with pytest.raises(UserError, match='--softmax_dir .*cannot be written'):
      make_writer(folder / wrong).check_folder()


# ---- Locks -------------------------------------------------------------------

def run_locked(folder, classifier_ids, shard=None):
  """Locks in a process of its own.

  Returns:
    Its pid, and a file that ends when the process does, with what it says.
  """
  read_end, write_end = os.pipe()
  pid = os.fork()
  if not pid:
    signal.alarm(60)  # As above.
    os.dup2(write_end, 2)
    sys.stderr = os.fdopen(write_end, 'w', 1)
    try:
      with dump_writer.locked_classifiers(str(folder), classifier_ids, shard):
        sys.stderr.write('locked\n')
        signal.pause()
    finally:
      os._exit(1)
  os.close(write_end)
  return pid, os.fdopen(read_end, 'rb', 0)  # No buffer that hides a line.


def test_runs_wait_for_each_other_and_say_so(folder):
  """Also behind lock files that no process holds (defect 2)."""
  for name in ('clf0.lock', 'dump_train.clf0.clf1.unfinished'):
    (folder / name).touch()
  running = [run_locked(folder, [1]), run_locked(folder, [2], DumpShard(2, 4)),
             run_locked(folder, [0], DumpShard(1, 4)),
             run_locked(folder, [0, 2], DumpShard(3, 4))]
  assert [said.readline() for _, said in running] == 4 * [b'locked\n']
  waiting = [(k, run_locked(folder, classifier_ids, shard))
             for k, classifier_ids, shard in (
                 (1, [1], None), (0, [0, 1, 2], None),
                 (1, [1, 2], DumpShard(1, 4)), (2, [2], DumpShard(2, 4)),
                 (2, [2], None))]
  for k, (_, said) in waiting:
    assert said.readline().decode() == (
        f'clf{k}: waiting for another run to finish its dump in {folder}\n')
  assert (folder / 'clf1.lock').exists()
  for pid, _ in running:
    os.kill(pid, signal.SIGKILL)  # However they end.
  # Then one after the other gets its locks.
  said = {pid: said for _, (pid, said) in waiting}
  while said:
    ready, _, _ = select.select(list(said.values()), [], [], 60)
    assert ready
    for pid, stream in list(said.items()):
      if stream in ready and stream.readline() == b'locked\n':
        os.kill(pid, signal.SIGINT)
        del said[pid]
  for pid in [pid for pid, _ in running] + [pid for _, (pid, _) in waiting]:
    os.waitpid(pid, 0)
  assert list(folder.glob('clf?.lock')) == []


# ---- Shards ------------------------------------------------------------------

@pytest.mark.parametrize('total', [1, 4, 30])
def test_shards_hold_the_rows_of_whole_files(folder, expected, total):
  for number in range(1, total + 1):
    shard = DumpShard(number, total)
    if number % 2:
      interrupt(folder, 1, shard=shard)
    write(folder, shard=shard)
  assert len(os.listdir(str(folder))) == total * NUM_FILES
  for name, content in expected.items():
    joined = np.concatenate([
        np.load(str(folder / dump_names.shard_file_name(
            name, DumpShard(number, total))))
        for number in range(1, total + 1)])
    np.save(str(folder / 'joined.npy'), joined)
    assert (folder / 'joined.npy').read_bytes() == content


@pytest.mark.parametrize('first, second, words', [
    (None, DumpShard(1, 4), 'a whole dump, where --dump_shard 1/4'),
    (DumpShard(1, 4), None, 'a shard of 4, where a whole dump'),
    (DumpShard(1, 4), DumpShard(1, 3), 'a shard of 4, where --dump_shard 1/3')])
def test_what_cannot_be_read_together_is_not_written(
    folder, first, second, words):
  write(folder, shard=first)
  before = contents(folder)
  with pytest.raises(UserError, match=words):
    write(folder, shard=second)
  assert contents(folder) == before


def test_other_classifiers_may_be_whole(folder):
  write(folder, classifier_ids=[0])
  write(folder, classifier_ids=[2], shard=DumpShard(1, 2))
  labels = dict(LABELS, train=LABELS['train'] + 1)
  writer = make_writer(folder, classifier_ids=[2], shard=DumpShard(2, 2))
  writer.check_folder()
  with pytest.raises(UserError, match='train dumps of other records .row 12'):
    with writer:
      append(writer, labels=labels, classifier_ids=[2])
