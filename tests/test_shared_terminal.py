"""Imagenet/shared_terminal.py: progress, by a clock that the tests set."""

import io
import os
import subprocess
import sys
import types

import pytest

import shared_terminal


@pytest.fixture
def clock(monkeypatch):
  """Stands in for the module `time`."""
  clock = types.SimpleNamespace(now=1000.)
  clock.monotonic = lambda: clock.now
  monkeypatch.setattr(shared_terminal, 'time', clock)
  return clock


@pytest.fixture
def terminal(monkeypatch):
  """A standard error that somebody looks at."""
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(
      shared_terminal, 'sys', types.SimpleNamespace(stderr=terminal))
  return terminal


@pytest.mark.parametrize('redirection', ['>/dev/full', '| true'])
def test_an_output_that_takes_nothing(redirection):
  """One line, and no traceback as Python ends."""
  code = ('import shared_terminal, sys, time\n'
          'def main():\n'
          '  time.sleep(.3)\n'
          '  shared_terminal.print_line("x" * 10**6 + "\\u00fc")\n'
          '  sys.stdout.write("more")\n'
          'sys.exit(shared_terminal.run_main(main))')
  finished = subprocess.run(
      ['bash', '-o', 'pipefail', '-c', f'"$0" -c "$1" {redirection}',
       sys.executable, code], stderr=subprocess.PIPE,
      cwd=os.path.dirname(shared_terminal.__file__),
      env=dict(os.environ, PYTHONIOENCODING='ascii'))
  assert finished.returncode == 1
  assert finished.stderr.count(b'\n') == 1 and b'output' in finished.stderr


def test_a_line_every_five_seconds_and_one_at_the_end(clock, terminal):
  work = shared_terminal.Progress('clf0 validation', 50000, 'images')
  for done in range(1000, 50001, 1000):
    clock.now += 1
    work.update(done)
  clock.now += 2
  work.finish()
  lines = terminal.getvalue().splitlines()
  assert lines[0] == ('clf0 validation: 5,000 of 50,000 images, '
                      '1,000 images/s, 45 s left')
  assert lines[8] == ('clf0 validation: 45,000 of 50,000 images, '
                      '1,000 images/s, 5 s left')
  assert lines[9:] == [
      'clf0 validation: 50,000 of 50,000 images, 1,000 images/s',
      'clf0 validation: 50,000 of 50,000 images, 962 images/s']
