"""Arrays from files: real `.npy`, pickles under that name, and shards.

This project's dumps are real `.npy`; the published ones are pickles. Either is
left on the disk and memory-mapped: a folder of 16 GB is read in little memory.
A pickle may come from anywhere, so it is read through an allowlist.
"""

import contextlib
import os
import pickle

import numpy as np

from cascade.shared import UserError, shared_dumps

# All that pickles of arrays call, of Python 2 and 3, NumPy 1 and 2.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED = {
    'numpy.ndarray': np.ndarray,
    'numpy.dtype': np.dtype,
    'numpy.core.multiarray._reconstruct': _RECONSTRUCT,
    'numpy._core.multiarray._reconstruct': _RECONSTRUCT,
    'numpy.core.numeric._frombuffer': lambda data, dtype, shape, order: (
        np.frombuffer(data, dtype).reshape(shape, order=order)),
    '_codecs.encode': lambda text, encoding: text.encode(encoding),
    '__builtin__.bytes': bytes,
}
_ADMITTED['numpy._core.numeric._frombuffer'] = _ADMITTED[
    'numpy.core.numeric._frombuffer']

# Byte strings of a pickle that are longer stay on the disk.
_MOST_BYTES_READ = 1 << 20


def load_array(path):
  """Loads a real `.npy`, or a pickled array under that name; read-only.

  A large array is memory-mapped, unless its pickle has the numbers as text
  (protocols 0 to 2 of Python 3).
  """
  try:
    with open(path, 'rb') as stream:
      magic = np.lib.format.MAGIC_PREFIX
      is_pickle = stream.read(len(magic)) != magic
      stream.seek(0)
      array = _load_pickled(path, stream) if is_pickle else np.load(
          path, mmap_mode='r', allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in 'biuf':
      raise ValueError('something else')
    array.flags.writeable = False
    return array
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror or error})')
  except Exception as error:  # Damaged files end in errors of every type.
    raise UserError(f'{path}: damaged, truncated, or no array of numbers '
                    f'({" ".join(str(error).split())[:200]})')


# ---- Pickles ----------------------------------------------------------------


class _ArrayUnpickler(pickle.Unpickler):
  """Makes NumPy arrays and nothing else."""

  def find_class(self, module, name):
    full_name = f'{module}.{name}'
    if full_name not in _ADMITTED:
      raise pickle.UnpicklingError(f'refused: this pickle calls {full_name}')
    return _ADMITTED[full_name]


class _SkippingStream:
  """A file whose longest byte string is passed over, and holds anything."""
  offset = length = None  # Of that string.

  def __init__(self, stream):
    self._stream = stream
    self._size = os.fstat(stream.fileno()).st_size
    self.readline = stream.readline

  def read(self, num_bytes):
    offset = self._stream.tell()
    if not _MOST_BYTES_READ < num_bytes <= self._size - offset:
      return self._stream.read(num_bytes)
    self.offset, self.length = offset, num_bytes
    self._stream.seek(num_bytes, os.SEEK_CUR)
    return bytes(num_bytes)


def _load_pickled(path, stream):
  # Strings of Python 2 are bytes; this encoding keeps each as one character.
  skipping, array = _SkippingStream(stream), None
  # Not only the numbers may be passed over.
  with contextlib.suppress(pickle.UnpicklingError, ValueError):
    array = _ArrayUnpickler(skipping, encoding='latin1').load()
  # Where the numbers were swapped to this machine's order, they were copied.
  if type(array) is np.ndarray and array.nbytes == skipping.length and (
      array.base is not None):
    return np.memmap(path, array.dtype, 'r', skipping.offset, array.shape,
                     'C' if array.flags.c_contiguous else 'F')
  stream.seek(0)
  return _ArrayUnpickler(stream, encoding='latin1').load()


# ---- Rows -------------------------------------------------------------------


def read_rows(array, start, stop):
  """Rows of an array [rows, columns] from `load_array`, as float32.

  What is mapped is not read through the mapping: its pages would count as
  memory of this process.
  """
  if not (isinstance(array, np.memmap) and array.flags.c_contiguous):
    return np.ascontiguousarray(array[start:stop], np.float32)
  num_columns = array.shape[1]
  with open(array.filename, 'rb') as stream:
    stream.seek(array.offset + start * array.strides[0])
    rows = np.fromfile(stream, array.dtype, (stop - start) * num_columns)
  if len(rows) < (stop - start) * num_columns:
    raise UserError(f'{array.filename}: was cut short while it was read; run '
                    'the command again')
  return np.ascontiguousarray(rows.reshape(-1, num_columns), np.float32)


# ---- Shards -----------------------------------------------------------------
#
# The processes of a shared pass (`--dump_shard`) leave shards of each file.
# They are read as one; names and rows are defined in `shared_dumps`.


def find_files(folder, name):
  """Paths of the file `name`, or of all its shards in row order; may be empty.

  There must not be both, and the shards must be those of one pass.
  """
  path = os.path.join(folder, name)
  shards = find_shards(folder, name)
  if shards and os.path.exists(path):
    raise UserError(f'{path}: there is the whole file and also shards of it '
                    f'({os.path.basename(shards[0])}); remove what belongs to '
                    'the other pass')
  return [path] if os.path.exists(path) else shards


def find_shards(folder, name):
  """Shards as in `find_files`, without the file itself."""
  found = {other: shard.total for other, (whole_name, shard) in (
      (other, shared_dumps.split_shard_name(other))
      for other in shared_dumps.names_in(folder)) if whole_name == name}
  total = max(found.values(), default=0)
  wanted = [
      shared_dumps.shard_file_name(name, shared_dumps.DumpShard(number, total))
      for number in range(1, total + 1)]
  wrong = sorted(set(found).symmetric_difference(wanted))
  if wrong:
    raise UserError(
        f'{os.path.join(folder, wrong[0])}: '
        f'{"of another pass" if wrong[0] in found else "no such file"}; a set '
        f'of {total} shards must be complete and of one pass (step 3, '
        '--dump_shard)')
  return [os.path.join(folder, other) for other in wanted]


def load_files(paths):
  """The array of the paths that `find_files` returned; shards are copied."""
  arrays = [load_array(path) for path in paths]
  if len(arrays) == 1:
    return arrays[0]
  first = arrays[0]
  for path, array in zip(paths, arrays):
    if not array.ndim or (array.dtype, array.shape[1:]) != (
        first.dtype, first.shape[1:]):
      raise UserError(
          f'{path}: {array.dtype} {array.shape}, and '
          f'{os.path.basename(paths[0])} is {first.dtype} {first.shape}; dump '
          'it again (step 3)')
  check_shard_rows(paths, [len(array) for array in arrays])
  return np.concatenate(arrays)


def check_shard_rows(paths, rows_in_shards):
  """Raises a `UserError` unless one pass can be cut into such shards.

  Passes with other batch sizes are cut at other rows, so a mix of their shards
  would have rows twice or not at all. For example, two shards of 10 images have
  4 and 6 rows in batches of 4, and 5 and 5 rows in batches of 5 or 1.
  """
  num_images, total = sum(rows_in_shards), len(rows_in_shards)
  for batch_size in range(1, max(num_images, 1) + 1):
    if not any(rows % batch_size for rows in rows_in_shards[:-1]):
      bounds = [shared_dumps.shard_rows(num_images, number, total, batch_size)
                for number in range(1, total + 1)]
      if [stop - start for start, stop in bounds] == rows_in_shards:
        return
  rows = ', '.join(f'{num_rows:,}' for num_rows in rows_in_shards)
  raise UserError(
      f'{paths[0]}: this shard and its {total - 1} siblings have {rows} rows, '
      'which no pass is cut into; dump again (step 3) those of another '
      '--batch_size or other records')
