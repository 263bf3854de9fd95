"""A network with all exits asked for, loaded and run over images, in order.

A session of our own, where `Estimator.predict` would run on one device, restore
from one checkpoint, and hand out classifier after classifier.
"""

import collections

from tf_compat import tf

import resnet_checkpoint
from model_function import ExitOutput


class ExitSession(object):
  """Runs every exit over a dataset, one replica of the network per device.

  A context manager. Each batch is divided among the replicas and put together
  again in its order, also where it does not divide.
  """

  def __init__(self, model, classifier_ids, dataset, weights, replicas,
               session_config):
    """
    Args:
      model: a `resnet_model.Model`.
      classifier_ids: which classifiers.
      dataset: a function that returns the dataset of (images [batch, height,
        width, 3], labels int [batch]) and a dict from the names of its own
        placeholders to these, for `run`.
      weights: `exit_weights.ExitWeights`.
      replicas: device names, such as ['/gpu:0', '/gpu:1'].
      session_config: a `tf.ConfigProto`.
    """
    with tf.Graph().as_default() as graph:
      with tf.device('/cpu:0'):
        images_and_labels, self._placeholders = dataset()
        self._iterator = images_and_labels.make_initializable_iterator()
        images, self._labels = self._iterator.get_next()
        # Here, or they would be divided and joined on the first GPU, and every
        # batch of the others go through its memory.
        images_of_replicas = _divided(images, len(replicas))
      savers = []
      parts = []
      for index, replica_images in enumerate(images_of_replicas):
        with tf.device(replicas[index]), tf.variable_scope(
            'replica_{}'.format(index)) as scope:
          parts.append(collections.OrderedDict(
              (k, ExitOutput.of_logits(logits))
              for k, logits in model.exit_logits(
                  tf.cast(replica_images, model.dtype), classifier_ids,
                  trunk_training=False, head_training=False).items()))
        savers += _savers(scope, weights)
      with tf.device('/cpu:0'):
        self._outputs = _joined(parts, tf.shape(images)[0])
      self._session = tf.Session(graph=graph, config=session_config)
      graph.finalize()
    for saver, checkpoint in savers:
      saver.restore(self._session, checkpoint)

  def run(self, **values):
    """Yields the outputs of each batch.

    Args:
      **values: of the dataset's placeholders.

    Yields:
      `(labels, outputs)`, where `outputs` is an ordered dict from classifier to
      `(probabilities, top5_classes, top5_probabilities)`: float32 [batch,
      classes], int32 [batch, 5] best first, float32 [batch, 5].
    """
    self._session.run(self._iterator.initializer, {
        self._placeholders[name]: value for name, value in values.items()})
    while True:
      try:
        batch = self._session.run((self._labels, self._outputs))
      except tf.errors.OutOfRangeError:
        return
      yield batch

  def __enter__(self):
    return self

  def __exit__(self, exception_type, exception, traceback):
    self._session.close()


def _divided(images, num_replicas):
  """A part of the batch for each replica, all of one size.

  Where the batch does not divide, its last image fills the parts up.
  """
  if num_replicas == 1:
    return [images]
  shape = images.shape.as_list()
  missing = -tf.shape(images)[0] % num_replicas
  filled = tf.concat(
      [images, tf.tile(images[-1:], [missing, 1, 1, 1])], axis=0)
  parts = tf.split(filled, num_replicas)
  for part in parts:
    part.set_shape([None] + shape[1:])
  return parts


def _joined(parts, num_images):
  """The outputs of a whole batch from those of the replicas' parts."""
  return collections.OrderedDict(
      (k, tuple(tf.concat([getattr(part[k], name) for part in parts],
                          axis=0)[:num_images]
                for name in ('probabilities', 'top5_classes',
                             'top5_probabilities')))
      for k in parts[0])


def _savers(scope, weights):
  """`(saver, checkpoint)` for all variables of a replica, by checkpoint."""
  of_checkpoint = collections.OrderedDict()
  for variable in scope.global_variables():
    name = resnet_checkpoint.saved_name(variable)[len(scope.name) + 1:]
    of_checkpoint.setdefault(
        weights.checkpoint_of[name], {})[name] = variable
  return [(tf.train.Saver(variables), checkpoint)
          for checkpoint, variables in of_checkpoint.items()]
