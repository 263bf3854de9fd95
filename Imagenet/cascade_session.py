"""A session with the cascade, the plain network, and each exit alone.

All three are of one set of variables, on one device, for images in memory.
"""

import multiprocessing
import time

import numpy as np

from tf_compat import tf

import cascade_graph
import devices as devices_lib
import dump_record
import resnet_checkpoint
import resnet_model
from progress import Progress
from stage_seconds import StageSeconds

# Of each exit and batch size, of which the median is taken.
_TIMED_RUNS = 5


class CascadeSession:
  """Runs batches of images through the cascade; a context manager."""

  def __init__(self, model, classifier_ids, weights, metric, thresholds,
               image_size, devices, session_config):
    """
    Args:
      model: a `resnet_model.Model`.
      classifier_ids: of the cascade, ascending, the network's own last.
      weights: a `resnet_checkpoint.ExitWeights` of these.
      metric: of `cascade_results.CONFIDENCE_TERMS`.
      thresholds: float32 [T], or [T, classes] by predicted class.
      image_size: height and width in pixels.
      devices: `devices.Devices` of one replica.
      session_config: a `tf.ConfigProto`.
    """
    self._thresholds = np.asarray(thresholds, np.float32)
    is_per_class = self._thresholds.ndim == 2
    with tf.Graph().as_default() as graph, tf.device(devices.replicas[0]):
      self._images = tf.placeholder(
          tf.float32, [None, image_size, image_size, 3])
      self._fed_thresholds = tf.placeholder(tf.float32, [None, None])
      with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        self._cascade = cascade_graph.build(
            model, self._images, classifier_ids, self._fed_thresholds, metric,
            is_per_class)
        logits = model.exit_logits(
            tf.cast(self._images, model.dtype), classifier_ids,
            trunk_training=False, head_training=False)
      # From classifier to what is fetched to run the network as far as there.
      self._top5_classes = {
          k: resnet_model.exit_output(logits[k]).top5_classes
          for k in classifier_ids}
      self._session = tf.Session(graph=graph, config=session_config)
      savers = resnet_checkpoint.savers(weights.checkpoint_of)
      graph.finalize()
    for saver, checkpoint in savers:
      saver.restore(self._session, checkpoint)

  def run(self, images, thresholds=None):
    """`cascade_graph.CascadeOutput`, arrays, of images that may leave.

    Args:
      images: float32 [batch, height, width, 3], preprocessed.
      thresholds: float32 [batch, T] for each image, in place of the session's.
    """
    if thresholds is None:
      thresholds = self._thresholds
      if thresholds.ndim == 1:
        thresholds = np.tile(thresholds, (len(images), 1))
    return self._session.run(self._cascade, {
        self._images: images, self._fed_thresholds: thresholds})

  def run_plain(self, images, classifier_ids=None):
    """Top-5 classes int32 [batch, 5] of the network as it is; nobody leaves.

    Args:
      images: as for `run`.
      classifier_ids: run the trunk as far as the last of them, and the heads
        of all; None for the network's own classifier alone.
    """
    ids = classifier_ids or [resnet_model.FINAL_CLASSIFIER_ID]
    return self._session.run([self._top5_classes[k] for k in ids], {
        self._images: images})[-1]

  def warm_up(self, batch_size):
    """Runs all of both networks, so that first runs are in no measurement."""
    images = np.zeros([batch_size] + self._images.shape.as_list()[1:])
    self._session.run(self._cascade, {
        self._images: images,
        self._fed_thresholds: np.full(
            self._thresholds.shape if self._thresholds.ndim == 2
            else [batch_size, len(self._thresholds)], np.inf)})
    self.run_plain(images)

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._session.close()


def profile_stages(session, network, classifier_ids, batch_size, devices,
                   versions):
  """Measures what it takes to get to each exit; `StageSeconds`.

  For batches of 1, 2, 4 ... and `batch_size` images. An image that leaves at an
  exit has passed the trunk and all heads up to there. The runs take turns, so
  that a machine whose speed drifts slows down all of them.

  Args:
    session: a `CascadeSession`.
    network: a `dump_record.Network`.
    classifier_ids: of the cascade, ascending.
    batch_size: the largest to measure.
    devices: `devices.Devices`.
    versions: of Python and its packages, a dict.
  """
  batch_sizes = sorted({2**i for i in range(batch_size.bit_length())} |
                       {batch_size})
  images = np.random.RandomState(0).normal(scale=60, size=[
      batch_size, network.image_size, network.image_size, 3]).astype(
          np.float32)  # About what preprocessing gives.
  to_exits = [classifier_ids[:i + 1] for i in range(len(classifier_ids))]
  progress = Progress('stages', len(batch_sizes), 'batch sizes')
  seconds = []  # [batch sizes, exits and the plain network]
  for number, size in enumerate(batch_sizes, 1):
    runs = np.empty([_TIMED_RUNS + 1, len(to_exits) + 1])
    for i, j in np.ndindex(runs.shape):
      start = time.perf_counter()
      session.run_plain(images[:size], (to_exits + [None])[j])
      runs[i, j] = time.perf_counter() - start
    seconds.append(np.median(runs[1:], axis=0) / size)  # The first warms up.
    progress.update(number)
  progress.finish()
  *of_exits, of_plain = np.transpose(seconds).tolist()
  return StageSeconds(
      network=dump_record.shared_fields(network),
      device=devices_lib.describe(devices),
      threads={'inter_op': devices.inter_op_threads,
               'intra_op': devices.intra_op_threads,
               'cores': multiprocessing.cpu_count()},
      versions=versions,
      batch_sizes=batch_sizes,
      seconds_per_image=dict(zip(classifier_ids, of_exits)),
      plain_seconds_per_image=of_plain)
