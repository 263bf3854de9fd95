"""The short way from the command line: both heads in one run, all exits in one
pass; next to the published way of one classifier each."""

import json
import os

import numpy as np
import pytest

import shared_dumps
import numpy_resnet
import small_world
from dump_folders import classifier_file_names
from small_network import TRUNK
from tiny_checkpoints import read_checkpoint

NUM_STEPS = 2


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  return small_world.make(tmp_path_factory.mktemp('joint'))


@pytest.fixture(scope='module')
def joint_results(world):
  """Both heads, fine-tuned in one run."""
  return world.run(
      '--fine_tune', '--te', 2, '-mts', NUM_STEPS, '-ebe', 1, '-bs', 13,
      '--classifier_id', '0,1', '-md', world.folder / 'heads', '--softmax_dir',
      world.folder / 'after_training')


@pytest.fixture(scope='module')
def one_pass(world, joint_results):
  """All three, dumped in one pass."""
  return world.run(
      '--eval_only', '--classifier_id', '0,1,2', '-md', world.folder / 'heads',
      '--softmax_dir', world.folder / 'all')


def arrays(folder):
  return {name: np.load(str(folder / name)) for name in os.listdir(str(folder))
          if name.endswith('.npy')}


def names_of(*classifier_ids):
  """Names of all arrays of these classifiers' dumps."""
  return {name for split in shared_dumps.SPLITS for name in
          [shared_dumps.labels_file_name(split)] + [
              name for k in classifier_ids
              for name in classifier_file_names(k, split)]}


def assert_same(found, wanted):
  """Arrays of dumps; softmaxes but for rounding, of which 5e-7 was seen."""
  for name, array in wanted.items():
    assert found[name].dtype == array.dtype
    if name.endswith('probabilities.npy'):
      np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5)
    else:
      np.testing.assert_array_equal(found[name], array, name)


def test_training_dumps_and_records_both_heads(world, joint_results, one_pass):
  folder = world.folder
  dumps = arrays(folder / 'after_training')
  assert set(dumps) == names_of(0, 1)
  assert_same(arrays(folder / 'all'), dumps)
  assert joint_results['global_step'] == NUM_STEPS
  entries = json.loads((folder / 'heads' / 'results.json').read_text())
  assert set(entries) == {'fine_tune clf0,clf1', 'eval_only clf0,clf1,clf2'}
  for entry, results, names in (
      (entries['fine_tune clf0,clf1'], joint_results, {'clf0', 'clf1'}),
      (entries['eval_only clf0,clf1,clf2'], one_pass,
       {'clf0', 'clf1', 'clf2'})):
    assert entry['results'] == json.loads(json.dumps(results))
    for split in shared_dumps.SPLITS:
      assert set(entry['results'][split]) == names


def test_one_pass_equals_numpy(world, one_pass):
  """Heads of the run's folder on the pretrained trunk."""
  weights = dict(world.weights)
  heads = read_checkpoint(
      world.folder / 'heads' / f'model.ckpt-{NUM_STEPS}')
  weights.update((name, value) for name, value in heads.items()
                 if name not in TRUNK)
  dumps = arrays(world.folder / 'all')
  assert set(dumps) == names_of(0, 1, 2)
  labels = [label for _, label in world.rows['validation']]
  assert dumps['validation_non_onehot.npy'].tolist() == labels
  expected = numpy_resnet.softmaxes(
      weights, world.preprocessed('validation'), 18, 2)
  for k in (0, 1, 2):
    softmaxes = dumps[f'clf{k}_all_probabilities.npy']
    np.testing.assert_allclose(softmaxes, expected[k], atol=1e-5)
    np.testing.assert_allclose(
        one_pass['validation'][f'clf{k}'],
        small_world.accuracies(softmaxes, labels), atol=1e-6)


def test_one_pass_equals_one_by_one(world, one_pass):
  """The published commands: the same arrays, accuracies and `cascade.json`."""
  folder = world.folder
  for k in (2, 0, 1):
    results = world.run(
        '--eval_only', '--classifier_id', k, '-md',
        folder / ('heads' if k < 2 else 'new'), '--softmax_dir',
        folder / 'singly')
    for split in shared_dumps.SPLITS:
      assert results[split] == {f'clf{k}': one_pass[split][f'clf{k}']}
  assert_same(arrays(folder / 'singly'), arrays(folder / 'all'))
  assert sorted(os.listdir(str(folder / 'singly'))) == sorted(
      os.listdir(str(folder / 'all')))
  records = [json.loads((folder / name / 'cascade.json').read_text())
             for name in ('all', 'singly')]
  for entry in records[0]['exits'] + records[1]['exits']:
    origin = entry['origin']
    assert origin.pop('flags')['resnet_size'] == '18'
    # The trunk of a head alone is that of its own folder, with equal weights.
    step = 225207 if entry['classifier_id'] == 2 else NUM_STEPS
    assert origin.pop('head_checkpoint').endswith(f'-{step}')
    del origin['trunk_checkpoint']
  assert records[0] == records[1]
  assert [entry['classifier_id'] for entry in records[0]['exits']] == [0, 1, 2]
  assert records[0]['class_names'] == [f'class {i}' for i in range(1, 11)]
