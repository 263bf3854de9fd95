"""How far long work has come, on stderr."""

import sys
import time

_SECONDS_BETWEEN_LINES = 5


class Progress(object):
  """Prints a line every few seconds: done, total, rate, time left.

  Work that ends before the first line is due prints nothing.
  """

  def __init__(self, title, total, unit):
    """
    Args:
      title: what is being done, such as 'clf0 validation'.
      total: units of work in all.
      unit: plural, such as 'images'.
    """
    self._title = title
    self._total = total
    self._unit = unit
    self._start = self._last_line = time.monotonic()

  def update(self, done):
    """Tells that `done` units are done."""
    if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
      self._print(done)

  def finish(self):
    """Tells that all is done."""
    if self._last_line != self._start:
      self._print(self._total)

  def _print(self, done):
    self._last_line = time.monotonic()
    seconds = self._last_line - self._start
    rate = done / seconds
    line = '{}: {:,} of {:,} {}, {} {}/s'.format(
        self._title, done, self._total, self._unit,
        '{:,.0f}'.format(rate) if rate >= 100 else '{:.3g}'.format(rate),
        self._unit)
    if 0 < done < self._total:
      line += ', {} left'.format(_duration((self._total - done) / rate))
    sys.stderr.write(line + '\n')
    sys.stderr.flush()


def _duration(seconds):
  """Such as '7 s', '1 min 05 s' or '2 h 00 min'; whole units, rounded down."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return '{} h {:02d} min'.format(hours, minutes)
  return '{} min {:02d} s'.format(minutes, seconds) if minutes else (
      '{} s'.format(seconds))
