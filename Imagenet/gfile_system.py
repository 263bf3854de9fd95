"""Dumps in folders of TensorFlow's file system layer: gs://, hdfs://, ram://.

The only file of the dumps that needs TensorFlow.
"""

import contextlib
import errno
import os

from tf_compat import tf

from file_system import LOCAL


def of_folder(folder):
  """The file system of a path: the local one, unless it has a scheme."""
  return GFileSystem() if '://' in folder else LOCAL


class GFileSystem(object):
  """What `file_system.LocalFileSystem` does, for any path of TensorFlow's.

  This layer cannot cut a file, and object stores cannot even append: a dump
  that is killed begins anew. It has no locks either and does not know what
  space is left.
  """

  can_resume = False

  def exists(self, path):
    with _as_os_error():
      return tf.gfile.Exists(path)

  def names(self, folder):
    with _as_os_error():
      if not tf.gfile.IsDirectory(folder):
        return []
      return sorted(name.rstrip('/') for name in tf.gfile.ListDirectory(folder))

  def size(self, path):
    with _as_os_error():
      return tf.gfile.Stat(path).length

  def make_folder(self, folder):
    with _as_os_error():
      tf.gfile.MakeDirs(folder)

  def open_to_read(self, path):
    with _as_os_error():
      if not tf.gfile.Exists(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
      return _Stream(tf.gfile.GFile(path, 'rb'))

  def open_to_write(self, path, num_kept_bytes=0):
    assert num_kept_bytes == 0, path
    with _as_os_error():
      stream = _Stream(tf.gfile.GFile(path, 'wb'))
      stream.write(b'')  # Opens it, so that what fails fails here.
      return stream

  def sync(self, stream):
    stream.flush()

  def replace(self, path, new_path):
    with _as_os_error():
      tf.gfile.Rename(path, new_path, overwrite=True)

  def remove(self, path):
    with _as_os_error():
      tf.gfile.Remove(path)

  def free_bytes(self, folder):
    del folder
    return None

  @contextlib.contextmanager
  def locked(self, folder):
    del folder
    yield

  def claim(self, path):
    del path
    return _NoClaim()


class _NoClaim(object):
  """What `claim` returns where nothing can be locked."""

  def close(self):
    pass


class _Stream(object):
  """A GFile whose errors are OSErrors."""

  def __init__(self, gfile):
    self._gfile = gfile

  def read(self, num_bytes=-1):
    with _as_os_error():
      return self._gfile.read(num_bytes)

  def write(self, content):
    with _as_os_error():
      self._gfile.write(content)

  def flush(self):
    with _as_os_error():
      self._gfile.flush()

  def close(self):
    with _as_os_error():
      self._gfile.close()

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()


@contextlib.contextmanager
def _as_os_error():
  try:
    yield
  except tf.errors.OpError as error:
    number = (errno.ENOENT if isinstance(error, tf.errors.NotFoundError)
              else errno.EIO)
    raise OSError(number, ' '.join(error.message.split()) or
                  os.strerror(number))
