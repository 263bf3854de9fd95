"""The index of images: columns, names, order, reading."""

import os

import pytest

import image_index
from image_index import ImageFile, ImageIndex, OpenedFiles
from refusals import refused

CLASSES = ['cat', 'dog']


@pytest.fixture
def index(tmp_path):
  """Two images in an archive, two in a folder."""
  (tmp_path / 'archive').write_bytes(b'..one.three')
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'folder' / u'zw\xf6lf').write_bytes(b'twelve')
  (tmp_path / 'folder' / 'empty').write_bytes(b'')
  archive = str(tmp_path / 'archive')
  return ImageIndex(CLASSES, [
      (archive, [ImageFile(b'inner/one', 2, 3, 0)], 1),
      (archive, [ImageFile(b'\xff', 6, 5, 0)], 2),
      (str(tmp_path / 'folder'), [ImageFile(u'zw\xf6lf'.encode(), 0, 6, 7),
                                  ImageFile(b'empty', 0, 0, 8)], [2, 1])])


def test_more_archives_than_may_be_open(tmp_path, monkeypatch):
  monkeypatch.setattr(image_index, '_MAX_OPENED', 2)
  for i in range(5):
    (tmp_path / str(i)).write_bytes(b'%d' % i)
  index = ImageIndex(CLASSES, [
      (str(tmp_path / str(i)), [ImageFile(b'image', 0, 1, 0)], 1)
      for i in range(5)])
  descriptors = len(os.listdir('/proc/self/fd'))
  with OpenedFiles() as opened_files:
    for i in (0, 1, 0, 2, 3, 4, 3, 0, 1):
      opened_files.ask_for(index[4 - i])
      assert opened_files.read(index[i]) == b'%d' % i
      assert len(os.listdir('/proc/self/fd')) <= descriptors + 2
  assert len(os.listdir('/proc/self/fd')) == descriptors


@pytest.mark.parametrize('i, name, content', [
    (1, 'archive', b'..one.thr'), (1, 'archive', b''),
    (2, u'folder/zw\xf6lf', b'twelv'), (2, u'folder/zw\xf6lf', b'thirteen')])
def test_files_that_changed_meanwhile(tmp_path, index, i, name, content):
  (tmp_path / name).write_bytes(content)
  with OpenedFiles() as opened_files:
    assert refused(opened_files.read, index[i]).startswith(
        index[i].path + ': ')


def test_digest():
  def digest(classes=CLASSES, path='archive', name=b'one', offset=0, size=3,
             modified_ns=0, label=1):
    return ImageIndex(classes, [
        (path, [ImageFile(name, offset, size, modified_ns)], label)]).digest()

  first = digest()
  assert len(first) == 64 and digest(path='elsewhere') == first
  others = [digest(classes=['cat', 'cow']), digest(name=b'two'),
            digest(offset=1), digest(size=4), digest(label=2),
            digest(modified_ns=1)]
  assert len(set(others + [first])) == 7
