"""The archives of ILSVRC2012, indexed in place: where each image's bytes lie.

The training archive is a tar of one tar per synset (n01440764.tar) of JPEGs,
the validation archive a flat tar of JPEGs, with the synset of each image in a
text file beside it. Nothing is unpacked and nothing is written.
"""

import collections
import os
import posixpath
import tarfile

from tools_command_line import InputError

# Where an image is and what it shows.
#   archive: path of the tar on disk.
#   name: its path within the archive, for messages; behind the last slash is
#     its file name.
#   offset, size: its bytes in the file `archive`.
#   synset: the class, such as 'n01440764'.
ArchivedImage = collections.namedtuple(
    'ArchivedImage', ['archive', 'name', 'offset', 'size', 'synset'])

_BLOCK_BYTES = 512  # Tar headers and padding come in blocks of this size.


def _list_files(tar_file, tar_name):
  """Lists the regular files of an uncompressed tar, sorted by name.

  Args:
    tar_file: a binary file object that holds the tar and no more.
    tar_name: its name, for messages.

  Returns:
    A list of `(name, offset_data, size)`, offsets within `tar_file`.

  Raises:
    InputError: not a tar, a damaged one, or one with an entry that would be
      lost in silence: a link, or a second file of the same name.
  """
  files = {}
  try:
    with tarfile.open(fileobj=tar_file, mode='r:', encoding='utf-8',
                      errors='surrogateescape') as tar:
      for member in tar:
        if member.isdir():
          continue
        if not member.isreg() or member.issparse():
          raise InputError(
              '{}/{}: not a plain file but a link or the like; pack the tar '
              'again from plain files'.format(tar_name, member.name))
        name = posixpath.normpath(member.name)
        if name in files:
          raise InputError(
              '{}/{}: occurs twice; pack the tar again with one file of each '
              'name'.format(tar_name, name))
        files[name] = (member.offset_data, member.size)
      end = tar.offset
  except tarfile.TarError as error:
    raise InputError(
        '{}: not an uncompressed tar, or a damaged one ({}); get it again'
        .format(tar_name, error))
  # tarfile takes a damaged header for the end of the archive; the true end is
  # a block of zeros, or the end of the file.
  tar_file.seek(end)
  if tar_file.read(_BLOCK_BYTES).strip(b'\0'):
    raise InputError('{}: damaged at byte {:,}; get it again'.format(
        tar_name, end))
  return sorted((name,) + place for name, place in files.items())


def check_is_tar(path):
  """Raises `InputError` unless a tar begins at the first byte of `path`."""
  if not os.path.isfile(path):
    raise InputError('{}: no such file; name the archive to read'.format(path))
  try:
    with tarfile.open(path, mode='r:'):
      pass
  except tarfile.TarError as error:
    raise InputError('{}: not an uncompressed tar ({}); get it again'.format(
        path, error))


def index_train_archive(path, make_progress):
  """Lists the images of a tar of per-synset tars.

  Args:
    path: such as ILSVRC2012_img_train.tar.
    make_progress: a function of `(total, noun)` that returns a context manager
      with a method `step()`, called once per synset: on a hard disk the 1.3
      million headers take minutes.

  Returns:
    A list of `ArchivedImage`, sorted by synset, then by name.

  Raises:
    InputError: the archive is damaged or not laid out as above, or a synset
      has no images.
  """
  images = []
  with open(path, 'rb') as archive:
    synset_tars = _list_files(archive, path)
    if not synset_tars:
      raise InputError('{}: holds no files; one tar per synset is expected, '
                       'such as n01440764.tar'.format(path))
    with make_progress(len(synset_tars), 'synsets indexed') as progress:
      for tar_name, tar_offset, tar_size in synset_tars:
        synset, extension = os.path.splitext(posixpath.basename(tar_name))
        if extension != '.tar':
          raise InputError(
              '{}/{}: not a tar; the training archive holds one tar per '
              'synset, such as n01440764.tar'.format(path, tar_name))
        # A window, so that a damaged inner tar cannot run into the next one.
        window = _Window(archive, tar_offset, tar_size)
        files = _list_files(window, '{}/{}'.format(path, tar_name))
        if not files:
          raise InputError('{}/{}: holds no images; get the archive again, or '
                           'leave that synset out'.format(path, tar_name))
        images.extend(
            ArchivedImage(path, '{}/{}'.format(tar_name, name),
                          tar_offset + offset, size, synset)
            for name, offset, size in files)
        progress.step()
  # 'a.tar' sorts before 'a-b.tar' as a synset and behind it as a file name.
  images.sort(key=lambda image: (image.synset, image.name))
  return images


def index_validation_archive(path, labels_path):
  """Lists the images of a flat tar, each with its synset.

  Args:
    path: such as ILSVRC2012_img_val.tar.
    labels_path: a text file; line i is the synset of the i-th image in sorted
      file-name order.

  Returns:
    A list of `ArchivedImage` in that order.

  Raises:
    InputError: the archive is damaged or empty, the labels are not text, or
      there are not as many labels as images.
  """
  synsets = read_validation_synsets(labels_path)
  with open(path, 'rb') as archive:
    files = _list_files(archive, path)
  if not files:
    raise InputError('{}: holds no images; get it again'.format(path))
  if len(synsets) != len(files):
    raise InputError(
        '{}: has {:,} labels, but {} holds {:,} images; use the labels that '
        'belong to the archive'.format(
            labels_path, len(synsets), path, len(files)))
  return [ArchivedImage(path, name, offset, size, synset)
          for (name, offset, size), synset in zip(files, synsets)]


def read_validation_synsets(path):
  """Reads a text file of one synset per line into a list."""
  if not os.path.isfile(path):
    raise InputError('{}: no such file; name the file with the synset of each '
                     'validation image'.format(path))
  try:
    with open(path, encoding='utf-8') as labels:
      # Blank lines may end the file; one amid the labels counts as a label, so
      # that those behind it do not move.
      return [line.strip() for line in labels.read().rstrip().split('\n')]
  except UnicodeDecodeError:
    raise InputError('{}: not a text file; one synset per line is expected'
                     .format(path))


def check_synsets_known(validation_images, synsets, labels_path):
  """Raises `InputError` if a validation synset is not in the set `synsets`."""
  for line_number, image in enumerate(validation_images, 1):
    if image.synset not in synsets:
      raise InputError(
          '{} line {:,}: {!r} is not among the {:,} synsets of the training '
          'archive; use the labels and the archive that belong together'
          .format(labels_path, line_number, image.synset, len(synsets)))


def read_image(archive_file, image):
  """Reads the bytes of an `ArchivedImage` from its opened archive."""
  archive_file.seek(image.offset)
  data = archive_file.read(image.size)
  if len(data) != image.size:
    raise InputError('{}/{}: the archive ends before it; did it change during '
                     'the run?'.format(image.archive, image.name))
  return data


class _Window(object):
  """Bytes `offset` to `offset + size` of a file, as tarfile reads a file."""

  def __init__(self, source, offset, size):
    self._source = source
    self._offset = offset
    self._size = size
    self._position = 0

  def tell(self):
    return self._position

  def seek(self, position):
    self._position = position

  def read(self, num_bytes):
    num_bytes = max(0, min(num_bytes, self._size - self._position))
    self._source.seek(self._offset + self._position)
    data = self._source.read(num_bytes)
    self._position += len(data)
    return data
