"""Where each image's bytes lie and what it shows: 1.3 million in some 120 MB.

A list of tuples would take 500 MB, in each of the forked processes once it has
looked at them. Here every column is one array, which they share.
"""

import collections
import functools
import hashlib
import os
import typing

import numpy as np

from shared_terminal import UserError

# ImageNet may come as a tar per synset, 1000 in all, while some systems let a
# process have 256 files open.
_MAX_OPENED = 200


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
    columns: a dict of arrays [images]: the fields of `ImageFile`, 'container'
      (int32, a position in `containers`) and 'label' (int32, from 1).
  """

  def __init__(self, classes, sources):
    """Lists the images of all sources, in the order given.

    `sources` are `(container, files, labels)`: the path of an archive or a
    folder, a list of its `ImageFile`s, and one int for all of them or a list.
    """
    self.classes = classes
    self.containers = []
    parts = collections.defaultdict(list)
    for container, files, labels in sources:
      if self.containers[-1:] != [container]:
        self.containers.append(container)
      for column, value in (('container', len(self.containers) - 1),
                            ('label', labels)):
        parts[column].append(np.full(len(files), value, np.int32))
      for column, values in zip(ImageFile._fields, zip(*files)):
        parts[column].append(np.array(values))  # Names: the longest's width.
    self.columns = {column: np.concatenate(arrays)
                    for column, arrays in parts.items()}

  def __len__(self):
    return len(self.columns['label'])

  def __getitem__(self, i):
    """The i-th image as an `IndexedImage`; IndexError past the end."""
    row = {column: values[i] for column, values in self.columns.items()}
    return IndexedImage(
        self.containers[row['container']],
        row['name'].decode('utf-8', 'surrogateescape'),
        *(int(row[column]) for column in ('offset', 'size', 'label')))

  def reorder(self, order):
    """Puts the images into the order `order`, int [images]."""
    for column in self.columns:
      self.columns[column] = self.columns[column][order]

  def class_counts(self):
    """int64 [classes]: how many images each class has."""
    return np.bincount(
        self.columns['label'], minlength=len(self.classes) + 1)[1:]

  def digest(self):
    """SHA-256 (hexadecimal) of classes, names, places, times and labels.

    Paths of containers do not count: a moved archive is the same one.
    """
    digest = hashlib.sha256('\0'.join(self.classes).encode(
        'utf-8', 'surrogateescape'))
    for _, values in sorted(self.columns.items()):
      digest.update(values)
    return digest.hexdigest()

  def check_not_empty(self):
    """Raises `UserError` if an image has no bytes, naming the first one."""
    empty = np.flatnonzero(self.columns['size'] == 0)
    if len(empty):
      raise UserError(
          f'{self[empty[0]].path}: has no bytes ({len(empty):,} such images '
          'in all); replace it or leave it out')


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
