"""`cascade.json`: content, merging of runs, and what is refused."""

import json

import pytest

import shared_dumps
import shared_cascade_json
from shared_dumps import DumpShard
from shared_cascade_json import ExitCost, Network
from refusals import refused

NETWORK = Network(2, 18, 32, 11, [
    ExitCost(0, 1000, 20, 50, 7),
    ExitCost(1, 1700, 30, 80, 8),
    ExitCost(2, 2500, 10, 90, 5)])
NAMES = [f'class {i}' for i in range(1, 11)]


def origin(checkpoint, head='0a', trunk='0b'):
  """Where dumps come from; the record takes it as it is."""
  return {'head_checkpoint': checkpoint, 'head_sha256': head * 32,
          'trunk_sha256': trunk * 32, 'versions': {'python': '3.6.15'},
          'flags': {'classifier_id': ['0', '1']}}


def write(folder, classifier_ids, checkpoint='model.ckpt', network=NETWORK):
  """A run that dumps some classifiers (their first file) and records them."""
  shared_cascade_json.recorded_origins(str(folder), network)
  for k in classifier_ids:
    (folder / shared_dumps.probabilities_file_names(k, 'validation')[0]).touch()
  record(folder, {k: origin(checkpoint) for k in classifier_ids}, network)


def record(folder, origins, network=NETWORK):
  with shared_cascade_json.recording(str(folder), network, origins):
    pass


def content(folder):
  return json.loads((folder / 'cascade.json').read_text())


def column(folder, name):
  return [entry[name] for entry in content(folder)['exits']]


def checkpoints(folder):
  return [recorded['head_checkpoint'] for recorded in column(folder, 'origin')]


def test_a_whole_cascade(tmp_path):
  for k in (2, 0, 1):
    write(tmp_path, [k], f'checkpoints/clf{k}/model.ckpt-7')
  assert content(tmp_path) == {
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
  assert shared_cascade_json.read(str(tmp_path / 'cascade.json'), '') == (
      NETWORK, {k: origin(f'checkpoints/clf{k}/model.ckpt-7')
                for k in range(3)}, 'ResNet-v2-18', 2510)


def test_a_file_written_by_hand(tmp_path):
  path = tmp_path / 'mine.json'
  path.write_text(json.dumps({
      'plain_network_macs': 50, 'exits': [
          {'classifier_id': 1, 'trunk_macs': 40, 'head_macs': 0},
          {'classifier_id': 0, 'trunk_macs': 20, 'head_macs': 2}]}))
  assert shared_cascade_json.read(str(path), '') == (
      Network(None, None, None, None,
              [ExitCost(0, 20, 2), ExitCost(1, 40, 0)]), {0: {}, 1: {}}, None,
      50)


def test_dumping_again_replaces_the_entry(tmp_path):
  write(tmp_path, [0, 2], 'old')
  write(tmp_path, [0], 'new')
  assert checkpoints(tmp_path) == ['new', 'old']
  (tmp_path / 'clf0_all_probabilities.npy').unlink()
  write(tmp_path, [1])  # An entry without dumps counts for nothing.
  assert column(tmp_path, 'classifier_id') == [1, 2]


@pytest.mark.parametrize('changes, left', [
    ({}, [0, 1, 2]), ({'head': '0c'}, [2]), ({'trunk': '0c'}, [2])])
def test_dumps_that_are_being_replaced_are_not_recorded(
    tmp_path, changes, left):
  """With the same weights the files are the same, whichever are replaced."""
  write(tmp_path, [0, 1, 2])
  origins = {k: origin('new', **changes) for k in (0, 1)}
  with shared_cascade_json.recording(str(tmp_path), NETWORK, origins):
    assert column(tmp_path, 'classifier_id') == left
    assert set(checkpoints(tmp_path)) == {'model.ckpt'}
  assert checkpoints(tmp_path) == ['new', 'new', 'model.ckpt']


def test_shards_of_other_weights(tmp_path):
  first, second = DumpShard(1, 2), DumpShard(2, 2)
  name = shared_dumps.shard_file_name('clf0_train_top5_classes.npy', first)
  (tmp_path / name).touch()
  record(tmp_path, {0: origin('old')})
  other = {0: origin('new', head='0c')}
  message = refused(
      shared_cascade_json.check_shards, str(tmp_path), NETWORK, other, second)
  assert message.startswith(f'{tmp_path / name}: ')
  # The same shard again, the same weights, another classifier.
  for origins, shard in ((other, first), ({0: origin('new')}, second),
                         ({1: origin('new', head='0c')}, second)):
    shared_cascade_json.check_shards(str(tmp_path), NETWORK, origins, shard)


@pytest.mark.parametrize('field, value', [
    ('resnet_version', 1), ('num_classes', 12)])
def test_dumps_of_another_network(tmp_path, field, value):
  write(tmp_path, [2])
  before = (tmp_path / 'cascade.json').read_text()
  other = NETWORK._replace(**{field: value})
  for classifier_ids in ([0], [2]):
    message = refused(write, tmp_path, classifier_ids, 'model.ckpt', other)
    assert f'--softmax_dir {tmp_path}' in message and field in message
  assert (tmp_path / 'cascade.json').read_text() == before
  # As it says: without the old dumps, the folder is free.
  (tmp_path / 'clf2_all_probabilities.npy').unlink()
  write(tmp_path, [0], 'model.ckpt', other)
  assert column(tmp_path, 'classifier_id') == [0]
  assert content(tmp_path)[field] == value


def test_dumps_of_other_class_names(tmp_path):
  write(tmp_path, [2], network=NETWORK._replace(class_names=NAMES))
  write(tmp_path, [0])  # Names that are not known.
  write(tmp_path, [2], network=NETWORK._replace(class_names=NAMES))
  other = NETWORK._replace(class_names=NAMES[::-1])
  assert "class 1 is 'class 10'" in refused(
      write, tmp_path, [0], 'model.ckpt', other)


@pytest.mark.parametrize('content', [
    b'{"exits": [', b'{"format_version": 2}', b'[1, 2]',
    b'{"exits": [5], "plain_network_macs": 1}'])
def test_another_file_of_this_name(tmp_path, content):
  """Whatever it is, it is not ours to replace."""
  path = tmp_path / 'cascade.json'
  path.write_bytes(content)
  assert refused(record, tmp_path, {0: {}}).startswith(f'{path}: ')
  assert path.read_bytes() == content
