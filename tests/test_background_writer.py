"""Writing in a thread: the same bytes, and no row lost or promised too much."""

import threading

import numpy as np
import pytest

from dump_folders import best_classes, random_softmaxes
from background_writer import BackgroundWriter
from softmax_dump import SplitDump
from user_error import UserError

NUM_IMAGES, NUM_CLASSES, BATCH_SIZE = 40, 9, 4
LABELS = np.arange(NUM_IMAGES) % NUM_CLASSES
SOFTMAXES = random_softmaxes(0, NUM_IMAGES, NUM_CLASSES)


def start(folder, num_images=NUM_IMAGES):
  return SplitDump(str(folder), 'validation', num_images, NUM_CLASSES, [1],
                   identity={}, block_rows=12)


def batches(first_row=0):
  for start_row in range(first_row, NUM_IMAGES, BATCH_SIZE):
    rows = slice(start_row, start_row + BATCH_SIZE)
    softmaxes = SOFTMAXES[rows]
    yield LABELS[rows], {1: (softmaxes, best_classes(softmaxes),
                             -np.sort(-softmaxes)[:, :5])}


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def expected(tmp_path):
  (tmp_path / 'undisturbed').mkdir()
  with start(tmp_path / 'undisturbed') as dump:
    for batch in batches():
      dump.append(*batch)
  return contents(tmp_path / 'undisturbed')


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'dumps').mkdir()
  return tmp_path / 'dumps'


class Gate(object):
  """Stands for a dump whose disk is as slow as the test wants."""

  def __init__(self, error=None):
    self.is_open = threading.Event()
    self.is_reached = threading.Event()
    self.written = []
    self.error = error

  def append(self, labels, outputs):
    self.is_reached.set()
    assert self.is_open.wait(60)
    if self.error is not None:
      raise self.error
    self.written.append((labels, outputs))


@pytest.mark.parametrize('num_batches', [1, 4, 100])
def test_the_same_bytes(folder, expected, num_batches):
  with start(folder) as dump, BackgroundWriter(dump, num_batches) as writer:
    for batch in batches():
      writer.append(*batch)
  assert contents(folder) == expected
  assert dump.num_written == NUM_IMAGES


def test_appending_does_not_wait_for_the_disk():
  gate = Gate()
  with BackgroundWriter(gate, num_batches=3) as writer:
    for number in range(4):  # One that is being written, and three behind it.
      writer.append(number, {})
      assert gate.is_reached.wait(60)
    assert gate.written == []
    gate.is_open.set()
  assert gate.written == [(number, {}) for number in range(4)]


def test_no_more_batches_wait_than_were_allowed():
  gate = Gate()
  with BackgroundWriter(gate, num_batches=2) as writer:
    writer.append(0, {})
    assert gate.is_reached.wait(60)
    for number in (1, 2):
      writer.append(number, {})
    handed_over = threading.Event()
    caller = threading.Thread(
        target=lambda: (writer.append(3, {}), handed_over.set()))
    caller.start()
    assert not handed_over.wait(0.05)
    gate.is_open.set()
    assert handed_over.wait(60)
    caller.join()
  assert [labels for labels, _ in gate.written] == [0, 1, 2, 3]


@pytest.mark.parametrize('error', [UserError('disk'), MemoryError()])
def test_an_error_is_raised_at_a_later_append(error):
  gate = Gate(error)
  gate.is_open.set()
  with pytest.raises(type(error)) as raised:
    with BackgroundWriter(gate, num_batches=1) as writer:
      for number in range(10000):  # Does not come to stand.
        writer.append(number, {})
      raise AssertionError('went on after the error')
  assert raised.value is error


def test_an_error_is_raised_at_the_end():
  gate = Gate(UserError('disk'))
  with pytest.raises(UserError, match='disk'):
    with BackgroundWriter(gate) as writer:
      writer.append(0, {})
      gate.is_open.set()


def test_an_error_ends_the_dump(folder):
  with pytest.raises(UserError, match='more than the 20 records'):
    with start(folder, num_images=20) as dump, BackgroundWriter(dump) as writer:
      for batch in batches():
        writer.append(*batch)
  assert contents(folder) == {}


@pytest.mark.parametrize('num_before', range(0, 10, 3))
def test_ctrl_c_loses_no_row_that_was_written(folder, expected, num_before):
  with pytest.raises(KeyboardInterrupt):
    with start(folder) as dump, BackgroundWriter(dump) as writer:
      for number, batch in enumerate(batches()):
        if number == num_before:
          raise KeyboardInterrupt
        writer.append(*batch)
  dump = start(folder)
  assert dump.num_written % BATCH_SIZE == 0
  assert dump.num_written <= num_before * BATCH_SIZE
  with dump, BackgroundWriter(dump) as writer:
    for batch in batches(dump.next_row):
      writer.append(*batch)
  assert contents(folder) == expected


def test_ctrl_c_waits_for_the_batch_and_drops_the_others():
  gate = Gate()
  with pytest.raises(KeyboardInterrupt):
    with BackgroundWriter(gate) as writer:
      for number in range(3):
        writer.append(number, {})
      assert gate.is_reached.wait(60)
      threading.Timer(0.01, gate.is_open.set).start()
      raise KeyboardInterrupt
  assert gate.written == [(0, {})]
  assert not writer._thread.is_alive()


def test_ctrl_c_while_the_last_batches_are_written(monkeypatch):
  """And another one while these are waited for."""
  gate = Gate()
  writer = BackgroundWriter(gate)
  join, num_joins = writer._thread.join, []

  def interrupted_join(*args):
    num_joins.append(1)
    if len(num_joins) < 3:
      raise KeyboardInterrupt
    gate.is_open.set()
    join(*args)

  monkeypatch.setattr(writer._thread, 'join', interrupted_join)
  with pytest.raises(KeyboardInterrupt):
    with writer:
      for number in range(3):
        writer.append(number, {})
      assert gate.is_reached.wait(60)
  assert gate.written == [(0, {})]
  assert not writer._thread.is_alive()
