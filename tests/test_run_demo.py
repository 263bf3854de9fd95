"""run_demo.sh: every step of the README, from archives to figures."""

import json
import os
import re
import subprocess

import numpy as np

from tf_compat import IS_TF1

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# What step 4 prints, to the byte (README of the paper's repository).
STEP_4 = ''.join(
    fr'Classifier {k}:\n' + ''.join(
        fr' {split} top-{n}:[01]\.\d+\n'
        for split in ('Train', 'Test') for n in (1, 5))
    for k in range(3))


def test_steps_end_to_end(tmp_path):
  folder = tmp_path / 'demo folder'
  environment = dict(
      os.environ, DEMO_DIR=str(folder), TRAIN_IMAGES='80',
      VALIDATION_IMAGES='33', IMAGE_SIZE='32')
  finished = subprocess.run(
      [os.path.join(ROOT, 'run_demo.sh'), 'tf1' if IS_TF1 else 'tf2'],
      env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, universal_newlines=True)
  assert finished.returncode == 0, finished.stderr
  # Every command is shown.
  assert re.findall(r'^\$ (?:python3 |\./)(\w+)', finished.stdout, re.M) == (
      ['make_demo_dataset', 'preprocess_imagenet'] + ['imagenet_main'] * 5 +
      ['analyze_imagenet_labels'] * 2 + ['run_cascade'] * 2)
  assert re.search(STEP_4, finished.stdout)

  # Dumps hold the records' images, and the labels that step 2 wrote.
  dumps = folder / 'resnet' / 'output_softmax'
  for split, num_images in (('train', 80), ('validation', 33)):
    labels = np.load(str(dumps / f'{split}_non_onehot.npy'))
    assert len(labels) == num_images
    np.testing.assert_array_equal(
        labels, np.load(str(folder / f'imagenet/{split}_non_onehot.npy')))

  # The cascade did what the analysis expects of it.
  run = json.loads((folder / 'cascade' / 'run.json').read_text())
  assert run['num_images'] == 33
  assert abs(run['top1'] - run['expected']['test_accuracy']) < .01
  assert len(re.findall(r'\.JPEG: .*, clf[012]$', finished.stdout, re.M)) == 4

  # The cost of this network, and the figures.
  record = json.loads((dumps / 'cascade.json').read_text())
  assert [entry['classifier_id'] for entry in record['exits']] == [0, 1, 2]
  results = folder / 'results'
  assert f'figures are in {results}' in finished.stdout
  assert (results / 'accuracy_vs_macs_top1.png').exists()
  summary = json.loads((results / 'summary.json').read_text())
  assert summary['network'] == record['network'] == 'ResNet-v2-18'
