"""What the command lines of this folder share: errors, progress, safe files.

Standard library only. The files of this folder work copied flat into another
one, which is why nothing here comes from the rest of the project.
"""

import argparse
import contextlib
import os
import signal
import sys
import time

_BAR_COLUMNS = 20


class InputError(Exception):
  """A wrong argument, file or folder: what is wrong, where, and the remedy.

  `run` prints the message as one line. Any other exception is a defect of
  these tools and keeps its traceback.
  """


class ArgumentParser(argparse.ArgumentParser):
  """The standard parser, with errors of one line and exit status 1."""

  def error(self, message):
    raise InputError('{}; see --help'.format(message))


def run(main):
  """Runs `main()` and returns the exit status for `sys.exit`.

  0: done. 1: an `InputError` or a file that cannot be read or written, said in
  one line on stderr. 130: Ctrl-C, or SIGTERM as sent by batch schedulers;
  both let `main` remove its unfinished files.
  """
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    main()
    return 0
  except (InputError, OSError) as error:
    message, status = error_line(error), 1
  except KeyboardInterrupt:
    message, status = 'interrupted; give the same command again', 130
  say('error: ' + message)
  return status


def error_line(error):
  """What an `InputError` or an `OSError` says, with the file if it has one."""
  if isinstance(error, InputError):
    return str(error)
  return '{}: {}'.format(
      error.filename or 'input or output', error.strerror or error)


def say(message):
  """Prints one line on stderr, with the program's name before it."""
  # A file name may hold a line break; the message stays one line.
  print('{}: {}'.format(os.path.basename(sys.argv[0]),
                        ' '.join(message.split())), file=sys.stderr)


def unfinished_path(path):
  """Where `unfinished_file` writes what is to become `path`.

  The name starts with a dot, so that a pattern such as 'train-*' does not take
  it for a shard.
  """
  folder, name = os.path.split(path)
  return os.path.join(folder, '.{}.unfinished'.format(name))


def wait_for_disk(path):
  """Returns when a file's contents are on the disk (fsync)."""
  with open(path, 'rb') as written:
    os.fsync(written.fileno())


@contextlib.contextmanager
def unfinished_file(path):
  """Gives a temporary path that becomes `path` when the block ends normally.

  It is on the disk before, so that after a crash of the machine, too, what has
  the name is whole. If the block raises, the temporary file is removed and
  `path` stays as it was. If the process is killed, the temporary file stays.

  Args:
    path: the final path; a file of this name is replaced.
  """
  temporary = unfinished_path(path)
  try:
    yield temporary
    wait_for_disk(temporary)
    os.replace(temporary, path)
  except BaseException:
    if os.path.exists(temporary):
      os.remove(temporary)
    raise


class Progress(object):
  """Counts work on a stream: done / total, rate, time left.

  On a terminal one line with a bar is redrawn twice a second; elsewhere, say
  in a log file, a line is added every 10 s. Use as a context manager.
  """

  def __init__(self, total, noun, stream=None, clock=time.monotonic):
    """
    Args:
      total: int, how many steps there are.
      noun: plural of what is counted, such as 'images'.
      stream: a text stream; default stderr.
      clock: a function that returns seconds.
    """
    self._total = total
    self._noun = noun
    self._stream = stream or sys.stderr
    self._clock = clock
    self._is_terminal = self._stream.isatty()
    self._interval_seconds = 0.5 if self._is_terminal else 10.
    self._done = 0
    self._start = self._shown_at = clock()

  def step(self, count=1):
    self._done += count
    now = self._clock()
    if now - self._shown_at >= self._interval_seconds:
      self._shown_at = now
      self._show(now)

  def _show(self, now):
    rate = self._done / max(now - self._start, 1e-9)
    line = '{:,} / {:,} {}, {:,.0f}/s, {} left'.format(
        self._done, self._total, self._noun, rate,
        _duration((self._total - self._done) / rate))
    if self._is_terminal:
      # Back to the first column, and clear what was longer.
      line = '\r[{:<{}}] {}\x1b[K'.format(
          '=' * (_BAR_COLUMNS * self._done // self._total), _BAR_COLUMNS, line)
    else:
      line += '\n'
    self._stream.write(line)
    self._stream.flush()

  def __enter__(self):
    return self

  def __exit__(self, exception_type, exception, traceback):
    if self._is_terminal and self._done:
      self._show(self._clock())
      self._stream.write('\n')


def _duration(seconds):
  minutes, seconds = divmod(int(round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return '{} h {:02d} min'.format(hours, minutes)
  return '{} min {:02d} s'.format(minutes, seconds)
