"""Tests of Imagenet/progress.py, with a clock that the tests set."""

import io
import types

import pytest

import progress


class Clock:
  """Stands in for the module `time`."""

  def __init__(self):
    self.now = 1000.

  def monotonic(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(progress, 'time', clock)
  return clock


class Terminal(io.StringIO):
  """Stands in for a standard error that somebody looks at."""

  def isatty(self):
    return True

  def lines(self):
    return self.getvalue().splitlines()


@pytest.fixture
def terminal(monkeypatch):
  terminal = Terminal()
  monkeypatch.setattr(progress, 'sys', types.SimpleNamespace(stderr=terminal))
  return terminal


def test_a_line_every_five_seconds_and_one_at_the_end(clock, terminal):
  work = progress.Progress('clf0 validation', 50000, 'images')
  for done in range(1000, 50001, 1000):
    clock.now += 1
    work.update(done)
  clock.now += 2
  work.finish()
  lines = terminal.lines()
  assert lines[0] == ('clf0 validation: 5,000 of 50,000 images, '
                      '1,000 images/s, 45 s left')
  assert lines[8] == ('clf0 validation: 45,000 of 50,000 images, '
                      '1,000 images/s, 5 s left')
  assert lines[9:] == [
      'clf0 validation: 50,000 of 50,000 images, 1,000 images/s',
      'clf0 validation: 50,000 of 50,000 images, 962 images/s']


def test_a_log_has_a_line_per_minute(clock, capsys):
  """Days of work must not flood a file."""
  work = progress.Progress('clf2 train', 1281167, 'images')
  printed = []
  for seconds in range(1, 3601):
    clock.now += 1
    printed.append(work.update(50 * seconds))
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == sum(printed) == 60
  assert [second for second, is_due in enumerate(printed, 1) if is_due][:2] == [
      60, 120]
  assert lines[0] == ('clf2 train: 3,000 of 1,281,167 images, 50 images/s, '
                      '7 h 06 min left')


def test_what_was_done_before_does_not_count_in_the_rate(clock, terminal):
  work = progress.Progress('clf2 train', 1000, 'images', done=600)
  clock.now += 10
  work.update(700)
  clock.now += 20
  work.finish()
  # 100 images in 10 seconds, 400 in 30.
  assert terminal.lines() == [
      'clf2 train: 700 of 1,000 images, 10 images/s, 30 s left',
      'clf2 train: 1,000 of 1,000 images, 13.3 images/s']


def test_a_description_is_made_for_lines_alone(clock, terminal):
  calls = []

  def describe():
    calls.append(clock.now)
    return 'loss 1.5'

  work = progress.Progress('training', 100, 'images')
  printed = []
  for done in range(1, 11):
    clock.now += 1
    printed.append(work.update(done, describe))
  assert printed == [False] * 4 + [True] + [False] * 4 + [True]
  assert calls == [1005., 1010.]
  work.finish()
  assert terminal.lines() == [
      'training: 5 of 100 images, 1 images/s, 1 min 35 s left; loss 1.5',
      'training: 10 of 100 images, 1 images/s, 1 min 30 s left; loss 1.5',
      'training: 100 of 100 images, 10 images/s']


@pytest.mark.parametrize('rate, shown', [
    (0.00123, '0.00123'), (44.72, '44.7'), (1234.5, '1,234')])
def test_rates_have_three_figures_and_no_exponent(clock, capsys, rate, shown):
  work = progress.Progress('work', 10**9, 'units')
  clock.now += 1000
  work.update(rate * 1000)
  assert ', {} units/s, '.format(shown) in capsys.readouterr().err


@pytest.mark.parametrize('seconds, shown', [
    (7.9, '7 s'), (65, '1 min 05 s'), (200000, '55 h 33 min')])
def test_durations(seconds, shown):
  assert progress._duration(seconds) == shown
