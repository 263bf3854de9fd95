"""Any folder of images, one subfolder per class, as an index.

    DIR/train/cat/1.jpg                   DIR/cat/1.jpg
    DIR/train/dog/2.png            or     DIR/dog/2.png
    DIR/validation/cat/3.webp             DIR/dog/old/3.bmp

In the second form a fraction and a seed choose the validation images. The
folder is the user's own: symbolic links are followed, and files that are no
images are passed over, which the user is told.
"""

import fractions
import hashlib
import os
import stat

from image_index import MAX_IMAGE_BYTES, ImageFile, IndexBuilder
from tools_command_line import InputError, Progress, say

_IMAGE_EXTENSIONS = (b'.jpg', b'.jpeg', b'.png', b'.webp', b'.bmp')


def index_image_folder(folder, validation_fraction, seed):
  """Lists the images of both splits.

  Args:
    folder: str; has the subfolders train and validation (or val), of one
      folder per class each; or the class folders themselves.
    validation_fraction: float between 0 and 1, the part of each class that
      becomes validation images, for the second form: rounded to whole images,
      halves up, and at least one on either side where the class has two. None
      for the first form.
    seed: int, chooses which. An image stays in its split when others are added
      or removed, except for a few at the border.

  Returns:
    Two `ImageIndex`es, `(train, validation)`, sorted by class, then by name.
    Their classes are the sorted names of the training folders.

  Raises:
    InputError: the folder is not laid out as above, a class has no images, or
      a class of the validation images is not one of the training images.
    OSError: a folder cannot be read.
  """
  if validation_fraction is not None and not 0 < validation_fraction < 1:
    raise InputError(f'--validation_fraction {validation_fraction}: give a '
                     'number between 0 and 1, such as 0.1')
  train_folder, validation_folder = _split_folders(folder, validation_fraction)
  passed_over = []
  classes = class_names(train_folder, passed_over)
  validation_classes = []
  if validation_folder:
    validation_classes = class_names(validation_folder, passed_over)
    for name in validation_classes:
      if name not in classes:
        raise InputError(
            f'{os.path.join(validation_folder, name)}: a class of which '
            f'{train_folder} has no folder; give it training images or remove '
            'it')
  train, validation = IndexBuilder(classes), IndexBuilder(classes)
  with Progress(len(classes) + len(validation_classes),
                'class folders read') as progress:
    for label, name in enumerate(classes, 1):
      images = list_images(train_folder, name, passed_over)
      if not validation_folder:
        chosen = _chosen_for_validation(images, validation_fraction, seed)
        validation.add_container(train_folder, chosen, label)
        images = sorted(set(images).difference(chosen))
      train.add_container(train_folder, images, label)
      progress.step()
    for name in validation_classes:
      validation.add_container(
          validation_folder, list_images(validation_folder, name, passed_over),
          classes.index(name) + 1)
      progress.step()
  say_passed_over(passed_over)
  train, validation = train.finish(), validation.finish()
  if not len(validation):
    raise InputError(f'{folder}: every class has a single image, which leaves '
                     'none for validation; add images')
  return train, validation


def say_passed_over(paths):
  """Says which files (a list of str) are no images, if there are any."""
  if paths:
    verb = ' is' if len(paths) == 1 else 's are'
    say(f'{len(paths):,} file{verb} passed over, as not named like a JPEG, '
        f'PNG, WebP or BMP image; the first is {paths[0]}')


def _split_folders(folder, validation_fraction):
  """Paths of the two splits' folders; the latter is None if there is none."""
  if not os.path.isdir(folder):
    raise InputError(f'--image_folder {folder}: no such folder; name one that '
                     'has a subfolder per class')
  present = [name for name in ('train', 'validation', 'val')
             if has_folders(os.path.join(folder, name))]
  train = os.path.join(folder, 'train')
  validation = [os.path.join(folder, name) for name in present
                if name != 'train']
  if len(validation) > 1:
    raise InputError(f'{" and ".join(validation)}: both could be the '
                     'validation images; remove one of them')
  if len(present) == 1:
    missing = 'train' if validation else 'validation'
    there = os.path.join(folder, present[0])
    raise InputError(
        f'{there}: has class folders, but no folder {missing} with the same '
        f'is beside it; add one, or give --image_folder {there} '
        '--validation_fraction 0.1')
  if not present and validation_fraction is None:
    raise InputError(
        f'--image_folder {folder}: has no folders train and validation; give '
        'a --validation_fraction, such as 0.1')
  if present and validation_fraction is not None:
    raise InputError(
        f'--validation_fraction {validation_fraction}: not needed, as '
        f'{validation[0]} has the validation images; leave it out')
  return (train, validation[0]) if present else (folder, None)


def has_folders(path):
  """Whether a folder has subfolders; a class that is named train has none."""
  return os.path.isdir(path) and any(
      entry.is_dir() for entry in _visible_entries(os.fsencode(path)))


def _chosen_for_validation(images, fraction, seed):
  """Those `ImageFile`s of a class whose names have the smallest hashes."""
  # A fraction's decimals are meant as they were typed: 0.145 of 100 images is
  # 14.5, though the float is a little less.
  exact = fractions.Fraction(repr(fraction)) * len(images)
  count = int(exact + fractions.Fraction(1, 2))
  count = min(max(count, 1), len(images) - 1)  # None of a single image.
  return sorted(sorted(images, key=lambda image: hashlib.sha256(
      b'%d/%s' % (seed, image.name)).digest())[:count])


def class_names(folder, passed_over):
  """The sorted names of the class folders in `folder`, a str.

  Paths of other files go into the list `passed_over`, but for hidden ones.

  Raises:
    InputError: there are none, a name is not text, or an image is beside them.
  """
  names = []
  for entry in _visible_entries(os.fsencode(folder)):
    if entry.is_dir():
      try:
        names.append(entry.name.decode('utf-8'))
      except UnicodeDecodeError:
        raise InputError(
            f'{_text(entry.path)}: its name is not UTF-8; rename it')
    elif entry.name.lower().endswith(_IMAGE_EXTENSIONS):
      raise InputError(
          f'{_text(entry.path)}: an image where folders of classes are '
          'expected; move it into one or remove it')
    else:
      passed_over.append(_text(entry.path))
  if not names:
    raise InputError(f'{folder}: holds no folders; one per class is expected, '
                     'with its images')
  return sorted(names)


def list_images(folder, subfolder, passed_over):
  """Lists the images in a subfolder and all folders within it.

  Returns:
    A sorted list of `ImageFile`s, named by their paths within `folder`. Paths
    of other files go into the list `passed_over`, but for hidden ones.

  Raises:
    InputError: there are no images, one is too large, or a link leads nowhere
      or to a folder that it is in.
  """
  images = []
  _add_images(os.fsencode(folder), subfolder.encode('utf-8'), (), images,
              passed_over)
  if not images:
    raise InputError(
        f'{os.path.join(folder, subfolder)}: holds no JPEG, PNG, WebP or BMP '
        'images; add some or remove the folder')
  return sorted(images)


def _visible_entries(folder):
  """Sorted entries of a folder without hidden ones; paths are bytes here, so
  they do not depend on the locale."""
  with os.scandir(folder) as entries:
    return sorted((entry for entry in entries
                   if not entry.name.startswith(b'.')),
                  key=lambda entry: entry.name)


def _text(path):
  return path.decode('utf-8', 'surrogateescape')


def _add_images(folder, subfolder, parents, images, passed_over):
  """Appends to `images`; `parents` are (device, inode) of folders above."""
  path = os.path.join(folder, subfolder)
  status = os.stat(path)
  identity = status.st_dev, status.st_ino
  if identity in parents:
    raise InputError(
        f'{_text(path)}: a link to a folder that it is in; remove it')
  for entry in _visible_entries(path):
    try:
      status = entry.stat()
    except OSError as error:
      raise InputError(f'{_text(entry.path)}: cannot be read '
                       f'({error.strerror}); mend the link or remove it')
    name = os.path.join(subfolder, entry.name)
    if stat.S_ISDIR(status.st_mode):
      _add_images(folder, name, parents + (identity,), images, passed_over)
    elif not (stat.S_ISREG(status.st_mode) and
              entry.name.lower().endswith(_IMAGE_EXTENSIONS)):
      passed_over.append(_text(entry.path))
    elif status.st_size > MAX_IMAGE_BYTES:
      raise InputError(
          f'{_text(entry.path)}: has {status.st_size:,} bytes, more than the '
          f'{MAX_IMAGE_BYTES:,} that make sense for an image; remove it')
    else:
      images.append(ImageFile(name, 0, status.st_size, status.st_mtime_ns))
