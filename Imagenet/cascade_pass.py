"""A pass of records through the cascade, beside the plain network.

Both networks run on the same images in the same run, so that their rates and
accuracies can be compared. They take turns, with blocks of a few batches:

  1. the cascade runs a block as it is read and decoded;
  2. the plain network does the same, with a reader of its own;
  3. the cascade runs the block once more, from memory;
  4. the plain network runs it from memory.

From block to block the two change places. 1 and 2 give the rates with the
input, 3 and 4 those of the networks alone.
"""

import contextlib
import time
import typing

import numpy as np

from tf_compat import tf

import imagenet_input
from cascade_graph import CascadeOutput
from progress import Progress
from user_error import UserError

_BATCHES_PER_BLOCK = 4


class RecordBatch(typing.NamedTuple):
  """A batch of records, preprocessed."""
  images: np.ndarray          # float32 [batch, height, width, 3]
  labels: np.ndarray          # int32 [batch]
  names: typing.List[str]     # Of the image files.


class Seconds(typing.NamedTuple):
  """What one network took for all images."""
  with_input: float
  from_memory: float


class PassResults(typing.NamedTuple):
  """Of all images, in reading order."""
  names: typing.List[str]
  labels: np.ndarray                # int32 [images]
  output: CascadeOutput             # Arrays.
  # None without a comparison:
  plain_top5_classes: typing.Optional[np.ndarray]  # int32 [images, 5]
  seconds: typing.Optional[Seconds]
  plain_seconds: typing.Optional[Seconds]


def read_records(paths, batch_size, image_size, num_classes,
                 num_private_threads=None, num_parallel_batches=1):
  """An iterator of `RecordBatch`es, in reading order.

  Args:
    paths: of the shards.
    others: as for `imagenet_input.evaluation_dataset`.
  """
  parse_image = imagenet_input.record_parser(image_size, num_classes)
  with tf.Graph().as_default(), tf.device('/cpu:0'):
    dataset = imagenet_input.process_record_dataset(
        imagenet_input.split_dataset(paths), False, batch_size, None,
        lambda record, *how: (*parse_image(record, *how),
                              imagenet_input.parse_file_name(record)),
        1, tf.float32, num_private_threads, num_parallel_batches)
    batch = dataset.make_one_shot_iterator().get_next()
    session = tf.Session(config=tf.ConfigProto(device_count={'GPU': 0}))
  # The session is made at once, so that nobody times it.
  return _read_batches(session, batch)


def _read_batches(session, batch):
  with contextlib.closing(session):
    while True:
      try:
        images, labels, names = session.run(batch)
      except tf.errors.OutOfRangeError:
        return
      yield RecordBatch(images, labels, [
          name.decode('utf-8', 'replace') for name in names])


def run(session, make_reader, num_images, compares):
  """Runs all records through the cascade.

  Args:
    session: a `cascade_session.CascadeSession`, warmed up.
    make_reader: a function that returns an iterator of all `RecordBatch`es.
    num_images: in all of them.
    compares: whether the plain network runs too, and both are timed.

  Returns:
    `PassResults`.

  Raises:
    UserError: there are fewer records than that.
  """
  networks = [('cascade', session.run)]
  if compares:
    networks.append(('plain', session.run_plain))
  readers = {name: make_reader() for name, _ in networks}
  seconds = {name: np.zeros(2) for name, _ in networks}
  outputs = {name: [] for name, _ in networks}
  names, labels = [], []
  progress = Progress('cascade', num_images, 'images')
  while len(names) < num_images:
    for name, network in networks:
      start = time.perf_counter()
      block, num_left = [], num_images - len(names)
      # The end of a reader, which may take seconds, is never reached here.
      while num_left > 0 and len(block) < _BATCHES_PER_BLOCK:
        batch = next(readers[name], None)
        if batch is None:
          raise UserError(f'{num_images - num_left:,} records where there were '
                          f'{num_images:,} at the start; they must not change '
                          'while they are read')
        outputs[name].append(network(batch.images))
        block.append(batch)
        num_left -= len(batch.names)
      seconds[name][0] += time.perf_counter() - start
    if compares:
      for name, network in networks:
        start = time.perf_counter()
        for batch in block:
          network(batch.images)
        seconds[name][1] += time.perf_counter() - start
      networks.reverse()
    for batch in block:
      names.extend(batch.names)
      labels.append(batch.labels)
    progress.update(len(names))
  progress.finish()
  results = PassResults(
      names, np.concatenate(labels),
      CascadeOutput(*map(np.concatenate, zip(*outputs['cascade']))),
      None, None, None)
  if compares:
    results = results._replace(
        plain_top5_classes=np.concatenate(outputs['plain']),
        seconds=Seconds(*seconds['cascade']),
        plain_seconds=Seconds(*seconds['plain']))
  return results
