"""The short way from the command line: both heads in one run, all exits in one
pass; next to the published way of one classifier each."""

import collections
import glob
import json
import os

import numpy as np
import pytest

import command_line
import dump_names
import imagenet_input
import numpy_resnet
import rule_weights
import tiny_records
from small_network import IMAGE_SIZE, NUM_CLASSES, TRUNK
from tf_compat import tf
from tiny_checkpoints import read_checkpoint, write_checkpoint
from user_error import UserError

NUM_STEPS = 2
SPLIT_SHARDS = {'train': [5, 2], 'validation': [2, 4, 3]}


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """Records, a pretrained trunk, and both heads fine-tuned in one run."""
  folder = tmp_path_factory.mktemp('joint')
  rows = tiny_records.make_data_set(
      str(folder / 'data'), SPLIT_SHARDS, NUM_CLASSES)
  write_checkpoint(folder / 'trunk', rule_weights.rule_variables(
      rule_weights.resnet_variables(18, 2, NUM_CLASSES)), 225207)
  World = collections.namedtuple('World', 'folder rows results')
  return World(folder, rows, run(
      folder, '--fine_tune', '--te', 2, '-mts', NUM_STEPS, '-ebe', 1, '-bs', 7,
      '--classifier_id', '0,1', '-md', folder / 'heads', '--softmax_dir',
      folder / 'after_training'))


@pytest.fixture(scope='module')
def one_pass(world):
  """All three, dumped in one pass."""
  return run(world.folder, '--eval_only', '--classifier_id', '0,1,2', '-md',
             world.folder / 'heads', '--softmax_dir', world.folder / 'all')


def run(folder, *args):
  return command_line.run(
      '--data_dir', folder / 'data', '-rs', 18, '-rv', 2, '--image_size',
      IMAGE_SIZE, '-bs', 4, '-pmcp', folder / 'trunk', *args)


def arrays(folder):
  return {name: np.load(str(folder / name)) for name in os.listdir(str(folder))
          if name.endswith('.npy')}


def names_of(*classifier_ids):
  """Names of all arrays of these classifiers' dumps."""
  return {name for split in dump_names.SPLITS for name in
          [dump_names.labels_file_name(split)] + [
              name for k in classifier_ids
              for name in dump_names.classifier_file_names(k, split)]}


def assert_same(found, wanted):
  """Arrays of dumps, but for rounding."""
  for name, array in wanted.items():
    assert found[name].dtype == array.dtype
    if name.endswith('probabilities.npy'):
      np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6)
    else:
      np.testing.assert_array_equal(found[name], array, name)


def test_training_dumps_and_records_both_heads(world, one_pass):
  folder = world.folder
  dumps = arrays(folder / 'after_training')
  assert set(dumps) == names_of(0, 1)
  assert_same(arrays(folder / 'all'), dumps)
  assert world.results['global_step'] == NUM_STEPS
  entries = json.loads((folder / 'heads' / 'results.json').read_text())
  assert set(entries) == {'fine_tune', 'eval_only'}
  for entry, results, names in (
      (entries['fine_tune'], world.results, {'clf0', 'clf1'}),
      (entries['eval_only'], one_pass, {'clf0', 'clf1', 'clf2'})):
    assert entry['results'] == json.loads(json.dumps(results))
    for split in dump_names.SPLITS:
      assert set(entry['results'][split]) == names


def test_one_pass_equals_numpy(world, one_pass):
  """Heads of the run's folder on the pretrained trunk."""
  weights = read_checkpoint(world.folder / 'trunk' / 'model.ckpt-225207')
  heads = read_checkpoint(
      world.folder / 'heads' / 'model.ckpt-{}'.format(NUM_STEPS))
  weights.update((name, value) for name, value in heads.items()
                 if name not in TRUNK)
  dumps = arrays(world.folder / 'all')
  assert set(dumps) == names_of(0, 1, 2)
  with tf.Graph().as_default(), tf.Session() as session:
    shards = sorted(glob.glob(str(world.folder / 'data' / 'validation' / '*')))
    images, _ = imagenet_input.evaluation_dataset(
        shards, 100, image_size=IMAGE_SIZE,
        num_classes=NUM_CLASSES).make_one_shot_iterator().get_next()
    images = session.run(images)
  labels = [label for _, label in world.rows['validation']]
  assert dumps['validation_non_onehot.npy'].tolist() == labels
  expected = numpy_resnet.softmaxes(weights, images, 18, 2)
  for k in (0, 1, 2):
    softmaxes = dumps['clf{}_all_probabilities.npy'.format(k)]
    np.testing.assert_allclose(softmaxes, expected[k], atol=1e-5)
    best = np.argsort(-softmaxes, axis=1)
    np.testing.assert_allclose(
        one_pass['validation']['clf{}'.format(k)],
        [(best[:, 0] == labels).mean(),
         (best[:, :5] == np.array(labels)[:, np.newaxis]).any(axis=1).mean()],
        atol=1e-6)


def test_one_pass_equals_one_by_one(world, one_pass):
  """The published commands: the same arrays, accuracies and `cascade.json`."""
  folder = world.folder
  for k in (2, 0, 1):
    results = run(folder, '--eval_only', '--classifier_id', k, '-md',
                  folder / ('heads' if k < 2 else 'new'), '--softmax_dir',
                  folder / 'singly')
    for split in dump_names.SPLITS:
      assert list(results[split]) == ['clf{}'.format(k)]
      for name, accuracies in results[split].items():
        np.testing.assert_allclose(accuracies, one_pass[split][name])
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
    assert origin.pop('head_checkpoint').endswith('-{}'.format(step))
    del origin['trunk_checkpoint']
  assert records[0] == records[1]
  assert [entry['classifier_id'] for entry in records[0]['exits']] == [0, 1, 2]


def test_replicas_dump_the_same(world, one_pass):
  run(world.folder, '--eval_only', '--classifier_id', '0,2', '-md',
      world.folder / 'heads', '--softmax_dir', world.folder / 'by_two',
      '--cpu_replicas', 2, '--batch_size', 6)
  found, wanted = [arrays(world.folder / name) for name in ('by_two', 'all')]
  assert set(found) == names_of(0, 2)
  for name in found:
    np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=5e-6)


def test_heads_of_several_folders(world, one_pass, tmp_path):
  """Trained by commands of their own, then dumped with the shared trunk."""
  folder = world.folder
  heads = read_checkpoint(folder / 'heads' / 'model.ckpt-{}'.format(NUM_STEPS))
  for k in (0, 1):
    write_checkpoint(tmp_path / 'clf{}'.format(k), {
        name: value for name, value in heads.items()
        if 'cascaded{}_'.format(1 - k) not in name}, NUM_STEPS)
  results = run(
      folder, '--eval_only', '--classifier_id', '0,1,2', '-md',
      tmp_path / 'new', '--head_model_dirs', '{0}/clf0,{0}/clf1'.format(
          tmp_path), '--softmax_dir', tmp_path / 'dumps')
  assert_same(arrays(tmp_path / 'dumps'), arrays(folder / 'all'))
  assert results['validation'] == one_pass['validation']


def test_head_of_another_trunk_is_refused(world, tmp_path):
  """Before any work; --trunk_batch_norm=update leaves such averages."""
  run(world.folder, '--fine_tune', '--te', 1, '-mts', 1, '--classifier_id', 0,
      '--trunk_batch_norm', 'update', '-md', tmp_path / 'clf0',
      '--softmax_dir', tmp_path / 'own')
  with pytest.raises(UserError) as error:
    run(world.folder, '--eval_only', '--classifier_id', '0,2', '-md',
        tmp_path / 'clf0', '--softmax_dir', tmp_path / 'dumps')
  assert str(error.value).startswith('clf0: the trunk that it was trained on')
  assert not [name for name in os.listdir(str(tmp_path / 'dumps'))
              if name.endswith('.npy')]


def test_head_model_dirs_are_for_evaluation(world, tmp_path):
  with pytest.raises(UserError) as error:
    run(world.folder, '--fine_tune', '--classifier_id', '0,1', '-md',
        tmp_path / 'new', '--head_model_dirs', world.folder / 'heads')
  assert str(error.value).startswith('--head_model_dirs: is for --eval_only')
