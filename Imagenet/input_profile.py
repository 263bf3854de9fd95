"""How fast images come in: the input pipeline alone, stage by stage.

Each row of the table is a pipeline of its own, with one stage more than the
row above it, that runs from the shards to its end. `--profile_input` prints it.
What a stage adds is a difference of two runs: on a busy machine, or of few
images, it may come out below zero.
"""

import collections
import time

from tf_compat import tf

import imagenet_input
import imagenet_preprocessing
from imagenet_input import NUM_CHANNELS, PARSER_SCOPES

# Stages in order, and what may help where one is the slowest.
STAGES = collections.OrderedDict([
    ('read records',
     'copy the shards to a faster disk, or nearer to this machine'),
    ('+ parse', 'records with few features beside the image are parsed faster'),
    ('+ decode', 'it scales with cores; records of smaller images decode '
     'faster, though to slightly other pixels'),
    ('+ resize and crop', 'it scales with cores; a smaller --image_size has '
     'less to do'),
    ('+ means and batch', 'a smaller --batch_size, or '
     '--datasets_num_private_threads of as many as cores'),
])

# Seconds are of the wall clock; CPU seconds are those of all threads.
Measured = collections.namedtuple(
    'Measured', ['stage', 'num_images', 'seconds', 'cpu_seconds'])


def profile(shards, batch_size, image_size, num_classes, num_images,
            dtype=tf.float32, datasets_num_private_threads=None,
            num_parallel_batches=1, inter_op_threads=0, intra_op_threads=0):
  """Measures and prints a table for each split, and the slowest stage.

  The validation split is read as in evaluation, the training split as in
  training; shards that were not read lately come from the disk in the first
  row, and from memory in the others.

  Args:
    shards: a dict from split, 'validation' or 'train', to paths.
    batch_size: images in a batch.
    image_size: pixels.
    num_classes: labels must be below it.
    num_images: of each split at most.
    dtype: of the images.
    datasets_num_private_threads: as for `imagenet_input.input_fn`.
    num_parallel_batches: as for `imagenet_input.input_fn`.
    inter_op_threads: for independent operations; 0 for as many as cores.
    intra_op_threads: within an operation; 0 for as many as cores.

  Returns:
    A dict from split to a list of `Measured`, one for each of `STAGES`.
  """
  session_config = tf.ConfigProto(
      inter_op_parallelism_threads=inter_op_threads,
      intra_op_parallelism_threads=intra_op_threads,
      device_count={'GPU': 0})  # Nothing to do for it; others may use it.
  measured = {}
  for split in sorted(shards, reverse=True):  # Evaluation first.
    is_training = split == 'train'
    measured[split] = [
        _measure(stage, fn, shards[split], is_training, batch_size, num_images,
                 dtype, datasets_num_private_threads, num_parallel_batches,
                 session_config)
        for stage, fn in _stage_functions(image_size, num_classes)]
    print('\n'.join(table_lines(
        'training' if is_training else 'evaluation', measured[split])))
  return measured


def _stage_functions(image_size, num_classes):
  """(stage, what `process_record_dataset` calls to parse) of each stage.

  All but the last give one number for an image: what is timed is making it,
  not passing it on.
  """
  def read(raw_record, is_training, dtype):
    del is_training, dtype
    return tf.strings.length(raw_record), tf.constant(0)

  def parse(raw_record, is_training, dtype):
    del dtype
    with tf.name_scope(PARSER_SCOPES[bool(is_training)]):
      encoded, _, label = imagenet_input.parse_features(
          raw_record, num_classes)
      return tf.strings.length(encoded), label

  def decoded(raw_record, is_training):
    encoded, boxes, label = imagenet_input.parse_features(
        raw_record, num_classes)
    return imagenet_preprocessing.decode_image(
        encoded, boxes, NUM_CHANNELS, is_training), label

  def decode(raw_record, is_training, dtype):
    del dtype
    with tf.name_scope(PARSER_SCOPES[bool(is_training)]):
      image, label = decoded(raw_record, is_training)
      return _last_value(image), label

  def resize(raw_record, is_training, dtype):
    del dtype
    with tf.name_scope(PARSER_SCOPES[bool(is_training)]):
      image, label = decoded(raw_record, is_training)
      return _last_value(imagenet_preprocessing.resize_and_crop(
          image, image_size, image_size, is_training)), label

  whole = imagenet_input.record_parser(image_size, num_classes)
  return list(zip(STAGES, [read, parse, decode, resize, whole]))


def _last_value(image):
  """One value of an image, for which all of it has to be computed.

  Not its shape, which TensorFlow may know beforehand.
  """
  return tf.reshape(image, [-1])[-1]


def _measure(stage, parse_record_fn, shards, is_training, batch_size,
             num_images, dtype, datasets_num_private_threads,
             num_parallel_batches, session_config):
  """Runs a pipeline to its end; returns a `Measured`."""
  with tf.Graph().as_default(), tf.Session(config=session_config) as session:
    records = imagenet_input.split_dataset(shards, is_training)
    iterator = imagenet_input.process_record_dataset(
        records.take(num_images), is_training, batch_size,
        imagenet_input.SHUFFLE_BUFFER_RECORDS, parse_record_fn, 1, dtype,
        datasets_num_private_threads,
        num_parallel_batches).make_initializable_iterator()
    values, labels = iterator.get_next()
    # Only the labels leave TensorFlow: what a network would not copy, this
    # does not.
    fetches = [labels, values.op]
    session.run(iterator.initializer)
    begin, cpu_begin, counted = time.time(), time.process_time(), 0
    while True:
      try:
        counted += len(session.run(fetches)[0])
      except tf.errors.OutOfRangeError:
        break
    return Measured(stage, counted, time.time() - begin,
                    time.process_time() - cpu_begin)


def table_lines(order, rows):
  """The table of one split, and what its slowest stage is.

  Args:
    order: 'evaluation' or 'training'.
    rows: a list of `Measured`, in the order of `STAGES`.

  Returns:
    A list of str.
  """
  if not rows[0].num_images:
    return ['{}: no images'.format(order)]
  lines = ['{}: {:,} images'.format(order, rows[0].num_images),
           '{:20}{:>10}{:>10}{:>10}{:>14}'.format(
               'stage', 'images/s', 'ms/image', 'added ms', 'CPU ms/image')]
  added, before = [], 0.
  for row in rows:
    milliseconds = 1e3 * row.seconds / row.num_images
    added.append(milliseconds - before)
    lines.append('{:20}{:>10,.0f}{:>10.2f}{:>10.2f}{:>14.2f}'.format(
        row.stage, 1e3 / milliseconds, milliseconds, added[-1],
        1e3 * row.cpu_seconds / row.num_images))
    before = milliseconds
  slowest = max(range(len(rows)), key=lambda i: added[i])
  stage = rows[slowest].stage
  lines.append('slowest: {} ({:.2f} of {:.2f} ms per image): {}'.format(
      stage.replace('+ ', ''), added[slowest], before, STAGES[stage]))
  return lines
