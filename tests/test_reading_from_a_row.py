"""Reading from a row on with TensorFlow gives the rest of a whole pass."""

import random

import pytest

import tiny_records
from imagenet_input import INTERLEAVED_SHARDS
from reading_order import shards_from_row
from tf_compat import tf


class Reader(object):
  """Reads records of (paths, skips), many times with one graph."""

  def __init__(self, session):
    self._session = session
    self._paths = tf.placeholder(tf.string, [None])
    self._skips = tf.placeholder(tf.int64, [None])
    dataset = tf.data.Dataset.from_tensor_slices((self._paths, self._skips))
    dataset = dataset.interleave(
        lambda path, skip: tf.data.TFRecordDataset(path).skip(skip),
        cycle_length=INTERLEAVED_SHARDS, block_length=1)
    self._iterator = dataset.batch(10**6).make_initializable_iterator()
    self._next = self._iterator.get_next()

  def read(self, shards):
    paths, skips = zip(*shards)
    self._session.run(self._iterator.initializer, {
        self._paths: paths, self._skips: skips})
    try:
      return self._session.run(self._next).tolist()
    except tf.errors.OutOfRangeError:
      return []


@pytest.fixture(scope='module')
def reader():
  with tf.Graph().as_default(), tf.Session() as session:
    yield Reader(session)


def check_every_row(reader, folder, layout):
  records = [str(number).encode() for number in range(sum(layout))]
  paths = tiny_records.write_shards(str(folder), 'train', records, layout)
  whole = reader.read([(path, 0) for path in paths])
  assert whole == [records[i] for i in tiny_records.reading_order(layout)]
  for row in range(len(whole) + 1):
    assert reader.read(shards_from_row(
        paths, layout, row, INTERLEAVED_SHARDS)) == whole[row:], (layout, row)


@pytest.mark.parametrize('layout', [
    [5], [0], [0, 0, 3], [3] * 10, [2] * 25, [0] * 12 + [2],
    list(range(13)), list(range(13, 0, -1)), [20] + [1] * 30, [3, 0] * 15])
def test_layouts(reader, tmp_path, layout):
  check_every_row(reader, tmp_path, layout)


@pytest.mark.parametrize('seed', range(12))
def test_random_layouts(reader, tmp_path, seed):
  rng = random.Random(seed)
  check_every_row(reader, tmp_path, [
      rng.choice([0, 1, 2, rng.randrange(8)])
      for _ in range(rng.randrange(1, 35))])
