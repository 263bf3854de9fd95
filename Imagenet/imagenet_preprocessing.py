"""JPEG bytes to an image tensor, as the official ResNet sees it.

Training draws a random part of the image, evaluation takes the centre; both
subtract the mean colour of ImageNet and divide by nothing. From the official
models' `imagenet_preprocessing.py` (October 2018), which in turn follows the
VGG preprocessing of Simonyan & Zisserman, 2014.
"""

from tf_compat import tf

# Mean red, green and blue of the ImageNet training images, in grey levels.
CHANNEL_MEANS = (123.68, 116.78, 103.94)

DEFAULT_IMAGE_SIZE = 224
# Least share of an image that a random crop keeps in training.
MIN_CROP_AREA = 0.05


def resize_min(image_size):
  """What an image's smaller side becomes before its centre is taken."""
  return image_size * 256 // DEFAULT_IMAGE_SIZE


def preprocess_image(image_buffer, bbox, output_height, output_width,
                     num_channels, is_training=False, seed=None,
                     min_crop_area=MIN_CROP_AREA):
  """Decodes, crops, resizes and centres one image.

  Args:
    image_buffer: a scalar string, an encoded JPEG (greyscale too).
    bbox: float32 [1, boxes, 4] as (y_min, x_min, y_max, x_max) in fractions;
      may hold no box; used in training only.
    is_training: a random crop, perhaps mirrored, rather than the centre.
    seed: of the random crop and mirroring; None for the graph's.
    min_crop_area: least share of the image's area in the random crop.

  Returns:
    float32 [output_height, output_width, num_channels], grey levels from 0 to
    255 less the channel means.
  """
  if is_training:
    image = _decode_random_crop(
        image_buffer, bbox, num_channels, seed, min_crop_area)
    image = _resize(image, output_height, output_width)
    image.set_shape([output_height, output_width, num_channels])
  else:
    # The whole image, although only the centre is kept. Decoding just the crop
    # was tried: two thirds of the time go into Huffman codes, which have to be
    # read anyway (benchmarks/decode_rates.py), and a JPEG whose end is missing
    # would go unnoticed.
    image = tf.image.decode_jpeg(image_buffer, channels=num_channels)
    image = resize_and_crop(image, output_height, output_width)
  return subtract_channel_means(image)


def preprocess_images(image_buffers, output_height, output_width,
                      num_channels):
  """Preprocesses a batch of encoded images, strings [batch], undistorted.

  Returns:
    float32 [batch, output_height, output_width, num_channels].
  """
  no_boxes = tf.zeros([1, 0, 4], tf.float32)
  return tf.map_fn(
      lambda image_buffer: preprocess_image(
          image_buffer, no_boxes, output_height, output_width, num_channels),
      image_buffers, dtype=tf.float32, back_prop=False)


def resize_and_crop(image, output_height, output_width):
  """The centre of an image [height, width, channels], resized, for evaluation.

  Returns:
    float32 [output_height, output_width, channels], grey levels.
  """
  height, width = _size_for_crop(
      image, resize_min(max(output_height, output_width)))
  return _central_crop(
      _resize(image, height, width), output_height, output_width)


def subtract_channel_means(images):
  """Centres float images in grey levels.

  Args:
    images: float32 [..., width, 3]; the width is known as the graph is built.

  Returns:
    float32, of the same shape.
  """
  # Whole rows at once: TensorFlow broadcasts over an innermost dimension of 3
  # several times as slowly.
  row_means = tf.constant(
      CHANNEL_MEANS * images.shape[-2:-1].num_elements(), tf.float32)
  centred = tf.reshape(
      images, tf.stack([-1, row_means.shape.num_elements()])) - row_means
  centred = tf.reshape(centred, tf.shape(images))
  centred.set_shape(images.shape)
  return centred


def _decode_random_crop(image_buffer, bbox, num_channels, seed,
                        min_crop_area):
  """Decodes only a random window of the image, mirrored half of the time."""
  # This op, unlike others, does not look for the graph's seed itself.
  graph_seed, op_seed = tf.get_seed(seed)
  window_start, window_size, _ = tf.image.sample_distorted_bounding_box(
      tf.image.extract_jpeg_shape(image_buffer),
      bounding_boxes=bbox,
      min_object_covered=0.1,
      aspect_ratio_range=[0.75, 1.33],
      area_range=[min_crop_area, 1.0],
      max_attempts=100,
      seed=graph_seed,
      seed2=op_seed,
      use_image_if_no_bounding_boxes=True)
  top, left, _ = tf.unstack(window_start)
  height, width, _ = tf.unstack(window_size)
  image = tf.image.decode_and_crop_jpeg(
      image_buffer, tf.stack([top, left, height, width]),
      channels=num_channels)
  return tf.image.random_flip_left_right(image, seed=seed)


def _size_for_crop(image, smaller_side):
  """Height and width that bring the smaller side to `smaller_side`.

  In single precision, as the official code computes it: for some sizes (188
  pixels, 332 pixels) the product comes out just below the whole number and is
  truncated, so that the smaller side is one pixel less. The published
  accuracies were measured that way.
  """
  shape = tf.shape(image)
  height, width = tf.to_float(shape[0]), tf.to_float(shape[1])
  scale = tf.to_float(smaller_side) / tf.minimum(height, width)
  return tf.to_int32(height * scale), tf.to_int32(width * scale)


def _resize(image, height, width):
  return tf.image.resize_images(
      image, [height, width], method=tf.image.ResizeMethod.BILINEAR,
      align_corners=False)


def _central_crop(image, height, width):
  shape = tf.shape(image)
  top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
  # A matrix is sliced by copying rows, an array of rank 3 pixel by pixel.
  num_channels = image.shape[2:].num_elements()
  rows = tf.slice(
      tf.reshape(image, tf.stack([shape[0], shape[1] * num_channels])),
      tf.stack([top, left * num_channels]), [height, width * num_channels])
  return tf.reshape(rows, [height, width, num_channels])
