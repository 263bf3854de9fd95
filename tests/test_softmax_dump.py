"""Imagenet/softmax_dump.py: names, parts, and files that appear when whole."""

import collections
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import dump_names
import softmax_dump
from dump_folders import best_classes, random_softmaxes, write_split
from softmax_dump import SplitDump
from user_error import UserError

IMAGENET = os.path.dirname(os.path.abspath(softmax_dump.__file__))


def rows_of(softmaxes, classifier_ids=(0,)):
  """What `SplitDump.append` takes for these softmaxes."""
  top5 = best_classes(softmaxes)
  values = np.take_along_axis(softmaxes, top5, axis=1)
  return {k: (softmaxes, top5, values) for k in classifier_ids}


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


VALIDATION_NAMES = [
    'clf0_all_probabilities.npy', 'clf0_top5_classes.npy',
    'clf0_top5_probabilities.npy', 'validation_non_onehot.npy']


# Names and parts.


def test_names_are_the_published_ones():
  assert dump_names.probabilities_file_names(2, 'validation') == [
      'clf2_all_probabilities.npy']
  assert dump_names.probabilities_file_names(2, 'train') == [
      'clf2_train_1of3_all_probabilities.npy',
      'clf2_train_2of3_all_probabilities.npy',
      'clf2_train_3of3_all_probabilities.npy']
  assert dump_names.top5_classes_file_name(1, 'validation') == (
      'clf1_top5_classes.npy')
  assert dump_names.top5_classes_file_name(1, 'train') == (
      'clf1_train_top5_classes.npy')
  assert dump_names.top5_probabilities_file_name(1, 'train') == (
      'clf1_train_top5_probabilities.npy')
  assert dump_names.labels_file_name('train') == 'train_non_onehot.npy'


@pytest.mark.parametrize('num_images,bounds', [
    (1281167, [(0, 400000), (400000, 800000), (800000, 1281167)]),
    (800000, [(0, 400000), (400000, 800000), (800000, 800000)]),
    (400001, [(0, 400000), (400000, 400001), (400001, 400001)]),
    (7, [(0, 7), (7, 7), (7, 7)]),
    (0, [(0, 0)] * 3)])
def test_bounds_of_training_parts(num_images, bounds):
  assert dump_names.part_bounds('train', num_images) == bounds
  assert dump_names.part_bounds('validation', num_images) == [
      (0, num_images)]


# Writing.


@pytest.mark.parametrize('batch', [1, 4, 11, 40])
@pytest.mark.parametrize('split', dump_names.SPLITS)
def test_batches_of_any_size_give_the_same_files(
    tmp_path, monkeypatch, split, batch):
  monkeypatch.setattr(dump_names, 'TRAIN_PART_STARTS', (0, 10, 14))
  softmaxes = random_softmaxes(0, 23, 9)
  labels = np.random.RandomState(1).randint(0, 9, 23)
  with SplitDump(str(tmp_path), split, 23, 9, [0, 2]) as dump:
    for start in range(0, 23, batch):
      rows = slice(start, start + batch)
      outputs = rows_of(softmaxes[rows])
      outputs.update(rows_of(1 - softmaxes[rows], [2]))
      dump.append(labels[rows], outputs)
      assert dump.num_written == min(start + batch, 23)
  bounds = [(0, 10), (10, 14), (14, 23)] if split == 'train' else [(0, 23)]
  for k, expected in ((0, softmaxes), (2, 1 - softmaxes)):
    part_names = dump_names.probabilities_file_names(k, split)
    for name, (start, stop) in zip(part_names, bounds):
      part = np.load(str(tmp_path / name), mmap_mode='r')
      assert part.dtype == np.float32
      assert part.shape == (stop - start, 9)
      assert (part == expected[start:stop]).all()
    best = np.load(str(
        tmp_path / dump_names.top5_classes_file_name(k, split)))
    assert best.dtype == np.int32
    assert (best == best_classes(expected)).all()
    values = np.load(str(
        tmp_path / dump_names.top5_probabilities_file_name(k, split)))
    assert values.dtype == np.float32
    assert (values == -np.sort(-expected, axis=1)[:, :5]).all()
    top1, top5 = dump.accuracy(k)
    assert top1 == (expected.argmax(axis=1) == labels).mean()
    assert top5 == np.mean(
        [label in row for row, label in zip(best_classes(expected), labels)])
  written = np.load(str(tmp_path / dump_names.labels_file_name(split)))
  assert written.dtype == np.int32
  assert (written == labels).all()


def test_training_parts_are_cut_at_the_published_rows(tmp_path):
  num_images, batch = 800003, 90001
  with SplitDump(str(tmp_path), 'train', num_images, 1, [0]) as dump:
    for start in range(0, num_images, batch):
      rows = np.arange(start, min(start + batch, num_images))
      softmaxes = rows[:, np.newaxis].astype(np.float32)
      dump.append(rows % 7, rows_of(softmaxes))
  first_and_last = [
      np.load(str(tmp_path / name))[[0, -1], 0].tolist()
      for name in dump_names.probabilities_file_names(0, 'train')]
  assert first_and_last == [[0, 399999], [400000, 799999], [800000, 800002]]


def test_dump_bytes_is_the_size_of_the_files(tmp_path):
  write_split(tmp_path, 'train', np.zeros(50), {
      k: random_softmaxes(k, 50, 9) for k in (0, 1)})
  num_bytes = sum(np.load(str(path)).nbytes for path in tmp_path.iterdir())
  assert dump_names.dump_bytes(50, 9, num_classifiers=2) == num_bytes


def test_names_appear_on_completion(tmp_path):
  softmaxes = random_softmaxes(0, 6, 9)
  with SplitDump(str(tmp_path), 'validation', 6, 9, [0]) as dump:
    dump.append(np.arange(6), rows_of(softmaxes))
    assert len(names(tmp_path)) == 5  # And the one that is locked.
    assert all(name.endswith('.unfinished') for name in names(tmp_path))
  assert names(tmp_path) == VALIDATION_NAMES


@pytest.mark.parametrize('exception', [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize('earlier_run', [False, True])
def test_an_exception_removes_what_is_unfinished_and_keeps_the_old(
    tmp_path, exception, earlier_run):
  labels = np.arange(6)
  if earlier_run:
    write_split(tmp_path, 'validation', labels,
                {0: random_softmaxes(0, 6, 9)})
  before = contents(tmp_path)
  with pytest.raises(exception):
    with SplitDump(str(tmp_path), 'validation', 6, 9, [0]) as dump:
      dump.append(labels, rows_of(random_softmaxes(1, 6, 9)))
      raise exception
  assert contents(tmp_path) == before
  assert len(before) == (4 if earlier_run else 0)


def test_a_new_run_replaces_an_old_dump(tmp_path):
  labels = np.arange(6)
  for seed in range(2):
    softmaxes = random_softmaxes(seed, 6, 9)
    write_split(tmp_path, 'validation', labels, {0: softmaxes})
    written = np.load(str(tmp_path / VALIDATION_NAMES[0]))
    assert (written == softmaxes).all()
  assert names(tmp_path) == VALIDATION_NAMES


@pytest.mark.parametrize('num_rows,message', [
    (5, 'gave 5 images where its shards hold 6'),
    (7, 'more than the 6 records')])
def test_wrong_row_counts(tmp_path, num_rows, message):
  with pytest.raises(UserError, match=message):
    with SplitDump(str(tmp_path), 'validation', 6, 9, [0]) as dump:
      for row in range(num_rows):
        dump.append(np.array([row]), rows_of(random_softmaxes(row, 1, 9)))
  assert names(tmp_path) == []


def test_a_classifier_left_out_is_no_dump(tmp_path):
  with pytest.raises(AssertionError):
    with SplitDump(str(tmp_path), 'validation', 6, 9, [0, 1]) as dump:
      dump.append(np.arange(6), rows_of(random_softmaxes(0, 6, 9), [0]))
  assert names(tmp_path) == []


def test_runs_for_two_classifiers_at_the_same_time(tmp_path):
  labels = np.arange(6)
  softmaxes = {k: random_softmaxes(k, 6, 9) for k in (0, 1)}
  with SplitDump(str(tmp_path), 'validation', 6, 9, [1]) as slow:
    slow.append(labels[:3], rows_of(softmaxes[1][:3], [1]))
    with SplitDump(str(tmp_path), 'validation', 6, 9, [0]) as fast:
      fast.append(labels, rows_of(softmaxes[0]))
    slow.append(labels[3:], rows_of(softmaxes[1][3:], [1]))
  for k in (0, 1):
    name, = dump_names.probabilities_file_names(k, 'validation')
    assert (np.load(str(tmp_path / name)) == softmaxes[k]).all()
  written = np.load(str(tmp_path / 'validation_non_onehot.npy'))
  assert (written == labels).all()
  assert len(names(tmp_path)) == 7


# Labels of other records.


def test_dumps_of_other_labels_are_not_mixed(tmp_path):
  write_split(tmp_path, 'validation', np.arange(6),
              {0: random_softmaxes(0, 6, 9)})
  before = contents(tmp_path)
  with pytest.raises(UserError, match='other records.*row 4'):
    with SplitDump(str(tmp_path), 'validation', 6, 9, [1]) as dump:
      for rows in ([0, 1, 2], [3, 0, 5]):
        dump.append(np.array(rows), rows_of(random_softmaxes(1, 3, 9), [1]))
  assert contents(tmp_path) == before
  with pytest.raises(UserError, match='other records.*6 labels, here 7'):
    SplitDump(str(tmp_path), 'validation', 7, 9, [1])
  assert contents(tmp_path) == before


@pytest.mark.parametrize('content', [
    b'', b'\x93NUMPY\x01', b'\x80\x03]q\x00.', b'PK\x03\x04'])
def test_unreadable_labels_in_the_folder(tmp_path, content):
  (tmp_path / 'train_non_onehot.npy').write_bytes(content)
  with pytest.raises(UserError, match='train_non_onehot.npy: not a readable'):
    SplitDump(str(tmp_path), 'train', 7, 9, [1])
  assert names(tmp_path) == ['train_non_onehot.npy']


def test_labels_of_no_shape_in_the_folder(tmp_path):
  np.save(str(tmp_path / 'train_non_onehot.npy'), np.int32(3))
  with pytest.raises(UserError, match='other records'):
    SplitDump(str(tmp_path), 'train', 7, 9, [1])


# Space and failing disks.


def test_prepare_folder_makes_it(tmp_path):
  folder = tmp_path / 'a' / 'b'
  softmax_dump.prepare_folder(str(folder), {'train': 3}, 11, [0])
  softmax_dump.prepare_folder(str(folder), {'train': 3}, 11, [0])
  assert names(folder) == []


def test_prepare_folder_needs_a_folder(tmp_path):
  (tmp_path / 'file').touch()
  for wrong in ('file', 'file/below'):
    with pytest.raises(UserError, match='--softmax_dir .*cannot be written'):
      softmax_dump.prepare_folder(str(tmp_path / wrong), {}, 11, [0])


def test_prepare_folder_checks_the_free_space(tmp_path, monkeypatch):
  usage = collections.namedtuple('usage', 'total used free')
  monkeypatch.setattr(shutil, 'disk_usage',
                      lambda folder: usage(10**10, 0, 5 * 10**9))
  # A row of 1001 classes takes 4048 bytes.
  softmax_dump.prepare_folder(
      str(tmp_path), {'train': 1200000, 'validation': 35000}, 1001, [0])
  with pytest.raises(UserError, match='5,060 MB and 5,000 MB are free'):
    softmax_dump.prepare_folder(
        str(tmp_path), {'train': 1200000, 'validation': 50000}, 1001, [0])


def test_prepare_folder_refuses_dumps_of_other_records(tmp_path):
  np.save(str(tmp_path / 'train_non_onehot.npy'), np.zeros(8, np.int32))
  softmax_dump.prepare_folder(
      str(tmp_path), {'train': 8, 'validation': 3}, 11, [0])
  with pytest.raises(UserError, match='holds train dumps of other records'):
    softmax_dump.prepare_folder(
        str(tmp_path), {'train': 7, 'validation': 3}, 11, [0])


def test_a_file_that_cannot_be_opened(tmp_path):
  """Whatever the reason: nothing stays behind."""
  (tmp_path / 'clf0_top5_classes.npy.clf0.unfinished').mkdir()
  with pytest.raises(UserError, match='clf0_top5_classes.npy: cannot be writ'):
    SplitDump(str(tmp_path), 'validation', 6, 9, [0])
  assert names(tmp_path) == ['clf0_top5_classes.npy.clf0.unfinished']


@pytest.mark.parametrize('limit', [200, 20000, 39000])
def test_a_write_that_fails_leaves_the_old_dump(tmp_path, limit):
  """A file-size limit stands in for a full disk: at the first flush, in the
  middle, and in the last rows, which reach the disk on completion."""
  pytest.importorskip('resource')
  write_split(tmp_path, 'validation', np.zeros(100),
              {0: random_softmaxes(0, 100, 100)})
  before = contents(tmp_path)
  script = textwrap.dedent('''
      import resource, sys
      sys.path.insert(0, sys.argv[1])
      import numpy as np
      from softmax_dump import SplitDump
      from user_error import UserError
      limit = int(sys.argv[3])
      try:
        with SplitDump(sys.argv[2], 'validation', 100, 100, [0]) as dump:
          resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
          for row in range(100):
            dump.append(np.zeros(1), {0: (
                np.ones((1, 100)), np.zeros((1, 5)), np.zeros((1, 5)))})
      except UserError as error:
        print(error)
  ''')
  output = subprocess.check_output(
      [sys.executable, '-c', script, IMAGENET, str(tmp_path), str(limit)],
      stderr=subprocess.STDOUT, universal_newlines=True)
  assert len(output.splitlines()) == 1
  assert '.npy: cannot be written (File too large)' in output
  assert contents(tmp_path) == before


@pytest.mark.parametrize('split,name', [
    (split, name) for split in dump_names.SPLITS
    for name in dump_names.probabilities_file_names(1, split) + [
        dump_names.top5_classes_file_name(1, split)]])
def test_any_part_of_a_dump_counts(tmp_path, split, name):
  (tmp_path / name).touch()
  for k in (0, 1):
    for other_split in dump_names.SPLITS:
      assert dump_names.holds_dump(str(tmp_path), k, other_split) == (
          (k, other_split) == (1, split))
