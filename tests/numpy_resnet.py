"""ResNet with early exits in plain NumPy, in float64, for inference.

A second, independent implementation of what the project's TensorFlow code
computes, to test that code against: preprocessing for evaluation, the trunk
(the official ResNet v1 and v2 of the TensorFlow models, October 2018) and the
two early-exit heads. Written to be obviously right rather than fast; a
224x224 image takes a ResNet-50 a fraction of a second on two cores.

Feature maps are float64 arrays [images, height, width, channels]. Variables
are a dict of name -> array under the names of the official checkpoint; see
rule_weights.py for the names and for made-up values.
"""

import collections

import numpy as np

from rule_weights import BLOCK_SIZES
from rule_weights import HEAD_GRIDS

BATCH_NORM_EPSILON = 1e-5
CHANNEL_MEANS = (123.68, 116.78, 103.94)  # red, green, blue

HEAD_STAGES = {0: 2, 1: 3}  # exit -> the block layer it sits on
LAST_EXIT = 2


# ---- Operations --------------------------------------------------------------

def conv2d(inputs, kernel, stride):
  """Convolves (in TensorFlow's sense: without mirroring the kernel).

  Padded by the kernel alone: (k - 1) // 2 zeros before, the rest of k - 1
  after. At stride 1 that is 'SAME'; at others it is the official
  fixed_padding() followed by 'VALID', which is not 'SAME'.

  Args:
    inputs: [images, height, width, channels_in].
    kernel: [k, k, channels_in, channels_out].
    stride: int, for both directions.

  Returns:
    float64 [images, ceil(height / stride), ceil(width / stride), channels_out].
  """
  k, k_columns, channels_in, channels_out = kernel.shape
  assert k == k_columns and inputs.shape[3] == channels_in
  before = (k - 1) // 2
  after = k - 1 - before
  padded = np.pad(np.asarray(inputs, np.float64),
                  [(0, 0), (before, after), (before, after), (0, 0)],
                  mode='constant')
  patches = np.stack(
      [np.stack(row, axis=3) for row in _windows(padded, k, stride)], axis=3)
  # [images, rows, columns, k, k, channels_in] x [k, k, channels_in, out]
  images, rows, columns = patches.shape[:3]
  outputs = np.dot(
      patches.reshape([images * rows * columns, k * k * channels_in]),
      kernel.astype(np.float64).reshape([k * k * channels_in, channels_out]))
  return outputs.reshape([images, rows, columns, channels_out])


def max_pool(inputs, size=3, stride=2):
  """Max pooling with TensorFlow's 'SAME' padding, filled with -infinity.

  'SAME' puts the smaller half of the padding before and only pads as much as
  the last window needs: 112 pixels under 3/2 get none before and one after.
  """
  padding = []
  for length in inputs.shape[1:3]:
    windows = -(-length // stride)
    total = max((windows - 1) * stride + size - length, 0)
    padding.append((total // 2, total - total // 2))
  padded = np.pad(np.asarray(inputs, np.float64),
                  [(0, 0), padding[0], padding[1], (0, 0)],
                  mode='constant', constant_values=-np.inf)
  return np.max([view for row in _windows(padded, size, stride)
                 for view in row], axis=0)


def _windows(padded, size, stride):
  """Views of what each place in a size x size window sees, in every window.

  Entry [dy][dx] at (y, x) is padded at (y * stride + dy, x * stride + dx).
  """
  rows = (padded.shape[1] - size) // stride + 1
  columns = (padded.shape[2] - size) // stride + 1
  return [[padded[:,
                  dy:dy + (rows - 1) * stride + 1:stride,
                  dx:dx + (columns - 1) * stride + 1:stride]
           for dx in range(size)] for dy in range(size)]


def average_pool_to_grid(inputs, rows, columns):
  """Means of equal windows, [images, rows, columns, channels]."""
  images, height, width, channels = inputs.shape
  assert height % rows == width % columns == 0
  tiled = np.asarray(inputs, np.float64).reshape(
      [images, rows, height // rows, columns, width // columns, channels])
  return tiled.mean(axis=(2, 4))


def flatten_channel_major(inputs):
  """To [images, n], with index = (channel * rows + y) * columns + x."""
  return inputs.transpose([0, 3, 1, 2]).reshape([inputs.shape[0], -1])


def batch_norm(inputs, gamma, beta, moving_mean, moving_variance):
  """Batch norm in inference mode over the last axis; float64, inputs' shape."""
  gamma, beta, moving_mean, moving_variance = [
      np.asarray(value, np.float64)
      for value in (gamma, beta, moving_mean, moving_variance)]
  return ((inputs - moving_mean) / np.sqrt(moving_variance + BATCH_NORM_EPSILON)
          * gamma + beta)


def relu(inputs):
  return np.maximum(inputs, 0.)


def softmax(logits):
  """Softmax over the last axis; float64, the logits' shape."""
  exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return exponentials / exponentials.sum(axis=-1, keepdims=True)


# ---- The network -------------------------------------------------------------

def softmaxes(variables, image_batch, resnet_size=50, resnet_version=2):
  """Runs the images through the network and all its classifiers.

  A classifier is there if the kernel of its last dense layer is in
  `variables`, and the trunk is followed no further than the last one there.

  Args:
    variables: dict of name -> array, names as in the official checkpoint.
    image_batch: [images, height, width, 3], preprocessed.

  Returns:
    dict of classifier (0, 1: the heads, 2: the network's own) -> softmax,
    float64 [images, classes].
  """
  per_image = [
      logits_of_exits(variables, image_batch[i:i + 1], resnet_size,
                      resnet_version)
      for i in range(len(image_batch))]  # one at a time: little memory
  return {
      k: softmax(np.concatenate([logits[k] for logits in per_image]))
      for k in per_image[0]}


def logits_of_exits(variables, image_batch, resnet_size=50, resnet_version=2):
  """As softmaxes(), but the logits, and the whole batch at once."""
  exits = [k for k in (0, 1, LAST_EXIT) if _classifier_kernel(k) in variables]
  assert exits
  layers = _Layers(variables)
  logits = {}

  # [n, h, w, 3] -> [n, h/2, w/2, 64] -> [n, h/4, w/4, 64]
  maps = layers.conv(np.asarray(image_batch, np.float64), stride=2)
  if resnet_version == 1:
    maps = relu(layers.batch_norm(maps))
  maps = max_pool(maps)

  for stage, num_blocks in enumerate(BLOCK_SIZES[resnet_size], start=1):
    for block in range(num_blocks):
      maps = _block(layers, maps,
                    convs=3 if resnet_size >= 50 else 2,
                    version=resnet_version,
                    first=block == 0,
                    stride=2 if block == 0 and stage > 1 else 1)
    for k in exits:
      if HEAD_STAGES.get(k) == stage:
        logits[k] = _head(variables, k, maps)
    if exits == sorted(logits):
      return logits

  if resnet_version == 2:
    maps = relu(layers.batch_norm(maps))
  logits[LAST_EXIT] = layers.dense(maps.mean(axis=(1, 2)))
  return logits


def _block(layers, inputs, convs, version, first, stride):
  """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 (bottleneck).

  Kernel sizes and filters are those of the variables; what is decided here is
  the order of the layers, which is also the order of their names, and where
  the stride falls: on the projection, and on the first 3x3 convolution.
  `first`: whether this is the first block of its layer, with a projection.
  """
  strides = [stride, 1] if convs == 2 else [1, stride, 1]
  if version == 2:
    activated = relu(layers.batch_norm(inputs))
    shortcut = layers.conv(activated, stride) if first else inputs
    branch = layers.conv(activated, strides[0])
    for conv_stride in strides[1:]:
      branch = relu(layers.batch_norm(branch))
      branch = layers.conv(branch, conv_stride)
    return shortcut + branch

  shortcut = inputs
  if first:
    shortcut = layers.batch_norm(layers.conv(inputs, stride))
  branch = inputs
  for conv_stride in strides[:-1]:
    branch = relu(layers.batch_norm(layers.conv(branch, conv_stride)))
  branch = layers.batch_norm(layers.conv(branch, strides[-1]))
  return relu(shortcut + branch)


def _head(variables, k, maps):
  """Logits [images, classes] of early exit k on the trunk's map."""
  def name(kind):
    return 'resnet_model/cascaded{}_{}'.format(k, kind.format(k=k))
  hidden = relu(_batch_norm_of(variables, name('bn{k}'), maps))
  rows, columns = HEAD_GRIDS[k]
  hidden = average_pool_to_grid(hidden, rows, columns)  # [n, rows, columns, c]
  hidden = flatten_channel_major(hidden)  # [n, c * rows * columns]
  hidden = _dense_of(variables, name('fc{k}'), hidden)  # [n, 1024]
  hidden = relu(_batch_norm_of(variables, name('bn{k}{k}'), hidden))
  return _dense_of(variables, name('fc{k}{k}'), hidden)


def _classifier_kernel(k):
  return ('resnet_model/dense/kernel' if k == LAST_EXIT else
          'resnet_model/cascaded{k}_fc{k}{k}/kernel'.format(k=k))


def _batch_norm_of(variables, layer, inputs):
  return batch_norm(inputs, *[
      variables['{}/{}'.format(layer, name)]
      for name in ('gamma', 'beta', 'moving_mean', 'moving_variance')])


def _dense_of(variables, layer, inputs):
  return (np.dot(inputs, variables[layer + '/kernel'].astype(np.float64)) +
          variables[layer + '/bias'].astype(np.float64))


class _Layers:
  """The trunk's layers under their automatic names, in order of creation.

  Each call makes the next layer of its kind: conv2d, conv2d_1, conv2d_2, ...
  """

  def __init__(self, variables):
    self._variables = variables
    self._made = collections.Counter()

  def _next(self, kind):
    number = self._made[kind]
    self._made[kind] += 1
    return 'resnet_model/' + kind + ('_{}'.format(number) if number else '')

  def conv(self, inputs, stride):
    layer = self._next('conv2d')
    return conv2d(inputs, self._variables[layer + '/kernel'], stride)

  def batch_norm(self, inputs):
    return _batch_norm_of(
        self._variables, self._next('batch_normalization'), inputs)

  def dense(self, inputs):
    return _dense_of(self._variables, self._next('dense'), inputs)


# ---- Preprocessing for evaluation --------------------------------------------

def preprocess_for_eval(image, image_size=224):
  """Resizes, crops and centres a decoded image as for evaluation.

  uint8 [height, width, 3] to float64 [image_size, image_size, 3].
  """
  height, width = resized_size(
      image.shape[0], image.shape[1], resize_min=image_size * 256 // 224)
  resized = resize_bilinear(image, height, width)
  top = (height - image_size) // 2
  left = (width - image_size) // 2
  crop = resized[top:top + image_size, left:left + image_size]
  return crop - np.array(CHANNEL_MEANS)


def resized_size(height, width, resize_min):
  """The size at which the smaller side is resize_min, as officially rounded.

  In float32, and truncated, as the official code does: the smaller side may
  come out one short where the ratio was rounded down (61 gives 255, not 256).
  """
  scale = np.float32(resize_min) / np.float32(min(height, width))
  return (int(np.float32(height) * scale), int(np.float32(width) * scale))


def resize_bilinear(image, new_height, new_width):
  """TensorFlow's resize_bilinear(align_corners=False), the old one.

  Output pixel i looks at the source coordinate i * (old / new), with no half
  pixel added, and mixes the two pixels on either side of it, the last pixel
  standing in for what lies beyond.
  """
  image = np.asarray(image, np.float64)
  low, high, weight = _interpolation(image.shape[0], new_height)
  weight = weight[:, np.newaxis, np.newaxis]
  image = image[low] * (1. - weight) + image[high] * weight
  low, high, weight = _interpolation(image.shape[1], new_width)
  weight = weight[np.newaxis, :, np.newaxis]
  return image[:, low] * (1. - weight) + image[:, high] * weight


def _interpolation(old, new):
  """Where each of `new` pixels along an axis of `old` pixels comes from.

  The coordinates are float32 as in TensorFlow's kernel: rounding moves them by
  up to 3e-5 of a pixel, which would show in the result.

  Returns:
    int [new], the lower source pixels; int [new], the higher ones; float64
    [new], the weight of the latter.
  """
  scale = np.float32(old) / np.float32(new)
  coordinates = np.arange(new).astype(np.float32) * scale
  low = coordinates.astype(np.int64)  # truncation is floor: none is negative
  high = np.minimum(low + 1, old - 1)
  return low, high, coordinates.astype(np.float64) - low
