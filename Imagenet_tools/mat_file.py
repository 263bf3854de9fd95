"""Reads a table, a struct array, from a MATLAB file of level 5.

Of the format only what such a table takes: fields that are a text or a number,
compressed or not. Fields of other kinds are passed over.

Source: MathWorks, "MAT-File Format", of MATLAB 5 to 7.
"""

import struct
import zlib

_HEADER_BYTES = 128
_VERSION_AT = 124  # In the header; 'MI' follows, to show the order of bytes.

# Types of data elements. Of numbers: with the letter that `struct` has.
_NUMBER_TYPES = {1: 'b', 2: 'B', 3: 'h', 4: 'H', 5: 'i', 6: 'I', 7: 'f',
                 9: 'd', 12: 'q', 13: 'Q'}
_TEXT_TYPES = {1: 'ascii', 2: 'latin-1', 4: 'utf-16', 16: 'utf-8',
               17: 'utf-16', 18: 'utf-32'}
_ARRAY_TYPE = 14
_COMPRESSED_TYPE = 15

# Classes of arrays.
_STRUCT_CLASS = 2
_TEXT_CLASS = 4
_NUMBER_CLASSES = range(6, 16)
_COMPLEX_FLAG = 0x800  # Beside the class.

# Of a variable, uncompressed; the table of ImageNet has 2 MB.
_MAX_VARIABLE_BYTES = 2**24


def read_struct_array(data, variable, fields):
  """Reads a struct array.

  Args:
    data: the bytes of the file.
    variable: name of the array.
    fields: names of the fields to read.

  Returns:
    A list of lists, one per struct in MATLAB's order, of the values of
    `fields`: str, float, or None for anything else.

  Raises:
    ValueError: the file is damaged or not of this format, or has no such
      variable or field.
  """
  order = {b'IM': '<', b'MI': '>'}.get(data[_VERSION_AT + 2:_HEADER_BYTES])
  if order is None or struct.unpack_from(
      order + 'H', data, _VERSION_AT) != (0x100,):
    raise ValueError('not a MATLAB file of level 5')
  try:
    for kind, content in _elements(data[_HEADER_BYTES:], order):
      if kind == _COMPRESSED_TYPE:
        kind, content = next(_elements(_uncompressed(content), order), (0, b''))
      array = _Array(content, order) if kind == _ARRAY_TYPE else None
      if array and array.name == variable:
        return array.structs(fields)
  # Of damaged data: lengths, numbers of elements and texts that do not fit.
  except (struct.error, zlib.error, IndexError, UnicodeDecodeError) as error:
    raise ValueError('damaged ({})'.format(error))
  raise ValueError('has no variable {!r}'.format(variable))


def _elements(data, order):
  """Yields the type and the content of each data element in turn."""
  position = 0
  while position < len(data):
    kind, num_bytes = struct.unpack_from(order + 'II', data, position)
    start = position + 8
    if kind >> 16:  # Small: length, type and content share eight bytes.
      start -= 4
      kind, num_bytes = kind & 0xffff, kind >> 16
    if start + num_bytes > len(data):
      raise ValueError('cut short or damaged')
    yield kind, data[start:start + num_bytes]
    num_bytes += start - position
    # Compressed ones are not padded to whole eights of bytes.
    position += (num_bytes if kind == _COMPRESSED_TYPE
                 else num_bytes + -num_bytes % 8)


def _uncompressed(data):
  decompressor = zlib.decompressobj()
  content = decompressor.decompress(data, _MAX_VARIABLE_BYTES)
  if not decompressor.eof:
    raise ValueError('a variable is cut short, or larger than makes sense')
  return content


class _Array(object):
  """An array of any class, taken apart as far as its name."""

  def __init__(self, content, order):
    self._order = order
    elements = list(_elements(content, order))
    if len(elements) < 3:
      raise ValueError('damaged (an array without a name)')
    flags, self._shape, name = (content for _, content in elements[:3])
    flags, = struct.unpack_from(order + 'I', flags)
    self._class = flags & 0xff
    self._is_complex = bool(flags & _COMPLEX_FLAG)
    self._size = 1
    for extent in struct.unpack(
        '{}{}i'.format(order, len(self._shape) // 4), self._shape):
      self._size *= extent
    self.name = name.decode('ascii')
    self._content = elements[3:]

  def structs(self, fields):
    """The values of `fields`; see `read_struct_array`."""
    if self._class != _STRUCT_CLASS:
      raise ValueError('{} is not a struct array'.format(self.name))
    (_, length), (_, names) = self._content[:2]
    length, = struct.unpack(self._order + 'i', length)
    if length < 1:
      raise ValueError('damaged (field names of {} bytes)'.format(length))
    names = [names[i:i + length].partition(b'\0')[0].decode('ascii')
             for i in range(0, len(names), length)]
    for field in fields:
      if field not in names:
        raise ValueError('{} has no field {!r}'.format(self.name, field))
    values = self._content[2:]
    if len(values) != self._size * len(names):
      raise ValueError('damaged ({} values for {} fields of {} structs)'.format(
          len(values), len(names), self._size))
    columns = [names.index(field) for field in fields]
    return [[self._value(*values[start + column]) for column in columns]
            for start in range(0, len(values), len(names))]

  def _value(self, kind, content):
    """A field's value: str, float or None."""
    if kind != _ARRAY_TYPE or not content:  # Empty ones may have no content.
      return None
    array = _Array(content, self._order)
    if array._class == _TEXT_CLASS:
      return array._text()
    if array._class in _NUMBER_CLASSES and array._size == 1:
      return array._number()
    return None

  def _text(self):
    if not self._size:
      return ''
    kind, content = self._content[0]
    encoding = _TEXT_TYPES.get(kind)
    if encoding in ('utf-16', 'utf-32'):
      encoding += '-le' if self._order == '<' else '-be'
    return content.decode(encoding) if encoding else None

  def _number(self):
    kind, content = self._content[0]
    if self._is_complex or kind not in _NUMBER_TYPES:
      return None
    return float(struct.unpack(
        self._order + _NUMBER_TYPES[kind], content)[0])
