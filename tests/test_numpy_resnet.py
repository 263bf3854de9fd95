"""Tests of the NumPy reference itself: numpy_resnet.py and rule_weights.py.

Against loops written out and against cases computed by hand. That it agrees
with TensorFlow's operations is what the tests of the network rest on.
"""

import itertools
import json
import os
import re
import zlib

import numpy as np
import pytest

import numpy_resnet
import rule_weights

OFFICIAL_VARIABLES = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), os.pardir, os.pardir,
    'shared', 'official_resnet50_v2_variables.json')

ALL_NETWORKS = list(itertools.product((18, 34, 50, 101, 152, 200), (1, 2)))


# ----------------------------------------------------------------------------
# Names and shapes
# ----------------------------------------------------------------------------
@pytest.mark.skipif(not os.path.exists(OFFICIAL_VARIABLES),
                    reason='no list of the official variables beside the repo')
def test_names_and_shapes_are_the_official_checkpoints():
  with open(OFFICIAL_VARIABLES) as f:
    official = {name: tuple(shape) for name, shape in json.load(f).items()}
  assert dict(rule_weights.official_resnet50_v2_variables()) == official


def test_resnet50_v2_has_252_variables():
  shapes = rule_weights.official_resnet50_v2_variables()
  assert len(shapes) == 252
  assert shapes['global_step'] == ()
  assert shapes['resnet_model/conv2d/kernel'] == (7, 7, 3, 64)
  assert shapes['resnet_model/batch_normalization_48/gamma'] == (2048,)
  assert shapes['resnet_model/conv2d_52/kernel'] == (1, 1, 512, 2048)
  assert shapes['resnet_model/dense/kernel'] == (2048, 1001)


@pytest.mark.parametrize('size,version', ALL_NETWORKS)
def test_numbers_of_layers(size, version):
  shapes = rule_weights.resnet_variables(size, version, num_classes=7)
  blocks = {18: 8, 34: 16, 50: 16, 101: 33, 152: 50, 200: 66}[size]
  per_block = 2 if size < 50 else 3
  convs = [name for name in shapes if 'conv2d' in name]
  batch_norms = [name for name in shapes if name.endswith('/gamma')]
  assert len(convs) == 1 + per_block * blocks + 4  # four projections
  # v1 has one after each convolution; v2 one before each but the first and
  # the projections, and the final one.
  expected = len(convs) if version == 1 else per_block * blocks + 1
  assert len(batch_norms) == expected
  assert len(shapes) == len(convs) + 4 * len(batch_norms) + 2 + 1
  assert shapes['resnet_model/dense/kernel'] == (512 if size < 50 else 2048, 7)


def test_order_of_creation():
  def first_layers(size, version):
    names = rule_weights.resnet_variables(size, version)
    return [name.split('/')[1] for name in names
            if name.endswith(('/kernel', '/gamma'))]
  assert first_layers(50, 2)[:9] == [
      'conv2d', 'batch_normalization', 'conv2d_1', 'conv2d_2',
      'batch_normalization_1', 'conv2d_3', 'batch_normalization_2', 'conv2d_4',
      'batch_normalization_3']
  assert first_layers(18, 1)[:9] == [
      'conv2d', 'batch_normalization', 'conv2d_1', 'batch_normalization_1',
      'conv2d_2', 'batch_normalization_2', 'conv2d_3', 'batch_normalization_3',
      'conv2d_4']


def test_head_names_and_shapes():
  assert dict(rule_weights.head_variables(1, 1024, num_classes=5)) == {
      'resnet_model/cascaded1_bn1/gamma': (1024,),
      'resnet_model/cascaded1_bn1/beta': (1024,),
      'resnet_model/cascaded1_bn1/moving_mean': (1024,),
      'resnet_model/cascaded1_bn1/moving_variance': (1024,),
      'resnet_model/cascaded1_fc1/kernel': (2048, 1024),
      'resnet_model/cascaded1_fc1/bias': (1024,),
      'resnet_model/cascaded1_bn11/gamma': (1024,),
      'resnet_model/cascaded1_bn11/beta': (1024,),
      'resnet_model/cascaded1_bn11/moving_mean': (1024,),
      'resnet_model/cascaded1_bn11/moving_variance': (1024,),
      'resnet_model/cascaded1_fc11/kernel': (1024, 5),
      'resnet_model/cascaded1_fc11/bias': (5,),
  }
  shapes = rule_weights.head_variables(0, rule_weights.exit_channels(0))
  assert shapes['resnet_model/cascaded0_fc0/kernel'] == (2048, 1024)
  assert shapes['resnet_model/cascaded0_fc00/kernel'] == (1024, 1001)
  shapes = rule_weights.head_variables(0, rule_weights.exit_channels(0, 18))
  assert shapes['resnet_model/cascaded0_fc0/kernel'] == (512, 1024)


@pytest.mark.parametrize('size,version', [(51, 2), (50, 3)])
def test_unknown_networks_are_errors(size, version):
  with pytest.raises(ValueError):
    rule_weights.resnet_variables(size, version)


# ----------------------------------------------------------------------------
# Values by rule
# ----------------------------------------------------------------------------
def test_rule_values_depend_on_the_name_and_shape_alone():
  shapes = rule_weights.resnet_variables(18, 2, num_classes=10)
  together = rule_weights.rule_variables(shapes)
  for name, shape in shapes.items():
    alone = rule_weights.rule_variables({name: list(shape)})[name]
    np.testing.assert_array_equal(alone, together[name])
    assert together[name].shape == shape
    assert together[name].dtype == (
        np.int64 if name == 'global_step' else np.float32)
  assert together['global_step'] == 0
  assert not np.array_equal(together['resnet_model/batch_normalization/beta'],
                            together['resnet_model/batch_normalization_1/beta'])


def test_rule_values_are_the_same_under_every_numpy():
  name = 'resnet_model/batch_normalization/gamma'
  value = rule_weights.rule_variables({name: [64]})[name]
  assert zlib.crc32(value.astype('<f4').tobytes()) == 368342288


def test_batch_norm_values_are_away_from_fresh_ones():
  shapes = rule_weights.resnet_variables(50, 2)
  by_kind = {}
  for name, value in rule_weights.rule_variables(
      {name: shape for name, shape in shapes.items()
       if 'batch_normalization' in name}).items():
    by_kind.setdefault(name.split('/')[-1], []).append(value)
  values = {kind: np.concatenate(each) for kind, each in by_kind.items()}
  for kind, low, high in [('moving_mean', -.5, .5), ('beta', -.3, .3),
                          ('moving_variance', .4, 2.5)]:
    assert values[kind].min() == pytest.approx(low, abs=.01)
    assert values[kind].max() == pytest.approx(high, abs=.01)
  assert np.abs(values['gamma']).min() >= 0.5
  assert np.abs(values['gamma']).max() <= 1.5
  assert 0.2 < np.mean(values['gamma'] < 0) < 0.3


def test_no_rule_for_unknown_variables():
  with pytest.raises(ValueError):
    rule_weights.rule_variables({'resnet_model/conv2d/kernel/Momentum': [2]})


# ----------------------------------------------------------------------------
# Operations
# ----------------------------------------------------------------------------
def _conv2d_by_loops(inputs, kernel, stride, before):
  """Convolution by its definition; `before` zeros above and to the left."""
  images, height, width, channels_in = inputs.shape
  k, _, _, channels_out = kernel.shape
  rows, columns = -(-height // stride), -(-width // stride)
  outputs = np.zeros([images, rows, columns, channels_out])
  for n, y, x, dy, dx, c, d in itertools.product(
      range(images), range(rows), range(columns), range(k), range(k),
      range(channels_in), range(channels_out)):
    source_y = y * stride + dy - before
    source_x = x * stride + dx - before
    if 0 <= source_y < height and 0 <= source_x < width:
      outputs[n, y, x, d] += (
          inputs[n, source_y, source_x, c] * kernel[dy, dx, c, d])
  return outputs


@pytest.mark.parametrize('height,width', [(6, 6), (7, 5), (1, 4)])
@pytest.mark.parametrize('k,stride,before', [
    (1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (7, 2, 3)])
def test_conv2d_against_loops(height, width, k, stride, before):
  random = np.random.RandomState(0)
  inputs = random.normal(size=[2, height, width, 2])
  kernel = random.normal(size=[k, k, 2, 3])
  np.testing.assert_allclose(
      numpy_resnet.conv2d(inputs, kernel, stride),
      _conv2d_by_loops(inputs, kernel, stride, before), atol=1e-12)


def test_strided_conv2d_pads_before_even_where_same_would_not():
  inputs = np.arange(1., 5.).reshape([1, 1, 4, 1])
  kernel = np.zeros([3, 3, 1, 1])
  kernel[1, :, 0, 0] = [100., 10., 1.]
  # One zero on either side: [0 1 2] [2 3 4]. 'SAME' would take [1 2 3] [3 4 0].
  np.testing.assert_array_equal(
      numpy_resnet.conv2d(inputs, kernel, 2).ravel(), [12., 234.])


def test_conv2d_computes_in_float64():
  outputs = numpy_resnet.conv2d(np.full([1, 1, 1, 1], 1e-9, np.float32),
                                np.ones([1, 1, 1, 1], np.float32), 1)
  assert outputs.dtype == np.float64


def test_max_pool_by_hand():
  # Even: padded at the end only. Windows [4 3 5], [5 1 -inf].
  inputs = np.array([4., 3., 5., 1.]).reshape([1, 1, 4, 1])
  np.testing.assert_array_equal(
      numpy_resnet.max_pool(inputs).ravel(), [5., 5.])
  # Odd: padded at both ends. Windows [-inf -4 -3], [-3 -5 -1], [-1 -2 -inf].
  inputs = np.array([-4., -3., -5., -1., -2.]).reshape([1, 5, 1, 1])
  np.testing.assert_array_equal(
      numpy_resnet.max_pool(inputs).ravel(), [-3., -1., -1.])


def test_max_pool_against_loops():
  inputs = np.random.RandomState(0).normal(size=[2, 6, 8, 3])
  outputs = numpy_resnet.max_pool(inputs)
  assert outputs.shape == (2, 3, 4, 3)
  for y, x in itertools.product(range(3), range(4)):
    np.testing.assert_array_equal(
        outputs[:, y, x],
        inputs[:, 2 * y:2 * y + 3, 2 * x:2 * x + 3].max(axis=(1, 2)))


def test_batch_norm_by_hand():
  outputs = numpy_resnet.batch_norm(
      np.array([[[[5., 5.]]]]), gamma=np.array([2., -1.]),
      beta=np.array([.5, 0.]), moving_mean=np.array([1., 6.]),
      moving_variance=np.array([4. - 1e-5, 1. - 1e-5]))
  np.testing.assert_allclose(outputs.ravel(), [2. * (5. - 1.) / 2. + .5, 1.])


def test_average_pool_and_flatten_order():
  inputs = np.arange(1 * 4 * 6 * 3).reshape([1, 4, 6, 3]).astype(np.float64)
  pooled = numpy_resnet.average_pool_to_grid(inputs, rows=2, columns=2)
  flat = numpy_resnet.flatten_channel_major(pooled)
  assert flat.shape == (1, 12)
  for c, y, x in itertools.product(range(3), range(2), range(2)):
    assert flat[0, (c * 2 + y) * 2 + x] == pytest.approx(
        inputs[0, 2 * y:2 * y + 2, 3 * x:3 * x + 3, c].mean())

  one_row = numpy_resnet.average_pool_to_grid(inputs, rows=1, columns=2)
  flat = numpy_resnet.flatten_channel_major(one_row)
  assert flat[0, 2 * 2 + 1] == pytest.approx(inputs[0, :, 3:, 2].mean())

  with pytest.raises(ValueError):
    numpy_resnet.average_pool_to_grid(inputs, rows=3, columns=2)


def test_softmax():
  np.testing.assert_allclose(
      numpy_resnet.softmax(np.array([[1000., 1000. + np.log(3.)]])),
      [[.25, .75]])


# ----------------------------------------------------------------------------
# Blocks, by hand: one channel, one pixel, kernels that multiply by a number
# ----------------------------------------------------------------------------
def _one_channel_layers(factors, num_batch_norms, num_shifted):
  """Convolutions by `factors`; batch norms that do nothing, but for one.

  Args:
    factors: list of (kernel size, factor), in order of creation.
    num_batch_norms: int.
    num_shifted: index of the batch norm that adds 1, or None.
  """
  variables = {}
  for number, (k, factor) in enumerate(factors):
    kernel = np.zeros([k, k, 1, 1], np.float32)
    kernel[k // 2, k // 2] = factor
    variables['resnet_model/conv2d{}/kernel'.format(
        '_{}'.format(number) if number else '')] = kernel
  for number in range(num_batch_norms):
    layer = 'resnet_model/batch_normalization{}/'.format(
        '_{}'.format(number) if number else '')
    variables[layer + 'gamma'] = np.ones(1)
    variables[layer + 'beta'] = np.full(1, float(number == num_shifted))
    variables[layer + 'moving_mean'] = np.zeros(1)
    variables[layer + 'moving_variance'] = np.ones(1) - 1e-5
  return numpy_resnet._Layers(variables)  # pylint: disable=protected-access


def _block_of(layers, value, **arguments):
  outputs = numpy_resnet._block(  # pylint: disable=protected-access
      layers, np.full([1, 1, 1, 1], value), **arguments)
  return outputs.ravel()


def test_block_v2_by_hand():
  # First block: the projection (3) sees the activated input, and comes first.
  layers = _one_channel_layers([(1, 3.), (1, 5.), (3, 7.), (1, -2.)], 3, 1)
  np.testing.assert_allclose(
      _block_of(layers, 2., convs=3, version=2, first=True, stride=1),
      3. * 2. + -2. * 7. * (5. * 2. + 1.))
  # Later block: the shortcut is the input itself, negative as it is.
  layers = _one_channel_layers([(3, 5.), (3, -2.)], 2, 0)
  np.testing.assert_allclose(
      _block_of(layers, -.5, convs=2, version=2, first=False, stride=1),
      -.5 + -2. * 5. * (-.5 + 1.))


def test_block_v1_by_hand():
  # First block: the projection (-3) has a batch norm (the first, + 1).
  layers = _one_channel_layers([(1, -3.), (1, 5.), (3, 7.), (1, 2.)], 4, 0)
  np.testing.assert_allclose(
      _block_of(layers, 2., convs=3, version=1, first=True, stride=1),
      (-3. * 2. + 1.) + 2. * 7. * 5. * 2.)
  # Later block: a ReLU after the sum, none before it.
  layers = _one_channel_layers([(3, 5.), (3, -2.)], 2, 1)
  np.testing.assert_allclose(
      _block_of(layers, .05, convs=2, version=1, first=False, stride=1),
      .05 + (-2. * 5. * .05 + 1.))
  layers = _one_channel_layers([(3, 5.), (3, -2.)], 2, 1)
  np.testing.assert_allclose(
      _block_of(layers, 2., convs=2, version=1, first=False, stride=1), 0.)


def test_stride_falls_on_the_first_3x3_convolution():
  # A 3x3 kernel that takes the pixel to the right. At stride 2 on the first
  # 3x3, pixel 0 of the result sees pixel 1; on a 1x1 before it, pixel 2.
  for factors, convs in [([(1, 0.), (1, 1.), (3, 0.), (1, 1.)], 3),
                         ([(1, 0.), (3, 0.), (3, 1.)], 2)]:
    layers = _one_channel_layers(factors, 3, None)
    number = [k for k, _ in factors].index(3)
    shifting = np.zeros([3, 3, 1, 1], np.float32)
    shifting[1, 2] = 1.
    name = 'resnet_model/conv2d_{}/kernel'.format(number)
    layers._variables[name] = shifting  # pylint: disable=protected-access
    outputs = numpy_resnet._block(  # pylint: disable=protected-access
        layers, np.array([10., 20., 30., 40.]).reshape([1, 1, 4, 1]),
        convs=convs, version=2, first=True, stride=2)
    np.testing.assert_allclose(outputs.ravel(), [20., 40.])


# ----------------------------------------------------------------------------
# The network
# ----------------------------------------------------------------------------
def _images(count, size):
  return np.stack([
      image - np.array(numpy_resnet.CHANNEL_MEANS)
      for image in rule_weights.rule_images(count, size, size)])


@pytest.mark.parametrize('size,version', [(50, 2), (50, 1), (18, 2), (34, 1)])
def test_softmaxes_are_neither_uniform_nor_one_hot(size, version):
  variables = rule_weights.rule_variables(
      rule_weights.cascade_variables(size, version))
  softmaxes = numpy_resnet.softmaxes(
      variables, _images(4, 64), resnet_size=size, resnet_version=version)
  assert sorted(softmaxes) == [0, 1, 2]
  for k in (0, 1, 2):
    assert softmaxes[k].shape == (4, 1001)
    assert softmaxes[k].dtype == np.float64
    np.testing.assert_allclose(softmaxes[k].sum(axis=1), 1.)
    top = softmaxes[k].max(axis=1)
    assert 0.02 < top.min() and top.max() < 0.98
    for i, j in itertools.combinations(range(4), 2):
      assert np.abs(softmaxes[k][i] - softmaxes[k][j]).max() > 0.01
  for j, k in itertools.combinations((0, 1, 2), 2):
    assert np.abs(softmaxes[j] - softmaxes[k]).max() > 0.01


def _block_layer(name):
  """The block layer a variable of an 18-layer v2 trunk is in, 1 to 4.

  0 for the first convolution, 5 for what comes after the last block layer.
  """
  kind, number = re.match(
      r'resnet_model/(conv2d|batch_normalization|dense)(?:_(\d+))?/',
      name).groups()
  number = int(number or 0)
  return {'conv2d': (number + 4) // 5,  # five in each, one of them projects
          'batch_normalization': number // 4 + 1,
          'dense': 5}[kind]


def test_every_layer_matters_to_the_exits_after_it_and_to_no_other():
  variables = rule_weights.rule_variables(
      rule_weights.cascade_variables(18, 2, num_classes=11))
  images = _images(1, 32)
  before = numpy_resnet.softmaxes(variables, images, resnet_size=18)
  for name in variables:
    if not name.endswith(('/kernel', '/bias', '/gamma')):
      continue
    changed = dict(variables)
    changed[name] = variables[name] * np.float32(1.2)
    after = numpy_resnet.softmaxes(changed, images, resnet_size=18)
    moved = [k for k in (0, 1, 2) if np.abs(after[k] - before[k]).max() > 1e-6]
    if 'cascaded0' in name:
      expected = [0]
    elif 'cascaded1' in name:
      expected = [1]
    else:
      expected = [k for k, exit_layer in ((0, 2), (1, 3), (2, 5))
                  if _block_layer(name) <= exit_layer]
    assert moved == expected, name


def test_only_the_classifiers_there_are_computed():
  variables = rule_weights.rule_variables(
      rule_weights.cascade_variables(18, 2, num_classes=11))
  images = _images(2, 32)
  full = numpy_resnet.softmaxes(variables, images, resnet_size=18)

  plain = {name: value for name, value in variables.items()
           if 'cascaded' not in name}
  alone = numpy_resnet.softmaxes(plain, images, resnet_size=18)
  assert list(alone) == [2]
  np.testing.assert_array_equal(alone[2], full[2])

  del plain['global_step']
  to_exit_0 = {name: value for name, value in variables.items()
               if 'cascaded0' in name or
               name in plain and _block_layer(name) <= 2}
  alone = numpy_resnet.softmaxes(to_exit_0, images, resnet_size=18)
  assert list(alone) == [0]
  np.testing.assert_array_equal(alone[0], full[0])

  with pytest.raises(KeyError):
    numpy_resnet.softmaxes({}, images, resnet_size=18)


def test_an_image_does_not_depend_on_its_batch():
  variables = rule_weights.rule_variables(
      rule_weights.resnet_variables(18, 2, num_classes=11))
  images = _images(3, 32)
  together = numpy_resnet.softmaxes(variables, images, resnet_size=18)[2]
  alone = numpy_resnet.softmaxes(variables, images[2:], resnet_size=18)[2]
  np.testing.assert_allclose(alone[0], together[2], rtol=1e-12)
  at_once = numpy_resnet.logits_of_exits(variables, images, resnet_size=18)[2]
  np.testing.assert_allclose(numpy_resnet.softmax(at_once), together,
                             rtol=1e-9)


def test_variables_of_another_network_are_errors():
  variables = rule_weights.rule_variables(
      rule_weights.resnet_variables(18, 2, num_classes=11))
  images = _images(1, 32)
  variables['resnet_model/conv2d/kernel/Momentum'] = np.zeros(1)  # passed over
  numpy_resnet.softmaxes(variables, images, resnet_size=18)
  variables['resnet_model/conv2d_40/kernel'] = np.zeros([1, 1, 1, 1])
  with pytest.raises(ValueError, match='conv2d_40'):
    numpy_resnet.softmaxes(variables, images, resnet_size=18)
  del variables['resnet_model/conv2d_9/kernel']
  with pytest.raises(KeyError, match='conv2d_9'):
    numpy_resnet.softmaxes(variables, images, resnet_size=18)


# ----------------------------------------------------------------------------
# Preprocessing
# ----------------------------------------------------------------------------
def _resize_row(row, new_width):
  image = np.array(row, np.float64).reshape([1, -1, 1])
  return numpy_resnet.resize_bilinear(image, 1, new_width).ravel()


def test_resize_by_hand():
  # Output i comes from i * old / new, the last pixel standing beyond the edge.
  np.testing.assert_allclose(_resize_row([0, 10], 4), [0, 5, 10, 10])
  np.testing.assert_allclose(_resize_row([0, 1, 2, 3], 2), [0, 2])
  np.testing.assert_allclose(_resize_row([10, 20, 40], 2), [10, 30])
  np.testing.assert_allclose(_resize_row([7], 3), [7, 7, 7])
  np.testing.assert_allclose(_resize_row([3, 1, 4, 1], 4), [3, 1, 4, 1])


def test_resize_is_separable_and_keeps_channels_apart():
  image = np.random.RandomState(0).randint(0, 256, [4, 6, 3]).astype(np.uint8)
  resized = numpy_resnet.resize_bilinear(image, 8, 3)
  assert resized.shape == (8, 3, 3) and resized.dtype == np.float64
  # Every second column; every row, and between rows their mean.
  np.testing.assert_allclose(resized[::2], image[:, ::2])
  np.testing.assert_allclose(
      resized[1], (image[0, ::2].astype(float) + image[1, ::2]) / 2.)


def test_resized_size():
  size = numpy_resnet.resized_size
  assert size(256, 256, 256) == (256, 256)
  assert size(375, 500, 256) == (256, 341)  # 341.33
  assert size(500, 375, 256) == (341, 256)
  assert size(1, 3, 256) == (256, 768)
  # float32(256 / 61) * 61 is below 256, and the official code truncates.
  assert size(61, 61, 256) == (255, 255)
  assert size(500, 332, 256) == (385, 255)


def test_preprocess_crops_the_centre_and_subtracts_the_means():
  # 256 rows: no resize. 300 columns. (256 - 224) // 2, (300 - 224) // 2.
  image = np.random.RandomState(0).randint(0, 256, [256, 301, 3])
  image = image.astype(np.uint8)
  np.testing.assert_allclose(
      numpy_resnet.preprocess_for_eval(image),
      image[16:240, 38:262] - np.array([123.68, 116.78, 103.94]))


def test_preprocess_for_another_image_size():
  image = np.random.RandomState(0).randint(0, 256, [73, 80, 3]).astype(np.uint8)
  # 64 * 256 // 224 is 73: no resize.
  np.testing.assert_allclose(
      numpy_resnet.preprocess_for_eval(image, image_size=64),
      image[4:68, 8:72] - np.array([123.68, 116.78, 103.94]))


def test_decode_image(tmpdir):
  pillow = pytest.importorskip('PIL.Image')
  image = rule_weights.rule_images(1, 9, 7)[0]
  path = str(tmpdir.join('image.png'))
  pillow.fromarray(image).save(path)
  np.testing.assert_array_equal(numpy_resnet.decode_image(path), image)
  path = str(tmpdir.join('grey.png'))
  pillow.fromarray(image[..., 0]).save(path)
  grey = numpy_resnet.decode_image(path)
  assert grey.shape == (9, 7, 3)
  np.testing.assert_array_equal(grey, np.stack([image[..., 0]] * 3, axis=-1))


def test_rule_images():
  images = rule_weights.rule_images(4, 20, 30)
  assert images.shape == (4, 20, 30, 3) and images.dtype == np.uint8
  np.testing.assert_array_equal(rule_weights.rule_images(2, 20, 30), images[:2])
  assert all(image.std() > 10. for image in images)
