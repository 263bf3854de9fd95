"""The network: names, shapes and numbers of the trunk and its exits."""

import json
import os

import numpy as np
import pytest

import numpy_resnet
import resnet_model
import rule_weights
from imagenet_main import ImagenetModel
from tf_compat import tf

NUM_CLASSES = 11
SHARED_VARIABLES = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), '..', '..', 'shared',
    'official_resnet50_v2_variables.json')


def build(size, version=2, classifier_ids=(0, 1, 2), image_size=32,
          data_format='channels_last', num_classes=NUM_CLASSES, batch=None,
          dtype=tf.float32, training=False, decay=0.997):
  """Builds the exits in the default graph; (images, logits by classifier)."""
  model = ImagenetModel(size, data_format, num_classes, version, dtype,
                        batch_norm_decay=decay)
  images = tf.placeholder(dtype, [batch, image_size, image_size, 3])
  return images, model.exit_logits(images, list(classifier_ids), training,
                                   training)


def variable_shapes():
  """Names, in order of creation, and shapes in the default graph."""
  return [(variable.op.name, tuple(variable.shape.as_list()))
          for variable in tf.global_variables()]


def operations(op_type):
  return [op for op in tf.get_default_graph().get_operations()
          if op.type == op_type]


def ancestors(tensor):
  """All operations that a tensor depends on."""
  found, waiting = set(), [tensor.op]
  while waiting:
    op = waiting.pop()
    if op not in found:
      found.add(op)
      waiting.extend(tensor.op for tensor in op.inputs)
  return found


@pytest.fixture(autouse=True)
def graph():
  with tf.Graph().as_default() as new_graph:
    yield new_graph


@pytest.fixture(scope='module')
def resnet50_at_224():
  """ResNet-50 v2 with all exits, for one image of ImageNet."""
  with tf.Graph().as_default() as new_graph:
    _, logits = build(50, image_size=224, num_classes=1001, batch=1)
  return new_graph, logits


@pytest.mark.parametrize('size, version', [
    (18, 1), (34, 1), (50, 1), (200, 1),
    (18, 2), (34, 2), (50, 2), (101, 2), (152, 2), (200, 2)])
def test_variables_are_those_of_the_rule(size, version):
  build(size, version)
  by_rule = rule_weights.cascade_variables(size, version, NUM_CLASSES)
  del by_rule['global_step']
  built = variable_shapes()
  assert dict(built) == dict(by_rule)
  assert len(built) == len(by_rule)
  # The order of creation is what numbers the layers.
  trunk = [name for name, _ in built if '/cascaded' not in name]
  assert trunk == [name for name in by_rule if '/cascaded' not in name]


@pytest.mark.skipif(not os.path.exists(SHARED_VARIABLES),
                    reason='the list of the official checkpoint is not here')
def test_variables_are_those_of_the_official_checkpoint(resnet50_at_224):
  with open(SHARED_VARIABLES) as variables_file:
    official = json.load(variables_file)
  assert len(official) == 252
  official.pop('global_step')
  with resnet50_at_224[0].as_default():
    built = variable_shapes()
  assert {name: list(shape) for name, shape in built
          if '/cascaded' not in name} == official


@pytest.mark.parametrize('image_size', [32, 64, 224])
@pytest.mark.parametrize('size', [18, 50])
def test_heads_pool_their_maps_to_the_grid(size, image_size):
  images, logits = build(size, classifier_ids=[0, 1], image_size=image_size)
  pools = [op.outputs[0] for op in operations('AvgPool')]
  expansion = 4 if size >= 50 else 1
  assert [pool.shape.as_list() for pool in pools] == [
      [None, 2, 2, 128 * expansion], [None, 1, 2, 256 * expansion]]
  for k, channels in ((0, 128 * expansion), (1, 256 * expansion)):
    assert logits[k].shape.as_list() == [None, NUM_CLASSES]
    head = {name: shape for name, shape in variable_shapes()
            if '/cascaded{}_'.format(k) in name}
    assert head == dict(
        rule_weights.head_variables(k, channels, NUM_CLASSES))
  # Windows without overlap that cover the map.
  side = image_size // 8
  assert operations('AvgPool')[0].get_attr('ksize') == [
      1, side // 2, side // 2, 1]
  assert operations('AvgPool')[1].get_attr('ksize') == [
      1, side // 2, side // 4, 1]
  for pool in operations('AvgPool'):
    assert pool.get_attr('strides') == pool.get_attr('ksize')


@pytest.mark.parametrize('data_format', ['channels_last', 'channels_first'])
def test_heads_flatten_channel_major(data_format):
  """The tensor that is flattened has its channels first, in either format."""
  images, _ = build(18, classifier_ids=[0, 1], data_format=data_format)
  flattened = [op for op in operations('Reshape') if 'flatten' in op.name]
  assert [op.inputs[0].shape.as_list() for op in flattened] == [
      [None, 128, 2, 2], [None, 256, 1, 2]]
  assert [op.outputs[0].shape.as_list() for op in flattened] == [
      [None, 512], [None, 512]]


@pytest.mark.parametrize('classifier_ids, deepest', [
    ([0], 2), ([1], 3), ([0, 1], 3), ([2], 4), ([0, 2], 4)])
def test_graph_stops_at_the_deepest_exit(graph, classifier_ids, deepest):
  _, logits = build(18, classifier_ids=classifier_ids)
  assert list(logits) == classifier_ids
  names = {op.name for op in graph.get_operations()}
  for number in range(1, 5):
    assert ('resnet_model/block_layer{}'.format(number) in names) == (
        number <= deepest)
  # One first convolution, and in each block layer two blocks of two and a
  # projection.
  needed = set.union(*[ancestors(logits[k]) for k in logits])
  assert len(needed & set(operations('Conv2D'))) == 1 + 5 * deepest
  assert ('resnet_model/final_dense' in names) == (2 in classifier_ids)
  for k in (0, 1):
    assert any('/cascaded{}_'.format(k) in name for name in names) == (
        k in classifier_ids)


def test_exits_share_one_trunk(resnet50_at_224):
  new_graph, logits = resnet50_at_224
  with new_graph.as_default():
    convolutions = operations('Conv2D')
  # Without those that BN has been folded into.
  needed = set.union(*[ancestors(logits[k]) for k in logits])
  convolutions = needed & set(convolutions)
  assert len(convolutions) == 53
  assert convolutions <= ancestors(logits[2])


@pytest.mark.parametrize('size, version', [(18, 1), (18, 2), (50, 1), (50, 2)])
def test_softmaxes_equal_numpy(size, version):
  images, logits = build(size, version, image_size=64)
  values = rule_weights.rule_variables(
      rule_weights.cascade_variables(size, version, NUM_CLASSES))
  pixels = rule_weights.rule_images(2, 64, 64) - np.array(
      numpy_resnet.CHANNEL_MEANS)
  with tf.Session() as session:
    session.run(tf.global_variables_initializer(), {
        variable.initial_value: values[variable.op.name]
        for variable in tf.global_variables()})
    softmaxes = session.run(
        {k: tf.nn.softmax(logits[k]) for k in logits}, {images: pixels})
  expected = numpy_resnet.softmaxes(values, pixels, size, version)
  for k in (0, 1, 2):
    assert np.ptp(expected[k]) > 0.05  # Else any network would do.
    np.testing.assert_allclose(softmaxes[k], expected[k], atol=1e-5)


def test_half_precision_is_near_single():
  softmaxes = {}
  values = rule_weights.rule_variables(
      rule_weights.cascade_variables(18, 2, NUM_CLASSES))
  pixels = rule_weights.rule_images(2, 32, 32) - np.array(
      numpy_resnet.CHANNEL_MEANS)
  for dtype in (tf.float32, tf.float16):
    with tf.Graph().as_default(), tf.Session() as session:
      images, logits = build(18, dtype=dtype)
      assert {variable.dtype.base_dtype
              for variable in tf.global_variables()} == {tf.float32}
      assert {logits[k].dtype for k in logits} == {dtype}
      session.run(tf.global_variables_initializer(), {
          variable.initial_value: values[variable.op.name]
          for variable in tf.global_variables()})
      softmaxes[dtype] = session.run(
          {k: tf.nn.softmax(tf.to_float(logits[k])) for k in logits},
          {images: pixels})
  for k in (0, 1, 2):
    difference = np.abs(
        softmaxes[tf.float32][k] - softmaxes[tf.float16][k]).max()
    assert 1e-6 < difference < 0.03


def test_half_precision_convolves_in_half():
  build(18, dtype=tf.float16, training=True)
  assert {op.outputs[0].dtype for op in operations('Conv2D')} == {tf.float16}
  assert {op.outputs[0].dtype for op in operations('MatMul')} == {tf.float16}


@pytest.mark.parametrize('data_format', ['channels_first', 'channels_last'])
@pytest.mark.parametrize('dtype', [tf.float16, tf.float32])
def test_batch_norm_of_a_vector(data_format, dtype):
  """Each column normalised, in either format: a vector has no space."""
  rows = np.random.RandomState(0).normal(3, 2, [64, 5]).astype(np.float32)
  inputs = tf.placeholder(dtype, [None, 5])
  outputs = resnet_model.batch_norm(inputs, True, data_format, name='bn')
  assert outputs.dtype == dtype
  assert variable_shapes() == [('bn/' + name, (5,)) for name in (
      'gamma', 'beta', 'moving_mean', 'moving_variance')]
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    normalised = session.run(outputs, {inputs: rows})
  expected = (rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-5)
  np.testing.assert_allclose(
      normalised, expected, atol=1e-5 if dtype == tf.float32 else 1e-2)


def test_batch_norm_refuses_other_ranks():
  with pytest.raises(AssertionError):
    resnet_model.batch_norm(tf.zeros([2, 3, 4]), False, 'channels_last')


@pytest.mark.parametrize('decay', [0., 0.9, 1.])
def test_batch_norm_decay_reaches_every_layer(decay):
  images, logits = build(18, training=True, decay=decay)
  updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
  averages = {variable.op.name: variable for variable in tf.global_variables()
              if 'moving_' in variable.op.name}
  assert len(averages) == len(updates) == 2 * (17 + 4)
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    before = session.run(averages)
    session.run(updates, {
        images: np.random.RandomState(1).normal(0, 60, [6, 32, 32, 3])})
    after = session.run(averages)
    first_map = session.graph.get_tensor_by_name(
        'resnet_model/initial_max_pool:0')
  for name in averages:
    changed = not np.array_equal(before[name], after[name])
    assert changed == (decay < 1), name
  assert first_map.shape.as_list() == [None, 8, 8, 64]


def test_batch_norm_decay_weighs_old_against_new():
  rows = np.random.RandomState(0).normal(3, 2, [64, 5]).astype(np.float32)
  resnet_model.batch_norm(tf.constant(rows), True, 'channels_last', decay=0.9,
                          name='bn')
  mean, variance = tf.global_variables()[2:]
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    session.run(tf.get_collection(tf.GraphKeys.UPDATE_OPS))
    np.testing.assert_allclose(
        session.run(mean), 0.1 * rows.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(
        session.run(variance), 0.9 + 0.1 * rows.var(axis=0), rtol=0.01)


@pytest.mark.parametrize('arguments', [
    dict(resnet_size=50, resnet_version=3),
    dict(resnet_size=50, resnet_version='2'),
    dict(resnet_size=51),
    dict(resnet_size='50'),
    dict(resnet_size=50, dtype=tf.float64),
])
def test_networks_that_do_not_exist(arguments):
  with pytest.raises(ValueError):
    ImagenetModel(data_format='channels_last', **arguments)


def test_exits_that_do_not_exist():
  model = ImagenetModel(18, 'channels_last')
  images = tf.zeros([1, 32, 32, 3])
  for classifier_ids in ([3], [0, 3], []):
    with pytest.raises(AssertionError):
      model.exit_logits(images, classifier_ids, False, False)


def test_images_must_have_four_axes():
  with pytest.raises(ValueError):
    ImagenetModel(18, 'channels_last')(tf.zeros([32, 32, 3]), False)


@pytest.mark.parametrize('num_gpus, expected', [
    (0, 'channels_last'), (2, 'channels_first')])
def test_data_format_suits_the_machine(monkeypatch, num_gpus, expected):
  monkeypatch.setattr(resnet_model, 'num_local_gpus', lambda: num_gpus)
  assert ImagenetModel(50).data_format == expected


@pytest.mark.parametrize('block_fn, filters, channels_out', [
    (resnet_model._building_block_v1, 16, 16),
    (resnet_model._building_block_v2, 16, 16),
    (resnet_model._bottleneck_block_v1, 8, 32),
    (resnet_model._bottleneck_block_v2, 8, 32),
])
def test_blocks_take_the_official_arguments(block_fn, filters, channels_out):
  inputs = tf.random_uniform([2, 9, 9, channels_out])
  outputs = block_fn(inputs, filters, True, None, 1, 'channels_last')
  assert outputs.shape.as_list() == [2, 9, 9, channels_out]

  def projection_shortcut(inputs):
    return resnet_model.conv2d_fixed_padding(
        inputs=inputs, filters=channels_out, kernel_size=1, strides=2,
        data_format='channels_last')

  strided = block_fn(
      inputs=inputs, filters=filters, training=False,
      projection_shortcut=projection_shortcut, strides=2,
      data_format='channels_last')
  assert strided.shape.as_list() == [2, 5, 5, channels_out]


def test_block_layer_takes_a_block_of_the_official_arguments():
  calls = []

  def block_fn(inputs, filters, training, projection_shortcut, strides,
               data_format):
    calls.append((filters, training, projection_shortcut is None, strides,
                  data_format))
    return inputs

  inputs = tf.zeros([1, 8, 8, 4])
  outputs = resnet_model.block_layer(
      inputs, 16, True, block_fn, 3, 2, True, 'some_layer', 'channels_last')
  assert outputs.name == 'some_layer:0'
  assert calls == [(16, True, False, 2, 'channels_last')] + 2 * [
      (16, True, True, 1, 'channels_last')]


@pytest.mark.parametrize('kernel_size, before, after', [(1, 0, 0), (3, 1, 1),
                                                        (4, 1, 2), (7, 3, 3)])
def test_fixed_padding(kernel_size, before, after):
  inputs = np.ones([1, 4, 5, 2], np.float32)
  both_sides = (before, after)
  with tf.Session() as session:
    padded = session.run(resnet_model.fixed_padding(
        tf.constant(inputs), kernel_size, 'channels_last'))
    np.testing.assert_array_equal(padded, np.pad(
        inputs, [(0, 0), both_sides, both_sides, (0, 0)], 'constant'))
    padded = session.run(resnet_model.fixed_padding(
        tf.constant(inputs), kernel_size, 'channels_first'))
    np.testing.assert_array_equal(padded, np.pad(
        inputs, [(0, 0), (0, 0), both_sides, both_sides], 'constant'))


@pytest.mark.parametrize('name, expected', [
    ('resnet_model/batch_normalization_3/gamma:0', True),
    ('resnet_model/batch_normalization/moving_variance', True),
    ('resnet_model/cascaded0_bn00/beta:0', True),
    ('resnet_model/cascaded1_bn1/moving_mean', True),
    ('resnet_model/cascaded0_fc0/kernel:0', False),
    ('resnet_model/dense/bias:0', False),
    ('resnet_model/conv2d_7/kernel:0', False),
])
def test_is_batch_norm(name, expected):
  assert resnet_model.is_batch_norm(name) == expected


def test_head_prefixes_tell_the_classifiers_apart():
  build(18)
  names = [name for name, _ in variable_shapes()]
  by_classifier = {
      k: [name for name in names
          if name.startswith(resnet_model.head_prefix(k))] for k in (0, 1, 2)}
  assert [len(by_classifier[k]) for k in (0, 1, 2)] == [12, 12, 2]
  assert all('/cascaded0_' in name for name in by_classifier[0])
  assert all('/cascaded1_' in name for name in by_classifier[1])
  assert by_classifier[2] == ['resnet_model/dense/kernel',
                              'resnet_model/dense/bias']
