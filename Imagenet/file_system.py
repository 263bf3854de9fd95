"""What the dumps ask of a file system, and the local one.

Another one (`gfile_system.py`) has the same methods. Paths are joined with
`os.path.join`; what fails raises OSError.
"""

import contextlib
import errno
import os
import shutil

from user_error import UserError

# What `flock` says where a file system has no locks, such as some mounted ones.
_HAS_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP,
                 errno.EBADF, errno.EINVAL)


class LocalFileSystem(object):
  """Files of this machine and of what is mounted there.

  Attributes:
    can_resume: whether a file that was left unfinished can be cut and gone on
      with.
  """

  can_resume = True

  def exists(self, path):
    return os.path.exists(path)

  def names(self, folder):
    """Names in `folder`, sorted; none where there is no such folder."""
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

  def size(self, path):
    """Bytes in a file."""
    return os.path.getsize(path)

  def stamp(self, path):
    """What changes when a file gets other content: a list, ready for JSON."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]

  def make_folder(self, folder):
    """Makes a folder and those above it; it may be there."""
    os.makedirs(folder, exist_ok=True)

  def open_to_read(self, path):
    return open(path, 'rb')

  def open_to_write(self, path, num_kept_bytes=0):
    """Opens a file to write behind its first bytes, the only ones that stay.

    Args:
      path: made if it is not there.
      num_kept_bytes: not more than the file has; 0 where not `can_resume`.

    Returns:
      An object with `write` and `close`.
    """
    stream = open(path, 'ab')
    try:
      stream.truncate(num_kept_bytes)
    except BaseException:
      stream.close()
      raise
    return stream

  def sync(self, stream):
    """Returns when all that was written to `stream` would survive a crash."""
    stream.flush()
    os.fsync(stream.fileno())

  def replace(self, path, new_path):
    """Renames a file; one that has the new name is replaced, atomically."""
    os.replace(path, new_path)

  def remove(self, path):
    os.remove(path)

  def free_bytes(self, folder):
    """Bytes that can still be written, or None where that is not known."""
    return shutil.disk_usage(folder).free

  @contextlib.contextmanager
  def locked(self, folder):
    """Keeps other processes that lock this folder waiting; for moments."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      _flock(descriptor, is_waiting=True)
      yield
    finally:
      os.close(descriptor)

  def claim(self, path):
    """Locks a file, made if it is not there, until it is closed.

    Returns:
      An object with `close`, or None if another has claimed the file.
    """
    stream = open(path, 'ab')
    try:
      _flock(stream.fileno(), is_waiting=False)
    except BlockingIOError:
      stream.close()
      return None
    return stream


LOCAL = LocalFileSystem()


def _flock(descriptor, is_waiting):
  import fcntl  # Not there on Windows, where nothing is dumped.
  try:
    fcntl.flock(descriptor,
                fcntl.LOCK_EX | (0 if is_waiting else fcntl.LOCK_NB))
  except OSError as error:
    if error.errno not in _HAS_NO_LOCKS:
      raise


def replace_content(file_system, path, unfinished_path, content):
  """Gives a file new content: it is the old or the new at any time.

  Args:
    file_system: one like `LOCAL`.
    path: of the file, which need not be there.
    unfinished_path: what the file is called until it is whole.
    content: bytes.
  """
  try:
    stream = file_system.open_to_write(unfinished_path)
    try:
      stream.write(content)
      file_system.sync(stream)
    finally:
      stream.close()
    file_system.replace(unfinished_path, path)
  except BaseException:
    if file_system.exists(unfinished_path):
      file_system.remove(unfinished_path)
    raise


@contextlib.contextmanager
def explain_error(path, remedy):
  """Makes an OSError a `UserError` that says: `path` cannot be written."""
  try:
    yield
  except OSError as error:
    raise UserError('{}: cannot be written ({}); {}'.format(
        path, error.strerror, remedy))
