"""Preprocessing is the plain one of plain_preprocessing.py, bit for bit."""

import io

import numpy as np
import pytest
from PIL import Image

from tf_compat import tf

import image_kinds
import imagenet_preprocessing
import plain_preprocessing
import tiny_records

IMAGE_SIZES = (224, 96, 32)


def both(images, image_size):
  """(preprocessed, preprocessed plainly) of each image file."""
  with tf.Graph().as_default(), tf.Session() as session:
    encoded = tf.placeholder(tf.string, [])
    fetches = [
        imagenet_preprocessing.preprocess_image(
            encoded, tf.zeros([1, 0, 4]), image_size, image_size, 3),
        plain_preprocessing.preprocess_for_eval(encoded, image_size)]
    return [session.run(fetches, {encoded: image}) for image in images]


def assert_same(images, image_size):
  for number, (ours, plain) in enumerate(both(images, image_size)):
    assert ours.shape == (image_size, image_size, 3)
    np.testing.assert_array_equal(ours, plain, err_msg=str(number))


@pytest.mark.parametrize('image_size', IMAGE_SIZES)
def test_random_sizes(image_size):
  rng = np.random.RandomState(image_size)
  # 188 and 332 pixels are those that single precision rounds down.
  sizes = [(1, 1), (1, 9), (9, 1), (2, 300), (300, 2), (188, 188), (188, 331),
           (332, 333), (375, 500), (500, 375), (256, 256), (224, 224)]
  sizes += [tuple(size) for size in rng.randint(1, 400, [25, 2])]
  assert_same([image_kinds.encode(image_kinds.noise(rng, *size),
                                  subsampling=number % 3, quality=85,
                                  progressive=number % 2 == 1)
               for number, size in enumerate(sizes)], image_size)


@pytest.mark.parametrize('image_size', IMAGE_SIZES)
@pytest.mark.parametrize('progressive', [False, True])
def test_chroma_subsamplings(image_size, progressive):
  rng = np.random.RandomState(0)
  assert_same([
      image_kinds.sampled_jpeg(rng, height, width, sampling, progressive)
      for sampling in sorted(image_kinds.SAMPLINGS)
      for height, width in ((64, 100), (150, 60), (8, 8))], image_size)


@pytest.mark.parametrize('sampling', sorted(image_kinds.SAMPLINGS))
@pytest.mark.parametrize('progressive', [False, True])
def test_the_subsamplings_are_there(sampling, progressive):
  jpeg = image_kinds.sampled_jpeg(
      np.random.RandomState(0), 60, 130, sampling, progressive)
  image = Image.open(io.BytesIO(jpeg))
  image.load()  # Neither too short nor too long.
  factors, _ = image_kinds.SAMPLINGS[sampling]
  assert [layer[1:3] for layer in image.layer] == [
      (factors >> 4, factors & 15), (1, 1), (1, 1)]
  # The last rows and columns are coded, too: they are grey where data ends.
  assert np.asarray(image)[-8:].std() > 10
  assert np.asarray(image)[:, -8:].std() > 10


@pytest.mark.parametrize('kind, mode', [
    ('JPEG', 'L'), ('JPEG', 'CMYK'), ('PNG', 'RGB'), ('PNG', 'L'),
    ('PNG', 'RGBA')])
def test_other_kinds_of_files(kind, mode):
  rng = np.random.RandomState(0)
  assert_same([image_kinds.encode(image_kinds.noise(rng, *size), kind, mode)
               for size in ((70, 121), (33, 20), (5, 300))], 96)


@pytest.mark.parametrize('image_size', IMAGE_SIZES)
def test_the_images_of_other_tests(image_size):
  assert_same([tiny_records.draw_jpeg(number) for number in range(21)],
              image_size)


def test_means_are_subtracted_as_plainly():
  images = np.random.RandomState(0).uniform(
      0, 255, [3, 5, 7, 3]).astype(np.float32)
  means = np.array(imagenet_preprocessing.CHANNEL_MEANS, np.float32)
  for shape in ([3, 5, 7, 3], [None, 5, 7, 3], [None, None, 7, 3]):
    with tf.Graph().as_default(), tf.Session() as session:
      placeholder = tf.placeholder(tf.float32, shape)
      centred = imagenet_preprocessing.subtract_channel_means(placeholder)
      assert centred.shape.as_list() == shape
      np.testing.assert_array_equal(
          session.run(centred, {placeholder: images}), images - means)


@pytest.mark.parametrize('cut', [2, 40, 1000])
def test_an_image_whose_end_is_missing_is_an_error(cut):
  """Though its centre may be whole: the record is damaged."""
  jpeg = image_kinds.encode(
      image_kinds.noise(np.random.RandomState(0), 500, 200))
  with tf.Graph().as_default(), tf.Session() as session:
    encoded = tf.placeholder(tf.string, [])
    image = imagenet_preprocessing.preprocess_image(
        encoded, tf.zeros([1, 0, 4]), 96, 96, 3)
    session.run(image, {encoded: jpeg})
    with pytest.raises(tf.errors.InvalidArgumentError):
      session.run(image, {encoded: jpeg[:-cut]})
