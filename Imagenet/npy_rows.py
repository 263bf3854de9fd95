"""A `.npy` file that is written row by row and named when it is complete."""

import contextlib
import io

import numpy as np

from file_system import explain_error

# What becomes of a dump whose files cannot be written.
DUMP_REMEDY = 'this dump is given up, earlier ones are untouched'


class NpyRows(object):
  """Rows of a `.npy` file, in an unfinished file until the last is there.

  `open` comes first, then `append` and `sync`, and in the end `complete` and
  `give_name`, or `close` to go on another time, or `discard`. What the file
  system refuses is a `UserError` that names the file.

  Attributes:
    path: of the complete file.
  """

  def __init__(self, path, unfinished_path, dtype, shape, file_system):
    """
    Args:
      path: of the complete file.
      unfinished_path: until then.
      dtype: of the array.
      shape: of the complete array, rows first.
      file_system: one like `file_system.LOCAL`.
    """
    self.path = path
    self._unfinished_path = unfinished_path
    self._file_system = file_system
    self._dtype = np.dtype(dtype)
    self._num_rows = self._rows_missing = shape[0]
    self._row_shape = tuple(shape[1:])
    self._row_bytes = self._dtype.itemsize * int(np.prod(self._row_shape))
    self._header = _header(self._dtype, shape)
    self._stream = None
    self._has_name = False

  def holds(self, num_rows, stamp=None):
    """Whether an earlier run has left the first rows.

    Args:
      num_rows: so many.
      stamp: that of the complete file, which may have its name by now.
    """
    path, num_bytes = self._unfinished_path, self._bytes(num_rows)
    with self._explain_error():
      if stamp is not None and not self._file_system.exists(path):
        path = self.path
        if (not self._file_system.exists(path) or
            self._file_system.stamp(path) != stamp):
          return False
      return (self._file_system.exists(path) and
              self._file_system.size(path) >= num_bytes and
              self._begins_with_header(path))

  def _begins_with_header(self, path):
    # The header of another release of NumPy may have another length.
    with self._file_system.open_to_read(path) as stream:
      return stream.read(len(self._header)) == self._header

  def _bytes(self, num_rows):
    return len(self._header) + num_rows * self._row_bytes

  def open(self, num_kept_rows=None):
    """Begins the file, or goes on with it.

    Args:
      num_kept_rows: rows that stay, which the file `holds`; what lies behind
        them is cut off. None to begin anew.
    """
    with self._explain_error():
      if num_kept_rows is None:
        self._stream = self._file_system.open_to_write(self._unfinished_path)
        self._stream.write(self._header)
        return
      self._rows_missing = self._num_rows - num_kept_rows
      self._has_name = not self._file_system.exists(self._unfinished_path)
      if not self._has_name:
        self._stream = self._file_system.open_to_write(
            self._unfinished_path, self._bytes(num_kept_rows))

  def append(self, rows):
    rows = np.ascontiguousarray(rows, self._dtype)
    assert rows.shape[1:] == self._row_shape, (self.path, rows.shape)
    self._rows_missing -= len(rows)
    if len(rows):
      with self._explain_error():
        self._stream.write(rows.tobytes())

  def sync(self):
    """Returns when the rows so far would survive a crash."""
    if self._stream:
      with self._explain_error():
        self._file_system.sync(self._stream)

  def complete(self):
    assert self._rows_missing == 0, (self.path, self._rows_missing)
    self.sync()
    with self._explain_error():
      self._close()

  def stamp(self):
    """What tells the complete file from others of its name."""
    with self._explain_error():
      return self._file_system.stamp(
          self.path if self._has_name else self._unfinished_path)

  def give_name(self):
    if not self._has_name:
      with self._explain_error():
        self._file_system.replace(self._unfinished_path, self.path)
      self._has_name = True

  def close(self):
    """Leaves the file unfinished."""
    with contextlib.suppress(OSError):  # Nothing more is promised.
      self._close()

  def discard(self):
    with contextlib.suppress(OSError):  # The disk may be full, or gone.
      self._close()
    with contextlib.suppress(OSError):
      if self._file_system.exists(self._unfinished_path):
        self._file_system.remove(self._unfinished_path)

  def _close(self):
    stream, self._stream = self._stream, None
    if stream:
      stream.close()

  def _explain_error(self):
    return explain_error(self.path, DUMP_REMEDY)


def _header(dtype, shape):
  stream = io.BytesIO()
  np.lib.format.write_array_header_1_0(stream, {
      'descr': np.lib.format.dtype_to_descr(dtype),
      'fortran_order': False, 'shape': tuple(shape)})
  return stream.getvalue()
