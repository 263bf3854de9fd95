"""A session with the cascade and, beside it, the plain network.

Both have the same weights, as constants, on one device, for images in memory.
"""

import functools
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

  def __init__(self, cascade, devices):
    """
    Args:
      cascade: a `cascade_graph.Cascade`.
      devices: `devices.Devices` of one replica.
    """
    model, image_size = cascade.model, cascade.network.image_size
    self._thresholds = cascade.thresholds

    def build_tensors():
      with tf.device(devices.replicas[0]):
        images = tf.placeholder(
            tf.float32, [None, image_size, image_size, 3])
        fed_thresholds = tf.placeholder(tf.float32, [None, None])
        with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
          answer = cascade_graph.build(
              model, images, cascade.classifier_ids, fed_thresholds,
              cascade.metric, is_per_class=cascade.thresholds.ndim == 2)
          final = cascade.classifier_ids[-1]
          logits = model.exit_logits(
              tf.cast(images, model.dtype), [final], trunk_training=False,
              head_training=False)[final]
      return [images, fed_thresholds, *answer[:3],
              resnet_model.exit_output(logits).top5_classes]

    # TensorFlow prepares all weights anew for each set of tensors that is
    # fetched: 450 MB for ResNet-50. So there are two, and no more.
    graph, tensors = cascade_graph.freeze(
        build_tensors, cascade.weights.checkpoint_of)
    self._images, self._fed_thresholds, *self._cascade, self._plain = tensors
    config = devices_lib.session_config(devices)
    # It is for training, and copies all weights: 300 MB for ResNet-50.
    rewrites = config.graph_options.rewrite_options
    rewrites.memory_optimization = rewrites.NO_MEM_OPT
    self._session = tf.Session(graph=graph, config=config)

  def run(self, images, thresholds=None):
    """`cascade_graph.CascadeOutput`, arrays, of images that may leave.

    The softmaxes are not fetched: those of ImageNet's validation images take
    200 MB.

    Args:
      images: float32 [batch, height, width, 3], preprocessed.
      thresholds: in place of the cascade's, and of their kind; or float32
        [batch, T], for each image its own, in place of [T].
    """
    if thresholds is None:
      thresholds = self._thresholds
    if self._thresholds.ndim == 1:
      thresholds = np.broadcast_to(
          thresholds, (len(images), len(self._thresholds)))
    return cascade_graph.CascadeOutput(*self._session.run(self._cascade, {
        self._images: images, self._fed_thresholds: thresholds}), None)

  def run_plain(self, images):
    """Top-5 classes int32 [batch, 5] of the network as it is."""
    return self._session.run(self._plain, {self._images: images})

  def run_to(self, images, exit_index):
    """Runs images that all leave at one exit, 0 for the first; nothing else."""
    thresholds = np.full_like(self._thresholds, np.inf)
    thresholds[exit_index:] = -np.inf
    return self.run(images, thresholds)

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._session.close()


def profile_stages(session, cascade, devices, batch_size):
  """Measures what it takes to get to each exit; `StageSeconds`.

  For batches of 1, 2, 4 ... and `batch_size` images that all leave there. The
  runs take turns, so that a machine whose speed drifts slows down all of them.

  Args:
    session: the `CascadeSession` of `cascade`, a `cascade_graph.Cascade`.
    devices: `devices.Devices`.
    batch_size: the largest to measure.
  """
  image_size = cascade.network.image_size
  batch_sizes = sorted({2**i for i in range(batch_size.bit_length())} |
                       {batch_size})
  # About what preprocessing gives.
  images = np.random.RandomState(0).normal(scale=60, size=[
      batch_size, image_size, image_size, 3]).astype(np.float32)
  runs = [functools.partial(session.run_to, exit_index=i)
          for i in range(len(cascade.classifier_ids))]
  runs.append(session.run_plain)
  progress = Progress('stages', len(batch_sizes), 'batch sizes')
  medians = []  # [batch sizes, runs]
  for number, size in enumerate(batch_sizes, 1):
    seconds = np.empty([_TIMED_RUNS + 1, len(runs)])
    for i, j in np.ndindex(seconds.shape):
      start = time.perf_counter()
      runs[j](images[:size])
      seconds[i, j] = time.perf_counter() - start
    # The first one warms up.
    medians.append(np.median(seconds[1:], axis=0) / size)
    progress.update(number)
  progress.finish()
  *of_exits, of_plain = np.transpose(medians).tolist()
  return StageSeconds(
      network=shared_cascade_json.shared_fields(cascade.network),
      device=devices_lib.describe(devices),
      threads={'inter_op': devices.inter_op_threads,
               'intra_op': devices.intra_op_threads,
               'cores': multiprocessing.cpu_count()},
      versions=devices_lib.versions(),
      batch_sizes=batch_sizes,
      seconds_per_image=dict(zip(cascade.classifier_ids, of_exits)),
      plain_seconds_per_image=of_plain)
