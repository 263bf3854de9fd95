"""Dumps in shards: which rows, which files, and reading them as one."""

import itertools
import json
import os
import re
import shutil

import numpy as np
import pytest

import analyze_imagenet_labels
import dump_names
import softmax_dump
from cascade import dump_files, dumps, extraction, figures
from dump_folders import best_classes, random_softmaxes
from dump_names import DumpShard
from file_system import LocalFileSystem
from softmax_dump import SplitDump
from user_error import UserError

NUM_CLASSES, BATCH_SIZE = 8, 3
NUM_IMAGES = {'train': 61, 'validation': 40}


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """Three parts of training dumps, and no figures."""
  monkeypatch.setattr(dump_names, 'TRAIN_PART_STARTS', (0, 14, 35))
  monkeypatch.setattr(figures, 'write_figures', lambda *_: None)


def labels_of(split):
  return np.random.RandomState(len(split)).randint(
      1, NUM_CLASSES, NUM_IMAGES[split]).astype(np.int32)


def softmaxes_of(split, k):
  """Pushed up by the labels, the more the later the classifier."""
  softmaxes = random_softmaxes(k + len(split), NUM_IMAGES[split], NUM_CLASSES)
  softmaxes[np.arange(len(softmaxes)), labels_of(split)] += 0.1 + 0.2 * k
  return softmaxes / softmaxes.sum(axis=1, keepdims=True)


def write(folder, shard=None, classifier_ids=(0, 1), splits=dump_names.SPLITS,
          batch_size=BATCH_SIZE, **more):
  """What one process of a pass writes."""
  for split in splits:
    labels = labels_of(split)
    with SplitDump(str(folder), split, len(labels), NUM_CLASSES,
                   classifier_ids, shard=shard, batch_size=batch_size,
                   **more) as dump:
      stop = dump.first_row + dump.num_rows
      for start in range(dump.next_row, stop, batch_size):
        rows, outputs = slice(start, min(start + batch_size, stop)), {}
        for k in classifier_ids:
          softmaxes = softmaxes_of(split, k)[rows]
          top5 = best_classes(softmaxes)
          outputs[k] = (softmaxes, top5,
                        np.take_along_axis(softmaxes, top5, axis=1))
        dump.append(labels[rows], outputs)


def write_shards(folder, total, **more):
  for number in range(1, total + 1):
    write(folder, DumpShard(number, total), **more)


@pytest.fixture
def whole(tmp_path):
  (tmp_path / 'whole').mkdir()
  write(tmp_path / 'whole')
  return tmp_path / 'whole'


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'shards').mkdir()
  return tmp_path / 'shards'


# Rows and names.


@pytest.mark.parametrize('num_images, total, batch_size', itertools.product(
    (0, 1, 7, 64, 65, 50000), (1, 2, 3, 4, 10), (1, 8, 32, 256)))
def test_shards_are_all_rows_once_in_whole_batches(
    num_images, total, batch_size):
  bounds = [dump_names.shard_rows(num_images, number, total, batch_size)
            for number in range(1, total + 1)]
  assert [start for start, _ in bounds] == [0] + [
      stop for _, stop in bounds[:-1]]
  assert bounds[-1][1] == num_images
  assert all(start % batch_size == 0 or start == num_images
             for start, _ in bounds)
  num_batches = [-(-(stop - start) // batch_size) for start, stop in bounds]
  assert max(num_batches) - min(num_batches) <= 1


def test_names_of_shards():
  shard = DumpShard(1, 4)
  name = 'clf0_train_1of3_all_probabilities.npy'
  of_shard = 'clf0_train_1of3_all_probabilities.shard-01-of-04.npy'
  assert dump_names.shard_file_name(name, shard) == of_shard
  assert dump_names.shard_file_name(name, None) == name
  assert dump_names.split_shard_name(of_shard) == (name, shard)
  big = dump_names.shard_file_name(name, DumpShard(100, 128))
  assert dump_names.split_shard_name(big) == (name, (100, 128))
  for other in (name, of_shard + '.clf0.unfinished', 'shard-01-of-04.npy'):
    assert dump_names.split_shard_name(other) == (None, None)


def test_shards_from_the_command_line():
  assert dump_names.parse_shard(None) is None
  assert dump_names.parse_shard('3/12') == (3, 12)
  for text in ('', '0/4', '5/4', '1', '1/0', '-1/4', '1/4/', '1.5/4', 'a/b',
               '1 / 4'):
    with pytest.raises(UserError, match='--dump_shard {}: '.format(text)):
      dump_names.parse_shard(text)


# Writing.


@pytest.mark.parametrize('total', [1, 2, 4, 30])
def test_shards_hold_the_rows_of_whole_files(whole, folder, total):
  write_shards(folder, total)
  assert len(os.listdir(str(folder))) == total * len(os.listdir(str(whole)))
  for path in whole.iterdir():
    shards = [np.load(str(folder / dump_names.shard_file_name(
        path.name, DumpShard(number, total))))
              for number in range(1, total + 1)]
    expected = np.load(str(path))
    assert all(shard.dtype == expected.dtype for shard in shards)
    joined = np.concatenate(shards)
    assert joined.shape == expected.shape and (joined == expected).all()


def test_a_shard_has_its_own_count_and_accuracy(folder):
  with SplitDump(str(folder), 'train', 61, NUM_CLASSES, [0],
                 shard=DumpShard(2, 4), batch_size=3) as dump:
    assert (dump.first_row, dump.num_rows, dump.next_row) == (15, 15, 15)
    with pytest.raises(UserError, match='than the 15 records'):
      dump.append(np.zeros(16), {})
    softmaxes = np.eye(NUM_CLASSES, dtype=np.float32)[np.arange(15) % 5 // 4]
    dump.append(np.zeros(15), {0: (
        softmaxes, best_classes(softmaxes), softmaxes[:, :5])})
    assert dump.next_row == 30
  assert dump.accuracy(0)[0] == 12 / 15.


def test_a_shard_can_be_gone_on_with(whole, folder, tmp_path):
  write_shards(folder, 4)
  expected = {path.name: path.read_bytes() for path in folder.iterdir()}
  (tmp_path / 'resumed').mkdir()
  append = SplitDump.append
  for number in (3, 1, 4, 2):
    num_interrupted = 0
    while True:
      num_left = [3]

      def interrupted_append(self, *args):
        num_left[0] -= 1
        if not num_left[0]:
          raise KeyboardInterrupt
        append(self, *args)

      SplitDump.append = interrupted_append
      try:
        write(tmp_path / 'resumed', DumpShard(number, 4), splits=['train'],
              identity={'weights': 1})
        break
      except KeyboardInterrupt:
        num_interrupted += 1
      finally:
        SplitDump.append = append
    assert num_interrupted >= 2
  write_shards(tmp_path / 'resumed', 4, splits=['validation'])
  assert expected == {path.name: path.read_bytes()
                      for path in (tmp_path / 'resumed').iterdir()}


@pytest.mark.parametrize('first, second, words', [
    (None, DumpShard(1, 4), 'a whole dump, where --dump_shard 1/4'),
    (DumpShard(1, 4), None, 'a shard, where a whole dump'),
    (DumpShard(1, 4), DumpShard(1, 3), 'a shard of 4, where --dump_shard 1/3'),
])
def test_what_cannot_be_read_together_is_not_written(
    folder, first, second, words):
  write(folder, first)
  before = sorted(os.listdir(str(folder)))
  with pytest.raises(UserError, match=words):
    write(folder, second)
  with pytest.raises(UserError, match=words):
    softmax_dump.prepare_folder(
        str(folder), NUM_IMAGES, NUM_CLASSES, [1], second, BATCH_SIZE)
  assert sorted(os.listdir(str(folder))) == before


def test_two_shards_prepare_the_folder_at_the_same_moment(folder):

  class Interleaved(LocalFileSystem):
    num_removed = 0

    def remove(self, path):
      self.num_removed += 1
      if self.num_removed == 1:
        prepare(DumpShard(2, 2))
      super(Interleaved, self).remove(path)

  file_system = Interleaved()

  def prepare(shard):
    softmax_dump.prepare_folder(str(folder), NUM_IMAGES, NUM_CLASSES, [1],
                                shard, BATCH_SIZE, file_system)

  prepare(DumpShard(1, 2))
  assert file_system.num_removed == 2
  assert os.listdir(str(folder)) == []


def test_other_classifiers_may_be_whole(folder):
  write(folder, classifier_ids=[0])
  write_shards(folder, 2, classifier_ids=[1])
  opened = analyze_imagenet_labels.open_dumps(
      str(folder), None, dump_names.SPLITS)
  for split in dump_names.SPLITS:
    assert [dump.num_images for _, dump, _ in opened[split]] == 2 * [
        NUM_IMAGES[split]]


@pytest.mark.parametrize('first', [None, DumpShard(2, 3)])
def test_labels_of_other_records_are_not_mixed(folder, first):
  write(folder, first, classifier_ids=[0])
  with SplitDump(str(folder), 'train', 61, NUM_CLASSES, [1],
                 shard=DumpShard(2, 3), batch_size=3) as dump:
    labels = labels_of('train')[dump.first_row:dump.first_row + 3].copy()
    labels[1] += 1
    with pytest.raises(UserError, match='row {}'.format(dump.first_row + 1)):
      dump.append(labels, {})
    write_rest = slice(dump.first_row, dump.first_row + dump.num_rows)
    softmaxes = softmaxes_of('train', 1)[write_rest]
    dump.append(labels_of('train')[write_rest], {1: (
        softmaxes, best_classes(softmaxes), -np.sort(-softmaxes)[:, :5])})


def test_another_batch_size_is_another_shard(folder):
  write(folder, DumpShard(2, 3), classifier_ids=[0], splits=['train'])
  with pytest.raises(UserError, match='21 labels, here 20'):
    write(folder, DumpShard(2, 3), classifier_ids=[1], splits=['train'],
          batch_size=10)


# Reading.


def analysis_of(folder, out, *options):
  macs = out.parent / 'macs.json'
  macs.write_text(json.dumps({
      'network': 'Tiny', 'num_classes': NUM_CLASSES, 'plain_network_macs': 9,
      'exits': [{'classifier_id': k, 'trunk_macs': 3 + 5 * k, 'head_macs': 1}
                for k in range(2)]}))
  analyze_imagenet_labels.main(
      ['-softmax_path', str(folder), '-output_dir', str(out), '-macs',
       str(macs)] + list(options))
  return {name: (out / name).read_bytes()
          for name in ('cascade.csv', 'confidence.csv')}


@pytest.mark.parametrize('total', [1, 2, 4, 30])
@pytest.mark.parametrize('options', [(), ('-check_all_rows',)])
def test_the_analysis_is_the_same(whole, folder, tmp_path, capsys, total,
                                  options):
  write_shards(folder, total)
  expected = analysis_of(whole, tmp_path / 'out_whole', *options)
  printed = capsys.readouterr().out.replace('out_whole', 'out')
  assert analysis_of(folder, tmp_path / 'out', *options) == expected
  assert capsys.readouterr().out == printed


def test_the_analysis_from_softmaxes_alone_and_a_cache(
    whole, folder, tmp_path, monkeypatch):
  write_shards(folder, 4)
  expected = analysis_of(whole, tmp_path / 'out_whole')
  for path in folder.glob('*top5_*'):
    path.unlink()
  assert analysis_of(folder, tmp_path / 'out1', '-cache') == expected

  def refuse(*_):
    raise AssertionError('softmaxes were read')

  monkeypatch.setattr(extraction, '_extract', refuse)
  assert analysis_of(folder, tmp_path / 'out2', '-cache') == expected
  shard = next(folder.glob('clf1_train_2of3_*.shard-02-of-04.npy'))
  os.utime(str(shard), (1, 1))
  with pytest.raises(AssertionError, match='softmaxes were read'):
    analysis_of(folder, tmp_path / 'out3', '-cache')


def test_a_cache_of_shards_is_none_of_whole_files(
    whole, folder, tmp_path, monkeypatch):
  """They were exchanged, and exchanged again."""
  for path in itertools.chain(whole.glob('*top5_*')):
    path.unlink()
  extraction.read_top5(dumps.ClassifierDump(str(whole), 0, 'train'), True)
  record = (whole / 'top5_cache' / 'sources.json').read_text()
  write_shards(folder, 2, classifier_ids=[0])
  moved = {}
  for path in list(whole.glob('clf0_train*')):
    moved[path] = tmp_path / path.name
    path.rename(moved[path])
  for path in folder.glob('clf0_train*_all_*'):
    shutil.copy2(str(path), str(whole / path.name))
  extraction.read_top5(dumps.ClassifierDump(str(whole), 0, 'train'), True)
  after = (whole / 'top5_cache' / 'sources.json').read_text()
  assert 'shard-02-of-02' in after and 'shard' not in record
  for path, elsewhere in moved.items():
    assert '"{}"'.format(path.name) in record
    assert '"{}"'.format(path.name) not in after


@pytest.mark.parametrize('start, stop', [
    (0, 61), (0, 0), (13, 15), (14, 35), (20, 40), (44, 61), (34, 36)])
def test_any_range_of_rows(folder, start, stop):
  write_shards(folder, 4, splits=['train'])
  dump = dumps.ClassifierDump(str(folder), 1, 'train')
  assert dump.num_images == 61
  softmaxes, rows = softmaxes_of('train', 1), []
  for block_rows, block in dump.blocks(start, stop, max_rows=4):
    assert (block == softmaxes[block_rows]).all()
    rows.extend(range(block_rows.start, block_rows.stop))
  assert rows == list(range(start, stop))


def test_a_dump_of_shards_is_found(folder):
  write(folder, DumpShard(2, 2), classifier_ids=[1], splits=['train'])
  assert dumps.find_classifiers(str(folder)) == [1]
  assert dumps.holds_split(str(folder), 'train')
  assert not dumps.holds_split(str(folder), 'validation')


# Shards that do not belong together.


def refused(folder):
  with pytest.raises(UserError) as error:
    analyze_imagenet_labels.open_dumps(
        str(folder), None, ['train', 'validation'])
  message = str(error.value)
  assert '\n' not in message and message.startswith(str(folder))
  return message[len(str(folder)) + 1:]


NAMES = ['train_non_onehot', 'validation_non_onehot',
         'clf0_train_2of3_all_probabilities', 'clf1_all_probabilities',
         'clf0_train_top5_classes', 'clf1_top5_probabilities']


@pytest.fixture
def shards(folder):
  write_shards(folder, 4)
  return folder


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('number', [1, 3])
def test_a_missing_shard_is_named(shards, name, number):
  missing = '{}.shard-0{}-of-04.npy'.format(name, number)
  (shards / missing).unlink()
  assert refused(shards) == (
      '{}: no such file, and 3 of 4 shards are there; copy it here, or dump it '
      '(step 3, --dump_shard {}/4)'.format(missing, number))


def copy(folder, name, new_name):
  shutil.copy(str(folder / name), str(folder / new_name))


@pytest.mark.parametrize('name', NAMES)
def test_surplus_shards_are_named(shards, name):
  of_shard = name + '.shard-{}.npy'
  for addition, words in (
      ('02-of-4', 'same shard as'), ('05-of-04', 'no such shard'),
      ('00-of-04', 'no such shard'), ('01-of-02', 'a shard of 4')):
    copy(shards, of_shard.format('01-of-04'), of_shard.format(addition))
    message = refused(shards)
    assert words in message and 'remove' in message
    assert name in message.split(':')[0]
    (shards / of_shard.format(addition)).unlink()


@pytest.mark.parametrize('name', NAMES[2:])
def test_a_whole_file_beside_its_shards(whole, shards, name):
  shutil.copy(str(whole / (name + '.npy')), str(shards))
  assert refused(shards) == (
      '{0}.npy: is there as a whole and in shards ({0}.shard-01-of-04.npy); '
      'remove what is of another pass'.format(name))


def test_labels_as_a_whole_and_in_shards(whole, shards):
  shutil.copy(str(whole / 'train_non_onehot.npy'), str(shards))
  labels = dumps.read_labels(None, str(shards), 'train')
  assert labels.path == str(shards / 'train_non_onehot.npy')
  np.save(labels.path, labels_of('train')[::-1])
  assert 'labels of different records' in refused(shards)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('change', [
    lambda array: array[1:], lambda array: np.concatenate([array, array]),
    lambda array: array.astype(np.float16), lambda array: array[:, np.newaxis]])
def test_a_misfitting_shard_is_refused(shards, name, change):
  path = shards / (name + '.shard-02-of-04.npy')
  np.save(str(path), change(np.load(str(path))))
  # A wrong count shows in the sum over the parts.
  assert re.match(name.replace('2of3', '[12]of3'), refused(shards))


def test_shards_of_other_batch_sizes(folder, tmp_path):
  """Copied into one folder from several machines."""
  write_shards(folder, 4)
  (tmp_path / 'other').mkdir()
  write_shards(tmp_path / 'other', 4, batch_size=7)
  for path in (tmp_path / 'other').glob('*.shard-02-of-04.npy'):
    shutil.copy(str(path), str(folder))
  assert refused(folder).startswith(
      'train_non_onehot.shard-01-of-04.npy: this shard and its 3 siblings have '
      '15, 14, 15, 16 rows, which no pass is cut into')


def test_parts_in_different_numbers_of_files(whole, shards):
  for path in shards.glob('clf0_train_2of3*'):
    path.unlink()
  shutil.copy(str(whole / 'clf0_train_2of3_all_probabilities.npy'),
              str(shards))
  assert refused(shards).startswith(
      'clf0_train_2of3_all_probabilities.npy: one of 1 file(s), where ')


def test_cuts_of_a_pass_are_known():
  def check(rows):
    dump_files.check_rows(['s{}'.format(row) for row in rows], rows)

  for num_images, total, batch_size in itertools.product(
      (0, 1, 61, 128, 50000), (1, 2, 3, 7, 40), (1, 2, 3, 32, 100)):
    check([stop - start for start, stop in (
        dump_names.shard_rows(num_images, number, total, batch_size)
        for number in range(1, total + 1))])
  for wrong in ([1, 3], [12480, 12544, 12512, 12496], [5, 0], [4, 3, 4, 4]):
    with pytest.raises(UserError, match='no pass is cut into'):
      check(wrong)
