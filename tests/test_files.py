"""Imagenet/files.py: whole files or none, locks, and what is no file."""

import errno
import fcntl
import os
import threading

import pytest

import files
from user_error import UserError


def test_files_are_replaced_as_a_whole(tmp_path, monkeypatch):
  path = tmp_path / 'results.json'
  files.write_atomically(str(path), b'old')
  files.write_atomically(str(path), b'new')
  assert path.read_bytes() == b'new'
  for function, error in (('fsync', OSError(28, 'No space left on device')),
                          ('replace', KeyboardInterrupt())):
    with monkeypatch.context() as patch:
      def fail(*_, error=error):
        raise error
      patch.setattr(os, function, fail)
      with pytest.raises(type(error)):
        files.write_atomically(str(path), b'newer')
  assert path.read_bytes() == b'new'
  assert os.listdir(str(tmp_path)) == ['results.json']


def test_processes_that_write_the_same_file_do_not_collide(
    tmp_path, monkeypatch):
  """Defect 19: they shared one unfinished file."""
  path, replace = str(tmp_path / 'results.json'), os.replace

  def interleave(*args):
    monkeypatch.setattr(os, 'replace', replace)
    files.write_atomically(path, b'other process')
    replace(*args)

  monkeypatch.setattr(os, 'replace', interleave)
  files.write_atomically(path, b'this process')
  assert (tmp_path / 'results.json').read_bytes() == b'this process'


def test_only_regular_files_pass(tmp_path):
  """Defect 18: opening a FIFO waits for ever."""
  files.check_regular(str(tmp_path / 'missing'))
  (tmp_path / 'file').touch()
  (tmp_path / 'link').symlink_to(tmp_path / 'file')
  for name in ('file', 'link'):
    files.check_regular(str(tmp_path / name))
  os.mkfifo(str(tmp_path / 'fifo'))
  for path in (tmp_path / 'fifo', tmp_path, '/dev/null'):
    with pytest.raises(UserError, match=f'{path}: not a regular file'):
      files.check_regular(str(path))


def test_errors_name_the_path():
  with pytest.raises(UserError, match='^a/b: cannot be written .No spac.*; go'):
    with files.explain_error('a/b', 'go'):
      raise OSError(28, 'No space left on device')


class Holder(threading.Thread):
  """Holds a lock in a thread until `release`; the file is its own."""

  def __init__(self, context):
    super().__init__()
    self.is_held, self.may_end = threading.Event(), threading.Event()
    self._context = context
    self.start()

  def run(self):
    with self._context:
      self.is_held.set()
      self.may_end.wait(60)

  def release(self):
    self.may_end.set()
    self.join()


def test_a_file_lock_is_exclusive_or_shared(tmp_path):
  path, waits = str(tmp_path / 'lock'), []

  def holder(is_shared, name):
    return Holder(files.lock_file(path, lambda: waits.append(name), is_shared))

  first, second = holder(True, 'first'), holder(True, 'second')
  assert first.is_held.wait(60) and second.is_held.wait(60)
  third = holder(False, 'third')
  first.release()
  assert not third.is_held.wait(0.05)
  second.release()
  assert third.is_held.wait(60)
  fourth = holder(True, 'fourth')
  assert not fourth.is_held.wait(0.05)
  third.release()  # It removes the file that the fourth waits for.
  assert fourth.is_held.wait(60) and os.path.exists(path)
  fourth.release()
  assert waits == ['third', 'fourth']
  assert os.listdir(str(tmp_path)) == []


def test_a_file_system_without_locks(tmp_path, monkeypatch):
  def no_locks(*_):
    raise OSError(errno.ENOLCK, 'No locks available')
  monkeypatch.setattr(fcntl, 'flock', no_locks)
  with files.locked(str(tmp_path)), files.lock_file(
      str(tmp_path / 'lock'), None):
    pass
