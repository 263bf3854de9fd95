"""`cascade.json`: content, merging of runs, and what is refused."""

import json
import os

import pytest

import cascade_record
import dump_names
from cascade_record import ExitCost, Network
from dump_names import DumpShard
from user_error import UserError

NETWORK = Network(2, 18, 32, 11, [
    ExitCost(0, 1000, 20, 50, 7),
    ExitCost(1, 1700, 30, 80, 8),
    ExitCost(2, 2500, 10, 90, 5)])
VERSIONS = {'python': '3.6.15', 'tensorflow': '1.12.0'}


def origin(checkpoint, head='0a', trunk='0b'):
  """What tells where dumps are from; the record takes it as it is."""
  return {'head_checkpoint': checkpoint, 'head_sha256': head * 32,
          'trunk_sha256': trunk * 32, 'versions': VERSIONS,
          'flags': {'classifier_id': ['0', '1']}}


def dump(folder, *classifier_ids):
  """Leaves what counts as a dump: its first file."""
  for k in classifier_ids:
    (folder / dump_names.probabilities_file_names(k, 'validation')[0]).touch()


def write(folder, classifier_ids, checkpoint='model.ckpt', network=NETWORK):
  """A run that dumps classifiers in one pass and records them."""
  cascade_record.check_folder(str(folder), network)
  dump(folder, *classifier_ids)
  cascade_record.write(
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


# ---- Cost and content -------------------------------------------------------

def test_cumulative_costs():
  """The trunk as far as there, and every head so far."""
  assert cascade_record.cumulative_costs([], []) == []
  assert cascade_record.cumulative_costs([100], [3]) == [103]
  assert cascade_record.cumulative_costs(
      [100, 250, 600], [3, 5, 7]) == [103, 258, 615]


def test_a_whole_cascade(tmp_path):
  for k in (2, 0, 1):
    write(tmp_path, [k], 'checkpoints/clf{}/model.ckpt-7'.format(k))
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
  assert text.endswith('}\n')
  assert text.index('network') < text.index('exits') < (
      text.index('plain_network_macs'))


@pytest.mark.parametrize('order, cumulative_macs', [
    ([0], [1020]), ([1], [1730]), ([2], [2510]),
    ([0, 1], [1020, 1750]), ([2, 0], [1020, 2530]), ([2, 1], [1730, 2540]),
])
def test_the_heads_of_others_do_not_count(tmp_path, order, cumulative_macs):
  for k in order:
    write(tmp_path, [k])
  assert column(tmp_path, 'classifier_id') == sorted(order)
  assert column(tmp_path, 'cumulative_macs') == cumulative_macs
  # Of the plain network, whatever has been dumped so far.
  assert read(tmp_path)['plain_network_macs'] == 2510
  assert read(tmp_path)['plain_network_parameters'] == 95


# ---- Runs on one folder -----------------------------------------------------

def test_dumping_again_replaces_the_entry(tmp_path):
  for k in (0, 2):
    write(tmp_path, [k], 'old')
  write(tmp_path, [0], 'new')
  assert checkpoints(tmp_path) == ['new', 'old']


def test_an_entry_of_the_first_records(tmp_path):
  write(tmp_path, [0])
  record = read(tmp_path)
  del record['exits'][0]['origin']
  record['exits'][0]['checkpoint'] = 'first'
  (tmp_path / 'cascade.json').write_text(json.dumps(record))
  write(tmp_path, [2], 'new')
  assert checkpoints(tmp_path) == ['first', 'new']


@pytest.mark.parametrize('runs', [
    [[0, 1, 2]], [[0, 1], [2]], [[2], [1, 0]], [[0], [1, 2]],
    # Some of them a second time.
    [[0, 1, 2], [0, 1]], [[0, 2], [1, 2]]])
def test_one_pass_records_what_single_runs_do(tmp_path, runs):
  singly = tmp_path / 'singly'
  singly.mkdir()
  for k in (0, 1, 2):
    write(singly, [k])
  for classifier_ids in runs:
    write(tmp_path, classifier_ids)
  assert (tmp_path / 'cascade.json').read_bytes() == (
      singly / 'cascade.json').read_bytes()


def test_runs_side_by_side(tmp_path):
  """Both started before the other had ended; neither is lost."""
  for k in (0, 1):
    cascade_record.check_folder(str(tmp_path), NETWORK)
  for k in (0, 1):
    dump(tmp_path, k)
    cascade_record.write(
        str(tmp_path), NETWORK, {k: origin('model.ckpt-{}'.format(k))})
  assert checkpoints(tmp_path) == ['model.ckpt-0', 'model.ckpt-1']


def test_entry_without_dumps_counts_for_nothing(tmp_path):
  for k in (0, 1):
    write(tmp_path, [k])
  (tmp_path / dump_names.probabilities_file_names(0, 'validation')[0]
  ).unlink()
  write(tmp_path, [2])
  assert column(tmp_path, 'classifier_id') == [1, 2]
  assert column(tmp_path, 'cumulative_macs') == [1730, 2540]


@pytest.mark.parametrize('changes, left', [
    ({}, [0, 1, 2]), ({'head': '0c'}, [2]), ({'trunk': '0c'}, [2])])
def test_dumps_that_are_being_replaced_are_not_recorded(
    tmp_path, changes, left):
  """Of the same weights the files are the same, whichever were replaced."""
  write(tmp_path, [0, 1, 2])
  origins = {k: origin('new', **changes) for k in (0, 1)}
  cascade_record.retract(str(tmp_path), NETWORK, origins)
  assert column(tmp_path, 'classifier_id') == left
  assert set(checkpoints(tmp_path)) == {'model.ckpt'}
  cascade_record.write(str(tmp_path), NETWORK, origins)
  assert checkpoints(tmp_path) == ['new', 'new', 'model.ckpt']


def test_nothing_to_retract(tmp_path):
  cascade_record.retract(str(tmp_path), NETWORK, {0: origin('new')})
  assert not list(tmp_path.iterdir())


def test_dumps_recorded_without_digests_are_retracted(tmp_path):
  dump(tmp_path, 0)
  cascade_record.write(str(tmp_path), NETWORK, {0: {'checkpoint': 'old'}})
  cascade_record.retract(str(tmp_path), NETWORK, {0: origin('new')})
  assert read(tmp_path)['exits'] == []


@pytest.mark.parametrize('function', [
    cascade_record.check_shards, cascade_record.retract])
def test_shards_of_other_weights(tmp_path, function):
  first, second = DumpShard(1, 2), DumpShard(2, 2)
  name = dump_names.shard_file_name('clf0_train_top5_classes.npy', first)
  (tmp_path / name).touch()
  cascade_record.write(str(tmp_path), NETWORK, {0: origin('old')})
  other = {0: origin('new', head='0c')}
  message = refused(function, str(tmp_path), NETWORK, other, second)
  assert message.startswith('{}: a shard of other weights than --dump_shard 2/2'
                            .format(tmp_path / name))
  assert checkpoints(tmp_path) == ['old']
  # The same shard anew, the same weights, another classifier.
  function(str(tmp_path), NETWORK, {0: origin('new')}, second)
  function(str(tmp_path), NETWORK, {1: origin('new', head='0c')}, second)
  function(str(tmp_path), NETWORK, other, first)


@pytest.mark.parametrize('field, value, words', [
    ('resnet_version', 1, 'resnet_version 2, here 1'),
    ('resnet_size', 50, 'resnet_size 18, here 50'),
    ('image_size', 64, 'image_size 32, here 64'),
    ('num_classes', 12, 'num_classes 11, here 12'),
])
def test_dumps_of_another_network(tmp_path, field, value, words):
  write(tmp_path, [2])
  before = (tmp_path / 'cascade.json').read_text()
  other = NETWORK._replace(**{field: value})
  # Of the same classifier too: a run that is interrupted replaces one split.
  for classifier_ids in ([0], [2], [0, 2]):
    message = refused(write, tmp_path, classifier_ids, 'model.ckpt', other)
    assert message.startswith('--softmax_dir {}: '.format(tmp_path))
    assert words in message and 'remove the old dumps' in message
  assert (tmp_path / 'cascade.json').read_text() == before
  # As it says: without the old dumps, the folder is free.
  (tmp_path / dump_names.probabilities_file_names(2, 'validation')[0]
  ).unlink()
  write(tmp_path, [0], 'model.ckpt', other)
  assert column(tmp_path, 'classifier_id') == [0]
  assert read(tmp_path)[field] == value


def test_another_network_dumped_in_the_meantime(tmp_path):
  cascade_record.check_folder(str(tmp_path), NETWORK)
  write(tmp_path, [2], 'model.ckpt', NETWORK._replace(resnet_size=50))
  dump(tmp_path, 0)
  assert 'resnet_size 50, here 18' in refused(
      cascade_record.write, str(tmp_path), NETWORK, {0: {}})
  assert column(tmp_path, 'classifier_id') == [2]


def test_dumps_without_a_record(tmp_path):
  """Of an earlier time: nothing is known of them."""
  dump(tmp_path, 0, 1)
  write(tmp_path, [2])
  assert column(tmp_path, 'classifier_id') == [2]


# ---- Files that are something else ------------------------------------------

@pytest.mark.parametrize('content, words', [
    ('', 'not JSON'),
    ('{"exits": [', 'not JSON'),
    ('[1, 2]', 'not a JSON object'),
    ('null', 'not a JSON object'),
    ('{}', 'not written by this program'),
    ('{"format_version": 2}', 'format_version 2, where this program knows 1'),
    ('{"format_version": null}', 'format_version None'),
    ('{"exits": 5}', 'not written by this program'),
    ('{"exits": [5]}', 'not written by this program'),
    ('{"exits": ["ab"]}', 'not written by this program'),
    ('{"exits": [{"classifier_id": [], "origin": {}}]}',
     'not written by this program'),
    ('{"exits": [{"classifier_id": 0, "origin": {}}]}',
     'not written by this program'),
    ('{"exits": [{"classifier_id": 0, "cumulative_macs": 5}], '
     '"plain_network_macs": 7}', 'not written by this program'),
])
def test_another_file_of_this_name(tmp_path, content, words):
  """Whatever it is, it is not ours to replace."""
  dump(tmp_path, 0)
  path = tmp_path / 'cascade.json'
  path.write_text(content)
  message = refused(cascade_record.check_folder, str(tmp_path), NETWORK)
  assert message.startswith('{}: '.format(path)) and words in message
  assert 'move it or name another --softmax_dir' in message
  assert refused(cascade_record.write, str(tmp_path), NETWORK,
                 {0: {}}) == message
  assert path.read_text() == content


def test_content_that_no_editor_writes(tmp_path):
  for content in (b'{"network": "\xff"}', b'\0' * 100, b'[' * 100000):
    (tmp_path / 'cascade.json').write_bytes(content)
    assert 'not JSON' in refused(
        cascade_record.check_folder, str(tmp_path), NETWORK)


def test_a_folder_of_this_name(tmp_path):
  (tmp_path / 'cascade.json').mkdir()
  assert 'cannot be read (Is a directory)' in refused(
      cascade_record.check_folder, str(tmp_path), NETWORK)


@pytest.mark.parametrize('error, expected', [
    (OSError(28, 'No space left on device'), UserError),
    (KeyboardInterrupt(), KeyboardInterrupt),
])
@pytest.mark.parametrize('function', ['fsync', 'replace'])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path, monkeypatch, function, error, expected):
  write(tmp_path, [0])
  before = (tmp_path / 'cascade.json').read_text()

  def fail(*args):
    raise error

  monkeypatch.setattr(os, function, fail)
  with pytest.raises(expected) as raised:
    write(tmp_path, [1, 2])
  if expected is UserError:
    assert str(raised.value).startswith(
        '{}: cannot be written (No space'.format(tmp_path / 'cascade.json'))
  assert (tmp_path / 'cascade.json').read_text() == before
  assert sorted(os.listdir(str(tmp_path))) == [
      'cascade.json', 'clf0_all_probabilities.npy',
      'clf1_all_probabilities.npy', 'clf2_all_probabilities.npy']


def test_checkpoint_with_an_odd_name(tmp_path):
  """Whatever a file system takes for a name."""
  name = 'caf\u00e9/\udcff "clf0"/model.ckpt-7'
  write(tmp_path, [0], name)
  write(tmp_path, [1])
  assert checkpoints(tmp_path) == [name, 'model.ckpt']
