"""Tests of Imagenet/imagenet_shards.py."""

import json
import os
import struct

import pytest

from tf_compat import tf

import imagenet_shards
import tiny_records
from imagenet_shards import DatasetInfo
from imagenet_shards import count_records
from imagenet_shards import count_split
from imagenet_shards import find_shards
from imagenet_shards import read_dataset_info
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


# ----------------------------------------------------------------------------
# dataset.json
# ----------------------------------------------------------------------------
def write_dataset_json(folder, content):
  with open(os.path.join(str(folder), 'dataset.json'), 'w') as dataset_file:
    dataset_file.write(content)


def test_without_dataset_json_it_is_imagenet(tmpdir):
  info = read_dataset_info(str(tmpdir))
  assert info == (1001, {'train': 1281167, 'validation': 50000})
  info.num_images['train'] = 7  # Is the caller's own.
  assert read_dataset_info(str(tmpdir)).num_images['train'] == 1281167


def test_dataset_json_has_its_say(tmpdir):
  write_dataset_json(tmpdir, json.dumps({
      'format_version': 1, 'num_classes': 11, 'synsets': ['n1'],
      'num_images': {'train': 4000, 'validation': 500}}))
  assert read_dataset_info(str(tmpdir)) == DatasetInfo(
      11, {'train': 4000, 'validation': 500})


@pytest.mark.parametrize('content', [
    '', '{"num_classes": 11', '[]', '7', 'null', '{}',
    '{"num_classes": 11}',
    '{"num_classes": 11, "num_images": {"train": 4}}',
    '{"num_classes": 11, "num_images": [4, 4]}',
    '{"num_classes": null, "num_images": {"train": 4, "validation": 4}}',
    '{"num_classes": "ten", "num_images": {"train": 4, "validation": 4}}',
    '{"num_classes": 0, "num_images": {"train": 4, "validation": 4}}',
    '{"num_images": {"train": 4, "validation": 4}}'])
def test_dataset_json_of_another_content_is_named(tmpdir, content):
  write_dataset_json(tmpdir, content)
  message = message_of(read_dataset_info, str(tmpdir))
  assert message.startswith('{}: '.format(tmpdir.join('dataset.json')))
  assert 'build the records again' in message


# ----------------------------------------------------------------------------
# Finding shards
# ----------------------------------------------------------------------------
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


def test_names_that_glob_would_take_for_patterns(tmpdir):
  data_dir = str(tmpdir.join('data [v1] *'))
  touch(os.path.join(data_dir, 'train'), *SHARDS)
  assert len(find_shards(data_dir, 'train')) == 3


def test_the_subfolder_comes_first(tmpdir):
  touch(str(tmpdir), 'train-00000-of-00001')
  touch(str(tmpdir.join('train')), *SHARDS)
  assert len(find_shards(str(tmpdir), 'train')) == 3


def test_no_folder(tmpdir):
  message = message_of(find_shards, str(tmpdir.join('gone')), 'train')
  assert message == '--data_dir {}: no such folder'.format(tmpdir.join('gone'))


def test_no_shards(tmpdir):
  touch(str(tmpdir.join('train')), *SHARDS)
  message = message_of(find_shards, str(tmpdir), 'validation')
  assert '--data_dir {}: no validation shards'.format(tmpdir) in message


def test_a_missing_shard_is_named(tmpdir):
  folder = str(tmpdir.join('train'))
  touch(folder, SHARDS[0], SHARDS[2])
  message = message_of(find_shards, str(tmpdir), 'train')
  assert message == '{}: missing; build or copy it again'.format(
      os.path.join(folder, SHARDS[1]))


def test_the_first_of_several_missing_shards_is_named(tmpdir):
  folder = str(tmpdir.join('train'))
  touch(folder, SHARDS[1])
  message = message_of(find_shards, str(tmpdir), 'train')
  assert message.startswith('{}: missing (2 shards are)'.format(
      os.path.join(folder, SHARDS[0])))


def test_two_sets_in_one_folder(tmpdir):
  folder = str(tmpdir.join('train'))
  touch(folder, 'train-00000-of-00002', *SHARDS)
  message = message_of(find_shards, str(tmpdir), 'train')
  assert message == ('{}: shards of 2 different sets (train-*-of-00002 and '
                     '-of-00003); keep one'.format(folder))


@pytest.mark.parametrize('surplus, others', [
    ('train-00003-of-00003', SHARDS), ('train-00000-of-00000', [])])
def test_a_number_beyond_the_total(tmpdir, surplus, others):
  folder = str(tmpdir.join('train'))
  touch(folder, surplus, *others)
  assert message_of(find_shards, str(tmpdir), 'train').startswith(
      os.path.join(folder, surplus) + ': ')


# ----------------------------------------------------------------------------
# Counting records
# ----------------------------------------------------------------------------
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


def test_frames_are_where_the_records_are(tmpdir):
  path, = write_random_shards(tmpdir, [9])
  with open(path, 'rb') as shard:
    content = shard.read()
  frames = list(imagenet_shards.record_frames(path))
  records = list(tf.python_io.tf_record_iterator(path))
  assert [content[offset + 12:offset + 12 + length]
          for offset, length in frames] == records


def damaged(path, damage):
  """Damages a shard of five records; returns the number of the record hit."""
  frames = list(imagenet_shards.record_frames(path))
  with open(path, 'rb') as shard:
    content = shard.read()
  third, last = frames[2][0], frames[4][0]
  length = lambda n: struct.pack('<Q', n)
  content, number = {
      'cut in a header': (content[:third + 5], 2),
      'cut after a header': (content[:third + 12], 2),
      'cut in the data': (content[:third + 20], 2),
      'cut in the last checksum': (content[:-1], 4),
      'cut within the first header': (content[:3], 0),
      'length with a flipped bit': (
          content[:third] + length(frames[2][1] ^ 8) + content[third + 8:], 2),
      'enormous length': (
          content[:third] + length(2**64 - 1) + content[third + 8:], 2),
      # The frames that follow from it end at the end of the file.
      'length over the next record': (
          content[:last - frames[3][1] - 16] +
          length(frames[3][1] + frames[4][1] + 16) +
          content[last - frames[3][1] - 8:], 3),
      'a few bytes behind': (content + b'abc', 5),
      'many bytes behind': (content + b'garbage' * 11, 5),
      'a few zeros behind': (content + bytes(8), 5),
      'many zeros behind': (content + bytes(3 * 16), 5),
      'filled up with zeros': (
          content[:third] + bytes(len(content) - third), 2),
      'nothing but zeros': (bytes(16 * 4), 0),
  }[damage]
  with open(path, 'wb') as shard:
    shard.write(content)
  return number


@pytest.mark.parametrize('damage', [
    'cut in a header', 'cut after a header', 'cut in the data',
    'cut in the last checksum', 'cut within the first header',
    'length with a flipped bit', 'enormous length', 'a few bytes behind',
    'many bytes behind', 'a few zeros behind', 'many zeros behind',
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


def test_a_length_that_happens_to_fit_is_found_by_its_checksum(tmpdir):
  path, = write_random_shards(tmpdir, [5])
  damaged(path, 'length over the next record')
  assert count_records([path]) == [4]  # Not seen by the length fields alone,
  error = imagenet_shards.corrupt_record_error(path)  # but when it is read.
  assert 'corrupt at record 3 ' in str(error)


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


def test_an_empty_record_is_no_damage(tmpdir):
  path, = tiny_records.write_shards(
      str(tmpdir), 'train', [b'abc', b'', b'de'], [3])
  assert count_records([path]) == [3]


def test_a_sound_shard_has_no_error(tmpdir):
  path, = write_random_shards(tmpdir, [5])
  assert imagenet_shards.corrupt_record_error(path) is None


@pytest.mark.parametrize('kind', ['a link to nowhere', 'a folder'])
def test_a_shard_that_cannot_be_read_is_named(tmpdir, kind):
  path = str(tmpdir.join('train-00000-of-00001'))
  if kind == 'a folder':
    os.makedirs(path)
  else:
    os.symlink(str(tmpdir.join('gone')), path)
  assert find_shards(str(tmpdir), 'train') == [path]
  assert message_of(count_records, [path]).startswith(
      '{}: cannot be read ('.format(path))


# ----------------------------------------------------------------------------
# A whole split
# ----------------------------------------------------------------------------
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


def test_a_damaged_shard_stops_the_count_of_a_split(tmpdir):
  paths = make_split(tmpdir, [3, 4])
  with open(paths[1], 'ab') as shard:
    shard.write(b'rest')
  assert message_of(count_split, str(tmpdir), 'train', info(7)).startswith(
      paths[1] + ': truncated or corrupt at record 4 ')


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
