"""What every command line shares: errors, lines on the terminal, progress.

Modules named `shared_*` are what the rooms have in common: the files that one
of them writes and another one reads, and this. Standard library only, but for
NumPy where arrays are read; no TensorFlow.
"""

import os
import signal
import sys
import time

# Between lines of progress on a terminal, and in a log file, which days of work
# must not flood.
_TERMINAL_SECONDS, _LOG_SECONDS = 5, 60


class UserError(Exception):
  """A wrong flag, file or folder: what is wrong, where, and the remedy.

  Command lines print the message as one line and exit with status 1; any other
  exception but OSError is a defect of this project and keeps its traceback.
  """


def run_main(main):
  """Runs a command line's `main()`; returns the exit status.

  0, or what `main` returns. 1: a `UserError`, or a file that cannot be read or
  written; one line on stderr says which. 130: Ctrl-C, or SIGTERM as batch
  schedulers send it.
  """
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    status = main() or 0
    sys.stdout.flush()
    return status
  except UserError as error:
    say(error)
    return 1
  except OSError as error:
    if error.filename is None:
      # Standard output, most likely: `| head`, or a full disk. What is still
      # buffered would draw a traceback at exit.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    where = os.fsdecode(error.filename or 'standard output')
    say(f'{where}: {error.strerror or error}')
    return 1
  except KeyboardInterrupt:
    say('interrupted; the same command goes on where it can')
    return 130


def say(message):
  """Prints one line on stderr, after the program's name."""
  # File names and arguments may hold line breaks; the message stays one line.
  program = os.path.basename(sys.argv[0])
  sys.stderr.write(f'{program}: {" ".join(str(message).split())}\n')
  sys.stderr.flush()


def print_line(line):
  """Prints a result on stdout; what the terminal cannot show is escaped."""
  encoding = sys.stdout.encoding or 'utf-8'
  print(line.encode(encoding, 'backslashreplace').decode(encoding))


class Progress:
  """Prints a line on stderr now and then: done, total, rate, time left.

  Work that ends before the first line is due prints nothing.
  """

  def __init__(self, title, total, unit, done=0):
    self._title = title  # What is being done, such as 'clf0 validation'.
    self._total = total  # Units of work in all.
    self._unit = unit    # Plural, such as 'images'.
    self._done_before = done  # Units that do not count in the rate.
    self._seconds_between_lines = (
        _TERMINAL_SECONDS if sys.stderr.isatty() else _LOG_SECONDS)
    self._start = self._last_line = time.monotonic()

  def update(self, done, describe=None):
    """Reports that `done` units are done, including those done before.

    If a line is due, `describe()` is added to it. Returns whether it was.
    """
    is_due = (time.monotonic() - self._last_line >=
              self._seconds_between_lines)
    if is_due:
      self._print(done, describe() if describe else '')
    return is_due

  def finish(self):
    """Reports that all is done."""
    if self._last_line != self._start:
      self._print(self._total)

  def _print(self, done, description=''):
    self._last_line = time.monotonic()
    seconds = self._last_line - self._start
    rate = (done - self._done_before) / seconds
    shown_rate = f'{rate:,.0f}' if rate >= 100 else f'{rate:.3g}'
    line = (f'{self._title}: {done:,} of {self._total:,} {self._unit}, '
            f'{shown_rate} {self._unit}/s')
    if rate and done < self._total:
      line += f', {_duration((self._total - done) / rate)} left'
    if description:
      line += '; ' + description
    sys.stderr.write(line + '\n')
    sys.stderr.flush()


def _duration(seconds):
  """Such as '7 s', '1 min 05 s' or '2 h 00 min'; whole units, rounded down."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours} h {minutes:02d} min'
  return f'{minutes} min {seconds:02d} s' if minutes else f'{seconds} s'
