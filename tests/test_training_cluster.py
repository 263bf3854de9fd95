"""Training by two workers: the same numbers as by one process, and one line
for whatever goes wrong between machines.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

import cluster
import rule_weights
import training_cluster
import two_workers
from small_network import HEAD0, NUM_CLASSES, TRUNK
from tf_compat import tf
from tiny_checkpoints import read_checkpoint, write_checkpoint
from training_cluster import TrainingCluster
from user_error import UserError

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                      'cluster_worker.py')


@pytest.fixture(scope='module')
def trunk(tmp_path_factory):
  weights = rule_weights.rule_variables(
      rule_weights.resnet_variables(18, 2, NUM_CLASSES))
  weights['global_step'] = np.int64(225207)
  return write_checkpoint(tmp_path_factory.mktemp('trunk'), weights, 225207)


def test_two_workers_train_as_two_replicas_of_one_process(tmp_path, trunk):
  """To float32 rounding, through two trainings with a restart between."""
  apart, together = tmp_path / 'apart', tmp_path / 'together'
  for status, output in two_workers.run(
      tmp_path, SCRIPT, apart, trunk, 2, 4):
    assert status == 0, output
  together.mkdir()
  for path in apart.glob('model.ckpt-0.*'):
    shutil.copy(str(path), str(together))
  (together / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt-0"')
  subprocess.check_call(
      [sys.executable, SCRIPT, str(together), trunk, '2', '4'])

  start = read_checkpoint(apart / 'model.ckpt-0')
  end = read_checkpoint(apart / 'model.ckpt-4')
  expected = read_checkpoint(together / 'model.ckpt-4')
  assert set(end) == set(expected)
  for name in end:
    np.testing.assert_allclose(
        end[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    # BN takes the bias of the dense layer before it away again.
    if name in HEAD0 | TRUNK and not name.endswith('fc0/bias'):
      assert np.array_equal(start[name], end[name]) == (name in TRUNK), name

  # What no checkpoint shows: the other worker's variables.
  chiefs, others = [dict(np.load(str(apart / 'worker{}.npz'.format(i))))
                    for i in range(2)]
  assert set(chiefs) == set(others) and HEAD0 <= set(chiefs)
  for name in chiefs:
    np.testing.assert_array_equal(chiefs[name], others[name], name)
    np.testing.assert_array_equal(chiefs[name], end[name], name)
  # The chief alone writes checkpoints and summaries, and cleans up.
  assert len(list(apart.glob('events.out.tfevents.*'))) == 1
  assert not (apart / 'cluster.json').exists()


def make_workers(model_dirs):
  """Two workers in this process, each with its server; the chief first."""
  for attempt in range(2):
    ports = two_workers.free_ports(2)
    try:
      return [TrainingCluster(
          cluster.parse(two_workers.tf_config(ports, index)),
          str(model_dirs[index]), 0, None, tf.ConfigProto())
              for index in range(2)]
    except UserError:
      if attempt:
        raise


@pytest.fixture
def workers(tmp_path, monkeypatch):
  """Two workers whose training is recorded and not done."""
  trained = []
  monkeypatch.setattr(
      TrainingCluster, '_train',
      lambda self, estimator, input_fn, hooks, max_steps: trained.append(
          (self._cluster.index, max_steps)))
  monkeypatch.setattr(training_cluster, 'FOLDER_SECONDS', 1)
  monkeypatch.setattr(training_cluster, 'ARRIVAL_SECONDS', 20)
  chief, other = make_workers([tmp_path, tmp_path])
  return chief, other, trained


def follow(worker):
  """Follows in a thread; (the thread, a list that gets the error, if any)."""
  errors = []

  def body():
    try:
      worker.follow(None, None)
    except UserError as error:
      errors.append(str(error))

  thread = threading.Thread(target=body, daemon=True)
  thread.start()
  return thread, errors


def test_others_train_what_the_chief_trains(workers, tmp_path):
  chief, other, trained = workers
  thread, errors = follow(other)
  chief.train(None, None, [], 5)
  write_checkpoint(tmp_path, {'global_step': np.int64(5)}, 5)
  chief.train(None, None, [], 9)
  chief.dismiss()
  thread.join(20)
  assert not thread.is_alive() and not errors
  assert sorted(trained) == [(0, 5), (0, 9), (1, 5), (1, 9)]
  assert not (tmp_path / training_cluster.TOKEN_FILE_NAME).exists()


def test_nothing_to_train(workers):
  """Of a run that is complete already: the others are dismissed at once."""
  chief, other, trained = workers
  thread, errors = follow(other)
  chief.dismiss()
  thread.join(20)
  assert not thread.is_alive() and not errors and not trained


def test_worker_that_does_not_come(workers, monkeypatch):
  monkeypatch.setattr(training_cluster, 'ARRIVAL_SECONDS', 1)
  chief, other, trained = workers
  with pytest.raises(UserError) as error:
    chief.train(None, None, [], 5)
  assert 'no sign of worker 1 ({})'.format(
      other._cluster.addresses[1]) in str(error.value)
  assert not trained


def test_worker_that_is_lost_after_training(workers, monkeypatch):
  """The chief still has what was trained, to evaluate and dump."""
  monkeypatch.setattr(training_cluster, 'FAREWELL_SECONDS', 1)
  chief, _, _ = workers
  warnings = []
  monkeypatch.setattr(tf.logging, 'warning', lambda message, *values:
                      warnings.append(message % values))
  chief.dismiss()
  assert len(warnings) == 1 and 'worker 1' in warnings[0]


def test_chief_that_does_not_come():
  address = '127.0.0.1:{}'.format(two_workers.free_ports(1)[0])
  with pytest.raises(UserError) as error:
    training_cluster._wait_for_port(address, 1)
  assert address in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('own_folder', [True, False])
def test_model_folder_that_is_not_shared(workers, tmp_path, own_folder):
  chief, other, trained = workers
  if own_folder:
    other._model_dir = str(tmp_path / 'own')
    expected = 'own: is not the folder of the chief'
  else:  # A file system that shows no new files.
    write_checkpoint(tmp_path, {'global_step': np.int64(5)}, 5)
    other._checkpoint_step = lambda: 3
    expected = 'has the checkpoint of step 3, the chief that of 5'
  thread, errors = follow(other)
  with pytest.raises(UserError) as error:
    chief.train(None, None, [], 9)
  thread.join(20)
  assert len(errors) == 1 and expected in errors[0]
  assert 'worker 1' in str(error.value) and 'failed' in str(error.value)
  assert not trained


def test_worker_that_was_started_anew(workers):
  """It must not enter a run in the middle."""
  chief, other, trained = workers
  thread, _ = follow(other)
  chief.train(None, None, [], 5)
  again = TrainingCluster.__new__(TrainingCluster)
  again.__dict__.update(other.__dict__, _serial=0, _board=None)
  chief._post(5, 9)
  thread_again, errors = follow(again)
  thread_again.join(20)
  assert len(errors) == 1 and 'busy with an earlier run' in errors[0]
  assert (1, 9) not in trained


def test_port_that_is_taken(tmp_path):
  with socket.socket() as taken:
    taken.bind(('', 0))
    taken.listen(1)
    port = taken.getsockname()[1]
    parsed = cluster.parse(two_workers.tf_config(
        [port] + two_workers.free_ports(1), 0))
    with pytest.raises(UserError) as error:
      TrainingCluster(parsed, str(tmp_path), 0, None, tf.ConfigProto())
  message = str(error.value)
  assert 'port {}'.format(port) in message and '\n' not in message


def test_second_session_ends_training():
  hook = training_cluster._SingleSession()
  hook.after_create_session(None, None)
  with pytest.raises(UserError) as error:
    hook.after_create_session(None, None)
  assert 'lost' in str(error.value) and '\n' not in str(error.value)
