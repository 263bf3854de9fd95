"""run_tiny_imagenet.sh: from the folder as it is published to the table."""

import csv
import os
import shutil
import statistics
import subprocess
import sys
import zipfile

import numpy as np
from PIL import Image
import pytest

from analysed_dumps import read_csv
from tf_compat import IS_TF1

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SYNSETS = ['n01443537', 'n01629819', 'n01641577', 'n01644900', 'n01698640',
           'n01742172', 'n01768244']
SETTINGS = {
    'TRUNK_STAGES': '32:1:0.05:1 64:2:0.02:1', 'HEAD_STAGES': '1:0.05',
    'SEEDS': '1', 'BATCH_SIZE': '14', 'TRAIN_SHARDS': '2',
    'VALIDATION_SHARDS': '1', 'EPSILONS': '5', 'FEW_EPSILONS': '',
}


def draw(folder):
  """Writes 7 classes of 12 images for training and 5 for validation."""
  random = np.random.RandomState(0)
  annotations = []
  for place, synset in enumerate(SYNSETS):
    for split, count in (('train', 12), ('val', 5)):
      images = folder / split / (synset if split == 'train' else '') / 'images'
      images.mkdir(parents=True, exist_ok=True)
      for i in range(count):
        number = i if split == 'train' else 5 * place + i
        name = (f'{synset}_{number}.JPEG' if split == 'train'
                else f'val_{number}.JPEG')
        pixels = random.randint(0, 100, (64, 64, 3)) + 20 * place
        Image.fromarray(pixels.astype(np.uint8)).save(
            str(images / name), format='JPEG')
        if split == 'val':
          annotations.append(f'{name}\t{synset}\t0\t0\t63\t63\n')
  (folder / 'val' / 'val_annotations.txt').write_text(''.join(annotations))
  (folder / 'test' / 'images').mkdir(parents=True)
  (folder / 'wnids.txt').write_text('\n'.join(SYNSETS) + '\n')
  (folder / 'words.txt').write_text(f'{SYNSETS[0]}\tgoldfish\n')


def run(data, folder):
  return subprocess.run(
      [os.path.join(ROOT, 'run_tiny_imagenet.sh'), *map(str, data)],
      env=dict(os.environ, TINY_DIR=str(folder), **SETTINGS),
      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      universal_newlines=True)


def check_spreads(folder):
  """A second seed, of other accuracies: mean and deviation in every cell."""
  shutil.copytree(str(folder / 'seed1'), str(folder / 'seed2'))
  path = folder / 'seed2' / 'results' / 'cascade.csv'
  rows = read_csv(path)
  accuracies = []
  for row in rows:
    if (row['metric'], row['method'], row['setting']) == ('top1', 'cst', '5.0'):
      accuracies.append(100 * float(row['test_accuracy']))
      row['test_accuracy'] = str(float(row['test_accuracy']) + .02)
      accuracies.append(accuracies[0] + 2)
  with open(str(path), 'w', newline='') as csv_file:
    writer = csv.DictWriter(csv_file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  printed = subprocess.run(
      [sys.executable, os.path.join(ROOT, 'benchmarks/tiny_imagenet_table.py'),
       str(folder / 'seed1'), str(folder / 'seed2')],
      stdout=subprocess.PIPE, universal_newlines=True, check=True).stdout
  assert (f'| cst 5 % | {statistics.mean(accuracies):.2f} ± '
          f'{statistics.stdev(accuracies):.2f} |') in printed
  for line in printed.splitlines():
    # The sizes of batches, too, are no measurements.
    if line.startswith(('| clf', '| cst', '| pareto', '| risk', '| 32')):
      for cell in line.strip('|').split('|')[2 if '| 32' in line else 1:]:
        assert cell.count('±') in (1, 3), line


@pytest.mark.skipif(IS_TF1, reason='the script runs on tf2')
def test_from_a_zip_to_the_table_and_nothing_twice(tmp_path):
  draw(tmp_path / 'tiny-imagenet-200')
  path = tmp_path / 'tiny-imagenet-200.zip'
  with zipfile.ZipFile(str(path), 'w') as archive:
    for file in sorted((tmp_path / 'tiny-imagenet-200').rglob('*')):
      archive.write(str(file), str(file.relative_to(tmp_path)))
  folder = tmp_path / 'tiny folder'
  finished = run([path], folder)
  assert finished.returncode == 0, finished.stderr
  table = (folder / 'table.md').read_text()
  assert table in finished.stdout

  # Images left where the analysis says, with the same class; no other seed.
  one, = [row for row in read_csv(folder / 'table.csv')
          if row['table'] == 'runs']
  assert (one['seed'], one['num_images'], one['different']) == (
      'seed1', '35', '0')
  assert '±' not in table.split('\n\n', 1)[1]

  # Run again it reads what is there, and makes the same table.
  again = run([path], folder)
  assert again.returncode == 0, again.stderr
  commands = [line for line in again.stdout.splitlines()
              if line.startswith('$ python3')]
  assert len(commands) == 1 and 'tiny_imagenet_table.py' in commands[0]
  assert (folder / 'table.md').read_text() == table

  check_spreads(folder)


@pytest.mark.skipif(IS_TF1, reason='the script runs on tf2')
def test_bad_data_is_one_line(tmp_path):
  half = tmp_path / 'half.zip'
  with zipfile.ZipFile(str(half), 'w') as archive:
    archive.writestr('tiny-imagenet-200/words.txt', 'words' * 99)
  half.write_bytes(half.read_bytes()[:-30])
  draw(tmp_path / 'unlabelled')
  (tmp_path / 'unlabelled' / 'val' / 'val_annotations.txt').unlink()
  for data, part in ((half, 'half.zip'),
                     (tmp_path / 'unlabelled', 'val_annotations.txt')):
    finished = run([data], tmp_path / 'tiny')
    assert finished.returncode != 0
    assert part in finished.stderr.splitlines()[-1]
    assert 'Traceback' not in finished.stderr
