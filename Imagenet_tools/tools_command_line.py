"""What the command lines of this folder share: errors, files, processes.

Standard library only. The files of this folder also work copied flat into
another one, so nothing here imports from the rest of the project.
"""

import argparse
import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback

_BAR_COLUMNS = 20
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_REPORT_SECONDS = 0.2


class InputError(Exception):
  """A wrong argument, file or folder: what is wrong, where, and the remedy.

  Any other exception is a bug in these tools and keeps its traceback.
  """


class ArgumentParser(argparse.ArgumentParser):
  """The standard parser, with errors of one line and exit status 1."""

  def error(self, message):
    raise InputError(f'{message}; see --help')


def check_range(args, flag, smallest, largest):
  """Raises `InputError` unless the value of `flag` is in the range."""
  value = getattr(args, flag)
  if not smallest <= value <= largest:
    raise InputError(
        f'--{flag} {value}: give a number from {smallest} to {largest}')


def run(main):
  """Runs `main()` and returns the exit status for `sys.exit`.

  0: done. 1: an `InputError`, or a file that cannot be read or written; one
  line on stderr says which. 130: Ctrl-C, or SIGTERM as batch schedulers send
  it.
  """
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    main()
    return 0
  except (InputError, OSError) as error:
    message, status = _error_line(error), 1
  except KeyboardInterrupt:
    message, status = 'interrupted; give the same command again', 130
  say(f'error: {message}')
  return status


def _error_line(error):
  """The message of an `InputError` or an `OSError`, with the file's name."""
  if isinstance(error, InputError):
    return str(error)
  where = os.fsdecode(error.filename or 'input or output')
  return f'{where}: {error.strerror or error}'


def say(message):
  """Prints one line on stderr, after the program's name."""
  # File names and arguments may hold line breaks; the message stays one line.
  program = os.path.basename(sys.argv[0])
  print(f'{program}: {" ".join(message.split())}', file=sys.stderr)


def print_result(line):
  """Prints a line on stdout; a name that is not UTF-8 appears escaped."""
  encoding = sys.stdout.encoding or 'utf-8'
  print(line.encode(encoding, 'backslashreplace').decode(encoding))


# Files.


def open_regular(path):
  """Opens a regular file for reading bytes.

  Raises:
    InputError: it is not one. Opening a FIFO could wait for ever.
    OSError: it is not there or cannot be read.
  """
  if os.path.exists(path) and not os.path.isfile(path):
    raise InputError(f'{os.fsdecode(path)}: not a regular file; remove it or '
                     'name another one')
  return open(path, 'rb')


def unfinished_path(path):
  """Where the contents of `path` are written before they get that name.

  The name starts with a dot, so a pattern such as 'train-*' does not match it.
  """
  folder, name = os.path.split(path)
  return os.path.join(folder, f'.{name}.unfinished')


def give_name(path):
  """Renames `unfinished_path(path)` to `path`, after it is on the disk.

  What has the final name is whole, even after the machine crashed.
  """
  with open(unfinished_path(path), 'rb') as written:
    os.fsync(written.fileno())
  os.replace(unfinished_path(path), path)


def write_file(path, content):
  """Writes bytes to `path`, which stays as it was if that fails."""
  temporary = unfinished_path(path)
  try:
    with open(temporary, 'wb') as unfinished:
      unfinished.write(content)
    give_name(path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.remove(temporary)


# Processes.


def num_cores():
  """How many cores this process may use, as far as the system tells."""
  try:
    return len(os.sched_getaffinity(0))
  except AttributeError:  # Not on Linux.
    return os.cpu_count() or 1


def run_in_processes(function, tasks, num_processes, on_steps):
  """Runs each task in a forked process of its own, some at a time.

  No process outlives the run: the first error ends all of them, Ctrl-C and
  SIGTERM are handled here, and if this process is killed, the others end at
  their next step.

  Args:
    function: of `(task, step)`; returns what can be pickled. It calls
      `step()` after each small part of a task, say an image.
    tasks: a list.
    num_processes: int, how many run at a time.
    on_steps: a function of an int, the steps since it was last called.

  Yields:
    `(task, result)` as the tasks end.

  Raises:
    InputError: `function` raised it or an OSError, or a process was killed.
    RuntimeError: any other exception of `function`, with its traceback.
  """
  context = multiprocessing.get_context('fork')
  counter, counted = context.Value('l', 0), 0
  waiting, running, ended = list(reversed(tasks)), {}, []
  gc.collect()  # Garbage of this process is not for its children to clear.
  try:
    while True:
      while waiting and len(running) < num_processes:
        task = waiting.pop()
        connection, process = _started(context, function, task, counter)
        running[connection] = task, process
      yield from ended  # While the others are at work.
      if not running:
        break
      ready = multiprocessing.connection.wait(list(running), _REPORT_SECONDS)
      ended = []
      for connection in ready:
        task, process = running[connection]
        ended.append((task, _received(connection)))
        del running[connection]
        connection.close()
        process.join()
      # Read without the lock: a killed process may have died holding it.
      new_count = counter.get_obj().value
      if new_count > counted:
        on_steps(new_count - counted)
        counted = new_count
  finally:
    # A second Ctrl-C must not leave a process behind.
    handlers = [(number, signal.signal(number, signal.SIG_IGN))
                for number in _STOP_SIGNALS]
    for connection, (_, process) in running.items():
      if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
      process.join()
      connection.close()
    for number, handler in handlers:
      signal.signal(number, handler)


def _started(context, function, task, counter):
  """Starts a process; returns the end of its pipe and the process."""
  ours, theirs = context.Pipe(duplex=False)
  process = context.Process(
      target=_work, args=(function, task, theirs, counter, os.getpid()))
  # The process inherits the mask, so a stop signal reaches this one only.
  signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
  try:
    process.start()
  finally:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
  theirs.close()
  return ours, process


def _work(function, task, connection, counter, main_pid):
  """What a process does: its task, then one message."""
  def step():
    if os.getppid() != main_pid:  # The main process was killed.
      os._exit(1)
    with counter.get_lock():
      counter.get_obj().value += 1

  try:
    message = function(task, step), None
  except (InputError, OSError) as error:
    message = None, InputError(_error_line(error))
  except Exception:
    message = None, RuntimeError(
        'in a worker process:\n' + traceback.format_exc())
  connection.send(message)


def _received(connection):
  try:
    result, error = connection.recv()
  except (EOFError, ConnectionError):
    raise InputError(
        'a worker process was killed, perhaps for lack of memory; run the '
        'command again to go on, with fewer --workers')
  if error is not None:
    raise error
  return result


# Progress.


class Progress:
  """Counts work on stderr: done / total, rate, time left.

  On a terminal one line with a bar is redrawn twice a second. Elsewhere, say
  in a log file, a line is added every 10 s. Use as a context manager.
  """

  def __init__(self, total, noun):
    """`total`: int, the number of steps; `noun`: such as 'images'."""
    self._total, self._noun = total, noun
    self._is_terminal = sys.stderr.isatty()
    self._done = 0
    self._start = self._shown_at = time.monotonic()

  def step(self, count=1):
    self._done += count
    seconds = time.monotonic() - self._shown_at
    if self._done and seconds >= (0.5 if self._is_terminal else 10):
      self._show()

  def _show(self):
    self._shown_at = time.monotonic()
    rate = self._done / max(self._shown_at - self._start, 1e-9)
    time_left = _duration((self._total - self._done) / rate)
    line = (f'{self._done:,} / {self._total:,} {self._noun}, {rate:,.0f}/s, '
            f'{time_left} left\n')
    if self._is_terminal:
      bar = '=' * (_BAR_COLUMNS * self._done // self._total)
      # Back to the first column, and clear what was longer.
      line = f'\r[{bar:<{_BAR_COLUMNS}}] {line[:-1]}\x1b[K'
    sys.stderr.write(line)
    sys.stderr.flush()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._is_terminal and self._done:
      self._show()
      sys.stderr.write('\n')


def _duration(seconds):
  minutes, seconds = divmod(int(round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours} h {minutes:02d} min'
  return f'{minutes} min {seconds:02d} s'
