"""The command line of step 4, as its user meets it."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import analyze_imagenet_labels
import dump_names
from dump_folders import best_classes, publish, write_split

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
  monkeypatch.setattr(dump_names, 'TRAIN_PART_STARTS', (0, 3, 5))
  home, dumps = tmp_path / 'home', tmp_path / 'output_softmax'
  home.mkdir()
  dumps.mkdir()
  for split in dump_names.SPLITS:
    write_split(dumps, split, make_labels(split), {
        k: make_softmaxes(split, k) for k in range(3)})
    name = dump_names.labels_file_name(split)
    shutil.copy(str(dumps / name), str(home / name))
  return home, dumps


def command(folders):
  home, dumps = folders
  return ['-dataset_path', str(home),
          '-softmax_dir_to_validate_against', str(dumps)]


def run(arguments, folder=None, *python_options):
  """Exit status, stdout and stderr (bytes) of the command in a shell."""
  process = subprocess.Popen(
      [sys.executable] + list(python_options) + [SCRIPT] + arguments,
      cwd=folder and str(folder), stdout=subprocess.PIPE,
      stderr=subprocess.PIPE)
  stdout, stderr = process.communicate()
  return process.returncode, stdout, stderr


def test_output_is_the_published_form_byte_for_byte(folders, tmp_path):
  assert run(command(folders), tmp_path) == (0, EXPECTED, b'')


def test_published_dumps_without_top5_files_and_two_dashes(folders, capsys):
  publish(folders[1], folders[0])
  for path in folders[1].glob('*top5*'):
    path.unlink()
  arguments = command(folders)
  arguments[::2] = ['--dataset_path', '--softmax_path']
  analyze_imagenet_labels.main(arguments)
  assert capsys.readouterr() == (EXPECTED.decode(), '')


def test_labels_beside_the_dumps_are_enough(folders, capsys):
  for path in folders[0].iterdir():
    path.unlink()
  analyze_imagenet_labels.main(command(folders))
  assert capsys.readouterr() == (EXPECTED.decode(), '')
  analyze_imagenet_labels.main(command(folders)[2:])
  assert capsys.readouterr() == (EXPECTED.decode(), '')


def test_classifiers_that_are_not_there_are_not_printed(folders, capsys):
  for k in (0, 2):
    for path in folders[1].glob(f'clf{k}_*'):
      path.unlink()
  analyze_imagenet_labels.main(command(folders))
  lines = EXPECTED.decode().splitlines(True)
  assert capsys.readouterr() == (''.join(lines[5:10]), '')


def test_neither_tensorflow_nor_matplotlib_is_imported(folders):
  status, _, modules = run(command(folders), None, '-v')
  assert status == 0
  assert b"import 'numpy'" in modules
  for absent in (b"import 'tensorflow", b"import 'matplotlib"):
    assert absent not in modules


# Rows that were never filled.


@pytest.fixture
def lossy_folders(folders):
  """Published dumps in which the last training row of each was lost, and the
  last two validation rows of classifier 1."""
  home, dumps = folders
  lost = {(0, 'train'): 1, (1, 'train'): 1, (2, 'train'): 1,
          (1, 'validation'): 2}
  for (k, split), num_lost in lost.items():
    softmaxes = make_softmaxes(split, k)
    softmaxes[-num_lost:] = 0
    for name, (start, stop) in zip(
        dump_names.probabilities_file_names(k, split),
        dump_names.part_bounds(split, len(softmaxes))):
      np.save(str(dumps / name), softmaxes[start:stop])
    top5_classes = best_classes(softmaxes)
    top5_classes[-num_lost:] = 0
    np.save(str(dumps / dump_names.top5_classes_file_name(k, split)),
            top5_classes)
    labels = make_labels(split)
    labels[-num_lost:] = 0
    np.save(str(dumps / dump_names.labels_file_name(split)), labels)
  publish(dumps, home)
  return folders


@pytest.mark.parametrize('with_top5_files', [True, False])
def test_unfilled_rows_are_left_out_and_reported(
    lossy_folders, capsys, with_top5_files):
  if not with_top5_files:
    for path in lossy_folders[1].glob('*top5*'):
      path.unlink()
  analyze_imagenet_labels.main(command(lossy_folders))
  stdout, stderr = capsys.readouterr()
  lines = stdout.splitlines()
  # 4 and 5 of the 7 rows left; of validation only the first row, label at 7.
  assert lines[1:3] == [' Train top-1:0.5714', ' Train top-5:0.7143']
  assert lines[8:10] == [' Test top-1:0.0', ' Test top-5:0.0']
  assert stderr == (
      'train: rows that were never filled are left out (-count_unfilled_rows '
      'counts them, as published): '
      'classifier 0: 1 of 8 rows, top-1 0.5714 instead of 0.625, top-5 0.7143 '
      'instead of 0.75; '
      'classifier 1: 1 of 8 rows, top-1 1.0 instead of 1.0, top-5 1.0 instead '
      'of 1.0; '
      'classifier 2: 1 of 8 rows, top-1 0.2857 instead of 0.375, top-5 1.0 '
      'instead of 1.0\n'
      'validation: rows that were never filled are left out '
      '(-count_unfilled_rows counts them, as published): '
      'classifier 1: 2 of 3 rows, top-1 0.0 instead of 0.6667, top-5 0.0 '
      'instead of 0.6667\n')
  analyze_imagenet_labels.main(
      command(lossy_folders) + ['-count_unfilled_rows'])
  stdout, stderr = capsys.readouterr()
  lines = stdout.splitlines()
  assert lines[1:3] == [' Train top-1:0.625', ' Train top-5:0.75']
  assert lines[8:10] == [' Test top-1:0.6667', ' Test top-5:0.6667']
  assert stderr.splitlines()[1] == (
      'validation: rows that were never filled are counted as answers of '
      'class 0, as published: classifier 1: 2 of 3 rows, top-1 0.6667 instead '
      'of 0.0, top-5 0.6667 instead of 0.0')


# Errors.


def assert_one_line(outcome, *fragments):
  status, stdout, stderr = outcome
  stderr = stderr.decode()
  assert (status, stdout) == (1, b'')
  assert stderr.startswith('analyze_imagenet_labels.py: ')
  assert len(stderr.splitlines()) == 1 and stderr.endswith('\n')
  for fragment in fragments:
    assert fragment in stderr


def test_nan_leaves_stdout_empty(folders):
  path = str(folders[1] / 'clf2_all_probabilities.npy')
  softmaxes = np.load(path)
  softmaxes[1, 3] = np.nan
  np.save(path, softmaxes)
  (folders[1] / 'clf2_top5_classes.npy').unlink()
  assert_one_line(run(command(folders)), path, 'row 1 holds NaN')


@pytest.mark.parametrize('which', [0, 1])
@pytest.mark.parametrize('value', ['', 'absent\nfolder\rname'])
def test_folders_that_do_not_exist(folders, which, value):
  arguments = command(folders)
  arguments[2 * which + 1] = value
  assert_one_line(run(arguments), arguments[2 * which], 'no such folder')


def test_a_fifo_where_a_dump_should_be(folders):
  path = folders[1] / 'clf1_top5_classes.npy'
  path.unlink()
  os.mkfifo(str(path))
  process = subprocess.Popen(
      [sys.executable, SCRIPT] + command(folders), stdout=subprocess.PIPE,
      stderr=subprocess.PIPE)
  try:
    stdout, stderr = process.communicate(timeout=60)
  finally:
    process.kill()
  assert_one_line((process.returncode, stdout, stderr), 'not a regular file')


@pytest.mark.parametrize('first', [
    'from cascade import UserError', 'from cascade.macs import UserError',
    'import cascade.dumps as d; UserError = d.UserError'])
def test_user_error_in_any_order_of_imports(first):
  subprocess.check_call(
      [sys.executable, '-c',
       f'{first}; assert issubclass(UserError, Exception)'],
      cwd=os.path.dirname(SCRIPT))
