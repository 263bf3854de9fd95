"""cascade/npy_files.py: real `.npy`, every kind of pickled array, attacks."""

import os
import pickle

import numpy as np
import pytest

from cascade import npy_files
from cascade.npy_files import check_shard_rows, load_array, read_rows
from refusals import refused

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
}


def loaded(tmp_path, content):
  path = tmp_path / 'array.npy'
  path.write_bytes(content)
  return load_array(str(path))


def refusal(tmp_path, content):
  """The message with which `content` is refused."""
  message = refused(loaded, tmp_path, content)
  assert message.startswith(f'{tmp_path}/array.npy: ')
  return message


def assert_same(array, expected):
  # Unpickled, numbers are in the order of this machine.
  assert array.dtype.newbyteorder('=') == expected.dtype.newbyteorder('=')
  assert array.shape == expected.shape
  assert (array == expected).all()
  assert not array.flags.writeable


@pytest.mark.parametrize('most_bytes_read', [0, 100, 1 << 20])
@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(
    tmp_path, monkeypatch, protocol, most_bytes_read):
  """Whether their long byte strings are read or mapped."""
  monkeypatch.setattr(npy_files, '_MOST_BYTES_READ', most_bytes_read)
  for kind, array in ARRAYS.items():
    found = loaded(tmp_path, pickle.dumps(array, protocol))
    assert_same(found, array)
    if protocol == 3 and kind == 'float32':
      assert isinstance(found, np.memmap) == (most_bytes_read == 100)
    if array.ndim == 2:
      rows = read_rows(found, 1, 3)
      assert rows.dtype == np.float32 and rows.dtype.isnative
      assert (rows == array[1:3]).all()


@pytest.mark.parametrize('most_bytes_read', [15, 1 << 20])
@pytest.mark.parametrize('origin', sorted(FOREIGN_PICKLES))
def test_pickles_of_other_releases(
    tmp_path, monkeypatch, origin, most_bytes_read):
  monkeypatch.setattr(npy_files, '_MOST_BYTES_READ', most_bytes_read)
  assert_same(loaded(tmp_path, FOREIGN_PICKLES[origin]), SMALL)


def test_real_npy_is_mapped(tmp_path):
  for array in ARRAYS.values():
    path = str(tmp_path / 'real.npy')
    np.save(path, array)
    assert_same(load_array(path), array)
    assert isinstance(load_array(path), np.memmap)


class _Calls:
  """Pickles as a call of anything."""

  def __init__(self, function, *arguments):
    self.reduced = function, arguments

  def __reduce__(self):
    return self.reduced


@pytest.mark.parametrize('protocol', [0, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize('function,name', [
    (os.mkdir, '.mkdir'), (eval, '.eval')])
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


def test_what_is_no_array_of_numbers_is_refused(tmp_path):
  for value in (np.array([1, 'two', None], object), np.array(['text']),
                {'labels': np.zeros(3)}, np.ndarray):
    refusal(tmp_path, pickle.dumps(value))


def test_truncated_anywhere_is_an_error(tmp_path):
  np.save(str(tmp_path / 'whole.npy'), SMALL)
  for content in ((tmp_path / 'whole.npy').read_bytes(), pickle.dumps(SMALL)):
    for length in range(len(content)):
      refusal(tmp_path, content[:length])


def test_cuts_of_a_pass():
  # 10 images: in batches of 4 two shards have 4 and 6, in batches of 5 or of 1
  # they have 5 and 5.
  for rows in ([4, 6], [5, 5], [10], [0, 0], [3, 3, 4]):
    check_shard_rows(['first.npy'] * len(rows), rows)
  for rows in ([3, 8], [3, 4, 3]):
    assert 'first.npy: ' in refused(
        check_shard_rows, ['first.npy'] * len(rows), rows)
