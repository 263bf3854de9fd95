"""cascade/npy_files.py: real `.npy`, every kind of pickled array, attacks."""

import os
import pickle
import pickletools
import struct
import tracemalloc

import numpy as np
import pytest

from cascade import UserError
from cascade.npy_files import check_shard_rows, load_array

ARRAYS = {
    'float32': np.random.RandomState(0).rand(300, 7).astype(np.float32),
    'big endian': np.arange(-5, 400, dtype='>i4'),
    'fortran order': np.asfortranarray(np.arange(420.).reshape(4, 105)),
    'small': np.arange(3, dtype=np.uint8),
    'bool': np.array([True, False, False] * 200),
    'no rows': np.zeros((0, 9), np.float32),
    'scalar': np.array(2.5),
}

# [[0.5, -2.75], [0.001, 240]], as other releases of Python and NumPy wrote it.
SMALL = np.array([[.5, -2.75], [1e-3, 240]], np.float32)
SMALL_BYTES = b'\x00\x00\x00?\x00\x000\xc0o\x12\x83:\x00\x00pC'
FOREIGN_PICKLES = {
    'Python 2 pickle, protocol 0': (
        b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0"
        b"\ntp2\nS'b'\np3\ntp4\nRp5\n(I1\n(I2\nI2\ntp6\ncnumpy\ndtype\np7\n(S"
        b"'f4'\np8\nI0\nI1\ntp9\nRp10\n(I3\nS'<'\np11\nNNNI-1\nI-1\nI0\ntp12\n"
        b"bI00\nS'\\x00\\x00\\x00?\\x00\\x000\\xc0o\\x12\\x83:\\x00\\x00pC'\n"
        b"p13\ntp14\nb."),
    'Python 2 cPickle, protocol 1': (
        b'cnumpy.core.multiarray\n_reconstruct\nq\x01(cnumpy\nndarray\nq\x02(K'
        b'\x00tU\x01btRq\x03(K\x01(K\x02K\x02tcnumpy\ndtype\nq\x04(U\x02f4K'
        b'\x00K\x01tRq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK'
        b'\x00tbI00\nU\x10' + SMALL_BYTES + b'tb.'),
    'Python 2 pickle, protocol 2': (
        b'\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\n'
        b'q\x01K\x00\x85q\x02U\x01bq\x03\x87q\x04Rq\x05(K\x01K\x02K\x02\x86q'
        b'\x06cnumpy\ndtype\nq\x07U\x02f4q\x08K\x00K\x01\x87q\tRq\n(K\x03U\x01'
        b'<q\x0bNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0cb\x89U\x10' +
        SMALL_BYTES + b'q\rtq\x0eb.'),
    'NumPy 2, protocol 2': (
        b'\x80\x02cnumpy._core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray'
        b'\nq\x01K\x00\x85q\x02c_codecs\nencode\nq\x03X\x01\x00\x00\x00bq\x04X'
        b'\x06\x00\x00\x00latin1q\x05\x86q\x06Rq\x07\x87q\x08Rq\t(K\x01K\x02K'
        b'\x02\x86q\ncnumpy\ndtype\nq\x0bX\x02\x00\x00\x00f4q\x0c\x89\x88\x87q'
        b'\rRq\x0e(K\x03X\x01\x00\x00\x00<q\x0fNNNJ\xff\xff\xff\xffJ\xff\xff'
        b'\xff\xffK\x00tq\x10b\x89h\x03X\x12\x00\x00\x00\x00\x00\x00?\x00\x000'
        b'\xc3\x80o\x12\xc2\x83:\x00\x00pCq\x11h\x05\x86q\x12Rq\x13tq\x14b.'),
    'NumPy 1, protocol 5': (
        b'\x80\x05\x95\x85\x00\x00\x00\x00\x00\x00\x00\x8c\x12numpy.core.'
        b'numeric\x94\x8c\x0b_frombuffer\x94\x93\x94(\x96\x10\x00\x00\x00\x00'
        b'\x00\x00\x00' + SMALL_BYTES + b'\x94\x8c\x05numpy\x94\x8c\x05dtype'
        b'\x94\x93\x94\x8c\x02f4\x94\x89\x88\x87\x94R\x94(K\x03\x8c\x01<\x94'
        b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94bK\x02K\x02\x86\x94'
        b'\x8c\x01C\x94t\x94R\x94.'),
}


def loaded(tmp_path, content):
  path = tmp_path / 'array.npy'
  path.write_bytes(content)
  return load_array(str(path))


def refusal(tmp_path, content):
  """The message with which `content` is refused: one line, with the path."""
  with pytest.raises(UserError) as caught:
    loaded(tmp_path, content)
  message = str(caught.value)
  assert message.startswith(str(tmp_path / 'array.npy') + ': ')
  assert message.isprintable()
  return message


def is_mapped(array):
  while array is not None and not isinstance(array, np.memmap):
    array = getattr(array, 'base', None)
  return array is not None


def assert_same(array, expected):
  assert array.dtype == expected.dtype
  assert array.shape == expected.shape
  assert (array == expected).all()
  assert not array.flags.writeable


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(tmp_path, protocol):
  for array in ARRAYS.values():
    assert_same(loaded(tmp_path, pickle.dumps(array, protocol)), array)


@pytest.mark.parametrize('origin', sorted(FOREIGN_PICKLES))
def test_pickles_of_other_releases(tmp_path, origin):
  assert_same(loaded(tmp_path, FOREIGN_PICKLES[origin]), SMALL)


def test_long_string_of_python_2_is_mapped(tmp_path):
  numbers = np.arange(-35, 35, dtype='<i4')
  array = loaded(tmp_path, (
      b'\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq'
      b'\x02K\x00\x85U\x01b\x87Rq\x03(K\x01KF\x85cnumpy\ndtype\nq\x04U\x02i4K'
      b'\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK'
      b'\x00tb\x89T\x18\x01\x00\x00' + numbers.tobytes() + b'tb.'))
  assert_same(array, numbers)
  assert is_mapped(array)


@pytest.mark.parametrize('protocol', range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_data_of_a_pickle_stays_on_disk(tmp_path, protocol):
  assert is_mapped(loaded(
      tmp_path, pickle.dumps(ARRAYS['float32'], protocol)))


def test_real_npy_is_mapped(tmp_path):
  for kind, array in ARRAYS.items():
    path = str(tmp_path / 'real.npy')
    np.save(path, array)
    assert_same(load_array(path), array)
    assert is_mapped(load_array(path)), kind


class _Calls:
  """Pickles as a call of anything."""

  def __init__(self, function, *arguments):
    self.reduced = function, arguments

  def __reduce__(self):
    return self.reduced


@pytest.mark.parametrize('protocol', [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize('function,name', [
    (os.mkdir, '.mkdir'), (eval, '.eval'), (np.load, '.load')])
def test_a_pickle_that_calls_something_is_refused_by_name(
    tmp_path, function, name, protocol):
  target = tmp_path / 'made'
  argument = (f'__import__("os").mkdir({str(target)!r})'
              if function is eval else str(target))
  message = refusal(
      tmp_path, pickle.dumps(_Calls(function, argument), protocol))
  assert 'refused' in message
  assert name in message
  assert not target.exists()


@pytest.mark.parametrize('protocol', [0, 2, pickle.HIGHEST_PROTOCOL])
def test_what_is_no_array_of_numbers_is_refused(tmp_path, protocol):
  for value in (
      np.array([1, 'two', None], object), np.array(['text']),
      np.zeros(3, [('a', 'i4'), ('b', 'f4')]), np.zeros(2, complex),
      np.float32(1), np.ma.zeros(2), np.dtype('f4'), [np.zeros(3)],
      {'labels': np.zeros(3)}, (np.zeros(3),), 'text', None, np.ndarray):
    refusal(tmp_path, pickle.dumps(value, protocol))


def nested(num_levels):
  """A tuple of pairs of pairs of ...: its text has 2 ** num_levels parts."""
  return b'N' + b'q\x00h\x00\x86' * num_levels


@pytest.mark.parametrize('content', [
    # Each is an error whose message used to hold the nested object.
    b'cnumpy\ndtype\n' + nested(20) + b'\x85R.',
    b'c_codecs\nencode\nX\x00\x00\x00\x00' + nested(20) + b'\x86R.',
    b'cnumpy.core.multiarray\n_reconstruct\n' + nested(20) + b'K\x00K\x00'
    b'\x87R.',
    b'cnumpy.core.numeric\n_frombuffer\n(C\x00cnumpy\ndtype\nX\x02\x00\x00'
    b'\x00f4\x85R' + nested(20) + b'X\x01\x00\x00\x00CtR.',
    # Keys of a dict are hashed, which takes as long.
    b'}' + nested(20) + b'Ns.',
], ids=['dtype', 'encode', 'reconstruct', 'frombuffer', 'key'])
def test_no_message_formats_what_a_file_holds(tmp_path, content):
  """20 levels take megabytes; 40 levels, 169 bytes, take all memory."""
  tracemalloc.start()
  try:
    assert len(refusal(tmp_path, content)) < 400
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 10**6


@pytest.mark.parametrize('content', [
    b'L' + b'9' * 10**6 + b'L\n.',
    b'\x8b' + struct.pack('<i', 10**6) + b'\x7f' * 10**6 + b'.',
    b'I' + b'9' * 10**6 + b'\n.', b'Np' + b'9' * 10**6 + b'\n.',
], ids=['LONG', 'LONG4', 'INT', 'PUT'])
def test_long_integers_are_not_converted(tmp_path, monkeypatch, content):
  """Python 3.6 takes minutes for a file of digits."""
  def convert(*_):
    raise AssertionError('an integer was converted')

  monkeypatch.setattr(pickletools, 'decode_long', convert)
  monkeypatch.setattr(pickletools, 'int', convert, raising=False)
  assert 'converted' not in refusal(tmp_path, content)


PROTOCOL_2 = FOREIGN_PICKLES['NumPy 2, protocol 2']
PROTOCOL_5 = FOREIGN_PICKLES['NumPy 1, protocol 5']
NDARRAY = b'cnumpy\nndarray\n'


@pytest.mark.parametrize('content', [
    # Shapes that do not fit the data, or that overflow.
    PROTOCOL_2.replace(b'K\x02K\x02\x86q\n', b'K\x02K\x03\x86q\n'),
    PROTOCOL_2.replace(b'K\x02K\x02\x86q\n', b'K\x02K\x01\x86q\n'),
    PROTOCOL_2.replace(b'K\x02K\x02\x86q\n',
                       b'J\xfe\xff\xff\xffJ\xfe\xff\xff\xff\x86q\n'),
    PROTOCOL_2.replace(b'K\x02K\x02\x86q\n',
                       b'\x8a\x08' + struct.pack('<q', 2**62 + 1) +
                       b'\x8a\x08' + struct.pack('<q', 4) + b'\x86q\n'),
    PROTOCOL_2.replace(b'K\x02K\x02\x86q\n', b'U\x0244q\n'),
    # Other types laid over the data.
    PROTOCOL_2.replace(b'f4q\x0c', b'O8q\x0c'),
    PROTOCOL_2.replace(b'f4q\x0c', b'V4q\x0c'),
    PROTOCOL_2.replace(b'X\x01\x00\x00\x00<q\x0f',
                       b'X\x01\x00\x00\x00Oq\x0f'),
    PROTOCOL_5.replace(b'\x8c\x02f4', b'\x8c\x02O8'),
    # A codec that is not the one of bytes.
    PROTOCOL_2.replace(b'X\x06\x00\x00\x00latin1', b'X\x05\x00\x00\x00rot13'),
    # Admitted names in other places than an array's.
    PROTOCOL_2.replace(NDARRAY, b'cnumpy\ndtype\n'),
    NDARRAY + b'K\x02\x85R.',
    NDARRAY + b'}b.',
    b'cnumpy\ndtype\n}(U\x05buildNub.',
    b'cnumpy.core.multiarray\n_reconstruct\n' + NDARRAY + b'K\x00\x85U\x01b'
    b'\x87R.',
    b'c__builtin__\nbytes\n(J\xff\xff\xff\x7ftR.',
    # Every opcode that can call, and a name that would clear the terminal.
    b'(S\'true\'\nios\nsystem\n.', b'(cos\nsystem\nS\'true\'\no.',
    b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.',
    b'\x80\x02cos\nsystem\n)\x81.',
    b'\x80\x04\x8c\x06\x1b[2Jos\x8c\x03a\nb\x93.',
    # Opcodes beyond an array's, and nonsense.
    b'Ppersistent\n.', b'NQ.', b'\x82\x01.', b'].', b't.', b'h\x01.', b'R.',
    b'N' * 300 + b'.', b'', b'.', b'N', b'garbage', b'PK\x03\x04', b'\x93NUMPY',
])
def test_crafted_and_damaged_pickles_are_refused(tmp_path, content):
  refusal(tmp_path, content)


def test_a_huge_memo_index_takes_no_memory(tmp_path):
  refusal(tmp_path, PROTOCOL_2.replace(b'q\x00', b'r\xff\xff\xff\x7f', 1))


@pytest.mark.parametrize('origin', sorted(FOREIGN_PICKLES) + ['real .npy'])
def test_truncated_anywhere_is_an_error(tmp_path, origin):
  if origin == 'real .npy':
    np.save(str(tmp_path / 'whole.npy'), SMALL)
    content = (tmp_path / 'whole.npy').read_bytes()
  else:
    content = FOREIGN_PICKLES[origin]
  for length in range(len(content)):
    refusal(tmp_path, content[:length])


@pytest.mark.filterwarnings('ignore:invalid:DeprecationWarning')
@pytest.mark.parametrize('origin', sorted(FOREIGN_PICKLES))
def test_any_damaged_byte_ends_in_an_array_or_one_error(tmp_path, origin):
  content = FOREIGN_PICKLES[origin]
  rng = np.random.RandomState(0)
  num_refused = 0
  for place in range(len(content)):
    damaged = bytearray(content)
    damaged[place] = (damaged[place] + rng.randint(1, 256)) % 256
    try:
      assert isinstance(loaded(tmp_path, bytes(damaged)), np.ndarray)
    except UserError:
      num_refused += 1
  assert num_refused > len(content) / 2


def test_what_cannot_be_opened_is_an_error(tmp_path):
  with pytest.raises(UserError, match='No such file'):
    load_array(str(tmp_path / 'absent.npy'))
  with pytest.raises(UserError, match='not a regular file'):
    load_array(str(tmp_path))
  path = str(tmp_path / 'objects.npy')
  np.save(path, np.array([{}, []], object), allow_pickle=True)
  with pytest.raises(UserError, match='objects.npy'):
    load_array(path)


def test_cuts_of_a_pass():
  # 10 images: in batches of 4 two shards have 4 and 6, in batches of 5 or of 1
  # they have 5 and 5.
  for rows in ([4, 6], [5, 5], [10], [0, 0], [3, 3, 4]):
    check_shard_rows(['first.npy'] * len(rows), rows)
  for rows in ([3, 8], [3, 4, 3]):
    with pytest.raises(UserError, match='first.npy: .* which no pass is cut'):
      check_shard_rows(['first.npy'] * len(rows), rows)
