"""Whether ImageNet is whole: its checksums and counts."""

import hashlib
import os

import numpy as np
import pytest

import build_imagenet_tfrecords as builder
import source_checks
from image_index import ImageIndex
from tiny_archives import check_error, dataset  # pylint: disable=unused-import
from tools_command_line import InputError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def imagenet_synsets():
  with open(os.path.join(
      ROOT, 'Imagenet_tools',
      'imagenet_2012_validation_synset_labels.txt')) as labels:
    return sorted(set(labels.read().split()))


def index_of(classes, counts):
  labels = np.repeat(np.arange(1, len(classes) + 1), counts).astype(np.int32)
  return ImageIndex(classes, [], dict.fromkeys(
      ('container', 'offset', 'size', 'label', 'name_start'), labels), b'')


def check(synsets, counts):
  source_checks.check_counts({
      split: index_of(synsets, counts[split]) for split in counts})


def whole_counts():
  """Images per class as ILSVRC2012 could have them."""
  return {'train': np.repeat([1282, 1281], [167, 833]),
          'validation': np.repeat(50, 1000)}


def test_whole_imagenet():
  check(imagenet_synsets(), whole_counts())


@pytest.mark.parametrize('split, changes, words', [
    ('train', {0: -1}, '1,281,167 train images, but here are 1,281,166;'),
    ('train', {999: -600, 0: 600},
     'here are 1,281,167; n01440764 has 1,882 where 732 to 1,300 are right;'),
    ('validation', {5: -1, 7: 1}, 'has 49 where 50 are right;'),
    ('validation', {1: -50}, '50,000 validation images, but here are 49,950;')])
def test_images_missing_from_imagenet(split, changes, words):
  counts = whole_counts()
  for class_index, change in changes.items():
    counts[split][class_index] += change
  with pytest.raises(InputError) as error:
    check(imagenet_synsets(), counts)
  assert words in str(error.value) and '--any_counts' in str(error.value)


def test_other_data_sets_have_other_counts():
  check(imagenet_synsets()[:999], {
      'train': np.repeat(3, 999), 'validation': np.repeat(1, 999)})
  check(['cat', 'dog'], {'train': [3, 4], 'validation': [1, 1]})


def test_counts_are_checked_before_a_build(capsys, dataset, monkeypatch):
  synsets = ''.join(synset + '\n' for synset in sorted(dataset.train))
  monkeypatch.setattr(source_checks, '_SYNSETS_SHA256', hashlib.sha256(
      synsets.encode()).hexdigest())
  check_error(capsys, dataset, '1,281,167 train images, but here are 11')
  dataset.build('--any_counts')


# Checksums.


@pytest.fixture
def published(dataset, monkeypatch):
  """The small archives under the published names, as if they were those."""
  checksums, arguments = {}, []
  for name, flag, published_name in (
      ('train.tar', '--train_archive', 'ILSVRC2012_img_train.tar'),
      ('val.tar', '--validation_archive', 'ILSVRC2012_img_val.tar')):
    assert published_name in source_checks._MD5_BY_FILE_NAME
    os.rename(dataset.path(name), dataset.path(published_name))
    with open(dataset.path(published_name), 'rb') as archive:
      checksums[published_name] = hashlib.md5(archive.read()).hexdigest()
    arguments += [flag, dataset.path(published_name)]
  monkeypatch.setattr(source_checks, '_MD5_BY_FILE_NAME', checksums)
  return arguments


def test_checksums_that_agree(dataset, published):
  dataset.build('--check_md5', *published)


@pytest.mark.parametrize('name', ['ILSVRC2012_img_train.tar',
                                  'ILSVRC2012_img_val.tar'])
def test_checksum_that_differs(capsys, dataset, published, name):
  with open(dataset.path(name), 'r+b') as archive:
    archive.seek(700)  # In the data of a file.
    archive.write(b'?')
  check_error(capsys, dataset, dataset.path(name), 'MD5', 'as published',
              arguments=['--check_md5'] + published)


def test_checksums_are_of_the_published_archives(capsys, dataset):
  check_error(capsys, dataset, '--check_md5', 'train.tar',
              arguments=['--check_md5'])
  os.mkdir(dataset.path('unpacked'))
  with pytest.raises(InputError) as error:
    source_checks.check_md5([dataset.path('unpacked')], None)
  assert 'is a folder' in str(error.value)
