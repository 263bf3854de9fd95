"""`cascade.json`: content, merging of runs, and what is refused."""

import json
import os

import pytest

import cascade_record
import softmax_dump
from cascade_record import ExitCost, Network
from user_error import UserError

NETWORK = Network(2, 18, 32, 11, [
    ExitCost(0, 1000, 20, 50, 7),
    ExitCost(1, 1700, 30, 80, 8),
    ExitCost(2, 2500, 10, 90, 5)])
VERSIONS = {'python': '3.6.15', 'tensorflow': '1.12.0'}


def dump(folder, *classifier_ids):
  """Leaves what counts as a dump: its first file."""
  for k in classifier_ids:
    (folder / softmax_dump.probabilities_file_names(k, 'validation')[0]).touch()


def write(folder, classifier_id, checkpoint='model.ckpt', network=NETWORK):
  """A run that dumps a classifier and records it."""
  cascade_record.check_folder(str(folder), network)
  dump(folder, classifier_id)
  cascade_record.write(
      str(folder), network, classifier_id, checkpoint, VERSIONS)


def read(folder):
  return json.loads((folder / 'cascade.json').read_text())


def column(folder, name):
  return [entry[name] for entry in read(folder)['exits']]


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
    write(tmp_path, k, 'checkpoints/clf{}/model.ckpt-7'.format(k))
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
           'checkpoint': 'checkpoints/clf0/model.ckpt-7'},
          {'classifier_id': 1, 'trunk_macs': 1700, 'head_macs': 30,
           'cumulative_macs': 1750, 'trunk_parameters': 80,
           'head_parameters': 8, 'cumulative_parameters': 95,
           'checkpoint': 'checkpoints/clf1/model.ckpt-7'},
          {'classifier_id': 2, 'trunk_macs': 2500, 'head_macs': 10,
           'cumulative_macs': 2560, 'trunk_parameters': 90,
           'head_parameters': 5, 'cumulative_parameters': 110,
           'checkpoint': 'checkpoints/clf2/model.ckpt-7'}],
      'plain_network_macs': 2510,
      'plain_network_parameters': 95,
      'versions': VERSIONS}
  text = (tmp_path / 'cascade.json').read_text()
  assert text.endswith('}\n')
  assert text.index('network') < text.index('exits') < text.index('versions')


@pytest.mark.parametrize('order, cumulative_macs', [
    ([0], [1020]), ([1], [1730]), ([2], [2510]),
    ([0, 1], [1020, 1750]), ([2, 0], [1020, 2530]), ([2, 1], [1730, 2540]),
])
def test_the_heads_of_others_do_not_count(tmp_path, order, cumulative_macs):
  for k in order:
    write(tmp_path, k)
  assert column(tmp_path, 'classifier_id') == sorted(order)
  assert column(tmp_path, 'cumulative_macs') == cumulative_macs
  # Of the plain network, whatever has been dumped so far.
  assert read(tmp_path)['plain_network_macs'] == 2510
  assert read(tmp_path)['plain_network_parameters'] == 95


# ---- Runs on one folder -----------------------------------------------------

def test_dumping_again_replaces_the_entry(tmp_path):
  for k in (0, 2):
    write(tmp_path, k, 'old')
  write(tmp_path, 0, 'new')
  assert column(tmp_path, 'checkpoint') == ['new', 'old']


def test_runs_side_by_side(tmp_path):
  """Both started before the other had ended; neither is lost."""
  for k in (0, 1):
    cascade_record.check_folder(str(tmp_path), NETWORK)
  for k in (0, 1):
    dump(tmp_path, k)
    cascade_record.write(
        str(tmp_path), NETWORK, k, 'model.ckpt-{}'.format(k), VERSIONS)
  assert column(tmp_path, 'checkpoint') == ['model.ckpt-0', 'model.ckpt-1']


def test_entry_without_dumps_counts_for_nothing(tmp_path):
  for k in (0, 1):
    write(tmp_path, k)
  (tmp_path / softmax_dump.probabilities_file_names(0, 'validation')[0]
  ).unlink()
  write(tmp_path, 2)
  assert column(tmp_path, 'classifier_id') == [1, 2]
  assert column(tmp_path, 'cumulative_macs') == [1730, 2540]


@pytest.mark.parametrize('field, value, words', [
    ('resnet_version', 1, 'resnet_version 2, here 1'),
    ('resnet_size', 50, 'resnet_size 18, here 50'),
    ('image_size', 64, 'image_size 32, here 64'),
    ('num_classes', 12, 'num_classes 11, here 12'),
])
def test_dumps_of_another_network(tmp_path, field, value, words):
  write(tmp_path, 2)
  before = (tmp_path / 'cascade.json').read_text()
  other = NETWORK._replace(**{field: value})
  # Of the same classifier too: a run that is interrupted replaces one split.
  for k in (0, 2):
    message = refused(write, tmp_path, k, 'model.ckpt', other)
    assert message.startswith('--softmax_dir {}: '.format(tmp_path))
    assert words in message and 'remove the old dumps' in message
  assert (tmp_path / 'cascade.json').read_text() == before
  # As it says: without the old dumps, the folder is free.
  (tmp_path / softmax_dump.probabilities_file_names(2, 'validation')[0]
  ).unlink()
  write(tmp_path, 0, 'model.ckpt', other)
  assert column(tmp_path, 'classifier_id') == [0]
  assert read(tmp_path)[field] == value


def test_another_network_dumped_in_the_meantime(tmp_path):
  cascade_record.check_folder(str(tmp_path), NETWORK)
  write(tmp_path, 2, 'model.ckpt', NETWORK._replace(resnet_size=50))
  dump(tmp_path, 0)
  assert 'resnet_size 50, here 18' in refused(
      cascade_record.write, str(tmp_path), NETWORK, 0, 'model.ckpt', VERSIONS)
  assert column(tmp_path, 'classifier_id') == [2]


def test_dumps_without_a_record(tmp_path):
  """Of an earlier time: nothing is known of them."""
  dump(tmp_path, 0, 1)
  write(tmp_path, 2)
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
    ('{"exits": [{"classifier_id": [], "checkpoint": ""}]}',
     'not written by this program'),
    ('{"exits": [{"classifier_id": 0, "checkpoint": ""}]}',
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
  assert refused(cascade_record.write, str(tmp_path), NETWORK, 0, 'model.ckpt',
                 VERSIONS) == message
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
  write(tmp_path, 0)
  before = (tmp_path / 'cascade.json').read_text()

  def fail(*args):
    raise error

  monkeypatch.setattr(os, function, fail)
  with pytest.raises(expected) as raised:
    write(tmp_path, 2)
  if expected is UserError:
    assert str(raised.value).startswith(
        '{}: cannot be written (No space'.format(tmp_path / 'cascade.json'))
  assert (tmp_path / 'cascade.json').read_text() == before
  assert sorted(os.listdir(str(tmp_path))) == [
      'cascade.json', 'clf0_all_probabilities.npy',
      'clf2_all_probabilities.npy']


def test_checkpoint_with_an_odd_name(tmp_path):
  """Whatever a file system takes for a name."""
  name = 'caf\u00e9/\udcff "clf0"/model.ckpt-7'
  write(tmp_path, 0, name)
  write(tmp_path, 1)
  assert column(tmp_path, 'checkpoint') == [name, 'model.ckpt']
