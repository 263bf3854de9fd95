"""The command line of step 4, as its user meets it."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import analyze_imagenet_labels
import shared_dumps
from dump_folders import publish, write_split

SCRIPT = os.path.abspath(analyze_imagenet_labels.__file__)
NUM_CLASSES = 12

# Rows in which the label takes each place among a classifier's classes.
NUM_IMAGES = {'train': 8, 'validation': 3}
LABEL_PLACES = {
    (0, 'train'): [0, 0, 0, 0, 4, 5, 11, 6],
    (0, 'validation'): [4, 5, 0],
    (1, 'train'): [0] * 8,
    (1, 'validation'): [7, 5, 11],
    (2, 'train'): [0, 3, 2, 1, 1, 0, 4, 5],
    (2, 'validation'): [0, 1, 0],
}
EXPECTED = b'''\
Classifier 0:
 Train top-1:0.5
 Train top-5:0.625
 Test top-1:0.3333
 Test top-5:0.6667
Classifier 1:
 Train top-1:1.0
 Train top-5:1.0
 Test top-1:0.0
 Test top-5:0.0
Classifier 2:
 Train top-1:0.25
 Train top-5:0.875
 Test top-1:0.6667
 Test top-5:1.0
'''


def make_labels(split):
  return np.random.RandomState(5).randint(
      1, NUM_CLASSES, NUM_IMAGES[split]).astype(np.int32)


def make_softmaxes(split, k):
  """float32 [images, classes] with the labels at their `LABEL_PLACES`."""
  rng = np.random.RandomState(k)
  rows = []
  for label, place in zip(make_labels(split), LABEL_PLACES[k, split]):
    falling = np.sort(rng.dirichlet(np.ones(NUM_CLASSES)))[::-1]
    others = rng.permutation(np.delete(np.arange(NUM_CLASSES), label))
    row = np.empty(NUM_CLASSES, np.float32)
    row[np.insert(others, place, label)] = falling
    rows.append(row)
  return np.array(rows)


@pytest.fixture
def folders(tmp_path, monkeypatch):
  """`$IMAGENET_HOME` with the labels, and an `output_softmax` of all dumps."""
  monkeypatch.setattr(shared_dumps, 'TRAIN_PART_STARTS', (0, 3, 5))
  home, dumps = tmp_path / 'home', tmp_path / 'output_softmax'
  home.mkdir()
  dumps.mkdir()
  for split in shared_dumps.SPLITS:
    write_split(dumps, split, make_labels(split), {
        k: make_softmaxes(split, k) for k in range(3)})
    name = shared_dumps.labels_file_name(split)
    shutil.copy(str(dumps / name), str(home / name))
  return home, dumps


def command(folders):
  home, dumps = folders
  return ['-dataset_path', str(home),
          '-softmax_dir_to_validate_against', str(dumps)]


def run(arguments, *python_options):
  """Exit status, stdout and stderr (bytes) of the command."""
  finished = subprocess.run(
      [sys.executable, *python_options, SCRIPT] + arguments,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  return finished.returncode, finished.stdout, finished.stderr


def test_output_is_the_published_form_byte_for_byte(folders):
  assert run(command(folders)) == (0, EXPECTED, b'')


def test_published_dumps_without_top5_files_and_two_dashes(folders, capsys):
  publish(folders[1], folders[0])
  for path in folders[1].glob('*top5*'):
    path.unlink()
  arguments = command(folders)
  arguments[::2] = ['--dataset_path', '--softmax_path']
  analyze_imagenet_labels.main(arguments)
  assert capsys.readouterr() == (EXPECTED.decode(), '')


def test_labels_beside_the_dumps_are_enough(folders, capsys):
  analyze_imagenet_labels.main(command(folders)[2:])
  assert capsys.readouterr() == (EXPECTED.decode(), '')


def test_neither_tensorflow_nor_matplotlib_is_imported(folders):
  _, _, modules = run(command(folders), '-v')
  assert b"import 'numpy'" in modules
  for absent in (b"import 'tensorflow", b"import 'matplotlib"):
    assert absent not in modules


def test_nan_leaves_stdout_empty(folders):
  path = str(folders[1] / 'clf2_all_probabilities.npy')
  softmaxes = np.load(path)
  softmaxes[1, 3] = np.nan
  np.save(path, softmaxes)
  (folders[1] / 'clf2_top5_classes.npy').unlink()
  status, stdout, stderr = run(command(folders))
  assert (status, stdout, stderr.count(b'\n')) == (1, b'', 1)
  assert stderr.startswith(f'analyze_imagenet_labels.py: {path}: '.encode())


def test_the_script_names_the_packages_that_it_needs():
  """PEP 723: `uv run analyze_imagenet_labels.py` works on any machine."""
  with open(SCRIPT) as stream:
    block = re.match(r'# /// script\n(.*?)# ///\n', stream.read(), re.S)
  lines = [line[2:] for line in block.group(1).splitlines()]
  assert lines[0] == 'requires-python = ">=3.6,<3.14"'
  packages = [line.strip().strip(",'") for line in lines[2:-1]]
  path = os.path.join(os.path.dirname(SCRIPT), 'requirements-analysis.txt')
  with open(path) as stream:
    assert packages == [line.split('  #')[0].strip() for line in stream
                        if not line.startswith('#')]
  toml = pytest.importorskip('tomllib')  # From Python 3.11 on.
  assert toml.loads('\n'.join(lines))['dependencies'] == packages
