"""Tasks in forked processes, some at a time, none of which outlives the run."""

import gc
import multiprocessing.connection
import os
import signal
import threading
import time
import traceback

from shared_terminal import Progress, UserError

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SECONDS_BETWEEN_LOOKS = 0.1


def num_cores():
  """How many cores this process may use, as far as the system tells."""
  try:
    return len(os.sched_getaffinity(0))
  except AttributeError:  # Not on Linux.
    return os.cpu_count() or 1


def run_in_processes(function, tasks, num_processes, title, on_result):
  """Runs tasks, a shard each, in forked processes; shows progress.

  The first error ends all processes; so do Ctrl-C and SIGTERM, which are for
  this process alone. If it is killed, the others end a moment later. They share
  no locks, so each may be killed at any time.

  Args:
    function: of a task; tasks and results must be fit for pickling.
    tasks: a list.
    num_processes: int, how many run at a time.
    title: of the lines of progress.
    on_result: a function of a task and its result, called in this process as
      the tasks end.

  Raises:
    UserError: a process was killed.
    Exception: whatever `function` or `on_result` raises.
  """
  gc.collect()  # Garbage of this process is not for the others to clear.
  fork = multiprocessing.get_context('fork')
  waiting, at_work, processes = iter(tasks), {}, []

  def give_task(connection):
    for task in waiting:
      at_work[connection] = task
      connection.send(task)
      break

  progress = Progress(title, len(tasks), 'shards')
  try:
    for _ in range(min(num_processes, len(tasks))):
      connection, theirs = fork.Pipe()
      process = fork.Process(
          target=_work, args=(function, theirs, os.getpid()))
      # The process inherits the mask, and keeps it.
      signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
      process.start()
      processes.append(process)
      signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
      theirs.close()
      give_task(connection)
    num_done = 0
    while at_work:
      for connection in multiprocessing.connection.wait(list(at_work)):
        result, error, where = connection.recv()
        if error:
          raise error from RuntimeError(where)
        on_result(at_work.pop(connection), result)
        num_done += 1
        progress.update(num_done)
        give_task(connection)
  except (EOFError, ConnectionError):
    raise UserError(
        'a worker process was killed, perhaps for lack of memory; give the '
        'same command again to go on, with fewer --workers')
  finally:
    # A fork may have failed.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    for process in processes:
      if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
      process.join()


def _work(function, connection, main_pid):
  def end_with_main():
    while os.getppid() == main_pid:
      time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)

  threading.Thread(target=end_with_main, daemon=True).start()
  while True:
    task = connection.recv()
    try:
      result = function(task), None, None
    except Exception as error:
      result = None, error, traceback.format_exc()
    connection.send(result)
