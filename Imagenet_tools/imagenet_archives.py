"""ImageNet as people have it, indexed in place: archives or unpacked folders.

The training images come as a tar of one tar per synset (n01440764.tar) of
JPEGs, as a folder of these tars, or as a folder of one folder per synset; the
validation images as a flat tar or folder, with the synset of each image in a
list apart, or as one folder per synset. However they come, the same images get
the same order and labels. Nothing is unpacked and nothing is written.
"""

import collections
import contextlib
import os
import posixpath

import image_folder
import imagenet_devkit
import tar_headers
from image_index import MAX_IMAGE_BYTES, IndexBuilder
from tools_command_line import InputError

# A synset's tar within a file on disk, which is `container`.
#   name: its path in the container, '' if it is the container.
_SynsetTar = collections.namedtuple(
    '_SynsetTar', ['synset', 'container', 'name', 'offset', 'size'])

# For the tars of synsets, which are not read whole.
_NO_LIMIT = float('inf')


def check_begins_well(path):
  """Raises `InputError` unless `path` is a folder or a tar begins there."""
  if not os.path.exists(path):
    raise InputError('{}: no such file or folder; name the archive to read, or '
                     'the folder it was unpacked to'.format(path))
  if not os.path.isdir(path):
    with _opened(path) as descriptor:
      tar_headers.check_begins_well(descriptor, path)


def index_imagenet(train_path, validation_path, labels_path, make_progress,
                   say):
  """Lists the images of both splits, the quickest checks first.

  Args:
    train_path: such as ILSVRC2012_img_train.tar, or a folder.
    validation_path: such as ILSVRC2012_img_val.tar, or a folder.
    labels_path: see `read_validation_synsets`; line i is of the i-th image by
      file name. Unused if `validation_path` has a folder per synset.
    make_progress: a function of `(total, noun)` that returns a context manager
      with a method `step()`, called once per synset: on a hard disk the 1.3
      million headers take minutes.
    say: a function of a line of text, called if files are passed over.

  Returns:
    Two `ImageIndex`es, `(train, validation)`, whose classes are the synsets of
    the training images: the former sorted by synset, then by name; the latter
    by file name.

  Raises:
    InputError: an archive is damaged or not laid out as above, a synset has no
      images, labels and images differ in number, or a label is not a synset of
      the training images.
    OSError: a file or folder cannot be read.
  """
  check_begins_well(train_path)
  check_begins_well(validation_path)
  passed_over = image_folder.PassedOver()
  synset_tars = _list_synset_tars(train_path)
  synsets = ([synset_tar.synset for synset_tar in synset_tars]
             or image_folder.class_names(train_path, passed_over))
  # The training images come last: their index may take minutes.
  validation = _index_validation(
      validation_path, labels_path, train_path, synsets, passed_over)
  train = IndexBuilder(synsets)
  with make_progress(len(synsets), 'synsets indexed') as progress:
    for label, synset in enumerate(synsets, 1):
      if synset_tars:
        container = synset_tars[label - 1].container
        images = _list_synset_tar(synset_tars[label - 1])
      else:
        container = train_path
        images = image_folder.list_images(train_path, synset, passed_over)
      train.add_container(container, images, label)
      progress.step()
  passed_over.say(say)
  return train.finish(), validation


@contextlib.contextmanager
def _opened(path):
  descriptor = os.open(path, os.O_RDONLY)
  try:
    yield descriptor
  finally:
    os.close(descriptor)


def _list_synset_tars(path):
  """The `_SynsetTar`s of a tar or a folder, sorted by synset.

  Empty if `path` is a folder that has no tars.
  """
  if os.path.isdir(path):
    names = [name for name in os.listdir(path)
             if name.endswith('.tar') and not name.startswith('.')]
    synset_tars = [
        _SynsetTar(os.path.splitext(name)[0], os.path.join(path, name), '', 0,
                   os.path.getsize(os.path.join(path, name)))
        for name in names]
    if names and image_folder.has_folders(path):
      raise InputError('{}: holds tars and folders; keep the ones or the others'
                       .format(path))
  else:
    synset_tars = []
    with _opened(path) as descriptor:
      files = tar_headers.list_files(
          descriptor, 0, os.fstat(descriptor).st_size, path, _NO_LIMIT)
    if not files:
      raise InputError('{}: holds no files; one tar per synset is expected, '
                       'such as n01440764.tar'.format(path))
    for name, offset, size in files:
      name = name.decode('utf-8', 'surrogateescape')
      synset, extension = os.path.splitext(posixpath.basename(name))
      if extension != '.tar':
        raise InputError(
            '{}/{}: not a tar; the training archive holds one tar per synset, '
            'such as n01440764.tar'.format(path, name))
      synset_tars.append(_SynsetTar(synset, path, name, offset, size))
  synset_tars.sort()
  for one, other in zip(synset_tars, synset_tars[1:]):
    if one.synset == other.synset:
      raise InputError('{}/{}: the synset occurs twice; leave one of the two '
                       'out'.format(path, other.name))
  return synset_tars


def _list_synset_tar(synset_tar):
  """`(name, offset, size)` of each image; names and offsets of the container.
  """
  _, container, tar_name, offset, size = synset_tar
  path = os.path.join(container, tar_name) if tar_name else container
  with _opened(container) as descriptor:
    files = tar_headers.list_files(
        descriptor, offset, offset + size, path, MAX_IMAGE_BYTES)
  if not files:
    raise InputError('{}: holds no images; get the archive again, or leave '
                     'that synset out'.format(path))
  folder = os.path.join(tar_name.encode('utf-8', 'surrogateescape'), b'')
  return [(folder + name, image_offset, image_size)
          for name, image_offset, image_size in files]


def _index_validation(path, labels_path, train_path, synsets, passed_over):
  """The `ImageIndex` of the validation images."""
  label_of = {synset: label for label, synset in enumerate(synsets, 1)}
  validation = IndexBuilder(synsets)
  if os.path.isdir(path) and image_folder.has_folders(path):
    images = []
    for synset in image_folder.class_names(path, passed_over):
      if synset not in label_of:
        raise InputError('{}: not one of the {:,} synsets of {}; remove it'
                         .format(os.path.join(path, synset), len(synsets),
                                 train_path))
      images.extend(image + (label_of[synset],) for image in
                    image_folder.list_images(path, synset, passed_over))
    # In the order of the flat archive, where folders do not count.
    images.sort(key=lambda image: (os.path.basename(image[0]), image))
    validation.add_container(path, [image[:3] for image in images],
                             [image[3] for image in images])
    return validation.finish()

  validation_synsets = read_validation_synsets(labels_path)
  if os.path.isdir(path):
    images = image_folder.list_images(path, '', passed_over)
  else:
    with _opened(path) as descriptor:
      images = tar_headers.list_files(
          descriptor, 0, os.fstat(descriptor).st_size, path, MAX_IMAGE_BYTES)
    if not images:
      raise InputError('{}: holds no images; get it again'.format(path))
  if len(validation_synsets) != len(images):
    raise InputError(
        '{}: has {:,} labels, but {} holds {:,} images; use the labels that '
        'belong to the archive'.format(
            labels_path, len(validation_synsets), path, len(images)))
  for line_number, synset in enumerate(validation_synsets, 1):
    if synset not in label_of:
      raise InputError(
          '{} line {:,}: {!r} is not among the {:,} synsets of {}; use labels '
          'and images that belong together'.format(
              labels_path, line_number, synset, len(synsets), train_path))
  validation.add_container(
      path, images, [label_of[synset] for synset in validation_synsets])
  return validation.finish()


def read_validation_synsets(path):
  """Reads the synset of each validation image, in order of the file names.

  Args:
    path: a text file of one synset per line, or the archive of the development
      kit, ILSVRC2012_devkit_t12.tar.gz.

  Returns:
    A list of str.

  Raises:
    InputError: there is no such file, or it is neither of the two.
  """
  if not os.path.isfile(path):
    raise InputError('{}: no such file; name the file with the synset of each '
                     'validation image'.format(path))
  if imagenet_devkit.is_devkit(path):
    return imagenet_devkit.read_devkit(path).validation_synsets
  try:
    with open(path, encoding='utf-8') as labels:
      # Blank lines may end the file; one amid the labels counts as a label, so
      # that those behind it do not move.
      return [line.strip() for line in labels.read().rstrip().split('\n')]
  except UnicodeDecodeError:
    raise InputError('{}: not a text file; one synset per line is expected'
                     .format(path))
