"""The small network of many tests: ResNet-18 v2 at 32 pixels, 11 classes."""

import rule_weights
from imagenet_main import ImagenetModel
from tf_compat import tf

NUM_CLASSES = 11
IMAGE_SIZE = 32

# Names of variables, by part.
HEAD0 = set(rule_weights.head_variables(0, 128, NUM_CLASSES))
TRUNK = set(rule_weights.resnet_variables(18, 2, NUM_CLASSES)) - {
    'global_step'}
DENSE = {'resnet_model/dense/kernel', 'resnet_model/dense/bias'}


def model(dtype=tf.float32, batch_norm_decay=0.997):
  return ImagenetModel(18, 'channels_last', NUM_CLASSES, 2, dtype,
                       batch_norm_decay)


def params(dtype=tf.float32, **changed):
  """What `imagenet_model_fn` takes: the official parameters and a model."""
  return dict({
      'dtype': dtype, 'resnet_size': 18, 'data_format': 'channels_last',
      'batch_size': 256, 'resnet_version': 2, 'loss_scale': 1,
      'fine_tune': False, 'model': model(dtype)}, **changed)


def is_average(name):
  """Whether a variable is a moving average of batch normalization."""
  return name.endswith(('/moving_mean', '/moving_variance'))
