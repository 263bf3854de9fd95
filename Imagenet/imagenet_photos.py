"""Image files and folders of them to preprocessed images.

They become the images that the network would see had they been packed into
records, by the same two steps: `image_files.py` of the record tools (a link to
that file), and the preprocessing of an evaluation.
"""

import contextlib
import multiprocessing.pool
import os
import typing

import numpy as np

from tf_compat import tf

import imagenet_preprocessing
from image_files import prepare_image


class PhotoBatch(typing.NamedTuple):
  """Some files, those that are images and those that are not."""
  paths: typing.List[str]     # Of the images.
  images: np.ndarray          # float32 [images, height, width, 3]
  problems: typing.List[str]  # A line for each file that is no image.


def read_photos(paths, batch_size, image_size):
  """Yields a `PhotoBatch` for every `batch_size` files, in their order.

  Args:
    paths: of the files.
    batch_size: files, some of which may be no images.
    image_size: height and width of the images, in pixels.
  """
  with tf.Graph().as_default(), tf.device('/cpu:0'):
    jpeg = tf.placeholder(tf.string, [])
    image = imagenet_preprocessing.preprocess_image(
        jpeg, tf.zeros([1, 0, 4]), image_size, image_size, 3)
    session = tf.Session(config=tf.ConfigProto(device_count={'GPU': 0}))

  def read(path):
    """(image, None), or (None, what is wrong)."""
    try:
      # To read a FIFO would wait forever.
      if not os.path.isfile(path):
        raise ValueError('is not a regular file')
      with open(path, 'rb') as stream:
        prepared = prepare_image(stream.read())
      return session.run(image, {jpeg: prepared.jpeg}), None
    except (OSError, ValueError) as error:
      reason = getattr(error, 'strerror', None) or error
    except tf.errors.OpError:
      reason = 'cannot be decoded'
    return None, f'{path}: {reason}; left out'

  with contextlib.closing(session), multiprocessing.pool.ThreadPool() as pool:
    for start in range(0, len(paths), batch_size):
      batch = paths[start:start + batch_size]
      results = pool.map(read, batch)
      images = [image for image, _ in results if image is not None]
      yield PhotoBatch(
          [path for path, (image, _) in zip(batch, results)
           if image is not None],
          np.array(images, np.float32).reshape(
              [len(images), image_size, image_size, 3]),
          [problem for _, problem in results if problem])
