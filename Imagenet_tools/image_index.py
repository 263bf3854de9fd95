"""Where each image's bytes lie and what it shows: 1.3 million in about 90 MB.

A list of tuples would take 500 MB. Here every property is a column, and the
names share one buffer, which processes forked from this one share as well.
"""

import array
import collections
import hashlib
import os

import numpy as np

from tools_command_line import InputError

# One image.
#   container: path of the archive, or of the folder, that holds it.
#   name: str, its path within the container; behind the last slash is its file
#     name. Bytes that are not UTF-8 are surrogates, as in Python's file names.
#   offset, size: its bytes in the archive, or in its own file.
#   label: int, the position of its class in `ImageIndex.classes`, plus 1.
IndexedImage = collections.namedtuple(
    'IndexedImage', ['container', 'name', 'offset', 'size', 'label'])

# Images are read whole, one by each process. A larger file is no photograph.
MAX_IMAGE_BYTES = 2**27

# ImageNet may come as a tar per synset, 1000 in all, while some systems let a
# process have 256 files open.
_MAX_OPENED = 200


class ImageIndex(object):
  """The images of one split, in record order.

  Attributes:
    classes: list of str, sorted: the synsets, or the names of class folders.
      Label 0 is the background class, which no image bears.
    containers: list of str, paths of archives and folders.
    container: int32 [images], positions in `containers`.
    offset, size: int64 [images], bytes.
    label: int32 [images], from 1 to the number of classes.
  """

  def __init__(self, classes, containers, columns, names):
    """
    Args:
      classes, containers: as above.
      columns: a dict from 'container', 'offset', 'size', 'label' and
        'name_start' (int64 [images], where a name begins in `names`) to arrays.
      names: bytes or bytearray, each name followed by a NUL.
    """
    self.classes = classes
    self.containers = containers
    self.container = columns['container']
    self.offset = columns['offset']
    self.size = columns['size']
    self.label = columns['label']
    self._columns = columns
    self._names = names

  def __len__(self):
    return len(self.label)

  def __getitem__(self, i):
    """The i-th image as an `IndexedImage`; IndexError past the end."""
    start = self._columns['name_start'][i]
    name = self._names[start:self._names.index(b'\0', start)]
    return IndexedImage(self.containers[self.container[i]],
                        name.decode('utf-8', 'surrogateescape'),
                        int(self.offset[i]), int(self.size[i]),
                        int(self.label[i]))

  def path(self, i):
    """Container and name of the i-th image as one path, for messages."""
    image = self[i]
    return os.path.join(image.container, image.name)

  def take(self, order):
    """The images `order` (int [any number]) of this index, in that order."""
    return ImageIndex(
        self.classes, self.containers,
        {name: column[order] for name, column in self._columns.items()},
        self._names)

  def class_counts(self):
    """int64 [classes]: how many images each class has."""
    return np.bincount(self.label, minlength=len(self.classes) + 1)[1:]

  def digest(self):
    """SHA-256 (hexadecimal) of classes, names, places and labels.

    Paths of containers do not count: a moved archive is the same one.
    """
    digest = hashlib.sha256('\0'.join(self.classes).encode(
        'utf-8', 'surrogateescape'))
    for name in sorted(self._columns):
      digest.update(np.ascontiguousarray(self._columns[name]))
    digest.update(self._names)
    return digest.hexdigest()

  def check_not_empty(self):
    """Raises `InputError` if an image is empty, naming the first one.

    Apart from indexing, for those who go on without bad images.
    """
    empty = np.flatnonzero(self.size == 0)
    if len(empty):
      raise InputError(
          '{}: has no bytes ({:,} such images in all); replace it or leave it '
          'out'.format(self.path(empty[0]), len(empty)))

  def read(self, i, opened_files):
    """Reads the i-th image.

    Args:
      i: int.
      opened_files: an `OpenedFiles`.

    Returns:
      bytes.

    Raises:
      InputError: the archive or the file is no longer what was indexed.
      OSError: it cannot be read.
    """
    image = self[i]
    data = opened_files.read(image)
    if len(data) != image.size:
      raise InputError(
          '{}: has {:,} bytes where {:,} were indexed; did it change during '
          'the run?'.format(self.path(i), len(data), image.size))
    return data


class IndexBuilder(object):
  """Collects images for an `ImageIndex`, column by column."""

  def __init__(self, classes):
    """
    Args:
      classes: list of str, sorted, each once.
    """
    self._classes = classes
    self._containers = []
    self._columns = {'container': array.array('i'), 'offset': array.array('q'),
                     'size': array.array('q'), 'label': array.array('i'),
                     'name_start': array.array('q')}
    self._names = bytearray()

  def add_container(self, path, files, label):
    """Adds images of an archive or a folder, in the order given.

    Args:
      path: str.
      files: an iterable of `(name, offset, size)`; names are bytes without NUL.
      label: int, one for all; or a list with one of each.
    """
    if not self._containers or self._containers[-1] != path:
      self._containers.append(path)
    files = list(files)
    columns = self._columns
    columns['container'].extend([len(self._containers) - 1] * len(files))
    columns['offset'].extend([offset for _, offset, _ in files])
    columns['size'].extend([size for _, _, size in files])
    columns['label'].extend(
        [label] * len(files) if isinstance(label, int) else label)
    start = len(self._names)
    for name, _, _ in files:
      columns['name_start'].append(start)
      start += len(name) + 1
    self._names += b''.join([name + b'\0' for name, _, _ in files])

  def finish(self):
    """Returns the `ImageIndex`; the builder is spent."""
    return ImageIndex(
        self._classes, self._containers,
        {name: np.frombuffer(column, np.dtype(column.typecode))
         if len(column) else np.zeros(0, np.dtype(column.typecode))
         for name, column in self._columns.items()},
        self._names)


class OpenedFiles(object):
  """The archives that a process reads from, kept open, as far as it may.

  A context manager that closes them. Reads do not move a file position, so
  that nothing is shared with processes forked from this one.
  """

  def __init__(self):
    self._descriptors = {}

  def read(self, image):
    """The bytes of an `IndexedImage`: fewer, or one more, if it changed."""
    descriptor = self._archive(image.container)
    if descriptor is not None:
      return read_at(descriptor, image.size, image.offset)
    with _opened_file(image) as image_file:
      return image_file.read(image.size + 1)  # One more shows if it grew.

  def ask_for(self, image):
    """Has the system read an `IndexedImage` into memory meanwhile.

    Only where the system can do that, such as on Linux.
    """
    if not hasattr(os, 'posix_fadvise'):
      return
    descriptor = self._archive(image.container)
    if descriptor is not None:
      os.posix_fadvise(
          descriptor, image.offset, image.size, os.POSIX_FADV_WILLNEED)
      return
    with _opened_file(image) as image_file:
      os.posix_fadvise(
          image_file.fileno(), 0, image.size, os.POSIX_FADV_WILLNEED)

  def _archive(self, container):
    """The descriptor of an archive; None if it is a folder."""
    if container not in self._descriptors:
      if len(self._descriptors) == _MAX_OPENED:
        self._close()
      self._descriptors[container] = (
          None if os.path.isdir(container) else os.open(
              container, os.O_RDONLY))
    return self._descriptors[container]

  def __enter__(self):
    return self

  def __exit__(self, exception_type, exception, traceback):
    self._close()

  def _close(self):
    for descriptor in self._descriptors.values():
      if descriptor is not None:
        os.close(descriptor)
    self._descriptors = {}


def _opened_file(image):
  """Opens an `IndexedImage` that is a file of its own."""
  # As bytes, so that the path does not depend on the locale.
  return open(os.path.join(
      os.fsencode(image.container),
      image.name.encode('utf-8', 'surrogateescape')), 'rb')


def read_at(descriptor, num_bytes, offset):
  """Reads from an offset of a file; fewer bytes only where the file ends."""
  data = os.pread(descriptor, num_bytes, offset)
  while len(data) < num_bytes:  # A signal or a network may cut a read short.
    more = os.pread(descriptor, num_bytes - len(data), offset + len(data))
    if not more:
      break
    data += more
  return data
