"""Names, shapes and made-up weights of the network, by rule.

The tests need no download: the variables of the official ResNets and of the
two early-exit heads are listed here from the order in which the official code
(TensorFlow models, October 2018) creates its layers, and filled with values
that depend on nothing but each variable's own name and shape. NumPy only, and
written without looking at the code under test.

The values are made to be unlike fresh ones (batch norm statistics away from 0
and 1, gammas of either sign), to keep activations at a sane scale through
all the layers in inference mode, and to give softmaxes neither uniform nor
one-hot, so that an error anywhere shows in them.
"""

import collections
import re
import zlib

import numpy as np

# Blocks in each of the four block layers.
BLOCK_SIZES = {
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
}

HEAD_GRIDS = {0: (2, 2), 1: (1, 2)}  # rows, columns of the pooled map
HEAD_HIDDEN_UNITS = 1024


def resnet_variables(resnet_size, resnet_version, num_classes=1001):
  """Shapes by name of an official ResNet, in their order of creation.

  `global_step`, of shape (), comes last.
  """
  shapes = collections.OrderedDict()
  layers_made = collections.Counter()

  def layer(kind):
    """'resnet_model/conv2d', then 'resnet_model/conv2d_1', and so on."""
    number = layers_made[kind]
    layers_made[kind] += 1
    return 'resnet_model/' + (kind if number == 0
                              else '{}_{}'.format(kind, number))

  def conv(kernel_size, channels_in, channels_out):
    shapes[layer('conv2d') + '/kernel'] = (
        kernel_size, kernel_size, channels_in, channels_out)

  def batch_norm(channels):
    _add_batch_norm(shapes, layer('batch_normalization'), channels)

  bottleneck = resnet_size >= 50
  expansion = 4 if bottleneck else 1

  conv(7, 3, 64)
  if resnet_version == 1:
    batch_norm(64)
  channels = 64  # of the map as it enters the block

  for stage, num_blocks in enumerate(BLOCK_SIZES[resnet_size]):
    filters = 64 * 2 ** stage
    filters_out = filters * expansion
    for block in range(num_blocks):
      if resnet_version == 2:
        batch_norm(channels)  # the pre-activation
      if block == 0:
        conv(1, channels, filters_out)  # the projection shortcut
        if resnet_version == 1:
          batch_norm(filters_out)
      if bottleneck:
        convs = [(1, channels, filters),
                 (3, filters, filters),
                 (1, filters, filters_out)]
      else:
        convs = [(3, channels, filters), (3, filters, filters)]
      for index, (kernel_size, channels_in, channels_out) in enumerate(convs):
        if resnet_version == 2 and index > 0:
          batch_norm(channels_in)  # before every convolution
        conv(kernel_size, channels_in, channels_out)
        if resnet_version == 1:
          batch_norm(channels_out)  # after every convolution
      channels = filters_out

  if resnet_version == 2:
    batch_norm(channels)
  dense = layer('dense')
  shapes[dense + '/kernel'] = (channels, num_classes)
  shapes[dense + '/bias'] = (num_classes,)
  shapes['global_step'] = ()
  return shapes


def exit_channels(k, resnet_size=50):
  """Channels of the map that head k sits on: 512 and 1024 in a ResNet-50."""
  filters = {0: 128, 1: 256}[k]  # of block_layer2 and block_layer3
  return filters * (4 if resnet_size >= 50 else 1)


def head_variables(k, trunk_channels, num_classes=1001):
  """Shapes by name of the 12 variables of head 0 or 1.

  `trunk_channels`: of the map the head sits on, see exit_channels().
  """
  rows, columns = HEAD_GRIDS[k]
  scope = 'resnet_model/cascaded{}_'.format(k)
  shapes = collections.OrderedDict()
  _add_batch_norm(shapes, '{}bn{}'.format(scope, k), trunk_channels)
  dense = '{}fc{}'.format(scope, k)
  shapes[dense + '/kernel'] = (
      trunk_channels * rows * columns, HEAD_HIDDEN_UNITS)
  shapes[dense + '/bias'] = (HEAD_HIDDEN_UNITS,)
  _add_batch_norm(shapes, '{}bn{}{}'.format(scope, k, k), HEAD_HIDDEN_UNITS)
  dense = '{}fc{}{}'.format(scope, k, k)
  shapes[dense + '/kernel'] = (HEAD_HIDDEN_UNITS, num_classes)
  shapes[dense + '/bias'] = (num_classes,)
  return shapes


def cascade_variables(resnet_size=50, resnet_version=2, num_classes=1001):
  """The trunk's and both heads' variables: OrderedDict name -> shape."""
  shapes = resnet_variables(resnet_size, resnet_version, num_classes)
  for k in (0, 1):
    shapes.update(
        head_variables(k, exit_channels(k, resnet_size), num_classes))
  return shapes


def rule_variables(names_and_shapes):
  """Makes a value for every variable from its name and shape alone.

  The random numbers are uniform ones of NumPy's RandomState, seeded with the
  CRC-32 of the name: they are the same, bit for bit, under every NumPy.

  Returns:
    dict of variable name -> float32 array of that shape (`global_step`: int64).
  """
  return collections.OrderedDict(
      (name, _rule_value(name, tuple(shape)))
      for name, shape in names_and_shapes.items())


def rule_images(count, height, width):
  """Makes photograph-like images: broad colours, edges, texture, noise.

  uint8 [count, height, width, 3], no two alike; image i does not depend on
  count.
  """
  y, x = np.meshgrid(np.linspace(0., 1., height), np.linspace(0., 1., width),
                     indexing='ij')
  images = np.empty([count, height, width, 3], np.uint8)
  for i in range(count):
    random = np.random.RandomState(i)
    image = np.empty([height, width, 3])
    image[:] = random.uniform(40., 215., size=3)
    for _ in range(8):  # a shaded background
      wave = np.cos(2. * np.pi * (random.uniform(-2., 2.) * x +
                                  random.uniform(-2., 2.) * y +
                                  random.uniform()))
      image += wave[..., np.newaxis] * random.uniform(-25., 25., size=3)
    for _ in range(6):  # objects with edges, some striped
      inside = (np.hypot((x - random.uniform()) / random.uniform(.1, .4),
                         (y - random.uniform()) / random.uniform(.1, .4)) < 1.)
      stripes = np.sign(np.sin(2. * np.pi * random.uniform(2., 30.) *
                               (x + random.uniform(-1., 1.) * y)))
      texture = (random.uniform(0., 255., size=3) +
                 stripes[..., np.newaxis] * random.uniform(-40., 40.))
      image = np.where(inside[..., np.newaxis], texture, image)
    image += random.uniform(-8., 8., size=image.shape)
    images[i] = np.clip(image, 0., 255.).astype(np.uint8)
  return images


def _add_batch_norm(shapes, layer_name, channels):
  for name in ('gamma', 'beta', 'moving_mean', 'moving_variance'):
    shapes['{}/{}'.format(layer_name, name)] = (channels,)


def _rule_value(name, shape):
  """The value of one variable, see rule_variables()."""
  random = np.random.RandomState(zlib.crc32(name.encode('ascii')))
  kind = name.split('/')[-1]
  if kind == 'global_step':
    return np.zeros(shape, np.int64)
  if kind == 'kernel':
    value = _rule_kernel(random, name, shape)
  elif kind == 'bias':
    value = random.uniform(-0.3, 0.3, size=shape)
  elif kind == 'gamma':
    value = random.uniform(0.5, 1.5, size=shape)
    value *= np.where(random.uniform(size=shape) < 0.25, -1., 1.)
  elif kind == 'beta':
    value = random.uniform(-0.3, 0.3, size=shape)
  elif kind == 'moving_mean':
    value = random.uniform(-0.5, 0.5, size=shape)
  elif kind == 'moving_variance':
    value = random.uniform(0.4, 2.5, size=shape)
  return value.astype(np.float32)


def _rule_kernel(random, name, shape):
  """A kernel, float64: see _rule_value().

  Where the input comes out of a ReLU, the weights of each output add up to
  zero. Otherwise what all images have in common would grow from layer to
  layer, and they would all get much the same softmax.
  """
  fan_in = np.prod(shape[:-1])
  if len(shape) == 4 and shape[2] == 3:  # sees pixels, some 60 from the mean
    return _uniform(random, shape, stddev=1.5 / 60. / np.sqrt(fan_in))

  # A standard normal variable has mean square 1/2 and variance
  # (1 - 1/pi) / 2 after a ReLU; the latter passes a kernel that adds up to 0.
  preserving = np.sqrt(2. / (1. - 1. / np.pi) / fan_in)
  stddev = preserving
  if len(shape) == 4 and shape[0] == 3:
    # These are in every residual branch and in no shortcut. The deeper, the
    # smaller: the sum of the branches stays bounded through 200 layers.
    number = int(re.search(r'/conv2d_(\d+)/kernel$', name).group(1))
    stddev = 0.75 * preserving / (1. + number / 24.)
  elif name.endswith(('/dense/kernel', '_fc00/kernel', '_fc11/kernel')):
    # Moderate logits, larger where there are more classes. With sharp ones the
    # rounding of float32 would use up most of the 1e-5 that is promised.
    stddev = 0.1 * preserving * np.sqrt(np.log(shape[-1]))
  kernel = _uniform(random, shape, stddev)
  return kernel - kernel.mean(axis=tuple(range(len(shape) - 1)))


def _uniform(random, shape, stddev):
  """Uniform random numbers around 0, float64 of the given shape."""
  limit = np.sqrt(3.) * stddev
  return random.uniform(-limit, limit, size=shape)
