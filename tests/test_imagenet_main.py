"""The command line: the published commands, and one line for what is wrong."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import command_line
import imagenet_main
import dump_names
import softmax_dump
import tiny_checkpoints
import tiny_records
from tf_compat import tf
from user_error import UserError

SPLIT_SHARDS = {'train': [6, 5, 4], 'validation': [4, 6, 1]}
NUM_CLASSES = 11
SMALL = ['-rv', 2, '-rs', 18, '--image_size', 32, '-bs', 4]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A folder with records, and a trunk trained a little."""
  folder = tmp_path_factory.mktemp('trained')
  tiny_records.make_data_set(
      str(folder / 'tf_records'), SPLIT_SHARDS, NUM_CLASSES)
  command_line.run('--nois_cascaded', '-te', 1, '-dd', folder / 'tf_records',
                   '-md', folder / 'trunk', *SMALL)
  return folder


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
  """An empty working folder beside links to records and trunk."""
  for name in ('tf_records', 'trunk'):
    (tmp_path / name).symlink_to(trained / name)
  monkeypatch.chdir(str(tmp_path))
  return tmp_path


def step3(classifier_id, *more):
  """A published command of step 3, but for sizes."""
  mode = ['--eval_only'] if classifier_id == 2 else ['--fine_tune', '--te', 1]
  return mode + [
      '--is_cascaded', '--classifier_id', classifier_id,
      '--data_format', 'channels_first'] + SMALL + [
          '-md', 'checkpoints/clf{}'.format(classifier_id), '-pmcp', 'trunk',
          '--data_dir', 'tf_records', '--num_gpus', 0] + list(more)


# ---- The published commands -------------------------------------------------

@pytest.mark.parametrize('command, expected', [
    ('--eval_only --is_cascaded --classifier_id 2 --data_format channels_first '
     '-rv 2 -rs 50 -md checkpoints/clf2 '
     '-pmcp checkpoints/resnet_imagenet_v2_fp32_20181001 '
     '--data_dir tf_records --num_gpus 4',
     dict(eval_only=True, fine_tune=False, classifier_id=['2'],
          model_dir='checkpoints/clf2')),
    ('--fine_tune --te 20 --is_cascaded --classifier_id 0 '
     '--data_format channels_first -rv 2 -rs 50 -md checkpoints/clf0 '
     '-pmcp checkpoints/resnet_imagenet_v2_fp32_20181001 '
     '--data_dir tf_records --num_gpus 4',
     dict(eval_only=False, fine_tune=True, classifier_id=['0'], train_epochs=20,
          model_dir='checkpoints/clf0')),
])
def test_published_commands_parse(command, expected):
  flags_obj = command_line.parse(*command.split())
  expected.update(
      is_cascaded=True, data_format='channels_first', resnet_version='2',
      resnet_size='50', num_gpus=4, data_dir='tf_records', batch_size=32,
      pretrained_model_checkpoint_path=(
          'checkpoints/resnet_imagenet_v2_fp32_20181001'))
  assert {name: flags_obj[name].value for name in expected} == expected


def test_published_commands_without_their_gpus(folder):
  finished = command_line.command(*step3(2, '--num_gpus', 4), cwd=str(folder))
  assert finished.returncode == 1
  assert '--num_gpus 4: ' in finished.stderr.splitlines()[-1]
  assert 'Traceback' not in finished.stderr


def test_a_flat_copy_runs_as_published(folder):
  """Step 1 copies the files elsewhere; then step 3, one classifier each."""
  copy = folder / 'official' / 'resnet'
  copy.mkdir(parents=True)
  sources = os.path.dirname(command_line.SCRIPT)
  for name in os.listdir(sources):
    if name.endswith('.py'):
      shutil.copy(os.path.join(sources, name), str(copy))
  results = {}
  for k in (2, 0, 1):
    finished = command_line.command(
        *step3(k), cwd=str(folder), script=str(copy / 'imagenet_main.py'))
    assert finished.returncode == 0, finished.stderr
    assert 'channels_first does not exist on a CPU' in finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[-2].startswith('clf{} validation: top-1 '.format(k))
    assert lines[-1].startswith('clf{} train: top-1 '.format(k))
    # Its JSON has what the dumps hold.
    results_file = folder / 'checkpoints' / 'clf{}'.format(k) / 'results.json'
    results = json.loads(results_file.read_text())
    run = results['eval_only' if k == 2 else 'fine_tune']
    assert run['flags']['classifier_id'] == [str(k)]
    for split in dump_names.SPLITS:
      labels = np.load('output_softmax/' + dump_names.labels_file_name(split))
      top5 = np.load('output_softmax/' +
                     dump_names.top5_classes_file_name(k, split))
      assert len(labels) == sum(SPLIT_SHARDS[split])
      accuracies = [(top5[:, 0] == labels).mean(),
                    (top5 == labels[:, np.newaxis]).any(axis=1).mean()]
      np.testing.assert_allclose(
          run['results'][split]['clf{}'.format(k)], accuracies)
  # Labels of both splits, eight dumps of each classifier, and their record.
  assert len(os.listdir('output_softmax')) == 2 + 3 * 8 + 1


def test_help_lists_the_flags():
  finished = command_line.command('--help')
  assert 'Traceback' not in finished.stderr
  for name in ('--classifier_id', '--[no]is_cascaded', '--softmax_dir',
               '--pretrained_model_checkpoint_path', '--base_lr'):
    assert name in finished.stdout, name


# ---- A run that is interrupted ---------------------------------------------

def last_step_saved(model_dir):
  checkpoint = tf.train.latest_checkpoint(str(model_dir))
  return int(checkpoint.split('-')[-1]) if checkpoint else 0


@pytest.mark.parametrize('signal_number', [signal.SIGINT, signal.SIGKILL])
def test_interrupted_run_goes_on(folder, signal_number):
  steps_per_epoch = 4  # 15 images in batches of 4.
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
  saved = last_step_saved(model_dir)
  assert not os.listdir('output_softmax')

  num_epochs = saved // steps_per_epoch + 2
  finished = command_line.command(
      *step3(0, '--te', num_epochs), cwd=str(folder))
  assert finished.returncode == 0, finished.stderr
  going_on = re.search(r'going on from .*model\.ckpt-(\d+) ', finished.stderr)
  assert int(going_on.group(1)) == saved >= steps_per_epoch
  assert last_step_saved(model_dir) == -(-15 * num_epochs // 4)


def test_interrupted_dump_leaves_the_old_one(folder, monkeypatch):
  command_line.run(*step3(2))

  def contents():
    return {name: (folder / 'output_softmax' / name).read_bytes()
            for name in os.listdir('output_softmax')}

  before = contents()
  append = softmax_dump.SplitDump.append

  def interrupted_append(self, *args):
    append(self, *args)
    raise KeyboardInterrupt

  monkeypatch.setattr(softmax_dump.SplitDump, 'append', interrupted_append)
  with pytest.raises(KeyboardInterrupt):
    command_line.run(*step3(2))
  after = contents()
  assert {name: after[name] for name in before} == before
  # What it had written is kept beside them, to go on with.
  left = set(after) - set(before)
  assert left and all(dump_names.UNFINISHED_SUFFIX in name for name in left)
  # The same command goes on, and leaves what it would have left.
  monkeypatch.setattr(softmax_dump.SplitDump, 'append', append)
  command_line.run(*step3(2))
  assert contents() == before


# ---- Wrong input: found before any work -------------------------------------

def refused(*args):
  with pytest.raises(UserError) as refusal:
    command_line.run(*args)
  message = str(refusal.value)
  assert '\n' not in message
  return message


@pytest.mark.parametrize('flags, words', [
    (['--classifier_id', 3], ['--classifier_id 3', '0, 1, 2']),
    (['--classifier_id', -1], ['--classifier_id -1']),
    (['--classifier_id', '0,3'], ['--classifier_id 0,3', '0, 1, 2']),
    (['--classifier_id', '1,1'], ['--classifier_id 1,1']),
    (['--classifier_id', ''], ['--classifier_id :', '0, 1, 2']),
    (['--classifier_id', 'one'], ['--classifier_id one']),
    (['--dump_shard', '3/2'], ['--dump_shard 3/2', '1/4']),
    (['--dump_shard', '1/2', '--nodump_softmaxes'],
     ['--dump_shard', '--nodump_softmaxes']),
    (['--dump_shard', '1/2', '--noeval_only'], ['--dump_shard', '--eval_only']),
    (['--head_model_dirs', 'trunk', '--nois_cascaded'],
     ['--head_model_dirs', '--nois_cascaded']),
    (['--head_model_dirs', 'trunk', '--noeval_only'],
     ['--head_model_dirs', '--eval_only']),
    (['--image_size', 48], ['--image_size 48', 'multiple of 32']),
    (['--image_size', 0], ['--image_size 0']),
    (['--fine_tune'], ['--eval_only', '--fine_tune']),
    (['--clean'], ['--eval_only', '--clean']),
    (['--cpu_replicas', 3], ['--batch_size 4', '3 replicas']),
    (['--num_gpus', 1], ['--num_gpus 1']),
    (['-pmcp', 'nowhere'], ['-pmcp nowhere']),
    (['-pmcp', 'tf_records'], ['-pmcp tf_records', 'no checkpoint']),
    (['-dd', 'nowhere'], ['--data_dir nowhere']),
    (['-dd', 'trunk'], ['--data_dir trunk', 'step 2']),
    (['-rs', 34], ['model.ckpt', 'lacks', 'resnet_model/']),
    (['-rv', 1], ['model.ckpt', 'resnet_model/']),
    (['-softmax_dir', '/proc/dumps'], ['--softmax_dir /proc/dumps']),
    (['-softmax_dir', 'trunk/checkpoint'], ['--softmax_dir trunk/checkpoint']),
])
def test_wrong_flags(folder, flags, words):
  message = refused(*step3(2, *flags))
  for word in words:
    assert word in message, message
  assert not os.path.exists('output_softmax') or not os.listdir(
      'output_softmax')


@pytest.mark.parametrize('arguments', [
    ['--resnet_size', '51'], ['--no_such_flag'], ['--train_epochs', 'x'],
    ['--hooks', 'NoHook'], ['stray']])
def test_unparsable_flags_are_one_line(folder, arguments):
  finished = command_line.command(*step3(2, *arguments), cwd=str(folder))
  assert finished.returncode == 1
  assert len(finished.stderr.splitlines()) == 1, finished.stderr
  assert arguments[0].lstrip('-') in finished.stderr


def test_head_without_a_checkpoint(folder):
  arguments = step3(0)
  arguments[arguments.index('--fine_tune')] = '--eval_only'
  message = refused(*arguments)
  assert 'resnet_model/cascaded0_' in message and '--fine_tune' in message


def test_nothing_to_evaluate_or_to_fine_tune(folder):
  for k in (2, 0):
    arguments = step3(k)
    place = arguments.index('-pmcp')
    del arguments[place:place + 2]
    assert '-pmcp' in refused(*arguments)


def test_head_of_another_class_count(folder):
  command_line.run(*step3(0))
  tiny_records.make_data_set('other', SPLIT_SHARDS, NUM_CLASSES + 1)
  message = refused('--eval_only', '--classifier_id', 0, '-md',
                    'checkpoints/clf0', '-dd', 'other', '--softmax_dir', 'new',
                    *SMALL)
  assert 'resnet_model/cascaded0_fc00' in message
  assert '11' in message and '12' in message


def test_model_dir_of_another_run(folder):
  command_line.run(*step3(0))
  message = refused(*step3(1, '-md', 'checkpoints/clf0'))
  assert 'checkpoints/clf0' in message and '--clean' in message


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


def test_disk_that_fills_during_the_dump(folder):
  """A limit on the size of a file stands in for a full disk."""
  tiny_checkpoints.write_checkpoint(
      'small', tiny_checkpoints.read_checkpoint(
          tf.train.latest_checkpoint('trunk')))
  limit_bytes = 300
  finished = subprocess.run(
      [sys.executable, '-c', '''
import resource, signal, sys
sys.path.insert(0, {!r})
import imagenet_main, softmax_dump
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
prepare = softmax_dump.SplitDump.append
def append(self, *args):
  resource.setrlimit(resource.RLIMIT_FSIZE, ({}, {}))
  prepare(self, *args)
softmax_dump.SplitDump.append = append
sys.argv[0] = 'imagenet_main.py'
imagenet_main.start()
'''.format(os.path.dirname(command_line.SCRIPT), limit_bytes,
           resource.RLIM_INFINITY)] + [str(a) for a in step3(2)],
      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      universal_newlines=True)
  assert finished.returncode == 1, finished.stderr
  assert 'Traceback' not in finished.stderr
  assert 'output_softmax' in finished.stderr.splitlines()[-1]
  assert os.listdir('output_softmax') == []


# ---- Wrong data --------------------------------------------------------------

@pytest.fixture
def own_data(folder):
  """A copy of the records that a test may damage."""
  os.remove('tf_records')
  tiny_records.make_data_set('tf_records', SPLIT_SHARDS, NUM_CLASSES)
  return folder / 'tf_records'


def shard(data_dir, number, split='validation'):
  return data_dir / split / '{}-{:05d}-of-00003'.format(split, number)


def test_missing_shard(own_data):
  shard(own_data, 1).unlink()
  assert 'validation-00001-of-00003' in refused(*step3(2))


def test_count_that_disagrees(own_data):
  path = own_data / 'dataset.json'
  fields = json.loads(path.read_text())
  fields['num_images']['train'] += 1
  path.write_text(json.dumps(fields))
  message = refused(*step3(2))
  assert '15' in message and '16' in message and 'dataset.json' in message


def test_truncated_shard(own_data):
  path = shard(own_data, 1)
  path.write_bytes(path.read_bytes()[:-7])
  message = refused(*step3(2))
  assert str(path.relative_to(own_data)) in message and 'record 5' in message


def test_corrupt_record_found_in_the_pass(own_data):
  path = shard(own_data, 0)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0xff
  path.write_bytes(bytes(data))
  finished = command_line.command(*step3(2), cwd=str(own_data.parent))
  assert finished.returncode == 1
  last_line = finished.stderr.splitlines()[-1]
  assert path.name in last_line and 'corrupt' in last_line
  assert 'Traceback' not in finished.stderr
  assert os.listdir('output_softmax') == []


@pytest.mark.parametrize('k', [2, 0])
def test_image_that_cannot_be_decoded(own_data, k):
  images = [tiny_records.draw_jpeg(i) for i in range(3)]
  images[1] = b'not a picture'
  records = [tiny_records.make_record(image, 1, 'picture{}.JPEG'.format(i))
             for i, image in enumerate(images)]
  split = 'train' if k == 0 else 'validation'
  for path in (own_data / split).iterdir():
    path.unlink()
  tiny_records.write_shards(str(own_data / split), split, records, [3])
  (own_data / 'dataset.json').write_text(json.dumps({
      'num_classes': NUM_CLASSES,
      'num_images': dict({name: sum(sizes) for name, sizes in
                          SPLIT_SHARDS.items()}, **{split: 3})}))
  message = refused(*step3(k))
  assert 'picture1.JPEG' in message and 'cannot be decoded' in message
  assert os.listdir('output_softmax') == []


def test_label_out_of_range(own_data):
  path = own_data / 'dataset.json'
  fields = json.loads(path.read_text())
  fields['num_classes'] = 10
  path.write_text(json.dumps(fields))
  message = refused('--nois_cascaded', '-te', 1, '-md', 'new', '-dd',
                    'tf_records', *SMALL)
  assert 'label 10' in message and '.JPEG' in message


def test_importing_does_nothing():
  code = 'import imagenet_main; from absl import flags; ' \
      'assert "data_dir" not in flags.FLAGS'
  subprocess.check_call([sys.executable, '-c', code],
                        cwd=os.path.dirname(imagenet_main.__file__))
