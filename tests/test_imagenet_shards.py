"""Tests of Imagenet/imagenet_shards.py."""

import json
import os
import random
import struct

import pytest

from tf_compat import tf

import imagenet_input
import imagenet_shards
import tiny_records
from imagenet_shards import DatasetInfo
from imagenet_shards import count_records
from imagenet_shards import count_split
from imagenet_shards import find_shards
from imagenet_shards import read_dataset_info
from imagenet_shards import shards_from_row
from user_error import UserError


def touch(folder, *names):
  if not os.path.isdir(folder):
    os.makedirs(folder)
  for name in names:
    with open(os.path.join(folder, name), 'wb'):
      pass


def message_of(function, *args):
  """The text of the UserError that a call ends in: one line."""
  with pytest.raises(UserError) as raised:
    function(*args)
  assert '\n' not in str(raised.value)
  return str(raised.value)


# ---- dataset.json ------------------------------------------------------------

def write_dataset_json(folder, content):
  with open(os.path.join(str(folder), 'dataset.json'), 'w') as dataset_file:
    dataset_file.write(content)


def test_without_dataset_json_it_is_imagenet(tmpdir):
  info = read_dataset_info(str(tmpdir))
  assert info == (1001, {'train': 1281167, 'validation': 50000}, None)
  info.num_images['train'] = 7  # Is the caller's own.
  assert read_dataset_info(str(tmpdir)).num_images['train'] == 1281167


def test_dataset_json_has_its_say(tmpdir):
  write_dataset_json(tmpdir, json.dumps({
      'format_version': 1, 'num_classes': 11, 'synsets': ['n1'],
      'num_images': {'train': 4000, 'validation': 500}}))
  assert read_dataset_info(str(tmpdir)) == DatasetInfo(
      11, {'train': 4000, 'validation': 500})


def test_class_names(tmpdir):
  write_dataset_json(tmpdir, json.dumps({
      'num_classes': 3, 'num_images': {'train': 4, 'validation': 4},
      'class_names': ['tench', 'great white shark']}))
  assert read_dataset_info(str(tmpdir)).class_names == [
      'tench', 'great white shark']


@pytest.mark.parametrize('content', [
    '', '{"num_classes": 11', '[]', '7', 'null', '{}',
    '{"num_classes": 11}',
    '{"num_classes": 11, "num_images": {"train": 4}}',
    '{"num_classes": 11, "num_images": [4, 4]}',
    '{"num_classes": null, "num_images": {"train": 4, "validation": 4}}',
    '{"num_classes": "ten", "num_images": {"train": 4, "validation": 4}}',
    '{"num_classes": 0, "num_images": {"train": 4, "validation": 4}}',
    '{"num_classes": 1e999, "num_images": {"train": 4, "validation": 4}}',
    pytest.param('[' * 10**5, id='nested'),
    '{"num_images": {"train": 4, "validation": 4}}',
    *('{"num_classes": 3, "num_images": {"train": 4, "validation": 4}, '
      '"class_names": %s}' % names
      for names in ('["a"]', '["a", "b", "c"]', '["a", 5]', '"ab"', '{}'))])
def test_dataset_json_of_another_content_is_named(tmpdir, content):
  write_dataset_json(tmpdir, content)
  message = message_of(read_dataset_info, str(tmpdir))
  assert message.startswith('{}: '.format(tmpdir.join('dataset.json')))
  assert 'build the records again' in message


# ---- Finding shards ----------------------------------------------------------

def test_dataset_json_that_is_no_file(tmpdir):
  """Defect 18: to open a FIFO waits forever."""
  path = os.path.join(str(tmpdir), 'dataset.json')
  os.mkfifo(path)
  with pytest.raises(UserError) as caught:
    read_dataset_info(str(tmpdir))
  assert str(caught.value).startswith(path + ': not a regular file')


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


@pytest.mark.parametrize('names, message', [
    (None, '--data_dir {0}: no such folder'),
    (['validation-00000-of-00001'], '--data_dir {0}: no train shards ('),
    ([SHARDS[0], SHARDS[2]],
     '{0}/train-00001-of-00003: missing; build or copy it again'),
    (SHARDS + ['train-00000-of-00002'],
     '{0}: shards of 2 different sets (train-*-of-00002 and -of-00003); keep'),
    (SHARDS + ['train-00003-of-00003'],
     '{0}/train-00003-of-00003: its number is not below its total'),
    (['train-00000-of-00000'],
     '{0}/train-00000-of-00000: its number is not below its total')])
def test_incomplete_sets_of_shards(tmpdir, names, message):
  folder = str(tmpdir.join('data'))
  if names:
    touch(folder, *names)
  assert message_of(find_shards, folder, 'train').startswith(
      message.format(folder))


def test_a_shard_that_is_no_file(tmpdir):
  """Reading a FIFO would wait for ever."""
  folder = str(tmpdir.join('train'))
  touch(folder, SHARDS[0], SHARDS[2])
  os.mkfifo(os.path.join(folder, SHARDS[1]))
  assert message_of(find_shards, str(tmpdir), 'train').startswith(
      os.path.join(folder, SHARDS[1]) + ': not a regular file')


# ---- Counting records --------------------------------------------------------

def record_sizes(num_records, seed=0):
  return [1 + (7919 * (i + seed)) % 301 for i in range(num_records)]


def write_random_shards(folder, images_per_shard):
  records = [b'r' * size for size in record_sizes(sum(images_per_shard))]
  return tiny_records.write_shards(
      str(folder), 'train', records, images_per_shard)


def test_counts_are_those_of_tensorflow(tmpdir):
  images_per_shard = [4, 0, 1, 17, 0, 0, 33] + [2] * 30 + [0]
  paths = write_random_shards(tmpdir, images_per_shard)
  assert count_records(paths) == images_per_shard
  assert images_per_shard == [
      sum(1 for _ in tf.python_io.tf_record_iterator(path)) for path in paths]


def damaged(path, damage):
  """Damages a shard of five records; returns the number of the record hit."""
  frames = list(imagenet_shards.record_frames(path))
  with open(path, 'rb') as shard:
    content = shard.read()
  third = frames[2][0]
  length = lambda n: struct.pack('<Q', n)
  content, number = {
      'cut in a header': (content[:third + 5], 2),
      'cut in the data': (content[:third + 20], 2),
      'cut in the last checksum': (content[:-1], 4),
      'length with a flipped bit': (
          content[:third] + length(frames[2][1] ^ 8) + content[third + 8:], 2),
      'enormous length': (
          content[:third] + length(2**64 - 1) + content[third + 8:], 2),
      'many bytes behind': (content + b'garbage' * 11, 5),
      'filled up with zeros': (
          content[:third] + bytes(len(content) - third), 2),
      'nothing but zeros': (bytes(16 * 4), 0),
  }[damage]
  with open(path, 'wb') as shard:
    shard.write(content)
  return number


@pytest.mark.parametrize('damage', [
    'cut in a header', 'cut in the data', 'cut in the last checksum',
    'length with a flipped bit', 'enormous length', 'many bytes behind',
    'filled up with zeros', 'nothing but zeros'])
def test_a_damaged_shard_is_named_with_record_and_position(tmpdir, damage):
  paths = write_random_shards(tmpdir, [3, 5, 4])
  offset_of = dict(enumerate(
      offset for offset, _ in imagenet_shards.record_frames(paths[1])))
  offset_of[5] = os.path.getsize(paths[1])
  number = damaged(paths[1], damage)
  assert message_of(count_records, paths) == (
      '{}: truncated or corrupt at record {} (byte {:,} of {:,}); build or '
      'copy this shard again'.format(
          paths[1], number, offset_of[number], os.path.getsize(paths[1])))


def test_a_damaged_byte_is_left_to_the_reading(tmpdir):
  path, = write_random_shards(tmpdir, [5])
  offsets = [offset for offset, _ in imagenet_shards.record_frames(path)]
  with open(path, 'r+b') as shard:
    shard.seek(offsets[3] + 12)
    shard.write(b'x')
  assert count_records([path]) == [5]
  corrupt = imagenet_shards.corrupt_record_error
  assert 'record 3 (byte {:,} of'.format(offsets[3]) in str(corrupt(path))
  assert 'record 3 ' in str(corrupt(path, last_offset=offsets[3]))
  assert corrupt(path, last_offset=offsets[2]) is None


# ---- A whole split -----------------------------------------------------------

def make_split(tmpdir, images_per_shard, more=None):
  records = [tiny_records.make_record(b'jpeg', 1, 'n.JPEG', more)
             for _ in range(sum(images_per_shard))]
  return tiny_records.write_shards(
      str(tmpdir.join('train')), 'train', records, images_per_shard)


def info(num_train):
  return DatasetInfo(11, {'train': num_train, 'validation': 4})


def test_a_split_has_its_paths_and_counts(tmpdir, capsys):
  paths = make_split(tmpdir, [0, 3, 4])
  write_dataset_json(tmpdir, '{}')
  assert count_split(str(tmpdir), 'train', info(7)) == (
      paths, [0, 3, 4])
  assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('count', [6, 8, 1008])
def test_a_count_that_disagrees_with_dataset_json(tmpdir, count):
  make_split(tmpdir, [3, 4])
  write_dataset_json(tmpdir, '{}')
  assert message_of(count_split, str(tmpdir), 'train', info(count)) == (
      '{}: the shards hold 7 records where dataset.json says {:,}; build or '
      'copy the records again'.format(tmpdir.join('train'), count))


def test_another_count_than_imagenets_is_said(tmpdir, capsys):
  paths = make_split(tmpdir, [3, 4])
  assert count_split(str(tmpdir), 'train', info(1281167)) == (
      paths, [3, 4])
  assert capsys.readouterr().err == (
      '{}: 7 records where ImageNet has 1,281,167 images\n'.format(
          tmpdir.join('train')))


def test_a_split_without_records(tmpdir):
  make_split(tmpdir, [0, 0])
  assert message_of(count_split, str(tmpdir), 'train', info(0)) == (
      '{}: the train shards hold no record'.format(tmpdir.join('train')))


@pytest.mark.parametrize('more, missing', [
    ({'image/encoded': None}, 'image/encoded'),
    ({'image/class/label': None}, 'image/class/label')])
def test_records_of_other_features(tmpdir, more, missing):
  paths = make_split(tmpdir, [0, 2], more)
  message = message_of(count_split, str(tmpdir), 'train', info(2))
  assert message.startswith(
      '{}: record 0 has no {};'.format(paths[1], missing))


@pytest.mark.filterwarnings('ignore:Unexpected end-group tag')
@pytest.mark.parametrize('record', [
    b'hello world', bytes(bytearray(range(256))), b''])
def test_records_that_are_no_examples(tmpdir, record):
  path, = tiny_records.write_shards(str(tmpdir), 'train', [record], [1])
  assert message_of(count_split, str(tmpdir), 'train', info(1)).startswith(
      path + ': record 0 has no image/encoded;')


def test_a_first_record_with_a_damaged_byte(tmpdir):
  paths = make_split(tmpdir, [3, 4])
  with open(paths[0], 'r+b') as shard:
    shard.seek(20)
    shard.write(b'\0')
  assert message_of(count_split, str(tmpdir), 'train', info(7)).startswith(
      paths[0] + ': truncated or corrupt at record 0 (byte 0 of ')


# ---- Reading from a row on ---------------------------------------------------

def random_layout(seed):
  rng = random.Random(seed)
  return [rng.choice([0, 0, 1, 2, 3, rng.randrange(20)])
          for _ in range(rng.randrange(1, 45))]


LAYOUTS = [[], [0], [5], [3] * 10, [3] * 25, [0] * 12 + [2], list(range(13)),
           list(range(13, 0, -1)), [50] + [1] * 40, [7, 0] * 15] + [
               random_layout(seed) for seed in range(12)]


def interleaved(shards, cycle_length):
  """The reading order, one record after the other; a slow, plain reference.

  Args:
    shards: a list of lists of records.
    cycle_length: number of places.
  """
  waiting = [list(shard) for shard in shards]
  places, order = [None] * cycle_length, []
  while waiting or any(place is not None for place in places):
    for turn in range(cycle_length):
      if places[turn] is None and waiting:
        places[turn] = waiting.pop(0)
      if places[turn]:
        order.append(places[turn].pop(0))
      else:
        places[turn] = None
  return order


@pytest.mark.parametrize('cycle_length', [2, 10])
def test_reading_from_any_row(cycle_length):
  for counts in LAYOUTS:
    records = [[(shard, number) for number in range(count)]
               for shard, count in enumerate(counts)]
    whole = interleaved(records, cycle_length)
    for row in range(len(whole) + 1):
      rest = shards_from_row(range(len(counts)), counts, row, cycle_length)
      assert interleaved([records[shard][skip:] for shard, skip in rest],
                         cycle_length) == whole[row:], (counts, row)


def test_reading_from_a_row_with_tensorflow(tmpdir):
  """In its own interleave, as `imagenet_input.split_dataset` reads."""
  layout = [3, 0, 1, 7] * 4
  records = [b'%d' % number for number in range(sum(layout))]
  paths = tiny_records.write_shards(str(tmpdir), 'train', records, layout)
  with tf.Graph().as_default(), tf.Session() as session:
    shards = tf.placeholder(tf.string, [None])
    skipped = tf.placeholder(tf.int64, [None])
    iterator = imagenet_input.split_dataset(shards, skipped).batch(
        1000).make_initializable_iterator()
    batch = iterator.get_next()
    for row in range(sum(layout)):
      names, counts = zip(*shards_from_row(paths, layout, row))
      session.run(iterator.initializer, {shards: names, skipped: counts})
      assert session.run(batch).tolist() == [
          records[i] for i in tiny_records.reading_order(layout)[row:]]


@pytest.mark.parametrize('row', [-1, 8])
def test_rows_that_are_not_there(row):
  with pytest.raises(ValueError):
    shards_from_row(['a', 'b'], [3, 4], row, 10)
