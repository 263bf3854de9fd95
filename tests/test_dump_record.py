"""`cascade.json`: content, merging of runs, and what is refused."""

import json
import os

import pytest

import dump_names
import dump_record
from dump_names import DumpShard
from dump_record import ExitCost, Network
from user_error import UserError

NETWORK = Network(2, 18, 32, 11, [
    ExitCost(0, 1000, 20, 50, 7),
    ExitCost(1, 1700, 30, 80, 8),
    ExitCost(2, 2500, 10, 90, 5)])


def origin(checkpoint, head='0a', trunk='0b'):
  """Where dumps come from; the record takes it as it is."""
  return {'head_checkpoint': checkpoint, 'head_sha256': head * 32,
          'trunk_sha256': trunk * 32, 'versions': {'python': '3.6.15'},
          'flags': {'classifier_id': ['0', '1']}}


def dump(folder, *classifier_ids):
  """Leaves what counts as a dump: its first file."""
  for k in classifier_ids:
    (folder / dump_names.probabilities_file_names(k, 'validation')[0]).touch()


def write(folder, classifier_ids, checkpoint='model.ckpt', network=NETWORK):
  """A run that dumps some classifiers and records them."""
  dump_record.recorded_origins(str(folder), network)
  dump(folder, *classifier_ids)
  dump_record.write(
      str(folder), network, {k: origin(checkpoint) for k in classifier_ids})


def read(folder):
  return json.loads((folder / 'cascade.json').read_text())


def column(folder, name):
  return [entry[name] for entry in read(folder)['exits']]


def checkpoints(folder):
  return [recorded['head_checkpoint'] for recorded in column(folder, 'origin')]


def refused(function, *args):
  with pytest.raises(UserError) as error:
    function(*args)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_a_whole_cascade(tmp_path):
  for k in (2, 0, 1):
    write(tmp_path, [k], f'checkpoints/clf{k}/model.ckpt-7')
  assert read(tmp_path) == {
      'format_version': 1,
      'network': 'ResNet-v2-18',
      'resnet_version': 2,
      'resnet_size': 18,
      'image_size': 32,
      'num_classes': 11,
      'exits': [
          {'classifier_id': 0, 'trunk_macs': 1000, 'head_macs': 20,
           'cumulative_macs': 1020, 'trunk_parameters': 50,
           'head_parameters': 7, 'cumulative_parameters': 57,
           'origin': origin('checkpoints/clf0/model.ckpt-7')},
          {'classifier_id': 1, 'trunk_macs': 1700, 'head_macs': 30,
           'cumulative_macs': 1750, 'trunk_parameters': 80,
           'head_parameters': 8, 'cumulative_parameters': 95,
           'origin': origin('checkpoints/clf1/model.ckpt-7')},
          {'classifier_id': 2, 'trunk_macs': 2500, 'head_macs': 10,
           'cumulative_macs': 2560, 'trunk_parameters': 90,
           'head_parameters': 5, 'cumulative_parameters': 110,
           'origin': origin('checkpoints/clf2/model.ckpt-7')}],
      'plain_network_macs': 2510,
      'plain_network_parameters': 95}
  text = (tmp_path / 'cascade.json').read_text()
  assert text.startswith('{\n  "format_version": 1,\n  "network": "ResNet-v2-')
  assert text.endswith('}\n')


def test_one_pass_records_what_single_runs_do(tmp_path):
  """And the heads of classifiers that are not dumped do not count."""
  singly = tmp_path / 'singly'
  singly.mkdir()
  for k in (0, 2):
    write(singly, [k])
  write(tmp_path, [0, 2])
  assert (tmp_path / 'cascade.json').read_bytes() == (
      singly / 'cascade.json').read_bytes()
  assert column(tmp_path, 'cumulative_macs') == [1020, 2530]
  assert read(tmp_path)['plain_network_macs'] == 2510


NAMES = [f'class {i}' for i in range(1, 11)]


def test_class_names_are_kept(tmp_path):
  write(tmp_path, [1])
  assert 'class_names' not in read(tmp_path)
  write(tmp_path, [1], network=NETWORK._replace(class_names=NAMES))
  assert read(tmp_path)['class_names'] == NAMES
  write(tmp_path, [2])
  assert read(tmp_path)['class_names'] == NAMES
  for k in (1, 2):  # The names go with the last of the dumps.
    (tmp_path / f'clf{k}_all_probabilities.npy').unlink()
  write(tmp_path, [0], network=NETWORK._replace(num_classes=12))
  assert 'class_names' not in read(tmp_path)


def test_what_the_record_says_of_network_and_weights(tmp_path):
  known = dump_record.network_and_weights
  assert known(str(tmp_path), [0, 2]) == {}
  write(tmp_path, [0, 1, 2], network=NETWORK._replace(class_names=NAMES))
  weights = {'head_checkpoint': 'model.ckpt', 'trunk_sha256': '0b' * 32,
             'head_sha256': '0a' * 32}
  assert known(str(tmp_path), [0, 2]) == {
      'resnet_version': 2, 'resnet_size': 18, 'image_size': 32,
      'num_classes': 11, 'exits': {'0': weights, '2': weights},
      'class_names': NAMES}
  path = tmp_path / 'cascade.json'
  path.write_text('{"exits": [{"classifier_id": 0}]}')  # By hand.
  assert known(str(tmp_path), [0]) == {'exits': {'0': {}}}
  for fields, words in (
      ('"class_names": ["a"]', 'num_classes is missing'),
      ('"class_names": ["a"], "num_classes": 3', 'not a list of 2 names'),
      ('"class_names": ["a"], "num_classes": "3"', 'cascade.json: ')):
    path.write_text('{"exits": [], %s}' % fields)
    message = refused(known, str(tmp_path), [0])
    assert message.startswith(f'{path}: ') and words in message


def test_dumping_again_replaces_the_entry(tmp_path):
  write(tmp_path, [0, 2], 'old')
  write(tmp_path, [0], 'new')
  assert checkpoints(tmp_path) == ['new', 'old']


def test_entries_of_the_first_records(tmp_path):
  """They had the path of the checkpoint only, so their weights are unknown."""
  write(tmp_path, [0, 1])
  record = read(tmp_path)
  for entry in record['exits']:
    del entry['origin']
    entry['checkpoint'] = 'first'
  (tmp_path / 'cascade.json').write_text(json.dumps(record))
  write(tmp_path, [2], 'new')
  assert checkpoints(tmp_path) == ['first', 'first', 'new']
  with dump_record.recording(str(tmp_path), NETWORK, {0: origin('new')}):
    assert column(tmp_path, 'classifier_id') == [1, 2]


def test_entries_without_dumps_count_for_nothing(tmp_path):
  write(tmp_path, [0, 1])
  (tmp_path / 'clf0_all_probabilities.npy').unlink()
  write(tmp_path, [2])
  assert column(tmp_path, 'classifier_id') == [1, 2]


@pytest.mark.parametrize('changes, left', [
    ({}, [0, 1, 2]), ({'head': '0c'}, [2]), ({'trunk': '0c'}, [2])])
def test_dumps_that_are_being_replaced_are_not_recorded(
    tmp_path, changes, left):
  """With the same weights the files are the same, whichever are replaced."""
  write(tmp_path, [0, 1, 2])
  origins = {k: origin('new', **changes) for k in (0, 1)}
  with dump_record.recording(str(tmp_path), NETWORK, origins):
    assert column(tmp_path, 'classifier_id') == left
    assert set(checkpoints(tmp_path)) == {'model.ckpt'}
  assert checkpoints(tmp_path) == ['new', 'new', 'model.ckpt']


def test_shards_of_other_weights(tmp_path):
  first, second = DumpShard(1, 2), DumpShard(2, 2)
  name = dump_names.shard_file_name('clf0_train_top5_classes.npy', first)
  (tmp_path / name).touch()
  dump_record.write(str(tmp_path), NETWORK, {0: origin('old')})
  other = {0: origin('new', head='0c')}
  message = refused(
      dump_record.check_shards, str(tmp_path), NETWORK, other, second)
  assert message.startswith(
      f'{tmp_path / name}: a shard of other weights than --dump_shard 2/2')
  # The same shard again, the same weights, another classifier.
  for origins, shard in ((other, first), ({0: origin('new')}, second),
                         ({1: origin('new', head='0c')}, second)):
    dump_record.check_shards(str(tmp_path), NETWORK, origins, shard)


@pytest.mark.parametrize('field, value, words', [
    ('resnet_version', 1, 'resnet_version 2, here 1'),
    ('num_classes', 12, 'num_classes 11, here 12')])
def test_dumps_of_another_network(tmp_path, field, value, words):
  write(tmp_path, [2])
  before = (tmp_path / 'cascade.json').read_text()
  other = NETWORK._replace(**{field: value})
  for classifier_ids in ([0], [2]):
    message = refused(write, tmp_path, classifier_ids, 'model.ckpt', other)
    assert message.startswith(f'--softmax_dir {tmp_path}: ')
    assert words in message and 'remove the old dumps' in message
  assert (tmp_path / 'cascade.json').read_text() == before
  # As it says: without the old dumps, the folder is free.
  (tmp_path / 'clf2_all_probabilities.npy').unlink()
  write(tmp_path, [0], 'model.ckpt', other)
  assert column(tmp_path, 'classifier_id') == [0]
  assert read(tmp_path)[field] == value


@pytest.mark.parametrize('content, words', [
    (b'{"exits": [', 'not JSON'),
    (b'{"network": "\xff"}', 'not JSON'),
    pytest.param(b'[' * 100000, 'not JSON', id='deep'),
    (b'[1, 2]', 'not a JSON object'),
    (b'{"format_version": 2}', 'format_version 2, where this program knows 1'),
    (b'{}', 'not written by this program'),
    (b'{"exits": [5]}', 'not written by this program'),
    (b'{"exits": [{"classifier_id": [], "origin": {}}]}',
     'not written by this program'),
    (b'{"exits": [{"classifier_id": 0, "origin": "a"}]}',
     'not written by this program'),
    (b'{"exits": [{"classifier_id": 0, "origin": {}}]}',
     'not written by this program')])
def test_another_file_of_this_name(tmp_path, content, words):
  """Whatever it is, it is not ours to replace."""
  dump(tmp_path, 0)
  path = tmp_path / 'cascade.json'
  path.write_bytes(content)
  message = refused(dump_record.write, str(tmp_path), NETWORK, {0: {}})
  assert message.startswith(f'{path}: ') and words in message
  assert 'move it or name another --softmax_dir' in message
  assert path.read_bytes() == content


def test_a_fifo_of_this_name(tmp_path):
  """Defect 18: it was waited for."""
  os.mkfifo(str(tmp_path / 'cascade.json'))
  assert 'not a regular file' in refused(
      dump_record.recorded_origins, str(tmp_path), NETWORK)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  write(tmp_path, [0])
  before = (tmp_path / 'cascade.json').read_text()

  def fail(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', fail)
  assert 'cascade.json: cannot be written (No space' in refused(
      write, tmp_path, [1])
  assert (tmp_path / 'cascade.json').read_text() == before
