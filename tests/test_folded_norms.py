"""BN in inference form, folded into the convolution that it follows."""

import numpy as np
import pytest

import numpy_resnet
import resnet_model
import rule_weights
from imagenet_main import ImagenetModel
from network_cost import _ancestors
from small_network import IMAGE_SIZE, NUM_CLASSES
from tf_compat import tf

# ResNet-18, of 21 convolutions, has a BN right after each in v1 but the first,
# whose output has a name of its own; in v2 between the two of each block.
NUM_FOLDED = {1: 20, 2: 8}


def build(version, training=False, dtype=tf.float32,
          data_format='channels_last', folds=True):
  """Builds all exits in the default graph; (images, softmaxes as a list)."""
  fold = resnet_model._folded_into_convolution
  if not folds:
    resnet_model._folded_into_convolution = lambda norm, convolution: (
        convolution.outputs[0].consumers()[0].outputs[0])
  try:
    images = tf.placeholder(dtype, [None, IMAGE_SIZE, IMAGE_SIZE, 3])
    logits = ImagenetModel(18, data_format, NUM_CLASSES, version, dtype)\
        .exit_logits(images, [0, 1, 2], training, training)
    return images, [tf.nn.softmax(tf.cast(logits[k], tf.float32))
                    for k in (0, 1, 2)]
  finally:
    resnet_model._folded_into_convolution = fold


def what_is_run(outputs):
  """Of the operations that `outputs` need: convolutions, and BN of maps that
  come right out of one."""
  ops = _ancestors(tf.concat(outputs, axis=1).op)
  convolutions = {op for op in ops if op.type == 'Conv2D'}
  return convolutions, {op for op in ops if op.type.startswith('FusedBatchNorm')
                        and op.inputs[0].op in convolutions}


@pytest.mark.parametrize('version', [1, 2])
def test_the_same_softmaxes(version):
  images = (rule_weights.rule_images(3, IMAGE_SIZE, IMAGE_SIZE) -
            np.array(numpy_resnet.CHANNEL_MEANS)).astype(np.float32)
  values = rule_weights.rule_variables(
      rule_weights.cascade_variables(18, version, NUM_CLASSES))
  softmaxes, num_norms = {}, {}
  for folds in (False, True):
    with tf.Graph().as_default(), tf.Session() as session:
      placeholder, outputs = build(version, folds=folds)
      convolutions, norms = what_is_run(outputs)
      assert len(convolutions) == 21
      num_norms[folds] = len(norms)
      variables = tf.global_variables()
      session.run(tf.global_variables_initializer(), {
          variable.initial_value: values[variable.op.name]
          for variable in variables})
      softmaxes[folds] = session.run(outputs, {placeholder: images})
  assert num_norms == {False: NUM_FOLDED[version], True: 0}
  for folded, apart in zip(softmaxes[True], softmaxes[False]):
    np.testing.assert_allclose(folded, apart, rtol=0, atol=5e-6)  # Rounding.
    assert np.abs(apart[0] - apart[1]).max() > 1e-3


@pytest.mark.parametrize('version', [1, 2])
def test_the_replaced_operations_stay_and_are_not_run(version):
  """In either data format; a CPU cannot run channels_first."""
  for data_format in ('channels_last', 'channels_first'):
    with tf.Graph().as_default() as graph:
      _, outputs = build(version, data_format=data_format)
      run, norms = what_is_run(outputs)
      assert len(run) == 21 and not norms
      convolutions = [op for op in graph.get_operations()
                      if op.type == 'Conv2D']
      assert len(convolutions) == 21 + NUM_FOLDED[version]
      assert [output.shape.as_list() for output in outputs] == (
          [[None, NUM_CLASSES]] * 3)
      for op in set(convolutions) - run:
        consumer, = op.outputs[0].consumers()
        assert consumer.type.startswith('FusedBatchNorm')
        assert not any(output.consumers() for output in consumer.outputs)
      for op in convolutions:
        assert op.get_attr('data_format') == (
            b'NHWC' if data_format == 'channels_last' else b'NCHW')


@pytest.mark.parametrize('arguments', [
    dict(training=True), dict(dtype=tf.float16)])
def test_where_nothing_is_folded(arguments):
  """Training needs the batch's statistics; half precision, BN in float32."""
  with tf.Graph().as_default() as graph:
    _, outputs = build(2, **arguments)
    convolutions, norms = what_is_run(outputs)
    assert len(norms) == NUM_FOLDED[2]
    assert len(convolutions) == 21 == sum(
        op.type == 'Conv2D' for op in graph.get_operations())


@pytest.mark.parametrize('layer', ['convolution', 'dense'])
def test_one_layer_by_hand(layer):
  """A strided convolution; a vector, which has no kernel to fold into."""
  rng = np.random.RandomState(7)
  inputs = rng.normal(size=[2, 9, 9, 3]).astype(np.float32)
  statistics = {'gamma': rng.normal(size=5), 'beta': rng.normal(size=5),
                'moving_mean': rng.normal(size=5),
                'moving_variance': rng.uniform(0.2, 3, size=5)}
  with tf.Graph().as_default(), tf.Session() as session:
    if layer == 'dense':
      before = tf.layers.dense(
          tf.constant(inputs.reshape([2, -1])), 5, use_bias=False)
    else:
      before = resnet_model.conv2d_fixed_padding(
          tf.constant(inputs), 5, 3, 2, 'channels_last')
    after = resnet_model.batch_norm(before, False, 'channels_last', name='bn')
    assert (before.op in _ancestors(after.op)) == (layer == 'dense')
    session.run(tf.global_variables_initializer(), {
        variable.initial_value: statistics[variable.op.name.split('/')[1]]
        for variable in tf.global_variables('bn/')})
    before, after = session.run([before, after])
  np.testing.assert_allclose(after, (
      before - statistics['moving_mean']) / np.sqrt(
          statistics['moving_variance'] + 1e-5) * statistics['gamma'] +
                             statistics['beta'], rtol=1e-4, atol=1e-5)
