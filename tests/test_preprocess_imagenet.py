"""Step 2 of the README: its commands, in a folder of archives."""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest

import make_demo_dataset

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Where Python has left a __pycache__, cp says that it leaves that folder out.
STEP_2 = ('cp Imagenet_tools/* "$IMAGENET_HOME" 2>/dev/null; '
          'cd "$IMAGENET_HOME"; ./preprocess_imagenet.sh')


def run_bash(command, home, **variables):
  environment = dict(os.environ, PYTHON=sys.executable, **variables)
  for name in ('IMAGENET_HOME', 'PYTHONPATH'):
    environment.pop(name, None)
  if home is not None:
    environment['IMAGENET_HOME'] = str(home)
  finished = subprocess.run(
      ['bash', '-c', command], cwd=ROOT, env=environment,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
  return finished.returncode, finished.stdout, finished.stderr


def contents(folder):
  result = {}
  for parent, _, names in os.walk(str(folder)):
    for name in names:
      path = os.path.join(parent, name)
      with open(path, 'rb') as opened:
        result[os.path.relpath(path, str(folder))] = opened.read()
  return result


@pytest.fixture
def home(tmp_path):
  folder = tmp_path / 'ImageNet 2012'  # A blank in the name.
  assert make_demo_dataset.main([
      '--output_dir', str(folder), '--train_images', '30',
      '--validation_images', '20', '--image_pixels', '32']) == 0
  return folder


def test_published_commands(home):
  before = contents(home)
  status, output, error = run_bash(STEP_2, home)
  assert status == 0, error
  assert 'train: 30 images in 1,024 shards' in output
  after = contents(home)
  assert {name: after[name] for name in before} == before
  for split, num_shards, num_images in (
      ('train', 1024, 30), ('validation', 128, 20)):
    assert sorted(os.listdir(str(home / 'tf_records' / split))) == [
        f'{split}-{shard:05d}-of-{num_shards:05d}'
        for shard in range(num_shards)]
    labels = np.load(str(home / (split + '_non_onehot.npy')))
    assert labels.shape == (num_images,)
    assert set(labels.tolist()) == set(range(1, 11))
  dataset = json.loads(after[os.path.join('tf_records', 'dataset.json')]
                       .decode())
  assert dataset['class_names'] == list(make_demo_dataset.SHAPE_NAMES)


def unpack(archive, folder):
  with tarfile.open(str(archive)) as tar:
    for member in tar:
      folder.mkdir(exist_ok=True)
      (folder / member.name).write_bytes(tar.extractfile(member).read())
  archive.unlink()


def test_unpacked_archives_give_the_same_records(home):
  """With other numbers of shards, and an option for the builder."""
  script = 'Imagenet_tools/preprocess_imagenet.sh --seed 5'
  shards = {'TRAIN_SHARDS': '3', 'VALIDATION_SHARDS': '2', 'WORKERS': '1'}
  assert run_bash(script, home, **shards)[0] == 0
  dataset = json.loads((home / 'tf_records' / 'dataset.json').read_text())
  assert dataset['num_shards'] == {'train': 3, 'validation': 2}
  assert dataset['train_shuffle_seed'] == 5
  expected = contents(home / 'tf_records')
  shutil.rmtree(str(home / 'tf_records'))
  unpack(home / 'ILSVRC2012_img_train.tar', home / 'train')
  unpack(home / 'ILSVRC2012_img_val.tar', home / 'val')
  for synset_tar in sorted((home / 'train').glob('*.tar')):
    unpack(synset_tar, home / 'train' / synset_tar.stem)
  status, _, error = run_bash(script, home, **shards)
  assert status == 0, error
  found = contents(home / 'tf_records')
  # They lie elsewhere, so another build in that folder would be refused.
  assert found.pop('.build/settings.json') != expected.pop(
      '.build/settings.json')
  assert found == expected
