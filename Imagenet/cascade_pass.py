"""A pass of images through the cascade: its answers, its accuracy, its speed.

Accuracy is of all images. Speed is measured apart from the pass, because the
reader decodes in the background, on the same cores: some decoded batches are
kept, and once the reader has ended the networks run them from memory, in turns.
"""

import collections
import contextlib
import csv
import math
import os
import time
import typing

import numpy as np

from tf_compat import tf

import imagenet_input
import imagenet_preprocessing
import photo_files
from shared_files import UNFINISHED_SUFFIX, explain_error, give_name
from shared_terminal import Progress, UserError

PREDICTIONS_CSV = 'predictions.csv'

# Of the batches that are kept: 6 of 32 images of 224 pixels.
_KEPT_BYTES = 2**27

# Of each kept batch and network, of which the median is taken.
_TIMED_RUNS = 3

# After so long the rate of a reader is known.
_READING_SECONDS = 5


class RecordBatch(typing.NamedTuple):
  """A batch of records, preprocessed."""
  images: np.ndarray          # float32 [batch, height, width, 3]
  labels: np.ndarray          # int32 [batch]
  names: typing.List[str]     # Of the image files.


def _session():
  """A session on the CPU; made at once, so that nobody times it."""
  return tf.Session(config=tf.ConfigProto(device_count={'GPU': 0}))


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
    return _read_batches(_session(), batch)


def _read_batches(session, batch):
  with contextlib.closing(session):
    while True:
      try:
        images, labels, names = session.run(batch)
      except tf.errors.OutOfRangeError:
        return
      yield RecordBatch(images, labels, [
          name.decode('utf-8', 'replace') for name in names])


def read_photos(paths, batch_size, image_size):
  """`photo_files.read_photos`, as an evaluation would see the images."""
  with tf.Graph().as_default(), tf.device('/cpu:0'):
    jpeg = tf.placeholder(tf.string, [])
    image = imagenet_preprocessing.preprocess_image(
        jpeg, tf.zeros([1, 0, 4]), image_size, image_size,
        imagenet_input.NUM_CHANNELS)
    session = _session()

  def preprocess(data):
    try:
      return session.run(image, {jpeg: data})
    except tf.errors.OpError:
      raise ValueError('cannot be decoded')

  with contextlib.closing(session):
    yield from photo_files.read_photos(paths, batch_size, preprocess)


# ---- Answers ----------------------------------------------------------------

class Predictions:
  """Counts the answers of a pass, and writes them down as they come.

  A pass that is stopped leaves its rows in `predictions.csv.unfinished`, and
  the `predictions.csv` of an earlier one as it was.
  """

  def __init__(self, output_dir, class_name):
    """
    Args:
      output_dir: where to write; None only counts.
      class_name: a function from class to name.
    """
    self.num_images = 0
    self.exits = collections.Counter()  # From classifier to images.
    self.hits = np.zeros(2, int)        # Top-1 and top-5, of labelled images.
    self._class_name = class_name
    self._path = output_dir and os.path.join(output_dir, PREDICTIONS_CSV)
    if self._path:
      with self._explain_error():
        # Names of files may have any bytes.
        self._stream = open(self._path + UNFINISHED_SUFFIX, 'w', newline='',
                            encoding='utf-8', errors='surrogateescape')
        self._write([
            ['image', 'label', 'class', 'name', 'confidence', 'exit']])

  def add(self, names, labels, output):
    """Adds a batch.

    Args:
      names: of the images.
      labels: int [batch], or None.
      output: `cascade_graph.CascadeOutput`.
    """
    self.num_images += len(names)
    self.exits.update(output.exits.tolist())
    if labels is None:
      labels = [''] * len(names)
    else:
      self.hits += count_hits(output.top5_classes, labels)
    if self._path:
      with self._explain_error():
        self._write(
            [name, label, best, self._class_name(best),
             repr(float(confidence)), k]
            for name, label, (best, *_), confidence, k in zip(
                names, labels, output.top5_classes, output.confidences,
                output.exits))

  def finish(self):
    """Gives the file its name."""
    if self._path:
      with self._explain_error():
        self._stream.close()
        give_name(self._path + UNFINISHED_SUFFIX, self._path)

  def _write(self, rows):
    csv.writer(self._stream, lineterminator='\n').writerows(rows)
    self._stream.flush()

  def _explain_error(self):
    return explain_error(
        self._path, 'free some space or name another --output_dir')


def count_hits(top5_classes, labels):
  """How often the label is the best class, and among the best five; int [2].

  Args:
    top5_classes: int [images, 5], best first.
    labels: int [images].
  """
  is_label = top5_classes == labels[:, np.newaxis]
  return np.array([is_label[:, 0].sum(), is_label.sum()])


def run(session, reader, num_images, predictions, compares):
  """Runs all records through the cascade, and its plain network beside it.

  Args:
    session: a `cascade_session.CascadeSession`.
    reader: of `read_records`; closed at the end.
    num_images: in all of them.
    predictions: `Predictions`, to be added to.
    compares: whether the plain network runs too.

  Returns:
    The plain network's hits, as of `count_hits`, and batches of images for
    `time_networks`, evenly spaced in the pass; none if nothing compares.

  Raises:
    UserError: there are fewer records than that.
  """
  plain_hits, kept, stride = np.zeros(2, int), [], 1
  progress = Progress('cascade', num_images, 'images')
  with contextlib.closing(reader):
    # Not to its end, which takes TensorFlow's readers up to seconds.
    for index in range(num_images):
      batch = next(reader, None)
      if batch is None:
        raise UserError(
            f'{predictions.num_images:,} records where there were '
            f'{num_images:,} at the start; they must not change while they are '
            'read')
      predictions.add(batch.names, batch.labels, session.run(batch.images))
      if compares:
        plain_hits += count_hits(
            session.run_plain(batch.images), batch.labels)
        if not index:
          num_batches = math.ceil(num_images / len(batch.names))
          stride = math.ceil(num_batches * batch.images.nbytes / _KEPT_BYTES)
        if index % stride == 0:
          kept.append(batch.images)
      progress.update(predictions.num_images)
      if predictions.num_images >= num_images:
        break
  progress.finish()
  return plain_hits, kept


# ---- Speed ------------------------------------------------------------------

def time_networks(networks, batches):
  """Images per second of each network, for batches in memory.

  Args:
    networks: functions of images, which have run before.
    batches: of images, a list.
  """
  seconds = np.empty([_TIMED_RUNS, len(batches), len(networks)])
  turns = list(range(len(networks)))
  for run_number in range(_TIMED_RUNS):
    for i, images in enumerate(batches):
      for j in turns:
        start = time.perf_counter()
        networks[j](images)
        seconds[run_number, i, j] = time.perf_counter() - start
      turns.reverse()  # None has the warmer cache always.
  return sum(map(len, batches)) / np.median(seconds, axis=0).sum(axis=0)


def reading_rate(reader):
  """Images per second that a reader reads and decodes with all cores."""
  start = time.perf_counter()
  num_images = seconds = 0
  with contextlib.closing(reader):
    for batch in reader:
      num_images += len(batch.names)
      seconds = time.perf_counter() - start
      if seconds > _READING_SECONDS:
        break
  return num_images / seconds
