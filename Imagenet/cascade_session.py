"""A session with the cascade, the plain network, and each exit alone.

All three have the same weights, as constants, on one device, for images in
memory.
"""

import multiprocessing
import time

import numpy as np

from tf_compat import tf

import cascade_graph
import devices as devices_lib
import shared_cascade_json
import resnet_model
from shared_terminal import Progress
from shared_stage_seconds import StageSeconds

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
      metric: of `shared_results.CONFIDENCE_TERMS`.
      thresholds: float32 [T], or [T, classes] by predicted class.
      image_size: height and width in pixels.
      devices: `devices.Devices` of one replica.
      session_config: a `tf.ConfigProto`.
    """
    self._thresholds = np.asarray(thresholds, np.float32)
    is_per_class = self._thresholds.ndim == 2

    def build_tensors():
      with tf.device(devices.replicas[0]):
        images = tf.placeholder(
            tf.float32, [None, image_size, image_size, 3])
        fed_thresholds = tf.placeholder(tf.float32, [None, None])
        with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
          cascade = cascade_graph.build(
              model, images, classifier_ids, fed_thresholds, metric,
              is_per_class)
          logits = model.exit_logits(
              tf.cast(images, model.dtype), classifier_ids,
              trunk_training=False, head_training=False)
      return [images, fed_thresholds, *cascade[:3], *(
          resnet_model.exit_output(logits[k]).top5_classes
          for k in classifier_ids)]

    graph, tensors = cascade_graph.freeze(build_tensors, weights.checkpoint_of)
    self._images, self._fed_thresholds, *outputs = tensors
    self._cascade = outputs[:3]  # `CascadeOutput` without probabilities.
    # From classifier to what is fetched to run the network as far as there.
    self._top5_classes = dict(zip(classifier_ids, outputs[3:]))
    self._session = tf.Session(graph=graph, config=session_config)

  def run(self, images, thresholds=None):
    """`cascade_graph.CascadeOutput`, arrays, of images that may leave.

    The softmaxes are not fetched: those of ImageNet's validation images take
    200 MB.

    Args:
      images: float32 [batch, height, width, 3], preprocessed.
      thresholds: float32 [batch, T] for each image, in place of the session's.
    """
    if thresholds is None:
      thresholds = self._thresholds
      if thresholds.ndim == 1:
        thresholds = np.tile(thresholds, (len(images), 1))
    return cascade_graph.CascadeOutput(*self._session.run(self._cascade, {
        self._images: images, self._fed_thresholds: thresholds}), None)

  def run_plain(self, images):
    """Top-5 classes int32 [batch, 5] of the network as it is."""
    return self.run_exits(images, [resnet_model.FINAL_CLASSIFIER_ID])

  def run_exits(self, images, classifier_ids):
    """Runs the trunk as far as the last exit, and all heads; nobody leaves.

    Args:
      images: as for `run`.
      classifier_ids: of the exits, ascending.

    Returns:
      The last exit's top-5 classes, int32 [batch, 5].
    """
    return self._session.run([self._top5_classes[k] for k in classifier_ids], {
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
    network: a `shared_cascade_json.Network`.
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
  # To each exit, and the plain network.
  runs = [classifier_ids[:i + 1] for i in range(len(classifier_ids))]
  runs.append(classifier_ids[-1:])
  progress = Progress('stages', len(batch_sizes), 'batch sizes')
  medians = []  # [batch sizes, runs]
  for number, size in enumerate(batch_sizes, 1):
    seconds = np.empty([_TIMED_RUNS + 1, len(runs)])
    for i, j in np.ndindex(seconds.shape):
      start = time.perf_counter()
      session.run_exits(images[:size], runs[j])
      seconds[i, j] = time.perf_counter() - start
    # The first one warms up.
    medians.append(np.median(seconds[1:], axis=0) / size)
    progress.update(number)
  progress.finish()
  *of_exits, of_plain = np.transpose(medians).tolist()
  return StageSeconds(
      network=shared_cascade_json.shared_fields(network),
      device=devices_lib.describe(devices),
      threads={'inter_op': devices.inter_op_threads,
               'intra_op': devices.intra_op_threads,
               'cores': multiprocessing.cpu_count()},
      versions=versions,
      batch_sizes=batch_sizes,
      seconds_per_image=dict(zip(classifier_ids, of_exits)),
      plain_seconds_per_image=of_plain)
