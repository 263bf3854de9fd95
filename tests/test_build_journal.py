"""What a build notes down: after any stop it is read back; one run at a time.
"""

import fcntl
import os
import subprocess
import sys

import pytest

import build_journal
from build_journal import BuildJournal
from tools_command_line import InputError

BUILD = {'seed': 0, 'num_shards': {'train': 4}}
ENTRIES = [{'shard': 'train-0000{}'.format(i), 'bytes': i} for i in range(3)]


def journal_path(folder):
  return folder / build_journal.JOURNAL_FILE_NAME


def write(folder):
  with BuildJournal(str(folder)) as journal:
    journal.begin(BUILD)
    for entry in ENTRIES:
      journal.add(entry)
  return journal_path(folder).read_bytes()


def read(folder):
  with BuildJournal(str(folder)) as journal:
    return journal.build, journal.entries


def test_what_was_written_is_read(tmp_path):
  write(tmp_path)
  assert read(tmp_path) == (
      BUILD, {entry['shard']: entry for entry in ENTRIES})


def test_of_two_entries_the_later_one_counts(tmp_path):
  write(tmp_path)
  with BuildJournal(str(tmp_path)) as journal:
    journal.add({'shard': 'train-00001', 'bytes': 9})
    assert journal.entries['train-00001']['bytes'] == 9
  assert read(tmp_path)[1]['train-00001']['bytes'] == 9


def test_cut_off_anywhere(tmp_path):
  """Whole lines count; what follows is as if it had never been, for good."""
  content = write(tmp_path)
  for kept in range(len(content)):
    journal_path(tmp_path).write_bytes(content[:kept])
    whole = content[:kept].count(b'\n')
    with BuildJournal(str(tmp_path)) as journal:
      assert journal.build == (BUILD if whole else None)
      assert list(journal.entries.values()) == ENTRIES[:max(0, whole - 1)]
      journal.begin(BUILD)
      journal.add({'shard': 'next'})
    assert len(read(tmp_path)[1]) == max(0, whole - 1) + 1


@pytest.mark.parametrize('tail', [b'\0' * 50, b'{"shard": "x', b'\xff\xfe\n'])
def test_garbage_behind_a_crash(tmp_path, tail):
  content = write(tmp_path)
  journal_path(tmp_path).write_bytes(content + tail)
  assert len(read(tmp_path)[1]) == 3
  assert journal_path(tmp_path).read_bytes() == content


@pytest.mark.parametrize('build, words', [
    (dict(BUILD, seed=7), 'seed 0 there, 7 here'),
    (dict(BUILD, num_shards={'train': 5}), 'other num shards'),
    (dict(BUILD, rule='x' * 90), 'other rule')])
def test_another_build_is_refused(tmp_path, build, words):
  content = write(tmp_path)
  for method in (BuildJournal.check, BuildJournal.begin):
    with BuildJournal(str(tmp_path)) as journal:
      with pytest.raises(InputError) as error:
        method(journal, build)
    assert words in str(error.value) and str(tmp_path) in str(error.value)
  assert journal_path(tmp_path).read_bytes() == content


def test_a_part_of_what_is_built_is_compared(tmp_path):
  write(tmp_path)
  with BuildJournal(str(tmp_path)) as journal:
    journal.check({'seed': 0})
    journal.begin(BUILD)


def test_a_run_that_comes_to_nothing_leaves_nothing(tmp_path):
  with BuildJournal(str(tmp_path)) as journal:
    journal.check(BUILD)
  assert os.listdir(str(tmp_path)) == []


def test_a_second_run_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(build_journal, '_LOCK_SECONDS', 0.1)
  with BuildJournal(str(tmp_path)) as journal:
    journal.begin(BUILD)
    with pytest.raises(InputError) as error:
      read(tmp_path)
    assert 'another run' in str(error.value)
    journal.add(ENTRIES[0])
  assert len(read(tmp_path)[1]) == 1


def test_a_crash_releases_the_lock(tmp_path):
  code = ('import os, sys\n'
          'sys.path.insert(0, {!r})\n'
          'from build_journal import BuildJournal\n'
          'journal = BuildJournal({!r}).__enter__()\n'
          'journal.begin({{}})\n'
          'os.kill(os.getpid(), 9)').format(
              os.path.dirname(build_journal.__file__), str(tmp_path))
  assert subprocess.call([sys.executable, '-c', code]) == -9
  assert read(tmp_path) == ({}, {})


def test_a_run_that_ends_meanwhile_is_waited_for(tmp_path, monkeypatch):
  """As the workers of a run that was killed end a little later."""
  write(tmp_path)
  held = open(str(journal_path(tmp_path)), 'ab')
  fcntl.flock(held, fcntl.LOCK_EX)
  monkeypatch.setattr(
      build_journal.time, 'sleep', lambda seconds: held.close())
  assert len(read(tmp_path)[1]) == 3


def test_a_journal_removed_before_the_lock_is_made_anew(tmp_path, monkeypatch):
  flock, calls = fcntl.flock, []

  def flock_of_a_removed_file(opened, operation):
    flock(opened, operation)
    calls.append(operation)
    if len(calls) == 1:
      journal_path(tmp_path).unlink()
  monkeypatch.setattr(build_journal.fcntl, 'flock', flock_of_a_removed_file)
  write(tmp_path)
  assert len(calls) == 2 and len(read(tmp_path)[1]) == 3


def test_a_file_system_without_locks(tmp_path, monkeypatch):
  def flock(opened, operation):
    raise OSError(build_journal.errno.ENOLCK, 'No locks available')
  monkeypatch.setattr(build_journal.fcntl, 'flock', flock)
  with pytest.raises(InputError) as error:
    read(tmp_path)
  assert 'No locks available' in str(error.value)
