"""The NumPy reference, numpy_resnet.py, against cases written out by hand.

That it is an independent evaluation is what the tests of the network rest on;
`test_resnet_model.py` holds it against TensorFlow, layer for layer.
"""

import itertools

import numpy as np
import pytest

import numpy_resnet


# ---- Operations --------------------------------------------------------------

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


def test_max_pool_by_hand():
  # Even: padded at the end only. Windows [4 3 5], [5 1 -inf].
  inputs = np.array([4., 3., 5., 1.]).reshape([1, 1, 4, 1])
  np.testing.assert_array_equal(
      numpy_resnet.max_pool(inputs).ravel(), [5., 5.])
  # Odd: padded at both ends. Windows [-inf -4 -3], [-3 -5 -1], [-1 -2 -inf].
  inputs = np.array([-4., -3., -5., -1., -2.]).reshape([1, 5, 1, 1])
  np.testing.assert_array_equal(
      numpy_resnet.max_pool(inputs).ravel(), [-3., -1., -1.])


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


# ---- Preprocessing -----------------------------------------------------------

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
