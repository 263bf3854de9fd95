"""Tasks in forked processes, some at a time, none of which outlives the run."""

import concurrent.futures
from concurrent.futures.process import BrokenProcessPool
import contextlib
import gc
import multiprocessing.util
import os
import signal
import sys
import threading
import time

from shared_files import explain_error
from shared_terminal import Progress, UserError

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SECONDS_BETWEEN_LOOKS = 0.1

# What the processes do, and for whom. They inherit both, as not all of it can
# be pickled.
_function = _main_pid = None


def num_cores():
  """How many cores this process may use, as far as the system tells."""
  try:
    return len(os.sched_getaffinity(0))
  except AttributeError:  # Not on Linux.
    return os.cpu_count() or 1


def run_in_processes(function, tasks, num_processes, title, on_result):
  """Runs tasks, a shard each, in forked processes; shows progress.

  The first error ends all processes; so do Ctrl-C and SIGTERM, which are for
  this process alone. If it is killed, the others end a moment later.

  Args:
    function: of a task; returns what can be pickled.
    tasks: a list of what can be pickled.
    num_processes: int, how many run at a time.
    title: of the lines of progress.
    on_result: a function of a task and its result, called in this process as
      the tasks end.

  Raises:
    UserError: a process was killed, or the system lacks what processes need.
    Exception: whatever `function` or `on_result` raises.
  """
  global _function, _main_pid
  _function, _main_pid = function, os.getpid()
  gc.collect()  # Garbage of this process is not for the others to clear.
  options = {}
  if sys.version_info >= (3, 7):  # Earlier, there is no other way.
    options = {'mp_context': multiprocessing.get_context('fork')}
  # Locks between processes are files there.
  with explain_error('/dev/shm', 'make room there, or mount it writable'):
    executor = concurrent.futures.ProcessPoolExecutor(
        max(1, min(num_processes, len(tasks))), **options)
  # Not with a process' first task: until that comes it might wait for ever.
  multiprocessing.util.register_after_fork(executor, _begin)
  progress, futures = Progress(title, len(tasks), 'shards'), {}
  try:
    # The processes inherit the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
      for task in tasks:
        futures[executor.submit(_work, task)] = task
    finally:
      signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    for done, future in enumerate(
        concurrent.futures.as_completed(futures), 1):
      on_result(futures[future], future.result())
      progress.update(done)
  except BaseException as error:
    for future in futures:
      future.cancel()
    is_broken = isinstance(error, BrokenProcessPool)
    for process in multiprocessing.active_children():
      with contextlib.suppress(ProcessLookupError):  # It has just ended.
        # SIGTERM lets it end in order, see `_work`.
        os.kill(process.pid, signal.SIGKILL if is_broken else signal.SIGTERM)
      if is_broken:  # Python 3.6 does not wait for them.
        process.join()
    if is_broken:
      raise UserError(
          'a worker process was killed, perhaps for lack of memory; give the '
          'same command again to go on, with fewer --workers')
    raise
  finally:
    executor.shutdown()


def _work(task):
  global _function
  try:
    # Amid a task only: a process that dies between tasks may hold a lock that
    # the others wait for.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    return _function(task)
  except KeyboardInterrupt:
    _function = _refuse  # What waits in the queue.
    raise
  finally:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _refuse(task):
  raise KeyboardInterrupt


def _begin(_):
  """Leaves Ctrl-C to the main process, whose end is this one's end, too."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.default_int_handler)

  def end_with_main():
    while os.getppid() == _main_pid:
      time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
  threading.Thread(target=end_with_main, daemon=True).start()
