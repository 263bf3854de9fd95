"""ImageNet as people have it, indexed in place: archives or unpacked folders.

The training images come as a tar of one tar per synset (n01440764.tar) of
JPEGs, as a folder of these tars, or as a folder of one folder per synset; the
validation images as a flat tar or folder, with the synset of each image in a
separate list, or as one folder per synset. In every form the same images get
the same order and labels. Nothing is unpacked and nothing is written.
"""

import hashlib
import os
import posixpath
import tarfile
import typing

import numpy as np

import image_folder
from image_index import ImageFile, IndexBuilder
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


class _SynsetTar(typing.NamedTuple):
  """A synset's tar within a file on disk, which is `container`."""
  synset: str
  container: str
  name: str      # Its path in the container; '' if it is the container.
  offset: int    # Of its first byte in the container.
  size: int      # Bytes.


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

  Raises:
    UserError: an archive is damaged or not laid out as above, a synset has no
      images, labels and images differ in number, or a label is not a synset of
      the training images.
    OSError: a file or folder cannot be read.
  """
  passed_over = []
  synset_tars = _list_synset_tars(train_path)
  synsets = ([synset_tar.synset for synset_tar in synset_tars]
             or image_folder.class_names(train_path, passed_over))
  # The training images come last: on a hard disk their 1.3 million headers
  # take minutes.
  validation = _index_validation(
      validation_path, labels_path, train_path, synsets, passed_over)
  train = IndexBuilder(synsets)
  progress = Progress('index', len(synsets), 'synsets')
  for label, synset in enumerate(synsets, 1):
    if synset_tars:
      container = synset_tars[label - 1].container
      images = _list_synset_tar(synset_tars[label - 1])
    else:
      container = train_path
      images = image_folder.list_images(train_path, synset, passed_over)
    train.add_container(container, images, label)
    progress.update(label)
  image_folder.say_passed_over(passed_over)
  return train.finish(), validation


def _index_validation(path, labels_path, train_path, synsets, passed_over):
  """The `ImageIndex` of the validation images."""
  label_of = {synset: label for label, synset in enumerate(synsets, 1)}
  validation = IndexBuilder(synsets)
  if os.path.isdir(path) and image_folder.has_folders(path):
    images = []
    for synset in image_folder.class_names(path, passed_over):
      if synset not in label_of:
        raise UserError(f'{os.path.join(path, synset)}: not one of the '
                        f'{len(synsets):,} synsets of {train_path}; remove it')
      images += [(image, label_of[synset]) for image in
                 image_folder.list_images(path, synset, passed_over)]
    # In the order of the flat archive, where folders do not count.
    images.sort(key=lambda pair: (os.path.basename(pair[0].name), pair))
    validation.add_container(path, [image for image, _ in images],
                             [label for _, label in images])
    return validation.finish()

  labels = image_folder.read_lines(labels_path)
  if os.path.isdir(path):
    images = image_folder.list_images(path, '', passed_over)
  else:
    images = list_tar(path, 0, os.path.getsize(path), path)
    if not images:
      raise UserError(f'{path}: holds no images; get it again')
  if len(labels) != len(images):
    raise UserError(
        f'{labels_path}: has {len(labels):,} labels, but {path} holds '
        f'{len(images):,} images; use the labels that belong to the archive')
  for line_number, synset in enumerate(labels, 1):
    if synset not in label_of:
      raise UserError(
          f'{labels_path} line {line_number:,}: {synset!r} is not among the '
          f'{len(synsets):,} synsets of {train_path}; use labels and images '
          'that belong together')
  validation.add_container(path, images, [label_of[label] for label in labels])
  return validation.finish()


def imagenet_class_names():
  """ImageNet's 1000 synsets: a dict from synset to what it is called."""
  folder = os.path.dirname(os.path.abspath(__file__))
  return read_class_names(os.path.join(folder, 'imagenet_class_names.txt'))


def read_class_names(path):
  """A dict from synset to what it is called; a line for each.

  Raises:
    UserError: the file cannot be read, or a line is not a synset, a blank or
      tab and a name.
  """
  lines = [line.split(None, 1) for line in image_folder.read_lines(path)]
  for number, parts in enumerate(lines, 1):
    if len(parts) != 2:
      raise UserError(f'{path}: not a synset, a blank and its name in line '
                      f'{number:,} of those that are not blank')
  return dict(lines)


def _list_synset_tars(path):
  """The `_SynsetTar`s of a tar or a folder, sorted; none if it has no tars."""
  synset_tars = []
  if os.path.isdir(path):
    for name in os.listdir(path):
      if name.endswith('.tar') and not name.startswith('.'):
        tar_path = os.path.join(path, name)
        synset_tars.append(
            _SynsetTar(name[:-4], tar_path, '', 0, os.path.getsize(tar_path)))
    if synset_tars and image_folder.has_folders(path):
      raise UserError(f'{path}: holds tars and folders; keep one kind')
  else:
    files = list_tar(path, 0, os.path.getsize(path), path)
    if not files:
      raise UserError(f'{path}: holds no files; one tar per synset is '
                      'expected, such as n01440764.tar')
    for member in files:
      name = member.name.decode('utf-8', 'surrogateescape')
      synset, extension = os.path.splitext(posixpath.basename(name))
      if extension != '.tar':
        raise UserError(
            f'{path}/{name}: not a tar; the training archive holds one tar per '
            'synset, such as n01440764.tar')
      synset_tars.append(
          _SynsetTar(synset, path, name, member.offset, member.size))
  return sorted(synset_tars)


def _list_synset_tar(tar):
  """The `ImageFile`s of a `_SynsetTar`, named and placed in its container."""
  path = os.path.join(tar.container, tar.name) if tar.name else tar.container
  files = list_tar(tar.container, tar.offset, tar.offset + tar.size, path)
  if not files:
    raise UserError(f'{path}: holds no images; get the archive again, or '
                    'leave that synset out')
  folder = os.path.join(tar.name.encode('utf-8', 'surrogateescape'), b'')
  return [image._replace(name=folder + image.name) for image in files]


def list_tar(path, start, stop, tar_name):
  """Lists the regular files of an uncompressed tar; folders are passed over.

  The tar is from byte `start` to `stop` of the file `path`; messages call it
  `tar_name`.

  Returns:
    A list of `ImageFile`s, sorted by name. Names are free of './' and '//';
    offsets are in the file on disk. As in unpacking, the last of several files
    of one name counts.

  Raises:
    UserError: not a tar, a damaged or incomplete one, or one with links.
  """
  files = {}
  with open(path, 'rb') as disk_file:
    modified_ns = os.fstat(disk_file.fileno()).st_mtime_ns
    for member in _members(disk_file, start, stop, tar_name):
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
          name, member.offset_data, member.size, modified_ns)
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
  """Compares the archives of ILSVRC2012 with their published checksums.

  Raises:
    UserError: one differs, is a folder, or has no published checksum.
    OSError: one cannot be read.
  """
  for path in paths:
    if os.path.isdir(path):
      raise UserError(f'--check_md5: {path} is a folder, and the checksums '
                      'are of the archives; leave the flag out')
    if os.path.basename(path) not in _MD5_BY_FILE_NAME:
      known = ', '.join(sorted(_MD5_BY_FILE_NAME))
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

  Other synsets may have any number. `images`: a dict from split to
  `ImageIndex`.
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
    example = ''
    if len(wrong):
      example = (f'; {classes[wrong[0]]} has {counts[wrong[0]]:,}, where '
                 f'{fewest:,} to {most:,} are right')
    raise UserError(
        f'the 1,000 synsets are those of ILSVRC2012, which has {total:,} '
        f'{split} images, but here are {counts.sum():,}{example}; complete '
        'them, or add --any_counts')
