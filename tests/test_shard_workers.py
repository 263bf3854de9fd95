"""Processes that work on tasks: all done, none left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

import shard_workers
from shard_workers import Workers
from tools_command_line import InputError


def run(num_workers, function, tasks):
  steps = []
  with Workers(num_workers, function) as workers:
    results = dict(workers.run(tasks, steps.append))
  assert multiprocessing.active_children() == []
  return results, sum(steps)


@pytest.mark.parametrize('num_workers', [1, 2, 5])
@pytest.mark.parametrize('num_tasks', [0, 1, 7])
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


def test_tasks_run_side_by_side(tmp_path):
  """Each waits for the other one to begin."""
  def work(task, step):
    (tmp_path / str(task)).mkdir()
    while not (tmp_path / str(1 - task)).is_dir():
      step()
      time.sleep(0.001)
    return task

  assert run(2, work, [0, 1])[0] == {0: 0, 1: 1}


def test_workers_share_what_is_in_memory():
  memory = bytearray(b'before')
  results, _ = run(1, lambda task, step: bytes(memory), [0])
  memory[:] = b'behind'
  assert results == {0: b'before'}


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


def test_a_killed_worker_is_an_error():
  with pytest.raises(InputError) as error:
    run(2, lambda task, step: os.kill(os.getpid(), signal.SIGKILL), [0, 1])
  assert 'worker process was killed' in str(error.value)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_are_the_main_processes_affair(number):
  def work(task, step):
    os.kill(os.getpid(), number)
    return 'alive'

  assert run(1, work, [0])[0] == {0: 'alive'}


MAIN_PROCESS = '''
import os, signal, sys, time
sys.path.insert(0, {room!r})
from shard_workers import Workers

def work(task, step):
  with open(os.path.join({folder!r}, str(os.getpid())), 'w'):
    pass
  while True:
    step()
    time.sleep(0.01)

with Workers(3, work) as workers:
  for _ in workers.run(range(2), lambda count: None):
    pass
'''


def test_workers_of_a_killed_process_end(tmp_path):
  """Those at work and the one that waits for a task."""
  process = subprocess.Popen([sys.executable, '-c', MAIN_PROCESS.format(
      room=os.path.dirname(shard_workers.__file__), folder=str(tmp_path))],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  while len(list(tmp_path.iterdir())) < 2:
    assert process.poll() is None
    time.sleep(0.01)
  process.kill()
  # The pipes close when the last process that has them has ended.
  assert process.communicate(timeout=60) == (b'', b'')
