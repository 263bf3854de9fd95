"""Small TFRecord data sets for tests: real JPEGs of every kind there is."""

import io
import json
import os

import numpy as np
from PIL import Image

from tf_compat import tf

# Height and width: ordinary ones, tiny, very wide, very high.
SIZES = [(80, 90), (64, 64), (70, 120), (5, 7), (9, 200), (150, 11), (1, 1)]


def draw_jpeg(number):
  """JPEG bytes of image `number`; sizes, colour and encoding vary with it."""
  rng = np.random.RandomState(number)
  height, width = SIZES[number % len(SIZES)]
  rows = np.linspace(0, 3 * rng.rand(), height)[:, np.newaxis, np.newaxis]
  columns = np.linspace(0, 3 * rng.rand(), width)[np.newaxis, :, np.newaxis]
  phases = 6 * rng.rand(3)
  pixels = 127 + 100 * np.sin(6 * (rows + columns) + phases)
  pixels += rng.normal(0, 12, [height, width, 3])
  image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
  if number % 4 == 1:
    image = image.convert('L')
  stream = io.BytesIO()
  image.save(stream, 'JPEG', quality=60 + number % 40,
             progressive=number % 3 == 2,
             subsampling=number % 3 if image.mode == 'RGB' else 0)
  return stream.getvalue()


def make_record(encoded, label, name, more=None):
  """A serialized record as the record builder writes it, less what is unread.

  Args:
    encoded: bytes of an image file.
    label: int.
    name: of the image.
    more: a dict from the names of other features to bytes, int, a list of
      floats, or None to leave one of the above out.
  """
  def feature(value):
    if isinstance(value, bytes):
      return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    if isinstance(value, list):
      return tf.train.Feature(float_list=tf.train.FloatList(value=value))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
  features = {'image/encoded': encoded, 'image/class/label': label,
              'image/filename': name.encode()}
  features.update(more or {})
  return tf.train.Example(features=tf.train.Features(feature={
      key: feature(value) for key, value in features.items()
      if value is not None})).SerializeToString()


def write_shards(folder, split, records, images_per_shard):
  """Writes `records` into shards of the given sizes; returns their paths."""
  os.makedirs(folder, exist_ok=True)
  paths = []
  records = iter(records)
  for number, num_records in enumerate(images_per_shard):
    path = os.path.join(folder, '{}-{:05d}-of-{:05d}'.format(
        split, number, len(images_per_shard)))
    with tf.python_io.TFRecordWriter(path) as writer:
      for _ in range(num_records):
        writer.write(next(records))
    paths.append(path)
  return paths


def reading_order(images_per_shard):
  """Rows of an evaluation pass, as image numbers; a slow, plain reference.

  Ten places take turns. A shard that ends gives its place to the next, and the
  turn in which it is found at its end gives no image.
  """
  first = np.cumsum([0] + list(images_per_shard))
  waiting = [list(range(first[i], first[i + 1]))
             for i in range(len(images_per_shard))]
  places, order = [None] * 10, []
  while waiting or places != [None] * 10:
    for place in range(10):
      if places[place] is None and waiting:
        places[place] = waiting.pop(0)
      if places[place]:
        order.append(places[place].pop(0))
      else:
        places[place] = None
  return order


def make_data_set(data_dir, split_shards, num_classes, first_number=0):
  """A data folder: shards of both splits and dataset.json.

  Args:
    data_dir: the folder.
    split_shards: a dict from split to images per shard.
    num_classes: outputs; label of image `i` is `1 + i % (num_classes - 1)`.
    first_number: of the first image, see `draw_jpeg`.

  Returns:
    A dict from split to the list of (jpeg, label) in reading order.
  """
  rows, number = {}, first_number
  for split in sorted(split_shards):
    images = []
    for _ in range(sum(split_shards[split])):
      images.append((draw_jpeg(number), 1 + number % (num_classes - 1)))
      number += 1
    write_shards(
        os.path.join(data_dir, split), split,
        (make_record(jpeg, label, '{}_{}.JPEG'.format(split, i))
         for i, (jpeg, label) in enumerate(images)), split_shards[split])
    rows[split] = [images[i] for i in reading_order(split_shards[split])]
  with open(os.path.join(data_dir, 'dataset.json'), 'w') as dataset_file:
    json.dump({
        'num_classes': num_classes,
        'num_images': {split: len(rows[split]) for split in rows},
        'class_names': [f'class {label}' for label in range(1, num_classes)],
    }, dataset_file)
  return rows
