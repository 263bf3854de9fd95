"""The bytes of records: TensorFlow's own, and what is made of damaged ones."""

import hashlib

import pytest

import record_format
from refusals import refused
from tf_compat import tf

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


@pytest.mark.parametrize('features', [FEATURES, {}])
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


# Files.

RECORDS = [b'', b'x', b'\xff\xd9' * 400, bytes(70000)]


def write(path, records=RECORDS):
  with open(str(path), 'wb') as record_file:
    return [record_format.write_record(
        record_file, record[:1], b'', record[1:60000], record[60000:])
            for record in records]


def read(path):
  digest = hashlib.sha256()
  return (list(record_format.read_records(str(path), digest)),
          digest.hexdigest())


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


def test_any_damage_is_found(tmp_path):
  records, path = RECORDS[:3], tmp_path / 'file'
  write(path, records)
  content = path.read_bytes()
  starts = [0, 16, 33]
  for position in range(len(content)):
    flipped = bytearray(content)
    flipped[position] ^= 1 << position % 8
    number = sum(start <= position for start in starts) - 1
    for damaged in (bytes(flipped), content[:position]):
      path.write_bytes(damaged)
      if position in starts and damaged != flipped:  # Cut between records.
        assert [record for record, _ in read(path)[0]] == records[:number]
        continue
      message = refused(read, path)
      assert f'{path}: ' in message and f'record {number} ' in message
