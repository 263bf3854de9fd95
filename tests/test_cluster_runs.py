"""The command of several machines, as two processes on this one."""

import glob
import json
import os
import time

import numpy as np
import pytest

import cluster
import command_line
import imagenet_input
import rule_weights
import tiny_records
import two_workers
from small_network import HEAD0, IMAGE_SIZE, NUM_CLASSES, TRUNK
from test_whole_runs import accuracies
from tf_compat import tf
from tiny_checkpoints import read_checkpoint, write_checkpoint

NUM_TRAIN = 13
STEPS_OF_1_EPOCH, STEPS_OF_2_EPOCHS = 4, 7  # Batches of 4.
_SECONDS = 300  # Longer is a failure, on a busy machine too.


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('cluster')
  tiny_records.make_data_set(
      str(folder / 'data'), {'train': [5, 4, 4], 'validation': [4, 3, 4]},
      NUM_CLASSES)
  weights = rule_weights.rule_variables(
      rule_weights.resnet_variables(18, 2, NUM_CLASSES))
  weights['global_step'] = np.int64(225207)
  write_checkpoint(folder / 'trunk', weights, 225207)
  return folder


def run(folder, **kwargs):
  return two_workers.run(
      folder, command_line.SCRIPT, '--fine_tune', '--te', 2, '--classifier_id',
      0, '--data_dir', folder / 'data', '-rs', 18, '-rv', 2, '--image_size',
      IMAGE_SIZE, '-bs', 4, '-md', folder / 'model', '--softmax_dir',
      folder / 'softmax', '-pmcp', folder / 'trunk', **kwargs)


def test_killed_and_started_again(folder):
  """The first time the second machine is lost after an epoch."""
  model = folder / 'model'

  def kill_the_other(workers):
    deadline = time.monotonic() + _SECONDS
    while not (model / 'model.ckpt-{}.index'.format(
        STEPS_OF_1_EPOCH)).exists():
      assert time.monotonic() < deadline
      assert workers[0].poll() is None
      time.sleep(0.05)
    workers[1].kill()

  (status, output), _ = run(folder, meanwhile=kill_the_other)
  assert status == 1
  last = output.strip().split('\n')[-1]
  assert last.startswith('imagenet_main.py: TF_CONFIG: ') and (
      'goes on from the last checkpoint' in last), output
  assert not glob.glob(str(folder / 'softmax' / '*.npy'))

  (status, output), (other_status, other_output) = run(folder)
  assert status == 0, output
  assert other_status == 0, other_output
  # Dumped, evaluated and told by the chief alone.
  assert output.count('clf0 validation: top-1') == 1
  assert 'top-1' not in other_output
  assert len(glob.glob(str(model / 'events.out.tfevents.*'))) <= 2
  assert not (model / 'cluster.json').exists()

  end = read_checkpoint(model / 'model.ckpt-{}'.format(STEPS_OF_2_EPOCHS))
  pretrained = read_checkpoint(folder / 'trunk' / 'model.ckpt-225207')
  start = read_checkpoint(model / 'model.ckpt-0')
  for name in set(end) & TRUNK:
    np.testing.assert_array_equal(end[name], pretrained[name], name)
  for name in HEAD0 - {'resnet_model/cascaded0_fc0/bias'}:
    assert not np.array_equal(end[name], start[name]), name
  with open(str(model / 'results.json')) as stream:
    results = json.load(stream)['fine_tune']['results']
  assert results['global_step'] == STEPS_OF_2_EPOCHS
  softmaxes = np.load(str(folder / 'softmax' / 'clf0_all_probabilities.npy'))
  labels = np.load(str(folder / 'softmax' / 'validation_non_onehot.npy'))
  np.testing.assert_allclose(
      results['validation']['clf0'], accuracies(softmaxes, labels),
      atol=1e-6)


@pytest.mark.parametrize('num_workers', [2, 3, 5])
def test_every_record_is_of_one_worker(folder, num_workers):
  """By shards; of more workers than the three shards, by records."""
  jobs = {'worker': ['host:{}'.format(i + 1) for i in range(num_workers)]}
  shards = sorted(glob.glob(str(folder / 'data' / 'train' / '*')))
  records = []
  for index in range(num_workers):
    worker = cluster.parse(json.dumps({
        'cluster': jobs, 'task': {'type': 'worker', 'index': index}}))
    with tf.Graph().as_default(), tf.Session() as session:
      dataset = imagenet_input.training_dataset(shards, worker)
      share = session.run(
          dataset.batch(100).make_one_shot_iterator().get_next())
    assert len(share)
    records += share.tolist()
  assert len(records) == NUM_TRAIN and len(set(records)) == NUM_TRAIN


@pytest.mark.parametrize('text, words', [
    ('{', 'not JSON'),
    (two_workers.tf_config([2221, 2222], 2), 'index 2'),
])
def test_wrong_tf_config_is_one_line(folder, monkeypatch, text, words):
  monkeypatch.setenv('TF_CONFIG', text)
  completed = command_line.command(
      '--fine_tune', '--classifier_id', 0, '--data_dir', folder / 'data',
      '-md', folder / 'unused', cwd=str(folder))
  assert completed.returncode == 1
  line, = completed.stderr.strip().split('\n')
  assert line.startswith('imagenet_main.py: TF_CONFIG: ') and words in line
  assert not (folder / 'unused').exists()
