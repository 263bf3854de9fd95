"""The bytes of a TFRecord file of `tf.train.Example`s, without TensorFlow.

Written here, they are the same on every machine: the features of an Example
are a map, which TensorFlow may write in any order.

Sources: tensorflow/core/lib/io/record_writer.h (framing, October 2018);
tensorflow/core/example/{example,feature}.proto; the wire format of Protocol
Buffers, developers.google.com/protocol-buffers/docs/encoding.
"""

import functools
import os
import struct

import google_crc32c

from shared_dataset import FRAME_BYTES, FRAME_HEADER_BYTES
from shared_files import explain_error
from shared_terminal import UserError

_LENGTH = struct.Struct('<Q')
_CRC = struct.Struct('<I')

# Of a file of records. Larger pieces, such as images, bypass the buffer.
BUFFER_BYTES = 2**12

# Wire types: what kind of value a field has.
_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}

# Field numbers of the messages in example.proto and feature.proto. All others
# here are 1.
_BYTES_LIST, _INT64_LIST = 1, 3  # Of Feature.
_KEY, _VALUE = 1, 2              # Of a map entry.


def masked_crc(*pieces):
  """CRC-32C (an int) of consecutive `pieces` of bytes, as TFRecords store it.

  TFRecords rotate a CRC by 15 bits and add a constant, so the CRC of bytes
  that contain CRCs is a good one.
  """
  crc = 0
  for piece in pieces:
    crc = google_crc32c.extend(crc, piece)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write_record(record_file, *pieces):
  """Appends a record, the `pieces` of bytes in turn; returns its masked CRC."""
  length = _LENGTH.pack(sum(map(len, pieces)))
  crc = masked_crc(*pieces)
  record_file.write(length + _CRC.pack(masked_crc(length)))
  for piece in pieces:
    record_file.write(piece)
  record_file.write(_CRC.pack(crc))
  return crc


def read_records(path, digest):
  """Yields `(record, crc)` of a TFRecord file: bytes, and the masked CRC.

  `digest`, of hashlib, is updated with all that is read. A record that is cut
  short or has another CRC is a `UserError`.
  """
  number = offset = 0
  with explain_error(path, 'build or copy it again', 'read'), open(
      path, 'rb') as record_file:
    size = os.path.getsize(path)
    while offset < size:
      header = record_file.read(FRAME_HEADER_BYTES)
      length = header[:_LENGTH.size]
      if header[_LENGTH.size:] != _CRC.pack(masked_crc(length)):
        break
      num_bytes, = _LENGTH.unpack(length)
      end = offset + FRAME_BYTES + num_bytes
      if end > size:  # Before so many bytes are asked for.
        break
      record, stated_crc = record_file.read(num_bytes), record_file.read(
          _CRC.size)
      crc = masked_crc(record)
      if stated_crc != _CRC.pack(crc):
        break
      for piece in (header, record, stated_crc):
        digest.update(piece)
      yield record, crc
      number, offset = number + 1, end
  if offset < size:
    raise UserError(
        f'{path}: truncated or corrupt at record {number:,} (byte {offset:,} '
        f'of {size:,}); build or copy this shard again')


def _tag(field, wire_type=_LENGTH_DELIMITED):
  return bytes([field << 3 | wire_type])


def _varint(value):
  """A non-negative int in groups of seven bits, the lowest ones first."""
  groups = bytearray()
  while value > 0x7F:
    groups.append(value & 0x7F | 0x80)
    value >>= 7
  groups.append(value)
  return bytes(groups)


def serialized_example(features):
  """Serializes a `tf.train.Example`, its features in sorted order.

  Args:
    features: a dict from names to str, bytes or non-negative int; each feature
      becomes a list of that one value.

  Returns:
    A list of bytes; joined, they are what
    `Example.SerializeToString(deterministic=True)` gives. Values of type bytes
    are among them as they are, not copied.
  """
  pieces, short = [], b''
  for name in sorted(features):
    value = features[name]
    if isinstance(value, bytes):
      pieces += [short + _before_value(name, _BYTES_LIST, len(value)), value]
      short = b''
    else:
      short += _short_entry(name, value)
  pieces.append(short)
  return [_tag(1) + _varint(sum(map(len, pieces)))] + pieces


@functools.lru_cache(maxsize=2**14)
def _short_entry(name, value):
  """The map entry of a value that other records are likely to have as well."""
  if isinstance(value, int):
    kind, value = _INT64_LIST, _varint(value)
  else:
    kind, value = _BYTES_LIST, value.encode('utf-8', 'surrogateescape')
  return _before_value(name, kind, len(value)) + value


def _before_value(name, kind, value_bytes):
  """What precedes the value of a feature: tags and lengths, outermost first."""
  # List, Feature and map entry, built from the inside out.
  value_list = _tag(1) + _varint(value_bytes)
  feature = _tag(kind) + _varint(len(value_list) + value_bytes) + value_list
  key = name.encode()
  entry = (_tag(_KEY) + _varint(len(key)) + key +
           _tag(_VALUE) + _varint(len(feature) + value_bytes) + feature)
  return _tag(1) + _varint(len(entry) + value_bytes) + entry


def parse_example(record):
  """Reads a serialized `tf.train.Example` (bytes), whoever wrote it.

  Returns a dict from names to lists of int or of memoryview, without floats;
  raises ValueError if it is not an Example.
  """
  features = {}
  try:
    for _, message in _fields(memoryview(record)):
      for _, entry in _fields(message):
        parts = dict(_fields(entry))
        features[bytes(parts[_KEY]).decode('utf-8', 'surrogateescape')] = (
            _feature_values(parts.get(_VALUE, b'')))
  except (IndexError, KeyError, TypeError):
    raise ValueError('is not an Example, or a damaged one')
  return features


def _feature_values(feature):
  values = []
  for kind, value_list in _fields(feature):
    for _, value in _fields(value_list):
      if kind == _BYTES_LIST or isinstance(value, int):
        values.append(value)  # An int where it is not packed, as in proto2.
      elif kind == _INT64_LIST:
        position = 0
        while position < len(value):
          number, position = _read_varint(value, position)
          values.append(number)
  return values


def _fields(message):
  """Yields the `(number, value)` of each field, value int or memoryview."""
  position = 0
  while position < len(message):
    key, position = _read_varint(message, position)
    wire_type = key & 7
    if wire_type == _VARINT:
      value, position = _read_varint(message, position)
    else:
      if wire_type == _LENGTH_DELIMITED:
        num_bytes, position = _read_varint(message, position)
      else:
        num_bytes = _FIXED_BYTES[wire_type]
      value = message[position:position + num_bytes]
      position += num_bytes
      if position > len(message):
        raise IndexError('a field is cut short')
    yield key >> 3, value


def _read_varint(message, position):
  """Returns `(value, position behind it)`."""
  value = shift = 0
  while True:
    byte = message[position]
    value |= (byte & 0x7F) << shift
    position, shift = position + 1, shift + 7
    if byte < 0x80:
      return value, position
