"""Progress of long work, on stderr."""

import sys
import time

# Between lines on a terminal, and in a log file, which days of work must not
# flood.
_TERMINAL_SECONDS, _LOG_SECONDS = 5, 60


class Progress:
  """Prints a line now and then: done, total, rate, time left.

  Work that ends before the first line is due prints nothing.
  """

  def __init__(self, title, total, unit, done=0):
    """
    Args:
      title: what is being done, such as 'clf0 validation'.
      total: units of work in all.
      unit: plural, such as 'images'.
      done: units that were done before, and do not count in the rate.
    """
    self._title = title
    self._total = total
    self._unit = unit
    self._done_before = done
    self._seconds_between_lines = (
        _TERMINAL_SECONDS if sys.stderr.isatty() else _LOG_SECONDS)
    self._start = self._last_line = time.monotonic()

  def update(self, done, describe=None):
    """Reports that `done` units are done, including those done before.

    Args:
      done: int.
      describe: a function without arguments that returns what to add to the
        line; called if there is one.

    Returns:
      Whether a line was printed.
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
