"""Data folders: Imagenet/imagenet_data.py and shared_dataset.py."""

import json
import os

import pytest

from tf_compat import tf

import tiny_records
from imagenet_data import (
    count_records, count_split, find_shards, record_frames)
from shared_dataset import DatasetInfo, read_dataset
from refusals import refused


def touch(folder, *names):
  os.makedirs(folder, exist_ok=True)
  for name in names:
    open(os.path.join(folder, name), 'wb').close()


# ---- dataset.json ------------------------------------------------------------

def test_without_dataset_json_it_is_imagenet(tmpdir):
  assert read_dataset(str(tmpdir)) == DatasetInfo(
      1001, {'train': 1281167, 'validation': 50000})


def test_dataset_json_has_its_say(tmpdir):
  content = {'format_version': 1, 'num_classes': 3, 'synsets': ['n1'],
             'num_images': {'train': 4000, 'validation': 500}}
  tmpdir.join('dataset.json').write(json.dumps(content))
  expected = DatasetInfo(3, {'train': 4000, 'validation': 500})
  assert read_dataset(str(tmpdir)) == expected
  names = ['tench', 'great white shark']
  tmpdir.join('dataset.json').write(
      json.dumps(dict(content, class_names=names)))
  assert read_dataset(str(tmpdir)) == expected._replace(class_names=names)


@pytest.mark.parametrize('content', [
    '', '{"num_classes": 11, "num_images": {"train": 4}}',
    '{"num_classes": 3, "num_images": {"train": 4, "validation": 4}, '
    '"class_names": ["a"]}'])
def test_dataset_json_of_another_content_is_named(tmpdir, content):
  tmpdir.join('dataset.json').write(content)
  assert refused(read_dataset, str(tmpdir)).startswith(
      f'{tmpdir}/dataset.json: ')


# ---- Finding shards ----------------------------------------------------------

SHARDS = ['train-0000{}-of-00003'.format(i) for i in range(3)]


@pytest.mark.parametrize('subfolder', ['train', ''])
def test_shards_are_found_in_name_order(tmpdir, subfolder):
  folder = os.path.join(str(tmpdir), subfolder)
  touch(folder, SHARDS[2], SHARDS[0], SHARDS[1])
  # None of these is a shard of this split.
  touch(folder, 'train-00000-of-00004.unfinished', 'train-x-of-y', 'train',
        'validation-00000-of-00001', 'train-0-of-3', 'dataset.json')
  assert find_shards(str(tmpdir), 'train') == [
      os.path.join(folder, name) for name in SHARDS]


@pytest.mark.parametrize('names, named', [
    (None, '{0}'), (['validation-00000-of-00001'], '--data_dir {0}'),
    ([SHARDS[0], SHARDS[2]], '{0}/train-00001-of-00003'),
    (SHARDS + ['train-00000-of-00002'], '{0}/train-0000')])
def test_incomplete_sets_of_shards(tmpdir, names, named):
  folder = str(tmpdir.join('data'))
  if names:
    touch(folder, *names)
  assert refused(find_shards, folder, 'train').startswith(
      named.format(folder))


# ---- Counting records --------------------------------------------------------

def write_random_shards(folder, images_per_shard):
  records = [b'r' * (1 + 7919 * i % 301) for i in range(sum(images_per_shard))]
  return tiny_records.write_shards(
      str(folder), 'train', records, images_per_shard)


def test_counts_are_those_of_tensorflow(tmpdir):
  images_per_shard = [4, 0, 1, 17, 0, 0, 33] + [2] * 30 + [0]
  paths = write_random_shards(tmpdir, images_per_shard)
  assert count_records(paths) == images_per_shard
  assert images_per_shard == [
      sum(1 for _ in tf.python_io.tf_record_iterator(path)) for path in paths]


def test_a_damaged_shard_is_named_with_its_position(tmpdir):
  paths = write_random_shards(tmpdir, [3, 5, 4])
  third, _ = list(record_frames(paths[1]))[2]
  with open(paths[1], 'rb') as shard:
    content = shard.read()
  for damaged in (
      content[:third + 5],   # Cut in a header.
      content[:third + 20],  # Cut in the data.
      content[:third] + bytes(len(content) - third)):  # Filled up with zeros.
    with open(paths[1], 'wb') as shard:
      shard.write(damaged)
    message = refused(count_records, paths)
    assert paths[1] in message and f'byte {third:,} ' in message


# ---- A whole split -----------------------------------------------------------

def make_split(tmpdir, images_per_shard, more=None):
  records = [tiny_records.make_record(b'jpeg', 1, 'n.JPEG', more)
             for _ in range(sum(images_per_shard))]
  return tiny_records.write_shards(
      str(tmpdir.join('train')), 'train', records, images_per_shard)


def info(num_train):
  return DatasetInfo(11, {'train': num_train, 'validation': 4})


def test_a_count_that_disagrees_with_dataset_json(tmpdir):
  make_split(tmpdir, [3, 4])
  tmpdir.join('dataset.json').write('{}')
  assert '7 records where dataset.json says 1,008' in refused(
      count_split, str(tmpdir), 'train', info(1008))


def test_another_count_than_imagenets_is_said(tmpdir, capsys):
  paths = make_split(tmpdir, [3, 4])
  assert count_split(str(tmpdir), 'train', info(1281167)) == (
      paths, [3, 4])
  assert f"{tmpdir.join('train')}: 7 records" in capsys.readouterr().err


@pytest.mark.parametrize('missing', ['image/encoded', 'image/class/label'])
def test_records_of_other_features(tmpdir, missing):
  paths = make_split(tmpdir, [0, 2], {missing: None})
  message = refused(count_split, str(tmpdir), 'train', info(2))
  assert paths[1] in message and missing in message
