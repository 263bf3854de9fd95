"""Local files: atomic writes, locks, and errors that name the path.

No TensorFlow. What TensorFlow itself reads and writes (checkpoints) may lie
elsewhere; everything of ours is a local file.
"""

import contextlib
import errno
import os
import uuid

from user_error import UserError

# The end of a file's name until the file is whole.
UNFINISHED_SUFFIX = '.unfinished'

# The errors of `flock` on file systems that have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP,
             errno.EBADF, errno.EINVAL)


def write_atomically(path, content):
  """Writes `content` (bytes): `path` is always the old file or the new one.

  Several processes may write the same file at once; the last one wins.

  Raises:
    OSError: the file cannot be written; the old one is untouched.
  """
  unfinished = f'{path}.{uuid.uuid4().hex[:12]}{UNFINISHED_SUFFIX}'
  try:
    with open(unfinished, 'wb') as stream:
      stream.write(content)
      stream.flush()
      os.fsync(stream.fileno())
    os.replace(unfinished, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(unfinished)
    raise


@contextlib.contextmanager
def explain_error(path, remedy):
  """Turns an OSError into a UserError: `path` cannot be written."""
  try:
    yield
  except OSError as error:
    raise UserError(f'{path}: cannot be written ({error.strerror}); {remedy}')


def check_regular(path):
  """Raises a UserError if `path` exists and is not a regular file.

  Opening a FIFO would wait forever, and a device must not be replaced.
  """
  if os.path.exists(path) and not os.path.isfile(path):
    raise UserError(f'{path}: not a regular file; move it or name another '
                    'folder')


@contextlib.contextmanager
def locked(folder):
  """Holds the lock of an existing folder, for moments; others wait."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    _flock(descriptor)
    yield
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def lock_file(path, say_waiting, is_shared=False):
  """Holds the lock of a file, for as long as it takes; others wait.

  The file is made for this and removed by the last one to use it. If a killed
  process leaves it behind, it is in nobody's way: the lock is gone.

  Args:
    path: of the file.
    say_waiting: a function without arguments, called before a wait.
    is_shared: hold it together with others that share it.
  """
  with contextlib.ExitStack() as stack:
    is_current = False
    while not is_current:
      check_regular(path)
      stream = stack.enter_context(open(path, 'a+b'))
      try:
        _flock(stream.fileno(), is_shared, is_waiting=False)
      except BlockingIOError:
        say_waiting()
        _flock(stream.fileno(), is_shared)
      # Unless its last user has removed the file meanwhile.
      with contextlib.suppress(FileNotFoundError):
        is_current = os.path.samestat(
            os.fstat(stream.fileno()), os.stat(path))
    try:
      yield
    finally:
      with contextlib.suppress(OSError):  # Others use it still.
        _flock(stream.fileno(), is_waiting=False)
        os.remove(path)


def _flock(descriptor, is_shared=False, is_waiting=True):
  """Locks an open file until it is closed; nothing where there are no locks.

  Raises:
    BlockingIOError: another process has the lock and `is_waiting` is False.
  """
  import fcntl  # Not on Windows, where dumps are analysed but not made.
  operation = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
  try:
    fcntl.flock(descriptor, operation | (0 if is_waiting else fcntl.LOCK_NB))
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
