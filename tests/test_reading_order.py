"""Imagenet/reading_order.py: a pass from any row on is the rest of a whole one.

Against the slow, plain interleave of this file; `test_reading_from_a_row.py`
holds it against TensorFlow.
"""

import random

import pytest

from reading_order import shards_from_row


def interleaved(shards, cycle_length):
  """The reading order, one record after the other.

  Args:
    shards: a list of lists of records.
    cycle_length: number of places.
  """
  waiting = [list(shard) for shard in shards]
  places, order = [None] * cycle_length, []
  while waiting or any(place is not None for place in places):
    for turn in range(cycle_length):
      if places[turn] is None and waiting:
        places[turn] = waiting.pop(0)
      if places[turn]:
        order.append(places[turn].pop(0))
      else:
        places[turn] = None
  return order


def check_every_row(counts, cycle_length):
  records = [[(shard, number) for number in range(count)]
             for shard, count in enumerate(counts)]
  whole = interleaved(records, cycle_length)
  for row in range(len(whole) + 1):
    rest = shards_from_row(range(len(counts)), counts, row, cycle_length)
    assert interleaved([records[shard][skip:] for shard, skip in rest],
                       cycle_length) == whole[row:], (counts, row)


@pytest.mark.parametrize('counts', [
    [], [0], [5], [0, 0, 0], [3] * 10, [3] * 25, [1] * 30, [0] * 12 + [2],
    list(range(13)), list(range(13, 0, -1)), [50] + [1] * 40, [7, 0] * 15])
def test_layouts(counts):
  check_every_row(counts, 10)


@pytest.mark.parametrize('seed', range(40))
def test_random_layouts(seed):
  rng = random.Random(seed)
  counts = [rng.choice([0, 0, 1, 2, 3, rng.randrange(20)])
            for _ in range(rng.randrange(1, 45))]
  check_every_row(counts, rng.choice([1, 2, 3, 10, 10]))


def test_the_first_row_is_the_whole_pass():
  paths = ['a', 'b', 'c']
  assert shards_from_row(paths, [4, 0, 2], 0, 2) == [
      ('a', 0), ('b', 0), ('c', 0)]


def test_a_row_in_the_middle():
  """The whole pass is a0, a1, c0, a2, c1: c comes in place of b."""
  paths, counts = ['a', 'b', 'c'], [3, 0, 2]
  assert shards_from_row(paths, counts, 2, 2) == [('c', 0), ('a', 2)]
  assert shards_from_row(paths, counts, 5, 2) == [('a', 3), ('c', 2)]


@pytest.mark.parametrize('row', [-1, 8])
def test_rows_that_are_not_there(row):
  with pytest.raises(ValueError):
    shards_from_row(['a', 'b'], [3, 4], row, 10)


def test_imagenet_takes_few_steps():
  """1,281,167 rows, and no step for each of them."""
  counts = [1252] * 143 + [1251] * 881

  class Counted(list):
    num_reads = 0

    def __getitem__(self, index):
      Counted.num_reads += 1
      return list.__getitem__(self, index)

  rest = shards_from_row(range(1024), Counted(counts), 1281000, 10)
  assert sum(counts[shard] - skip for shard, skip in rest) == sum(
      counts) - 1281000
  assert Counted.num_reads < 20000
