"""Imagenet/shared_files.py: whole files or none, locks, errors with a path."""

import errno
import fcntl
import os

import pytest

import shared_files
from lock_holder import Holder
from shared_terminal import UserError


def test_files_are_replaced_as_a_whole(tmp_path, monkeypatch):
  path = tmp_path / 'results.json'
  shared_files.write_atomically(str(path), b'old')
  shared_files.write_atomically(str(path), b'new')
  assert path.read_bytes() == b'new'
  for function, error in (('fsync', OSError(28, 'No space left on device')),
                          ('replace', KeyboardInterrupt())):
    with monkeypatch.context() as patch:
      def fail(*_, error=error):
        raise error
      patch.setattr(os, function, fail)
      with pytest.raises(type(error)):
        shared_files.write_atomically(str(path), b'newer')
  assert path.read_bytes() == b'new'
  assert os.listdir(str(tmp_path)) == ['results.json']


def test_errors_name_the_path():
  with pytest.raises(UserError, match='^a/b: cannot be written .No spac.*; go'):
    with shared_files.explain_error('a/b', 'go'):
      raise OSError(28, 'No space left on device')
  for error, words in ((KeyError('exits'), "KeyError: 'exits'"),
                       (OSError(13, 'Permission denied'), 'cannot be read')):
    with pytest.raises(UserError, match=f'^a/b: .*{words}.*; go'):
      with shared_files.explain_content('a/b', 'go'):
        raise error


@pytest.mark.parametrize('name', ['lock', ''])  # A file, or the folder.
def test_a_lock_is_exclusive_or_shared(tmp_path, name):
  path, waits = str(tmp_path / name), []

  def holder(is_shared, number):
    return Holder(shared_files.locked(
        path, lambda: waits.append(number), is_shared))

  first, second = holder(True, 1), holder(True, 2)
  assert first.is_held.wait(60) and second.is_held.wait(60)
  third = holder(False, 3)
  first.release()
  assert not third.is_held.wait(0.05)
  second.release()
  assert third.is_held.wait(60)
  fourth = holder(True, 4)
  assert not fourth.is_held.wait(0.05)
  third.release()
  assert fourth.is_held.wait(60)
  fourth.release()
  assert waits == [3, 4]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
  def no_locks(*_):
    raise OSError(errno.ENOLCK, 'No locks available')
  monkeypatch.setattr(fcntl, 'flock', no_locks)
  with shared_files.locked(str(tmp_path)):
    pass
