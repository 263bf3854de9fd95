"""Imagenet/shared_dumps.py: names, parts and shards of dumps."""

import itertools

import pytest

import shared_dumps
from dump_folders import classifier_file_names
from shared_dumps import DumpShard
from refusals import refused


def test_names_are_the_published_ones():
  assert classifier_file_names(2, 'validation') == [
      'clf2_all_probabilities.npy', 'clf2_top5_classes.npy',
      'clf2_top5_probabilities.npy']
  assert classifier_file_names(1, 'train') == [
      'clf1_train_1of3_all_probabilities.npy',
      'clf1_train_2of3_all_probabilities.npy',
      'clf1_train_3of3_all_probabilities.npy', 'clf1_train_top5_classes.npy',
      'clf1_train_top5_probabilities.npy']
  assert shared_dumps.labels_file_name('train') == 'train_non_onehot.npy'


@pytest.mark.parametrize('num_images, bounds', [
    (1281167, [(0, 400000), (400000, 800000), (800000, 1281167)]),
    (400001, [(0, 400000), (400000, 400001), (400001, 400001)])])
def test_bounds_of_training_parts(num_images, bounds):
  assert shared_dumps.part_bounds('train', num_images) == bounds
  assert shared_dumps.part_bounds('validation', num_images) == [(0, num_images)]


def test_dumps_are_found_by_name(tmp_path):
  assert shared_dumps.dumped_classifiers(str(tmp_path / 'missing')) == []
  for name in ('clf12_top5_classes.npy',
               'clf1_train_2of3_all_probabilities.shard-01-of-04.npy',
               # None of these is a dump.
               'clf0_top5_probabilities.npy', 'clf3_notes.npy', 'clf4.lock',
               'clf5_all_probabilities.npy.clf5.unfinished',
               'clf07_top5_classes.npy'):
    (tmp_path / name).touch()
  assert shared_dumps.dumped_classifiers(str(tmp_path)) == [1, 12]
  assert shared_dumps.holds_dump(str(tmp_path), 1, 'train')
  assert not shared_dumps.holds_dump(str(tmp_path), 1, 'validation')


@pytest.mark.parametrize('num_images, total, batch_size', itertools.product(
    (0, 7, 64, 65), (1, 3, 10), (1, 8)))
def test_shards_are_all_rows_once_in_whole_batches(
    num_images, total, batch_size):
  bounds = [shared_dumps.shard_rows(num_images, number, total, batch_size)
            for number in range(1, total + 1)]
  assert [start for start, _ in bounds] == [0] + [
      stop for _, stop in bounds[:-1]]
  assert bounds[-1][1] == num_images
  assert all(start % batch_size == 0 or start == num_images
             for start, _ in bounds)
  num_batches = [-(-(stop - start) // batch_size) for start, stop in bounds]
  assert max(num_batches) - min(num_batches) <= 1


def test_names_of_shards():
  name = 'clf0_train_1of3_all_probabilities.npy'
  of_shard = 'clf0_train_1of3_all_probabilities.shard-01-of-04.npy'
  assert shared_dumps.shard_file_name(name, DumpShard(1, 4)) == of_shard
  assert shared_dumps.split_shard_name(of_shard) == (name, (1, 4))
  for other in (name, of_shard + '.clf0.unfinished', 'shard-01-of-04.npy'):
    assert shared_dumps.split_shard_name(other) == (None, None)


def test_shards_from_the_command_line():
  assert shared_dumps.parse_shard(None) is None
  assert shared_dumps.parse_shard('3/12') == (3, 12)
  for text in ('', '0/4', '5/4'):
    assert '--dump_shard ' in refused(shared_dumps.parse_shard, text)
