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


def test_variables_are_those_of_the_official_checkpoint():
  with open(OFFICIAL_VARIABLES) as variables_file:
    official = json.load(variables_file)
  assert len(official) == 252
  official.pop('global_step')
  build(50, num_classes=1001)
  assert {variable.op.name: variable.shape.as_list()
          for variable in tf.global_variables()
          if '/cascaded' not in variable.op.name} == official


@pytest.mark.parametrize('size, version, dtype, data_format', [
    (18, 1, tf.float16, 'channels_last'),
    (50, 2, tf.float32, 'channels_first')])
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


# ---- The official function --------------------------------------------------


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


@pytest.mark.parametrize('mode, dtype', [
    (MODES.TRAIN, tf.float32), (MODES.TRAIN, tf.float16),
    (MODES.EVAL, tf.float32), (MODES.PREDICT, tf.float16)])
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
