"""ImageNet as people have it, indexed in place: archives or unpacked folders.

The training images come as a tar of one tar per synset (n01440764.tar) of
JPEGs, as a folder of these tars, or as a folder of one folder per synset; the
validation images as a flat tar or folder, with the synset of each image in a
separate list, or as one folder per synset. In every form the same images get
the same order and labels. Nothing is unpacked and nothing is written.
"""

import functools
import hashlib
import os
import posixpath
import tarfile

import numpy as np

import image_folder
from image_index import ImageFile, ImageIndex
from shared_dataset import IMAGENET_NUM_IMAGES
from shared_terminal import Progress, UserError

# As the organizers state them beside the downloads.
_MD5_BY_FILE_NAME = {
    'ILSVRC2012_img_train.tar': '1d675b47d978889d74fa0da5fadfb00e',
    'ILSVRC2012_img_val.tar': '29b22e2961454d5413ddabcf34fc5622',
}

# Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV
# 115(3), 2015, table 2: fewest and most images in a class.
_IMAGES_PER_CLASS = {'train': (732, 1300), 'validation': (50, 50)}

_CHUNK_BYTES = 2**20

# Two blocks of zeros end a tar; the rest of their record follows, which is
# rarely longer than 10 KB.
_BLOCK_BYTES = 512
_MAX_PADDING_BYTES = 2**20


def index_imagenet(train_path, validation_path, labels_path):
  """Lists the images of both splits, the quickest checks first.

  Args:
    train_path: such as ILSVRC2012_img_train.tar, or a folder.
    validation_path: such as ILSVRC2012_img_val.tar, or a folder.
    labels_path: a text file of synsets; line i is of the i-th image by file
      name. Unused if `validation_path` has a folder per synset.

  Returns:
    Two `ImageIndex`es, `(train, validation)`, whose classes are the synsets of
    the training images: the former sorted by synset, then by name; the latter
    by file name.
  """
  passed_over = []
  sources = _list_synset_tars(train_path) or [
      (synset, train_path, functools.partial(
          image_folder.list_images, train_path, synset, passed_over))
      for synset in image_folder.class_names(train_path, passed_over)]
  synsets = [synset for synset, _, _ in sources]
  # The training images come last: on a hard disk their 1.3 million headers
  # take minutes.
  validation = _index_validation(
      validation_path, labels_path, train_path, synsets, passed_over)
  progress = Progress('index', len(synsets), 'synsets')

  def list_synsets():
    for label, (_, container, list_images) in enumerate(sources, 1):
      yield container, list_images(), label
      progress.update(label)

  train = ImageIndex(synsets, list_synsets())
  image_folder.say_passed_over(passed_over)
  return train, validation


def _index_validation(path, labels_path, train_path, synsets, passed_over):
  """The `ImageIndex` of the validation images."""
  if os.path.isdir(path) and image_folder.has_folders(path):
    pairs = [(image, synset, os.path.join(path, synset))
             for synset in image_folder.class_names(path, passed_over)
             for image in image_folder.list_images(path, synset, passed_over)]
    # In the order of the flat archive, where folders do not count.
    pairs.sort(key=lambda pair: (os.path.basename(pair[0].name), pair))
  else:
    labels = image_folder.read_lines(labels_path)
    images = (image_folder.list_images(path, '', passed_over)
              if os.path.isdir(path) else list_tar(path))
    if len(labels) != len(images):
      raise UserError(
          f'{labels_path}: has {len(labels):,} labels, but {path} holds '
          f'{len(images):,} images; use the labels that belong to the archive')
    pairs = [(image, label, f'{labels_path} line {number:,}: {label!r}')
             for number, (image, label) in enumerate(zip(images, labels), 1)]
  label_of = {synset: label for label, synset in enumerate(synsets, 1)}
  for _, synset, where in pairs:
    if synset not in label_of:
      raise UserError(f'{where}: not one of the {len(synsets):,} synsets of '
                      f'{train_path}; use images and labels that belong '
                      'together')
  return ImageIndex(synsets, [
      (path, [image for image, _, _ in pairs],
       [label_of[synset] for _, synset, _ in pairs])])


def imagenet_class_names():
  """Of ImageNet's 1000 synsets; as `read_class_names`."""
  folder = os.path.dirname(os.path.abspath(__file__))
  return read_class_names(os.path.join(folder, 'imagenet_class_names.txt'))


def read_class_names(path):
  """A dict from synset to what it is called; a line for each."""
  lines = [line.split(None, 1) for line in image_folder.read_lines(path)]
  for number, parts in enumerate(lines, 1):
    if len(parts) != 2:
      raise UserError(f'{path}: not a synset, a blank and its name in line '
                      f'{number:,} of those that are not blank')
  return dict(lines)


def _list_synset_tars(path):
  """The synsets' tars in a tar or a folder, sorted; none if there are none.

  Returns:
    A list of `(synset, container, list_images)`: the path of the file on disk
    that holds the synset's tar, and a function that gives its `ImageFile`s.
  """
  found = []
  if os.path.isdir(path):
    for name in os.listdir(path):
      if name.endswith('.tar') and not name.startswith('.'):
        tar = os.path.join(path, name)
        found.append((name[:-4], tar, functools.partial(list_tar, tar)))
    if found and image_folder.has_folders(path):
      raise UserError(f'{path}: holds tars and folders; keep one kind')
  else:
    for member in list_tar(path):
      name = member.name.decode('utf-8', 'surrogateescape')
      synset, extension = os.path.splitext(posixpath.basename(name))
      if extension != '.tar':
        raise UserError(
            f'{path}/{name}: not a tar; the training archive holds one tar per '
            'synset, such as n01440764.tar')
      found.append((synset, path, functools.partial(
          _list_inner_tar, path, member, f'{path}/{name}')))
  return sorted(found, key=lambda source: source[:2])


def _list_inner_tar(path, member, tar_name):
  """The `ImageFile`s of a tar that is a file of the tar `path`."""
  return [image._replace(name=member.name + b'/' + image.name)
          for image in list_tar(path, member.offset,
                                member.offset + member.size, tar_name)]


def list_tar(path, start=0, stop=None, tar_name=None):
  """Lists the regular files of an uncompressed tar; folders are passed over.

  The tar is the file `path`, or in it from byte `start` to `stop`; messages
  then call it `tar_name`.

  Returns:
    A list of `ImageFile`s, sorted by name. Names are free of './' and '//';
    offsets are in the file on disk. As in unpacking, the last of several files
    of one name counts.

  Raises:
    UserError: not a tar, a damaged, incomplete or empty one, or one with links.
  """
  files, tar_name = {}, tar_name or path
  with open(path, 'rb') as disk_file:
    status = os.fstat(disk_file.fileno())
    for member in _members(
        disk_file, start, status.st_size if stop is None else stop, tar_name):
      if member.isdir():
        continue
      if not member.isreg() or member.issparse():
        raise UserError(
            f'{tar_name}/{member.name}: a link or another special file; pack '
            'the tar again from plain files')
      name = '/'.join(part for part in member.name.split('/')
                      if part not in ('', '.'))
      name = name.encode('utf-8', 'surrogateescape')
      files[name] = ImageFile(
          name, member.offset_data, member.size, status.st_mtime_ns)
  if not files:
    raise UserError(f'{tar_name}: holds no files; get it again')
  return sorted(files.values())


def check_begins_well(path):
  """Raises `UserError` unless `path` is a folder or a tar begins there."""
  if not os.path.exists(path):
    raise UserError(f'{path}: no such file or folder; name the archive to '
                    'read, or the folder it was unpacked to')
  if not os.path.isdir(path):
    with open(path, 'rb') as disk_file:
      next(_members(disk_file, 0, os.path.getsize(path), path), None)


def _members(disk_file, start, stop, tar_name):
  """Yields the `TarInfo`s of the tar between two bytes of an opened file.

  tarfile takes a damaged header, and a tar that is cut off between two
  members, for the end. So the end mark is checked afterwards.
  """
  end = start
  disk_file.seek(start)
  try:
    with tarfile.open(fileobj=disk_file, mode='r:', encoding='utf-8',
                      errors='surrogateescape') as tar:
      for member in tar:
        end = tar.offset  # Behind its data.
        size = 0 if member.isdir() else member.size
        if size < 0 or member.offset_data + size > stop:
          raise UserError(
              f'{tar_name}/{member.name}: reaches beyond the end of the tar, '
              'which is cut short or damaged; get it again')
        yield member
      end = tar.offset
  # tarfile lets some of these through when a header is damaged; what follows
  # then is not an end mark.
  except (tarfile.TarError, ValueError, OverflowError, RecursionError):
    pass
  disk_file.seek(end)
  mark = disk_file.read(min(max(stop - end, 0), 2 * _BLOCK_BYTES))
  # A download into a file of the final size leaves zeros where data are
  # missing, so a true end mark is near the end of the file.
  if (len(mark) < _BLOCK_BYTES or mark.strip(b'\0') or
      stop - end > _MAX_PADDING_BYTES):
    raise UserError(
        f'{tar_name}: not an uncompressed tar, or one that is cut short or '
        f'damaged at byte {end - start:,} of {stop - start:,}; get it again')


def check_md5(paths):
  """Compares the archives of ILSVRC2012 with their published checksums."""
  for path in paths:
    if os.path.isdir(path) or os.path.basename(path) not in _MD5_BY_FILE_NAME:
      known = ' and '.join(_MD5_BY_FILE_NAME)
      raise UserError(f'--check_md5: no checksum is known for {path}, only '
                      f'for {known}; leave the flag out')
  progress = Progress('MD5', sum(map(os.path.getsize, paths)), 'bytes')
  done = 0
  for path in paths:
    digest = hashlib.md5()
    with open(path, 'rb') as archive:
      for chunk in iter(lambda: archive.read(_CHUNK_BYTES), b''):
        digest.update(chunk)
        done += len(chunk)
        progress.update(done)
    expected = _MD5_BY_FILE_NAME[os.path.basename(path)]
    if digest.hexdigest() != expected:
      raise UserError(f'{path}: its MD5 is {digest.hexdigest()}, and '
                      f'{expected} as published; get it again')


def check_counts(images):
  """Raises `UserError` unless ILSVRC2012's synsets have all their images.

  Other synsets may have any number. `images` are `ImageIndex`es by split.
  """
  classes = images['train'].classes
  if classes != sorted(imagenet_class_names()):
    return
  for split, (fewest, most) in _IMAGES_PER_CLASS.items():
    total = IMAGENET_NUM_IMAGES[split]
    counts = images[split].class_counts()
    wrong = np.flatnonzero((counts < fewest) | (counts > most))
    if counts.sum() == total and not len(wrong):
      continue
    example = ''.join(f'; {classes[i]} has {counts[i]:,}, where {fewest:,} to '
                      f'{most:,} are right' for i in wrong[:1])
    raise UserError(
        f'the 1,000 synsets are those of ILSVRC2012, which has {total:,} '
        f'{split} images, but here are {counts.sum():,}{example}; complete '
        'them, or add --any_counts')
