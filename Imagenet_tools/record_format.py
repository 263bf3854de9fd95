"""The bytes of a TFRecord file of `tf.train.Example`s, without TensorFlow.

Written here, they are the same on every machine: the fields of an Example are
a map, which TensorFlow may write in any order. That they are TensorFlow's own
bytes, its tests say.

Sources: tensorflow/core/lib/io/record_writer.h (framing, October 2018);
tensorflow/core/example/{example,feature}.proto; the wire format of Protocol
Buffers, developers.google.com/protocol-buffers/docs/encoding.
"""

import collections
import functools
import os
import struct

import numpy as np

import crc32c

# Framing: length (8 bytes) and its CRC (4), the record, the record's CRC (4).
_LENGTH = struct.Struct('<Q')
_CRC = struct.Struct('<I')
_HEADER_BYTES = _LENGTH.size + _CRC.size
FRAME_BYTES = _HEADER_BYTES + _CRC.size

_CRC_MASK = 0xA282EAD8
_ONES = 0xFFFFFFFF

# How much is read before its CRCs are checked together.
_GROUP_BYTES = 2**21

# Of a file of records. Larger pieces, which images are, pass by the buffer.
BUFFER_BYTES = 2**12

# A record in a file: which one, from 0; the bytes before it; itself, as bytes;
# its masked CRC, as stated.
_Frame = collections.namedtuple('_Frame', 'number offset record crc')

# Wire types: what kind of value a field has.
_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}

# Field numbers of the messages in example.proto and feature.proto.
_BYTES_LIST, _INT64_LIST = 1, 3  # Of Feature; all others here are 1, map
_KEY, _VALUE = 1, 2              # entries apart.


class CorruptRecordError(ValueError):
  """A TFRecord file that ends or differs from its checksum at a record."""

  def __init__(self, number, offset):
    """
    Args:
      number: of the record, from 0.
      offset: bytes before it.
    """
    super(CorruptRecordError, self).__init__(number, offset)
    self.number, self.offset = number, offset


def _masked(crc):
  """A CRC as TFRecords store it, so that CRCs of CRCs can be taken."""
  return ((crc >> 15 | crc << 17) + _CRC_MASK) & _ONES


def _unmasked(crc):
  rotated = (crc - _CRC_MASK) & _ONES
  return (rotated >> 17 | rotated << 15) & _ONES


def masked_crc(*pieces):
  """CRC-32C of bytes that follow one another as TFRecords store it: an int."""
  return _masked(crc32c.crc32c(*pieces))


def write_record(record_file, *pieces):
  """Appends a record to a file; returns its masked CRC.

  Args:
    record_file: opened for writing.
    *pieces: bytes, what the record is made of.
  """
  length = _LENGTH.pack(sum(map(len, pieces)))
  crc = masked_crc(*pieces)
  record_file.write(length + _CRC.pack(masked_crc(length)))
  for piece in pieces:
    record_file.write(piece)
  record_file.write(_CRC.pack(crc))
  return crc


def read_records(record_file, digest):
  """Yields each record of a TFRecord file and checks its CRCs.

  Args:
    record_file: opened for reading, at its start.
    digest: of hashlib; gets all that is read.

  Yields:
    `(record, crc)`: bytes, and its masked CRC.

  Raises:
    CorruptRecordError: a record is cut short or has another CRC.
  """
  group, group_bytes = [], 0
  for frame in _read_frames(record_file, digest):
    group.append(frame)
    group_bytes += len(frame.record)
    # Each by itself, while it is in the processor's cache, or many at once.
    if group_bytes > _GROUP_BYTES or crc32c.is_compiled():
      _check_crcs(group)
      for frame in group:
        yield frame.record, frame.crc
      group, group_bytes = [], 0
  _check_crcs(group)
  for frame in group:
    yield frame.record, frame.crc


def _read_frames(record_file, digest):
  """Yields the `_Frame`s of a file, whose lengths have been checked."""
  size = os.fstat(record_file.fileno()).st_size
  number, offset = 0, 0
  while offset < size:
    header = record_file.read(_HEADER_BYTES)
    digest.update(header)
    length = header[:_LENGTH.size]
    if header[_LENGTH.size:] != _CRC.pack(masked_crc(length)):
      raise CorruptRecordError(number, offset)
    record_bytes, = _LENGTH.unpack(length)
    end = offset + FRAME_BYTES + record_bytes
    if end > size:  # Before so many bytes are asked for.
      raise CorruptRecordError(number, offset)
    record = record_file.read(record_bytes)
    stated_crc = record_file.read(_CRC.size)
    digest.update(record)
    digest.update(stated_crc)
    if len(stated_crc) < _CRC.size:  # It has become shorter meanwhile.
      raise CorruptRecordError(number, offset)
    crc, = _CRC.unpack(stated_crc)
    yield _Frame(number, offset, record, crc)
    number, offset = number + 1, end


def _check_crcs(group):
  """Raises `CorruptRecordError` if a record has another CRC than it states."""
  if not crc32c.is_compiled() and _are_sound_together(group):
    return
  for frame in group:
    if masked_crc(frame.record) != frame.crc:
      raise CorruptRecordError(frame.number, frame.offset)


def _are_sound_together(group):
  """Whether the CRCs of records are those stated, taken all at once by NumPy.

  Records are added up (XOR), so as to end together, which takes a tenth of the
  time of their CRCs: the sum must have the sum of the remainders. Errors that
  two records have at the same places would cancel out; otherwise this finds as
  much as each CRC does. Which record is corrupt, if one is, its own CRC tells.
  """
  longest = max([len(frame.record) for frame in group] or [0])
  total = np.zeros(longest, np.uint8)
  expected = 0
  for frame in group:
    end_of_total = total[longest - len(frame.record):]
    np.bitwise_xor(end_of_total, np.frombuffer(frame.record, np.uint8),
                   end_of_total)
    end_of_total[:4] ^= 0xFF  # As `crc32c` does.
    unmet_ones = _ONES >> (8 * len(frame.record))
    expected ^= _unmasked(frame.crc) ^ unmet_ones ^ _ONES
  return crc32c.remainder(total) == expected


def _tag(field, wire_type=_LENGTH_DELIMITED):
  return bytes([field << 3 | wire_type])


def _varint(value):
  """A non-negative int in groups of seven bits, the lowest ones first."""
  if value <= 0x7F:  # Most are.
    return bytes([value])
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
      gets a list of that one value.

  Returns:
    A list of bytes; joined, they are what
    `Example.SerializeToString(deterministic=True)` gives. Values of the type
    bytes are among them as they are, not copied.
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


def _read_varint(message, position):
  """Returns `(value, position behind it)`; ValueError if it does not end."""
  value, shift = 0, 0
  for position in range(position, min(position + 10, len(message))):
    byte = message[position]
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value, position + 1
    shift += 7
  raise ValueError('a number is cut short')


def _fields(message):
  """Lists `(number, value)` of a message's fields, values int or memoryview.

  Raises:
    ValueError: it is not a message.
  """
  fields, position, end = [], 0, len(message)
  while position < end:
    key, position = _read_varint(message, position)
    wire_type = key & 7
    if wire_type == _VARINT:
      value, position = _read_varint(message, position)
    else:
      if wire_type == _LENGTH_DELIMITED:
        num_bytes, position = _read_varint(message, position)
      elif wire_type in _FIXED_BYTES:
        num_bytes = _FIXED_BYTES[wire_type]
      else:
        raise ValueError('a field is of no known type')
      value = message[position:position + num_bytes]
      if len(value) != num_bytes:
        raise ValueError('a field is cut short')
      position += num_bytes
    fields.append((key >> 3, value))
  return fields


def _messages(message, number):
  """Values of the fields `number` of a message, which must be messages."""
  values = [value for field, value in _fields(message) if field == number]
  if any(isinstance(value, int) for value in values):
    raise ValueError('a number stands where a message is expected')
  return values


def parse_example(record):
  """Reads a serialized `tf.train.Example`, whoever has written it.

  Args:
    record: bytes.

  Returns:
    A dict from names to lists of int or of memoryview; floats are left out.

  Raises:
    ValueError: it is not an Example.
  """
  features = {}
  for message in _messages(memoryview(record), 1):
    for entry in _messages(message, 1):
      name, values = b'', []
      for field, value in _fields(entry):
        if field == _KEY:
          name = bytes(value)
        elif field == _VALUE:
          values = _feature_values(value)
      features[name.decode('utf-8', 'surrogateescape')] = values
  return features


def _feature_values(feature):
  values = []
  for kind, value_list in _fields(feature):
    if kind == _BYTES_LIST:
      values += _messages(value_list, 1)
    elif kind == _INT64_LIST:
      for _, numbers in _fields(value_list):
        if isinstance(numbers, int):  # Not packed, as proto2 had it.
          values.append(numbers)
          continue
        position = 0
        while position < len(numbers):
          number, position = _read_varint(numbers, position)
          values.append(number)
  return values
