"""Training by several machines: here two processes, each a machine.

As a script this file trains head 0 of the small network, as one machine of
TF_CONFIG:

    python test_distributed.py MODEL_DIR TRUNK STEP
"""

import glob
import json
import os
import socket
import subprocess
import sys
import time

import conftest  # pylint: disable=unused-import
import numpy as np
import pytest

import command_line
import distributed
import imagenet_main
import rule_weights
import small_network
import tiny_records
from small_network import HEAD0, IMAGE_SIZE, NUM_CLASSES, TRUNK
from tf_compat import IS_TF1, mirrored_strategy, tf
from refusals import refused
from tiny_checkpoints import read_checkpoint, write_checkpoint

BATCH_SIZE = 8  # Of each machine.
_SECONDS = 300  # A run takes about 10; after that it hangs.
_WORKERS = ['a:1', 'b:2', 'c:3']


def tf_config(jobs, task_type='worker', index=0):
  return json.dumps({
      'cluster': jobs, 'task': {'type': task_type, 'index': index}})


needs_tf2 = pytest.mark.skipif(IS_TF1, reason='tf2 only')


@needs_tf2
@pytest.mark.parametrize('jobs, task_type, index, num_workers, place', [
    ({'worker': _WORKERS}, 'worker', '2', 3, 2),  # Of some job schedulers.
    ({'chief': ['z:9'], 'worker': _WORKERS}, 'chief', 0, 4, 0),
    ({'chief': ['z:9'], 'worker': _WORKERS}, 'worker', 0, 4, 1),
])
def test_place_in_the_cluster(jobs, task_type, index, num_workers, place):
  environ = {'TF_CONFIG': tf_config(jobs, task_type, index), 'HOME': '/'}
  cluster = distributed.take_cluster(environ)
  assert (cluster.num_workers, cluster.index) == (num_workers, place)
  assert cluster.is_chief == (place == 0)
  assert environ == {'HOME': '/'}  # Nothing is left for other RunConfigs.


@pytest.mark.parametrize('environ', [
    {}, {'TF_CONFIG': ' '}, {'TF_CONFIG': '{}'},
    {'TF_CONFIG': tf_config({'worker': ['a:1']})}])
def test_one_machine(environ):
  assert distributed.take_cluster(environ) == distributed.ONE_MACHINE


@pytest.mark.parametrize('text', [
    '{"cluster"', json.dumps({'cluster': {'worker': _WORKERS}}),
    tf_config({'worker': _WORKERS}, index=3),
    pytest.param(tf_config({'worker': _WORKERS}), marks=pytest.mark.skipif(
        not IS_TF1, reason='several machines train with tf2'))])
def test_refused(text):
  assert refused(distributed.take_cluster, {'TF_CONFIG': text}).startswith(
      'TF_CONFIG: ')


def run_machines(folder, chief_job, command):
  """Runs a command as two machines; the output of each, the chief's first."""
  probes = [socket.socket() for _ in range(2)]
  for probe in probes:
    probe.bind(('127.0.0.1', 0))
  addresses = ['127.0.0.1:{}'.format(probe.getsockname()[1])
               for probe in probes]
  for probe in probes:
    probe.close()
  tasks, jobs = [(chief_job, 0), ('worker', 1)], {'worker': addresses}
  if chief_job == 'chief':
    tasks[1] = ('worker', 0)
    jobs = {'chief': [addresses[0]], 'worker': [addresses[1]]}
  paths = [str(folder / f'machine{i}.txt') for i in range(2)]
  machines = []
  try:
    for path, task in zip(paths, tasks):
      with open(path, 'w') as stream:
        machines.append(subprocess.Popen(
            [sys.executable] + [str(argument) for argument in command],
            env=dict(os.environ, TF_CONFIG=tf_config(jobs, *task)),
            stdin=subprocess.DEVNULL, stdout=stream,
            stderr=subprocess.STDOUT))
    # If one fails, the other waits for it: no use in waiting with it.
    deadline = time.monotonic() + _SECONDS
    while (any(machine.poll() is None for machine in machines) and
           not any(machine.poll() for machine in machines) and
           time.monotonic() < deadline):
      time.sleep(0.1)
  finally:
    for machine in machines:
      if machine.poll() is None:
        machine.kill()
        machine.wait()
  outputs = []
  for path in paths:
    with open(path) as stream:
      outputs.append(stream.read())
  assert [machine.returncode for machine in machines] == [0, 0], (
      '\n'.join(outputs))
  return outputs


@pytest.fixture(scope='module')
def trunk(tmp_path_factory):
  weights = rule_weights.rule_variables(
      rule_weights.resnet_variables(18, 2, NUM_CLASSES))
  weights['global_step'] = np.int64(225207)
  return write_checkpoint(tmp_path_factory.mktemp('trunk'), weights, 225207)


@needs_tf2
def test_two_machines_train_as_two_replicas(tmp_path, trunk):
  """Each with half of the batch; with a restart after two of four steps."""
  apart, together = tmp_path / 'apart', tmp_path / 'together'
  for step in (2, 4):
    run_machines(tmp_path, 'worker', [__file__, apart, trunk, step])
  # The same start.
  start = read_checkpoint(apart / 'model.ckpt-0')
  write_checkpoint(together, start, 0)
  for step in (2, 4):
    _train(distributed.ONE_MACHINE, str(together), trunk, step)

  end = read_checkpoint(apart / 'model.ckpt-4')
  expected = read_checkpoint(together / 'model.ckpt-4')
  assert set(end) == set(expected)
  for name in end:
    # Float32 rounding: 0 was seen, and 5e-6 of the largest element with other
    # threads and vector instructions in one of the two. Half of the images, or
    # the sum of the gradients in place of the mean, differ by 7e-3 and more.
    np.testing.assert_allclose(
        end[name], expected[name], rtol=0, err_msg=name,
        atol=1e-6 + 1e-4 * np.max(np.abs(expected[name])))
    # A bias before BN has no effect and hardly changes.
    if name in HEAD0 | TRUNK and not name.endswith('fc0/bias'):
      assert np.array_equal(start[name], end[name]) == (name in TRUNK), name
  # The chief alone writes into the folder; one file of events for each run.
  assert not glob.glob(str(apart / 'tmp_*'))
  assert len(glob.glob(str(apart / 'events.out.tfevents.*'))) == 2


@needs_tf2
def test_chief_evaluates_and_dumps(tmp_path, trunk):
  tiny_records.make_data_set(
      str(tmp_path / 'data'), {'train': [5, 4, 4], 'validation': [4, 3, 4]},
      NUM_CLASSES)
  chief_output, other_output = run_machines(tmp_path, 'chief', [
      command_line.SCRIPT, '--fine_tune', '--te', 2, '--classifier_id', 0,
      '--data_dir', tmp_path / 'data', '-rs', 18, '-rv', 2, '--image_size',
      IMAGE_SIZE, '-bs', 4, '-md', tmp_path / 'model', '--softmax_dir',
      tmp_path / 'softmax', '-pmcp', os.path.dirname(trunk)])
  assert 'top-1' not in other_output
  # 13 images, batches of 4, 2 epochs.
  assert HEAD0 <= set(read_checkpoint(tmp_path / 'model' / 'model.ckpt-7'))
  softmaxes = np.load(
      str(tmp_path / 'softmax' / 'clf0_all_probabilities.npy'))
  labels = np.load(str(tmp_path / 'softmax' / 'validation_non_onehot.npy'))
  top1 = np.mean(softmaxes.argmax(axis=1) == labels)
  assert f'clf0 validation: top-1 {top1:.4f}' in chief_output


def _dataset(parts):
  """Batches of each of `parts` in turn, whose images differ in kind."""
  images, labels = [], []
  for part in parts:
    rng = np.random.RandomState(part)
    images.append(20 * part + rng.normal(
        0, 60, [4, BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3]))
    labels.append(rng.randint(1, NUM_CLASSES, [4, BATCH_SIZE]))
  images = np.stack(images, 1).astype(np.float32)
  labels = np.stack(labels, 1).astype(np.int32)
  return tf.data.Dataset.from_tensor_slices((
      images.reshape((-1,) + images.shape[2:]),
      labels.reshape((-1,) + labels.shape[2:])))


def _train(cluster, model_dir, trunk, step):
  """As a machine of `cluster`; if alone, with two replicas."""
  def make_estimator(strategy):
    config = tf.estimator.RunConfig(
        train_distribute=strategy, tf_random_seed=1,
        save_checkpoints_steps=distributed.STEPS_BETWEEN_CHECKPOINTS,
        session_config=tf.ConfigProto(
            device_count={'CPU': 3 - cluster.num_workers}))
    return tf.estimator.Estimator(
        imagenet_main.imagenet_model_fn, model_dir, config,
        small_network.params(
            batch_size=2 * BATCH_SIZE, fine_tune=True, classifier_ids=[0],
            base_lr=1., initial_checkpoint=trunk,
            model=small_network.model(batch_norm_decay=0.9)))

  if cluster.num_workers == 1:
    make_estimator(mirrored_strategy(['/cpu:0', '/cpu:1'])).train(
        lambda: _dataset([0, 1]), max_steps=step)
  else:
    distributed.train(
        cluster, make_estimator, 0, None,
        lambda input_context: _dataset([input_context.input_pipeline_id]), [],
        step)


if __name__ == '__main__':
  _train(distributed.take_cluster(os.environ), sys.argv[1], sys.argv[2],
         int(sys.argv[3]))
