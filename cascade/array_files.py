"""Arrays from files: real `.npy`, and pickles under that name.

This project's dumps are real `.npy`; the published ones are pickles. Both are
memory-mapped.

`pickle.Unpickler` is not used. It would call what a file names, read 1.6 GB
where a mapping does, and refuse protocol 5 before Python 3.8. The pickle of an
array needs some 30 opcodes and six callables, and these are interpreted here.
Nothing that a file names is imported or called: the callables below take note
of type, shape and data, and an array is laid over the data once these agree.
"""

import codecs
import os
import pickletools
import re
import struct

import numpy as np

from user_error import UserError


def load_array(path):
  """Loads a real `.npy`, or a pickled array under that name.

  Args:
    path: a file of numbers. A pickle may be of any protocol, 0 to 5, written
      by Python 2 or 3.

  Returns:
    A read-only array. It is memory-mapped, and may then be unaligned, unless
    the pickle holds the numbers as text (protocol 0, protocols 1 and 2 of
    Python 3): such a file is read whole.

  Raises:
    UserError: the file is missing, damaged, truncated, or holds anything but
      an array of numbers.
  """
  try:
    with open(path, 'rb') as stream:
      is_npy = stream.read(len(np.lib.format.MAGIC_PREFIX)) == (
          np.lib.format.MAGIC_PREFIX)
    if is_npy:
      return np.load(path, mmap_mode='r', allow_pickle=False)
    return _load_pickled_array(path)
  except UserError:
    raise
  except OSError as error:
    raise UserError('{}: cannot be read ({})'.format(
        path, error.strerror or error))
  except Exception as error:  # Damaged files end in errors of every type.
    raise UserError('{}: damaged, truncated, or no array of numbers ({})'
                    .format(path, ' '.join(str(error).split())[:200]))


class RowReader(object):
  """Reads rows of an array that `load_array` mapped, without the mapping.

  The pages of a mapping count as memory of this process once they are touched;
  what is read into a small buffer does not.
  """

  def __init__(self, array):
    """
    Args:
      array: float32 [rows, columns], as `load_array` returned it.
    """
    self._array = array
    self._region = _file_region(array)

  def read(self, start, stop, buffer):
    """Reads rows `start` to `stop`.

    Args:
      start: the first row.
      stop: the row behind the last.
      buffer: float32 [at least stop - start, columns], overwritten.

    Returns:
      float32 [stop - start, columns], a view of `buffer`.

    Raises:
      UserError: the file cannot be read, or has become shorter since it was
        opened.
    """
    rows = buffer[:stop - start]
    if self._region is None:
      rows[:] = self._array[start:stop]
      return rows
    path, offset = self._region
    try:
      self._read_into(rows, path, offset + start * self._array.strides[0])
    except OSError as error:
      raise UserError('{}: cannot be read ({})'.format(
          path, error.strerror or error))
    return rows

  def _read_into(self, rows, path, offset):
    with open(path, 'rb', buffering=0) as stream:
      stream.seek(offset)
      unread = memoryview(rows).cast('B')
      while len(unread):
        num_bytes = stream.readinto(unread)
        if not num_bytes:
          raise UserError('{}: was cut short while it was read; run the '
                          'command again'.format(path))
        unread = unread[num_bytes:]


def _file_region(array):
  """`(path, offset)` of an array's bytes if they lie in a file as in memory.

  None where they do not: numbers held as text, other byte or axis orders.
  """
  mapped = array
  while isinstance(mapped, np.ndarray) and not (
      isinstance(mapped, np.memmap) and mapped.filename):
    mapped = mapped.base
  if mapped is None or not isinstance(mapped, np.memmap) or not (
      array.dtype.isnative and array.flags.c_contiguous and array.size):
    return None
  return mapped.filename, mapped.offset + (
      array.__array_interface__['data'][0] -
      mapped.__array_interface__['data'][0])


class _PickledDtype(object):
  """`numpy.dtype(name, ...)`, and the byte order that BUILD adds."""

  def __init__(self, name, *_):
    if not (isinstance(name, str) and
            re.fullmatch('b1|[iu][1248]|f[248]', name)):
      raise ValueError('dtype {!r} is refused'.format(name))
    self.dtype = np.dtype(name)

  def build(self, state):
    _, byte_order, subarray, names, fields = state[:5]
    if byte_order not in ('<', '>', '|', '=') or any(
        part is not None for part in (subarray, names, fields)):
      raise ValueError('structured dtype')
    self.dtype = self.dtype.newbyteorder(byte_order)


class _PickledArray(object):
  """An array that BUILD completes, or `_frombuffer` at once."""

  array = None

  def build(self, state):
    _, shape, dtype, is_fortran_order, data = state
    self.lay(data, dtype, shape, 'F' if is_fortran_order else 'C')

  def lay(self, data, pickled_dtype, shape, order):
    """Lays the array over `data`: bytes, mapped bytes, or Python 2's str."""
    if isinstance(data, str):
      data = data.encode('latin1')
    dtype = pickled_dtype.dtype
    num_bytes = dtype.itemsize
    for length in shape:
      if not isinstance(length, int) or length < 0:
        raise ValueError('shape')
      num_bytes *= length
    if len(data) != num_bytes:
      raise ValueError('{:,} bytes of data for {} {}'.format(
          len(data), dtype, shape))
    self.array = np.ndarray(shape, dtype, buffer=data, order=order)
    self.array.flags.writeable = False


_NDARRAY = object()


def _reconstruct(array_type, unused_shape, unused_typecode):
  if array_type is not _NDARRAY:
    raise ValueError('array of another type than numpy.ndarray')
  return _PickledArray()


def _frombuffer(data, pickled_dtype, shape, order):
  """Protocol 5's `numpy.core.numeric._frombuffer`."""
  if order not in ('C', 'F'):
    raise ValueError('order of axes')
  pickled = _PickledArray()
  pickled.lay(data, pickled_dtype, shape, order)
  return pickled


def _encode(text, encoding):
  """How protocols 0 to 2 of Python 3 write bytes."""
  if encoding != 'latin1':
    raise ValueError('encoding {!r}'.format(encoding))
  return text.encode('latin1')


def _no_bytes():
  """How protocols 0 to 2 of Python 3 write bytes of length 0."""
  return b''


_ADMITTED_GLOBALS = {
    'numpy ndarray': _NDARRAY,
    'numpy dtype': _PickledDtype,
    'numpy.core.multiarray _reconstruct': _reconstruct,
    'numpy._core.multiarray _reconstruct': _reconstruct,
    'numpy.core.numeric _frombuffer': _frombuffer,
    'numpy._core.numeric _frombuffer': _frombuffer,
    '_codecs encode': _encode,
    '__builtin__ bytes': _no_bytes,
}

_LITERAL_OPCODES = frozenset([
    'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1',
    'SHORT_BINSTRING', 'SHORT_BINBYTES',
    'UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'])
_CONSTANT_OPCODES = {
    'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False, 'EMPTY_TUPLE': ()}
_TUPLE_OPCODES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}
_PUT_OPCODES = frozenset(['PUT', 'BINPUT', 'LONG_BINPUT'])
_GET_OPCODES = frozenset(['GET', 'BINGET', 'LONG_BINGET'])

# Opcodes whose bytes stay on disk, with the form of the length before them:
# BINBYTES, BINBYTES8, BYTEARRAY8 and Python 2's BINSTRING.
_MAPPED_OPCODES = {b'B': '<I', b'\x8e': '<Q', b'\x96': '<Q', b'T': '<i'}

_MARK = object()


def _load_pickled_array(path):
  """The array of a pickle. Raises UserError, or any error if it is damaged."""
  stack, memo = [], {}
  with open(path, 'rb') as stream:
    # It decodes an opcode's argument and executes nothing; it reads no further
    # than the opcode, so that long data can be stepped over between two.
    opcodes = pickletools.genops(stream)
    while True:
      code = stream.read(1)
      if code in _MAPPED_OPCODES:
        stack.append(_map_bytes(stream, path, _MAPPED_OPCODES[code]))
        continue
      if code == b'S':  # pickletools takes Python 2's strings for ASCII.
        quoted = stream.readline().strip()
        stack.append(codecs.escape_decode(quoted[1:-1])[0].decode('latin1'))
        continue
      stream.seek(-len(code), os.SEEK_CUR)
      opcode, argument, _ = next(opcodes)
      if opcode.name == 'STOP':
        return _pickled_array(stack)
      _interpret(path, opcode.name, argument, stack, memo)


def _pickled_array(stack):
  result = stack.pop()
  if stack or not isinstance(result, _PickledArray) or result.array is None:
    raise ValueError('pickle of something else')
  return result.array


def _map_bytes(stream, path, length_format):
  field = stream.read(struct.calcsize(length_format))
  length, = struct.unpack(length_format, field)
  offset = stream.tell()
  if not 0 <= length <= os.fstat(stream.fileno()).st_size - offset:
    raise ValueError('truncated in {:,} bytes of data'.format(length))
  stream.seek(length, os.SEEK_CUR)
  if length == 0:  # Which cannot be mapped.
    return b''
  return np.memmap(path, np.uint8, 'r', offset, (length,))


def _interpret(path, name, argument, stack, memo):
  """One step of the pickle machine, less all that an array does not need."""
  if name in ('PROTO', 'FRAME'):
    pass
  elif name in _LITERAL_OPCODES:
    stack.append(argument)
  elif name in _CONSTANT_OPCODES:
    stack.append(_CONSTANT_OPCODES[name])
  elif name == 'MARK':
    stack.append(_MARK)
  elif name == 'TUPLE':
    items = []
    while stack[-1] is not _MARK:
      items.append(stack.pop())
    stack[-1] = tuple(reversed(items))
  elif name in _TUPLE_OPCODES:
    start = len(stack) - _TUPLE_OPCODES[name]
    stack[start:] = [tuple(stack[start:])]
  elif name in _PUT_OPCODES:
    memo[int(argument)] = stack[-1]
  elif name == 'MEMOIZE':
    memo[len(memo)] = stack[-1]
  elif name in _GET_OPCODES:
    stack.append(memo[int(argument)])
  elif name in ('GLOBAL', 'INST'):
    stack.append(_admitted_global(path, argument))
  elif name == 'STACK_GLOBAL':
    attribute, module = stack.pop(), stack.pop()
    stack.append(_admitted_global(path, '{} {}'.format(module, attribute)))
  elif name == 'REDUCE':
    arguments, function = stack.pop(), stack.pop()
    stack.append(function(*arguments))
  elif name == 'BUILD':
    state = stack.pop()
    stack[-1].build(state)
  else:
    raise ValueError('pickle of something else, opcode {}'.format(name))


def _admitted_global(path, name):
  if name not in _ADMITTED_GLOBALS:
    raise UserError(
        '{}: refused: this pickle calls {!r}, and nothing but an array of '
        'numbers is read from a pickle'.format(
            path, name.replace(' ', '.')[:200]))
  return _ADMITTED_GLOBALS[name]
