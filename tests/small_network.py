"""The small network of many tests: ResNet-18 v2 at 32 pixels, 11 classes."""

import rule_weights

NUM_CLASSES = 11
IMAGE_SIZE = 32

# Names of variables, by part.
HEAD0 = set(rule_weights.head_variables(0, 128, NUM_CLASSES))
TRUNK = set(rule_weights.resnet_variables(18, 2, NUM_CLASSES)) - {
    'global_step'}
DENSE = {'resnet_model/dense/kernel', 'resnet_model/dense/bias'}


def is_average(name):
  """Whether a variable is a moving average of batch normalization."""
  return name.endswith(('/moving_mean', '/moving_variance'))
