"""Archives to TFRecords: a line for whatever is wrong, nothing half-written.
"""

import collections
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

import build_imagenet_tfrecords as builder
import record_folder
from tiny_archives import (  # pylint: disable=unused-import
    SYNSETS, Dataset, check_error, dataset, encode, tar_bytes)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = os.path.join(ROOT, 'Imagenet_tools', 'build_imagenet_tfrecords.py')

# Errors before the work.


@pytest.mark.parametrize('arguments, words', [
    (['--train_shards', '0'], '--train_shards 0'),
    (['--image_folder', '/nowhere'], '--image_folder /nowhere'),
    (['--shard_size_rule', 'published', '--validation_shards', '9'],
     '--validation_shards'),
    (['--train_archive', '/no\nwhere/train.tar'], '/no where/train.tar'),
    (['--output_dir', '/proc/tf_records'], '/proc'),
])
def test_wrong_arguments(capsys, dataset, arguments, words):
  check_error(capsys, dataset, words, arguments=arguments)


@pytest.mark.parametrize('name, content, words', [
    ('train.tar', b'<html>not found</html>' * 99, 'train.tar: '),
    ('train.tar', tar_bytes([('a.JPEG', b'')]), 'train.tar/a.JPEG: '),
    ('train.tar', tar_bytes([(f'{synset}.tar', b'oops' * 999)
                             for synset in SYNSETS]),
     'train.tar/n00000003.tar: '),
    ('labels.txt', b'\xff\xfe\x00', 'labels.txt: ')])
def test_sources_that_are_refused(capsys, dataset, name, content, words):
  dataset.write(name, content)
  check_error(capsys, dataset, words)


def test_shards_of_others_are_kept(capsys, dataset):
  os.makedirs(dataset.path('tf_records', 'validation'))
  shard = 'tf_records/validation/validation-00000-of-00002'
  dataset.write(shard, b'mine')
  check_error(capsys, dataset, shard, 'another program')


def test_another_build_in_the_same_folder(capsys, dataset):
  dataset.build()
  check_error(capsys, dataset, dataset.output, 'seed',
              arguments=['--seed', '1'])
  dataset.write('labels.txt', '\n'.join(dataset.labels[::-1]).encode())
  check_error(capsys, dataset, dataset.output, 'images')


def test_a_second_run_is_refused(capsys, dataset):
  folder = record_folder.RecordFolder(dataset.output, None)
  with folder.opened():
    check_error(capsys, dataset, dataset.output, 'another run')
  dataset.build()


def test_label_file_of_others_is_kept(capsys, dataset):
  content = pickle.dumps(np.zeros(5, np.int32), 2)  # As published.
  dataset.write('validation_non_onehot.npy', content)
  check_error(capsys, dataset, 'validation_non_onehot.npy', '--labels_dir')
  with open(dataset.path('validation_non_onehot.npy'), 'rb') as labels_file:
    assert labels_file.read() == content


def test_disk_with_too_little_space(capsys, dataset, monkeypatch):
  usage = collections.namedtuple('usage', 'total used free')
  monkeypatch.setattr(
      shutil, 'disk_usage', lambda path: usage(10**9, 0, 1000))
  check_error(capsys, dataset, '--output_dir', '0 MB are free')


# Errors amid the work.


@pytest.mark.parametrize('data', [b'not an image', encode(0)[:-2]], ids=len)
def test_bad_image_stops_or_is_left_out(capsys, dataset, data):
  # The 8th record of the training images, in the third shard.
  name = dataset.train[SYNSETS[2]][0][0]
  dataset.train[SYNSETS[2]][0] = (name, data)
  dataset.save()
  assert builder.main(dataset.arguments('--workers', '1')) == 1
  error = capsys.readouterr().err
  image = f'{SYNSETS[2]}.tar/{name}'
  assert error.count('\n') == 1
  assert f"{dataset.path('train.tar')}/{image}: " in error
  # Whole shards only, and nothing that says the set is complete.
  assert len(dataset.shards('train')) <= 2
  assert not os.path.exists(os.path.join(dataset.output, 'dataset.json'))
  assert not os.path.exists(dataset.path('train_non_onehot.npy'))

  dataset.build('--skip_bad_images', '--workers', '3')
  output = capsys.readouterr()
  assert image in output.err
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
  assert run.returncode == 1 and 'Traceback' not in error
  assert 'train-0000' in error.splitlines()[-1]
  assert not os.path.exists(os.path.join(dataset.output, 'dataset.json'))
  # With space, the rest is written.
  dataset.build()
  assert len(dataset.records('train')) == 11
