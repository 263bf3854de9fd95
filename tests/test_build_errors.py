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
    (['--validation_shards', '100000'], ['--validation_shards 100000']),
    (['--seed', '-1'], ['--seed -1']),
    (['--train_shards', 'many'], ['--train_shards', 'many', '--help']),
    (['--no_such_flag'], ['--no_such_flag', '--help']),
    (['--workers', '0'], ['--workers 0']),
    (['--verify', 'none'], ['--verify', 'none', '--help']),
    (['--validation_fraction', '0.1'], ['--validation_fraction 0.1',
                                        '--image_folder']),
    (['--image_folder', '/nowhere'], ['--image_folder /nowhere']),
    (['--image_folder', '/nowhere', '--check_md5'], ['--check_md5']),
    (['--devkit', '/nowhere/devkit'], ['/nowhere/devkit']),
    (['--shard_size_rule', 'published', '--validation_shards', '9'],
     ['--validation_shards', '5 validation images']),
    (['--train_archive', '/nowhere/train.tar'], ['/nowhere/train.tar']),
    (['--validation_archive', '/nowhere/val.tar'], ['/nowhere/val.tar']),
    (['--validation_labels', '/nowhere/labels'], ['/nowhere/labels']),
    (['--output_dir', '/proc/tf_records'], ['/proc: cannot be written']),
])
def test_wrong_arguments(capsys, dataset, arguments, words):
  check_error(capsys, dataset, *words, arguments=arguments)


def test_output_that_is_a_file(capsys, dataset):
  dataset.write('tf_records', b'')
  check_error(capsys, dataset, 'tf_records')


@pytest.mark.parametrize('name', ['train.tar', 'val.tar'])
@pytest.mark.parametrize('content', [b'', b'<html>not found</html>' * 99],
                         ids=len)
def test_archive_that_is_no_tar(capsys, dataset, name, content):
  dataset.write(name, content)
  check_error(capsys, dataset, name, 'not an uncompressed tar')


def test_compressed_archive(capsys, dataset):
  with tarfile.open(dataset.path('val.tar'), 'w:gz') as tar:
    tar.add(dataset.path('labels.txt'))
  check_error(capsys, dataset, 'val.tar', 'not an uncompressed tar')


@pytest.mark.parametrize('name', ['train.tar', 'val.tar'])
def test_empty_archive(capsys, dataset, name):
  dataset.write(name, tar_bytes([]))
  check_error(capsys, dataset, name, 'holds no')


def test_train_archive_without_inner_tars(capsys, dataset):
  dataset.write('train.tar', tar_bytes(dataset.validation))
  check_error(capsys, dataset, 'train.tar/val_0000.JPEG', 'not a tar')


def test_inner_tar_that_is_no_tar(capsys, dataset):
  dataset.labels = ['n00000003'] * 5
  dataset.save().write('train.tar', tar_bytes([
      ('n00000003.tar', b'oops' * 999)]))
  check_error(capsys, dataset, 'train.tar/n00000003.tar',
              'not an uncompressed tar')


@pytest.mark.parametrize('content', [b'', tar_bytes([])], ids=len)
def test_synset_without_images(capsys, dataset, content):
  dataset.labels = ['n00000003'] * 5
  dataset.save().write('train.tar', tar_bytes([
      ('n00000003.tar', tar_bytes(dataset.validation)),
      ('n00000012.tar', content)]))
  check_error(capsys, dataset, 'train.tar/n00000012.tar')


@pytest.mark.parametrize('kept', [0.3, 0.6, 0.9])
@pytest.mark.parametrize('name', ['train.tar', 'val.tar'])
def test_truncated_archive(capsys, dataset, name, kept):
  with open(dataset.path(name), 'rb') as archive:
    content = archive.read()
  # Without the zeros that pad a tar to 10 kB, which may be lost.
  content = content.rstrip(b'\0')
  dataset.write(name, content[:int(kept * len(content))])
  check_error(capsys, dataset, name)


@pytest.mark.parametrize('name', ['train.tar', 'val.tar'])
def test_damaged_header_is_not_the_end(capsys, dataset, name):
  with open(dataset.path(name), 'rb') as archive:
    content = archive.read()
  with tarfile.open(dataset.path(name)) as tar:
    third = tar.getmembers()[2].offset
  dataset.write(name, content[:third] + b'\xaa' * 100 + content[third + 100:])
  check_error(capsys, dataset, name, 'damaged at byte')


def test_damaged_header_in_a_synset(capsys, dataset):
  with open(dataset.path('train.tar'), 'rb') as archive:
    content = archive.read()
  header = content.index(b'n00000012_4.JPEG')
  dataset.write('train.tar', content[:header] + b'\xaa' * 100
                + content[header + 100:])
  check_error(capsys, dataset, 'train.tar/n00000012.tar', 'damaged at byte')


def test_link_in_an_archive_is_not_skipped(capsys, dataset):
  link = tarfile.TarInfo('val_0009.JPEG')
  link.type, link.linkname = tarfile.LNKTYPE, 'val_0000.JPEG'
  dataset.write('val.tar', tar_bytes(
      dataset.validation + [('val_0009.JPEG', link)]))
  check_error(capsys, dataset, 'val.tar/val_0009.JPEG', 'not a plain file')


def test_name_that_occurs_twice(capsys, dataset):
  dataset.validation[1] = dataset.validation[0]
  check_error(capsys, dataset.save(), 'val.tar/val_0000.JPEG', 'twice')


@pytest.mark.parametrize('change', [-1, 1])
def test_labels_and_images_differ_in_number(capsys, dataset, change):
  dataset.labels = (dataset.labels * 2)[:5 + change]
  check_error(capsys, dataset.save(), 'labels.txt', str(5 + change),
              'val.tar', 'holds 5')


def test_labels_of_unknown_synsets(capsys, dataset):
  dataset.labels[3] = 'n99999999'
  check_error(capsys, dataset.save(), 'labels.txt line 4', 'n99999999')


def test_labels_that_are_no_text(capsys, dataset):
  dataset.write('labels.txt', b'\xff\xfe\x00')
  check_error(capsys, dataset, 'labels.txt', 'not a text file')


@pytest.mark.parametrize('labels', [
    '\r\n'.join(['{}'] * 5) + '\r\n', ' {}\t\n' * 5 + '\n \n'])
def test_labels_with_other_line_ends(dataset, labels):
  dataset.write('labels.txt', labels.format(*dataset.labels).encode())
  dataset.build()


@pytest.mark.parametrize('split', record_shards.SPLITS)
def test_shards_of_another_count(capsys, dataset, split):
  dataset.build()
  check_error(capsys, dataset, '{0}/{0}-00000-of-0000'.format(split),
              '--{}_shards 9'.format(split),
              arguments=['--{}_shards'.format(split), '9'])


@pytest.mark.parametrize('content', [
    pickle.dumps(np.zeros(5, np.int32), 2), b'', b'mine'])
def test_label_file_of_others_is_kept(capsys, dataset, content):
  dataset.write('validation_non_onehot.npy', content)
  check_error(capsys, dataset, 'validation_non_onehot.npy', '--labels_dir')
  with open(dataset.path('validation_non_onehot.npy'), 'rb') as labels_file:
    assert labels_file.read() == content


def set_free_bytes(monkeypatch, free_bytes):
  usage = collections.namedtuple('usage', 'total used free')
  monkeypatch.setattr(
      shutil, 'disk_usage', lambda path: usage(10**9, 0, free_bytes))


def test_disk_with_too_little_space(capsys, dataset, monkeypatch):
  set_free_bytes(monkeypatch, 1000)
  check_error(capsys, dataset, '--output_dir', '0 MB are free')


def test_space_is_needed_for_missing_shards_alone(dataset, monkeypatch):
  dataset.build()
  os.remove(dataset.shards('validation')[0])
  set_free_bytes(monkeypatch, 6000)  # Of 16 images, for 3.
  dataset.build()


@pytest.mark.parametrize('split', record_shards.SPLITS)
def test_shards_of_others_are_kept(capsys, dataset, split):
  folder = dataset.path('tf_records', split)
  os.makedirs(folder)
  shard = os.path.join(folder, '{}-00000-of-0000{}'.format(
      split, {'train': 4, 'validation': 2}[split]))
  with open(shard, 'wb') as others:
    others.write(b'mine')
  check_error(capsys, dataset, shard, 'another program')
  with open(shard, 'rb') as others:
    assert others.read() == b'mine'


@pytest.mark.parametrize('arguments, words', [
    (['--seed', '1'], 'seed 0 there, 1 here'),
    (['--shard_size_rule', 'published'],
     'shard size rule ceiling there, published here')])
def test_another_build_in_the_same_folder(capsys, dataset, arguments, words):
  dataset.build()
  check_error(capsys, dataset, dataset.output, words, arguments=arguments)


def test_other_images_in_the_same_folder(capsys, dataset):
  dataset.build()
  dataset.validation = dataset.validation[:3]
  dataset.labels = dataset.labels[:3]
  check_error(capsys, dataset.save(), dataset.output, 'another build')


def test_other_labels_in_the_same_folder(capsys, dataset):
  dataset.build()
  dataset.write('labels.txt', '\n'.join(dataset.labels[::-1]).encode())
  check_error(capsys, dataset, 'other validation labels')


# Errors amid the work.


def check_stopped(dataset, num_whole_shards):
  """After a stop: whole shards only, nothing that says the set is complete."""
  assert len(dataset.shards('train')) == num_whole_shards
  assert dataset.shards('validation') == []
  assert sorted(os.listdir(dataset.output)) == [
      '.build_journal.jsonl', 'train', 'validation']
  assert not os.path.exists(dataset.path('train_non_onehot.npy'))
  if num_whole_shards:
    assert len(dataset.records('train')) == 3 * num_whole_shards


BAD_IMAGES = [
    b'', b'not an image', encode(0)[:-2], encode(0)[:40],
    encode(0, file_format='PNG')[:-40]]


def spoil_an_image(dataset, data):
  """The 8th record of the training images, in the third shard; its name."""
  name = dataset.train[SYNSETS[2]][0][0]
  dataset.train[SYNSETS[2]][0] = (name, data)
  dataset.save()
  return '{}/{}.tar/{}'.format(dataset.path('train.tar'), SYNSETS[2], name)


@pytest.mark.parametrize('data', BAD_IMAGES, ids=len)
def test_unreadable_image_is_named(capsys, dataset, data):
  path = spoil_an_image(dataset, data)
  assert builder.main(dataset.arguments('--workers', '1')) == 1
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'Traceback' not in error
  assert path + ': ' in error
  if data:
    check_stopped(dataset, 2)
  else:  # The index tells.
    assert not dataset.shards('train')


@pytest.mark.parametrize('data', BAD_IMAGES, ids=len)
@pytest.mark.parametrize('workers', ['1', '3'])
def test_bad_images_are_left_out(capsys, dataset, data, workers):
  path = spoil_an_image(dataset, data)
  dataset.build('--skip_bad_images', '--workers', workers)
  output = capsys.readouterr()
  name = path[len(dataset.path('train.tar/')):]
  assert error_lines_about(output.err, name) == 1
  assert output.err.count('\n') == 1
  assert '1 bad image is left out' in output.out
  content = read_dataset_json(dataset)
  skipped, = content['skipped_images']['train']
  assert skipped.pop('reason')
  assert skipped == {'image': name, 'shard': 'train-00002-of-00004'}
  assert content['num_images'] == {'train': 10, 'validation': 5}
  assert content['class_counts']['train'] == [4, 4, 2]
  records = dataset.records('train')
  names = [record['image/filename'][0].decode() for record in records]
  assert len(names) == 10 and os.path.basename(name) not in names
  assert dataset.written_labels('train').tolist() == [
      record['image/class/label'][0] for record in records]


def error_lines_about(error, name):
  return sum(name in line for line in error.splitlines())


def test_a_stopped_run_goes_on_without_the_bad_image(capsys, dataset):
  spoil_an_image(dataset, b'not an image')
  assert builder.main(dataset.arguments('--workers', '1')) == 1
  dataset.build('--skip_bad_images')
  assert '2 of 6 shards are there' in capsys.readouterr().err
  assert len(dataset.records('train')) == 10


def test_full_verification_decodes(capsys, dataset, monkeypatch):
  """One that only decoding shows to be bad, found after a first build."""
  bad = encode(99, size=(8, 8))
  path = spoil_an_image(dataset, bad)

  def decode_image(data):
    if data == bad:
      raise ValueError('bad pixels')
  monkeypatch.setattr(record_shards, 'decode_image', decode_image)
  dataset.build()
  assert read_dataset_json(dataset)['verified'] == 'structure'
  capsys.readouterr()
  assert builder.main(dataset.arguments('--verify', 'full')) == 1
  assert path + ': not a whole image (bad pixels)' in capsys.readouterr().err
  dataset.build('--verify', 'full', '--skip_bad_images')
  content = read_dataset_json(dataset)
  assert content['verified'] == 'full'
  assert len(content['skipped_images']['train']) == 1
  assert content['num_images']['train'] == 10


def read_dataset_json(dataset):
  with open(os.path.join(dataset.output, 'dataset.json')) as dataset_file:
    return json.load(dataset_file)


def at_the_image(number, act):
  """Calls `act()` in a worker before it prepares its `number`-th image."""
  prepare_image, calls = record_shards.prepare_image, []

  def prepare_or_act(data):
    calls.append(data)
    if len(calls) == number:
      act()
    return prepare_image(data)
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


def test_killed_worker(capsys, dataset, monkeypatch):
  monkeypatch.setattr(record_shards, 'prepare_image', at_the_image(
      5, lambda: os.kill(os.getpid(), signal.SIGKILL)))
  assert builder.main(dataset.arguments('--workers', '1')) == 1
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'worker process was killed' in error
  check_stopped(dataset, 1)


def test_defects_keep_their_traceback_and_leave_no_file(dataset, monkeypatch):
  monkeypatch.setattr(
      record_shards, 'prepare_image', at_the_image(1, lambda: 1 / 0))
  with pytest.raises(RuntimeError) as error:
    builder.main(dataset.arguments('--workers', '1'))
  assert 'ZeroDivisionError' in str(error.value)
  assert 'prepare_or_act' in str(error.value)
  check_stopped(dataset, 0)


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
