"""Photos that a command line names, read as the records were. No TensorFlow."""

import multiprocessing.pool
import os

import numpy as np

from image_files import EXTENSIONS, prepare_image, walk_images
from shared_files import explain_error
from shared_terminal import UserError, say


def find_photos(paths):
  """Files as they are named, and the images in folders and their subfolders.

  Raises:
    UserError: a path is not there, or a folder has no image.
  """
  found = []
  for path in paths:
    if not os.path.exists(path):
      raise UserError(f'{path}: no such file or folder')
    if os.path.isdir(path):
      with explain_error(path, 'name another folder', action='read'):
        in_folder = walk_images(path)
      if not in_folder:
        raise UserError(f'{path}: a folder without images '
                        f'({", ".join(EXTENSIONS)})')
      found.extend(in_folder)
    else:
      found.append(path)
  return found


def read_photos(paths, batch_size, preprocess):
  """Yields (paths, images) of every `batch_size` files, in their order.

  Those that are no images are left out, with a line on stderr for each.

  Args:
    paths: of `find_photos`.
    batch_size: files.
    preprocess: a function from the bytes of a JPEG to the image, float32
      [height, width, 3], for several threads at once. It raises an OSError or a
      ValueError where it cannot.
  """
  def read(path):
    """(image, None), or (None, what is wrong)."""
    try:
      with open(path, 'rb') as stream:
        return preprocess(prepare_image(stream.read()).jpeg), None
    except (OSError, ValueError) as error:
      return None, getattr(error, 'strerror', None) or error

  with multiprocessing.pool.ThreadPool() as pool:
    for start in range(0, len(paths), batch_size):
      in_batch = []
      batch = paths[start:start + batch_size]
      for path, (image, problem) in zip(batch, pool.map(read, batch)):
        if problem:
          say(f'{path}: {problem}; left out')
        else:
          in_batch.append((path, image))
      if in_batch:
        read_paths, images = zip(*in_batch)
        yield read_paths, np.stack(images)
