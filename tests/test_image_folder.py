"""Any folder of images: classes, splits, and what is passed over or refused."""

import os
import subprocess
import sys

import pytest

import image_folder
from image_index import OpenedFiles
from refusals import refused


class Folder:
  """A folder of small files, indexed."""

  def __init__(self, path):
    self.path = path

  def add(self, *names):
    """Adds files, whose content is their name."""
    for name in names:
      path = os.path.join(os.fsencode(str(self.path)), os.fsencode(name))
      os.makedirs(os.path.dirname(path), exist_ok=True)
      with open(path, 'wb') as target:
        target.write(os.fsencode(name))
    return self

  def add_classes(self, **numbers):
    for name, number in numbers.items():
      self.add(*(f'{name}/{i:03d}.jpg' for i in range(number)))
    return self

  def index(self, fraction=None, seed=0):
    return image_folder.index_image_folder(str(self.path), fraction, seed)

  def names(self, fraction=None, seed=0):
    return [[image.name for image in index]
            for index in self.index(fraction, seed)]

  def check_refused(self, words, fraction):
    assert words in refused(self.index, fraction)


@pytest.fixture
def folder(tmp_path):
  return Folder(tmp_path / 'images')


# The two layouts.


@pytest.mark.parametrize('train, validation', [
    ('train', 'validation'), ('Train', 'Val'), ('TRAINING', 'testing')])
def test_folders_of_both_splits(capsys, folder, train, validation):
  folder.add(train + '/dog/b.png', train + '/dog/a.JPG',
             train + '/cat/z.webp', train + '/cat/old/ones/y.jpeg',
             validation + '/dog/v.bmp', 'unused/dog/t.jpg')
  of_train, of_validation = folder.index()
  assert of_train.classes == of_validation.classes == ['cat', 'dog']
  assert [(image.name, image.label) for image in of_train] == [
      ('cat/old/ones/y.jpeg', 1), ('cat/z.webp', 1), ('dog/a.JPG', 2),
      ('dog/b.png', 2)]
  assert [(image.name, image.label) for image in of_validation] == [
      ('dog/v.bmp', 2)]
  with OpenedFiles() as opened_files:
    assert opened_files.read(of_train[2]) == f'{train}/dog/a.JPG'.encode()
    assert opened_files.read(of_validation[0]) == (
        f'{validation}/dog/v.bmp'.encode())
  assert capsys.readouterr().err == ''


def test_divided_by_a_fraction(folder):
  folder.add_classes(cat=20, dog=10)
  train, validation = folder.index(0.3)
  assert train.class_counts().tolist() == [14, 7]
  assert validation.class_counts().tolist() == [6, 3]
  names = [[image.name for image in index] for index in (train, validation)]
  assert sorted(names[0] + names[1]) == [
      f'{name}/{i:03d}.jpg' for name, number in (('cat', 20), ('dog', 10))
      for i in range(number)]
  assert names == [sorted(part) for part in names]


def test_validation_images_go_before_test_images(capsys, folder):
  folder.add('train/cat/a.jpg', 'valid/cat/b.jpg', 'test/cat/c.jpg')
  assert folder.names() == [['cat/a.jpg'], ['cat/b.jpg']]
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and f'{folder.path}/test: not used' in said


def test_division_follows_the_seed(folder):
  folder.add_classes(cat=30, dog=30)
  first = folder.names(0.5, seed=1)
  assert folder.names(0.5, seed=1) == first
  assert folder.names(0.5, seed=2) != first
  # A class does not take after the other one.
  numbers = [{name.split('/')[1] for name in first[1] if name.startswith(start)}
             for start in ('cat', 'dog')]
  assert numbers[0] != numbers[1]
  # Constants of SHA-256, whatever the version of Python.
  assert sorted(numbers[0])[:4] == ['002.jpg', '004.jpg', '005.jpg', '007.jpg']
  # Most images keep their side when others come.
  folder.add('cat/new.jpg', 'cat/newer.jpg')
  assert len(set(folder.names(0.5, seed=1)[1]) & set(first[1])) >= 28


def test_names_do_not_depend_on_the_locale(folder):
  folder.add(u'train/\u72ac/\u4e00.jpg', u'val/\u72ac/\u4e8c.jpg')
  code = (
      'import sys, image_folder, image_index\n'
      'index, _ = image_folder.index_image_folder(sys.argv[1], None, 0)\n'
      'with image_index.OpenedFiles() as opened_files:\n'
      '  print(ascii((index.classes, opened_files.read(index[0]))))')
  output = subprocess.check_output(
      [sys.executable, '-c', code, str(folder.path)],
      env=dict(os.environ, LC_ALL='C', PYTHONCOERCECLOCALE='0',
               PYTHONUTF8='0'),
      cwd=os.path.dirname(image_folder.__file__))
  assert output.decode().strip() == ascii(
      ([u'\u72ac'], u'train/\u72ac/\u4e00.jpg'.encode()))


def test_links_are_followed(folder, tmp_path):
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'elsewhere' / 'one.jpg').write_bytes(b'linked')
  folder.add('cat/two.jpg', 'cat/three.jpg')
  os.symlink(str(tmp_path / 'elsewhere'), str(folder.path / 'fox'))
  train, _ = folder.index(0.1)
  assert train.classes == ['cat', 'fox']
  with OpenedFiles() as opened_files:
    assert opened_files.read(train[len(train) - 1]) == b'linked'


# Tiny-ImageNet.

SYNSETS = ['n01440764', 'n01443537']


@pytest.fixture
def tiny(folder):
  """Laid out as tiny-imagenet-200.zip, without the list of classes of val."""
  for synset in SYNSETS:
    folder.add(f'train/{synset}/images/{synset}_0.JPEG',
               f'train/{synset}/{synset}_boxes.txt')
  return folder.add(*(f'val/images/val_{i}.JPEG' for i in range(4)),
                    'test/images/test_0.JPEG', 'wnids.txt', 'words.txt')


def annotate(folder, *synsets):
  (folder.path / 'val' / 'val_annotations.txt').write_text(''.join(
      f'val_{i}.JPEG\t{synset}\t0\t32\t44\t62\n'
      for i, synset in enumerate(synsets)))


def test_tiny_imagenet_as_it_is(tiny, tmp_path):
  annotate(tiny, SYNSETS[1], SYNSETS[0], SYNSETS[1], SYNSETS[1])
  train, validation = tiny.index()
  assert train.classes == SYNSETS and len(train) == 2
  assert [(image.name, image.label) for image in validation] == [
      ('images/val_1.JPEG', 1), ('images/val_0.JPEG', 2),
      ('images/val_2.JPEG', 2), ('images/val_3.JPEG', 2)]


@pytest.mark.parametrize('synsets, words', [
    (None, 'val/val_annotations.txt'),
    ([SYNSETS[0]] * 3, 'val_3.JPEG')])  # No such line.
def test_broken_tiny_imagenet(tiny, synsets, words):
  if synsets:
    annotate(tiny, *synsets)
  tiny.check_refused(words, None)


# What is passed over.


def test_other_files_are_said(capsys, folder):
  folder.add('cat/a.jpg', 'cat/b.jfif', 'cat/notes.txt', 'cat/c.gif',
             'cat/d.GIF', 'cat/jpg', 'README', '.DS_Store', 'cat/._a.jpg',
             '.git/cat.jpg', 'cat/.ipynb_checkpoints/c.jpg')
  train, validation = folder.names(0.5)
  assert sorted(train + validation) == ['cat/a.jpg', 'cat/b.jfif']
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and ': 5 files are passed over' in said
  assert '2 .gif' in said and '1 .txt' in said
  assert said.endswith(f'{folder.path}/README\n')


# What is refused.


@pytest.mark.parametrize('names, fraction, words', [
    (['cat/a.jpg', 'cat/b.jpg'], None, '--validation_fraction'),
    (['cat/a.jpg', 'c.jpg'], 0.5, 'images/c.jpg'),
    (['cat/a.jpg', 'cat/b.jpg', 'dog/a.gif'], 0.5, 'images/dog'),
    (['train/cat/a.jpg', 'val/cat/b.jpg'], 0.5, '--validation_fraction'),
    (['train/cat/a.jpg', 'val/dog/c.jpg'], None, 'images/val/dog'),
    # Folders of a wrong level, which would become classes.
    ([f'{part}/{name}/{i}.jpg' for part in ('batch1', 'batch2')
      for name in ('cat', 'dog') for i in range(2)], 0.5, 'images/batch1'),
    ([f'set/{part}/cat/{i}.jpg' for part in ('train', 'val')
      for i in range(2)], 0.5, 'images/set'),
    ([f'train/all/{name}/a.jpg' for name in ('cat', 'dog')] +
     ['val/all/cat/a.jpg'], None, 'train/all')])
def test_refused(folder, names, fraction, words):
  folder.add(*names).check_refused(words, fraction)
