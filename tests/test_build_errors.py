"""Archives to TFRecords: one line for whatever is wrong, nothing half-written."""

import collections
import os
import pickle
import resource
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest

import build_imagenet_tfrecords as builder
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
@pytest.mark.parametrize('content', [b'', b'<html>not found</html>' * 99])
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
  dataset.write('train.tar', tar_bytes([('n00000003.tar', b'oops' * 999)]))
  check_error(capsys, dataset, 'train.tar/n00000003.tar',
              'not an uncompressed tar')


@pytest.mark.parametrize('content', [b'', tar_bytes([])])
def test_synset_without_images(capsys, dataset, content):
  dataset.write('train.tar', tar_bytes([
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


@pytest.mark.parametrize('split', builder.SPLITS)
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


def test_disk_with_too_little_space(capsys, dataset, monkeypatch):
  usage = collections.namedtuple('usage', 'total used free')
  monkeypatch.setattr(
      builder.shutil, 'disk_usage', lambda path: usage(10**9, 0, 1000))
  check_error(capsys, dataset, '--output_dir', '0 MB are free')


def test_space_of_shards_to_be_replaced_counts_as_free(dataset, monkeypatch):
  dataset.build()
  usage = collections.namedtuple('usage', 'total used free')
  monkeypatch.setattr(
      builder.shutil, 'disk_usage', lambda path: usage(10**9, 0, 8000))
  dataset.build()


def test_without_tensorflow(capsys, dataset, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  check_error(capsys, dataset, 'TensorFlow is needed')


# Errors amid the work.


def check_stopped(dataset, num_whole_shards):
  """After a stop: whole shards only, nothing that says the set is complete."""
  assert len(dataset.shards('train')) == num_whole_shards
  assert dataset.shards('validation') == []
  assert sorted(os.listdir(dataset.output)) == ['train', 'validation']
  assert not os.path.exists(dataset.path('train_non_onehot.npy'))
  if num_whole_shards:
    assert len(dataset.records('train')) == 3 * num_whole_shards


@pytest.mark.parametrize('data', [
    b'', b'not an image', encode(0)[:-2], encode(0)[:40],
    encode(0, file_format='PNG')[:-40]])
def test_unreadable_image_is_named(capsys, dataset, data):
  # The first image of the last synset is the 8th record: in the third shard.
  name = dataset.train[SYNSETS[2]][0][0]
  dataset.train[SYNSETS[2]][0] = (name, data)
  assert builder.main(dataset.save().arguments()) == 1
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'Traceback' not in error
  assert '{}/{}.tar/{}: '.format(
      dataset.path('train.tar'), SYNSETS[2], name) in error
  check_stopped(dataset, 2)


@pytest.mark.parametrize('stop', [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run(capsys, dataset, monkeypatch, stop):
  make_example, calls = builder.make_example, []

  def make_or_stop(*arguments):
    calls.append(arguments)
    if len(calls) == 5:
      os.kill(os.getpid(), stop)
    return make_example(*arguments)

  monkeypatch.setattr(builder, 'make_example', make_or_stop)
  assert builder.main(dataset.arguments()) == 130
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'interrupted' in error
  check_stopped(dataset, 1)


def test_failed_rerun_takes_back_the_old_claim(dataset):
  dataset.build()
  dataset.train[SYNSETS[0]][0] = (dataset.train[SYNSETS[0]][0][0], b'')
  assert builder.main(dataset.save().arguments()) == 1
  assert not os.path.exists(os.path.join(dataset.output, 'dataset.json'))


def test_defects_keep_their_traceback_and_leave_no_file(dataset, monkeypatch):
  monkeypatch.setattr(builder, 'make_example', lambda *arguments: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    builder.main(dataset.arguments())
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
