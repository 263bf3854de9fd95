"""A build that was stopped, wherever it was, ends in the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import build_imagenet_tfrecords as builder
from tiny_archives import (  # pylint: disable=unused-import
    Dataset, dataset)

TOOLS = os.path.dirname(os.path.abspath(builder.__file__))

# Patches a function so that the main process is killed, by its own hand or by
# a worker's, at the n-th call of it: before it or behind it.
KILLED = '''
import os, signal, sys
sys.path.insert(0, {tools!r})
import build_imagenet_tfrecords as builder
import record_folder, record_shards

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
  """Contents of what a build is for, and of its notes, by name."""
  contents = {}
  for path in dataset.files():
    name = os.path.relpath(path, dataset.folder)
    if name.startswith('tf_records') or name.endswith('.npy'):
      with open(path, 'rb') as opened:
        contents[name] = opened.read()
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


def check_stopped(dataset, expected):
  """Nothing says that the set is complete, and what has its name is whole."""
  contents = built_files(dataset)
  assert os.path.join('tf_records', 'dataset.json') not in contents
  for name in contents:
    if not name.endswith('.unfinished'):
      assert contents[name] == expected[name], name


@pytest.mark.parametrize('owner, name, number, before', [
    ('record_shards', 'write_record', 2, False),
    ('record_folder.RecordFolder', 'begin', 1, False),
    ('record_folder', 'give_name', 2, True),
    ('record_folder', 'give_name', 2, False),
    ('record_folder', 'write_atomically', 3, False),  # A note without a shard.
    ('record_folder.RecordFolder', 'write_labels', 2, False),
    ('record_folder.RecordFolder', 'write_dataset', 1, True)])
def test_killed_at_any_place(dataset, owner, name, number, before):
  expected = undisturbed(dataset)
  # The pipe is open until the last process has ended.
  assert subprocess.run([sys.executable, '-c', KILLED.format(
      tools=TOOLS, owner=owner, name=name, number=number, before=before,
      arguments=dataset.arguments('--workers', '2'))],
                        stdout=subprocess.PIPE).returncode == -signal.SIGKILL
  check_stopped(dataset, expected)
  dataset.build('--workers', '2')
  assert built_files(dataset) == expected


def test_ctrl_c_as_soon_as_there_is_a_shard(tmp_path):
  dataset = Dataset(tmp_path, num_train=300, num_validation=20).save()
  more = ['--train_shards', '100', '--validation_shards', '10',
          '--workers', '2']
  dataset.build(*more)
  expected = built_files(dataset)
  shutil.rmtree(dataset.output)
  process = subprocess.Popen(
      [sys.executable, os.path.join(TOOLS, 'build_imagenet_tfrecords.py')] +
      dataset.arguments(*more), start_new_session=True,
      preexec_fn=lambda: signal.signal(
          signal.SIGINT, signal.default_int_handler),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  first = os.path.join(dataset.output, 'train', 'train-00000-of-00100')
  while not os.path.exists(first):
    assert process.poll() is None
    time.sleep(0.001)
  os.killpg(process.pid, signal.SIGINT)
  # The pipes are open until the last process has ended.
  _, error = process.communicate(timeout=60)
  assert (process.returncode, error.count(b'\n')) == (130, 1), error
  check_stopped(dataset, expected)
  dataset.build(*more)
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
  os.remove(dataset.path('validation_non_onehot.npy'))
  dataset.build()
  assert [time == other for time, other in zip(before, written_at())] == [
      True, False, True, True, False, True]
  assert built_files(dataset) == expected


def test_complete_build_is_left_alone(dataset, capsys):
  dataset.build()
  before = {path: os.stat(path).st_mtime_ns for path in dataset.files()}
  capsys.readouterr()
  dataset.build()
  assert 'complete already' in capsys.readouterr().out
  assert {path: os.stat(path).st_mtime_ns
          for path in dataset.files()} == before
  with open(dataset.shards('train')[1], 'r+b') as shard:
    shard.seek(200)
    shard.write(b'\0damage\0')
  # Nothing was decoded, so all is written again.
  dataset.build('--verify', 'full')
  records = [path for path in before if '-of-' in path and '.' not in path]
  assert not any(os.stat(path).st_mtime_ns == before[path] for path in records)
  dataset.records('train')
