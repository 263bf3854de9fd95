"""cascade/top5.py: one pass through the softmaxes, and its cache."""

import json
import os

import numpy as np
import pytest

import dump_names
from cascade import UserError, dumps, top5
from dump_folders import (best_classes, cut_into_shards, publish,
                          random_softmaxes, write_split)

NUM_IMAGES, NUM_CLASSES = 50, 30


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
  """Several parts, tasks that end within them, and blocks within these."""
  monkeypatch.setattr(dump_names, 'TRAIN_PART_STARTS', (0, 12, 17))
  monkeypatch.setattr(top5, '_ROWS_PER_TASK', 7)
  monkeypatch.setattr(dumps.ClassifierDump.blocks, '__defaults__',
                      (0, None, 3))


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
  def refuse(*_):
    raise AssertionError('softmaxes were read')
  monkeypatch.setattr(dumps.ClassifierDump, 'blocks', refuse)


def check_is_top5_of(read, softmaxes):
  classes = best_classes(softmaxes)
  assert (read.classes == classes).all()
  assert (read.probabilities ==
          np.take_along_axis(softmaxes, classes, axis=1)).all()


@pytest.mark.parametrize('protocol', [None, 2, 3])
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


def test_classes_come_from_the_top5_file(folder, softmaxes):
  softmaxes[:, :] = 1. / NUM_CLASSES
  for part, (start, stop) in enumerate([(0, 12), (12, 17), (17, 50)], 1):
    np.save(str(folder / f'clf0_train_{part}of3_all_probabilities.npy'),
            softmaxes[start:stop])
  remove(folder, '*top5_probabilities*')
  others = np.tile(np.arange(9, 4, -1, dtype=np.int32), (NUM_IMAGES, 1))
  np.save(str(folder / 'clf0_train_top5_classes.npy'), others)
  assert (top5.read_top5(opened(folder)).classes == others).all()


def test_classes_without_any_probabilities(folder):
  remove(folder, '*probabilities*')
  with pytest.raises(UserError, match='clf0_train_top5_probabilities.npy: .*'
                     'dump classifier 0 again'):
    top5.read_top5(opened(folder))


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
  wrong = 'row 38 of the top-5 files .* row 21 of .*clf0_train_3of3'
  with pytest.raises(UserError, match=wrong):
    top5.read_top5(opened(folder), check_all_rows=True)
  # Classes are checked whenever softmaxes are read.
  remove(folder, '*top5_probabilities*')
  with pytest.raises(UserError, match=wrong):
    top5.read_top5(opened(folder))


def test_first_wrong_row_is_the_one_reported(folder, softmaxes):
  remove(folder, '*top5*')
  path = str(folder / 'clf0_train_3of3_all_probabilities.npy')
  part = np.load(path)
  part[[4, 20, 30], 3] = [5, np.nan, np.inf]
  np.save(path, part)
  for _ in range(5):  # Several threads.
    with pytest.raises(UserError, match='clf0_train_3of3.*: row 4 sums up to '):
      top5.read_top5(opened(folder))


def test_file_that_is_cut_short_meanwhile(folder):
  remove(folder, '*top5*')
  dump = opened(folder)
  path = str(folder / 'clf0_train_3of3_all_probabilities.npy')
  os.truncate(path, os.path.getsize(path) - 10)
  with pytest.raises(UserError, match='clf0_train_3of3.*: was cut short'):
    top5.read_top5(dump)


class TestCache:

  @pytest.fixture(autouse=True)
  def published(self, folder):
    publish(folder, folder)

  def test_second_run_does_not_read(self, folder, softmaxes, monkeypatch):
    check_is_top5_of(top5.read_top5(opened(folder), True), softmaxes)
    refuse_to_read(monkeypatch)
    check_is_top5_of(top5.read_top5(opened(folder), True), softmaxes)

  def test_cache_of_shards(self, folder, softmaxes):
    """A cache of whole files is not one of shards, nor the reverse."""
    top5.read_top5(opened(folder), True)
    remove(folder, 'clf0_*')
    write_split(folder, 'train', np.zeros(NUM_IMAGES, np.int32),
                {0: softmaxes[::-1]})
    write_split(folder, 'validation', [0], {0: softmaxes[:1]})
    cut_into_shards(folder, 2, 5)
    remove(folder, 'clf0_*top5_*')
    check_is_top5_of(top5.read_top5(opened(folder), True), softmaxes[::-1])
    sources = json.loads(
        (folder / top5.CACHE_FOLDER / 'sources.json').read_text())
    assert sorted(sources)[0] == (
        'clf0_train_1of3_all_probabilities.shard-01-of-02.npy')

  def test_changed_softmaxes_are_read_again(self, folder, softmaxes):
    top5.read_top5(opened(folder), True)
    remove(folder, '*top5_classes*')
    changed = softmaxes[:, ::-1].copy()
    np.save(str(folder / 'clf0_train_2of3_all_probabilities.npy'),
            changed[12:17])
    changed[:12], changed[17:] = softmaxes[:12], softmaxes[17:]
    for _ in range(2):
      check_is_top5_of(top5.read_top5(opened(folder), True), changed)

  @pytest.mark.parametrize('name,damage', [
      ('sources.json', b'{'), ('sources.json', b'[]'),
      ('clf0_train_top5_probabilities.npy', b'')])
  def test_damage(self, folder, softmaxes, name, damage):
    top5.read_top5(opened(folder), True)
    (folder / top5.CACHE_FOLDER / name).write_bytes(damage)
    check_is_top5_of(top5.read_top5(opened(folder), True), softmaxes)

  def test_folder_that_cannot_be_written(self, folder, softmaxes, capsys):
    (folder / top5.CACHE_FOLDER).write_text('in the way')
    check_is_top5_of(top5.read_top5(opened(folder), True), softmaxes)
    assert 'the cache cannot be written' in capsys.readouterr().err
