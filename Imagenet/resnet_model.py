"""ResNet v1 and v2 with early exits.

The trunk is the official ResNet (TensorFlow models, October 2018), from
  He et al., "Deep Residual Learning for Image Recognition", 2015 (v1), and
  He et al., "Identity Mappings in Deep Residual Networks", 2016 (v2),
with its variable names, so that the official checkpoints restore. The heads
are those of Berestizshevsky & Even, "Cascaded Inference Based on Softmax
Confidence", 2019, section 4.

The exits cut the trunk into stages. Classifier k answers from the map that
stage k ends with:

  image -> stage 0 -> stage 1 -> stage 2
              |          |          |
            head 0     head 1     head 2 (the network's own last layer)

To change an exit, change its row in EARLY_EXITS.
"""

import collections
import functools
import typing
import zlib

from tf_compat import num_local_gpus, tf

# Blocks in each block layer; from 50 on they are bottlenecks.
BLOCK_SIZES = {
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
    200: [3, 24, 36, 3],
}

# The last block layer halves the image for the fifth time.
IMAGE_SIZE_DIVISOR = 32


class EarlyExit(typing.NamedTuple):
  """Where an early exit is and what its layers are called in checkpoints."""
  block_layer: int                # Its map is the output of this block layer,
  grid: typing.Tuple[int, int]    # pooled to so many rows and columns.
  map_norm: str                   # BN of the map.
  hidden: str                     # The hidden dense layer.
  hidden_norm: str                # Its BN.
  classifier: str                 # Dense to classes.


EARLY_EXITS = {
    0: EarlyExit(2, (2, 2), 'cascaded0_bn0', 'cascaded0_fc0',
                 'cascaded0_bn00', 'cascaded0_fc00'),
    1: EarlyExit(3, (1, 2), 'cascaded1_bn1', 'cascaded1_fc1',
                 'cascaded1_bn11', 'cascaded1_fc11'),
}
HEAD_HIDDEN_UNITS = 1024

# The network's own classifier comes after the last block layer.
FINAL_CLASSIFIER_ID = 2
CLASSIFIER_IDS = tuple(sorted(EARLY_EXITS)) + (FINAL_CLASSIFIER_ID,)

BATCH_NORM_DECAY = 0.997
BATCH_NORM_EPSILON = 1e-5
DEFAULT_VERSION = 2
DEFAULT_DTYPE = tf.float32
CASTABLE_TYPES = (tf.float16,)

MODEL_SCOPE = 'resnet_model'
FINAL_CLASSIFIER_LAYER = 'dense'


def head_prefix(classifier_id):
  """What the names of a head's variables start with."""
  if classifier_id == FINAL_CLASSIFIER_ID:
    return f'{MODEL_SCOPE}/{FINAL_CLASSIFIER_LAYER}/'
  return f'{MODEL_SCOPE}/cascaded{classifier_id}_'


def is_batch_norm(variable_name):
  """Whether a variable belongs to a batch normalization, by its last part.

  The layer's name would not do: the heads' are called `bn`, the trunk's
  `batch_normalization`. The published code looks for the latter, and so puts
  weight decay on the heads' BN.
  """
  return variable_name.split(':')[0].endswith(
      ('/gamma', '/beta', '/moving_mean', '/moving_variance'))


def value_name(name, classifier_id, classifier_ids):
  """Name of a classifier's tensor or metric among those of a run.

  A run of one classifier has the official names, such as 'accuracy'; in a run
  of several it is 'accuracy_clf0'.
  """
  return name if len(classifier_ids) == 1 else f'{name}_clf{classifier_id}'


class ExitOutput(typing.NamedTuple):
  """What one classifier answers, in float32 whatever it is computed in."""
  logits: tf.Tensor              # float32 [batch, classes]
  probabilities: tf.Tensor       # float32 [batch, classes], the softmax
  top5_classes: tf.Tensor        # int32 [batch, 5], best first
  top5_probabilities: tf.Tensor  # float32 [batch, 5]


def exit_output(logits, name=None):
  """`ExitOutput` of logits [batch, classes]; `name` is the softmax's."""
  logits = tf.cast(logits, tf.float32)
  probabilities = tf.nn.softmax(logits, name=name)
  top5_probabilities, top5_classes = tf.nn.top_k(
      probabilities, k=min(5, logits.shape[1].value))  # [batch, 5]
  return ExitOutput(logits, probabilities, top5_classes, top5_probabilities)


# ---- Layers -----------------------------------------------------------------
# In all of them, `training` says whether BN uses the batch's statistics (else
# its moving averages), `decay` is that of the averages, and `data_format` is
# 'channels_first' or 'channels_last'. Maps are [batch, height, width, channels]
# or [batch, channels, height, width].

def batch_norm(inputs, training, data_format, decay=BATCH_NORM_DECAY,
               name=None):
  """Batch normalization of a map (rank 4) or of a vector (rank 2).

  Maps take the fused kernel. The published heads normalize a vector over axis
  3, which only a GPU build lets pass.
  """
  rank = inputs.shape.ndims
  assert rank in (2, 4), inputs.shape
  channels_axis = 1 if data_format == 'channels_first' or rank == 2 else 3
  dtype = inputs.dtype
  if rank == 2:
    # The kernel that is not fused cannot mix half-precision inputs with
    # float32 statistics (TensorFlow 1.12).
    inputs = tf.cast(inputs, tf.float32)
  outputs = tf.layers.batch_normalization(
      inputs, axis=channels_axis, momentum=decay, epsilon=BATCH_NORM_EPSILON,
      center=True, scale=True, training=training, fused=rank == 4, name=name)
  return tf.cast(outputs, dtype)


def fixed_padding(inputs, kernel_size, data_format):
  """Pads height and width by kernel_size - 1 in all, whatever their size.

  'SAME' pads a strided convolution by an amount that depends on the input.
  """
  pad_total = kernel_size - 1
  pad = [pad_total // 2, pad_total - pad_total // 2]
  if data_format == 'channels_first':
    return tf.pad(inputs, [[0, 0], [0, 0], pad, pad])
  return tf.pad(inputs, [[0, 0], pad, pad, [0, 0]])


def conv2d_fixed_padding(inputs, filters, kernel_size, strides, data_format):
  """Convolution without bias, padded independently of the input's size."""
  if strides > 1:
    inputs = fixed_padding(inputs, kernel_size, data_format)
  return tf.layers.conv2d(
      inputs=inputs, filters=filters, kernel_size=kernel_size, strides=strides,
      padding='SAME' if strides == 1 else 'VALID', use_bias=False,
      kernel_initializer=tf.variance_scaling_initializer(),
      data_format=data_format)


def _building_block_v1(inputs, filters, training, projection_shortcut, strides,
                       data_format, decay=BATCH_NORM_DECAY):
  """Two 3x3 convolutions, each followed by BN; ReLU after the addition.

  Args:
    filters: channels of both convolutions and of the output.
    projection_shortcut: a function from the inputs to the shortcut, or None
      for the identity.
    strides: of the first convolution.

  Returns:
    The output map, smaller by `strides`.
  """
  shortcut = inputs
  if projection_shortcut is not None:
    shortcut = batch_norm(projection_shortcut(inputs), training, data_format,
                          decay)

  inputs = conv2d_fixed_padding(inputs, filters, 3, strides, data_format)
  inputs = tf.nn.relu(batch_norm(inputs, training, data_format, decay))

  inputs = conv2d_fixed_padding(inputs, filters, 3, 1, data_format)
  inputs = batch_norm(inputs, training, data_format, decay)
  return tf.nn.relu(inputs + shortcut)


def _building_block_v2(inputs, filters, training, projection_shortcut, strides,
                       data_format, decay=BATCH_NORM_DECAY):
  """Two 3x3 convolutions, each after BN and ReLU."""
  shortcut = inputs
  inputs = tf.nn.relu(batch_norm(inputs, training, data_format, decay))
  if projection_shortcut is not None:
    shortcut = projection_shortcut(inputs)  # Of the pre-activated inputs.

  inputs = conv2d_fixed_padding(inputs, filters, 3, strides, data_format)

  inputs = tf.nn.relu(batch_norm(inputs, training, data_format, decay))
  inputs = conv2d_fixed_padding(inputs, filters, 3, 1, data_format)
  return inputs + shortcut


def _bottleneck_block_v1(inputs, filters, training, projection_shortcut,
                         strides, data_format, decay=BATCH_NORM_DECAY):
  """1x1, 3x3 (strided) and 1x1 convolution; the output has 4 x filters."""
  shortcut = inputs
  if projection_shortcut is not None:
    shortcut = batch_norm(projection_shortcut(inputs), training, data_format,
                          decay)

  inputs = conv2d_fixed_padding(inputs, filters, 1, 1, data_format)
  inputs = tf.nn.relu(batch_norm(inputs, training, data_format, decay))

  inputs = conv2d_fixed_padding(inputs, filters, 3, strides, data_format)
  inputs = tf.nn.relu(batch_norm(inputs, training, data_format, decay))

  inputs = conv2d_fixed_padding(inputs, 4 * filters, 1, 1, data_format)
  inputs = batch_norm(inputs, training, data_format, decay)
  return tf.nn.relu(inputs + shortcut)


def _bottleneck_block_v2(inputs, filters, training, projection_shortcut,
                         strides, data_format, decay=BATCH_NORM_DECAY):
  """The bottleneck with BN and ReLU before each convolution."""
  shortcut = inputs
  inputs = tf.nn.relu(batch_norm(inputs, training, data_format, decay))
  if projection_shortcut is not None:
    shortcut = projection_shortcut(inputs)  # Of the pre-activated inputs.

  inputs = conv2d_fixed_padding(inputs, filters, 1, 1, data_format)

  inputs = tf.nn.relu(batch_norm(inputs, training, data_format, decay))
  inputs = conv2d_fixed_padding(inputs, filters, 3, strides, data_format)

  inputs = tf.nn.relu(batch_norm(inputs, training, data_format, decay))
  inputs = conv2d_fixed_padding(inputs, 4 * filters, 1, 1, data_format)
  return inputs + shortcut


def block_layer(inputs, filters, bottleneck, block_fn, blocks, strides,
                training, name, data_format):
  """A block layer: `blocks` blocks, the first of which strides and projects.

  A block's first convolution has `filters` filters; a bottleneck gives out 4 x
  filters. `block_fn` is one of the block functions above.
  """
  filters_out = 4 * filters if bottleneck else filters

  def projection_shortcut(inputs):
    return conv2d_fixed_padding(inputs, filters_out, 1, strides, data_format)

  inputs = block_fn(inputs, filters, training, projection_shortcut, strides,
                    data_format)
  for _ in range(1, blocks):
    inputs = block_fn(inputs, filters, training, None, 1, data_format)
  return tf.identity(inputs, name)


def early_head(feature_map, early_exit, num_classes, training, data_format,
               decay=BATCH_NORM_DECAY):
  """The head of an early exit (paper, section 4), a row of `EARLY_EXITS`.

  Args:
    feature_map: the output of the exit's block layer, of static shape.
    num_classes: outputs, background class included.

  Returns:
    Logits [batch, num_classes].
  """
  sides = feature_map.shape.as_list()
  sides = sides[2:] if data_format == 'channels_first' else sides[1:3]
  window = [side // cells for side, cells in zip(sides, early_exit.grid)]
  inputs = tf.nn.relu(batch_norm(feature_map, training, data_format, decay,
                                 name=early_exit.map_norm))
  inputs = tf.layers.average_pooling2d(
      inputs, pool_size=window, strides=window, padding='VALID',
      data_format=data_format)  # [batch, rows, columns, channels]
  # Channel-major in either format, as the published code flattens on a GPU,
  # so that checkpoints do not depend on the format.
  if data_format == 'channels_last':
    inputs = tf.transpose(inputs, [0, 3, 1, 2])
  inputs = tf.layers.flatten(inputs)  # [batch, channels * rows * columns]
  inputs = _dense(inputs, HEAD_HIDDEN_UNITS, early_exit.hidden)  # [batch, 1024]
  inputs = tf.nn.relu(batch_norm(inputs, training, data_format, decay,
                                 name=early_exit.hidden_norm))
  return _dense(inputs, num_classes, early_exit.classifier)


def _dense(inputs, units, name):
  """A dense layer, [batch, units].

  Initialized as TensorFlow does it, but with a seed that depends on the name
  alone. An operation without a seed of its own takes one from the number of
  operations before it: a head trained beside another would start elsewhere
  than alone.
  """
  seed = None
  if tf.get_default_graph().seed is not None:
    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
  return tf.layers.dense(
      inputs, units, name=name,
      kernel_initializer=tf.glorot_uniform_initializer(seed=seed))


# ---- The network ------------------------------------------------------------

class Model:
  """A ResNet, up to the deepest exit asked for."""

  def __init__(self, resnet_size, bottleneck, num_classes, num_filters,
               kernel_size, conv_stride, first_pool_size, first_pool_stride,
               block_sizes, block_strides, resnet_version=DEFAULT_VERSION,
               data_format=None, dtype=DEFAULT_DTYPE,
               batch_norm_decay=BATCH_NORM_DECAY):
    """Describes the network; nothing is built before the model is called.

    Args:
      num_classes: outputs, background class included.
      num_filters: of the first convolution and first block layer; they double
        with each block layer.
      kernel_size, conv_stride: of the first convolution.
      first_pool_size: of the max pool that follows it; None for no pool.
      block_sizes: blocks in each block layer.
      block_strides: of the first block of each block layer.
      resnet_version: 1 or 2.
      data_format: None for what suits this machine.
      dtype: of the computation, tf.float32 or tf.float16; variables are
        float32 always.
    """
    if data_format is None:
      # Not `is_built_with_cuda`: such a TensorFlow may have no GPU to use.
      data_format = 'channels_first' if num_local_gpus() else 'channels_last'
    self.resnet_size = resnet_size
    self.resnet_version = resnet_version
    self.bottleneck = bottleneck
    self.block_fn = functools.partial({
        (True, 1): _bottleneck_block_v1, (True, 2): _bottleneck_block_v2,
        (False, 1): _building_block_v1, (False, 2): _building_block_v2,
    }[bool(bottleneck), resnet_version], decay=batch_norm_decay)
    self.data_format = data_format
    self.num_classes = num_classes
    self.num_filters = num_filters
    self.kernel_size = kernel_size
    self.conv_stride = conv_stride
    self.first_pool_size = first_pool_size
    self.first_pool_stride = first_pool_stride
    self.block_sizes = block_sizes
    self.block_strides = block_strides
    self.dtype = dtype
    self.batch_norm_decay = batch_norm_decay
    self.pre_activation = resnet_version == 2

  def __call__(self, inputs, training):
    """Logits [batch, num_classes] of the network's own classifier."""
    return self.exit_logits(inputs, [FINAL_CLASSIFIER_ID], training, training)[
        FINAL_CLASSIFIER_ID]

  def exit_logits(self, inputs, classifier_ids, trunk_training, head_training):
    """Builds the network as far as the deepest classifier asked for.

    Args:
      inputs: float [batch, height, width, 3], preprocessed.
      classifier_ids: any of `CLASSIFIER_IDS`.
      trunk_training: whether the trunk's BN uses the batch's statistics.
      head_training: whether the early heads' BN does.

    Returns:
      An ordered dict from classifier to logits [batch, num_classes].
    """
    assert classifier_ids and set(classifier_ids) <= set(CLASSIFIER_IDS)
    logits = collections.OrderedDict()
    with self.scope():
      feature_map = inputs
      for k in CLASSIFIER_IDS[:max(classifier_ids) + 1]:
        feature_map = self.stage(feature_map, k, trunk_training)
        if k in classifier_ids:
          logits[k] = self.head(feature_map, k, head_training)
    return logits

  def scope(self):
    """The variable scope that stages and heads are built in."""
    return tf.variable_scope(
        MODEL_SCOPE, custom_getter=self._variable_getter)

  def stage(self, inputs, classifier_id, training):
    """The trunk from the exit before `classifier_id`, or the image, to its.

    Layers are numbered as they are built, so stages are built in order.

    Args:
      inputs: the images [batch, height, width, 3] for stage 0, else the
        output of the stage before.

    Returns:
      The map that this exit's head reads, in the model's data format.
    """
    inputs.shape.assert_has_rank(4)
    if classifier_id == 0:
      inputs = self._initial_layers(inputs, training)
    # Block layers before each stage, and before the end: 0, 2, 3, 4.
    before = [0, *(row.block_layer for _, row in sorted(EARLY_EXITS.items())),
              len(self.block_sizes)]
    for index in range(before[classifier_id], before[classifier_id + 1]):
      inputs = block_layer(
          inputs, self.num_filters * 2**index, self.bottleneck, self.block_fn,
          self.block_sizes[index], self.block_strides[index], training,
          f'block_layer{index + 1}', self.data_format)
    if classifier_id == FINAL_CLASSIFIER_ID and self.pre_activation:
      inputs = tf.nn.relu(batch_norm(inputs, training, self.data_format,
                                     self.batch_norm_decay))
    return inputs

  def head(self, feature_map, classifier_id, training):
    """Logits [batch, num_classes] of one exit, from the map of its stage."""
    if classifier_id != FINAL_CLASSIFIER_ID:
      logits = early_head(
          feature_map, EARLY_EXITS[classifier_id], self.num_classes, training,
          self.data_format, self.batch_norm_decay)
      return tf.identity(logits, f'exit{classifier_id}_logits')
    axes = [2, 3] if self.data_format == 'channels_first' else [1, 2]
    inputs = tf.reduce_mean(feature_map, axes, keepdims=True)
    inputs = tf.identity(inputs, 'final_reduce_mean')
    inputs = tf.squeeze(inputs, axes)  # [batch, channels]
    inputs = _dense(inputs, self.num_classes, FINAL_CLASSIFIER_LAYER)
    return tf.identity(inputs, 'final_dense')

  def _initial_layers(self, inputs, training):
    """First convolution (in v1 with BN and ReLU) and max pool, of images."""
    if self.data_format == 'channels_first':
      inputs = tf.transpose(inputs, [0, 3, 1, 2])
    inputs = conv2d_fixed_padding(
        inputs, self.num_filters, self.kernel_size, self.conv_stride,
        self.data_format)  # [batch, height / 2, width / 2, num_filters]
    inputs = tf.identity(inputs, 'initial_conv')
    if not self.pre_activation:
      inputs = tf.nn.relu(batch_norm(inputs, training, self.data_format,
                                     self.batch_norm_decay))
    if self.first_pool_size:
      inputs = tf.layers.max_pooling2d(
          inputs, pool_size=self.first_pool_size,
          strides=self.first_pool_stride, padding='SAME',
          data_format=self.data_format)  # [batch, height / 4, width / 4, ...]
      inputs = tf.identity(inputs, 'initial_max_pool')
    return inputs

  def _variable_getter(self, getter, name, shape=None, dtype=DEFAULT_DTYPE,
                       *args, **kwargs):
    """Keeps variables in float32 and hands half-precision layers a cast."""
    if dtype not in CASTABLE_TYPES:
      return getter(name, shape, dtype, *args, **kwargs)
    variable = getter(name, shape, tf.float32, *args, **kwargs)
    return tf.cast(variable, dtype=dtype, name=name + '_cast')
