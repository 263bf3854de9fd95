"""Where each image's bytes lie and what it shows: 1.3 million in about 100 MB.

A list of tuples would take 500 MB. Here every image is a row of one table, and
the names share one buffer; forked processes share both.
"""

import functools
import hashlib
import os
import typing

import numpy as np

from shared_terminal import UserError

# ImageNet may come as a tar per synset, 1000 in all, while some systems let a
# process have 256 files open.
_MAX_OPENED = 200

_COLUMNS = np.dtype([
    ('container', np.int32),   # Position in `ImageIndex.containers`.
    ('offset', np.int64),      # As in `ImageFile`, like the next two.
    ('size', np.int64),
    ('modified_ns', np.int64),
    ('label', np.int32),       # From 1.
    ('name_start', np.int64),  # Where its name begins in the shared buffer.
])


class ImageFile(typing.NamedTuple):
  """Where an image is in an archive or a folder; sorts by name."""
  name: bytes       # Its path within the archive or folder, without NUL.
  offset: int       # Of its first byte in the archive; 0 in its own file.
  size: int         # Bytes.
  modified_ns: int  # When that file or archive was modified.


class IndexedImage(typing.NamedTuple):
  """One image of an `ImageIndex`."""
  container: str  # Path of the archive, or of the folder, that holds it.
  name: str       # As above; bytes that are not UTF-8 are surrogates.
  offset: int     # As above.
  size: int       # Bytes.
  label: int      # Position of its class in `ImageIndex.classes`, plus 1.

  @property
  def path(self):
    return os.path.join(self.container, self.name)


class ImageIndex:
  """The images of one split, in record order.

  Attributes:
    classes: list of str, sorted: the synsets, or the names of class folders.
      Label 0 is the background class, which no image has.
    containers: list of str, paths of archives and folders.
    container, offset, size, label: int arrays [images], see `_COLUMNS`.
  """

  def __init__(self, classes, containers, table, names):
    """`table`: [images] of `_COLUMNS`; `names`: bytes, a NUL behind each."""
    self.classes = classes
    self.containers = containers
    self.container, self.offset, self.size, self.label = (
        table[column] for column in ('container', 'offset', 'size', 'label'))
    self._table = table
    self._names = names

  def __len__(self):
    return len(self._table)

  def __getitem__(self, i):
    """The i-th image as an `IndexedImage`; IndexError past the end."""
    row = self._table[i]
    start = row['name_start']
    name = self._names[start:self._names.index(b'\0', start)]
    return IndexedImage(
        self.containers[row['container']],
        name.decode('utf-8', 'surrogateescape'),
        *(int(row[column]) for column in ('offset', 'size', 'label')))

  def take(self, order):
    """The images `order` (int [any number]) of this index, in that order."""
    return ImageIndex(
        self.classes, self.containers, self._table[order], self._names)

  def class_counts(self):
    """int64 [classes]: how many images each class has."""
    return np.bincount(self.label, minlength=len(self.classes) + 1)[1:]

  def digest(self):
    """SHA-256 (hexadecimal) of classes, names, places, times and labels.

    Paths of containers do not count: a moved archive is the same one.
    """
    digest = hashlib.sha256('\0'.join(self.classes).encode(
        'utf-8', 'surrogateescape'))
    for name in sorted(_COLUMNS.names):
      digest.update(np.ascontiguousarray(self._table[name]))
    digest.update(self._names)
    return digest.hexdigest()

  def check_not_empty(self):
    """Raises `UserError` if an image has no bytes, naming the first one."""
    empty = np.flatnonzero(self.size == 0)
    if len(empty):
      raise UserError(
          f'{self[empty[0]].path}: has no bytes ({len(empty):,} such images '
          'in all); replace it or leave it out')


class IndexBuilder:
  """Collects images for an `ImageIndex`."""

  def __init__(self, classes):
    self._classes = classes
    self._containers = []
    self._tables = [np.zeros(0, _COLUMNS)]
    self._names = bytearray()

  def add_container(self, path, files, labels):
    """Adds images of an archive or a folder, in the order given.

    `files` are a list of `ImageFile`s, and `labels` one int for all or a list.
    """
    if self._containers[-1:] != [path]:
      self._containers.append(path)
    table = np.zeros(len(files), _COLUMNS)
    table['container'] = len(self._containers) - 1
    table['label'] = labels
    for column in ('offset', 'size', 'modified_ns'):
      table[column] = [getattr(image, column) for image in files]
    for row, image in zip(table, files):
      row['name_start'] = len(self._names)
      self._names += image.name + b'\0'
    self._tables.append(table)

  def finish(self):
    return ImageIndex(self._classes, self._containers,
                      np.concatenate(self._tables), self._names)


class OpenedFiles:
  """The files that a process reads from, the latest ones kept open.

  A context manager that closes them.
  """

  def __init__(self):
    # A file that the cache lets go of is closed.
    self._opened = functools.lru_cache(_MAX_OPENED)(
        lambda path: open(path, 'rb'))
    self._is_folder = functools.lru_cache(None)(os.path.isdir)

  def read(self, image):
    """The bytes of an `IndexedImage`.

    Raises:
      UserError: the archive or the file is no longer what was indexed.
      OSError: it cannot be read.
    """
    opened = self._file_of(image)
    opened.seek(image.offset)
    # One more byte shows if a file of its own grew.
    data = opened.read(image.size + self._is_folder(image.container))
    if len(data) != image.size:
      raise UserError(
          f'{image.path}: has {len(data):,} bytes where {image.size:,} were '
          'indexed; did it change during the run?')
    return data

  def ask_for(self, image):
    """Has the system read an `IndexedImage` into memory in the background."""
    if hasattr(os, 'posix_fadvise'):  # Not on macOS.
      os.posix_fadvise(self._file_of(image).fileno(), image.offset, image.size,
                       os.POSIX_FADV_WILLNEED)

  def _file_of(self, image):
    """The opened archive, or the image's own file."""
    if not self._is_folder(image.container):
      return self._opened(image.container)
    # As bytes, so the path does not depend on the locale.
    return self._opened(os.path.join(
        os.fsencode(image.container),
        image.name.encode('utf-8', 'surrogateescape')))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._opened.cache_clear()
