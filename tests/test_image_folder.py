"""Any folder of images: classes, splits, and what is passed over or refused."""

import os
import subprocess
import sys

import pytest

import image_folder
from image_index import OpenedFiles
from tools_command_line import InputError


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

  def add_classes(self, prefix='', **numbers):
    for name, number in numbers.items():
      self.add(*(f'{prefix}{name}/{i:03d}.jpg'
                 for i in range(number)))
    return self

  def index(self, fraction=None, seed=0):
    return image_folder.index_image_folder(str(self.path), fraction, seed)

  def names(self, fraction=None, seed=0):
    return [[image.name for image in index]
            for index in self.index(fraction, seed)]

  def check_refused(self, words, fraction):
    with pytest.raises(InputError) as refusal:
      self.index(fraction)
    message = str(refusal.value)
    assert words in message and '\n' not in message


@pytest.fixture
def folder(tmp_path):
  return Folder(tmp_path / 'images')


# The two layouts.


@pytest.mark.parametrize('validation', ['validation', 'val'])
def test_folders_of_both_splits(capsys, folder, validation):
  folder.add('train/dog/b.png', 'train/dog/a.JPG', 'train/cat/z.webp',
             'train/cat/old/ones/y.jpeg', validation + '/dog/v.bmp',
             'test/unused/t.jpg')
  train, found = folder.index()
  root = str(folder.path)
  assert train.classes == found.classes == ['cat', 'dog']
  assert [(image.container, image.name, image.label) for image in train] == [
      (root + '/train', 'cat/old/ones/y.jpeg', 1),
      (root + '/train', 'cat/z.webp', 1),
      (root + '/train', 'dog/a.JPG', 2), (root + '/train', 'dog/b.png', 2)]
  assert [(image.container, image.name, image.label) for image in found] == [
      (root + '/' + validation, 'dog/v.bmp', 2)]
  with OpenedFiles() as opened_files:
    assert train.read(2, opened_files) == b'train/dog/a.JPG'
    assert found.read(0, opened_files) == (validation + '/dog/v.bmp').encode()
  assert capsys.readouterr().err == ''


def test_divided_by_a_fraction(folder):
  folder.add_classes(cat=20, dog=10)
  train, validation = folder.index(0.3)
  assert train.class_counts().tolist() == [14, 7]
  assert validation.class_counts().tolist() == [6, 3]
  names = [[image.name for image in index] for index in (train, validation)]
  assert sorted(names[0] + names[1]) == sorted(
      f'{name}/{i:03d}.jpg' for name, number in (('cat', 20),
                                                           ('dog', 10))
      for i in range(number))
  assert names == [sorted(part) for part in names]
  assert set(train.containers) == {str(folder.path)}


@pytest.mark.parametrize('fraction, number, expected', [
    (0.9, 1, 0), (0.01, 2, 1), (0.99, 2, 1), (0.5, 3, 2), (0.25, 5, 1),
    (0.145, 100, 15)])
def test_number_of_validation_images(folder, fraction, number, expected):
  # The other class, so that some are left for validation.
  folder.add_classes(many=number, two=2)
  _, validation = folder.index(fraction)
  assert validation.class_counts().tolist() == [expected, 1]


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


def test_images_keep_their_side_when_others_come(folder):
  folder.add_classes(cat=100)
  before = set(folder.names(0.2)[1])
  folder.add_classes(dog=50).add('cat/new.jpg', 'cat/newer.jpg')
  after = {name for name in folder.names(0.2)[1] if name.startswith('cat')}
  assert len(before) == len(after) == 20
  assert len(before & after) >= 18


def test_a_class_may_be_named_as_a_split(folder):
  folder.add_classes(bus=4, train=4, val=2)
  train, validation = folder.index(0.5)
  assert train.classes == ['bus', 'train', 'val']
  assert validation.class_counts().tolist() == [2, 2, 1]


def test_names_do_not_depend_on_the_locale(folder):
  folder.add(u'train/\u72ac/\u4e00.jpg', u'val/\u72ac/\u4e8c.jpg')
  code = (
      'import sys, image_folder, image_index\n'
      'index, _ = image_folder.index_image_folder(sys.argv[1], None, 0)\n'
      'with image_index.OpenedFiles() as opened_files:\n'
      '  print(ascii((index.classes, index.read(0, opened_files))))')
  output = subprocess.check_output(
      [sys.executable, '-c', code, str(folder.path)],
      env=dict(os.environ, LC_ALL='C', PYTHONCOERCECLOCALE='0',
               PYTHONUTF8='0'),
      cwd=os.path.dirname(image_folder.__file__))
  assert output.decode().strip() == ascii(
      ([u'\u72ac'], u'train/\u72ac/\u4e00.jpg'.encode()))


def test_file_names_are_any_bytes(folder):
  folder.add(b'cat/\xff.jpg', b'cat/a\nb.jpg')
  train, validation = folder.index(0.5)
  with OpenedFiles() as opened_files:
    assert {train.read(0, opened_files), validation.read(0, opened_files)} == {
        b'cat/\xff.jpg', b'cat/a\nb.jpg'}


def test_links_are_followed(folder, tmp_path):
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'elsewhere' / 'one.jpg').write_bytes(b'linked')
  folder.add('cat/two.jpg', 'dog/three.jpg', 'dog/four.jpg')
  os.symlink(str(tmp_path / 'elsewhere' / 'one.jpg'),
             str(folder.path / 'cat' / 'link.jpg'))
  os.symlink(str(tmp_path / 'elsewhere'), str(folder.path / 'fox'))
  os.symlink('../cat', str(folder.path / 'dog' / 'cats'))
  train, validation = folder.index(0.1)
  assert train.classes == ['cat', 'dog', 'fox']
  counts = train.class_counts() + validation.class_counts()
  assert counts.tolist() == [2, 4, 1]
  with OpenedFiles() as opened_files:
    assert train.read(len(train) - 1, opened_files) == b'linked'


# What is passed over.


def test_other_files_are_said(capsys, folder):
  folder.add('cat/a.jpg', 'cat/b.jpg', 'cat/notes.txt', 'cat/c.gif',
             'cat/Thumbs.db', 'cat/jpg', 'README', '.DS_Store', 'cat/._a.jpg',
             '.git/cat.jpg', 'cat/.cache/c.jpg')
  os.mkfifo(str(folder.path / 'cat' / 'pipe.jpg'))
  train, validation = folder.names(0.5)
  assert sorted(train + validation) == ['cat/a.jpg', 'cat/b.jpg']
  assert capsys.readouterr().err.endswith(
      ': 6 files are passed over, as not named like a JPEG, PNG, WebP or BMP '
      f'image; the first is {folder.path}/README\n')


# What is refused.


@pytest.mark.parametrize('names, fraction, words', [
    (['cat/a.jpg', 'cat/b.jpg'], 0., '--validation_fraction 0.0: give'),
    (['cat/a.jpg', 'cat/b.jpg'], float('nan'), '--validation_fraction nan'),
    (['cat/a.jpg', 'cat/b.jpg'], None, 'no folders train and validation'),
    (['.hidden/a.jpg', 'b.txt'], 0.5, 'holds no folders'),
    (['cat/a.jpg', 'c.jpg'], 0.5, 'c.jpg: an image where folders of classes'),
    (['cat/a.jpg', 'cat/b.jpg', 'dog/a.gif'], 0.5, 'images/dog: holds no'),
    (['cat/a.jpg', 'dog/b.jpg'], 0.5, 'every class has a single image'),
    (['cat/a.jpg', b'\xff/b.jpg'], 0.5, 'not UTF-8'),
    (['train/cat/a.jpg', 'val/cat/b.jpg'], 0.5,
     'images/val has the validation images; leave it out'),
    (['train/cat/a.jpg'], None,
     'images/train: has class folders, but no folder validation'),
    (['val/cat/a.jpg'], 0.5,
     'images/val: has class folders, but no folder train'),
    (['train/cat/a.jpg', 'val/cat/b.jpg', 'validation/cat/c.jpg'], None,
     'images/validation and '),
    (['train/cat/a.jpg', 'val/dog/c.jpg'], None,
     'images/val/dog: a class of which')])
def test_refused(folder, names, fraction, words):
  folder.add(*names).check_refused(words, fraction)


@pytest.mark.parametrize('target, words', [
    ('.', 'a folder that it is in'), ('../..', 'a folder that it is in'),
    ('../dog', 'a folder that it is in'), ('nowhere', 'mend the link')])
def test_links_that_lead_nowhere(folder, target, words):
  folder.add('cat/a.jpg', 'dog/b.jpg', 'dog/c.jpg')
  os.symlink(target, str(folder.path / 'cat' / 'link.jpg'))
  os.symlink('../cat', str(folder.path / 'dog' / 'cats'))
  folder.check_refused(words, 0.5)


def test_images_of_absurd_size(folder, monkeypatch):
  monkeypatch.setattr(image_folder, 'MAX_IMAGE_BYTES', 9)
  folder.add('cat/a.jpg', 'cat/long.jpg').check_refused(
      'cat/long.jpg: has 12 bytes', 0.5)
