"""ImageNet's images: archives and folders, the same index from all of them."""

import functools
import hashlib
import io
import os
import shutil
import tarfile
import types

import numpy as np
import pytest

import image_folder
import imagenet_archives
from image_index import OpenedFiles
from refusals import refused
from tiny_archives import (  # pylint: disable=unused-import
    SYNSETS, Dataset, check_error, dataset, tar_bytes)


class Sources(Dataset):
  """The images of a `Dataset` in the forms that people have them in."""

  def __init__(self, folder):
    super().__init__(folder)
    # As in the archives, whose names are not sorted.
    self.validation.reverse()
    self.save()

  def write_tree(self, name, files):
    for path, data in files:
      path = self.path(name, path)
      os.makedirs(os.path.dirname(path), exist_ok=True)
      with open(path, 'wb') as target:
        target.write(data)
    return name

  def tree_of_tars(self):
    return self.write_tree('tars', [
        (synset + '.tar', tar_bytes(files))
        for synset, files in self.train.items()])

  def train_tree(self):
    return self.write_tree('train', [
        (synset + '/' + name, data) for synset, files in self.train.items()
        for name, data in files])

  def validation_tree(self):
    return self.write_tree('val', self.validation)

  def validation_tree_by_synset(self):
    labels = dict(zip(sorted(name for name, _ in self.validation), self.labels))
    return self.write_tree('val_by_synset', [
        (labels[name] + '/' + name, data) for name, data in self.validation])

  def index(self, train='train.tar', validation='val.tar', labels='labels.txt'):
    return imagenet_archives.index_imagenet(
        self.path(train), self.path(validation), self.path(labels))

  def check_refused(self, *words, **kwargs):
    message = refused(self.index, **kwargs)
    assert all(word in message for word in words), message


@pytest.fixture
def sources(tmp_path):
  return Sources(tmp_path)


def images(index):
  """File name, label and bytes of each image."""
  with OpenedFiles() as opened_files:
    return [(os.path.basename(image.name), image.label,
             opened_files.read(index[i])) for i, image in enumerate(index)]


def test_archives(sources):
  train, validation = sources.index()
  assert train.classes == validation.classes == sorted(SYNSETS)
  assert images(train) == [
      (name, SYNSETS.index(synset) + 1, data)
      for synset, files in sources.train.items()
      for name, data in sorted(files)]
  assert images(validation) == [
      (name, SYNSETS.index(synset) + 1, data) for (name, data), synset in zip(
          sorted(sources.validation), sources.labels)]
  assert train[0].path == sources.path(
      'train.tar', 'n00000003.tar', 'n00000003_0.JPEG')


@pytest.mark.parametrize('train', ['tree_of_tars', 'train_tree'])
@pytest.mark.parametrize('validation', [
    'validation_tree', 'validation_tree_by_synset'])
def test_folders_are_indexed_as_the_archives(sources, train, validation):
  expected = [images(index) for index in sources.index()]
  found = sources.index(getattr(sources, train)(),
                        getattr(sources, validation)())
  assert [images(index) for index in found] == expected
  assert found[0].classes == found[1].classes == sorted(SYNSETS)
  for index in found:
    assert all(os.path.exists(path) for path in index.containers)


@pytest.mark.parametrize('content', [
    b'n2 two words\nn1 one\n', b'\xef\xbb\xbfn2\ttwo words\r\n\r\nn1  one',
    b'\n n2 \t two words \n\t\nn1 one\n\n'], ids=len)
def test_lists_as_people_have_them(sources, content):
  """Byte order mark, tabs, blank lines, any line ends."""
  sources.write('names.txt', content)
  path = sources.path('names.txt')
  assert imagenet_archives.read_class_names(path) == {
      'n1': 'one', 'n2': 'two words'}
  assert [line.split()[0] for line in image_folder.read_lines(path)] == [
      'n2', 'n1']


def test_unknown_synsets_of_validation(sources):
  validation = sources.validation_tree_by_synset()
  os.rename(sources.path(validation, SYNSETS[0]), sources.path(validation, 'x'))
  sources.check_refused(sources.path(validation, 'x'), 'not one of the 3',
                        validation=validation)
  sources.labels[4] = 'x'
  sources.save().check_refused('labels.txt line 5', "'x'")


def test_labels_and_images_differ_in_number(sources):
  sources.validation.pop()
  sources.write('val.tar', tar_bytes(sources.validation))
  for validation in ('val.tar', sources.validation_tree()):
    sources.check_refused('has 5 labels', validation, 'holds 4 images',
                          validation=validation)


# Tars.


def tar_of(tar_format, name, data=b'data'):
  target = io.BytesIO()
  with tarfile.open(fileobj=target, mode='w', format=tar_format) as tar:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
  return target.getvalue()


def list_tar(tmp_path, content, before=b''):
  """The files of a tar that has other bytes before and behind it on disk."""
  path = tmp_path / 'disk file'
  path.write_bytes(before + content + b'behind')
  return imagenet_archives.list_tar(
      str(path), len(before), len(before) + len(content), 'TAR')


@pytest.mark.parametrize('tar_format', [
    tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize('name', ['a.JPEG', 'long/' * 19 + 'b.JPEG',
                                  'z' * 90 + '/' + 'y' * 90])
def test_tars_are_read_in_place(tmp_path, tar_format, name):
  content, before = tar_of(tar_format, name), b'x' * 512
  image, = list_tar(tmp_path, content, before)
  assert image.name == name.encode()
  assert (before + content)[image.offset:][:image.size] == b'data'


@pytest.mark.parametrize('content', [
    tar_of(tarfile.USTAR_FORMAT, 'a')[:100],
    # tarfile alone takes what is cut off between two files for whole.
    tar_of(tarfile.USTAR_FORMAT, 'a')[:1024],
    # As a download leaves behind that was stopped.
    tar_of(tarfile.USTAR_FORMAT, 'a') + bytes(2**20)], ids=len)
def test_tars_that_are_cut_short(tmp_path, content):
  assert refused(list_tar, tmp_path, content).startswith('TAR')


# Whether it is the whole of ILSVRC2012.


@pytest.mark.parametrize('split, changes, words', [
    ('train', {}, None), ('train', {0: -1}, '1,281,166'),
    ('validation', {5: -1, 7: 1}, 'has 49')])
def test_images_missing_from_imagenet(split, changes, words):
  synsets = sorted(imagenet_archives.imagenet_class_names())
  counts = {'train': np.repeat([1282, 1281], [167, 833]),
            'validation': np.repeat(50, 1000)}
  for class_index, change in changes.items():
    counts[split][class_index] += change
  images = {name: types.SimpleNamespace(  # Stands for an `ImageIndex`.
      classes=synsets, class_counts=functools.partial(counts.get, name))
            for name in counts}
  if words is None:
    imagenet_archives.check_counts(images)
  else:
    message = refused(imagenet_archives.check_counts, images)
    assert words in message and '--any_counts' in message


def test_counts_are_checked_before_a_build(capsys, dataset, monkeypatch):
  monkeypatch.setattr(imagenet_archives, 'imagenet_class_names',
                      lambda: dict.fromkeys(SYNSETS, 'a name'))
  check_error(capsys, dataset, '1,281,167 train images, but here are 11')
  dataset.build('--any_counts')


def test_published_checksums(capsys, dataset, monkeypatch):
  checksums, arguments = {}, ['--check_md5']
  for name, flag, published_name in (
      ('train.tar', '--train_archive', 'ILSVRC2012_img_train.tar'),
      ('val.tar', '--validation_archive', 'ILSVRC2012_img_val.tar')):
    path = dataset.path(published_name)
    shutil.copy(dataset.path(name), path)
    with open(path, 'rb') as archive:
      checksums[published_name] = hashlib.md5(archive.read()).hexdigest()
    arguments += [flag, path]
  assert set(imagenet_archives._MD5_BY_FILE_NAME) == set(checksums)
  monkeypatch.setattr(imagenet_archives, '_MD5_BY_FILE_NAME', checksums)
  with open(path, 'r+b') as archive:
    archive.seek(700)  # In the data of a file.
    archive.write(b'?')
  check_error(capsys, dataset, path, 'MD5', 'as published',
              arguments=arguments)
  shutil.copy(dataset.path('val.tar'), path)
  dataset.build(*arguments)
