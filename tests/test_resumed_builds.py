"""A build that was killed, wherever it was, goes on and ends in the same bytes.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import build_imagenet_tfrecords as builder
from build_journal import JOURNAL_FILE_NAME, BuildJournal
from tiny_archives import (  # pylint: disable=unused-import
    Dataset, dataset, encode)

TOOLS = os.path.dirname(os.path.abspath(builder.__file__))

# Patches a function so that the main process is killed, by its own hand or by
# a worker's, at the n-th call of it: before it or behind it.
KILLED = '''
import os, signal, sys
sys.path.insert(0, {tools!r})
import build_imagenet_tfrecords as builder
import build_journal, record_folder, record_shards, shard_workers

main_process, calls = os.getpid(), []
function = {owner}.{name}

def kill_at_the_call(*args, **kwargs):
  calls.append(args)
  result = None if {before} else function(*args, **kwargs)
  if len(calls) == {number}:
    os.kill(main_process, signal.SIGKILL)
  return function(*args, **kwargs) if {before} else result

{owner}.{name} = kill_at_the_call
builder.main({arguments!r})
'''


def built_files(dataset):
  """Contents of what a build is for, by name."""
  contents = {}
  for path in dataset.files():
    name = os.path.relpath(path, dataset.folder)
    if name.startswith('tf_records') or name.endswith('.npy'):
      with open(path, 'rb') as opened:
        contents[name] = opened.read()
  contents.pop(os.path.join('tf_records', JOURNAL_FILE_NAME))
  return contents


def undisturbed(dataset):
  """What a build that nothing disturbs writes; it is removed again."""
  dataset.build('--workers', '1')
  contents = built_files(dataset)
  shutil.rmtree(dataset.output)
  for name in contents:
    if name.endswith('.npy'):
      os.remove(dataset.path(name))
  return contents


@pytest.mark.parametrize('workers', ['2', '3', '7'])
def test_the_number_of_workers_changes_nothing(dataset, workers):
  expected = undisturbed(dataset)
  dataset.build('--workers', workers)
  assert built_files(dataset) == expected


@pytest.mark.parametrize('before', [True, False])
@pytest.mark.parametrize('owner, name, number', [
    ('builder', 'index_images', 1),
    ('builder', 'write_shards', 1),
    ('record_shards', 'write_record', 1),
    ('record_shards', 'write_record', 5),
    ('record_shards', 'read_shard', 2),
    ('builder', 'give_name', 2),
    ('os', 'fsync', 2),
    ('os', 'replace', 2),
    ('build_journal.BuildJournal', 'begin', 1),
    ('build_journal.BuildJournal', 'add', 3),
    ('builder', 'finish', 1),
    ('record_folder.RecordFolder', 'write_labels', 2),
    ('record_folder.np', 'save', 1),
    ('record_folder.json', 'dump', 1)])
def test_killed_at_any_place(dataset, owner, name, number, before):
  expected = undisturbed(dataset)
  # The pipe is open until the last process has ended.
  assert subprocess.run([sys.executable, '-c', KILLED.format(
      tools=TOOLS, owner=owner, name=name, number=number, before=before,
      arguments=dataset.arguments('--workers', '2'))],
                        stdout=subprocess.PIPE).returncode == -signal.SIGKILL
  if name != 'finish' or before:
    assert not os.path.exists(os.path.join(dataset.output, 'dataset.json'))
  # Whatever has the name of a shard is whole.
  for name in os.listdir(os.path.join(dataset.output, 'train')):
    if not name.startswith('.'):
      path = os.path.join('tf_records', 'train', name)
      with open(dataset.path(path), 'rb') as shard:
        assert shard.read() == expected[path]
  dataset.build('--workers', '2')
  assert built_files(dataset) == expected


def test_killed_as_soon_as_there_is_a_shard(tmp_path):
  """Main process alone, and all processes at once; the rest is still done."""
  dataset = Dataset(tmp_path, num_train=60, num_validation=20).save()
  more = ['--train_shards', '20', '--validation_shards', '10']
  dataset.build('--workers', '1', *more)
  expected = built_files(dataset)
  for kill in (os.kill, os.killpg):
    shutil.rmtree(dataset.output)
    process = subprocess.Popen(
        [sys.executable, os.path.join(TOOLS, 'build_imagenet_tfrecords.py')] +
        dataset.arguments('--workers', '2', *more), start_new_session=True,
        stdout=subprocess.PIPE)
    first = os.path.join(dataset.output, 'train', 'train-00000-of-00020')
    while not os.path.exists(first) and process.poll() is None:
      time.sleep(0.001)
    if process.poll() is None:
      kill(process.pid, signal.SIGKILL)
    process.communicate()  # The pipe is open until the last one has ended.
    dataset.build('--workers', '2', *more)
    assert built_files(dataset) == expected


def test_only_what_is_missing_is_written(dataset):
  expected = undisturbed(dataset)
  dataset.build()
  shards = dataset.shards('train') + dataset.shards('validation')
  def written_at():
    return [os.stat(path).st_mtime_ns for path in shards]

  before = written_at()
  os.remove(shards[1])
  os.truncate(shards[4], 100)
  dataset.build()
  assert [time == other for time, other in zip(before, written_at())] == [
      True, False, True, True, False, True]
  assert built_files(dataset) == expected


def test_unfinished_files_of_shards_alone_are_removed(dataset):
  dataset.build()
  os.remove(dataset.shards('train')[2])
  folder = os.path.join(dataset.output, 'train')
  for name in ('.train-00002-of-00004.unfinished', '.mine'):
    with open(os.path.join(folder, name), 'w') as left:
      left.write('left')
  dataset.build()
  assert [name for name in os.listdir(folder) if name.startswith('.')] == [
      '.mine']


def test_complete_build_is_left_alone(dataset, capsys, monkeypatch):
  dataset.build()
  before = {path: os.stat(path).st_mtime_ns for path in dataset.files()}
  capsys.readouterr()
  # Nor is the archive, which may take minutes to index, looked at.
  monkeypatch.setattr(builder, 'index_images', None)
  dataset.build()
  assert 'complete already' in capsys.readouterr().out
  assert {path: os.stat(path).st_mtime_ns
          for path in dataset.files()} == before


@pytest.mark.parametrize('name', [
    'tf_records/dataset.json', 'validation_non_onehot.npy'])
def test_a_file_missing_from_a_complete_build(dataset, name):
  expected = undisturbed(dataset)
  dataset.build()
  os.remove(dataset.path(name))
  dataset.build()
  assert built_files(dataset) == expected


def test_full_verification_mends_damaged_shards(dataset, capsys):
  expected = undisturbed(dataset)
  dataset.build()
  damaged = dataset.shards('train')[1]
  with open(damaged, 'r+b') as shard:
    shard.seek(200)
    shard.write(b'\0damage\0')
  dataset.build()  # Of the right size: trusted.
  assert built_files(dataset) != expected
  capsys.readouterr()
  dataset.build('--verify', 'full')
  assert damaged + ': was damaged' in capsys.readouterr().err
  contents = built_files(dataset)
  for name in expected:
    if not name.endswith('dataset.json'):
      assert contents[name] == expected[name]
  assert b'"verified": "full"' in contents['tf_records/dataset.json']


def test_second_run_on_the_same_folder(dataset, capsys, monkeypatch):
  monkeypatch.setattr('build_journal._LOCK_SECONDS', 0.1)
  os.mkdir(dataset.output)
  with BuildJournal(dataset.output):
    assert builder.main(dataset.arguments()) == 1
  error = capsys.readouterr().err
  assert 'another run is at work' in error and error.count('\n') == 1
  dataset.build()
