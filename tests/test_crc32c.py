"""The checksum of TFRecords against published values and bit by bit."""

import sys
import types

import numpy as np
import pytest

import crc32c

pytestmark = pytest.mark.usefixtures('each_crc')

GENERATOR = 0x11EDC6F41  # Of CRC-32C, with x^32; RFC 3720, section 12.1.


@pytest.mark.parametrize('data, expected', [
    (b'', 0),
    (b'123456789', 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b'\xff' * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
])
def test_published_values(data, expected):
  """RFC 3720, section B.4; '123456789' is the usual check value."""
  assert crc32c.crc32c(data) == expected


def power_of_x(exponent):
  """x^exponent modulo the generator."""
  power = 1
  for _ in range(exponent):
    power <<= 1
    if power >> 32:
      power ^= GENERATOR
  return power


@pytest.mark.parametrize('exponents', [
    (6777, 484, 100, 0), (563, 109, 58, 53, 31, 0)])
def test_multiples_of_few_terms(exponents):
  total = 0
  for exponent in exponents:
    total ^= power_of_x(exponent)
  assert total == 0


def bit_by_bit(data):
  register = 0xFFFFFFFF
  for byte in bytearray(data):
    register ^= byte
    for _ in range(8):
      register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
  return register ^ 0xFFFFFFFF


# Lengths about the ends of the folding steps.
@pytest.mark.parametrize('length', list(range(1, 10)) + [
    562, 563, 564, 907, 908, 909, 1815, 1816, 1818, 3000, 6776, 6777, 6778,
    12585, 12586, 12587, 25172, 25174, 50344, 50348, 60001])
def test_any_length(length):
  data = np.random.RandomState(length).bytes(length)
  assert crc32c.crc32c(data) == bit_by_bit(data)


def test_whole_words_of_every_width():
  """By the definition: a message and its CRC behind it give a constant."""
  random = np.random.RandomState(0)
  for length in (6777 * 64 + 1, 6777 * 128 + 65, 2 * 10**6 + 3):
    data = random.bytes(length)
    with_crc = data + crc32c.crc32c(data).to_bytes(4, 'little')
    assert crc32c.crc32c(with_crc) == crc32c.crc32c(bytes(4))


def test_every_short_length_and_some_long_ones_come_to_an_end():
  """Any message and its CRC behind it; none may be folded for ever."""
  data = np.random.RandomState(1).bytes(10**6 + 1)
  constant = crc32c.crc32c(bytes(4))
  for length in list(range(1200)) + [10**5, 10**5 + 3, 999999, 10**6 + 1]:
    message = data[:length]
    crc = crc32c.crc32c(message).to_bytes(4, 'little')
    assert crc32c.crc32c(message, crc) == constant


def test_pieces_are_as_good_as_the_whole():
  data = np.random.RandomState(0).bytes(20000)
  whole = crc32c.crc32c(data)
  assert crc32c.crc32c() == crc32c.crc32c(b'') == 0
  for first, second in ((0, 0), (1, 3), (2, 2), (100, 19999), (20000, 20000)):
    assert crc32c.crc32c(
        data[:first], data[first:second], data[second:]) == whole


@pytest.mark.parametrize('module', [
    None,  # As if it were not installed.
    types.SimpleNamespace(implementation='python', extend=max),
    types.SimpleNamespace(extend=max)])
def test_numpy_where_nothing_is_compiled(monkeypatch, module):
  monkeypatch.setitem(sys.modules, 'google_crc32c', module)
  assert crc32c._compiled_extend() is None


def test_whatever_is_compiled_is_taken(monkeypatch):
  monkeypatch.setitem(sys.modules, 'google_crc32c', types.SimpleNamespace(
      implementation='c', extend=max))
  assert crc32c._compiled_extend() is max
