"""Tests of Imagenet/progress.py, with a clock that the tests set."""

import pytest

import progress


class Clock(object):
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


def test_quick_work_prints_nothing(clock, capsys):
  work = progress.Progress('counting records', 8, 'shards')
  for done in range(1, 9):
    clock.now += 0.6  # 4.8 seconds in all.
    work.update(done)
  work.finish()
  assert capsys.readouterr() == ('', '')


def test_a_line_every_five_seconds_and_one_at_the_end(clock, capsys):
  work = progress.Progress('clf0 validation', 50000, 'images')
  for done in range(1000, 50001, 1000):
    clock.now += 1
    work.update(done)
  clock.now += 2
  work.finish()
  stdout, stderr = capsys.readouterr()
  lines = stderr.splitlines()
  assert stdout == ''
  assert lines[0] == ('clf0 validation: 5,000 of 50,000 images, '
                      '1,000 images/s, 45 s left')
  assert lines[8] == ('clf0 validation: 45,000 of 50,000 images, '
                      '1,000 images/s, 5 s left')
  assert lines[9:] == [
      'clf0 validation: 50,000 of 50,000 images, 1,000 images/s',
      'clf0 validation: 50,000 of 50,000 images, 962 images/s']


def test_time_left_follows_the_rate_since_the_start(clock, capsys):
  work = progress.Progress('clf2 train', 1281167, 'images')
  clock.now += 10
  work.update(126)
  assert capsys.readouterr().err == (
      'clf2 train: 126 of 1,281,167 images, 12.6 images/s, 28 h 14 min left\n')
  clock.now += 110  # The rate is now 1 image/s.
  work.update(120)
  assert '1 images/s, 355 h 50 min left' in capsys.readouterr().err


def test_nothing_done_yet_has_no_time_left(clock, capsys):
  work = progress.Progress('looking', 3, 'shards')
  clock.now += 5
  work.update(0)
  assert capsys.readouterr().err == 'looking: 0 of 3 shards, 0 shards/s\n'


@pytest.mark.parametrize('rate, shown', [
    (0.00123, '0.00123'), (1 / 3., '0.333'), (44.72, '44.7'), (100.4, '100'),
    (1234.5, '1,234'), (25000., '25,000')])
def test_rates_have_three_figures_and_no_exponent(clock, capsys, rate, shown):
  work = progress.Progress('work', 10**9, 'units')
  clock.now += 1000
  work.update(rate * 1000)
  assert ', {} units/s, '.format(shown) in capsys.readouterr().err


@pytest.mark.parametrize('seconds, shown', [
    (0.4, '0 s'), (7.9, '7 s'), (59.9, '59 s'), (60, '1 min 00 s'),
    (65, '1 min 05 s'), (3599, '59 min 59 s'), (3600, '1 h 00 min'),
    (7265, '2 h 01 min'), (200000, '55 h 33 min')])
def test_durations(seconds, shown):
  assert progress._duration(seconds) == shown
