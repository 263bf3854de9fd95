"""The command line: the published commands, and one line for what is wrong."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from absl import flags

import command_line
import small_world
import tiny_records
from small_network import NUM_CLASSES
from tf_compat import IS_TF1, tf
from shared_terminal import UserError

SMALL = ['-rv', 2, '-rs', 18, '--image_size', 32, '-bs', 4]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  return small_world.make(tmp_path_factory.mktemp('world'))


@pytest.fixture
def folder(world, tmp_path, monkeypatch):
  """An empty working folder beside links to records and trunk."""
  for name in ('tf_records', 'trunk'):
    (tmp_path / name).symlink_to(world.folder / name)
  monkeypatch.chdir(str(tmp_path))
  return tmp_path


def step3(classifier_id, *more):
  """A published command of step 3, but for sizes."""
  mode = ['--eval_only'] if classifier_id == 2 else ['--fine_tune', '--te', 1]
  return mode + [
      '--is_cascaded', '--classifier_id', classifier_id,
      '--data_format', 'channels_first'] + SMALL + [
          '-md', f'checkpoints/clf{classifier_id}', '-pmcp', 'trunk',
          '--data_dir', 'tf_records', '--num_gpus', 0] + list(more)


# ---- A run that is interrupted ---------------------------------------------

def last_step_saved(model_dir):
  checkpoint = tf.train.latest_checkpoint(str(model_dir))
  return int(checkpoint.split('-')[-1]) if checkpoint else 0


@pytest.mark.parametrize('signal_number', [signal.SIGINT, signal.SIGKILL])
def test_interrupted_run_resumes(folder, signal_number, caplog):
  steps_per_epoch = 4  # 13 images in batches of 4.
  arguments = step3(0, '--te', 200)
  process = subprocess.Popen(
      [sys.executable, command_line.SCRIPT] + [str(a) for a in arguments],
      cwd=str(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, universal_newlines=True,
      # A shell starts background jobs, perhaps these tests, deaf to Ctrl-C.
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
  model_dir = folder / 'checkpoints' / 'clf0'
  try:
    while last_step_saved(model_dir) < steps_per_epoch:
      assert process.poll() is None
      time.sleep(0.05)
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=60)
  finally:
    process.kill()
  assert process.returncode != 0
  if signal_number == signal.SIGINT:
    assert 'interrupted; the same command goes on' in errors.splitlines()[-1]
    assert 'Traceback' not in errors
    return
  saved = last_step_saved(model_dir)
  assert not os.listdir('output_softmax')

  num_epochs = saved // steps_per_epoch + 2
  caplog.set_level('INFO', 'cascade')
  command_line.run(*step3(0, '--te', num_epochs, '-ebe', num_epochs))
  resumed = re.search(r'resuming from .*model\.ckpt-(\d+): ', caplog.text)
  assert int(resumed.group(1)) == saved >= steps_per_epoch
  assert last_step_saved(model_dir) == math.ceil(13 * num_epochs / 4)


# ---- Wrong input: found before any work -------------------------------------

def refused(*args):
  with pytest.raises((UserError, flags.Error)) as refusal:
    command_line.run(*args)
  message = str(refusal.value)
  assert '\n' not in message
  return message


TWO_MACHINES = json.dumps({
    'cluster': {'worker': ['localhost:1', 'localhost:2']},
    'task': {'type': 'worker', 'index': 1}})


# Each is named by its first word.
@pytest.mark.parametrize('wrong', [
    ['batch_size', 0], ['resnet_size', 51],
    ['hooks', 'LoggingTensorHook,NoSuchHook'], ['profile_input', True],
    ['classifier_id', 3],
    ['classifier_id', '1,1'], ['classifier_id', ''], ['dump_shard', '3/2'],
    ['dump_shard', '1/2', '--nodump_softmaxes'],
    ['dump_shard', '1/2', '--noeval_only'],
    ['head_model_dirs', 'trunk', '--nois_cascaded'],
    ['head_model_dirs', 'trunk', '--noeval_only'], ['image_size', 48],
    ['fine_tune', True], ['clean', True], ['num_gpus', 4],
    ['cpu_replicas', 2, '--num_gpus', -1],
    ['turn_off_distribution_strategy', True, '--cpu_replicas', 2],
    ['pretrained_model_checkpoint_path', 'nowhere'],
    ['pretrained_model_checkpoint_path', 'tf_records'],
    ['data_dir', 'nowhere'], ['data_dir', 'trunk'],
    ['softmax_dir', '/proc/dumps'], ['softmax_dir', 'gs://dumps'],
    ['softmax_dir', 'trunk/checkpoint']], ids=lambda wrong: wrong[0])
def test_wrong_flags(folder, wrong):
  name, value, *more = wrong
  message = refused(*step3(2, f'--{name}={value}', *more))
  assert (name if name != 'data_dir' else value) in message.replace(
      '-pmcp', 'pretrained_model_checkpoint_path')
  assert not os.path.exists('output_softmax') or not os.listdir(
      'output_softmax')


def test_errors_are_one_line(folder):
  finished = command_line.command(*step3(2, 'stray'), cwd=str(folder))
  assert finished.returncode == 1
  assert len(finished.stderr.splitlines()) == 1, finished.stderr
  assert 'stray' in finished.stderr


@pytest.mark.skipif(IS_TF1, reason='tf2 only')
@pytest.mark.parametrize('wrong, named', [
    (['--eval_only', '--nofine_tune'], 'TF_CONFIG'),
    (['--cpu_replicas', 2], '--cpu_replicas'), (['--clean'], '--clean')])
def test_what_several_machines_cannot_do(folder, monkeypatch, wrong, named):
  monkeypatch.setenv('TF_CONFIG', TWO_MACHINES)
  assert named in refused(*step3(0, *wrong))


def test_dumps_of_other_records_in_the_folder(folder):
  command_line.run(*step3(2))
  tiny_records.make_data_set(
      'other', {'train': [6], 'validation': [5]}, NUM_CLASSES)
  message = refused(*step3(0, '-dd', 'other'))
  assert '--softmax_dir output_softmax' in message
  # Before the training, not after it.
  assert not os.path.exists('checkpoints/clf0')


def test_corrupt_record_found_in_the_pass(folder):
  """What else can be wrong with records is in test_imagenet_errors.py."""
  os.remove('tf_records')
  tiny_records.make_data_set(
      'tf_records', small_world.SPLIT_SHARDS, NUM_CLASSES)
  path = folder / 'tf_records/validation/validation-00000-of-00003'
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0xff
  path.write_bytes(bytes(data))
  message = refused(*step3(2))
  assert 'verify_records.py tf_records' in message and 'corrupt' in message
  assert not [name for name in os.listdir('output_softmax')
              if name.endswith('.npy')]
