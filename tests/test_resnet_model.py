"""The network: names, shapes and numbers of the trunk and its exits.

Some tests ask what the official code's own tests ask
(`official/resnet/imagenet_test.py`, October 2018): shapes by tensor name, and
the model function with the official parameters and features.
"""

import json
import os

import numpy as np
import pytest

import imagenet_main
import numpy_resnet
import resnet_model
import rule_weights
from imagenet_main import ImagenetModel
from tf_compat import tf

MODES = tf.estimator.ModeKeys
NUM_CLASSES = 11
OFFICIAL_VARIABLES = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), 'data',
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


def load(session, values):
  session.run(tf.global_variables_initializer(), {
      variable.initial_value: values[variable.op.name]
      for variable in tf.global_variables()})


def centred_images(count, image_size):
  return rule_weights.rule_images(count, image_size, image_size) - np.array(
      numpy_resnet.CHANNEL_MEANS)


@pytest.fixture(autouse=True)
def graph():
  with tf.Graph().as_default() as new_graph:
    yield new_graph


# ---- Names and shapes -------------------------------------------------------

@pytest.mark.parametrize('size, version', [
    (18, 1), (50, 1), (18, 2), (34, 2), (101, 2)])
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


def test_variables_are_those_of_the_official_checkpoint():
  with open(OFFICIAL_VARIABLES) as variables_file:
    official = json.load(variables_file)
  assert len(official) == 252
  official.pop('global_step')
  build(50, num_classes=1001)
  assert {name: list(shape) for name, shape in variable_shapes()
          if '/cascaded' not in name} == official


@pytest.mark.parametrize('data_format', ['channels_last', 'channels_first'])
@pytest.mark.parametrize('size, version, dtype', [
    (18, 1, tf.float16), (18, 2, tf.float32), (50, 2, tf.float32)])
def test_official_tensor_names_and_shapes(graph, size, version, dtype,
                                          data_format):
  model = ImagenetModel(resnet_size=size, data_format=data_format,
                        resnet_version=version, dtype=dtype)
  # Whatever the dtype, the official test passes float32 images.
  output = model(tf.random_uniform([1, 224, 224, 3]), training=True)

  def map_shape(channels, side):
    return ([1, channels, side, side] if data_format == 'channels_first'
            else [1, side, side, channels])

  expansion = 4 if size >= 50 else 1
  expected = {
      'initial_conv': map_shape(64, 112),
      'initial_max_pool': map_shape(64, 56),
      'block_layer1': map_shape(64 * expansion, 56),
      'block_layer2': map_shape(128 * expansion, 28),
      'block_layer3': map_shape(256 * expansion, 14),
      'block_layer4': map_shape(512 * expansion, 7),
      'final_reduce_mean': map_shape(512 * expansion, 1),
      'final_dense': [1, 1001]}
  assert expected == {
      name: graph.get_tensor_by_name(f'resnet_model/{name}:0').shape.as_list()
      for name in expected}
  assert output.name == 'resnet_model/final_dense:0'


@pytest.mark.parametrize('size, image_size', [(18, 32), (50, 64), (50, 224)])
def test_heads_pool_their_maps_to_the_grid(size, image_size):
  _, logits = build(size, classifier_ids=[0, 1], image_size=image_size)
  pools = operations('AvgPool')
  expansion = 4 if size >= 50 else 1
  assert [op.outputs[0].shape.as_list() for op in pools] == [
      [None, 2, 2, 128 * expansion], [None, 1, 2, 256 * expansion]]
  for k, channels in ((0, 128 * expansion), (1, 256 * expansion)):
    assert logits[k].shape.as_list() == [None, NUM_CLASSES]
    assert {name: shape for name, shape in variable_shapes()
            if name.startswith(resnet_model.head_prefix(k))} == dict(
                rule_weights.head_variables(k, channels, NUM_CLASSES))
  # Windows without overlap that cover the map.
  side = image_size // 8
  assert [op.get_attr('ksize') for op in pools] == [
      [1, side // 2, side // 2, 1], [1, side // 2, side // 4, 1]]
  for pool in pools:
    assert pool.get_attr('strides') == pool.get_attr('ksize')


@pytest.mark.parametrize('data_format', ['channels_last', 'channels_first'])
def test_heads_flatten_channel_major(data_format):
  """The tensor that is flattened has its channels first, in either format."""
  build(18, classifier_ids=[0, 1], data_format=data_format)
  flattened = [op for op in operations('Reshape') if 'flatten' in op.name]
  assert [op.inputs[0].shape.as_list() for op in flattened] == [
      [None, 128, 2, 2], [None, 256, 1, 2]]


@pytest.mark.parametrize('classifier_ids, deepest', [
    ([0], 2), ([0, 1], 3), ([1], 3), ([0, 2], 4)])
def test_graph_stops_at_the_deepest_exit(graph, classifier_ids, deepest):
  _, logits = build(18, classifier_ids=classifier_ids)
  assert list(logits) == classifier_ids
  names = {op.name for op in graph.get_operations()}
  for number in range(1, 5):
    assert (f'resnet_model/block_layer{number}' in names) == (
        number <= deepest)
  # One trunk for all exits: the first convolution, and in each block layer two
  # blocks of two and a projection.
  needed = set.union(*[ancestors(logits[k]) for k in logits])
  assert len(needed & set(operations('Conv2D'))) == 1 + 5 * deepest
  for k in (0, 1):
    assert any(f'/cascaded{k}_' in name for name in names) == (
        k in classifier_ids)


@pytest.mark.parametrize('name, expected', [
    ('resnet_model/batch_normalization_3/gamma:0', True),
    ('resnet_model/cascaded1_bn1/moving_mean', True),
    ('resnet_model/cascaded0_fc0/kernel:0', False),
    ('resnet_model/dense/bias:0', False),
])
def test_is_batch_norm(name, expected):
  assert resnet_model.is_batch_norm(name) == expected


# ---- Numbers ----------------------------------------------------------------

@pytest.mark.parametrize('size, version', [(18, 1), (18, 2), (50, 1), (50, 2)])
def test_softmaxes_equal_numpy(size, version):
  """float32 against float64: 1e-5 is what the project promises (seen: 1e-6)."""
  images, logits = build(size, version, image_size=64)
  values = rule_weights.rule_variables(
      rule_weights.cascade_variables(size, version, NUM_CLASSES))
  pixels = centred_images(3, 64)
  with tf.Session() as session:
    load(session, values)
    softmaxes = session.run(
        {k: tf.nn.softmax(logits[k]) for k in logits}, {images: pixels})
  expected = numpy_resnet.softmaxes(values, pixels, size, version)
  for k in (0, 1, 2):
    assert np.ptp(expected[k]) > 0.05  # Else any network would do.
    np.testing.assert_allclose(softmaxes[k], expected[k], rtol=0, atol=1e-5)


def test_half_precision_is_near_single():
  softmaxes = {}
  values = rule_weights.rule_variables(
      rule_weights.cascade_variables(18, 2, NUM_CLASSES))
  for dtype in (tf.float32, tf.float16):
    with tf.Graph().as_default(), tf.Session() as session:
      images, logits = build(18, dtype=dtype)
      assert {variable.dtype.base_dtype
              for variable in tf.global_variables()} == {tf.float32}
      assert {op.outputs[0].dtype for op in operations('Conv2D')} == {dtype}
      assert {op.outputs[0].dtype for op in operations('MatMul')} == {dtype}
      load(session, values)
      softmaxes[dtype] = session.run(
          {k: resnet_model.exit_output(logits[k]).probabilities
           for k in logits}, {images: centred_images(2, 32)})
  for k in (0, 1, 2):
    # float16 has 11 bits, a step of 5e-4, and there are 18 layers. A softmax
    # of another network would be off by 0.1 and more.
    np.testing.assert_allclose(
        softmaxes[tf.float16][k], softmaxes[tf.float32][k], atol=0.05)
    assert not np.array_equal(
        softmaxes[tf.float16][k], softmaxes[tf.float32][k])


def test_exit_output():
  logits = np.random.RandomState(0).normal(size=[4, 9]).astype(np.float32)
  with tf.Session() as session:
    output = session.run(resnet_model.exit_output(tf.constant(logits)))
    of_three = session.run(resnet_model.exit_output(tf.constant(logits[:, :3])))
  order = np.argsort(-logits, axis=1)
  np.testing.assert_array_equal(output.top5_classes, order[:, :5])
  np.testing.assert_array_equal(
      output.top5_probabilities,
      np.take_along_axis(output.probabilities, order[:, :5], axis=1))
  assert output.top5_classes.dtype == np.int32
  assert of_three.top5_classes.shape == (4, 3)  # There are no five.


# ---- Batch normalization ----------------------------------------------------

@pytest.mark.parametrize('dtype, tolerance', [
    # float32 has a step of 1e-7 at values below 3, float16 of 2e-3.
    (tf.float32, 1e-4), (tf.float16, 2e-2)])
def test_batch_norm_of_a_vector(dtype, tolerance):
  """Each column normalized, also with channels first: a vector has no space."""
  rows = np.random.RandomState(0).normal(3, 2, [64, 5]).astype(np.float32)
  inputs = tf.placeholder(dtype, [None, 5])
  outputs = resnet_model.batch_norm(
      inputs, True, 'channels_first', decay=0.9, name='bn')
  assert outputs.dtype == dtype
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    normalized, _ = session.run(
        [outputs, tf.get_collection(tf.GraphKeys.UPDATE_OPS)], {inputs: rows})
    mean, variance = session.run(tf.global_variables()[2:])
  expected = (rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-5)
  np.testing.assert_allclose(normalized, expected, atol=tolerance)
  # From 0 and 1, a tenth of the way; sums of 64 rows (float16: rounded rows).
  np.testing.assert_allclose(mean, 0.1 * rows.mean(axis=0), rtol=tolerance)
  np.testing.assert_allclose(
      variance, 0.9 + 0.1 * rows.var(axis=0), rtol=tolerance)


def test_batch_norm_decay_reaches_every_layer():
  images, _ = build(18, training=True, decay=0.)
  updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
  averages = {variable.op.name: variable for variable in tf.global_variables()
              if 'moving_' in variable.op.name}
  assert len(averages) == len(updates) == 2 * (17 + 4)
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    before = session.run(averages)
    for _ in range(2):  # With a decay of 0 the second pass changes nothing.
      session.run(updates, {images: centred_images(6, 32)})
      after = session.run(averages)
  for name in averages:
    assert not np.array_equal(before[name], after[name]), name


def folding_off(monkeypatch):
  monkeypatch.setattr(
      resnet_model, '_folded_into_convolution',
      lambda norm, convolution, epsilon: (
          convolution.outputs[0].consumers()[0].outputs[0]))


# ResNet-18, of 21 convolutions, has a BN right after each in v1 but the first,
# whose output has a name of its own; in v2 between the two of each block.
@pytest.mark.parametrize('version, num_folded', [(1, 20), (2, 8)])
def test_folded_batch_norm_gives_the_same(monkeypatch, version, num_folded):
  values = rule_weights.rule_variables(
      rule_weights.cascade_variables(18, version, NUM_CLASSES))
  softmaxes, num_norms = [], []
  for folds in (True, False):
    if not folds:
      folding_off(monkeypatch)
    with tf.Graph().as_default(), tf.Session() as session:
      images, logits = build(18, version)
      needed = set.union(*[ancestors(logits[k]) for k in logits])
      convolutions = needed & set(operations('Conv2D'))
      assert len(convolutions) == 21
      num_norms.append(sum(
          op.type.startswith('FusedBatchNorm') and
          op.inputs[0].op in convolutions for op in needed))
      load(session, values)
      softmaxes.append(session.run(
          {k: tf.nn.softmax(logits[k]) for k in logits},
          {images: centred_images(3, 32)}))
  assert num_norms == [0, num_folded]
  for k in (0, 1, 2):  # Both are within 1e-5 of the exact ones.
    np.testing.assert_allclose(
        softmaxes[0][k], softmaxes[1][k], rtol=0, atol=2e-5)


@pytest.mark.parametrize('arguments', [
    dict(training=True), dict(dtype=tf.float16)])
def test_where_nothing_is_folded(arguments):
  """Training needs the batch's statistics; half precision, BN in float32."""
  build(18, **arguments)
  assert len(operations('Conv2D')) == 21


@pytest.mark.parametrize('variance', [1., 1e-6])
def test_folding_uses_the_kernels_own_epsilon(monkeypatch, variance):
  """TF raises 1e-5 to 1.001e-5; at small variances that is seen."""
  rng = np.random.RandomState(7)
  inputs = rng.normal(size=[2, 9, 9, 3]).astype(np.float32)
  outputs = []
  for folds in (True, False):
    if not folds:
      folding_off(monkeypatch)
    with tf.Graph().as_default(), tf.Session() as session:
      convolved = resnet_model.conv2d_fixed_padding(
          tf.constant(inputs), 5, 3, 2, 'channels_last')
      normalized = resnet_model.batch_norm(
          convolved, False, 'channels_last', name='bn')
      load(session, {
          'conv2d/kernel': np.random.RandomState(1).normal(size=[3, 3, 3, 5]),
          'bn/gamma': np.arange(-2, 3) + 0.5, 'bn/beta': np.arange(5) / 5,
          'bn/moving_mean': np.arange(5) - 2.,
          'bn/moving_variance': np.full(5, variance)})
      outputs.append(session.run(normalized))
  # Rounding: a few 1e-7 of the largest. The other epsilon is 5e-4 off.
  np.testing.assert_allclose(
      outputs[0], outputs[1], rtol=0, atol=1e-5 * np.abs(outputs[1]).max())


def pooled_relu_gradients(feature_map, gamma, beta, weights, window):
  """Gradients of sum(weights * pool(relu(BN))), in float64.

  Args:
    feature_map: [batch, height, width, channels].
    gamma, beta: [channels].
    weights: [batch, rows, columns, channels], of the pooled map.
    window: (height, width) of the pool.
  """
  axes = (0, 1, 2)
  normalized = (feature_map - feature_map.mean(axis=axes)) / np.sqrt(
      feature_map.var(axis=axes) + 1.001e-5)
  spread = weights.repeat(window[0], axis=1).repeat(window[1], axis=2) / (
      window[0] * window[1])
  spread = spread * (normalized * gamma + beta > 0)
  return (spread * normalized).sum(axis=axes), spread.sum(axis=axes)


@pytest.mark.parametrize('classifier_id', [0, 1])
@pytest.mark.parametrize('batch', [5, 16])
def test_gradients_of_a_head_on_a_fixed_map(classifier_id, batch):
  """They equal those of plain BN, ReLU and pool, without the map's own."""
  rng = np.random.RandomState(0)
  early_exit = resnet_model.EARLY_EXITS[classifier_id]
  values = rng.normal(3, 2, [batch, 4, 6, 8])
  gamma, beta = rng.normal(size=8), rng.normal(size=8)
  gamma[3] = 0
  feature_map = tf.constant(values.astype(np.float32))
  resnet_model.early_head(feature_map, early_exit, 7, True, 'channels_last',
                          map_is_fixed=True)
  # What is flattened, channels first.
  flattened, = [op.inputs[0] for op in operations('Reshape')
                if 'flatten' in op.name]
  weights = rng.normal(size=[batch] + flattened.shape.as_list()[1:])
  loss = tf.reduce_sum(flattened * weights.astype(np.float32))
  variables = [tf.global_variables(early_exit.map_norm + '/' + name)[0]
               for name in ('gamma', 'beta')]
  gradients = tf.gradients(loss, variables)
  assert tf.gradients(loss, [feature_map]) == [None]
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    variables[0].load(gamma.astype(np.float32), session)
    variables[1].load(beta.astype(np.float32), session)
    found = session.run(gradients)
  window = [side // cells for side, cells in zip((4, 6), early_exit.grid)]
  expected = pooled_relu_gradients(
      values, gamma, beta, weights.transpose([0, 2, 3, 1]), window)
  for ours, exact in zip(found, expected):
    # Sums of a few hundred float32 products: some 1e-6 of the largest.
    np.testing.assert_allclose(
        ours, exact, rtol=0, atol=1e-4 * np.abs(exact).max())


# ---- The official functions -------------------------------------------------

@pytest.mark.parametrize('block_fn, filters', [
    (resnet_model._building_block_v1, 32),
    (resnet_model._building_block_v2, 32),
    (resnet_model._bottleneck_block_v1, 8),
    (resnet_model._bottleneck_block_v2, 8)])
def test_blocks_take_the_official_arguments(block_fn, filters):
  inputs = tf.random_uniform([2, 9, 9, 32])
  outputs = block_fn(inputs, filters, True, None, 1, 'channels_last')
  assert outputs.shape.as_list() == [2, 9, 9, 32]
  strided = block_fn(
      inputs=inputs, filters=filters, training=False,
      projection_shortcut=lambda inputs: resnet_model.conv2d_fixed_padding(
          inputs=inputs, filters=32, kernel_size=1, strides=2,
          data_format='channels_last'),
      strides=2, data_format='channels_last')
  assert strided.shape.as_list() == [2, 5, 5, 32]


def test_fixed_padding():
  inputs = np.ones([1, 4, 5, 2], np.float32)
  with tf.Session() as session:
    for data_format, pads in (
        ('channels_last', [(0, 0), (1, 2), (1, 2), (0, 0)]),
        ('channels_first', [(0, 0), (0, 0), (1, 2), (1, 2)])):
      np.testing.assert_array_equal(session.run(resnet_model.fixed_padding(
          tf.constant(inputs), 4, data_format)), np.pad(
              inputs, pads, 'constant'))


@pytest.mark.parametrize('arguments', [
    dict(resnet_size=50, resnet_version=3), dict(resnet_size=51),
    dict(resnet_size=50, dtype=tf.float64)])
def test_networks_that_do_not_exist(arguments):
  with pytest.raises(ValueError):
    ImagenetModel(data_format='channels_last', **arguments)


@pytest.mark.parametrize('num_gpus, expected', [
    (0, 'channels_last'), (2, 'channels_first')])
def test_data_format_suits_the_machine(monkeypatch, num_gpus, expected):
  monkeypatch.setattr(resnet_model, 'num_local_gpus', lambda: num_gpus)
  assert ImagenetModel(50).data_format == expected


def call_model_fn(mode, dtype=tf.float32, features=None, labels=None):
  """`imagenet_model_fn` with the official parameters, without the cascade's."""
  tf.train.create_global_step()
  if features is None:
    dataset = imagenet_main.get_synth_input_fn(dtype)(True, '', 8)
    features, labels = dataset.make_initializable_iterator().get_next()
  return imagenet_main.imagenet_model_fn(features, labels, mode, {
      'dtype': dtype, 'resnet_size': 18, 'data_format': 'channels_last',
      'batch_size': 8, 'resnet_version': 2, 'fine_tune': False,
      'loss_scale': 128 if dtype == tf.float16 else 1})


@pytest.mark.parametrize('dtype', [tf.float32, tf.float16])
@pytest.mark.parametrize('mode', [MODES.TRAIN, MODES.EVAL, MODES.PREDICT])
def test_official_model_fn(mode, dtype):
  spec = call_model_fn(mode, dtype)
  probabilities = spec.predictions['probabilities']
  assert probabilities.shape.as_list() == [8, 1001]
  assert probabilities.dtype == tf.float32
  assert spec.predictions['classes'].dtype == tf.int64
  assert (spec.train_op is not None) == (mode == MODES.TRAIN)
  names = [variable.op.name for variable in tf.global_variables()]
  assert not any('cascaded' in name for name in names)
  if mode == MODES.PREDICT:
    assert spec.loss is None
    assert set(spec.export_outputs['predict'].outputs) == {
        'classes', 'probabilities'}
  else:
    assert spec.loss.shape.as_list() == [] and spec.loss.dtype == tf.float32
  if mode == MODES.EVAL:
    assert {'accuracy', 'accuracy_top_5'} <= set(spec.eval_metric_ops)
  if mode == MODES.TRAIN:
    assert 'resnet_model/dense/kernel/Momentum' in names


def test_features_with_the_label_beside_the_image():
  images = tf.placeholder(tf.float32, [None, 64, 64, 3])
  labels = tf.placeholder(tf.int32, [None])
  spec = call_model_fn(MODES.PREDICT,
                       features={'image': images, 'label': labels})
  assert spec.predictions['labels'] is labels
  assert spec.predictions['top5_classes'].shape.as_list() == [None, 5]
