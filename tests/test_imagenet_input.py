"""Tests of Imagenet/imagenet_input.py.

Most of them read records that hold a number and nothing else, through a parser
of their own; the others are JPEGs of one grey level that is their number.
"""

import io
import types

import numpy as np
import pytest
from PIL import Image

from tf_compat import tf

import imagenet_input
import record_shards
import tiny_records

MEANS = np.array([123.68, 116.78, 103.94], np.float32)


def batches_of(dataset, at_most=None):
  """What a dataset yields, as NumPy arrays; `at_most` so many batches."""
  endless = 1000  # More batches than any data set here has.
  batches = []
  iterator = dataset.make_initializable_iterator()
  next_batch = iterator.get_next()
  with tf.Session() as session:
    session.run(iterator.initializer)
    while at_most is None or len(batches) < at_most:
      assert len(batches) < endless
      try:
        batches.append(session.run(next_batch))
      except tf.errors.OutOfRangeError:
        break
  return batches


def labels_of(batches):
  return [int(label) for _, labels in batches for label in labels]


def number_records(folder, split, images_per_shard):
  """Shards of records that are their own number, as text."""
  return tiny_records.write_shards(
      str(folder), split,
      [b'%d' % number for number in range(sum(images_per_shard))],
      images_per_shard)


def parse_number(raw_record, is_training, dtype):
  """A parser of `number_records`: a black image, and the number as label."""
  del is_training
  number = tf.string_to_number(raw_record, tf.int32)
  return tf.zeros([2, 2, 3], dtype), number


def read_numbers(data_dir, is_training, batch_size, graph_seed=1, at_most=None,
                 **kwargs):
  with tf.Graph().as_default():
    tf.set_random_seed(graph_seed)
    return batches_of(imagenet_input.input_fn(
        is_training, str(data_dir), batch_size, parse_record_fn=parse_number,
        **kwargs), at_most)


def grey_record(number, label=None, more=None, size=(8, 8)):
  """A JPEG of grey level `number`; the label is its successor."""
  stream = io.BytesIO()
  Image.new('L', size, number).save(stream, 'JPEG', quality=100)
  return tiny_records.make_record(
      stream.getvalue(), number + 1 if label is None else label,
      f'grey_{number}.JPEG', more)


def grey_shards(folder, split, images_per_shard):
  return tiny_records.write_shards(
      str(folder), split,
      [grey_record(number) for number in range(sum(images_per_shard))],
      images_per_shard)


def grey_levels(batches):
  """The grey level of each image, of which all pixels must be equal."""
  levels = []
  for images, _ in batches:
    pixels = (images.astype(np.float32) + MEANS).reshape([len(images), -1])
    assert np.ptp(pixels, axis=1).max() < 0.2
    levels += [int(level) for level in np.rint(pixels[:, 0])]
  return levels


# ---- Reading order -----------------------------------------------------------

def random_layouts(num_layouts):
  """Images per shard: fewer and more shards than ten, some of them empty."""
  rng = np.random.RandomState(0)
  for _ in range(num_layouts):
    num_shards = rng.choice([1, 2, 7, 9, 10, 11, 13, 20, 31])
    yield rng.randint(0, rng.choice([2, 3, 9, 20]), num_shards).tolist()


LAYOUTS = list(random_layouts(8)) + [
    [40], [0, 0, 5], [3] * 10, [3] * 25, [9, 1] * 8, [1] * 10 + [0] * 7 + [2],
    list(range(15)), list(range(15, 0, -1)), [0] * 12 + [6]]


def test_reading_order_of_many_layouts(tmpdir):
  for number, layout in enumerate(LAYOUTS):
    folder = tmpdir.join(str(number), 'validation')
    number_records(folder, 'validation', layout)
    batch_size = (1, 3, 32)[number % 3]
    batches = read_numbers(folder.dirname, False, batch_size)
    order = tiny_records.reading_order(layout)
    assert labels_of(batches) == order, layout
    assert sorted(order) == list(range(sum(layout)))
    # All batches are full except the last.
    assert [len(labels) for _, labels in batches] == [
        len(order[i:i + batch_size]) for i in range(0, len(order), batch_size)]


def test_reading_order_is_the_record_builders(tmpdir):
  """Its label files have the row order of the dumps."""
  for layout in LAYOUTS + [record_shards.images_per_shard(173, 16)]:
    assert record_shards.reading_order(layout).tolist() == (
        tiny_records.reading_order(layout))


@pytest.mark.parametrize('options', [
    dict(datasets_num_private_threads=1),
    dict(datasets_num_private_threads=3, num_parallel_batches=2)])
def test_threads_change_nothing(tmpdir, options):
  layout = [15, 8, 19, 3] * 4
  # Large images between small ones, which would overtake them.
  paths = tiny_records.write_shards(str(tmpdir), 'validation', [
      grey_record(i, i, size=(400, 400) if i % 5 == 0 else (8, 8))
      for i in range(sum(layout))], layout)
  for _ in range(2):  # Repeated passes are equal.
    with tf.Graph().as_default():
      batches = batches_of(imagenet_input.evaluation_dataset(
          paths, 8, image_size=32, **options))
    order = tiny_records.reading_order(layout)
    assert labels_of(batches) == grey_levels(batches) == order


def test_a_pass_from_any_row(tmpdir):
  """What a resumed dump reads, and a shard of one."""
  layout = [3, 0, 1, 7] * 3
  paths = grey_shards(tmpdir, 'train', layout)
  order = tiny_records.reading_order(layout)
  for first_row, num_rows in ((0, 4), (5, None), (20, 9), (33, None), (32, 1)):
    with tf.Graph().as_default():
      batches = batches_of(imagenet_input.evaluation_dataset(
          paths, 4, image_size=32, first_row=first_row, num_rows=num_rows))
    assert grey_levels(batches) == order[first_row:][:num_rows]


def test_padding_comes_at_the_end(tmpdir):
  grey_shards(tmpdir, 'validation', [4, 3])
  with tf.Graph().as_default():
    batches = batches_of(imagenet_input.input_fn(
        False, str(tmpdir), 4, image_size=32, num_padding_images=9))
  order = tiny_records.reading_order([4, 3])
  assert labels_of(batches) == [number + 1 for number in order] + [-1] * 9
  images = np.concatenate([images for images, _ in batches])
  assert images.shape == (7 + 9, 32, 32, 3)
  assert images.dtype == np.float32
  assert not images[7:].any()


# ---- Training ----------------------------------------------------------------

TRAIN_LAYOUT = [9, 4, 0, 7, 7, 1, 6, 5, 8, 3, 9, 2, 6]
NUM_TRAIN = sum(TRAIN_LAYOUT)


def test_each_epoch_has_every_image_once_and_is_drawn_anew(tmpdir):
  number_records(tmpdir, 'train', TRAIN_LAYOUT)
  drawn = np.reshape(labels_of(read_numbers(tmpdir, True, 8, num_epochs=3)),
                     [3, NUM_TRAIN])
  for epoch in drawn:
    assert sorted(epoch) == list(range(NUM_TRAIN))
    # Shuffled throughout, not in part: neighbours come from anywhere.
    assert np.abs(np.diff(epoch)).mean() > NUM_TRAIN / 5
  assert drawn[0].tolist() != drawn[1].tolist() != drawn[2].tolist()


def test_the_seed_decides_the_order(tmpdir):
  """Each training cycle used to bring the images in the order of the first."""
  number_records(tmpdir, 'train', TRAIN_LAYOUT)
  # The graph's seed is that of the whole run; see the run loop.
  first, again, other = [
      labels_of(read_numbers(tmpdir, True, 8, graph_seed=7, seed=seed))
      for seed in (1, 1, 2)]
  assert first == again != other
  assert sorted(first) == sorted(other) == list(range(NUM_TRAIN))


@pytest.mark.parametrize('num_workers', [2, 3, 20])  # 13 shards.
def test_workers_share_the_training_records(tmpdir, num_workers):
  number_records(tmpdir, 'train', TRAIN_LAYOUT)
  read = [labels_of(read_numbers(
      tmpdir, True, 8, input_context=types.SimpleNamespace(
          num_input_pipelines=num_workers, input_pipeline_id=worker)))
          for worker in range(num_workers)]
  assert sorted(sum(read, [])) == list(range(NUM_TRAIN))


def test_training_keeps_image_and_label_together(tmpdir):
  grey_shards(tmpdir, 'train', [30, 30, 20])
  with tf.Graph().as_default():
    batches = batches_of(imagenet_input.input_fn(
        True, str(tmpdir), 16, image_size=32, dtype=tf.float32,
        num_parallel_batches=2))
  assert sorted(grey_levels(batches)) == list(range(80))
  assert labels_of(batches) == [level + 1 for level in grey_levels(batches)]


# ---- Records -----------------------------------------------------------------

def test_parse_record_has_the_official_signature():
  with tf.Graph().as_default():
    for is_training in (False, True):
      image, label = imagenet_input.parse_record(
          tf.constant(grey_record(77)), is_training, tf.float16)
      assert image.dtype == tf.float16 and label.dtype == tf.int32
      assert image.shape.as_list() == [224, 224, 3]


BOX_FEATURES = {f'image/object/bbox/{side}': [0.1, 0.2]
                for side in ('ymin', 'xmin', 'ymax', 'xmax')}


@pytest.mark.parametrize('is_training', [False, True])
def test_records_of_other_builders(is_training):
  with tf.Graph().as_default(), tf.Session() as session:
    record = tf.placeholder(tf.string, [])
    parsed = imagenet_input.record_parser(32, 1001)(
        record, is_training, tf.float32)
    for more in (
        {}, BOX_FEATURES, {key: [] for key in BOX_FEATURES},
        {'image/class/text': b'goldfish', 'image/class/synset': b'n01443537',
         'image/height': 8, 'image/object/bbox/label': 5},
        {'image/filename': None}):
      image, label = session.run(
          parsed, {record: grey_record(9, label=5, more=more)})
      assert label == 5
      np.testing.assert_allclose(
          image + MEANS, np.full([32, 32, 3], 9.), atol=1e-3)
