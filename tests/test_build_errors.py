"""Archives to TFRecords: a line for whatever is wrong, nothing half-written."""

import collections
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest

import build_imagenet_tfrecords as builder
import record_shards
from tiny_archives import (  # pylint: disable=unused-import
    SYNSETS, Dataset, check_error, dataset, encode, tar_bytes)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = os.path.join(ROOT, 'Imagenet_tools', 'build_imagenet_tfrecords.py')

# Errors before the work.


@pytest.mark.parametrize('arguments, words', [
    (['--train_shards', '0'], ['--train_shards 0']),
    (['--seed', '-1'], ['--seed -1']),
    (['--train_shards', 'many'], ['--train_shards', 'many', '--help']),
    (['--no_such_flag'], ['--no_such_flag', '--help']),
    (['--validation_fraction', '0.1'], ['--validation_fraction 0.1',
                                        '--image_folder']),
    (['--image_folder', '/nowhere'], ['--image_folder /nowhere']),
    (['--image_folder', '/nowhere', '--check_md5'], ['--check_md5']),
    (['--shard_size_rule', 'published', '--validation_shards', '9'],
     ['--validation_shards', '5 validation images']),
    (['--train_archive', '/no\nwhere/train.tar'], ['/no where/train.tar']),
    (['--validation_archive', '/nowhere/val.tar'], ['/nowhere/val.tar']),
    (['--validation_labels', '/nowhere/labels'], ['/nowhere/labels']),
    (['--output_dir', '/proc/tf_records'], ['/proc: cannot be written']),
])
def test_wrong_arguments(capsys, dataset, arguments, words):
  check_error(capsys, dataset, *words, arguments=arguments)


def link():
  member = tarfile.TarInfo('val_0009.JPEG')
  member.type, member.linkname = tarfile.LNKTYPE, 'val_0000.JPEG'
  return member


@pytest.mark.parametrize('name, content, words', [
    ('train.tar', b'<html>not found</html>' * 99, 'not an uncompressed tar'),
    ('val.tar', b'', 'not an uncompressed tar'),
    ('train.tar', tar_bytes([]), 'holds no files'),
    ('val.tar', tar_bytes([]), 'holds no images'),
    ('train.tar', tar_bytes([('a.JPEG', b'')]), 'train.tar/a.JPEG: not a tar'),
    ('train.tar', tar_bytes([(f'{synset}.tar', b'oops' * 999)
                             for synset in SYNSETS]),
     'train.tar/n00000003.tar: not an uncompressed tar'),
    ('val.tar', tar_bytes([('a', b'1'), ('a', b'2')]), 'val.tar/a: occurs'),
    ('val.tar', tar_bytes([('', link())]), 'val.tar/val_0009.JPEG: a link'),
    ('labels.txt', b'\xff\xfe\x00', 'not a text file')])
def test_sources_that_are_refused(capsys, dataset, name, content, words):
  dataset.write(name, content)
  check_error(capsys, dataset, words)


@pytest.mark.parametrize('name', ['train.tar', 'val.tar'])
def test_damaged_header_is_not_the_end(capsys, dataset, name):
  with tarfile.open(dataset.path(name)) as tar:
    third = tar.getmembers()[2].offset
  with open(dataset.path(name), 'r+b') as archive:
    archive.seek(third)
    archive.write(b'\xaa' * 100)
  check_error(capsys, dataset, name, 'damaged at byte')


def test_shards_of_others_are_kept(capsys, dataset):
  os.makedirs(dataset.path('tf_records', 'validation'))
  shard = 'tf_records/validation/validation-00000-of-0000'
  dataset.write(f'{shard}2', b'mine')
  check_error(capsys, dataset, f'{shard}2', 'another program')
  dataset.write(f'{shard}9', b'mine')
  check_error(capsys, dataset, f'{shard}9', '--validation_shards 2')


def test_another_build_in_the_same_folder(capsys, dataset):
  dataset.build()
  check_error(capsys, dataset, dataset.output, 'seed 0 there, 1 here',
              arguments=['--seed', '1'])
  dataset.write('labels.txt', '\n'.join(dataset.labels[::-1]).encode())
  check_error(capsys, dataset, 'other validation labels')


@pytest.mark.parametrize('content', [
    pickle.dumps(np.zeros(5, np.int32), 2), b'mine',
    b'\x93NUMPY\x01\x00\x06\x00{(\n   '])
def test_label_file_of_others_is_kept(capsys, dataset, content):
  """Defect 19: the last header was a tokenize.TokenError."""
  dataset.write('validation_non_onehot.npy', content)
  check_error(capsys, dataset, 'validation_non_onehot.npy', '--labels_dir')
  with open(dataset.path('validation_non_onehot.npy'), 'rb') as labels_file:
    assert labels_file.read() == content


def test_a_fifo_is_no_label_file(capsys, dataset):
  """Defect 18: reading it would wait for ever."""
  os.mkfifo(dataset.path('validation_non_onehot.npy'))
  check_error(capsys, dataset, 'validation_non_onehot.npy', '--labels_dir')


def test_names_that_are_not_utf8(capsys, dataset):
  """Defect 17: the output folder's name was a UnicodeEncodeError."""
  output = os.path.join(dataset.folder, os.fsdecode(b'\xff'), 'tf_records')
  dataset.build('--output_dir', output)
  assert '\\udcff' in capsys.readouterr().out


def test_replaced_images_of_the_same_size(capsys, dataset):
  """Defect 9: such a folder was "complete already"."""
  for name, data in dataset.validation:
    os.makedirs(dataset.path('own', 'cat'), exist_ok=True)
    dataset.write(f'own/cat/{name}', data)
  arguments = ['--image_folder', dataset.path('own'), '--validation_fraction',
               '0.4', '--train_shards', '1', '--validation_shards', '1']
  dataset.build(*arguments)
  path = dataset.path('own', 'cat', dataset.validation[0][0])
  modified_ns = os.stat(path).st_mtime_ns + 1000
  os.utime(path, ns=(modified_ns, modified_ns))
  check_error(capsys, dataset, 'another build', arguments=arguments)


def set_free_bytes(monkeypatch, free_bytes):
  usage = collections.namedtuple('usage', 'total used free')
  monkeypatch.setattr(
      shutil, 'disk_usage', lambda path: usage(10**9, 0, free_bytes))


def test_disk_with_too_little_space(capsys, dataset, monkeypatch):
  set_free_bytes(monkeypatch, 1000)
  check_error(capsys, dataset, '--output_dir', '0 MB are free')


# Errors amid the work.


def check_stopped(dataset, num_whole_shards):
  """After a stop: whole shards only, nothing that says the set is complete."""
  assert len(dataset.shards('train')) == num_whole_shards
  assert dataset.shards('validation') == []
  assert not os.path.exists(os.path.join(dataset.output, 'dataset.json'))
  assert not os.path.exists(dataset.path('train_non_onehot.npy'))
  if num_whole_shards:
    assert len(dataset.records('train')) == 3 * num_whole_shards


@pytest.mark.parametrize('data', [
    b'', b'not an image', encode(0)[:-2], encode(0, file_format='PNG')[:-40]],
                         ids=len)
def test_bad_image_stops_or_is_left_out(capsys, dataset, data):
  # The 8th record of the training images, in the third shard.
  name = dataset.train[SYNSETS[2]][0][0]
  dataset.train[SYNSETS[2]][0] = (name, data)
  dataset.save()
  assert builder.main(dataset.arguments('--workers', '1')) == 1
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'Traceback' not in error
  image = f'{SYNSETS[2]}.tar/{name}'
  assert f"{dataset.path('train.tar')}/{image}: " in error
  check_stopped(dataset, 2 if data else 0)  # The index tells of empty ones.

  dataset.build('--skip_bad_images', '--workers', '3')
  output = capsys.readouterr()
  assert image in output.err
  assert ('2 of 6 shards are there' in output.err) == bool(data)
  assert '1 bad image is left out' in output.out
  with open(os.path.join(dataset.output, 'dataset.json')) as dataset_file:
    content = json.load(dataset_file)
  skipped, = content['skipped_images']['train']
  assert skipped.pop('reason')
  assert skipped == {'image': image, 'shard': 'train-00002-of-00004'}
  assert content['num_images'] == {'train': 10, 'validation': 5}
  assert content['class_counts']['train'] == [4, 4, 2]
  records = dataset.records('train')
  names = [record['image/filename'][0].decode() for record in records]
  assert len(names) == 10 and name not in names
  assert dataset.written_labels('train').tolist() == [
      record['image/class/label'][0] for record in records]


def at_the_image(number, act):
  """Calls `act()` in a worker before the `number`-th image is prepared."""
  prepare_image = record_shards.prepare_image
  calls = multiprocessing.Value('i', 0)  # Shared by the workers.

  def prepare_or_act(data, is_decoding):
    calls.value += 1
    if calls.value == number:
      act()
    return prepare_image(data, is_decoding)
  return prepare_or_act


@pytest.fixture
def heeded_interrupts():
  """A shell that starts the tests in the background has SIGINT ignored."""
  earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, earlier)


@pytest.mark.parametrize('stop', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures('heeded_interrupts')
def test_interrupted_run(capsys, dataset, monkeypatch, stop):
  def stop_main_process():
    while not os.path.exists(first_shard):  # The main process gives names.
      time.sleep(0.001)
    os.kill(os.getppid(), stop)
    time.sleep(60)  # What follows depends on which process is faster.

  first_shard = os.path.join(dataset.output, 'train', 'train-00000-of-00004')
  monkeypatch.setattr(
      record_shards, 'prepare_image', at_the_image(5, stop_main_process))
  assert builder.main(dataset.arguments('--workers', '1')) == 130
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'interrupted' in error
  check_stopped(dataset, 1)
  assert multiprocessing.active_children() == []


def test_disk_that_fills_up(tmp_path):
  dataset = Dataset(tmp_path)
  dataset.train[SYNSETS[0]][0] = ('big.JPEG', encode(0, size=(400, 400)))
  dataset.save()

  def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))

  run = subprocess.run(
      [sys.executable, SCRIPT] + dataset.arguments(),
      preexec_fn=limit_file_size, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE)
  error = run.stderr.decode()
  assert run.returncode == 1
  assert 'Traceback' not in error
  assert 'cannot be written' in error.splitlines()[-1]
  assert not [path for path in dataset.files() if '.unfinished' in path]
  assert not os.path.exists(os.path.join(dataset.output, 'dataset.json'))
  # With space, the rest is written.
  dataset.build()
  assert len(dataset.records('train')) == 11


def test_whatever_gets_its_name_is_on_the_disk(dataset, monkeypatch):
  """After a power failure no name may stand for a file without contents."""
  synced, named = set(), []
  fsync, replace = os.fsync, os.replace

  def noted_fsync(descriptor):
    fsync(descriptor)
    synced.add(os.fstat(descriptor).st_ino)

  def checked_replace(source, target):
    assert os.stat(source).st_ino in synced, target
    replace(source, target)
    named.append(os.path.basename(target))

  monkeypatch.setattr(os, 'fsync', noted_fsync)
  monkeypatch.setattr(os, 'replace', checked_replace)
  assert builder.main(dataset.arguments('--workers', '1')) == 0
  assert len(named) == 4 + 2 + 3  # Shards, labels, dataset.json.
  assert named[-1] == 'dataset.json'
