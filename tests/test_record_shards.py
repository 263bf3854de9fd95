"""Writing shards: the same bytes by any number of processes, checked twice."""

import os

import pytest

import record_shards
from image_index import ImageFile, ImageIndex
from refusals import refused
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
  return ImageIndex(CLASSES, [(str(path), [
      ImageFile(b'folder/%d.jpg' % i, sum(sizes[:i]), sizes[i], 0)
      for i in range(NUM_IMAGES)], [1 + i % 2 for i in range(NUM_IMAGES)])])


def plan(tmp_path, sizes):
  folder = tmp_path / 'train'
  folder.mkdir()
  return record_shards.plan_shards('train', str(folder), sizes)


def write(shard, images, is_decoding=False):
  entry = record_shards.write_shard(
      shard, images, (None, None), is_decoding, False)
  assert not os.path.exists(shard.path)
  os.rename(record_shards.unfinished_path(shard.path), shard.path)
  return entry


def test_what_is_read_must_be_what_was_written(tmp_path, images, monkeypatch):
  def write_record(record_file, *record):
    record_shards_write_record(record_file, *record)
    return 5
  record_shards_write_record = record_shards.write_record
  monkeypatch.setattr(record_shards, 'write_record', write_record)
  shard = plan(tmp_path, [9])[0]
  assert shard.path in refused(write, shard, images)
  assert not os.path.exists(shard.path)


# Checking what is there.


@pytest.mark.parametrize('changes, words', [
    ({'image/class/label': 3}, 'label 3 '),
    ({'image/class/label': 2**64 - 1}, 'label '),  # As -1 is stored.
    ({'image/encoded': None}, 'image/encoded'),
    ({'image/encoded': encode(0)[:-2]}, 'cut short'),
    ({'image/encoded': encode(0, 'CMYK')}, 'JPEG'),
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
  message = refused(record_shards.check_records, path, 3, False)
  assert message.startswith(path + ': record 2: ') and words in message


def test_only_decoding_shows_a_missing_table(tmp_path):
  data = encode(0).replace(b'\xff\xdb', b'\xff\xfe')  # Comments now.
  path = tmp_path / 'spoiled'
  path.write_bytes(data)
  images = ImageIndex(CLASSES, [
      (str(path), [ImageFile(b'a.jpg', 0, len(data), 0)], 1)])
  shard = plan(tmp_path, [1])[0]
  assert not write(shard, images)['decoded']
  record_shards.check_records(shard.path, 3, False)
  assert 'record 0: ' in refused(
      record_shards.check_records, shard.path, 3, True)
  os.remove(shard.path)
  assert 'a.jpg: ' in refused(write, shard, images, is_decoding=True)
