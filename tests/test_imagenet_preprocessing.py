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


def train(jpeg, image_size, num_draws, boxes=(), seed=1):
  """float32 [num_draws, image_size, image_size, 3], preprocessed to train."""
  with tf.Graph().as_default(), tf.Session() as session:
    tf.set_random_seed(seed)
    image = imagenet_preprocessing.preprocess_image(
        tf.constant(jpeg), tf.reshape(tf.constant(boxes, tf.float32),
                                      [1, len(boxes), 4]),
        image_size, image_size, 3, is_training=True)
    assert image.shape.as_list() == [image_size, image_size, 3]
    return np.stack([session.run(image) for _ in range(num_draws)])


# ----------------------------------------------------------------------------
# Evaluation
# ----------------------------------------------------------------------------
# Every size of `tiny_records.SIZES` (tiny, very wide, very high), in colour
# (three kinds of chroma subsampling) and grey, baseline and progressive.
NUM_KINDS = 2 * len(tiny_records.SIZES)


@pytest.mark.parametrize('image_size', [224, 64, 32])
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
  sizes = [(1, 1), (2, 300), (300, 2), (188, 331), (332, 333), (375, 500)]
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


def test_the_smaller_side_before_the_crop():
  assert [imagenet_preprocessing.resize_min(size)
          for size in (224, 64, 32, 96, 448)] == [256, 73, 36, 109, 512]


def test_the_size_rule_is_the_official_one_in_single_precision():
  def resized_sizes(sizes, smaller_side):
    with tf.Graph().as_default(), tf.Session() as session:
      image = tf.placeholder(tf.uint8, [None, None, 1])
      size = imagenet_preprocessing._size_for_crop(image, smaller_side)
      return [tuple(session.run(size, {image: np.zeros((h, w, 1), np.uint8)}))
              for h, w in sizes]

  # 188 * (256 / 188) comes to 255.99998 in float32, and is truncated; in
  # float64 the two divide out.
  assert resized_sizes([(188, 188), (188, 300), (332, 332), (500, 375)],
                       256) == [(255, 255), (255, 408), (255, 255), (341, 256)]
  rng = np.random.RandomState(0)
  sizes = [tuple(size) for size in rng.randint(1, 600, [300, 2])]
  for smaller_side in (256, 73):
    expected = [numpy_resnet.resized_size(height, width, smaller_side)
                for height, width in sizes]
    assert resized_sizes(sizes, smaller_side) == expected
    # Both cases occur.
    assert {min(size) for size in expected} == {smaller_side, smaller_side - 1}


def test_an_image_of_188_pixels_is_resized_to_255():
  noise = np.random.RandomState(0).randint(0, 256, [188, 188], np.uint8)
  (image, decoded), = evaluate([encode(noise)], 224)
  at_255 = numpy_resnet.resize_bilinear(decoded, 255, 255)
  at_256 = numpy_resnet.resize_bilinear(decoded, 256, 256)
  np.testing.assert_allclose(
      image, at_255[15:239, 15:239] - MEANS, rtol=0, atol=TOLERANCE)
  assert np.abs(image - (at_256[16:240, 16:240] - MEANS)).mean() > 1


# ----------------------------------------------------------------------------
# Both
# ----------------------------------------------------------------------------
@pytest.mark.parametrize('grey_level', [0, 1, 128, 255])
def test_the_same_means_and_no_division(grey_level):
  jpeg = encode(np.full([40, 50], grey_level))
  expected = np.broadcast_to(grey_level - MEANS, [32, 32, 3])
  (evaluated, _), = evaluate([jpeg], 32)
  np.testing.assert_allclose(evaluated, expected, rtol=0, atol=TOLERANCE)
  for trained in train(jpeg, 32, num_draws=3):
    np.testing.assert_allclose(trained, expected, rtol=0, atol=TOLERANCE)


def test_colours_keep_their_place():
  jpeg = encode(np.broadcast_to(np.uint8([250, 130, 10]), [40, 50, 3]))
  (evaluated, decoded), = evaluate([jpeg], 32)
  np.testing.assert_allclose(decoded[0, 0], [250, 130, 10], atol=2)
  for image in [evaluated] + list(train(jpeg, 32, num_draws=2)):
    np.testing.assert_allclose(image + MEANS, np.broadcast_to(
        decoded[0, 0], image.shape), rtol=0, atol=TOLERANCE)


# ----------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------
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


@pytest.fixture(scope='module')
def windows():
  """400 windows of an image of 160 x 240 pixels without boxes."""
  return read_windows(train(coordinate_jpeg(160, 240), 64, num_draws=400))


def test_crops_are_of_legal_shape(windows):
  _, height, _, width, _ = windows
  # Sides are rounded to pixels, too.
  assert np.all(width + 1 >= 0.75 * (height - 1))
  assert np.all(width - 1 <= 1.33 * (height + 1))
  # A tenth of the box, which is the whole image here, must be in it.
  assert np.all((height + 1) * (width + 1) >= 0.1 * 160 * 240)


def test_crops_are_of_all_kinds(windows):
  top, height, left, width, _ = windows
  area, aspect = height * width / (160 * 240.), width / height
  # The largest legal one is 0.887 of the image.
  assert area.min() < 0.13 and area.max() > 0.8
  assert aspect.min() < 0.8 and aspect.max() > 1.28
  assert top.min() < 2 and (top + height).max() > 158
  assert left.min() < 3 and (left + width).max() > 236
  vertical, horizontal = top + height / 2, left + width / 2
  assert 70 < vertical.mean() < 90 and 108 < horizontal.mean() < 132
  assert vertical.std() > 15 and horizontal.std() > 25


def test_half_of_the_crops_are_mirrored(windows):
  mirrored = windows[4]
  assert 0.42 < mirrored.mean() < 0.58  # Three standard deviations.


def test_the_whole_image_where_no_legal_crop_is_large_enough():
  # A tenth of 9 x 200 pixels does not fit into 9 x 12, the largest crop of
  # legal shape.
  images = train(coordinate_jpeg(9, 200), 64, num_draws=12)
  for top, height, left, width, _ in read_windows(images).T:
    assert abs(left) < 2 and abs(width - 200) < 1
    assert abs(top) < 1 and abs(height - 9) < 2


# (y_min, x_min, y_max, x_max): at the lower left of the image.
LOW_LEFT_BOX = (0.8, 0., 1., 0.15)


def overlap(window, box):
  """The part of a box of a 160 x 240 image that is in a window."""
  top, height, left, width, _ = window
  y_min, x_min, y_max, x_max = np.array(box) * [160, 240, 160, 240]
  shared_height = min(top + height, y_max) - max(top, y_min)
  shared_width = min(left + width, x_max) - max(left, x_min)
  return (max(shared_height, 0) * max(shared_width, 0) /
          ((y_max - y_min) * (x_max - x_min)))


def test_crops_hold_a_tenth_of_a_box():
  drawn = read_windows(train(
      coordinate_jpeg(160, 240), 64, num_draws=100, boxes=[LOW_LEFT_BOX])).T
  overlaps = [overlap(window, LOW_LEFT_BOX) for window in drawn]
  assert min(overlaps) > 0.05  # A tenth, as it is read off.
  assert min(overlaps) < 0.5
  areas = drawn[:, 1] * drawn[:, 3] / (160 * 240)
  assert 0.045 < areas.min() < 0.1  # Not held to a tenth of the image.


def test_crops_without_the_box_often_miss_it(windows):
  missed = [overlap(window, LOW_LEFT_BOX) == 0 for window in windows.T]
  assert np.mean(missed) > 0.2


@pytest.mark.parametrize('image_size', [224, 32])
def test_training_of_every_kind_of_jpeg(image_size):
  for number in range(NUM_KINDS):
    image, = train(tiny_records.draw_jpeg(number), image_size, num_draws=1)
    assert image.shape == (image_size, image_size, 3)
    assert image.dtype == np.float32
    grey_levels = image + MEANS
    assert grey_levels.min() > -1e-3 and grey_levels.max() < 255.001
    if number % 4 == 1:  # Greyscale.
      np.testing.assert_allclose(
          grey_levels[:, :, :2], grey_levels[:, :, 1:], atol=TOLERANCE)
