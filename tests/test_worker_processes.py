"""Worker processes: errors, stop signals, and an end with the main process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from shared_terminal import UserError
import worker_processes


def run(num_processes, function, tasks):
  results = {}
  worker_processes.run_in_processes(
      function, list(tasks), num_processes, 'test', results.__setitem__)
  assert multiprocessing.active_children() == []
  return results


@pytest.mark.parametrize('error', [
    UserError('what: is wrong'), OSError(28, 'No space left', '/a/file'),
    KeyError('a defect')])
def test_errors_arrive_and_end_all(error):
  def work(task):
    if task == 1:
      raise error
    time.sleep(60)  # Nobody waits for these.

  with pytest.raises(type(error)) as caught:
    run(3, work, [0, 1, 2])
  assert str(caught.value) == str(error)
  assert multiprocessing.active_children() == []


def test_a_killed_worker_is_an_error():
  def work(task):
    os.kill(os.getpid(), signal.SIGKILL)

  with pytest.raises(UserError, match='--workers'):
    run(2, work, range(9))
  assert multiprocessing.active_children() == []


MAIN = '''
import os, sys, time
sys.path.insert(0, {tools!r})
from shared_terminal import run_main
from worker_processes import run_in_processes

def work(task):
  open(os.path.join({folder!r}, str(os.getpid())), 'w').close()
  while True:
    time.sleep(0.01)

sys.exit(run_main(lambda: run_in_processes(
    work, list(range(9)), 2, 'test', print)))
'''


@pytest.mark.parametrize('kill, stop, status', [
    (os.killpg, signal.SIGINT, 130), (os.kill, signal.SIGTERM, 130),
    (os.kill, signal.SIGKILL, -9)])
def test_no_worker_outlives_the_main_process(tmp_path, kill, stop, status):
  """Whether a signal is for the main process or, as Ctrl-C, for all."""
  code = MAIN.format(tools=os.path.dirname(worker_processes.__file__),
                     folder=str(tmp_path))
  # A shell that starts the tests in the background has SIGINT ignored.
  process = subprocess.Popen(
      [sys.executable, '-c', code], start_new_session=True,
      preexec_fn=lambda: signal.signal(
          signal.SIGINT, signal.default_int_handler),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  while len(list(tmp_path.iterdir())) < 2:
    assert process.poll() is None
    time.sleep(0.01)
  kill(process.pid, stop)
  # The pipes close when the last process that has them has ended.
  output, error = process.communicate(timeout=60)
  assert output == b'' and error.count(b'\n') == (status == 130), error
  assert process.returncode == status
