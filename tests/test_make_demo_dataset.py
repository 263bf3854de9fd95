"""The demonstration data: packed as ImageNet, repeatable, graded."""

import collections
import io
import os
import tarfile

import make_demo_dataset as demo

FILES = (demo.TRAIN_ARCHIVE, demo.VALIDATION_ARCHIVE, demo.LABELS_FILE,
         demo.NAMES_FILE)


def make(folder, *arguments):
  assert demo.main(['--output_dir', str(folder), '--train_images', '60',
                    '--validation_images', '35'] + list(arguments)) == 0
  contents = []
  for name in FILES:
    with open(os.path.join(str(folder), name), 'rb') as written:
      contents.append(written.read())
  return contents


def tar_members(content):
  with tarfile.open(fileobj=io.BytesIO(content), mode='r:') as tar:
    return [(member.name, tar.extractfile(member).read()) for member in tar]


def test_layout_is_that_of_imagenet(tmp_path):
  train, validation, labels, names = make(tmp_path)
  synsets = [f'n{i:08d}' for i in range(1, 11)]
  inner_tars = tar_members(train)
  assert [name for name, _ in inner_tars] == [
      synset + '.tar' for synset in synsets]
  for synset, (_, content) in zip(synsets, inner_tars):
    files = tar_members(content)
    assert len(files) == 6
    assert all(name.startswith(synset + '_') and name.endswith('.JPEG')
               for name, _ in files)
  assert [name for name, _ in tar_members(validation)] == [
      f'ILSVRC2012_val_{i:08d}.JPEG' for i in range(1, 36)]
  counts = collections.Counter(labels.decode().splitlines())
  assert sorted(counts) == synsets
  assert sum(counts.values()) == 35
  assert set(counts.values()) == {3, 4}
  assert [line.split()[0] for line in names.decode().splitlines()] == synsets
  assert sorted(os.listdir(str(tmp_path))) == sorted(FILES)


def test_same_arguments_give_the_same_bytes(tmp_path):
  first = make(tmp_path / 'first')
  assert make(tmp_path / 'second') == first
  other = make(tmp_path / 'other', '--seed', '1')
  assert all(a != b for a, b in zip(first[:3], other))
  # The validation split does not depend on the size of the other one.
  more = make(tmp_path / 'more', '--train_images', '70')
  assert more[1:] == first[1:] and more[0] != first[0]


def test_nothing_is_overwritten(tmp_path, capsys):
  name = demo.LABELS_FILE
  (tmp_path / name).write_bytes(b'138 GB')
  assert demo.main(['--output_dir', str(tmp_path)]) == 1
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and str(tmp_path / name) in error
  assert (tmp_path / name).read_bytes() == b'138 GB'
  assert os.listdir(str(tmp_path)) == [name]
