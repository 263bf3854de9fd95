"""Any folder of images, one subfolder per class, as an index.

    DIR/train/cat/1.jpg                   DIR/cat/1.jpg
    DIR/train/dog/2.png            or     DIR/dog/2.png
    DIR/validation/cat/3.webp             DIR/dog/old/3.bmp

In the second form a fraction and a seed choose the validation images.
Tiny-ImageNet's validation images, which lie in one folder beside a list of
their classes, are read as well. The folder is the user's own: symbolic links
are followed, and files that are no images are passed over, which the user is
told.
"""

import collections
import fractions
import hashlib
import os

from image_files import EXTENSIONS, KINDS, walk_images
from image_index import ImageFile, ImageIndex
from shared_terminal import Progress, UserError, say

# What the splits' folders are called, in any letter case; the earlier ones
# come first where there are several for validation.
_TRAIN_NAMES = ('train', 'training')
_VALIDATION_NAMES = (
    ('validation', 'val', 'valid', 'eval'), ('test', 'testing'))

# Beside Tiny-ImageNet's folder of validation images: name, synset and box of
# each, divided by tabs.
_ANNOTATIONS = 'val_annotations.txt'
_ANNOTATED_IMAGES = 'images'


def index_image_folder(folder, validation_fraction, seed):
  """Lists the images of both splits.

  Args:
    folder: str; has the subfolders train and validation (or val, test, ...),
      of one folder per class each; or the class folders themselves.
    validation_fraction: float between 0 and 1, the part of each class that
      becomes validation images, for the second form: rounded to whole images,
      halves up, and at least one on either side where the class has two. None
      for the first form.
    seed: int, chooses which. An image stays in its split when others are added
      or removed, except for a few at the border.

  Returns:
    Two `ImageIndex`es, `(train, validation)`, sorted by class, then by name.
    Their classes are the sorted names of the training folders.
  """
  if validation_fraction is not None and not 0 < validation_fraction < 1:
    raise UserError(f'--validation_fraction {validation_fraction}: give a '
                    'number between 0 and 1, such as 0.1')
  train_folder, validation_folder = _split_folders(folder, validation_fraction)
  passed_over = []
  classes = class_names(train_folder, passed_over)
  _check_level(train_folder, classes)
  train, validation = [], []  # Sources of `ImageIndex`.
  progress = Progress('images', len(classes), 'class folders')
  for label, name in enumerate(classes, 1):
    images = list_images(train_folder, name, passed_over)
    if not validation_folder:
      chosen = _chosen_for_validation(images, validation_fraction, seed)
      validation.append((train_folder, chosen, label))
      images = sorted(set(images).difference(chosen))
    train.append((train_folder, images, label))
    progress.update(label)
  if validation_folder:
    for name, images in _validation_images(
        validation_folder, train_folder, classes, passed_over):
      validation.append((validation_folder, images, classes.index(name) + 1))
  say_passed_over(passed_over)
  train, validation = [
      ImageIndex(classes, sources) for sources in (train, validation)]
  if not len(validation):
    raise UserError(f'{folder}: every class has a single image, which leaves '
                    'none for validation; add images')
  return train, validation


def say_passed_over(paths):
  """Says which files are no images, if there are any."""
  counts = collections.Counter(
      os.path.splitext(path)[1].lower() or 'no extension' for path in paths)
  extensions = ', '.join(f'{count:,} {extension}' for extension, count
                         in counts.most_common(5))
  if paths:
    verb = ' is' if len(paths) == 1 else 's are'
    say(f'{len(paths):,} file{verb} passed over, as not named like a {KINDS} '
        f'image ({extensions}); the first is {paths[0]}')


def _split_folders(folder, validation_fraction):
  """Paths of the two splits' folders; the latter is None if there is none."""
  if not os.path.isdir(folder):
    raise UserError(f'--image_folder {folder}: no such folder; name one that '
                    'has a subfolder per class')

  def present(names):
    found = [os.path.join(folder, name) for name in sorted(os.listdir(folder))
             if name.lower() in names and has_folders(
                 os.path.join(folder, name))]
    if len(found) > 1:
      raise UserError(f'{found[0]} and {found[1]}: two folders of one split; '
                      'remove one')
    return found

  train = present(_TRAIN_NAMES)
  validation, test = map(present, _VALIDATION_NAMES)
  if validation and test:
    say(f'{test[0]}: not used, as {validation[0]} has the validation images')
  validation = validation or test
  there = train + validation
  if len(there) == 1:
    missing = 'train' if validation else 'validation'
    raise UserError(
        f'{there[0]}: has class folders, but no folder {missing} with the same '
        f'is beside it; add one, or give --image_folder {there[0]} '
        '--validation_fraction 0.1')
  if not there and validation_fraction is None:
    raise UserError(
        f'--image_folder {folder}: has no folders train and validation; give '
        'a --validation_fraction, such as 0.1')
  if there and validation_fraction is not None:
    raise UserError(
        f'--validation_fraction {validation_fraction}: not needed, as '
        f'{validation[0]} has the validation images; leave it out')
  return (train[0], validation[0]) if there else (folder, None)


def has_folders(path):
  """Whether a folder has subfolders; a class that is named train has none."""
  return os.path.isdir(path) and bool(_entries(path)[0])


def _entries(folder):
  """Sorted names of `(subfolders, other files)`, without hidden ones."""
  with os.scandir(folder) as entries:
    visible = sorted((entry.name, entry.is_dir()) for entry in entries
                     if not entry.name.startswith('.'))
  return ([name for name, is_dir in visible if is_dir],
          [name for name, is_dir in visible if not is_dir])


def _path(folder, class_name):
  """The path of a class folder, in any locale."""
  return os.path.join(folder, os.fsdecode(class_name.encode('utf-8')))


def _check_level(folder, classes):
  """Refuses folders that have the classes' folders within them."""
  contents = [_entries(_path(folder, name)) for name in classes]
  within = contents[0][0]
  if len(within) > 1 and contents == [(within, [])] * len(classes):
    raise UserError(
        f'{os.path.join(folder, classes[0])}: holds only folders, {within[0]}, '
        f'{within[1]} and so on, like each one beside it; if these are the '
        'classes, name the folder that they are in, or call the folders above '
        'them train and validation')


def _chosen_for_validation(images, fraction, seed):
  """Those `ImageFile`s of a class whose names have the smallest hashes."""
  # A fraction's decimals are meant as they were typed: 0.145 of 100 images is
  # 14.5, though the float is a little less.
  exact = fractions.Fraction(repr(fraction)) * len(images)
  count = int(exact + fractions.Fraction(1, 2))
  count = min(max(count, 1), len(images) - 1)  # None of a single image.
  return sorted(sorted(images, key=lambda image: hashlib.sha256(
      b'%d/%s' % (seed, image.name)).digest())[:count])


def _validation_images(folder, train_folder, classes, passed_over):
  """Yields (class, its `ImageFile`s) of a folder of validation images."""
  annotations = os.path.join(folder, _ANNOTATIONS)
  if os.path.isfile(annotations):
    yield from _annotated_images(annotations, classes, passed_over)
    return
  names = class_names(folder, passed_over)
  if names == [_ANNOTATED_IMAGES] and names[0] not in classes:
    raise UserError(f'{annotations}: missing; it has the class of each image '
                    f'in {os.path.join(folder, names[0])}')
  for name in names:
    if name not in classes:
      raise UserError(
          f'{os.path.join(folder, name)}: a class of which {train_folder} has '
          'no folder; give it training images or remove it')
    yield name, list_images(folder, name, passed_over)


def _annotated_images(path, classes, passed_over):
  """Yields (class, its `ImageFile`s) by Tiny-ImageNet's list `path`."""
  folder = os.path.dirname(path)
  images = {os.path.basename(image.name): image for image in
            list_images(folder, _ANNOTATED_IMAGES, passed_over)}
  by_class = collections.defaultdict(list)
  for number, line in enumerate(read_lines(path), 1):
    name, synset = (line.split() + [''])[:2]
    if synset not in classes or os.fsencode(name) not in images:
      raise UserError(f'{path} line {number:,}: {synset!r} is no training '
                      f'class, or {name} no image; get the data set again')
    by_class[synset].append(images.pop(os.fsencode(name)))
  if images:
    raise UserError(f'{path}: has no line for {os.fsdecode(min(images))} and '
                    f'{len(images) - 1:,} other images; get the data set again')
  for name in sorted(by_class):
    yield name, sorted(by_class[name])


def read_lines(path):
  """The lines of a text file but the blank ones, stripped, with any line ends.
  """
  try:
    with open(path, encoding='utf-8-sig') as text:
      return [line.strip() for line in text if line.strip()]
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path}: cannot be read as text in UTF-8 ({error})')


def class_names(folder, passed_over):
  """The sorted names of the class folders in `folder`, a str.

  Paths of other files go into the list `passed_over`, but for hidden ones. An
  image among them is a `UserError`.
  """
  names, others = _entries(folder)
  for name in others:
    path = os.path.join(folder, name)
    if name.lower().endswith(EXTENSIONS):
      raise UserError(f'{path}: an image where folders of classes are '
                      'expected; move it into one or remove it')
    passed_over.append(path)
  if not names:
    raise UserError(f'{folder}: holds no folders; one per class is expected, '
                    'with its images')
  try:
    # The same in any locale.
    return sorted(os.fsencode(name).decode('utf-8') for name in names)
  except UnicodeDecodeError:
    raise UserError(f'{folder}: the names of its folders are not all UTF-8; '
                    'rename them')


def list_images(folder, subfolder, passed_over):
  """Lists the images in a subfolder and all folders within it.

  Returns:
    A sorted list of `ImageFile`s, named by their paths within `folder`. Paths
    of other files go into the list `passed_over`, but for hidden ones.
  """
  start = len(os.path.join(folder, ''))
  images = []
  for path in walk_images(_path(folder, subfolder), passed_over):
    status = os.stat(path)
    images.append(ImageFile(
        os.fsencode(path[start:]), 0, status.st_size, status.st_mtime_ns))
  if not images:
    raise UserError(f'{os.path.join(folder, subfolder)}: holds no {KINDS} '
                    'images; add some or remove the folder')
  return sorted(images)
