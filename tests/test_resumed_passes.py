"""Whole evaluation passes: interrupted, killed, in shards; the same bytes."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import command_line
import dump_names
import softmax_dump
import tiny_records
from dump_names import DumpShard
from user_error import UserError

SPLIT_SHARDS = {'train': [6, 5, 4, 0, 3], 'validation': [4, 6, 1]}
NUM_CLASSES = 11
SMALL = ['-rv', 2, '-rs', 18, '--image_size', 32, '-bs', 4]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A folder with records, a trunk trained a little, and whole dumps of it."""
  folder = tmp_path_factory.mktemp('trained')
  tiny_records.make_data_set(
      str(folder / 'tf_records'), SPLIT_SHARDS, NUM_CLASSES)
  command_line.run('--nois_cascaded', '-te', 1, '-dd', folder / 'tf_records',
                   '-md', folder / 'trunk', *SMALL)
  command_line.run(*dump_all(folder, folder / 'whole'))
  return folder


@pytest.fixture(scope='module')
def other_trunk(trained, tmp_path_factory):
  """A model folder of other weights, of the same shapes."""
  folder = tmp_path_factory.mktemp('other')
  command_line.run('--nois_cascaded', '-te', 1, '-dd', trained / 'tf_records',
                   '-md', folder, *SMALL)
  return folder


def dump_all(folder, softmax_dir, *more):
  """Flags to dump the network's own classifier."""
  return ['--eval_only', '--classifier_id', 2, '-pmcp', folder / 'trunk', '-dd',
          folder / 'tf_records', '-md', str(softmax_dir) + '_model',
          '--softmax_dir', softmax_dir] + SMALL + list(more)


def dumped(folder):
  """Content by name, of all that is dumped."""
  return {path.name: path.read_bytes() for path in folder.iterdir()
          if path.name != 'cascade.json'}


def interrupt_after(monkeypatch, num_batches, exception):
  """The batch of train behind `num_batches` ends in `exception`."""
  append, num_left = softmax_dump.SplitDump.append, [num_batches]

  def interrupted_append(self, *args):
    if self._split == 'train':
      if not num_left[0]:
        raise exception
      num_left[0] -= 1
    append(self, *args)

  monkeypatch.setattr(softmax_dump.SplitDump, 'append', interrupted_append)


@pytest.mark.parametrize('shard', [None, '2/2'])
def test_a_pass_interrupted_again_and_again(
    trained, tmp_path, monkeypatch, shard):
  """Train has 5 batches, its second shard 3; two at a time."""
  flags = ['--dump_shard', shard] if shard else []
  folder, num_interrupted = tmp_path / 'dumps', 0
  for _ in range(6):
    with monkeypatch.context() as patch:
      interrupt_after(patch, 2, KeyboardInterrupt())
      try:
        command_line.run(*dump_all(trained, folder, *flags))
        break
      except KeyboardInterrupt:
        num_interrupted += 1
  assert num_interrupted == (1 if shard else 2)
  if shard:
    command_line.run(*dump_all(trained, tmp_path / 'undisturbed', *flags))
    assert dumped(folder) == dumped(tmp_path / 'undisturbed')
  else:
    assert dumped(folder) == dumped(trained / 'whole')


def test_a_pass_that_is_killed(trained, tmp_path):
  """By SIGKILL, with a journal after every batch."""
  flags = [str(flag) for flag in dump_all(trained, tmp_path / 'dumps')]
  finished = subprocess.run(
      [sys.executable, '-c', '''
import os, signal, sys
sys.path.insert(0, {!r})
import imagenet_main, softmax_dump
softmax_dump._BLOCK_SECONDS = 0
append = softmax_dump.SplitDump.append
def killed_append(self, *args):
  if self._split == 'train' and self.num_written == 8:
    os.kill(os.getpid(), signal.SIGKILL)
  append(self, *args)
softmax_dump.SplitDump.append = killed_append
sys.argv[0] = 'imagenet_main.py'
imagenet_main.start()
'''.format(os.path.dirname(command_line.SCRIPT))] + flags,
      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      universal_newlines=True)
  assert finished.returncode == -signal.SIGKILL, finished.stderr
  assert 'dump_train.clf2.unfinished.json' in dumped(tmp_path / 'dumps')
  num_rows = []
  append = softmax_dump.SplitDump.append

  def counting_append(self, labels, outputs):
    num_rows.append((self._split, len(labels)))
    append(self, labels, outputs)

  softmax_dump.SplitDump.append = counting_append
  try:
    command_line.run(*flags)
  finally:
    softmax_dump.SplitDump.append = append
  # Not validation again, which was complete.
  assert num_rows == [('train', 4), ('train', 4), ('train', 2)]
  assert dumped(tmp_path / 'dumps') == dumped(trained / 'whole')


def test_other_weights_are_not_gone_on_with(
    trained, other_trunk, tmp_path, monkeypatch, capfd):
  """A trunk trained further has the same shapes and other softmaxes."""
  folder = tmp_path / 'dumps'
  with monkeypatch.context() as patch:
    interrupt_after(patch, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
      command_line.run(*dump_all(trained, folder))
  flags = dump_all(trained, folder, '-pmcp', other_trunk)
  capfd.readouterr()
  command_line.run(*flags)
  assert 'begins anew, since what was interrupted differs in weights' in (
      capfd.readouterr().err)
  name = 'clf2_all_probabilities.npy'
  assert dumped(folder)[name] != dumped(trained / 'whole')[name]


def test_shards_are_the_whole_pass(trained, tmp_path):
  """The same batches, and with them the same bytes."""
  for number in (2, 3, 1):
    command_line.run(*dump_all(trained, tmp_path / 'dumps', '--dump_shard',
                               '{}/3'.format(number)))
  assert len(dumped(tmp_path / 'dumps')) == 3 * len(dumped(trained / 'whole'))
  for name in dumped(trained / 'whole'):
    joined = np.concatenate([np.load(str(
        tmp_path / 'dumps' / dump_names.shard_file_name(
            name, DumpShard(number, 3)))) for number in (1, 2, 3)])
    expected = np.load(str(trained / 'whole' / name))
    assert joined.tobytes() == expected.tobytes()


def test_shards_of_other_weights_do_not_meet(trained, other_trunk, tmp_path):
  folder = tmp_path / 'dumps'
  command_line.run(*dump_all(trained, folder, '--dump_shard', '1/2'))
  before = dumped(folder)
  with pytest.raises(UserError) as error:
    command_line.run(*dump_all(
        trained, folder, '--dump_shard', '2/2', '-pmcp', other_trunk))
  assert 'a shard of other weights than --dump_shard 2/2' in str(error.value)
  assert dumped(folder) == before


def test_half_replaced_dumps_are_not_on_record(
    trained, other_trunk, tmp_path, monkeypatch):
  """Validation is of the new weights and train still of the old."""
  folder = tmp_path / 'dumps'
  command_line.run(*dump_all(trained, folder))
  flags = dump_all(trained, folder, '-pmcp', other_trunk)
  with monkeypatch.context() as patch:
    interrupt_after(patch, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
      command_line.run(*flags)
  assert recorded(folder) == []
  command_line.run(*flags)
  (entry,) = recorded(folder)
  assert entry['origin']['trunk_checkpoint'].startswith(str(other_trunk))


def recorded(folder):
  return json.loads((folder / 'cascade.json').read_text())['exits']
