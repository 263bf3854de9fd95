"""Tests of Imagenet/imagenet_preprocessing.py.

Evaluation is compared with tests/numpy_resnet.py, from the same decoded pixels,
and bit for bit with the plain way of plain_preprocessing.py.
"""

import io

import numpy as np
import pytest
from PIL import Image

from tf_compat import tf

import imagenet_preprocessing
import numpy_resnet
import plain_preprocessing
import tiny_records

# Grey levels. float32 has a step of 1.5e-5 at 255; seen were 3.2e-5.
TOLERANCE = 5e-4
MEANS = np.array([123.68, 116.78, 103.94])


def encode(pixels, **options):
  """JPEG bytes, as near to `pixels` as JPEG comes."""
  options = dict(dict(quality=100, subsampling=0), **options)
  stream = io.BytesIO()
  Image.fromarray(np.asarray(pixels, np.uint8)).save(stream, 'JPEG', **options)
  return stream.getvalue()


def evaluate(jpegs, height, width=None):
  """(preprocessed for evaluation, decoded by TensorFlow) of each JPEG."""
  with tf.Graph().as_default(), tf.Session() as session:
    encoded = tf.placeholder(tf.string, [])
    image = imagenet_preprocessing.preprocess_image(
        encoded, tf.zeros([1, 0, 4]), height, width or height, 3)
    assert image.dtype == tf.float32
    assert image.shape.as_list() == [height, width or height, 3]
    decoded = tf.image.decode_jpeg(encoded, channels=3)
    return [session.run([image, decoded], {encoded: jpeg}) for jpeg in jpegs]


def train(jpeg, image_size, num_draws, **kwargs):
  """float32 [num_draws, image_size, image_size, 3], preprocessed to train."""
  with tf.Graph().as_default(), tf.Session() as session:
    tf.set_random_seed(1)
    image = imagenet_preprocessing.preprocess_image(
        tf.constant(jpeg), tf.zeros([1, 0, 4]), image_size, image_size, 3,
        is_training=True, **kwargs)
    assert image.shape.as_list() == [image_size, image_size, 3]
    return np.stack([session.run(image) for _ in range(num_draws)])


# ---- Evaluation --------------------------------------------------------------

# Every size of `tiny_records.SIZES` (tiny, very wide, very high), in colour
# (three kinds of chroma subsampling) and grey, baseline and progressive.
NUM_KINDS = 2 * len(tiny_records.SIZES)


@pytest.mark.parametrize('image_size', [224, 32])
def test_evaluation_is_that_of_the_reference(image_size):
  jpegs = [tiny_records.draw_jpeg(number) for number in range(NUM_KINDS)]
  for number, (image, decoded) in enumerate(evaluate(jpegs, image_size)):
    reference = numpy_resnet.preprocess_for_eval(decoded, image_size)
    np.testing.assert_allclose(
        image, reference, rtol=0, atol=TOLERANCE, err_msg=str(number))


@pytest.mark.parametrize('image_size', [224, 96])
def test_the_same_pixels_as_the_plain_way(image_size):
  rng = np.random.RandomState(image_size)
  # 188 and 332 pixels are those that single precision rounds down.
  sizes = [(1, 1), (4, 300), (300, 4), (188, 331), (332, 333), (375, 500)]
  sizes += [tuple(size) for size in rng.randint(1, 400, [9, 2])]
  with tf.Graph().as_default(), tf.Session() as session:
    encoded = tf.placeholder(tf.string, [])
    fetches = [
        imagenet_preprocessing.preprocess_image(
            encoded, tf.zeros([1, 0, 4]), image_size, image_size, 3),
        plain_preprocessing.preprocess_for_eval(encoded, image_size)]
    for number, size in enumerate(sizes):
      jpeg = encode(rng.randint(0, 256, size + (3,)), quality=85,
                    subsampling=number % 3)
      ours, plain = session.run(fetches, {encoded: jpeg})
      np.testing.assert_array_equal(ours, plain, err_msg=str(size))


@pytest.mark.parametrize('cut', [2, 1000])
def test_an_image_whose_end_is_missing_is_an_error(cut):
  """Though its centre may be whole: the record is damaged."""
  jpeg = encode(np.random.RandomState(0).randint(0, 256, [500, 200, 3]))
  evaluate([jpeg], 96)
  with pytest.raises(tf.errors.InvalidArgumentError):
    evaluate([jpeg[:-cut]], 96)


# ---- Training ----------------------------------------------------------------

def coordinate_jpeg(height, width):
  """An image whose red is the column and whose green is the row."""
  rows, columns = np.mgrid[:height, :width]
  return encode(np.stack([columns, rows, 0 * rows + 128], axis=2))


def read_windows(images):
  """The windows that `coordinate_jpeg` was cropped to.

  Pixel i of the result shows the source coordinate start + i * size / pixels
  of the window, or, mirrored, start + size - 1 - i * size / pixels.

  Returns:
    (top, height, left, width, mirrored) of each, in source pixels: sizes to
    half a pixel, positions, which suffer from JPEG's colours, to one and a
    half.
  """
  images = images + MEANS
  pixels = images.shape[1]
  # The last pixels of a window are drawn from its border alone.
  inner = np.arange(pixels * 3 // 4)
  windows = []
  for image in images:
    column_slope, column = np.polyfit(
        inner, image[:, :, 0].mean(axis=0)[inner], 1)
    row_slope, row = np.polyfit(inner, image[:, :, 1].mean(axis=1)[inner], 1)
    height, width = row_slope * pixels, abs(column_slope) * pixels
    mirrored = column_slope < 0
    left = column + 1 - width if mirrored else column
    windows.append((row, height, left, width, mirrored))
  return np.array(windows).T


def test_crops_are_legal_and_of_all_kinds():
  """400 windows of an image of 160 x 240 pixels without boxes."""
  top, height, left, width, mirrored = read_windows(
      train(coordinate_jpeg(160, 240), 64, num_draws=400))
  # Sides are rounded to pixels, too.
  assert np.all(width + 1 >= 0.75 * (height - 1))
  assert np.all(width - 1 <= 1.33 * (height + 1))
  # A tenth of the box, which is the whole image here, must be in it.
  assert np.all((height + 1) * (width + 1) >= 0.1 * 160 * 240)
  area, aspect = height * width / (160 * 240.), width / height
  # The largest legal one is 0.887 of the image.
  assert area.min() < 0.13 and area.max() > 0.8
  assert aspect.min() < 0.8 and aspect.max() > 1.28
  assert top.min() < 2 and (top + height).max() > 158
  assert left.min() < 3 and (left + width).max() > 236
  assert 70 < (top + height / 2).mean() < 90
  assert 108 < (left + width / 2).mean() < 132
  assert 0.42 < mirrored.mean() < 0.58  # Three standard deviations.


def test_crops_that_keep_more():
  _, height, _, width, _ = read_windows(train(
      coordinate_jpeg(160, 240), 64, num_draws=100, min_crop_area=0.5))
  assert np.all((height + 1) * (width + 1) >= 0.5 * 160 * 240)
  assert (height * width).min() < 0.6 * 160 * 240


def test_training_of_every_kind_of_jpeg():
  for number in range(NUM_KINDS):
    image, = train(tiny_records.draw_jpeg(number), 32, num_draws=1)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.float32
    grey_levels = image + MEANS
    assert grey_levels.min() > -1e-3 and grey_levels.max() < 255.001
    if number % 4 == 1:  # Greyscale.
      np.testing.assert_allclose(
          grey_levels[:, :, :2], grey_levels[:, :, 1:], atol=TOLERANCE)
