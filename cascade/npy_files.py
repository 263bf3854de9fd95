"""Arrays from files: real `.npy`, pickles under that name, and shards.

This project's dumps are real `.npy`; the published ones are pickles. Both are
memory-mapped: a folder of 16 GB is read in little memory.

A pickle may come from anywhere, so it is read with care. Its opcodes are
checked against a short list before any is executed, and its long byte strings
stay on disk. `pickle.Unpickler` then executes what is left, some 70 opcodes,
and gets stand-ins for NumPy's array reconstruction and nothing else. No message
formats what a file contains: 169 bytes can describe an object whose text fills
the memory.
"""

import io
import os
import pickle
import pickletools
import re
import struct

import numpy as np

import dump_names
from cascade import UserError
from dump_names import DumpShard
from files import check_regular


def load_array(path):
  """Loads a real `.npy`, or a pickled array under that name.

  Args:
    path: a file of numbers. A pickle may have any protocol from 0 to 5, and
      may come from Python 2 or 3.

  Returns:
    A read-only array. It is memory-mapped, and may then be unaligned, except
    if the pickle holds the numbers as text (protocol 0; protocols 1 and 2 of
    Python 3). Such a file is read whole.

  Raises:
    UserError: the file is missing, not a regular file, damaged, truncated, or
      contains anything but an array of numbers.
  """
  check_regular(path)
  try:
    with open(path, 'rb') as stream:
      magic = np.lib.format.MAGIC_PREFIX
      if stream.read(len(magic)) == magic:
        return np.load(path, mmap_mode='r', allow_pickle=False)
      stream.seek(0)
      return _load_pickled_array(path, stream)
  except UserError:
    raise
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror or error})')
  except Exception as error:  # Damaged files end in errors of every type.
    reason = ' '.join(str(error).split())[:200]
    raise UserError(
        f'{path}: damaged, truncated, or no array of numbers ({reason})')


# ---- Pickles ----------------------------------------------------------------

# What pickles of arrays consist of, in all protocols. Not among them: long
# integers of any length, which take Python 3.6 minutes; dicts and sets, whose
# keys are hashed; memo entries above 255, for which memory is set aside.
_OPCODE_NAMES = frozenset(
    'PROTO FRAME STOP MARK TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWTRUE '
    'NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 STRING BINSTRING '
    'SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE '
    'SHORT_BINUNICODE BINUNICODE8 PUT BINPUT GET BINGET MEMOIZE GLOBAL '
    'STACK_GLOBAL REDUCE BUILD'.split())
_MOST_OPCODES = 200

# The name of each opcode, and the bytes of its argument as pickletools has it:
# a number, or one of the constants below.
_OPCODES = {opcode.code.encode('latin1'): (
    opcode.name, opcode.arg.n if opcode.arg else 0)
            for opcode in pickletools.opcodes if opcode.name in _OPCODE_NAMES}
# Python 3.6 does not know it.
_OPCODES[b'\x96'] = 'BYTEARRAY8', pickletools.TAKEN_FROM_ARGUMENT8U

# The length in front of an argument.
_LENGTH_FORMATS = {pickletools.TAKEN_FROM_ARGUMENT1: '<B',
                   pickletools.TAKEN_FROM_ARGUMENT4: '<i',
                   pickletools.TAKEN_FROM_ARGUMENT4U: '<I',
                   pickletools.TAKEN_FROM_ARGUMENT8U: '<Q'}

# Arguments that stay on disk.
_LONG_BYTES = ('BINSTRING', 'BINBYTES', 'BINBYTES8', 'BYTEARRAY8')

# The longest numbers in decimal, their line break included.
_MOST_DIGITS = {'INT': 32, 'LONG': 32, 'PUT': 4, 'GET': 4}


def _load_pickled_array(path, stream):
  opcodes, data = _check_opcodes(path, stream)
  # Python 2's strings are bytes; this encoding keeps each as one character.
  unpickler = _ArrayUnpickler(io.BytesIO(opcodes), encoding='latin1')
  unpickler.path, unpickler.data = path, data
  pickled = unpickler.load()
  array = getattr(pickled, 'array', pickled)
  if not isinstance(array, np.ndarray) or isinstance(array, np.memmap):
    raise ValueError('pickle of something else')
  return array


def _check_opcodes(path, stream):
  """Reads a pickle without executing it.

  Returns:
    `(opcodes, data)`: the same pickle, bytes, with a persistent id 0, 1, ... in
    place of each long byte string; and these strings, memory-mapped.
  """
  opcodes, data = bytearray(), []
  for _ in range(_MOST_OPCODES):
    code = stream.read(1)
    if code not in _OPCODES:
      raise ValueError('truncated' if not code else 'pickle of something else')
    name, num_bytes = _OPCODES[code]
    if num_bytes == pickletools.UP_TO_NEWLINE:
      argument = stream.readline(_MOST_DIGITS.get(name, -1))
      if name == 'GLOBAL':  # Module and name, a line each.
        argument += stream.readline()
      if not argument.endswith(b'\n'):
        raise ValueError('truncated, or a number that is too long')
    else:
      prefix = b''
      if num_bytes < 0:
        length_format = _LENGTH_FORMATS[num_bytes]
        prefix = stream.read(struct.calcsize(length_format))
        num_bytes, = struct.unpack(length_format, prefix)
        num_left = os.fstat(stream.fileno()).st_size - stream.tell()
        if not 0 <= num_bytes <= num_left:
          raise ValueError(f'truncated in {num_bytes:,} bytes of data')
      if name in _LONG_BYTES:
        opcodes += pickle.BININT1 + bytes([len(data)]) + pickle.BINPERSID
        data.append(_map_bytes(path, stream, num_bytes))
        continue
      argument = prefix + stream.read(num_bytes)
    # FRAME counts the bytes that follow, which are fewer now. Python 3.6
    # refuses PROTO 5, though it knows all that is left here.
    if name not in ('FRAME', 'PROTO'):
      opcodes += code + argument
    if name == 'STOP':
      return bytes(opcodes), data
  raise ValueError('pickle of something else')


def _map_bytes(path, stream, num_bytes):
  offset = stream.tell()
  stream.seek(num_bytes, os.SEEK_CUR)
  if num_bytes == 0:  # Cannot be mapped.
    return b''
  return np.memmap(path, np.uint8, 'r', offset, (num_bytes,))


class _ArrayUnpickler(pickle.Unpickler):
  """Executes checked opcodes; `data` are the bytes that stayed on disk."""
  path = data = None

  def persistent_load(self, pid):
    return self.data[pid]

  def find_class(self, module, name):
    full_name = f'{module}.{name}'
    if full_name not in _ADMITTED:
      raise UserError(
          f'{self.path}: refused: this pickle calls {full_name[:200]!r}, and '
          'nothing but an array of numbers is read from a pickle')
    return _ADMITTED[full_name]


class _PickledDtype:
  """`numpy.dtype(name, ...)`, and the byte order that its state adds."""

  def __init__(self, name, *_):
    if not (isinstance(name, str) and
            re.fullmatch('b1|[iu][1248]|f[248]', name)):
      raise ValueError('no dtype of numbers')
    self.dtype = np.dtype(name)

  def __setstate__(self, state):
    _, byte_order, subarray, names, fields, *_ = state
    if byte_order not in ('<', '>', '|', '=') or any(
        part is not None for part in (subarray, names, fields)):
      raise ValueError('structured dtype')
    self.dtype = self.dtype.newbyteorder(byte_order)


class _PickledArray:
  """An array that its state completes (all protocols but 5)."""
  array = None

  def __setstate__(self, state):
    _, shape, dtype, is_fortran_order, data = state
    self.array = _lay(data, dtype, shape, 'F' if is_fortran_order else 'C')


def _lay(data, pickled_dtype, shape, order):
  """An array over `data`: mapped, bytes, or text in Latin 1.

  Protocol 5 calls it directly, as `numpy.core.numeric._frombuffer`.
  """
  dtype = pickled_dtype.dtype
  num_bytes = dtype.itemsize
  for length in shape:
    if not isinstance(length, int) or length < 0:
      raise ValueError('shape')
    num_bytes *= length
  if len(data) != num_bytes:
    raise ValueError('the data do not fit shape and dtype')
  if isinstance(data, str):
    data = data.encode('latin1')
  array = np.ndarray(
      shape, dtype, buffer=data, order='F' if order == 'F' else 'C')
  array.flags.writeable = False
  return array


_NDARRAY = object()


def _reconstruct(array_type, unused_shape, unused_typecode):
  if array_type is not _NDARRAY:
    raise ValueError('array of another type than numpy.ndarray')
  return _PickledArray()


def _encode(text, encoding):
  """How protocols 0 to 2 of Python 3 write bytes; `_lay` encodes them."""
  if encoding != 'latin1':
    raise ValueError('bytes in another encoding than latin1')
  return text


_ADMITTED = {
    'numpy.ndarray': _NDARRAY,
    'numpy.dtype': _PickledDtype,
    'numpy.core.multiarray._reconstruct': _reconstruct,
    'numpy._core.multiarray._reconstruct': _reconstruct,
    'numpy.core.numeric._frombuffer': _lay,
    'numpy._core.numeric._frombuffer': _lay,
    '_codecs.encode': _encode,
    '__builtin__.bytes': lambda: b'',  # Bytes of length 0, likewise.
}


# ---- Rows -------------------------------------------------------------------


class RowReader:
  """Reads rows of an array from `load_array`, but not through the mapping.

  The pages of a mapping count as memory of this process once they are touched.
  What is read into a small buffer does not.
  """

  def __init__(self, array):
    self._array = array
    self._region = _file_region(array)

  def read(self, start, stop, buffer):
    """Reads the rows from `start` up to `stop`.

    Returns:
      float32 [stop - start, columns], a view of `buffer`, which is overwritten.

    Raises:
      UserError: the file cannot be read, or became shorter after it was opened.
    """
    rows = buffer[:stop - start]
    if self._region is None:
      rows[:] = self._array[start:stop]
      return rows
    path, offset = self._region
    try:
      with open(path, 'rb', buffering=0) as stream:
        stream.seek(offset + start * self._array.strides[0])
        unread = memoryview(rows).cast('B')
        while len(unread):
          num_bytes = stream.readinto(unread)
          if not num_bytes:
            raise UserError(f'{path}: was cut short while it was read; run the '
                            'command again')
          unread = unread[num_bytes:]
    except OSError as error:
      raise UserError(f'{path}: cannot be read ({error.strerror or error})')
    return rows


def _file_region(array):
  """`(path, offset)` of an array's bytes if a file has them as memory does.

  None if it does not: numbers as text, other byte orders or orders of axes.
  """
  mapped = array
  while isinstance(mapped, np.ndarray) and not (
      isinstance(mapped, np.memmap) and mapped.filename):
    mapped = mapped.base
  if not isinstance(mapped, np.memmap) or not (
      array.dtype.isnative and array.flags.c_contiguous and array.size):
    return None
  return mapped.filename, mapped.offset + (
      array.__array_interface__['data'][0] -
      mapped.__array_interface__['data'][0])


# ---- Shards -----------------------------------------------------------------
#
# The processes of a shared pass (`--dump_shard`) leave shards of each file.
# They are read as one; names and rows are defined in `dump_names`.


def find_files(folder, name):
  """Paths of the file `name`, or of all its shards in row order.

  Returns:
    A list of paths; empty if there is neither the file nor a shard of it.

  Raises:
    UserError: there are both, and nothing tells which of them the rest of the
      dump belongs to; or the shards are not those of one pass.
  """
  path = os.path.join(folder, name)
  shards = find_shards(folder, name)
  if not os.path.exists(path):
    return shards
  if shards:
    raise UserError(f'{path}: there is the whole file and also shards of it '
                    f'({os.path.basename(shards[0])}); remove what belongs to '
                    'the other pass')
  return [path]


def find_shards(folder, name):
  """Paths of all shards of the file `name`, in row order; may be empty.

  Raises:
    UserError: they are not the complete set of one pass.
  """
  found = [other for other in dump_names.names_in(folder)
           if dump_names.split_shard_name(other)[0] == name]
  if not found:
    return []
  total = max(dump_names.split_shard_name(other)[1].total for other in found)
  # No more than there could be: a name may claim billions of shards.
  wanted = [dump_names.shard_file_name(name, DumpShard(number, total))
            for number in range(1, min(total, len(found) + 1) + 1)]
  surplus = sorted(set(found) - set(wanted))
  missing = sorted(set(wanted) - set(found))
  if surplus or missing:
    _, shard = dump_names.split_shard_name((missing or surplus)[0])
    wrong = (f'{os.path.join(folder, missing[0])}: no such file' if missing
             else f'{os.path.join(folder, surplus[0])}: does not belong')
    raise UserError(
        f'{wrong}, and the set of {total} shards must be complete and of one '
        f'pass; {len(found)} are there: remove those of another pass, and '
        'copy those that are missing or dump them (step 3, --dump_shard '
        f'{shard.number}/{total})')
  return [os.path.join(folder, other) for other in wanted]


def load_files(paths):
  """Loads the array of the `paths` that `find_files` returned.

  It is read-only, and memory-mapped if there is one file; shards are copied.

  Raises:
    UserError: a file is damaged, or does not fit the other shards.
  """
  first, *others = arrays = [load_array(path) for path in paths]
  if not others:
    return first
  for path, array in zip(paths, arrays):
    if not array.ndim or (array.dtype, array.shape[1:]) != (
        first.dtype, first.shape[1:]):
      raise UserError(
          f'{path}: {array.dtype} {array.shape}, and '
          f'{os.path.basename(paths[0])} is {first.dtype} {first.shape}; dump '
          'it again (step 3)')
  check_shard_rows(paths, [len(array) for array in arrays])
  joined = np.concatenate(arrays)
  joined.flags.writeable = False
  return joined


def check_shard_rows(paths, rows_in_shards):
  """Raises a `UserError` unless one pass can be cut into such shards.

  Passes with other batch sizes are cut at other rows. A mix of their shards
  would have rows twice or not at all. For example, 10 images in batches of 4
  are cut into two shards of 4 and 6 rows; shards of 5 and 5 rows need batches
  of 5 or 1.
  """
  num_images, total = sum(rows_in_shards), len(rows_in_shards)
  for batch_size in range(1, max(num_images, 1) + 1):
    if not any(rows % batch_size for rows in rows_in_shards[:-1]):
      bounds = [dump_names.shard_rows(num_images, number, total, batch_size)
                for number in range(1, total + 1)]
      if [stop - start for start, stop in bounds] == rows_in_shards:
        return
  rows = ', '.join(f'{num_rows:,}' for num_rows in rows_in_shards)
  raise UserError(
      f'{paths[0]}: this shard and its {total - 1} siblings have {rows} rows, '
      'which no pass is cut into; dump again (step 3) those of another '
      '--batch_size or other records')
