"""Writing shards: the same bytes by any number of processes, checked twice."""

import hashlib
import os

import numpy as np
import pytest

import record_shards
from image_index import ImageFile, IndexBuilder
from shared_terminal import UserError
from tiny_archives import encode

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
      ImageFile(b'folder/%d.jpg' % i, sum(sizes[:i]), sizes[i], 0)
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


def write(shard, images, texts=(None, None), is_decoding=False,
          is_skipping=False):
  entry = record_shards.write_shard(
      shard, images, texts, is_decoding, is_skipping)
  assert not os.path.exists(shard.path)
  os.rename(record_shards.unfinished_path(shard.path), shard.path)
  return entry


def features(path):
  return [record_shards.parse_example(record) for record, _ in
          record_shards.read_records(path, hashlib.sha256())]


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
  with pytest.raises(UserError) as error:
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
      images.label, shards, entries).tolist() == [
          1 + i % 2 for i in (0, 5, 1, 6, 2, 7, 8)]


def test_what_is_read_must_be_what_was_written(tmp_path, images, monkeypatch):
  def write_record(record_file, *record):
    record_shards_write_record(record_file, *record)
    return 5
  record_shards_write_record = record_shards.write_record
  monkeypatch.setattr(record_shards, 'write_record', write_record)
  shard = plan(tmp_path, [9])[0]
  with pytest.raises(UserError) as error:
    write(shard, images)
  assert 'reads otherwise than it was written' in str(error.value)
  assert not os.path.exists(shard.path)


# Checking what is there.


def check(path, num_classes=3, is_decoding=False):
  return record_shards.check_records(path, num_classes, is_decoding)


@pytest.mark.parametrize('changes, words', [
    ({'image/class/label': 3}, 'label 3 is out of range'),
    ({'image/class/label': 2**64 - 1}, 'is out of range'),  # As -1 is stored.
    ({'image/class/label': None}, 'no image/class/label'),
    ({'image/encoded': None}, 'no image/encoded'),
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
  with pytest.raises(UserError) as error:
    check(path)
  assert str(error.value).startswith(path + ': record 2: ')
  assert words in str(error.value) and '\n' not in str(error.value)


def test_only_decoding_shows_a_missing_table(tmp_path, images):
  data = encode(0).replace(b'\xff\xdb', b'\xff\xfe')  # Comments now.
  path = tmp_path / 'spoiled'
  path.write_bytes(data)
  builder = IndexBuilder(CLASSES)
  builder.add_container(str(path), [ImageFile(b'a.jpg', 0, len(data), 0)], 1)
  shard = plan(tmp_path, [1])[0]
  assert not write(shard, builder.finish())['decoded']
  check(shard.path)
  with pytest.raises(UserError) as error:
    check(shard.path, is_decoding=True)
  assert 'record 0: ' in str(error.value)
  os.remove(shard.path)
  with pytest.raises(UserError) as error:
    write(shard, builder.finish(), is_decoding=True)
  assert 'a.jpg: not a whole image' in str(error.value)
