"""The journal of a build: read back after any stop; one run at a time."""

import fcntl
import os
import subprocess
import sys

import pytest

import record_folder
from record_folder import BuildJournal
from tools_command_line import InputError

BUILD = {'seed': 0, 'num_shards': {'train': 4}}
ENTRIES = [
    {'shard': f'train-0000{i}', 'bytes': i, 'records': 1, 'sha256': 'x',
     'decoded': False, 'skipped': []} for i in range(3)]


def journal_path(folder):
  return folder / record_folder.JOURNAL_FILE_NAME


def write(folder):
  with BuildJournal(str(folder)) as journal:
    journal.begin(BUILD)
    for entry in ENTRIES:
      journal.add(entry)
  return journal_path(folder).read_bytes()


def read(folder):
  with BuildJournal(str(folder)) as journal:
    return journal.build, journal.entries


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
      journal.add(dict(ENTRIES[0], shard='next'))
    assert len(read(tmp_path)[1]) == max(0, whole - 1) + 1


@pytest.mark.parametrize('tail', [
    b'\0' * 50, b'{"shard": "x', b'\xff\xfe\n', b'{"bytes": 3}\n', b'[]\n',
    b'{"shard": "x", "bytes": "many"}\n', b'[' * 100000 + b'\n'],
                         ids=len)
def test_damage_ends_the_journal(tmp_path, tail):
  """Defect 17: a line without its shard was a KeyError."""
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
  with BuildJournal(str(tmp_path)) as journal:
    with pytest.raises(InputError) as error:
      journal.check(build)
  assert words in str(error.value) and str(tmp_path) in str(error.value)
  assert journal_path(tmp_path).read_bytes() == content


def test_a_second_run_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(record_folder, '_LOCK_SECONDS', 0.1)
  with BuildJournal(str(tmp_path)) as journal:
    journal.begin(BUILD)
    with pytest.raises(InputError) as error:
      read(tmp_path)
    assert 'another run' in str(error.value)
    journal.add(ENTRIES[0])
  assert len(read(tmp_path)[1]) == 1


def test_a_crash_releases_the_lock(tmp_path):
  code = (
      'import os, sys\n'
      f'sys.path.insert(0, {os.path.dirname(record_folder.__file__)!r})\n'
      'from record_folder import BuildJournal\n'
      f'journal = BuildJournal({str(tmp_path)!r}).__enter__()\n'
      'journal.begin({})\n'
      'os.kill(os.getpid(), 9)')
  assert subprocess.call([sys.executable, '-c', code]) == -9
  assert read(tmp_path) == ({}, {})


def test_a_run_that_ends_meanwhile_is_waited_for(tmp_path, monkeypatch):
  """As the workers of a run that was killed end a little later."""
  write(tmp_path)
  held = open(str(journal_path(tmp_path)), 'ab')
  fcntl.flock(held, fcntl.LOCK_EX)
  monkeypatch.setattr(
      record_folder.time, 'sleep', lambda seconds: held.close())
  assert len(read(tmp_path)[1]) == 3


def test_a_journal_removed_before_the_lock_is_made_anew(tmp_path, monkeypatch):
  flock, calls = fcntl.flock, []

  def flock_of_a_removed_file(opened, operation):
    flock(opened, operation)
    calls.append(operation)
    if len(calls) == 1:
      journal_path(tmp_path).unlink()
  monkeypatch.setattr(record_folder.fcntl, 'flock', flock_of_a_removed_file)
  write(tmp_path)
  assert len(calls) == 2 and len(read(tmp_path)[1]) == 3
