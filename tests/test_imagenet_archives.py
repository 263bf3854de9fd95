"""ImageNet's images: archives and folders, the same index from all of them."""

import os
import shutil

import numpy as np
import pytest

import imagenet_archives
from image_index import OpenedFiles
from tiny_archives import SYNSETS, Dataset, encode, tar_bytes
from tiny_devkits import devkit_bytes
from tools_command_line import InputError, Progress

# Numbers of the development kit, which do not follow the sorted synsets.
NUMBERS = {SYNSETS[0]: 2, SYNSETS[1]: 3, SYNSETS[2]: 1}


class Sources(Dataset):
  """The images of a `Dataset` in the forms that people have them in."""

  def __init__(self, folder):
    super(Sources, self).__init__(folder)
    # As in the archives, whose names are not sorted.
    self.validation.reverse()
    self.save()
    self.said = []

  def write_tree(self, name, files):
    for path, data in files:
      path = self.path(name, path)
      os.makedirs(os.path.dirname(path), exist_ok=True)
      with open(path, 'wb') as target:
        target.write(data)
    return name

  def by_synset(self):
    return [(synset, files) for synset, files in self.train.items()]

  def tree_of_tars(self):
    return self.write_tree('tars', [
        (synset + '.tar', tar_bytes(files))
        for synset, files in self.by_synset()])

  def train_tree(self):
    return self.write_tree('train', [
        (synset + '/' + name, data) for synset, files in self.by_synset()
        for name, data in files])

  def validation_tree(self):
    return self.write_tree('val', self.validation)

  def validation_tree_by_synset(self):
    labels = dict(zip(sorted(name for name, _ in self.validation), self.labels))
    return self.write_tree('val_by_synset', [
        (labels[name] + '/' + name, data) for name, data in self.validation])

  def devkit(self):
    self.write('devkit.tar.gz', devkit_bytes(
        [(number, synset, 'words') for synset, number in NUMBERS.items()],
        [NUMBERS[synset] for synset in self.labels]))
    return 'devkit.tar.gz'

  def index(self, train='train.tar', validation='val.tar', labels='labels.txt'):
    return imagenet_archives.index_imagenet(
        self.path(train), self.path(validation), self.path(labels), Progress,
        self.said.append)

  def check_refused(self, *words, **kwargs):
    with pytest.raises(InputError) as refusal:
      self.index(**kwargs)
    message = str(refusal.value)
    assert '\n' not in message
    for word in words:
      assert word in message, message


@pytest.fixture
def sources(tmp_path):
  return Sources(tmp_path)


def images(index):
  """File name, label and bytes of each image."""
  with OpenedFiles() as opened_files:
    return [(os.path.basename(image.name), image.label,
             index.read(i, opened_files)) for i, image in enumerate(index)]


def test_archives(sources):
  train, validation = sources.index()
  assert train.classes == validation.classes == sorted(SYNSETS)
  assert images(train) == [
      (name, SYNSETS.index(synset) + 1, data)
      for synset, files in sources.by_synset()
      for name, data in sorted(files)]
  assert images(validation) == [
      (name, SYNSETS.index(synset) + 1, data) for (name, data), synset in zip(
          sorted(sources.validation), sources.labels)]
  assert train.path(0) == sources.path(
      'train.tar', 'n00000003.tar', 'n00000003_0.JPEG')
  assert sources.said == []


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
  assert sources.said == []


def test_labels_of_the_development_kit(sources):
  expected = images(sources.index()[1])
  assert images(sources.index(labels=sources.devkit())[1]) == expected


def test_folders_per_synset_need_no_labels(sources):
  _, validation = sources.index(
      validation=sources.validation_tree_by_synset(), labels='nowhere')
  assert len(validation) == 5


def test_synsets_sort_before_names(sources):
  # 'a.tar' sorts before 'a-b.tar' as a synset and behind it as a file name.
  sources.write('train.tar', tar_bytes([
      (synset + '.tar', tar_bytes([(synset + '_1.JPEG', encode(1))]))
      for synset in ('a-b', 'a')]))
  sources.labels = ['a'] * 5
  sources.write('labels.txt', b'a\n' * 5)
  train, _ = sources.index()
  assert train.classes == ['a', 'a-b']
  assert [image.name for image in train] == [
      'a.tar/a_1.JPEG', 'a-b.tar/a-b_1.JPEG']


def test_archives_that_hold_folders(sources):
  sources.write('train.tar', tar_bytes([
      ('./train/{}.tar'.format(synset),
       tar_bytes([('{0}/{0}_1.JPEG'.format(synset), encode(1))]))
      for synset in SYNSETS]))
  train, _ = sources.index()
  assert [image.name for image in train] == [
      'train/{0}.tar/{0}/{0}_1.JPEG'.format(synset) for synset in SYNSETS]


def test_other_files_in_folders(sources):
  train = sources.train_tree()
  sources.write_tree(train, [
      ('README.txt', b'text'), (SYNSETS[0] + '/.DS_Store', b'hidden'),
      (SYNSETS[0] + '/Thumbs.db', b'preview'), ('.cache/x.JPEG', b'hidden')])
  found, _ = sources.index(train)
  assert len(found) == 11
  assert len(sources.said) == 1
  assert sources.said[0].startswith('2 files are passed over')
  assert sources.said[0].endswith(sources.path(train, 'README.txt'))


# What is refused.


@pytest.mark.parametrize('name', ['train', 'validation', 'labels'])
def test_missing_files(sources, name):
  sources.check_refused(sources.path('nowhere'), 'no such file',
                        **{name: 'nowhere'})


def test_folders_that_are_half_sorted(sources):
  # Of no class; or of one that is there as a tar, too.
  validation = sources.validation_tree_by_synset()
  sources.write_tree(validation, [('stray.JPEG', encode(0))])
  sources.check_refused(sources.path(validation, 'stray.JPEG'),
                        validation=validation)
  train = sources.train_tree()
  sources.write_tree(train, [('n00000003.tar', tar_bytes([]))])
  sources.check_refused('tars and folders', train=train)


@pytest.mark.parametrize('name', ['train', 'validation'])
def test_empty_folders(sources, name):
  os.mkdir(sources.path('empty'))
  sources.check_refused(sources.path('empty'), 'holds no', **{name: 'empty'})


@pytest.mark.parametrize('tree', ['tree_of_tars', 'train_tree'])
def test_synsets_without_images(sources, tree):
  sources.train[SYNSETS[1]] = []
  if tree == 'train_tree':
    os.makedirs(sources.path('train', SYNSETS[1]))
  sources.check_refused(SYNSETS[1], 'holds no',
                        train=getattr(sources, tree)())


def test_a_synset_that_occurs_twice(sources):
  sources.write('train.tar', tar_bytes([
      (folder + 'n1.tar', tar_bytes([('x', b'x')])) for folder in ('a/', 'b/')
  ]))
  sources.check_refused('train.tar/b/n1.tar', 'occurs twice')


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
  sources.check_refused(sources.devkit(), 'has 5 labels',
                        labels=sources.devkit())


def test_wrong_labels_are_found_before_minutes_of_indexing(sources):
  sources.write('train.tar', tar_bytes([
      (synset + '.tar', b'damaged') for synset in SYNSETS]))
  sources.labels[0] = 'x'
  sources.write('labels.txt', b'x\n' * 5)
  sources.check_refused('labels.txt line 1')


def test_images_of_absurd_size(sources, monkeypatch):
  monkeypatch.setattr(imagenet_archives, 'MAX_IMAGE_BYTES', 50)
  sources.check_refused('val.tar/val_000', 'more than the 50')


@pytest.mark.parametrize('seed', range(60))
def test_damaged_archives_give_the_same_index_or_a_line(sources, seed):
  random = np.random.RandomState(seed)
  expected = [list(index) for index in sources.index()]
  name = ('train.tar', 'val.tar')[seed % 2]
  with open(sources.path(name), 'rb') as archive:
    content = bytearray(archive.read())
  if seed % 3:
    for _ in range(random.randint(1, 4)):
      # The last record is zeros.
      content[random.randint(len(content) - 9000)] = random.randint(256)
  else:
    del content[random.randint(len(content) - 9000):]
  sources.write(name, bytes(content))
  try:
    assert [list(index) for index in sources.index()] == expected
  except InputError as refusal:
    assert '\n' not in str(refusal)
    assert name in str(refusal)
