"""TFRecord shards to batches of images and labels.

An evaluation pass reads every record once, in the reading order: the row order
of every dump. Ten places take turns. A shard sits in each and gives one record
per turn. The turn in which a shard is found to be at its end gives nothing; the
next shard, in name order, sits down at that place's next turn. With two places
and shards a (1 record), b (3), c (2):

  turn of place  1   2   1   2   1   2   1   2   1   2   1
  record         a0  b0  -   b1  c0  b2  c1  -   -   -   -

Training draws records at random, from shuffled shards.
"""

import sys

from tf_compat import private_threadpool, tf

import imagenet_preprocessing
from imagenet_data import find_shards
from shared_dataset import IMAGENET_NUM_CLASSES, INTERLEAVED_SHARDS

NUM_CHANNELS = 3

SHUFFLE_BUFFER_RECORDS = 10000
_READ_BUFFER_BYTES = 1 << 20  # Per shard.

# The label of a padding image, which no metric counts.
PADDING_LABEL = -1

# For `imagenet_errors.py`: where the names of a parser's operations begin, in
# evaluation and in training, and how the assertions' messages begin.
PARSER_SCOPES = ('parse_evaluation_record', 'parse_training_record')
LABEL_OUT_OF_RANGE = 'label out of range'
NOT_A_JPEG = 'not a JPEG'

_BOX_SIDES = ('ymin', 'xmin', 'ymax', 'xmax')

# Every feature has a default, so that what is missing is found by its value and
# reported with the name of the image. A parse error would name neither.
_RECORD_FEATURES = {
    'image/encoded': tf.FixedLenFeature([], tf.string, ''),
    'image/filename': tf.FixedLenFeature([], tf.string, ''),
    'image/class/label': tf.FixedLenFeature([], tf.int64, -1),
}
_RECORD_FEATURES.update({
    'image/object/bbox/' + side: tf.VarLenFeature(tf.float32)
    for side in _BOX_SIDES})


def input_fn(is_training, data_dir, batch_size, num_epochs=1, dtype=tf.float32,
             datasets_num_private_threads=None, num_parallel_batches=1,
             parse_record_fn=None, image_size=None,
             num_classes=IMAGENET_NUM_CLASSES, num_padding_images=0,
             seed=None, input_context=None,
             min_crop_area=imagenet_preprocessing.MIN_CROP_AREA):
  """Batches of one split, as the official code's function of this name.

  Args:
    is_training: the training split, shuffled and distorted; otherwise the
      validation split in reading order.
    batch_size: images in a batch; the last one may have fewer.
    num_epochs: passes over the split; None for no end.
    datasets_num_private_threads: threads for the input pipeline alone, or
      None to share TensorFlow's.
    num_parallel_batches: batches that are decoded at the same time.
    parse_record_fn: a function like `parse_record`, to read other records.
    image_size: height and width of the images; None for 224.
    num_classes: labels must be below it.
    num_padding_images: black images, labelled `PADDING_LABEL`, to add at the
      end.
    seed: of the order of the training images and of their distortions; None
      for other ones every time. The order repeats with the seed. Distortions
      are drawn by several threads, and do not.
    input_context: a `tf.distribute.InputContext`, or anything with its
      `num_input_pipelines` and `input_pipeline_id`: in training, each worker
      reads its own records. None to read all.
    min_crop_area: least share of an image that a random crop keeps.

  Returns:
    A dataset of (images [batch, height, width, 3], labels int32 [batch]).
  """
  shards = find_shards(data_dir, 'train' if is_training else 'validation')
  dataset = (_shuffled_dataset(shards, seed, input_context) if is_training
             else split_dataset(shards))
  return process_record_dataset(
      dataset, is_training, batch_size, SHUFFLE_BUFFER_RECORDS,
      parse_record_fn or record_parser(
          image_size, num_classes, seed, min_crop_area),
      num_epochs, dtype, datasets_num_private_threads, num_parallel_batches,
      num_padding_images, seed)


def evaluation_dataset(shards, batch_size, dtype=tf.float32, image_size=None,
                       num_classes=IMAGENET_NUM_CLASSES,
                       datasets_num_private_threads=None,
                       num_parallel_batches=1, first_row=0, num_rows=None):
  """One pass over `shards` of either split, in reading order, undistorted.

  Args:
    shards: paths.
    first_row: of the reading order; those before it are read, not decoded.
    num_rows: how many from there on; None for all.

  Other arguments and result as for `input_fn`.
  """
  dataset = split_dataset(shards).skip(first_row)
  if num_rows is not None:
    dataset = dataset.take(num_rows)
  return process_record_dataset(
      dataset, False, batch_size, None,
      record_parser(image_size, num_classes), 1, dtype,
      datasets_num_private_threads, num_parallel_batches)


def _shuffled_dataset(shards, seed, input_context):
  """Serialized records of `shards` in random order; arguments as `input_fn`.

  Several workers each take every n-th shard. Where there are fewer shards than
  workers, each takes every n-th record, of an order that is the same for all.
  """
  num_workers = input_context.num_input_pipelines if input_context else 1
  worker = input_context.input_pipeline_id if input_context else 0
  if len(shards) < num_workers:
    return split_dataset(shards).shard(num_workers, worker)
  shards = shards[worker::num_workers]
  return _interleave(tf.data.Dataset.from_tensor_slices(shards).shuffle(
      buffer_size=len(shards), seed=seed))


def split_dataset(shards):
  """Serialized records of `shards` in reading order."""
  return _interleave(tf.data.Dataset.from_tensor_slices(shards))


def _interleave(shards):
  return shards.interleave(
      lambda shard: tf.data.TFRecordDataset(
          shard, buffer_size=_READ_BUFFER_BYTES),
      cycle_length=INTERLEAVED_SHARDS, block_length=1)


def process_record_dataset(dataset, is_training, batch_size, shuffle_buffer,
                           parse_record_fn, num_epochs=1, dtype=tf.float32,
                           datasets_num_private_threads=None,
                           num_parallel_batches=1, num_padding_images=0,
                           seed=None):
  """A dataset of (images, labels), from one of serialized records.

  In training `shuffle_buffer` records are drawn from. `parse_record_fn` is from
  (serialized record, is_training, dtype) to (image, label). The others are as
  for `input_fn`.
  """
  dataset = dataset.prefetch(buffer_size=batch_size)
  if is_training:
    # Before `repeat`, so that every image comes once in each epoch.
    dataset = dataset.shuffle(buffer_size=shuffle_buffer, seed=seed)
  dataset = dataset.repeat(num_epochs)
  dataset = dataset.map(
      lambda record: parse_record_fn(record, is_training, dtype),
      num_parallel_calls=batch_size * num_parallel_batches)
  if num_padding_images:
    image_type, label_type = dataset.output_types
    padding = (tf.zeros(dataset.output_shapes[0], image_type),
               tf.constant(PADDING_LABEL, label_type))
    dataset = dataset.concatenate(
        tf.data.Dataset.from_tensors(padding).repeat(num_padding_images))
  # `prefetch` outermost: the next batch is made while the model has this one.
  dataset = dataset.batch(batch_size).prefetch(buffer_size=2)
  if datasets_num_private_threads:
    dataset = private_threadpool(dataset, datasets_num_private_threads)
  return dataset


def parse_record(raw_record, is_training, dtype):
  """Image and label of one record of ImageNet; see `record_parser`."""
  return record_parser()(raw_record, is_training, dtype)


def record_parser(image_size=None, num_classes=IMAGENET_NUM_CLASSES,
                  seed=None,
                  min_crop_area=imagenet_preprocessing.MIN_CROP_AREA):
  """The function that parses a record and preprocesses its image.

  A label that is not below `num_classes` stops the run, and is named.

  Returns:
    A function from (serialized record, is_training, dtype) to (image `dtype`
    [image_size, image_size, 3], label int32 []).
  """
  if image_size is None:
    image_size = imagenet_preprocessing.DEFAULT_IMAGE_SIZE

  def parse(raw_record, is_training, dtype):
    with tf.name_scope(PARSER_SCOPES[bool(is_training)]):
      features = tf.parse_single_example(raw_record, _RECORD_FEATURES)
      encoded, label, name = [features['image/' + feature] for feature in (
          'encoded', 'class/label', 'filename')]
      boxes = tf.stack([features['image/object/bbox/' + side].values
                        for side in _BOX_SIDES], axis=1)  # [boxes, 4]
      checks = [
          tf.Assert(tf.logical_and(label >= 0, label < num_classes),
                    [LABEL_OUT_OF_RANGE, label, num_classes, name]),
          # TensorFlow would read a PNG or a GIF in evaluation, but not in
          # training.
          tf.Assert(tf.image.is_jpeg(encoded), [NOT_A_JPEG, name]),
          tf.cond(tf.equal(label, 0),
                  lambda: tf.py_func(_say_label_zero, [name], tf.bool),
                  lambda: True)]
      with tf.control_dependencies(checks):
        image = imagenet_preprocessing.preprocess_image(
            tf.identity(encoded), boxes[tf.newaxis], image_size, image_size,
            NUM_CHANNELS, is_training, seed, min_crop_area)
        return tf.cast(image, dtype), tf.to_int32(label)

  return parse


_said_label_zero = []  # The first image of which it was said.


def _say_label_zero(name):
  if not _said_label_zero:
    _said_label_zero.append(name)
    sys.stderr.write(
        f'image {name.decode("utf-8", "replace")}: label 0 is that of the '
        'background class, which no image should have; labels begin at 1, and '
        'where they begin at 0 every accuracy is that of chance\n')
  return True


def parse_file_name(raw_record):
  """The name of the image's file, a scalar string; '' if there is none."""
  feature = 'image/filename'
  return tf.parse_single_example(
      raw_record, {feature: _RECORD_FEATURES[feature]})[feature]


def get_synth_input_fn(height, width, num_channels, num_classes,
                       dtype=tf.float32):
  """Like `input_fn`, for one random batch without end: times the model alone.
  """
  def synth_input_fn(is_training, data_dir, batch_size, *args, **kwargs):
    del is_training, data_dir, args, kwargs
    # Grey levels less the mean: about what preprocessing gives.
    images = tf.truncated_normal(
        [batch_size, height, width, num_channels], dtype=tf.float32, mean=0,
        stddev=60, name='synthetic_images')
    labels = tf.random_uniform(
        [batch_size], minval=0, maxval=num_classes - 1, dtype=tf.int32,
        name='synthetic_labels')
    dataset = tf.data.Dataset.from_tensors((tf.cast(images, dtype), labels))
    return dataset.repeat().prefetch(buffer_size=2)

  return synth_input_fn
