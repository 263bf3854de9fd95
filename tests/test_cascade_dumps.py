"""cascade/dumps.py: folders of dumps, of this project and as published."""

import json
import os
import pickle

import numpy as np
import pytest

import dump_names
from cascade import UserError, dumps
from dump_folders import (best_classes, cut_into_shards, publish,
                          random_softmaxes, write_split)

NUM_IMAGES, NUM_CLASSES = 30, 8


@pytest.fixture
def three_parts(monkeypatch):
  """Training dumps come in parts of 12, 5 and the remaining rows."""
  monkeypatch.setattr(dump_names, 'TRAIN_PART_STARTS', (0, 12, 17))


@pytest.fixture
def folder(tmp_path, three_parts):
  """A folder of classifier 1 over both splits, and its labels."""
  for seed, split in enumerate(dump_names.SPLITS):
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


@pytest.mark.parametrize('split', dump_names.SPLITS)
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
  for rows, block in dump.blocks(max_rows=max_rows):
    assert rows.start == next_row
    assert 0 < rows.stop - rows.start <= max_rows
    assert not any(rows.start < end < rows.stop for end in part_ends)
    assert block.dtype == np.float32 and block.dtype.isnative
    assert (block == expected[rows]).all()
    next_row = rows.stop
  assert next_row == NUM_IMAGES
  assert dump.top5_classes.dtype == np.int32
  assert (dump.top5_classes == best_classes(expected)).all()


def test_big_endian_blocks_are_made_native(folder):
  edit(folder / 'clf1_all_probabilities.npy', lambda array: array.astype('>f4'))
  (_, block), = opened(folder, 'validation').blocks()
  assert block.dtype.isnative
  assert (block == split_softmaxes('validation')).all()


def test_opening_reads_few_rows_and_maps_the_rest(tmp_path):
  """1.2 GB of softmaxes, nearly all of them a hole in the file."""
  resource = pytest.importorskip('resource')
  num_images, num_classes = 300000, 1001
  small = np.ones((100, num_classes), np.float32)
  head, tail = pickle.dumps(small, 3).split(small.tobytes())
  assert head.endswith((small.nbytes).to_bytes(4, 'little'))
  with open(str(tmp_path / 'clf1_all_probabilities.npy'), 'wb') as stream:
    stream.write(head[:-4].replace(
        b'Kd', b'J' + num_images.to_bytes(4, 'little')))
    num_bytes = num_images * num_classes * 4
    stream.write(num_bytes.to_bytes(4, 'little'))
    stream.seek(num_bytes, os.SEEK_CUR)
    stream.write(tail)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  dump = opened(tmp_path, 'validation')
  rows, block = next(dump.blocks())
  assert (dump.num_images, dump.num_classes) == (num_images, num_classes)
  assert block.shape == (dumps.BLOCK_ROWS, num_classes)
  kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert kilobytes < 200000


def test_a_top5_file_alone_is_enough(folder):
  """Its last rows were never filled."""
  edit(folder / TRAIN_TOP5, set_item(slice(-2, None), 0))
  edit(folder / TRAIN_TOP5_PROBABILITIES, set_item(slice(-2, None), 0))
  for part in range(1, 4):
    (folder / f'clf1_train_{part}of3_all_probabilities.npy').unlink()
  dump = opened(folder)
  assert dump.num_images == NUM_IMAGES
  assert dump.num_classes is None
  assert list(dump.blocks()) == []
  assert np.flatnonzero(dumps.unfilled_top5(dump.top5_classes)).tolist() == [
      28, 29]


@pytest.mark.parametrize('num_classes', [1, 2, 4])
def test_fewer_classes_than_five(tmp_path, num_classes):
  softmaxes = random_softmaxes(0, 6, num_classes)
  write_split(tmp_path, 'validation', np.zeros(6), {1: softmaxes})
  dump = opened(tmp_path, 'validation')
  assert dump.top5_classes.shape == (6, num_classes)
  assert not dumps.unfilled_top5(dump.top5_classes).any()


# What is wrong with a folder.

TRAIN_2OF3 = 'clf1_train_2of3_all_probabilities.npy'
TRAIN_3OF3 = 'clf1_train_3of3_all_probabilities.npy'
TRAIN_TOP5 = 'clf1_train_top5_classes.npy'
TRAIN_TOP5_PROBABILITIES = 'clf1_train_top5_probabilities.npy'


@pytest.mark.parametrize('name,change,message', [
    (TRAIN_2OF3, lambda array: array.astype(np.float64), 'float64'),
    (TRAIN_2OF3, lambda array: array[0], r'float32 \(8,\)'),
    (TRAIN_2OF3, lambda array: array[:, 1:], '7 classes, and .* has 8'),
    (TRAIN_2OF3, set_item((3, 5), np.nan), 'row 3 holds NaN'),
    (TRAIN_2OF3, lambda array: array[::-1], 'largest softmaxes'),
    (TRAIN_TOP5, lambda array: array.astype(np.float32), 'float32'),
    (TRAIN_TOP5, lambda array: array[:, :4], r'\(30, 4\).* \(30, 5\)'),
    (TRAIN_TOP5, lambda array: array[:-1], r'\(29, 5\).* \(30, 5\)'),
    (TRAIN_TOP5, set_item((13, 2), 8), 'row 13 holds 8, beyond the 8'),
    (TRAIN_TOP5, lambda array: array[:, ::-1], 'row 0 .* best first'),
    (TRAIN_TOP5, set_item(14, 0), 'row 14 .* row 2 of .*_2of3_'),
    (TRAIN_3OF3, lambda array: array[:-1], r'\(30, 5\).* \(29, 5\)'),
    (TRAIN_3OF3, lambda array: array * 1.02, 'row 0 sums up to 1.02'),
    (TRAIN_TOP5_PROBABILITIES, lambda array: array.astype(np.float64),
     r'float64 \(30, 5\), .* float32 \(30, 5\)'),
    (TRAIN_TOP5_PROBABILITIES, set_item((8, 1), np.nan), 'row 8 is .*nan'),
    (TRAIN_TOP5_PROBABILITIES, set_item((8, 0), 1.5), r'row 8 is \[1.5, '),
    (TRAIN_TOP5_PROBABILITIES, lambda array: array[:, ::-1], 'row 0 is '),
    (TRAIN_TOP5_PROBABILITIES, set_item((13, 4), 0),
     'row 13 of the top-5 files .* row 1 of .*_2of3_'),
])
def test_files_that_are_wrong_or_disagree(folder, name, change, message):
  edit(folder / name, change)
  with pytest.raises(UserError, match=message) as caught:
    opened(folder)
  assert '\n' not in str(caught.value)
  assert str(folder) in str(caught.value)


def test_nan_beyond_the_checked_rows_is_found_when_it_is_read(
    folder, monkeypatch):
  monkeypatch.setattr(dumps, 'CHECKED_ROWS', 2)
  edit(folder / TRAIN_3OF3, set_item((7, 0), np.inf))
  dump = opened(folder)
  with pytest.raises(UserError, match=TRAIN_3OF3 + ': row 7 holds NaN'):
    list(dump.blocks(max_rows=3))


@pytest.mark.parametrize('missing', [TRAIN_2OF3, 'all'])
def test_missing_probabilities_are_named_with_their_step(folder, missing):
  if missing == 'all':
    for path in folder.glob('clf1_train_*'):
      path.unlink()
    missing = 'clf1_train_1of3_all_probabilities.npy'
  else:
    (folder / missing).unlink()
  with pytest.raises(
      UserError, match=missing + ': .*step 3, --classifier_id 1'):
    opened(folder)


def test_a_damaged_top5_file_without_softmaxes(folder):
  """Its class is beyond those of the other dumps."""
  validation = opened(folder, 'validation')
  for part in range(1, 4):
    (folder / f'clf1_train_{part}of3_all_probabilities.npy').unlink()
  edit(folder / TRAIN_TOP5, set_item((7, 0), 5000))
  with pytest.raises(UserError, match=TRAIN_TOP5 + ': row 7 holds 5000, beyond '
                     'the 8'):
    dumps.num_classes_of([validation, opened(folder)])


def test_find_classifiers(folder):
  assert dumps.find_classifiers(str(folder)) == [1]
  np.save(str(folder / 'clf2_train_top5_classes.npy'), np.zeros((1, 5), int))
  np.save(str(folder / 'clf0_all_probabilities.npy'), np.zeros((1, 5), 'f4'))
  assert dumps.find_classifiers(str(folder)) == [0, 1, 2]


# cascade.json.


@pytest.mark.parametrize('exits', [[], [{'classifier_id': 0}], 5])
def test_dumps_that_are_being_replaced_are_refused(folder, exits):
  """Of another network in the train split than in the validation split."""
  record = folder / 'cascade.json'
  record.write_text(json.dumps({'format_version': 1, 'exits': exits}))
  with pytest.raises(UserError, match='does not list classifier 1, .*dump them '
                     'again .step 3, --classifier_id 1'):
    dumps.find_classifiers(str(folder))
  record.write_text(json.dumps({'exits': [{'classifier_id': 1}]}))
  assert dumps.find_classifiers(str(folder)) == [1]


# Shards.


SHARDS = '.shard-0{}-of-04.npy'


@pytest.fixture
def shards(folder):
  cut_into_shards(folder, 4, 3)
  return folder


def test_shards_are_read_as_one(shards):
  assert dumps.find_classifiers(str(shards)) == [1]
  for split in dump_names.SPLITS:
    dump = opened(shards, split)
    softmaxes = split_softmaxes(split)
    assert (dump.num_images, dump.num_classes) == softmaxes.shape
    for rows, block in dump.blocks(max_rows=4):
      assert (block == softmaxes[rows]).all()
    assert (dump.top5_classes == best_classes(softmaxes)).all()
    labels = dumps.read_labels(None, str(shards), split)
    assert (labels.classes == split_labels(split)).all()


def refused(folder):
  with pytest.raises(UserError) as error:
    for split in dump_names.SPLITS:
      dumps.read_labels(None, str(folder), split)
      opened(folder, split)
  message = str(error.value)
  assert '\n' not in message and message.startswith(str(folder))
  return message[len(str(folder)) + 1:]


@pytest.mark.parametrize('name', [
    'train_non_onehot', 'clf1_train_2of3_all_probabilities',
    'clf1_top5_probabilities'])
def test_sets_of_shards_that_are_not_complete(shards, name):
  first, third = [shards / (name + SHARDS.format(i)) for i in (1, 3)]
  content = third.read_bytes()
  third.unlink()
  assert refused(shards).startswith(
      f'{third.name}: no such file, and the set of 4 shards must be complete')
  third.write_bytes(content)
  for addition in ('02-of-4', '05-of-04', '00-of-04', '01-of-02'):
    surplus = shards / f'{name}.shard-{addition}.npy'
    surplus.write_bytes(first.read_bytes())
    assert refused(shards).startswith(f'{surplus.name}: does not belong')
    surplus.unlink()
  for change in (lambda array: array[1:], lambda array: array[:, np.newaxis],
                 lambda array: array.astype(np.float16)):
    edit(third, change)
    refused(shards)
    third.write_bytes(content)
  (shards / f'{name}.npy').write_bytes(content)
  if name != 'train_non_onehot':  # Labels may lie there in both forms.
    assert 'the whole file and also shards' in refused(shards)


def test_parts_in_different_numbers_of_shards(shards):
  for path in shards.glob('clf1_train_3of3_all_*'):
    path.unlink()
  np.save(str(shards / TRAIN_3OF3), split_softmaxes('train')[17:])
  assert 'remove what belongs to the other pass' in refused(shards)


# Labels.


def test_labels_of_either_folder(label_folders):
  dataset, beside = label_folders
  for folder, path in ((beside, beside), (dataset, dataset)):
    save_labels(folder, [3, 1])
    labels = read_labels(dataset, beside)
    assert labels.classes.tolist() == [3, 1]
    assert labels.path == str(path / 'train_non_onehot.npy')


@pytest.fixture
def label_folders(tmp_path):
  for name in ('dataset', 'dumps'):
    (tmp_path / name).mkdir()
  return tmp_path / 'dataset', tmp_path / 'dumps'


def save_labels(folder, labels):
  np.save(str(folder / 'train_non_onehot.npy'), np.array(labels, np.int32))


def read_labels(*folders):
  return dumps.read_labels(*([str(folder) for folder in folders] + ['train']))


@pytest.mark.parametrize('others,message', [
    ([3, 1, 4, 2, 5], 'row 3 is 1 and 2'), ([3, 1, 4], '5 and 3 rows')])
def test_labels_that_disagree(label_folders, others, message):
  dataset, beside = label_folders
  save_labels(dataset, [3, 1, 4, 1, 6])
  save_labels(beside, others)
  with pytest.raises(UserError, match=message) as caught:
    read_labels(dataset, beside)
  for folder in label_folders:
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize('labels,message', [
    (np.zeros(3, np.float32), r'float32 \(3,\)'),
    (np.zeros((3, 1), np.int32), r'int32 \(3, 1\)'),
    (np.array([1, 2, -3], np.int32), 'row 2 holds -3'),
    (np.array([1, 2**63 + 1], np.uint64), 'row 1 holds 9223'),
])
def test_labels_that_are_no_classes(label_folders, labels, message):
  np.save(str(label_folders[0] / 'train_non_onehot.npy'), labels)
  with pytest.raises(UserError, match='train_non_onehot.npy: .*' + message):
    read_labels(*label_folders)


def test_labels_that_do_not_fit_the_dump(folder):
  dump = opened(folder)
  labels = read_labels(folder, folder)
  dump.check_labels(labels)
  with pytest.raises(UserError, match='29 labels, .* 30 rows'):
    dump.check_labels(labels._replace(classes=labels.classes[:-1]))
  classes = labels.classes.copy()
  classes[4] = NUM_CLASSES
  with pytest.raises(UserError, match='row 4 holds 8, beyond the 8 classes'):
    dump.check_labels(labels._replace(classes=classes))
