"""The index of images: columns, names, order, reading."""

import os

import numpy as np
import pytest

import image_index
from image_index import ImageIndex, IndexBuilder, IndexedImage, OpenedFiles
from tools_command_line import InputError

CLASSES = ['cat', 'dog']


@pytest.fixture
def index(tmp_path):
  """Two images in an archive, two in a folder."""
  (tmp_path / 'archive').write_bytes(b'..one.three')
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'folder' / u'zw\xf6lf').write_bytes(b'twelve')
  (tmp_path / 'folder' / 'empty').write_bytes(b'')
  builder = IndexBuilder(CLASSES)
  builder.add_container(str(tmp_path / 'archive'), [(b'inner/one', 2, 3)], 1)
  builder.add_container(str(tmp_path / 'archive'), [(b'\xff', 6, 5)], 2)
  builder.add_container(
      str(tmp_path / 'folder'),
      [(u'zw\xf6lf'.encode(), 0, 6), (b'empty', 0, 0)], [2, 1])
  return builder.finish()


def test_images(tmp_path, index):
  archive, folder = str(tmp_path / 'archive'), str(tmp_path / 'folder')
  assert len(index) == 4
  assert list(index) == [
      IndexedImage(archive, 'inner/one', 2, 3, 1),
      IndexedImage(archive, '\udcff', 6, 5, 2),
      IndexedImage(folder, u'zw\xf6lf', 0, 6, 2),
      IndexedImage(folder, 'empty', 0, 0, 1)]
  assert index.classes == CLASSES
  assert index.containers == [archive, folder]
  assert index.path(0) == archive + '/inner/one'
  assert index.class_counts().tolist() == [2, 2]
  with pytest.raises(IndexError):
    index[4]


def test_columns(index):
  assert index.container.tolist() == [0, 0, 1, 1]
  assert index.offset.tolist() == [2, 6, 0, 0]
  assert index.size.tolist() == [3, 5, 6, 0]
  assert index.label.tolist() == [1, 2, 2, 1]
  assert [column.dtype for column in (
      index.container, index.offset, index.size, index.label)] == [
          np.int32, np.int64, np.int64, np.int32]


def test_take(index):
  order = [3, 1, 1]
  taken = index.take(np.array(order))
  assert isinstance(taken, ImageIndex)
  assert list(taken) == [index[i] for i in order]
  assert taken.classes == CLASSES
  assert taken.class_counts().tolist() == [1, 2]
  assert taken.take([2, 0])[1] == index[3]
  assert len(index) == 4


def test_an_image_takes_a_few_bytes(index):
  # The names apart, whose bytes are there once.
  columns = (index.container, index.offset, index.size, index.label)
  assert sum(column.itemsize for column in columns) + 8 == 32


def test_no_images():
  index = IndexBuilder(CLASSES).finish()
  assert len(index) == 0 and list(index) == []
  assert index.label.dtype == np.int32
  assert index.class_counts().tolist() == [0, 0]
  index.check_not_empty()


def test_reading(index):
  with OpenedFiles() as opened_files:
    # Twice: from the opened archive, too.
    for _ in range(2):
      assert [index.read(i, opened_files) for i in range(4)] == [
          b'one', b'three', b'twelve', b'']


def test_archives_are_closed(index):
  descriptors = len(os.listdir('/proc/self/fd'))
  with OpenedFiles() as opened_files:
    index.read(0, opened_files)
    index.read(2, opened_files)
    assert len(os.listdir('/proc/self/fd')) == descriptors + 1
  assert len(os.listdir('/proc/self/fd')) == descriptors


def test_more_archives_than_may_be_open(tmp_path, monkeypatch):
  monkeypatch.setattr(image_index, '_MAX_OPENED', 2)
  builder = IndexBuilder(CLASSES)
  for i in range(5):
    (tmp_path / str(i)).write_bytes(b'%d' % i)
    builder.add_container(str(tmp_path / str(i)), [(b'image', 0, 1)], 1)
  index = builder.finish()
  descriptors = len(os.listdir('/proc/self/fd'))
  with OpenedFiles() as opened_files:
    for i in (0, 1, 0, 2, 3, 4, 3, 0, 1):
      opened_files.ask_for(index[4 - i])
      assert index.read(i, opened_files) == b'%d' % i
      assert len(os.listdir('/proc/self/fd')) <= descriptors + 2
  assert len(os.listdir('/proc/self/fd')) == descriptors


@pytest.mark.parametrize('i, name, content', [
    (1, 'archive', b'..one.thr'), (1, 'archive', b''),
    (2, u'folder/zw\xf6lf', b'twelv'), (2, u'folder/zw\xf6lf', b'thirteen')])
def test_files_that_changed_meanwhile(tmp_path, index, i, name, content):
  (tmp_path / name).write_bytes(content)
  with OpenedFiles() as opened_files:
    with pytest.raises(InputError) as refusal:
      index.read(i, opened_files)
  assert str(refusal.value).startswith(index.path(i) + ': has ')


def test_files_that_are_gone(tmp_path, index):
  (tmp_path / 'folder' / u'zw\xf6lf').unlink()
  with OpenedFiles() as opened_files:
    with pytest.raises(FileNotFoundError):
      index.read(2, opened_files)


def test_reads_that_come_in_parts(index, monkeypatch):
  pread = os.pread
  monkeypatch.setattr(os, 'pread', lambda descriptor, num_bytes, offset: pread(
      descriptor, min(num_bytes, 2), offset))
  with OpenedFiles() as opened_files:
    assert index.read(1, opened_files) == b'three'


def test_empty_images_are_named(index):
  with pytest.raises(InputError) as refusal:
    index.check_not_empty()
  assert str(refusal.value).startswith(
      index.path(3) + ': has no bytes (1 such images')
  index.take([0, 1, 2]).check_not_empty()


def test_digest(tmp_path):
  def digest(classes=CLASSES, path='archive', name=b'one', offset=0, size=3,
             label=1):
    builder = IndexBuilder(classes)
    builder.add_container(path, [(name, offset, size)], label)
    return builder.finish().digest()

  first = digest()
  assert len(first) == 64 and digest() == first
  assert digest(path='elsewhere') == first
  others = [digest(classes=['cat', 'cow']), digest(name=b'two'),
            digest(offset=1), digest(size=4), digest(label=2)]
  assert len(set(others + [first])) == 6


def test_digest_goes_by_order(index):
  assert index.take([0, 1, 2, 3]).digest() == index.digest()
  assert index.take([1, 0, 2, 3]).digest() != index.digest()
