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
from record_folder import JOURNAL_FILE_NAME
from tiny_archives import (  # pylint: disable=unused-import
    Dataset, dataset)

TOOLS = os.path.dirname(os.path.abspath(builder.__file__))

# Patches a function so that the main process is killed, by its own hand or by
# a worker's, at the n-th call of it: before it or behind it.
KILLED = '''
import os, signal, sys
sys.path.insert(0, {tools!r})
import build_imagenet_tfrecords as builder
import record_folder, record_shards, tools_command_line

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


@pytest.mark.parametrize('owner, name, number, before', [
    ('record_shards', 'write_record', 2, False),
    ('builder', 'name_shard', 2, True),
    ('builder', 'name_shard', 2, False),
    ('record_folder.BuildJournal', 'begin', 1, False),
    ('record_folder.BuildJournal', 'add', 3, True),
    ('record_folder', 'write_file', 2, False),  # The second labels.
    ('tools_command_line', 'give_name', 3, True)])  # To dataset.json.
def test_killed_at_any_place(dataset, owner, name, number, before):
  expected = undisturbed(dataset)
  # The pipe is open until the last process has ended.
  assert subprocess.run([sys.executable, '-c', KILLED.format(
      tools=TOOLS, owner=owner, name=name, number=number, before=before,
      arguments=dataset.arguments('--workers', '2'))],
                        stdout=subprocess.PIPE).returncode == -signal.SIGKILL
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
