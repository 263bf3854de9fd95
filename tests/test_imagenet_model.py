"""What the official code's own tests ask of it, asked of this project.

After `official/resnet/imagenet_test.py` of October 2018: shapes by tensor
name, the model function with the official parameters and features, and runs
end to end on synthetic data.
"""

import os

import numpy as np
import pytest

import command_line
import imagenet_main
from tf_compat import tf

MODES = tf.estimator.ModeKeys
BATCH_SIZE = 32
LABEL_CLASSES = 1001


@pytest.fixture(autouse=True)
def graph():
  with tf.Graph().as_default() as new_graph:
    yield new_graph


def shape_of(name):
  return tf.get_default_graph().get_tensor_by_name(
      'resnet_model/{}:0'.format(name)).shape.as_list()


@pytest.mark.parametrize('data_format', ['channels_last', 'channels_first'])
@pytest.mark.parametrize('size, version, dtype', [
    (18, 1, tf.float32), (18, 1, tf.float16), (18, 2, tf.float32),
    (18, 2, tf.float16), (50, 1, tf.float32), (50, 2, tf.float32)])
def test_tensor_shapes(size, version, dtype, data_format):
  model = imagenet_main.ImagenetModel(
      resnet_size=size, data_format=data_format, resnet_version=version,
      dtype=dtype)
  # Whatever the dtype, the official test passes float32 images.
  output = model(tf.random_uniform([1, 224, 224, 3]), training=True)

  def map_shape(channels, side):
    return ([1, channels, side, side] if data_format == 'channels_first'
            else [1, side, side, channels])

  expansion = 4 if size >= 50 else 1
  assert shape_of('initial_conv') == map_shape(64, 112)
  assert shape_of('initial_max_pool') == map_shape(64, 56)
  assert shape_of('block_layer1') == map_shape(64 * expansion, 56)
  assert shape_of('block_layer2') == map_shape(128 * expansion, 28)
  assert shape_of('block_layer3') == map_shape(256 * expansion, 14)
  assert shape_of('block_layer4') == map_shape(512 * expansion, 7)
  assert shape_of('final_reduce_mean') == map_shape(512 * expansion, 1)
  assert shape_of('final_dense') == [1, LABEL_CLASSES]
  assert output.shape.as_list() == [1, LABEL_CLASSES]
  assert output.name == 'resnet_model/final_dense:0'


@pytest.mark.parametrize('version', [1, 2])
def test_any_batch_and_class_count(version):
  random = np.random.RandomState(version)
  batch_size, num_classes = random.randint(2, 200, size=2)
  model = imagenet_main.ImagenetModel(
      50, data_format='channels_last', num_classes=num_classes,
      resnet_version=version)
  output = model(tf.random_uniform([batch_size, 224, 224, 3]), training=True)
  assert output.shape.as_list() == [batch_size, num_classes]


def call_model_fn(mode, version=2, dtype=tf.float32, size=18, features=None,
                  labels=None):
  """`imagenet_model_fn` with the official parameters, without the cascade's."""
  tf.train.create_global_step()
  if features is None:
    dataset = imagenet_main.get_synth_input_fn(dtype)(True, '', BATCH_SIZE)
    features, labels = dataset.make_initializable_iterator().get_next()
  return imagenet_main.imagenet_model_fn(features, labels, mode, {
      'dtype': dtype,
      'resnet_size': size,
      'data_format': 'channels_last',
      'batch_size': BATCH_SIZE,
      'resnet_version': version,
      'loss_scale': 128 if dtype == tf.float16 else 1,
      'fine_tune': False,
  })


@pytest.mark.parametrize('size, version, dtype', [
    (18, 1, tf.float32), (18, 1, tf.float16), (18, 2, tf.float32),
    (18, 2, tf.float16), (50, 2, tf.float32)])
@pytest.mark.parametrize('mode', [MODES.TRAIN, MODES.EVAL, MODES.PREDICT])
def test_model_fn(mode, size, version, dtype):
  spec = call_model_fn(mode, version, dtype, size)
  assert spec.mode == mode
  probabilities = spec.predictions['probabilities']
  assert probabilities.shape.as_list() == [BATCH_SIZE, LABEL_CLASSES]
  assert probabilities.dtype == tf.float32
  assert spec.predictions['classes'].shape.as_list() == [BATCH_SIZE]
  assert spec.predictions['classes'].dtype == tf.int64
  if mode == MODES.PREDICT:
    assert spec.loss is None and spec.train_op is None
    exported = spec.export_outputs['predict'].outputs
    assert set(exported) == {'classes', 'probabilities'}
  else:
    assert spec.loss.shape.as_list() == []
    assert spec.loss.dtype == tf.float32
  if mode == MODES.TRAIN:
    assert spec.train_op is not None
  if mode == MODES.EVAL:
    for name in ('accuracy', 'accuracy_top_5'):
      for tensor in spec.eval_metric_ops[name]:
        assert tensor.shape.as_list() == []
        assert tensor.dtype == tf.float32


def test_plain_network_has_no_head():
  call_model_fn(MODES.TRAIN)
  names = [variable.op.name for variable in tf.global_variables()]
  assert not any('cascaded' in name for name in names)
  assert 'resnet_model/dense/kernel/Momentum' in names


def test_features_with_the_label_beside_the_image():
  images = tf.placeholder(tf.float32, [None, 64, 64, 3])
  labels = tf.placeholder(tf.int32, [None])
  spec = call_model_fn(MODES.PREDICT,
                       features={'image': images, 'label': labels})
  assert spec.predictions['labels'] is labels
  assert spec.predictions['top5_classes'].shape.as_list() == [None, 5]
  assert spec.predictions['top5_probabilities'].dtype == tf.float32
  assert 'labels' not in spec.export_outputs['predict'].outputs


def test_labels_of_any_integer_type():
  images = tf.placeholder(tf.float32, [None, 64, 64, 3])
  labels = tf.placeholder(tf.int64, [None])
  spec = call_model_fn(MODES.EVAL, features=images, labels=labels)
  assert spec.loss.shape.as_list() == []


def test_bare_features_bring_no_labels():
  images = tf.placeholder(tf.float32, [None, 64, 64, 3])
  spec = call_model_fn(MODES.PREDICT, features=images)
  assert 'labels' not in spec.predictions


@pytest.mark.parametrize('dtype', [tf.float32, tf.float16])
def test_synthetic_data(dtype):
  """A batch of images centred as preprocessing does, without end."""
  dataset = imagenet_main.get_synth_input_fn(dtype)(
      is_training=True, data_dir='', batch_size=4, num_epochs=1)
  iterator = dataset.make_initializable_iterator()
  features, labels = iterator.get_next()
  assert features.dtype == dtype and labels.dtype == tf.int32
  assert features.shape.as_list() == [4, 224, 224, 3]
  assert labels.shape.as_list() == [4]
  with tf.Session() as session:
    session.run(iterator.initializer)
    batches = [session.run([features, labels]) for _ in range(3)]
  for images, classes in batches:
    assert 20 < images.astype(np.float32).std() < 120
    assert ((0 <= classes) & (classes < LABEL_CLASSES)).all()


@pytest.mark.parametrize('flags', [
    ['-resnet_version', '1', '-batch_size', '4', '-resnet_size', '18',
     '-image_size', '64'],
    ['-resnet_version', '2', '-batch_size', '4'],
], ids=['v1 tiny', 'v2'])
def test_end_to_end_synthetic(flags, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  model_dir = tmp_path / 'model'
  command_line.run(
      '--model_dir', model_dir, '--train_epochs', '1',
      '--epochs_between_evals', '1', '--use_synthetic_data',
      '--max_train_steps', '1', *flags)
  assert (model_dir / 'model.ckpt-1.index').exists()
  # Nothing is dumped, although --is_cascaded is the default.
  assert os.listdir(str(tmp_path)) == ['model']
