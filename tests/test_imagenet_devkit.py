"""The development kit: synsets of the validation images, words of synsets."""

import gzip
import io

import numpy as np
import pytest

import imagenet_devkit
from tiny_archives import tar_bytes
from tiny_devkits import (
    GROUND_TRUTH, META, devkit_bytes, gzip_bytes, meta_file)
from tools_command_line import InputError

# Numbers are not in the order of the synsets. The last is of no image, as the
# true kit's inner nodes.
ROWS = [(1, 'n00000100', 'kit fox, Vulpes macrotis'), (2, 'n00000003', 'tench'),
        (3, 'n00000012', u'Gordon setter'), (1001, 'n99999999', 'entity')]
NUMBERS = [2, 2, 1, 3, 1]


def write(folder, data):
  path = folder / 'devkit.tar.gz'
  path.write_bytes(data)
  return str(path)


def check_refused(folder, data, *words):
  path = write(folder, data)
  with pytest.raises(InputError) as refusal:
    imagenet_devkit.read_devkit(path)
  message = str(refusal.value)
  assert '\n' not in message and message.startswith(path)
  for word in words:
    assert word in message, message


def kit(**files):
  names = {'ground_truth': GROUND_TRUTH, 'meta': META}
  return gzip_bytes(tar_bytes(
      [(names[name], data) for name, data in sorted(files.items())]))


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('compress', [False, True])
def test_kit(tmp_path, order, compress):
  path = write(tmp_path, devkit_bytes(
      ROWS, NUMBERS, order=order, compress=compress))
  devkit = imagenet_devkit.read_devkit(path)
  assert devkit.validation_synsets == [
      'n00000003', 'n00000003', 'n00000100', 'n00000012', 'n00000100']
  assert devkit.words == {synset: words for _, synset, words in ROWS}


@pytest.mark.parametrize('line_end', [b'\r\n', b' \n', b'\n\n'])
def test_line_ends(tmp_path, line_end):
  numbers = [str(number).encode() for number in NUMBERS]
  if line_end == b'\n\n':  # Blank lines may end the file.
    ground_truth = b'\n'.join(numbers) + b'\n\n \n'
  else:
    ground_truth = line_end.join(numbers) + line_end
  path = write(tmp_path, kit(ground_truth=ground_truth, meta=meta_file(ROWS)))
  assert len(imagenet_devkit.read_devkit(path).validation_synsets) == 5


def test_kit_is_told_from_text(tmp_path):
  assert imagenet_devkit.is_devkit(write(tmp_path, devkit_bytes(ROWS, NUMBERS)))
  for text in (b'', b'n', b'n00000100\n' * 5):
    assert not imagenet_devkit.is_devkit(write(tmp_path, text))


@pytest.mark.parametrize('data', [
    b'\x1f\x8b', b'\x1f\x8bnot gzip', gzip_bytes(b'no tar' * 999),
    devkit_bytes(ROWS, NUMBERS)[:-9], devkit_bytes(ROWS, NUMBERS)[:400]])
def test_no_archive(tmp_path, data):
  check_refused(tmp_path, data, 'tar.gz')


def test_files_that_are_missing(tmp_path):
  check_refused(tmp_path, kit(meta=meta_file(ROWS)),
                'has no ILSVRC2012_validation_ground_truth.txt')
  check_refused(tmp_path, kit(ground_truth=b'1\n'), 'has no meta.mat')


def test_archive_of_absurd_size(tmp_path, monkeypatch):
  monkeypatch.setattr(imagenet_devkit, '_MAX_BYTES', 10239)
  check_refused(tmp_path, devkit_bytes(ROWS, NUMBERS), 'more than 10,239')


def header(kind, size, sparse=b''):
  """A header of a tar as GNU's; `size` and `sparse` are fields' bytes."""
  fields = bytearray(512)
  fields[:4], fields[124:136], fields[156:157] = b'file', size, kind
  fields[257:265], fields[386:386 + len(sparse)] = b'ustar  \0', sparse
  fields[148:156] = b' ' * 8
  fields[148:156] = b'%06o\0 ' % sum(fields)
  return bytes(fields)


@pytest.mark.parametrize('tar', [
    header(b'L', b'0' * 12) * 3000,  # Each extends the next.
    header(b'x', b'0' * 12) * 3000,
    header(b'0', b'0' * 12) + header(b'0', (2**96 - 1024).to_bytes(12, 'big')),
    header(b'S', b'0' * 12, bytes(97) + b'\x80' + (2**42).to_bytes(11, 'big'))])
def test_headers_that_would_take_all_time_or_memory(tmp_path, tar):
  check_refused(tmp_path, gzip_bytes(tar + bytes(1024)), 'damaged')


@pytest.mark.parametrize('ground_truth, word', [
    (b'', 'line 1: not a number'), (b'1\n\n2\n', 'line 2: not a number'),
    (b'1\nn00000100\n', 'line 2: not a number'), (b'1\n-2\n', 'line 2'),
    (b'1\n' + b'2' * 5000, 'line 2: not a number'),
    (b'1\n2\n4\n', 'line 3: no synset has the number 4'), (b'0\n', 'number 0')])
def test_wrong_ground_truth(tmp_path, ground_truth, word):
  check_refused(tmp_path, kit(ground_truth=ground_truth, meta=meta_file(ROWS)),
                'ILSVRC2012_validation_ground_truth.txt', word)


@pytest.mark.parametrize('meta, word', [
    (b'', 'not a MATLAB file'), (meta_file(ROWS)[:-50], 'meta.mat'),
    (meta_file(ROWS + ROWS[:1]), 'row 5'), (meta_file(ROWS + [
        (7, 'n00000003', 'again')]), 'row 5'),
    (meta_file(ROWS + [(8, '', 'words')]), 'row 5')])
def test_wrong_table(tmp_path, meta, word):
  check_refused(tmp_path, kit(ground_truth=b'1\n', meta=meta), 'meta.mat', word)


@pytest.mark.parametrize('seed', range(100))
def test_damage_is_a_line(tmp_path, seed):
  random = np.random.RandomState(seed)
  data = bytearray(devkit_bytes(ROWS, NUMBERS))
  # In the tar, so that gzip's checksum does not find it first.
  inner = bytearray(gzip.GzipFile(fileobj=io.BytesIO(bytes(data))).read())
  target = data if seed % 2 else inner
  # Most of the inner bytes are padding.
  used = len(target.rstrip(b'\0'))
  for _ in range(random.randint(1, 4)):
    target[random.randint(used)] = random.randint(256)
  if seed % 2 == 0:
    data = gzip_bytes(bytes(inner))
  path = write(tmp_path, bytes(data))
  try:
    devkit = imagenet_devkit.read_devkit(path)
    assert set(devkit.validation_synsets) <= set(devkit.words)
  except InputError as refusal:
    assert '\n' not in str(refusal) and str(refusal).startswith(path)
