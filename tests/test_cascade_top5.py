"""cascade/top5.py: one pass through the softmaxes."""

import numpy as np
import pytest

import shared_dumps
from cascade import dumps, top5
from cascade.predictions import classifier_predictions
from dump_folders import (
    best_classes, cut_into_shards, publish, random_softmaxes, write_split)
from refusals import refused

NUM_IMAGES, NUM_CLASSES = 50, 30


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
  """Several parts, tasks that end within them, and blocks within these."""
  monkeypatch.setattr(shared_dumps, 'TRAIN_PART_STARTS', (0, 12, 17))
  monkeypatch.setattr(top5, '_ROWS_PER_TASK', 7)
  monkeypatch.setattr(dumps.ClassifierDump.blocks, '__defaults__', (3,))


@pytest.fixture
def softmaxes():
  return random_softmaxes(1, NUM_IMAGES, NUM_CLASSES)


@pytest.fixture
def folder(tmp_path, softmaxes):
  write_split(tmp_path, 'train', np.zeros(NUM_IMAGES, np.int32),
              {0: softmaxes})
  return tmp_path


def opened(folder):
  return dumps.ClassifierDump(str(folder), 0, 'train')


def remove(folder, pattern):
  for path in folder.glob(pattern):
    path.unlink()


def refuse_to_read(monkeypatch):
  """More than the few rows that are compared with the top-5 files."""
  def refuse(*_):
    raise AssertionError('softmaxes were read')
  monkeypatch.setattr(top5, '_read_softmaxes', refuse)


def check_is_top5_of(read, softmaxes):
  classes = best_classes(softmaxes)
  assert (read.classes == classes).all()
  assert (read.probabilities ==
          np.take_along_axis(softmaxes, classes, axis=1)).all()


@pytest.mark.parametrize('protocol', [None, 3])
def test_every_row_is_read_once(folder, softmaxes, protocol):
  if protocol is None:
    remove(folder, '*top5*')
  else:
    publish(folder, folder, protocol)
  check_is_top5_of(top5.read_top5(opened(folder)), softmaxes)


def test_with_top5_files_the_softmaxes_are_not_read(
    folder, softmaxes, monkeypatch):
  refuse_to_read(monkeypatch)
  check_is_top5_of(top5.read_top5(opened(folder)), softmaxes)
  remove(folder, '*all_probabilities*')
  check_is_top5_of(top5.read_top5(opened(folder)), softmaxes)


def test_classes_without_any_probabilities(folder):
  remove(folder, '*probabilities*')
  assert 'clf0_train_top5_probabilities.npy: ' in refused(
      top5.read_top5, opened(folder))


def swap_two_classes(folder, row):
  """Makes the top-5 classes of a row, which is not in the sample, wrong."""
  path = str(folder / 'clf0_train_top5_classes.npy')
  classes = np.load(path)
  classes[row, :2] = classes[row, 1::-1]
  np.save(path, classes)


def test_all_rows_of_the_top5_files_are_checked_on_request(
    folder, monkeypatch):
  monkeypatch.setattr(dumps, 'CHECKED_ROWS', 2)
  top5.read_top5(opened(folder), check_all_rows=True)
  swap_two_classes(folder, 38)
  swap_two_classes(folder, 41)
  top5.read_top5(opened(folder))
  wrong = 'row 38 '
  assert wrong in refused(
      top5.read_top5, opened(folder), check_all_rows=True)
  # Classes are checked whenever softmaxes are read.
  remove(folder, '*top5_probabilities*')
  assert wrong in refused(top5.read_top5, opened(folder))


# ---- -cache ------------------------------------------------------------------


@pytest.mark.parametrize('is_in_shards', [False, True])
@pytest.mark.parametrize('has_classes', [False, True])
def test_a_second_run_does_not_read(
    folder, softmaxes, monkeypatch, is_in_shards, has_classes):
  if is_in_shards:
    write_split(folder, 'validation', [0], {0: softmaxes[:1]})
    cut_into_shards(folder, 2, 5)
  remove(folder, '*train_top5_probabilities*')
  if not has_classes:
    remove(folder, '*train_top5_classes*')
  check_is_top5_of(top5.read_top5(opened(folder), use_cache=True), softmaxes)
  refuse_to_read(monkeypatch)
  check_is_top5_of(top5.read_top5(opened(folder)), softmaxes)


def test_rows_never_filled(folder, softmaxes):
  """Not an answer of class 0, 1, ... once they are in top-5 files."""
  for part in (1, 2, 3):
    path = str(folder / f'clf0_train_{part}of3_all_probabilities.npy')
    array = np.load(path)
    array[-2:] = 0
    np.save(path, array)
  remove(folder, '*top5*')
  top5.read_top5(opened(folder), use_cache=True)
  for need_probabilities in (True, False):
    read = top5.read_top5(opened(folder), need_probabilities)
    unfilled = classifier_predictions(
        read, np.zeros(NUM_IMAGES, int)).unfilled
    assert np.flatnonzero(unfilled).tolist() == [10, 11, 15, 16, 48, 49]
