"""Writing shards: the same bytes by any number of processes, checked twice."""

import hashlib
import os

import numpy as np
import pytest

import record_shards
from image_index import IndexBuilder
from record_shards import ShardWriter
from tiny_archives import encode
from tools_command_line import InputError, unfinished_path

CLASSES = ['cat', 'dog']
NUM_IMAGES = 9


@pytest.fixture
def images(tmp_path):
  """An index of 9 images in one file, and its path."""
  path = tmp_path / 'images'
  data = [encode(i, size=(8 + i, 7)) for i in range(NUM_IMAGES)]
  path.write_bytes(b''.join(data))
  sizes = [len(image) for image in data]
  builder = IndexBuilder(CLASSES)
  builder.add_container(str(path), [
      (b'folder/%d.jpg' % i, sum(sizes[:i]), sizes[i])
      for i in range(NUM_IMAGES)], [1 + i % 2 for i in range(NUM_IMAGES)])
  return builder.finish()


def spoil(images, i):
  """Makes the i-th image one that is cut short."""
  with open(images.containers[0], 'r+b') as archive:
    archive.seek(images[i].offset + images[i].size - 2)
    archive.write(b'\0\0')


def plan(tmp_path, sizes):
  folder = tmp_path / 'train'
  folder.mkdir()
  return record_shards.plan_shards('train', str(folder), sizes)


def write(shard, images, texts=None, is_decoding=False, is_skipping=False):
  steps = []
  entry = ShardWriter({'train': images}, texts, is_decoding, is_skipping).write(
      shard, lambda: steps.append(1))
  assert len(steps) == shard.stop - shard.first
  assert not os.path.exists(shard.path)
  record_shards.give_name(shard)
  assert not os.path.exists(unfinished_path(shard.path))
  return entry


def features(path):
  records = []
  record_shards.read_shard(
      path, lambda record, crc: records.append(
          record_shards.parse_example(bytes(record))))
  return records


def test_plan(tmp_path):
  shards = plan(tmp_path, [4, 4, 1, 0])
  assert [(shard.first, shard.stop) for shard in shards] == [
      (0, 4), (4, 8), (8, 9), (9, 9)]
  assert [os.path.basename(shard.path) for shard in shards] == [
      'train-0000{}-of-00004'.format(i) for i in range(4)]


@pytest.mark.parametrize('texts', [None, ['a cat', 'b\u0153uf']])
def test_contents(tmp_path, images, texts):
  shard = plan(tmp_path, [4, 5])[1]
  entry = write(shard, images, texts)
  with open(shard.path, 'rb') as opened:
    content = opened.read()
  assert entry == {
      'shard': 'train-00001-of-00002', 'bytes': len(content), 'records': 5,
      'sha256': hashlib.sha256(content).hexdigest(), 'decoded': False,
      'skipped': []}
  for i, record in enumerate(features(shard.path), 4):
    expected = {
        'image/encoded': [encode(i, size=(8 + i, 7))],
        'image/class/label': [1 + i % 2],
        'image/class/synset': [CLASSES[i % 2].encode()],
        'image/filename': [b'%d.jpg' % i],
        'image/height': [7], 'image/width': [8 + i],
        'image/colorspace': [b'RGB'], 'image/channels': [3],
        'image/format': [b'JPEG']}
    if texts:
      expected['image/class/text'] = [texts[i % 2].encode('utf-8')]
    assert record == expected


def test_empty_shard(tmp_path, images):
  shard = plan(tmp_path, [9, 0])[1]
  entry = write(shard, images)
  assert (entry['bytes'], entry['records']) == (0, 0)
  assert os.path.getsize(shard.path) == 0


def test_more_images_than_are_read_ahead(tmp_path, images, monkeypatch):
  monkeypatch.setattr(record_shards, '_IMAGES_AHEAD', 2)
  asked = []
  if hasattr(os, 'posix_fadvise'):
    monkeypatch.setattr(
        os, 'posix_fadvise', lambda descriptor, offset, size, advice: (
            advice == os.POSIX_FADV_WILLNEED and asked.append(offset)))
  shard = plan(tmp_path, [9])[0]
  shuffled = images.take(np.random.RandomState(0).permutation(9))
  assert write(shard, shuffled)['records'] == 9
  if asked:  # Each one once, those of a window in the order of the disk.
    assert sorted(asked) == sorted(images.offset.tolist())
    assert asked[:4] == sorted(shuffled.offset[:4].tolist())
    assert asked[4:6] == sorted(shuffled.offset[4:6].tolist())


def test_bad_image_stops_or_is_left_out(tmp_path, images):
  spoil(images, 3)
  spoil(images, 4)
  shards = plan(tmp_path, [4, 5])
  with pytest.raises(InputError) as error:
    write(shards[0], images)
  path = os.path.join(images.containers[0], 'folder/3.jpg')
  assert path + ': not a whole image' in str(error.value)
  assert '--skip_bad_images' in str(error.value)
  assert not os.path.exists(shards[0].path)

  entries = [write(shard, images, is_skipping=True) for shard in shards]
  for entry, position, name, names in (
      (entries[0], 3, 'folder/3.jpg', ['0', '1', '2']),
      (entries[1], 0, 'folder/4.jpg', ['5', '6', '7', '8'])):
    bad, = entry['skipped']
    assert (bad['position'], bad['image']) == (position, name)
    assert entry['records'] == len(names)
  assert [record['image/filename'] for record in features(shards[1].path)] == [
      [name.encode() + b'.jpg'] for name in names]
  # Image 0, then the first of the second shard (5), then 1, and so on.
  assert record_shards.labels_in_reading_order(
      images, shards, entries).tolist() == [
          1 + i % 2 for i in (0, 5, 1, 6, 2, 7, 8)]


def test_decoding(tmp_path, images, monkeypatch):
  decoded = []
  monkeypatch.setattr(record_shards, 'decode_image', decoded.append)
  shard = plan(tmp_path, [9])[0]
  assert not write(shard, images)['decoded'] and not decoded
  os.remove(shard.path)
  assert write(shard, images, is_decoding=True)['decoded']
  assert decoded == [encode(i, size=(8 + i, 7)) for i in range(NUM_IMAGES)]


def test_archive_that_vanishes(tmp_path, images):
  shard = plan(tmp_path, [9])[0]
  os.remove(images.containers[0])
  with pytest.raises(InputError) as error:
    write(shard, images)
  assert 'folder/0.jpg: cannot be read' in str(error.value)


def test_what_is_read_must_be_what_was_written(tmp_path, images, monkeypatch):
  def write_record(record_file, *record):
    record_shards_write_record(record_file, *record)
    return 5
  record_shards_write_record = record_shards.write_record
  monkeypatch.setattr(record_shards, 'write_record', write_record)
  shard = plan(tmp_path, [9])[0]
  with pytest.raises(InputError) as error:
    write(shard, images)
  assert 'not read as it was written' in str(error.value)
  assert not os.path.exists(shard.path)


def test_a_shard_has_its_name_only_when_it_is_on_the_disk(
    tmp_path, images, monkeypatch):
  shard = plan(tmp_path, [9])[0]
  synced = []

  def fsync(descriptor):
    assert not os.path.exists(shard.path)
    assert os.path.samestat(
        os.fstat(descriptor), os.stat(unfinished_path(shard.path)))
    synced.append(os.fstat(descriptor).st_size)
  monkeypatch.setattr(os, 'fsync', fsync)
  if hasattr(os, 'posix_fadvise'):  # Nothing is dropped before.
    monkeypatch.setattr(os, 'posix_fadvise', lambda *args: synced or (
        args[-1] != os.POSIX_FADV_DONTNEED or pytest.fail()))
  assert write(shard, images)['bytes'] == synced[0]


# Checking what is there.


def check(path, num_classes=3, is_decoding=False):
  steps = []
  contents = record_shards.check_records(
      path, num_classes, is_decoding, lambda: steps.append(1))
  assert len(steps) == contents['records']
  return contents


def test_check_of_a_whole_shard(tmp_path, images):
  shard = plan(tmp_path, [9])[0]
  entry = write(shard, images)
  assert check(shard.path, is_decoding=True) == {
      'bytes': entry['bytes'], 'records': 9, 'sha256': entry['sha256'],
      'labels': images.label.tolist()}


def test_check_of_a_truncated_shard(tmp_path, images):
  shard = plan(tmp_path, [9])[0]
  size = write(shard, images)['bytes']
  os.truncate(shard.path, size - 1)
  with pytest.raises(InputError) as error:
    check(shard.path)
  assert '{}: truncated or corrupt at record 8 '.format(shard.path) in str(
      error.value)


@pytest.mark.parametrize('changes, words', [
    ({'image/class/label': 3}, 'label 3 is out of range'),
    ({'image/class/label': 2**64 - 1}, 'is out of range'),  # As -1 is stored.
    ({'image/class/label': 'cat'}, 'no image/class/label'),
    ({'image/class/label': None}, 'no image/class/label'),
    ({'image/encoded': None}, 'no image/encoded'),
    ({'image/encoded': 4}, 'no image/encoded'),
    ({'image/encoded': b'text'}, ''),
    ({'image/encoded': encode(0)[:-2]}, 'cut short'),
    ({'image/encoded': encode(0, 'CMYK')}, 'not an RGB or greyscale JPEG'),
    ({'image/encoded': encode(0, file_format='PNG')},
     'not an RGB or greyscale JPEG'),
    (None, '')])
def test_check_of_records_that_a_reader_would_not_take(
    tmp_path, changes, words):
  values = {'image/encoded': encode(0), 'image/class/label': 2}
  good = record_shards.serialized_example(values)
  values.update(changes or {})
  bad = [b'no Example'] if changes is None else (
      record_shards.serialized_example({
          name: value for name, value in values.items() if value is not None}))
  path = str(tmp_path / 'train-00000-of-00001')
  with open(path, 'wb') as record_file:
    for record in (good, good, bad):
      record_shards.write_record(record_file, *record)
  with pytest.raises(InputError) as error:
    check(path)
  assert str(error.value).startswith(path + ': record 2: ')
  assert words in str(error.value) and '\n' not in str(error.value)


def test_check_decodes_if_asked_to(tmp_path, images, monkeypatch):
  def decode_image(data):
    raise ValueError('bad pixels')
  monkeypatch.setattr(record_shards, 'decode_image', decode_image)
  shard = plan(tmp_path, [9])[0]
  write(shard, images)
  check(shard.path)
  with pytest.raises(InputError) as error:
    check(shard.path, is_decoding=True)
  assert 'record 0: bad pixels' in str(error.value)
