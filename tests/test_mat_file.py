"""MATLAB files: struct arrays as MATLAB writes them, damage as one line."""

import struct

import numpy as np
import pytest

import mat_file
from tiny_devkits import MatWriter, meta_file

FIELDS = ('ILSVRC2012_ID', 'WNID', 'words')
ROWS = [(1, 'n00000003', 'tench, Tinca tinca'), (2, 'n00000012', ''),
        (3, 'n00000100', u'p\xe4rchen')]


def read(data, variable='synsets', fields=FIELDS):
  return mat_file.read_struct_array(data, variable, fields)


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('compress', [False, True])
def test_struct_array(order, compress):
  data = meta_file(ROWS, order, compress)
  assert read(data) == [list(row) for row in ROWS]
  assert read(data, fields=('words', 'ILSVRC2012_ID')) == [
      [words, number] for number, _, words in ROWS]
  # Of a kind that is passed over.
  assert read(data, fields=('children',)) == [[None]] * 3


def test_bytes_as_the_format_states_them():
  # A file of one struct with a number in a small element, put together by hand
  # from the description of the format.
  table = (
      b'\x06\0\0\0\x08\0\0\0\x02\0\0\0\0\0\0\0'  # Struct.
      b'\x05\0\0\0\x08\0\0\0\x01\0\0\0\x01\0\0\0'  # 1 x 1.
      b'\x01\0\x01\0t\0\0\0'  # Its name.
      b'\x05\0\x04\0\x08\0\0\0'  # Names of fields take 8 bytes.
      b'\x01\0\0\0\x08\0\0\0ab\0\0\0\0\0\0'
      b'\x0e\0\0\0\x30\0\0\0'
      b'\x06\0\0\0\x08\0\0\0\x06\0\0\0\0\0\0\0'  # Double,
      b'\x05\0\0\0\x08\0\0\0\x01\0\0\0\x01\0\0\0'  # 1 x 1,
      b'\x01\0\0\0\0\0\0\0'  # without a name,
      b'\x02\0\x01\0\xfa\0\0\0')  # stored in one byte.
  data = (b'MATLAB 5.0 MAT-file'.ljust(124) + b'\0\x01IM'
          + b'\x0e\0\0\0' + struct.pack('<I', len(table)) + table)
  assert read(data, 't', ('ab',)) == [[250.]]


@pytest.mark.parametrize('kind, code, value', [
    (1, 'b', -3), (2, 'B', 250), (3, 'h', -300), (4, 'H', 65000),
    (5, 'i', -70000), (6, 'I', 2**31), (7, 'f', 0.5), (9, 'd', 1e300),
    (12, 'q', -2**40), (13, 'Q', 2**40)])
@pytest.mark.parametrize('order', ['<', '>'])
def test_numbers(order, kind, code, value):
  mat = MatWriter(order)
  data = mat.file(mat.structs(['a'], [[mat.number(value, kind, code)]]))
  assert read(data, fields=('a',)) == [[float(value)]]


@pytest.mark.parametrize('kind, text', [
    (2, u'gr\xfc\xdf'), (4, u'\u72ac \U0001f415'), (16, u'\u72ac'), (16, '')])
@pytest.mark.parametrize('order', ['<', '>'])
def test_texts(order, kind, text):
  mat = MatWriter(order)
  data = mat.file(mat.structs(['a'], [[mat.text(text, kind)]]))
  assert read(data, fields=('a',)) == [[text]]


def test_values_of_other_kinds():
  mat = MatWriter()
  values = [
      mat.array(6, (2, 2), mat.element(9, bytes(32))),  # Several numbers.
      mat.array(6, (0, 0), mat.element(9, b'')),
      mat.array(6, (1, 1), mat.element(9, bytes(8)), mat.element(9, bytes(8)),
                flags=0x800),  # Complex.
      mat.array(1, (1, 1), mat.text('in a cell')),
      mat.element(14, b''), mat.structs(['b'], [])]
  data = mat.file(mat.structs(['a'], [[value] for value in values]))
  assert read(data, fields=('a',)) == [[None]] * len(values)


def test_other_variables_are_passed_over():
  mat = MatWriter()
  table = mat.structs(['a'], [[mat.number(7.)]])
  others = [mat.array(6, (1, 1), mat.element(9, bytes(8)), name='synset'),
            mat.compressed(mat.structs(['a'], [], name='other'), level=0),
            mat.element(9, bytes(8))]
  for position in range(4):
    elements = others[:position] + [table] + others[position:]
    assert read(mat.file(*elements), fields=('a',)) == [[7.]]
  # Compressed elements are not padded; this one has 11 bytes of wrapping.
  assert len(others[1]) % 8 == 3


def test_no_rows():
  mat = MatWriter()
  assert read(mat.file(mat.structs(['a'], [])), fields=('a',)) == []


def check_refused(data, *words, **kwargs):
  with pytest.raises(ValueError) as refusal:
    read(data, **kwargs)
  assert '\n' not in str(refusal.value)
  for word in words:
    assert word in str(refusal.value)


@pytest.mark.parametrize('data', [
    b'', b'MATLAB', b'<html>' * 99, bytes(200),
    # MATLAB 7.3 writes HDF5.
    b'MATLAB 7.3 MAT-file'.ljust(124) + b'\0\x02IM' + bytes(384)])
def test_other_files(data):
  check_refused(data, 'not a MATLAB file of level 5')


def test_what_is_not_there():
  check_refused(meta_file(ROWS), "no variable 'table'", variable='table')
  check_refused(meta_file(ROWS), "no field 'gloss'", fields=('gloss',))
  mat = MatWriter()
  check_refused(mat.file(mat.array(6, (1, 1), mat.element(9, bytes(8)),
                                   name='synsets')), 'not a struct array')


def test_variable_of_absurd_size():
  mat = MatWriter()
  check_refused(mat.file(mat.compressed(bytes(2**24 + 1))),
                'larger than makes sense')


@pytest.mark.parametrize('compress', [False, True])
@pytest.mark.parametrize('seed', range(100))
def test_damage_is_a_line(seed, compress):
  random = np.random.RandomState(seed)
  data = bytearray(meta_file(ROWS, '<>'[seed % 2], compress))
  if seed % 4 == 3:
    del data[random.randint(len(data)):]
  for _ in range(random.randint(1, 4)):
    if data:
      data[random.randint(len(data))] = random.randint(256)
  try:
    for row in read(bytes(data)):
      assert len(row) == len(FIELDS)
      assert all(value is None or isinstance(value, (str, float))
                 for value in row)
  except ValueError as refusal:
    assert '\n' not in str(refusal)
