"""cascade/dumps.py: folders of dumps, of this project and as published."""

import json
import os

import numpy as np
import pytest

import shared_dumps
from cascade import dumps
from dump_folders import (best_classes, cut_into_shards, publish,
                          random_softmaxes, write_split)
from refusals import refused

NUM_IMAGES, NUM_CLASSES = 30, 8


@pytest.fixture
def three_parts(monkeypatch):
  """Training dumps come in parts of 12, 5 and the remaining rows."""
  monkeypatch.setattr(shared_dumps, 'TRAIN_PART_STARTS', (0, 12, 17))


@pytest.fixture
def folder(tmp_path, three_parts):
  """A folder of classifier 1 over both splits, and its labels."""
  for seed, split in enumerate(shared_dumps.SPLITS):
    write_split(tmp_path, split, split_labels(split),
                {1: split_softmaxes(split)})
  return tmp_path


def split_softmaxes(split):
  return random_softmaxes(len(split), NUM_IMAGES, NUM_CLASSES)


def split_labels(split):
  return np.random.RandomState(len(split)).randint(
      0, NUM_CLASSES, NUM_IMAGES).astype(np.int32)


def opened(folder, split='train'):
  return dumps.ClassifierDump(str(folder), 1, split)


def edit(path, change):
  """Replaces the array in `path` by what `change` makes of it."""
  array = np.load(str(path))
  changed = change(array)
  np.save(str(path), array if changed is None else changed)


def set_item(index, value):
  return lambda array: array.__setitem__(index, value)


# Reading across the parts.


@pytest.mark.parametrize('split', shared_dumps.SPLITS)
@pytest.mark.parametrize('published_protocol', [None, 0, 3])
@pytest.mark.parametrize('max_rows', [4, 100])
def test_blocks_give_every_row_once_in_order(
    folder, split, published_protocol, max_rows):
  if published_protocol is not None:
    publish(folder, folder, published_protocol)
  dump = opened(folder, split)
  assert (dump.num_images, dump.num_classes) == (NUM_IMAGES, NUM_CLASSES)
  expected, next_row = split_softmaxes(split), 0
  part_ends = [12, 17, 30] if split == 'train' else [30]
  for rows, block in dump.blocks(0, NUM_IMAGES, max_rows):
    assert rows.start == next_row
    assert 0 < rows.stop - rows.start <= max_rows
    assert not any(rows.start < end < rows.stop for end in part_ends)
    assert block.dtype == np.float32 and block.dtype.isnative
    assert (block == expected[rows]).all()
    next_row = rows.stop
  assert next_row == NUM_IMAGES
  assert dump.top5_classes.dtype == np.int32
  assert (dump.top5_classes == best_classes(expected)).all()


def test_a_top5_file_alone_is_enough(folder):
  """Its last rows were never filled."""
  edit(folder / TRAIN_TOP5, set_item(slice(-2, None), 0))
  edit(folder / TRAIN_TOP5_PROBABILITIES, set_item(slice(-2, None), 0))
  for part in range(1, 4):
    (folder / f'clf1_train_{part}of3_all_probabilities.npy').unlink()
  dump = opened(folder)
  assert dump.num_images == NUM_IMAGES
  assert dump.num_classes is None
  assert list(dump.blocks(0, NUM_IMAGES)) == []
  assert np.flatnonzero(dumps.unfilled_top5(dump.top5_classes)).tolist() == [
      28, 29]


# What is wrong with a folder.

TRAIN_2OF3 = 'clf1_train_2of3_all_probabilities.npy'
TRAIN_TOP5 = 'clf1_train_top5_classes.npy'
TRAIN_TOP5_PROBABILITIES = 'clf1_train_top5_probabilities.npy'


@pytest.mark.parametrize('name,change,message', [
    (TRAIN_2OF3, lambda array: array[:, 1:], '(5, 7)'),
    (TRAIN_2OF3, set_item((3, 5), np.nan), 'row 3 '),
    (TRAIN_TOP5, lambda array: array[:, ::-1], 'row 0 '),
    (TRAIN_TOP5_PROBABILITIES, set_item((13, 4), 0), 'row 13 ')])
def test_files_that_are_wrong_or_disagree(folder, name, change, message):
  edit(folder / name, change)
  found = refused(opened, folder)
  assert message in found and str(folder) in found


def test_missing_probabilities_are_named_with_their_step(folder):
  (folder / TRAIN_2OF3).unlink()
  message = refused(opened, folder)
  assert TRAIN_2OF3 in message and 'step 3' in message


# cascade.json.


def test_dumps_that_are_being_replaced_are_refused(folder):
  """Of another network in the train split than in the validation split."""
  def write(*classifier_ids):
    (folder / 'cascade.json').write_text(json.dumps({
        'plain_network_macs': 9, 'exits': [
            {'classifier_id': k, 'trunk_macs': 5, 'head_macs': 1}
            for k in classifier_ids]}))

  write(0)
  assert 'classifier 1' in refused(dumps.find_classifiers, str(folder))
  write(1)
  assert dumps.find_classifiers(str(folder)) == [1]


# Shards.

def test_sets_of_shards_that_are_not_complete(folder):
  cut_into_shards(folder, 4, 3)
  name = 'clf1_train_2of3_all_probabilities'
  first, third = [folder / f'{name}.shard-0{i}-of-04.npy' for i in (1, 3)]
  content = third.read_bytes()
  third.unlink()
  assert refused(opened, folder).startswith(f'{third}: ')
  third.write_bytes(content)
  surplus = folder / f'{name}.shard-01-of-02.npy'
  surplus.write_bytes(first.read_bytes())
  assert 'of one pass' in refused(opened, folder)
  surplus.unlink()
  (folder / f'{name}.npy').write_bytes(content)
  assert f'{name}.npy' in refused(opened, folder)


# Labels.


@pytest.mark.parametrize('others', [[3, 1, 4, 2, 5], [3, 1, 4]])
def test_labels_that_disagree(tmp_path, others):
  folders = [str(tmp_path / name) for name in ('dataset', 'dumps')]
  for folder, labels in zip(folders, ([3, 1, 4, 1, 6], others)):
    os.mkdir(folder)
    np.save(folder + '/train_non_onehot.npy', np.array(labels, np.int32))
  message = refused(dumps.read_labels, *folders, 'train')
  assert all(folder in message for folder in folders)


@pytest.mark.parametrize('labels, message', [
    (np.zeros(3, np.float32), 'float32'), (np.array([1, 2, -3]), 'row 2 ')])
def test_labels_that_are_no_classes(tmp_path, labels, message):
  np.save(str(tmp_path / 'train_non_onehot.npy'), labels)
  found = refused(dumps.read_labels, str(tmp_path), str(tmp_path), 'train')
  assert 'train_non_onehot.npy: ' in found and message in found


def test_labels_that_do_not_fit_the_dump(folder):
  dump = opened(folder)
  labels = dumps.read_labels(str(folder), str(folder), 'train')
  dump.check_labels(labels)
  assert '29 labels' in refused(
      dump.check_labels, labels._replace(classes=labels.classes[:-1]))
  classes = labels.classes.copy()
  classes[4] = NUM_CLASSES
  assert 'row 4 ' in refused(
      dump.check_labels, labels._replace(classes=classes))
