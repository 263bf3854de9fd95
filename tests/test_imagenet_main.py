"""The command line: the published commands, and one line for what is wrong."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import command_line
import imagenet_main
import small_world
import tiny_records
from small_network import NUM_CLASSES
from tf_compat import tf
from user_error import UserError

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


@pytest.mark.parametrize('signal_number', [
    signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.campaign)])
def test_interrupted_run_resumes(folder, signal_number):
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
    assert 'interrupted; the same command resumes' in errors.splitlines()[-1]
    assert 'Traceback' not in errors
  saved = last_step_saved(model_dir)
  assert not os.listdir('output_softmax')

  num_epochs = saved // steps_per_epoch + 2
  finished = command_line.command(
      *step3(0, '--te', num_epochs), cwd=str(folder))
  assert finished.returncode == 0, finished.stderr
  resumed = re.search(r'resuming from .*model\.ckpt-(\d+): ', finished.stderr)
  assert int(resumed.group(1)) == saved >= steps_per_epoch
  assert last_step_saved(model_dir) == math.ceil(13 * num_epochs / 4)


# ---- Wrong input: found before any work -------------------------------------

def refused(*args):
  with pytest.raises(UserError) as refusal:
    command_line.run(*args)
  message = str(refusal.value)
  assert '\n' not in message
  return message


@pytest.mark.parametrize('flags, words', [
    (['--classifier_id', 3], ['--classifier_id 3', '0, 1, 2']),
    (['--classifier_id', '1,1'], ['--classifier_id 1,1']),
    (['--classifier_id', ''], ['--classifier_id :', '0, 1, 2']),
    (['--dump_shard', '3/2'], ['--dump_shard 3/2', '1/4']),
    (['--dump_shard', '1/2', '--nodump_softmaxes'],
     ['--dump_shard', '--nodump_softmaxes']),
    (['--dump_shard', '1/2', '--noeval_only'], ['--dump_shard', '--eval_only']),
    (['--head_model_dirs', 'trunk', '--nois_cascaded'],
     ['--head_model_dirs', '--nois_cascaded']),
    (['--head_model_dirs', 'trunk', '--noeval_only'],
     ['--head_model_dirs', '--eval_only']),
    (['--image_size', 48], ['--image_size 48', 'multiple of 32']),
    (['--fine_tune'], ['--eval_only', '--fine_tune']),
    (['--clean'], ['--eval_only', '--clean']),
    (['--cpu_replicas', 3], ['--batch_size 4', '3 replicas']),
    (['-pmcp', 'nowhere'], ['-pmcp nowhere']),
    (['-pmcp', 'tf_records'], ['-pmcp tf_records', 'no checkpoint']),
    (['-dd', 'nowhere'], ['--data_dir nowhere']),
    (['-dd', 'trunk'], ['--data_dir trunk', 'step 2']),
    (['-rs', 34], ['model.ckpt', 'lacks', 'resnet_model/']),
    (['-softmax_dir', '/proc/dumps'], ['--softmax_dir /proc/dumps']),
    (['-softmax_dir', 'gs://dumps'], ['--softmax_dir gs://dumps', 'local']),
    (['-softmax_dir', 'trunk/checkpoint'], ['--softmax_dir trunk/checkpoint']),
])
def test_wrong_flags(folder, flags, words):
  message = refused(*step3(2, *flags))
  for word in words:
    assert word in message, message
  assert not os.path.exists('output_softmax') or not os.listdir(
      'output_softmax')


@pytest.mark.parametrize('arguments', [
    ['--resnet_size', '51'], ['stray'], ['--data_dir', 'two\nlines']])
def test_errors_are_one_line(folder, arguments):
  """Also where an argument has several."""
  command_line.parse()
  argv = ['imagenet_main.py'] + [str(arg) for arg in step3(2, *arguments)]
  with pytest.raises(SystemExit) as error:
    imagenet_main.main(imagenet_main._parse_flags(argv))
  assert len(error.value.code.splitlines()) == 1
  assert arguments[0].lstrip('-') in error.value.code


def test_published_command_without_its_gpus(folder):
  """As a shell sees it."""
  finished = command_line.command(*step3(2, '--num_gpus', 4), cwd=str(folder))
  assert finished.returncode == 1
  assert len(finished.stderr.splitlines()) == 1, finished.stderr
  assert '--num_gpus 4: ' in finished.stderr


@pytest.mark.parametrize('flags, words', [
    (['--eval_only'], ['TF_CONFIG']),
    (['--fine_tune', '--cpu_replicas', 2], ['--cpu_replicas', 'TF_CONFIG']),
    (['--fine_tune', '--clean'], ['--clean', 'TF_CONFIG']),
    (['--fine_tune', '-bs', 5], ['--batch_size 5', '2 replicas', 'try 6']),
])
def test_what_several_machines_cannot_do(folder, monkeypatch, flags, words):
  monkeypatch.setenv('TF_CONFIG', json.dumps({
      'cluster': {'worker': ['localhost:1', 'localhost:2']},
      'task': {'type': 'worker', 'index': 1}}))
  message = refused(*SMALL + ['-dd', 'tf_records', '-pmcp', 'trunk', '-md',
                              'new', '--classifier_id', 0] + flags)
  assert all(word in message for word in words), message


def test_dumps_of_other_records_in_the_folder(folder):
  command_line.run(*step3(2))
  tiny_records.make_data_set(
      'other', {'train': [6], 'validation': [5]}, NUM_CLASSES)
  message = refused(*step3(0, '-dd', 'other'))
  assert '--softmax_dir output_softmax' in message
  # Before the training, not after it.
  assert not os.path.exists('checkpoints/clf0')


def test_disk_too_full(folder, monkeypatch):
  usage = shutil.disk_usage(str(folder))
  monkeypatch.setattr(shutil, 'disk_usage',
                      lambda path: usage._replace(free=100))
  assert 'free' in refused(*step3(0))
  assert not os.path.exists('checkpoints/clf0')


# ---- Wrong data --------------------------------------------------------------

@pytest.fixture
def own_data(folder):
  """A copy of the records that a test may damage."""
  os.remove('tf_records')
  tiny_records.make_data_set(
      'tf_records', small_world.SPLIT_SHARDS, NUM_CLASSES)
  return folder / 'tf_records'


def shard(data_dir, number, split='validation'):
  return data_dir / split / f'{split}-{number:05d}-of-00003'


def test_truncated_shard(own_data):
  path = shard(own_data, 1)
  path.write_bytes(path.read_bytes()[:-7])
  message = refused(*step3(2))
  assert str(path.relative_to(own_data)) in message and 'record 2' in message


def test_corrupt_record_found_in_the_pass(own_data):
  path = shard(own_data, 0)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0xff
  path.write_bytes(bytes(data))
  message = refused(*step3(2))
  assert path.name in message and 'corrupt' in message
  assert not [name for name in os.listdir('output_softmax')
              if name.endswith('.npy')]


@pytest.mark.parametrize('k', [2, 0])
def test_image_that_cannot_be_decoded(own_data, k):
  images = [tiny_records.draw_jpeg(i) for i in range(3)]
  images[1] = b'not a picture'
  records = [tiny_records.make_record(image, 1, f'picture{i}.JPEG')
             for i, image in enumerate(images)]
  split = 'train' if k == 0 else 'validation'
  for path in (own_data / split).iterdir():
    path.unlink()
  tiny_records.write_shards(str(own_data / split), split, records, [3])
  (own_data / 'dataset.json').write_text(json.dumps({
      'num_classes': NUM_CLASSES,
      'num_images': dict({name: sum(sizes) for name, sizes in
                          small_world.SPLIT_SHARDS.items()}, **{split: 3})}))
  message = refused(*step3(k))
  assert 'picture1.JPEG' in message and 'cannot be decoded' in message
  assert not [name for name in os.listdir('output_softmax')
              if name.endswith('.npy')]


def test_label_out_of_range(own_data):
  path = own_data / 'dataset.json'
  fields = json.loads(path.read_text())
  fields.update(num_classes=10, class_names=None)
  path.write_text(json.dumps(fields))
  message = refused(*step3(0))
  assert 'label 10' in message and '.JPEG' in message


def test_importing_does_nothing():
  code = 'import imagenet_main; from absl import flags; ' \
      'assert "data_dir" not in flags.FLAGS'
  subprocess.check_call([sys.executable, '-c', code],
                        cwd=os.path.dirname(imagenet_main.__file__))
