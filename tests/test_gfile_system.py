"""Dumps over TensorFlow's file system layer have the bytes of local ones."""

import os

import numpy as np
import pytest

import cascade_record
import softmax_dump
from cascade_record import ExitCost, Network
from dump_folders import best_classes, random_softmaxes
from dump_names import DumpShard
from file_system import LOCAL
from gfile_system import GFileSystem, of_folder
from softmax_dump import SplitDump
from tf_compat import IS_TF1
from user_error import UserError

NUM_IMAGES, NUM_CLASSES = 23, 9
NETWORK = Network(2, 18, 32, NUM_CLASSES, [
    ExitCost(0, 1000, 20, 50, 7), ExitCost(2, 2500, 10, 90, 5)])


# TensorFlow 1.12 has no file system in memory.
@pytest.fixture(params=['file'] + ([] if IS_TF1 else ['ram']))
def folder(request, tmp_path):
  """A folder that is not there."""
  if request.param == 'ram':
    return 'ram://{}/a/dumps'.format(tmp_path.name)
  return 'file://{}/a/dumps'.format(tmp_path)


def write(folder, file_system, num_batches=None, classifier_ids=(0,),
          split='train', shard=None, num_images=NUM_IMAGES):
  softmaxes = random_softmaxes(1, NUM_IMAGES, NUM_CLASSES)
  top5 = best_classes(softmaxes)
  largest = np.take_along_axis(softmaxes, top5, axis=1)
  with SplitDump(folder, split, num_images, NUM_CLASSES, classifier_ids,
                 identity={}, shard=shard, batch_size=4, block_rows=1,
                 file_system=file_system) as dump:
    stop = dump.first_row + dump.num_rows
    while dump.next_row < stop:
      if num_batches == 0:
        raise KeyboardInterrupt
      num_batches = num_batches and num_batches - 1
      rows = slice(dump.next_row, min(dump.next_row + 4, stop))
      dump.append(np.arange(NUM_IMAGES)[rows] % NUM_CLASSES, {
          k: (softmaxes[rows], top5[rows], largest[rows])
          for k in classifier_ids})


def contents(folder, file_system):
  result = {}
  for name in file_system.names(folder):
    with file_system.open_to_read(os.path.join(folder, name)) as stream:
      result[name] = stream.read()
  return result


def dump_all(folder, file_system):
  softmax_dump.prepare_folder(
      folder, {'train': NUM_IMAGES, 'validation': NUM_IMAGES}, NUM_CLASSES,
      [0], file_system=file_system)
  cascade_record.check_folder(folder, NETWORK, file_system)
  write(folder, file_system)
  write(folder, file_system, classifier_ids=(2,))
  for number in (1, 2):
    write(folder, file_system, shard=DumpShard(number, 2), split='validation')
  for k in (0, 2):
    cascade_record.write(folder, NETWORK, {k: {'step': 7}}, file_system)


def test_which_file_system():
  assert of_folder('output_softmax') is LOCAL
  assert of_folder('/a/b:c/d') is LOCAL
  for folder in ('gs://bucket/dumps', 'hdfs://host:9000/dumps', 'ram://x'):
    assert isinstance(of_folder(folder), GFileSystem)


def test_the_same_files_as_local_ones(folder, tmp_path):
  (tmp_path / 'local').mkdir()
  dump_all(str(tmp_path / 'local'), LOCAL)
  dump_all(folder, of_folder(folder))
  expected = contents(str(tmp_path / 'local'), LOCAL)
  assert len(expected) == 1 + 2 * 5 + 2 * 4 + 1
  assert contents(folder, of_folder(folder)) == expected


def test_an_interrupted_pass_begins_anew(folder, tmp_path):
  file_system = of_folder(folder)
  file_system.make_folder(folder)
  write(folder, file_system)
  before = contents(folder, file_system)
  with pytest.raises(KeyboardInterrupt):
    write(folder, file_system, num_batches=3)
  assert contents(folder, file_system) == before
  write(folder, file_system)
  assert contents(folder, file_system) == before


def test_labels_of_other_records(folder):
  file_system = of_folder(folder)
  file_system.make_folder(folder)
  write(folder, file_system)
  with pytest.raises(UserError, match='23 labels, here 22'):
    write(folder, file_system, num_images=22, classifier_ids=[2])


def test_what_cannot_be_written_is_one_line(folder):
  if folder.startswith('file://'):  # Elsewhere a folder need not be made.
    with pytest.raises(UserError, match='cannot be written') as error:
      write(folder, of_folder(folder))
    assert '\n' not in str(error.value)
  with pytest.raises(UserError, match='--softmax_dir nowhere://x: cannot be '
                     'written .*nowhere') as error:
    softmax_dump.prepare_folder(
        'nowhere://x', {'train': 3}, NUM_CLASSES, [0],
        file_system=of_folder('nowhere://x'))
  assert '\n' not in str(error.value)


def test_a_file_that_is_not_there(folder):
  file_system = of_folder(folder)
  file_system.make_folder(folder)
  path = os.path.join(folder, 'cascade.json')
  assert not file_system.exists(path)
  for function in (file_system.open_to_read, file_system.remove,
                   file_system.size):
    with pytest.raises(FileNotFoundError):
      function(path)
