"""Local files: whole or not there, locks, and errors that name the path.

What TensorFlow itself reads and writes (checkpoints) may lie elsewhere;
everything of ours is a local file.
"""

import contextlib
import errno
import os
import uuid

from shared_terminal import UserError

# The end of a file's name until the file is whole.
UNFINISHED_SUFFIX = '.unfinished'

# The errors of `flock` on file systems that have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def give_name(unfinished, path):
  """Renames a file that is complete, once its content is on the disk."""
  with open(unfinished, 'rb') as stream:
    os.fsync(stream.fileno())
  os.replace(unfinished, path)


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
    give_name(unfinished, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(unfinished)
    raise


@contextlib.contextmanager
def explain_error(path, remedy, action='written'):
  """Turns an OSError into a UserError: `path` cannot be `action`."""
  try:
    yield
  except OSError as error:
    raise UserError(
        f'{path}: cannot be {action} ({error.strerror}); {remedy}')


@contextlib.contextmanager
def explain_content(path, remedy):
  """Turns what reading a file as ours may raise into a UserError."""
  try:
    yield
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror}); {remedy}')
  except (KeyError, TypeError, ValueError, AttributeError,
          IndexError) as error:
    raise UserError(f'{path}: not written by this program '
                    f'({type(error).__name__}: {error}); {remedy}')


@contextlib.contextmanager
def locked(path, on_wait=None, is_shared=False):
  """Holds a lock for as long as it takes; others wait.

  A process that is killed loses the lock. Nothing is locked on file systems
  that have no locks.

  Args:
    path: of the file that stands for what is locked; made if it is not there,
      and left. Or an existing folder.
    on_wait: a function without arguments, called before a wait; it may raise.
    is_shared: hold it together with others that share it.
  """
  import fcntl  # Not on Windows, where dumps are analysed but not made.
  descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else
                       os.O_RDWR | os.O_CREAT, 0o666)
  operation = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
  try:
    try:
      fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
      if on_wait:
        on_wait()
      fcntl.flock(descriptor, operation)
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
    yield
  finally:
    os.close(descriptor)
