"""The check of a folder of records: whoever made it, whatever befell it."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import tiny_records
import verify_records
from tiny_archives import dataset  # pylint: disable=unused-import


def check_error(capsys, folder, *words):
  """Fails with `words` in its last line; gives the lines before it."""
  capsys.readouterr()
  assert verify_records.main([str(folder)]) == 1
  output = capsys.readouterr()
  *damages, error = output.err.splitlines()
  assert output.out == '' and 'Traceback' not in output.err
  for word in words:
    assert word in error, output.err
  return damages


@pytest.mark.parametrize('options', [
    [], ['--verify', 'full'], ['--workers', '1']])
def test_records_of_the_builder(capsys, dataset, options):
  dataset.build()
  capsys.readouterr()
  assert verify_records.main([dataset.output] + options) == 0
  assert capsys.readouterr().out == (
      'train: 11 records of 3 classes in 4 shards are sound, and as '
      'dataset.json describes them\n'
      'validation: 5 records of 3 classes in 2 shards are sound, and as '
      'dataset.json describes them\n')


def make_others(tmp_path):
  """Records as another program writes them, by TensorFlow."""
  tiny_records.make_data_set(
      str(tmp_path), {'train': [3, 4], 'validation': [2]}, 11)
  return tmp_path


def test_records_of_others(capsys, tmp_path):
  make_others(tmp_path)
  assert verify_records.main([str(tmp_path)]) == 0
  assert capsys.readouterr().out.splitlines() == [
      'train: 7 records of 7 classes in 2 shards are sound',
      'validation: 2 records of 2 classes in 1 shards are sound']
  # Without dataset.json and in one folder, as the official scripts have it.
  os.remove(str(tmp_path / 'dataset.json'))
  for split in ('train', 'validation'):
    for path in sorted((tmp_path / split).iterdir()):
      path.rename(tmp_path / path.name)
    (tmp_path / split).rmdir()
  assert verify_records.main([str(tmp_path)]) == 0
  assert 'train: 7 records' in capsys.readouterr().out


def test_one_split_alone(capsys, tmp_path):
  shutil.rmtree(str(make_others(tmp_path) / 'train'))
  assert verify_records.main([str(tmp_path)]) == 0
  assert capsys.readouterr().out.startswith('validation: 2 records')


def test_all_damage_is_listed(capsys, dataset):
  dataset.build()
  shards = dataset.shards('train')
  with open(shards[3], 'r+b') as shard:
    shard.seek(100)
    shard.write(b'x')
  os.truncate(shards[0], os.path.getsize(shards[0]) - 4)
  os.remove(shards[1])
  shutil.copy(shards[2], shards[1])  # Whole, but the wrong one.
  damages = check_error(
      capsys, dataset.output, dataset.output, '3 of 6 shards')
  assert len(damages) == 3
  for damage, path, words in zip(damages, (shards[0], shards[1], shards[3]), (
      'truncated or corrupt at record 2 ', 'its SHA-256 differs',
      'truncated or corrupt at record 0 (byte 0 of')):
    assert path in damage and words in damage


def test_shard_that_ends_between_records(capsys, dataset):
  """As TensorFlow's readers do not see."""
  dataset.build()
  shard = dataset.shards('train')[0]
  os.truncate(shard, 0)
  damage, = check_error(capsys, dataset.output, '1 of 6')
  assert shard in damage


def test_missing_shard(capsys, dataset):
  dataset.build()
  shard = dataset.shards('validation')[1]
  os.remove(shard)
  check_error(capsys, dataset.output, shard + ': missing')


def test_missing_split(capsys, dataset):
  dataset.build()
  shutil.rmtree(os.path.join(dataset.output, 'validation'))
  check_error(capsys, dataset.output, 'validation-00000-of-00002: missing')


def test_shard_of_another_set(capsys, tmp_path):
  make_others(tmp_path)
  shutil.copy(str(tmp_path / 'train' / 'train-00000-of-00002'),
              str(tmp_path / 'train' / 'train-00000-of-00003'))
  check_error(capsys, tmp_path, 'train-00000-of-00003', 'another set')


def test_labels_beyond_the_classes(capsys, tmp_path):
  make_others(tmp_path)
  with open(str(tmp_path / 'dataset.json')) as dataset_file:
    content = json.load(dataset_file)
  content['num_classes'] = 5
  with open(str(tmp_path / 'dataset.json'), 'w') as dataset_file:
    json.dump(content, dataset_file)
  damages = check_error(capsys, tmp_path, '2 of 3 shards')
  assert 'train-00001-of-00002: record 1: label 5 is out of range' in damages[0]
  assert 'record 0: label 8 is out of range' in damages[1]


def test_counts_of_classes(capsys, dataset):
  dataset.build()
  path = os.path.join(dataset.output, 'dataset.json')
  with open(path) as dataset_file:
    content = json.load(dataset_file)
  content['class_counts']['train'] = [5, 3, 3]
  with open(path, 'w') as dataset_file:
    json.dump(content, dataset_file)
  capsys.readouterr()
  assert verify_records.main([dataset.output]) == 1
  assert 'not as many of each class' in capsys.readouterr().err


@pytest.mark.parametrize('content', [
    '', '[]', '{}', '{"num_classes": "x"}', '{"num_classes": 5, "shards": []}',
    '{"num_classes": 5, "shards": {"train": [1]}}',
    '{"num_classes": 5, "shards": {"train": {"a": {"records": 4}}}}',
    '{"num_classes": 5, "shards": {"other": {}}}',
    '{"num_classes": 5, "class_counts": {"train": "x"}}'])
def test_damaged_description(capsys, tmp_path, content):
  make_others(tmp_path)
  (tmp_path / 'dataset.json').write_text(content)
  check_error(capsys, tmp_path, str(tmp_path / 'dataset.json'))


def test_wrong_arguments(capsys, tmp_path):
  check_error(capsys, tmp_path / 'none', 'none: no such folder')
  check_error(capsys, tmp_path, 'no records')
  for arguments, word in (([], 'DIR'), (['x', '--workers', '0'], '--workers'),
                          (['x', '--verify', 'some'], '--verify')):
    assert verify_records.main(arguments) == 1
    error = capsys.readouterr().err
    assert word in error and error.count('\n') == 1


def test_help():
  help_text = subprocess.check_output(
      [sys.executable, verify_records.__file__, '--help']).decode()
  assert '144 GB' in help_text and '--verify' in help_text
