"""The bytes of records: TensorFlow's own, and what is made of damaged ones."""

import hashlib
import os
import struct

import numpy as np
import pytest

import record_format
from tf_compat import tf

pytestmark = pytest.mark.usefixtures('each_crc')

FEATURES = {
    'image/encoded': b'\xff\xd8' + bytes(300), 'image/class/label': 1000,
    'image/class/synset': 'n01440764', 'image/class/text': 'b\u0153uf, \u725b',
    'image/filename': 'n01440764_1.JPEG', 'image/height': 0, 'image/width': 1,
    'a': 127, 'b': 128, 'c': 2**40, 'd': '', 'e': b'', 'f': b'x' * 20000}


def example_of(features):
  """The same features as a message of TensorFlow's."""
  def feature(value):
    if isinstance(value, int):
      return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
    if isinstance(value, str):
      value = value.encode()
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
  return tf.train.Example(features=tf.train.Features(feature={
      name: feature(value) for name, value in features.items()}))


@pytest.mark.parametrize('features', [
    FEATURES, {}, {'x': 5}, {'image/encoded': bytes(2**21)}])
def test_examples_are_tensorflows_bytes(features):
  assert b''.join(record_format.serialized_example(features)) == (
      example_of(features).SerializeToString(deterministic=True))


def test_names_that_are_not_utf8_keep_their_bytes():
  record = b''.join(record_format.serialized_example(
      {'image/filename': b'\xff.jpg'.decode('utf-8', 'surrogateescape')}))
  example = tf.train.Example.FromString(record)
  assert example.features.feature['image/filename'].bytes_list.value == [
      b'\xff.jpg']


def test_examples_of_others_are_read():
  example = example_of(FEATURES)
  example.features.feature['floats'].float_list.value.extend([1.5, 2.5])
  example.features.feature['several'].int64_list.value.extend([1, 300, 2**62])
  example.features.feature['nothing'].int64_list.SetInParent()
  example.features.feature['empty'].SetInParent()
  parsed = record_format.parse_example(example.SerializeToString())
  expected = {name: [value.encode() if isinstance(value, str) else value]
              for name, value in FEATURES.items()}
  expected.update(floats=[], several=[1, 300, 2**62], nothing=[], empty=[])
  assert parsed == expected


def test_numbers_that_are_not_packed_are_read():
  # Field 1 of Int64List twice, as proto2 wrote it.
  record = example_of({'x': 5}).SerializeToString()
  packed = b'\x1a\x03\x0a\x01\x05'
  assert packed in record
  not_packed = record.replace(packed, b'\x1a\x03\x08\x85\x01')
  assert record_format.parse_example(not_packed) == {'x': [133]}


@pytest.mark.parametrize('record', [
    b'\x0a', b'\x0a\x05abc', b'\x08\x01\x0a', b'not an Example', b'\xff' * 20,
    b'\x0a\x02\x08\x01\x0f', b'\x0a\x04\x0a\x02\x0a\x05'])
def test_what_is_no_example(record):
  with pytest.raises(ValueError):
    record_format.parse_example(record)


def test_damaged_examples_give_values_or_a_valueerror():
  record = example_of(FEATURES).SerializeToString(deterministic=True)
  random = np.random.RandomState(0)
  for _ in range(500):
    damaged = bytearray(record[:random.randint(1, 400)])
    damaged[random.randint(len(damaged))] = random.randint(256)
    try:
      record_format.parse_example(bytes(damaged))
    except ValueError:
      pass


# Files.

RECORDS = [b'', b'x', b'\xff\xd9' * 400, bytes(70000)]


def write(path, records=RECORDS):
  with open(str(path), 'wb') as record_file:
    return [record_format.write_record(record_file, record)
            for record in records]


def read(path):
  digest = hashlib.sha256()
  with open(str(path), 'rb') as record_file:
    records = [(bytes(record), crc) for record, crc in
               record_format.read_records(record_file, digest)]
  return records, digest.hexdigest()


def test_files_are_tensorflows_bytes(tmp_path):
  crcs = write(tmp_path / 'ours')
  with tf.python_io.TFRecordWriter(str(tmp_path / 'theirs')) as writer:
    for record in RECORDS:
      writer.write(record)
  content = (tmp_path / 'ours').read_bytes()
  assert content == (tmp_path / 'theirs').read_bytes()
  assert read(tmp_path / 'theirs') == (
      list(zip(RECORDS, crcs)), hashlib.sha256(content).hexdigest())
  assert list(tf.python_io.tf_record_iterator(str(tmp_path / 'ours'))) == (
      RECORDS)


def test_a_record_in_pieces_is_the_record(tmp_path):
  write(tmp_path / 'whole')
  with open(str(tmp_path / 'pieces'), 'wb') as record_file:
    for record in RECORDS:
      record_format.write_record(
          record_file, record[:1], b'', record[1:60000], record[60000:])
  assert (tmp_path / 'pieces').read_bytes() == (
      tmp_path / 'whole').read_bytes()


def test_file_that_becomes_shorter_meanwhile(tmp_path, monkeypatch):
  path = str(tmp_path / 'file')
  write(path, [bytes(70000)] * 3)
  fstat = os.fstat

  def fstat_before_the_cut(descriptor):
    status = fstat(descriptor)
    os.truncate(path, 100000)
    return status
  monkeypatch.setattr(os, 'fstat', fstat_before_the_cut)
  with pytest.raises(record_format.CorruptRecordError) as error:
    read(path)
  assert error.value.number == 1


def starts():
  offsets = [0]
  for record in RECORDS:
    offsets.append(offsets[-1] + len(record) + record_format.FRAME_BYTES)
  return offsets


@pytest.mark.parametrize('kept', [
    1, 7, 8, 11, 12, 13, 15, 17, 30, 34, 100, 840, 860, 70000])
def test_truncated_file(tmp_path, kept):
  write(tmp_path / 'whole')
  content = (tmp_path / 'whole').read_bytes()
  (tmp_path / 'part').write_bytes(content[:kept])
  with pytest.raises(record_format.CorruptRecordError) as error:
    read(tmp_path / 'part')
  offsets = starts()
  assert error.value.offset == max(o for o in offsets if o <= kept)
  assert offsets[error.value.number] == error.value.offset


def test_any_damaged_byte_is_found(tmp_path):
  write(tmp_path / 'whole', RECORDS[:3])
  content = (tmp_path / 'whole').read_bytes()
  for position in range(len(content)):
    damaged = bytearray(content)
    damaged[position] ^= 1 << position % 8
    (tmp_path / 'damaged').write_bytes(bytes(damaged))
    with pytest.raises(record_format.CorruptRecordError) as error:
      read(tmp_path / 'damaged')
    assert error.value.offset == max(o for o in starts() if o <= position)


@pytest.mark.parametrize('group_bytes', [0, 100, 2**30])
def test_records_checked_together(tmp_path, monkeypatch, group_bytes):
  """Of any lengths; whichever is damaged is found and named."""
  monkeypatch.setattr(record_format, '_GROUP_BYTES', group_bytes)
  random = np.random.RandomState(0)
  records = [random.bytes(length) for length in (
      5, 0, 300, 3, 1, 40, 299, 4, 2000, 2)]
  crcs = write(tmp_path / 'whole', records)
  assert read(tmp_path / 'whole')[0] == list(zip(records, crcs))
  content = (tmp_path / 'whole').read_bytes()
  end = 0
  for number, record in enumerate(records):
    end += len(record) + record_format.FRAME_BYTES
    for position in (end - 1, end - 4 - len(record)):  # CRC; record or CRC.
      damaged = bytearray(content)
      damaged[position] ^= 0x10
      (tmp_path / 'damaged').write_bytes(bytes(damaged))
      with pytest.raises(record_format.CorruptRecordError) as error:
        read(tmp_path / 'damaged')
      assert error.value.number == number


def test_a_length_is_not_believed_without_its_checksum(tmp_path):
  header = struct.pack('<Q', 2**62)
  good = struct.pack('<I', record_format.masked_crc(header))
  for crc in (b'\0\0\0\0', good):
    (tmp_path / 'file').write_bytes(header + crc + b'x' * 100)
    with pytest.raises(record_format.CorruptRecordError):
      read(tmp_path / 'file')


def test_empty_file(tmp_path):
  (tmp_path / 'file').write_bytes(b'')
  assert read(tmp_path / 'file')[0] == []

