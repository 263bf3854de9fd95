"""Preprocessing in as many plain steps as it has: slow, and easy to check.

What `imagenet_preprocessing` must give, bit for bit; benchmarks compare their
speed.
"""

from tf_compat import tf

import imagenet_preprocessing

NUM_CHANNELS = 3


def preprocess_for_eval(jpeg, image_size):
  """The whole image decoded and resized; its centre, less the means.

  Args:
    jpeg: a scalar string.
    image_size: int.

  Returns:
    float32 [image_size, image_size, 3].
  """
  image = tf.image.decode_jpeg(jpeg, channels=NUM_CHANNELS)
  shape = tf.shape(image)
  height, width = tf.to_float(shape[0]), tf.to_float(shape[1])
  scale = (tf.to_float(imagenet_preprocessing.resize_min(image_size)) /
           tf.minimum(height, width))
  height, width = tf.to_int32(height * scale), tf.to_int32(width * scale)
  image = tf.image.resize_images(image, [height, width], align_corners=False)
  top, left = (height - image_size) // 2, (width - image_size) // 2
  image = image[top:top + image_size, left:left + image_size]
  image.set_shape([image_size, image_size, NUM_CHANNELS])
  return image - tf.constant(imagenet_preprocessing.CHANNEL_MEANS, tf.float32)
