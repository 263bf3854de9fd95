"""The cascade as a graph: who leaves where, and with which softmax."""

import re

import numpy as np
import pytest

import cascade_graph
import rule_weights
from imagenet_main import ImagenetModel
from numpy_resnet import CHANNEL_MEANS
from small_network import IMAGE_SIZE, NUM_CLASSES
from tf_compat import tf

NUM_IMAGES = 9


class _Network:
  """The small network: each exit alone, and the cascade over them."""

  def __init__(self, classifier_ids=(0, 1, 2), metric='top1',
               nan_variable=None):
    self.classifier_ids = list(classifier_ids)
    weights = rule_weights.rule_variables(
        rule_weights.cascade_variables(18, 2, NUM_CLASSES))
    if nan_variable:
      weights[nan_variable][:] = np.nan
    self.images = rule_weights.rule_images(
        NUM_IMAGES, IMAGE_SIZE, IMAGE_SIZE) - np.array(
            CHANNEL_MEANS, np.float32)
    model = ImagenetModel(18, 'channels_last', NUM_CLASSES, 2)
    with tf.Graph().as_default() as graph:
      self._images = tf.placeholder(
          tf.float32, [None, IMAGE_SIZE, IMAGE_SIZE, 3])
      self._thresholds = tf.placeholder(tf.float32, [None, None])
      with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        self._cascade = cascade_graph.build(
            model, self._images, self.classifier_ids, self._thresholds, metric,
            False)
        logits = model.exit_logits(
            self._images, self.classifier_ids, False, False)
      self._session = tf.Session(graph=graph)
      self._session.run(tf.global_variables_initializer(), {
          variable.initial_value: weights[variable.op.name]
          for variable in tf.global_variables()})
    # float32 [exits, images, classes]
    self.softmaxes = np.stack([
        self._session.run(tf.nn.softmax(logits[k]),
                          {self._images: self.images})
        for k in self.classifier_ids])
    best = -np.sort(-self.softmaxes, axis=2)
    self.confidences = best[:, :, :{'top1': 1, 'top5': 5}[metric]].sum(
        axis=2, dtype=np.float64).astype(np.float32)  # [exits, images]

  def run(self, thresholds):
    return self._session.run(self._cascade, {
        self._images: self.images,
        self._thresholds: np.asarray(thresholds, np.float32)})

  def check(self, output, thresholds):
    """Compares with the exits alone, image by image."""
    assert len(output.exits) == len(thresholds)
    for image, of_image in enumerate(thresholds):
      exit_index = len(self.classifier_ids) - 1
      for index, threshold in reversed(list(enumerate(of_image))):
        if self.confidences[index, image] >= threshold:
          exit_index = index
      softmax = self.softmaxes[exit_index, image]
      assert output.exits[image] == self.classifier_ids[exit_index]
      np.testing.assert_allclose(
          output.probabilities[image], softmax, atol=1e-6)
      np.testing.assert_allclose(
          output.confidences[image], self.confidences[exit_index, image],
          atol=1e-6)
      assert list(output.top5_classes[image]) == list(
          np.argsort(-softmax, kind='mergesort')[:5])


@pytest.fixture(name='network', scope='module')
def _network():
  return _Network()


def _between(values, number):
  """A threshold that `number` of the values reach, and none is near."""
  ordered = np.sort(values)[::-1]
  return (ordered[number - 1] + ordered[number]) / 2


@pytest.mark.parametrize('classifier_ids, metric', [
    ((0, 1, 2), 'top5'), ((0, 2), 'top1'), ((1, 2), 'top1')])
def test_who_leaves_where(classifier_ids, metric):
  network = _Network(classifier_ids, metric)
  thresholds = np.tile([_between(of_exit, 4)
                        for of_exit in network.confidences[:-1]],
                       (NUM_IMAGES, 1))
  output = network.run(thresholds)
  assert len(set(output.exits)) == len(classifier_ids)
  network.check(output, thresholds)


def test_thresholds_of_each_image(network):
  thresholds = np.full([NUM_IMAGES, 2], np.inf)
  thresholds[[1, 4], 0] = 0
  thresholds[[0, 4, 8], 1] = 0
  output = network.run(thresholds)
  assert list(output.exits) == [1, 0, 2, 2, 0, 2, 2, 2, 1]
  network.check(output, thresholds)


def test_nan_never_leaves():
  network = _Network(nan_variable='resnet_model/cascaded0_fc00/bias')
  assert np.isnan(network.confidences[0]).all()
  assert set(network.run(np.zeros([NUM_IMAGES, 2])).exits) == {1}


def test_nothing_is_computed_for_nobody(network):
  """The trace of a run names what it has run."""
  metadata = tf.RunMetadata()
  session, feeds = network._session, {  # pylint: disable=protected-access
      network._images: network.images,
      network._thresholds: np.zeros([NUM_IMAGES, 2])}
  session.run(network._cascade.exits, feeds, tf.RunOptions(
      trace_level=tf.RunOptions.FULL_TRACE), metadata)
  num_convolutions = sum(
      bool(re.search(r' = \w*Conv2D\(', node.timeline_label))
      for device in metadata.step_stats.dev_stats
      for node in device.node_stats)
  # The first layer, and of 4 of the 8 blocks two convolutions each, with the
  # shortcuts of two block layers.
  assert num_convolutions == 1 + 4 * 2 + 2
