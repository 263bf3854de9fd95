"""Which files are photos, of those that a command line names. No TensorFlow."""

import os

from image_files import EXTENSIONS, walk_images
from shared_files import explain_error
from shared_terminal import UserError


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
