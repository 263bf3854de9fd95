"""What the command lines share: processes, progress, errors of one line."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import types

import pytest

import tools_command_line
from tools_command_line import InputError, Progress, run_in_processes


def run(num_processes, function, tasks):
  steps = []
  results = dict(run_in_processes(
      function, list(tasks), num_processes, steps.append))
  assert multiprocessing.active_children() == []
  return results, sum(steps)


@pytest.mark.parametrize('num_workers, num_tasks', [(1, 7), (2, 0), (5, 7)])
def test_each_task_is_done_once(tmp_path, num_workers, num_tasks):
  def work(task, step):
    (tmp_path / str(task)).mkdir()  # Fails the second time.
    for _ in range(task):
      step()
    return task * task, os.getpid()

  results, steps = run(num_workers, work, range(num_tasks))
  assert {task: result[0] for task, result in results.items()} == {
      task: task * task for task in range(num_tasks)}
  assert os.getpid() not in {result[1] for result in results.values()}
  assert steps == sum(range(num_tasks))


@pytest.mark.parametrize('error, raised, words', [
    (InputError('what: is wrong'), InputError, 'what: is wrong'),
    (OSError(28, 'No space left', '/a/file'), InputError,
     '/a/file: No space left'),
    (KeyError('a defect'), RuntimeError, "KeyError: 'a defect'")])
def test_errors_arrive_and_end_all(error, raised, words):
  def work(task, step):
    if task == 1:
      raise error
    time.sleep(60)  # Nobody waits for these.

  with pytest.raises(raised) as caught:
    run(3, work, [0, 1, 2])
  assert words in str(caught.value)
  assert multiprocessing.active_children() == []


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_stop_signals_reach_the_main_process_alone(number):
  def work(task, step):
    os.kill(os.getpid(), number)
    return 'alive'

  assert run(1, work, [0])[0] == {0: 'alive'}


def test_workers_of_a_killed_process_end(tmp_path):
  code = f'''
import os, sys, time
sys.path.insert(0, {os.path.dirname(tools_command_line.__file__)!r})
from tools_command_line import run_in_processes

def work(task, step):
  open(os.path.join({str(tmp_path)!r}, str(os.getpid())), 'w').close()
  while True:
    step()
    time.sleep(0.01)

for _ in run_in_processes(work, [0, 1, 2], 2, lambda count: None):
  pass
'''
  process = subprocess.Popen([sys.executable, '-c', code],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  while len(list(tmp_path.iterdir())) < 2:
    assert process.poll() is None
    time.sleep(0.01)
  process.kill()
  # The pipes close when the last process that has them has ended.
  assert process.communicate(timeout=60) == (b'', b'')


# Progress and errors.


@pytest.mark.parametrize('is_terminal', [False, True])
def test_progress(monkeypatch, is_terminal):
  stream, seconds = io.StringIO(), [0.]
  stream.isatty = lambda: is_terminal
  monkeypatch.setattr(sys, 'stderr', stream)
  monkeypatch.setattr(tools_command_line, 'time', types.SimpleNamespace(
      monotonic=lambda: seconds[0]))
  with Progress(2000, 'images') as progress:
    for _ in range(6):
      seconds[0] += 4
      progress.step()
  lines = stream.getvalue().replace('\x1b[K', '\n').split('\n')
  lines = [line.strip('\r') for line in lines if line]
  if is_terminal:  # Every step, 4 s apart, and the end.
    assert len(lines) == 7
    assert lines[0] == (
        '[                    ] 1 / 2,000 images, 0/s, 2 h 13 min left')
    assert stream.getvalue().endswith('\n')
  else:  # Every third, when 10 s are over.
    assert len(lines) == 2
    assert lines[0] == '3 / 2,000 images, 0/s, 2 h 13 min left'
  # Defect 11: a shard that is corrupt at record 0 has no steps.
  progress = Progress(10, 'images')
  seconds[0] += 20
  progress.step(0)


def test_line_breaks_leave_an_error_one_line(capsys):
  """Defect 18: whatever breaks lines in an argument."""
  def fail():
    raise InputError('a\nb\rc\x0bd\x85e\u2028f: no such file')

  assert tools_command_line.run(fail) == 1
  assert capsys.readouterr().err.rstrip('\n').splitlines()[0].endswith(
      'error: a b c d e f: no such file')
