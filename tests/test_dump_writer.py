"""Imagenet/dump_writer.py: rows to files, resumed after any interruption."""

import functools
import os
import resource
import shutil
import signal
import sys

import numpy as np
import pytest

import shared_dumps
import dump_writer
from dump_folders import best_classes, random_softmaxes, write_split
from dump_writer import DumpWriter
from lock_holder import Holder
from shared_dumps import DumpShard
from shared_terminal import UserError

NUM_CLASSES, BATCH_SIZE = 9, 3
NUM_IMAGES = {'validation': 7, 'train': 23}
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
  monkeypatch.setattr(shared_dumps, 'TRAIN_PART_STARTS', (0, 10, 14))
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
  """A run, to its end; returns the accuracies of each split."""
  writer = make_writer(folder, classifier_ids=classifier_ids, **more)
  writer.check_folder()
  with writer:
    append(writer, batch_size=batch_size, classifier_ids=classifier_ids)
    accuracies = {split: writer.finish_split(split) for split in writer.rows}
    writer.give_names()
  return accuracies


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
      found = [writer.num_written[split] for split in writer.rows]
      raise SystemExit
  return found


@pytest.fixture
def expected(tmp_path):
  """The files of a pass, as NumPy writes them; built without the writer."""
  (tmp_path / 'expected').mkdir()
  for split, labels in LABELS.items():
    write_split(tmp_path / 'expected', split, labels, SOFTMAXES[split])
  return contents(tmp_path / 'expected')


# ---- Rows and files ----------------------------------------------------------

@pytest.mark.parametrize('batch_size', [1, 40])
def test_batches_of_any_size_give_the_same_files(folder, expected, batch_size):
  accuracies = write(folder, batch_size)
  assert contents(folder) == expected and len(expected) == NUM_FILES
  for split, labels in LABELS.items():
    for k, softmaxes in SOFTMAXES[split].items():
      assert accuracies[split][k] == (
          (softmaxes.argmax(axis=1) == labels).mean(), np.mean([
              label in row
              for row, label in zip(best_classes(softmaxes), labels)]))


def test_names_appear_at_the_end_of_the_whole_pass(folder, expected):
  """An old dump stays whole until then."""
  old = {name: b'old' for name in expected if 'non_onehot' not in name}
  for name, content in old.items():
    (folder / name).write_bytes(content)
  with make_writer(folder) as writer:
    append(writer)
    found = contents(folder)
    assert old.items() <= found.items()
    assert all('.unfinished' in name for name in set(found) - set(old))
    writer.give_names()
  assert contents(folder) == expected


# ---- Resuming ----------------------------------------------------------------

def run_killed(folder, num_lines):
  """Runs in a process that kills itself; whether it came so far.

  Args:
    folder: of the dumps.
    num_lines: how many lines of the writer it executes.
  """
  child = os.fork()
  if child:
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
  signal.alarm(60)  # A fork of a process with threads might wait for ever.
  num_left = [num_lines]

  def trace(frame, event, _):
    if frame.f_code.co_filename != dump_writer.__file__:
      return None
    if event == 'line':
      num_left[0] -= 1
      if not num_left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return trace

  try:
    # Small buffers, so that rows are cut anywhere.
    dump_writer.open = functools.partial(open, buffering=50)
    writer = make_writer(folder)
    sys.settrace(trace)
    with writer:
      append(writer)
      writer.give_names()
  finally:
    os._exit(0)


def test_killed_anywhere_it_ends_in_the_same_bytes(folder, expected, capfd):
  """At lines all over a run that replaces an old dump."""
  num_lines, found = 0, set()
  while True:
    num_lines += 97
    for name in expected:
      if 'non_onehot' not in name:
        (folder / name).write_bytes(b'old')
    if not run_killed(folder, num_lines):
      break
    found.add(tuple(num_resumed(folder)))
    write(folder)
    assert contents(folder) == expected, num_lines
  # Nothing, all, and what lies between.
  assert {(0, 0), (7, 23)} <= found and len(found) > 3
  assert all(train % BATCH_SIZE == 0 or train == 23 for _, train in found)


def test_another_identity(folder, expected, capsys):
  interrupt(folder, 5)
  other = dict(IDENTITY, weights='b1', records=1)
  assert num_resumed(folder, identity=other) == [0, 0]
  said = capsys.readouterr().err
  assert 'starting over' in said and 'records, weights' in said
  write(folder, identity=other)
  assert contents(folder) == expected


def test_another_run_while_names_were_being_given(
    folder, expected, monkeypatch):
  """Its files are not taken for those of the first."""
  replace, num_left = os.replace, [4]

  def stop(*args):
    if not num_left[0]:
      raise KeyboardInterrupt
    num_left[0] -= 1
    replace(*args)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', stop)
    with pytest.raises(KeyboardInterrupt):
      write(folder)
  assert num_resumed(folder) == [7, 23]
  for name in ('clf0_top5_classes.npy', 'clf2_top5_classes.npy'):
    assert (folder / name).exists() == ('clf0' in name)
  write(folder, classifier_ids=[0], identity={'weights': 'b1'})
  assert num_resumed(folder) == [0, 0]
  write(folder)
  assert contents(folder) == expected


# ---- Disks that are full -----------------------------------------------------

def test_a_full_disk_keeps_the_rows(folder, expected):
  """A limit on file sizes is the full disk."""
  interrupt(folder, 6)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  try:
    with pytest.raises(UserError, match=r'\.npy: cannot be written .File too '):
      with make_writer(folder) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
        append(writer)
        writer.give_names()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)
  validation, train = num_resumed(folder)
  assert validation == 7 and 0 < train < 23
  write(folder)
  assert contents(folder) == expected


def test_the_space_that_is_needed(folder, monkeypatch):
  """What is written already does not count once more."""
  total = ROW_BYTES * sum(NUM_IMAGES.values()) + 128 * NUM_FILES
  usage = shutil.disk_usage(str(folder))

  def has_space(num_bytes):
    with monkeypatch.context() as patch:
      patch.setattr(
          shutil, 'disk_usage', lambda _: usage._replace(free=num_bytes))
      try:
        make_writer(folder).check_folder()
        return True
      except UserError as error:
        assert '0 MB are free' in str(error)
        return False

  assert has_space(total) and not has_space(total - 1)
  interrupt(folder, 5)  # Validation is complete, and 6 rows of train.
  missing = ROW_BYTES * (NUM_IMAGES['train'] - 6)
  assert has_space(missing) and not has_space(missing - 1)
  write(folder)
  # A new dump needs its own space until it replaces this one.
  assert has_space(total) and not has_space(total - 1)


# ---- Other runs in the folder ------------------------------------------------

def test_runs_for_two_classifiers_at_the_same_time(folder, expected):
  """Both write the labels, which are the same."""
  with make_writer(folder, classifier_ids=[2]) as slow:
    append(slow, 3, classifier_ids=[2])
    write(folder, classifier_ids=[0])
    append(slow, classifier_ids=[2])
    slow.give_names()
  assert contents(folder) == expected


def test_dumps_of_other_records_are_not_mixed(folder):
  write(folder, classifier_ids=[0])
  before = contents(folder)
  labels = dict(LABELS, train=LABELS['train'].copy())
  labels['train'][4] += 1
  writer = make_writer(folder, classifier_ids=[2])
  writer.check_folder()
  with pytest.raises(UserError, match='train labels of other records'):
    with writer:
      append(writer, labels=labels, classifier_ids=[2])
  assert before.items() <= contents(folder).items()
  with pytest.raises(UserError, match='validation labels of other records'):
    DumpWriter(str(folder), {'validation': 8}, NUM_CLASSES, [2]).check_folder()


# ---- Locks -------------------------------------------------------------------

def holder(folder, classifier_ids, shard=None):
  return Holder(
      dump_writer.locked_classifiers(str(folder), classifier_ids, shard))


def test_runs_wait_for_each_other_and_say_so(folder, capsys):
  running = [holder(folder, [1]), holder(folder, [2], DumpShard(2, 4)),
             holder(folder, [0, 2], DumpShard(3, 4))]
  assert all(one.is_held.wait(60) for one in running)
  waiting = []
  for k, classifier_ids, shard in (
      (0, [0, 1, 2], None), (1, [1, 2], DumpShard(1, 4)),
      (2, [2], DumpShard(2, 4)), (2, [2], None)):
    waiting.append(holder(folder, classifier_ids, shard))
    assert not waiting[-1].is_held.wait(.2)
    said = capsys.readouterr().err
    assert said.startswith(f'clf{k}: waiting') and str(folder) in said
  # Then one after the other gets its locks.
  for one in running + waiting:
    one.may_end.set()
  assert all(one.is_held.wait(60) for one in waiting)
  for one in running + waiting:
    one.join()


# ---- Shards ------------------------------------------------------------------

@pytest.mark.parametrize('total', [4, 30])
def test_shards_hold_the_rows_of_whole_files(folder, expected, total):
  for number in range(1, total + 1):
    shard = DumpShard(number, total)
    if number % 2:
      interrupt(folder, 1, shard=shard)
    write(folder, shard=shard)
  assert len(os.listdir(str(folder))) == total * NUM_FILES
  for name, content in expected.items():
    joined = np.concatenate([
        np.load(str(folder / shared_dumps.shard_file_name(
            name, DumpShard(number, total))))
        for number in range(1, total + 1)])
    np.save(str(folder / 'joined.npy'), joined)
    assert (folder / 'joined.npy').read_bytes() == content
