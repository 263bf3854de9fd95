"""Processes that do one task at a time each, such as writing a shard.

They never outlive the work: one that fails ends all, Ctrl-C and SIGTERM are the
main process's affair, and if that one is killed the others end by themselves.
"""

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
import traceback

from tools_command_line import InputError, error_line

_REPORT_SECONDS = 0.2

# Signals that a worker leaves to the main process.
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_WORKER_WAS_KILLED = (
    'a worker process was killed, perhaps for want of memory; run the command '
    'again to go on, with fewer --workers')

# What a worker has to say.
_PROGRESS, _RESULT, _INPUT_ERROR, _DEFECT = range(4)


def num_cores():
  """How many cores this process may use, as far as the system tells."""
  try:
    return len(os.sched_getaffinity(0))
  except AttributeError:  # Not on Linux.
    return os.cpu_count() or 1


class Workers(object):
  """Forked processes that call a function of one task; a context manager.

  They are forked on entry and share all that is in memory then.
  """

  def __init__(self, num_workers, function):
    """
    Args:
      num_workers: int.
      function: of `(task, step)`; returns what can be pickled. It calls
        `step()` after each small part of a task, say an image.
    """
    self._num_workers = num_workers
    self._function = function
    self._processes = []
    self._connections = []

  def __enter__(self):
    context = multiprocessing.get_context('fork')
    # What this process has lost is not the workers' to clear away: objects of
    # libraries may wait for threads that only this process has.
    gc.collect()
    try:
      # A signal that comes before a worker can ignore it waits until it can.
      signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
      try:
        for _ in range(self._num_workers):
          ours, theirs = context.Pipe()
          self._connections.append(ours)
          # A copy of the list: a worker inherits our ends as made so far.
          process = context.Process(target=_work, daemon=True, args=(
              self._function, theirs, list(self._connections), os.getpid()))
          process.start()
          theirs.close()
          self._processes.append(process)
      finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    except BaseException:
      self._end()
      raise
    return self

  def __exit__(self, exception_type, exception, traceback_):
    self._end()

  def _end(self):
    # A second Ctrl-C must not leave a worker behind.
    handlers = [(number, signal.signal(number, signal.SIG_IGN))
                for number in _STOP_SIGNALS]
    for process in self._processes:
      if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    for process in self._processes:
      process.join()
    for connection in self._connections:
      connection.close()
    for number, handler in handlers:
      signal.signal(number, handler)

  def run(self, tasks, on_steps):
    """Gives each task to the next worker that is free.

    Args:
      tasks: an iterable.
      on_steps: a function of an int, the steps since it was last called.

    Yields:
      `(task, result)` as the tasks are done.

    Raises:
      InputError: as raised by the function, or a worker was killed.
      RuntimeError: any other exception of the function; has its traceback.
    """
    tasks = iter(tasks)
    at_work = {}

    def hand_out(connection):
      for task in tasks:
        try:
          connection.send(task)
        except ConnectionError:
          raise InputError(_WORKER_WAS_KILLED)
        at_work[connection] = task
        break

    for connection in self._connections:
      hand_out(connection)
    while at_work:
      done = []
      for connection in multiprocessing.connection.wait(list(at_work)):
        try:
          kind, content = connection.recv()
        except (EOFError, ConnectionError):
          raise InputError(_WORKER_WAS_KILLED)
        if kind == _PROGRESS:
          on_steps(content)
        elif kind == _RESULT:
          done.append((at_work.pop(connection), content))
          hand_out(connection)
        elif kind == _INPUT_ERROR:
          raise InputError(content)
        else:
          raise RuntimeError('in a worker process:\n' + content)
      # All are at work again while the results are being taken.
      for task, result in done:
        yield task, result


def _work(function, connection, ends_of_main, main_pid):
  """The life of a worker."""
  for number in _STOP_SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
  # Else the end of the main process would not close the pipes.
  for end in ends_of_main:
    end.close()
  steps = _Steps(connection, main_pid)
  try:
    while True:
      task = connection.recv()
      try:
        result = function(task, steps.step)
      except (InputError, OSError) as error:
        connection.send((_INPUT_ERROR, error_line(error)))
      except Exception:
        connection.send((_DEFECT, traceback.format_exc()))
      else:
        steps.report()
        connection.send((_RESULT, result))
  except (EOFError, ConnectionError):  # The main process has ended.
    pass


class _Steps(object):
  """Tells the main process of steps, some at a time."""

  def __init__(self, connection, main_pid):
    self._connection = connection
    self._main_pid = main_pid
    self._count = 0
    self._reported_at = time.monotonic()

  def step(self):
    # Who has lost his parent gets another one.
    if os.getppid() != self._main_pid:
      raise SystemExit
    self._count += 1
    if time.monotonic() - self._reported_at > _REPORT_SECONDS:
      self.report()

  def report(self):
    self._connection.send((_PROGRESS, self._count))
    self._count = 0
    self._reported_at = time.monotonic()
