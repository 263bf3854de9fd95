"""Any folder of images, one subfolder per class, as an index.

    DIR/train/cat/1.jpg                   DIR/cat/1.jpg
    DIR/train/dog/2.png            or     DIR/dog/2.png
    DIR/validation/cat/3.webp             DIR/dog/old/3.bmp

The second form is divided by a fraction and a seed. The folder is the user's
own: symbolic links are followed, and what is no image is passed over and said.
"""

import fractions
import hashlib
import os
import stat

from image_index import MAX_IMAGE_BYTES, IndexBuilder
from tools_command_line import InputError

_IMAGE_EXTENSIONS = (b'.jpg', b'.jpeg', b'.png', b'.webp', b'.bmp')
_TRAIN_FOLDER = 'train'
_VALIDATION_FOLDERS = ('validation', 'val')


class PassedOver(object):
  """Counts the files that are no images and keeps the first one's path."""

  def __init__(self):
    self._count = 0
    self._first = None

  def add(self, path):
    self._count += 1
    self._first = self._first or path

  def say(self, say):
    """Calls `say` with a line if there are such files."""
    if self._count:
      say('{:,} file{} passed over, as not named like a JPEG, PNG, WebP or '
          'BMP image; the first is {}'.format(
              self._count, ' is' if self._count == 1 else 's are',
              self._first))


def index_image_folder(folder, validation_fraction, seed, make_progress, say):
  """Lists the images of both splits.

  Args:
    folder: str; has the subfolders train and validation (or val), of one
      folder per class each; or the class folders themselves.
    validation_fraction: float between 0 and 1, the part of each class that
      becomes validation images, for the second form: rounded to whole images,
      halves up, and at least one on either side where the class has two. None
      for the first form.
    seed: int, chooses which. An image keeps its side when others are added or
      taken away, except for a few at the border.
    make_progress: a function of `(total, noun)` that returns a context manager
      with a method `step()`, called once per class folder.
    say: a function of a line of text, called if files are passed over.

  Returns:
    Two `ImageIndex`es, `(train, validation)`, sorted by class, then by name.
    Their classes are the sorted names of the training folders.

  Raises:
    InputError: the folder is not laid out as above, a class has no images, or
      a class of the validation images is not one of the training images.
    OSError: a folder cannot be read.
  """
  _check_fraction(validation_fraction)
  train_folder, validation_folder = _split_folders(folder, validation_fraction)
  passed_over = PassedOver()
  classes = class_names(train_folder, passed_over)
  train, validation = IndexBuilder(classes), IndexBuilder(classes)
  if validation_folder:
    validation_classes = class_names(validation_folder, passed_over)
    for name in validation_classes:
      if name not in classes:
        raise InputError(
            '{}: a class of which {} has no folder; give it training images or '
            'remove it'.format(os.path.join(validation_folder, name),
                               train_folder))
  else:
    validation_classes = []
  with make_progress(len(classes) + len(validation_classes),
                     'class folders read') as progress:
    for label, name in enumerate(classes, 1):
      images = list_images(train_folder, name, passed_over)
      if validation_folder:
        train.add_container(train_folder, images, label)
      else:
        chosen = _chosen_for_validation(
            [image[0] for image in images], validation_fraction, seed)
        train.add_container(train_folder, [
            image for image in images if image[0] not in chosen], label)
        validation.add_container(train_folder, [
            image for image in images if image[0] in chosen], label)
      progress.step()
    for name in validation_classes:
      images = list_images(validation_folder, name, passed_over)
      validation.add_container(
          validation_folder, images, classes.index(name) + 1)
      progress.step()
  passed_over.say(say)
  train, validation = train.finish(), validation.finish()
  if not len(validation):
    raise InputError('{}: every class has a single image, which leaves none '
                     'for validation; add images'.format(folder))
  return train, validation


def _check_fraction(validation_fraction):
  if validation_fraction is not None and not 0 < validation_fraction < 1:
    raise InputError('--validation_fraction {}: give a number between 0 and 1, '
                     'such as 0.1'.format(validation_fraction))


def _split_folders(folder, validation_fraction):
  """Paths of the two splits' folders; the latter is None if there is none."""
  if not os.path.isdir(folder):
    raise InputError('--image_folder {}: no such folder; name one that has a '
                     'subfolder per class'.format(folder))
  train, *validation = [
      os.path.join(folder, name) if has_folders(os.path.join(folder, name))
      else None for name in (_TRAIN_FOLDER,) + _VALIDATION_FOLDERS]
  validation = [path for path in validation if path]
  if len(validation) > 1:
    raise InputError('{} and {}: both could be the validation images; remove '
                     'one of them'.format(*validation))
  if bool(train) != bool(validation):
    present = train or validation[0]
    raise InputError(
        '{}: has class folders, but no folder {} with the same is beside it; '
        'add one, or give --image_folder {} --validation_fraction 0.1'.format(
            present, 'validation' if train else 'train', present))
  if validation and validation_fraction is not None:
    raise InputError(
        '--validation_fraction {}: not needed, as {} has the validation '
        'images; leave it out'.format(validation_fraction, validation[0]))
  if validation:
    return train, validation[0]
  if validation_fraction is None:
    raise InputError(
        '--image_folder {}: has no folders train and validation; give a '
        '--validation_fraction, such as 0.1'.format(folder))
  return folder, None


def has_folders(path):
  """Whether a folder has subfolders; a class that is named train has none."""
  if not os.path.isdir(path):
    return False
  return any(entry.is_dir() for entry in _visible_entries(os.fsencode(path)))


def _chosen_for_validation(names, fraction, seed):
  """The set of those `names` (bytes) of one class that validate.

  They are those with the smallest hashes.
  """
  # A fraction's decimals are meant as they were typed: 0.145 of 100 images is
  # 14.5, though the float is a little less.
  exact = fractions.Fraction(repr(fraction)) * len(names)
  count = int(exact + fractions.Fraction(1, 2))
  if len(names) > 1:
    count = min(max(count, 1), len(names) - 1)
  else:
    count = 0
  return set(sorted(names, key=lambda name: hashlib.sha256(
      b'%d/%s' % (seed, name)).digest())[:count])


def class_names(folder, passed_over):
  """The sorted names of the class folders in `folder`.

  Args:
    folder: str.
    passed_over: a `PassedOver`, told of files; hidden ones are skipped.

  Raises:
    InputError: there are none, a name is not text, or an image is beside them.
  """
  names = []
  for entry in _visible_entries(os.fsencode(folder)):
    if entry.is_dir():
      try:
        names.append(entry.name.decode('utf-8'))
      except UnicodeDecodeError:
        raise InputError('{}: its name is not UTF-8; rename it'.format(
            _text(entry.path)))
    elif entry.name.lower().endswith(_IMAGE_EXTENSIONS):
      raise InputError(
          '{}: an image where folders of classes are expected; move it into '
          'one or remove it'.format(_text(entry.path)))
    else:
      passed_over.add(_text(entry.path))
  if not names:
    raise InputError('{}: holds no folders; one per class is expected, with '
                     'its images'.format(folder))
  return sorted(names)


def list_images(folder, subfolder, passed_over):
  """Lists the images in a subfolder and all folders within it.

  Args:
    folder: str.
    subfolder: str, such as the name of a class.
    passed_over: a `PassedOver`, told of other files; hidden ones are skipped.

  Returns:
    A list of `(name, offset, size)`, sorted: the path within `folder` as bytes,
    0, and the number of bytes.

  Raises:
    InputError: there are no images, one is too large, or a link leads nowhere
      or to a folder that it is in.
  """
  images = []
  _add_images(os.fsencode(folder), subfolder.encode('utf-8'), (), images,
              passed_over)
  if not images:
    raise InputError(
        '{}: holds no JPEG, PNG, WebP or BMP images; add some or remove the '
        'folder'.format(os.path.join(folder, subfolder)))
  return sorted(images)


def _visible_entries(folder):
  """Sorted entries of a folder but hidden ones.

  Paths are bytes here, so that they do not depend on the locale.
  """
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
    raise InputError('{}: a link to a folder that it is in; remove it'.format(
        _text(path)))
  for entry in _visible_entries(path):
    try:
      status = entry.stat()
    except OSError as error:
      raise InputError('{}: cannot be read ({}); mend the link or remove it'
                       .format(_text(entry.path), error.strerror))
    name = os.path.join(subfolder, entry.name)
    if stat.S_ISDIR(status.st_mode):
      _add_images(folder, name, parents + (identity,), images, passed_over)
    elif not (stat.S_ISREG(status.st_mode) and
              entry.name.lower().endswith(_IMAGE_EXTENSIONS)):
      passed_over.add(_text(entry.path))
    elif status.st_size > MAX_IMAGE_BYTES:
      raise InputError('{}: has {:,} bytes, more than the {:,} that make sense '
                       'for an image; remove it'.format(
                           _text(entry.path), status.st_size, MAX_IMAGE_BYTES))
    else:
      images.append((name, 0, status.st_size))
