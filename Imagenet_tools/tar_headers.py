"""Lists the files of an uncompressed tar from its headers, data unread.

The archives of ImageNet have 1.3 million headers. tarfile takes more than twice
as long for them, mistakes a damaged header for the end, and takes an archive
that is cut off between two files for a whole one. Read are the formats that
tarfile and GNU tar write: V7, USTAR, GNU and PAX.

Source of the formats: POSIX.1-2017, `pax`; GNU tar manual, "Basic Tar Format".
"""

import os
import struct

from image_index import read_at
from tools_command_line import InputError

_BLOCK_BYTES = 512  # A header fills a block; data are padded to whole blocks.
_ZERO_BLOCK = bytes(_BLOCK_BYTES)

# Two blocks of zeros end a tar. POSIX leaves open what fills the rest of their
# record, of 20 blocks. More zeros follow if records were larger, but less than
# the second number.
_RECORD_BYTES = 20 * _BLOCK_BYTES
_MAX_PADDING_BYTES = 2**20

# Of a long name or of PAX properties; no operating system has longer paths.
_MAX_EXTENSION_BYTES = 2**20

# Name, size, checksum, type, magic, prefix of the name.
_HEADER = struct.Struct('100s24x12s12x8sc100x6s82x155s12x')

_REGULAR_TYPES = (b'0', b'\0', b'7')
_FOLDER_TYPE = b'5'
_OTHER_TYPES = {
    b'1': 'a hard link', b'2': 'a symbolic link', b'3': 'a device',
    b'4': 'a device', b'6': 'a pipe', b'S': 'a sparse file'}
_EXTENSION_TYPES = b'LKxgX'


class _TarError(Exception):
  """What is wrong with a tar; `list_files` adds which one it is."""

  def __init__(self, text, name=None):
    """
    Args:
      text: what is wrong, and the remedy.
      name: bytes, the member that it is about.
    """
    if name is not None:
      text = '/{}: {}'.format(name.decode('utf-8', 'surrogateescape'), text)
    else:
      text = ': ' + text
    super(_TarError, self).__init__(text)


def list_files(descriptor, start, stop, tar_name, max_file_bytes):
  """Lists the regular files of a tar, sorted by name; folders are passed over.

  Args:
    descriptor: of the file on disk.
    start, stop: the tar's bytes in that file.
    tar_name: its name, for messages.
    max_file_bytes: the size beyond which a file is an error.

  Returns:
    A list of `(name, offset, size)`: bytes, free of './' and '//', and where
    the data are in the file on disk.

  Raises:
    InputError: not a tar, a damaged or incomplete one, or one with a member
      that would be lost or would not be what it seems: a link, a name that
      points outside, a second file of one name.
  """
  files = {}
  try:
    for name, kind, offset, size in _members(descriptor, start, stop):
      name = _normalised(name)
      if kind == _FOLDER_TYPE:
        continue
      if kind not in _REGULAR_TYPES:
        raise _TarError(
            'not a plain file but {}; pack the tar again from plain files'
            .format(_OTHER_TYPES.get(kind, 'of type {!r}'.format(kind))), name)
      if not name:
        raise _TarError('has a file without a name; pack it again')
      if name in files:
        raise _TarError('occurs twice; pack the tar again with one file of '
                        'each name', name)
      if size > max_file_bytes:
        raise _TarError('has {:,} bytes, more than the {:,} that make sense '
                        'here; leave it out'.format(size, max_file_bytes), name)
      files[name] = (offset, size)
  except _TarError as error:
    raise InputError('{}{}'.format(tar_name, error))
  return sorted((name,) + place for name, place in files.items())


def check_begins_well(descriptor, tar_name):
  """Raises `InputError` unless a file begins with a tar's first header."""
  try:
    next(_members(descriptor, 0, os.fstat(descriptor).st_size), None)
  except _TarError as error:
    raise InputError('{}{}'.format(tar_name, error))


def _normalised(name):
  """A member's name without './' and '//'; `_TarError` if it is not inside."""
  if b'/' not in name and not name.startswith(b'.'):
    return name  # Nearly all.
  parts = name.split(b'/')
  if name.startswith(b'/') or b'..' in parts:
    raise _TarError('points out of the archive; get it again from where you '
                    'trust it', name)
  return b'/'.join(part for part in parts if part not in (b'', b'.'))


def _members(descriptor, start, stop):
  """Yields `(name, kind, offset, size)` of each member in turn.

  What extends a header (long names, PAX properties) is applied, not yielded.
  """
  position = start
  name_of_next, size_of_next = None, None
  while True:
    header = _read(descriptor, position, _BLOCK_BYTES, stop)
    if header == _ZERO_BLOCK:
      _check_end(descriptor, position, start, stop)
      return
    if len(header) < _BLOCK_BYTES and position > start:
      raise _TarError('is cut short: it ends at byte {:,} without an end mark; '
                      'get it again'.format(stop - start))
    fields = _parsed(header)
    if fields is None:
      raise _TarError(
          'damaged at byte {:,}; get it again'.format(position - start)
          if position > start else
          'not an uncompressed tar, or a damaged one; get it again')
    name, kind, size = fields
    position += _BLOCK_BYTES
    if kind in _EXTENSION_TYPES:
      if size > _MAX_EXTENSION_BYTES:
        raise _TarError('damaged at byte {:,}: properties of {:,} bytes; get '
                        'it again'.format(position - start, size))
      extension = _read(descriptor, position, size, stop)
      if len(extension) < size:
        raise _TarError('is cut short at byte {:,}; get it again'.format(
            stop - start))
      if kind == b'L':
        name_of_next = extension.partition(b'\0')[0]
      elif kind != b'K':  # The target of a link, which is refused anyhow.
        properties = _pax_properties(extension)
        if properties is None or (kind == b'g' and any(properties)):
          raise _TarError('has properties at byte {:,} that make no sense; '
                          'pack it again'.format(position - start))
        name_of_next = properties[0] or name_of_next
        size_of_next = properties[1]
    else:
      if name_of_next is not None:
        name = name_of_next
      if size_of_next is not None:
        size = size_of_next
      name_of_next, size_of_next = None, None
      if kind in (b'0', b'\0') and name.endswith(b'/'):
        kind = _FOLDER_TYPE  # As V7 has them.
      if kind == _FOLDER_TYPE:
        size = 0  # POSIX: may state a quota; there are no data.
      if position + size > stop:
        raise _TarError(
            'has {:,} bytes, but the tar ends {:,} before; it is cut short or '
            'damaged, get it again'.format(size, position + size - stop), name)
      yield name, kind, position, size
    position += -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


def _read(descriptor, position, num_bytes, stop):
  return read_at(
      descriptor, max(0, min(num_bytes, stop - position)), position)


def _parsed(header):
  """Name, type and size that a header states; None if it is not a header."""
  if len(header) < _BLOCK_BYTES:
    return None
  name, size, checksum, kind, magic, prefix = _HEADER.unpack(header)
  # The checksum field itself counts as eight spaces. Most bytes are zeros.
  total = sum(header.translate(None, b'\0')) - sum(checksum) + 8 * 32
  stated = _number(checksum)
  if stated != total:
    # Old tars added the bytes as signed ones.
    negative = sum(byte > 127 for byte in header)
    if stated != total - 256 * negative + 256 * sum(
        byte > 127 for byte in checksum):
      return None
  size = _number(size)
  if size is None:
    return None
  name = name.partition(b'\0')[0]
  if magic == b'ustar\0' and prefix[0]:  # GNU has other things in that place.
    name = prefix.partition(b'\0')[0] + b'/' + name
  return name, kind, size


def _number(field):
  """A header's number, octal or (GNU, for large ones) binary; None if bad."""
  if field[0] == 0x80:
    return int.from_bytes(field[1:], 'big')
  digits = field.partition(b'\0')[0].strip() or b'0'
  try:
    return int(digits, 8) if digits.isdigit() else None
  except ValueError:  # An 8 or a 9.
    return None


def _pax_properties(extension):
  """The properties `(path, size)` of a PAX header, None where it has none.

  Returns:
    A pair, or None if the header is damaged or of a sparse file.
  """
  path, size, position = None, None, 0
  while position < len(extension):
    length = extension[position:position + 20].partition(b' ')[0]
    if not length.isdigit() or int(length) <= len(length):
      return None
    record = extension[position:position + int(length)]
    key, equals, value = record[len(length) + 1:-1].partition(b'=')
    if len(record) < int(length) or not record.endswith(b'\n') or not equals:
      return None
    if key == b'path':
      path = value
    elif key == b'size':
      if not value.isdigit() or len(value) > 20:
        return None
      size = int(value)
    elif key.startswith(b'GNU.sparse.'):
      return None
    position += int(length)
  if path is not None and (b'\0' in path or not path):
    return None
  return path, size


def _check_end(descriptor, end, start, stop):
  """Raises `_TarError` unless a tar truly ends with the zeros at byte `end`.

  A download into a file of the final size leaves zeros where data are missing.
  """
  padding = stop - end
  if padding <= _MAX_PADDING_BYTES:
    rest = _read(descriptor, end, padding, stop)
    record_end = -(-(end - start + 1) // _RECORD_BYTES) * _RECORD_BYTES
    behind_record = rest[record_end - (end - start):]
    if not (rest[:2 * _BLOCK_BYTES] + behind_record).strip(b'\0'):
      return
  raise _TarError(
      'is incomplete or damaged: an end mark is at byte {:,} of {:,}; get it '
      'again'.format(end - start, stop - start))
