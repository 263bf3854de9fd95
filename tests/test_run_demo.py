"""run_demo.sh: every step of the README, from archives to figures."""

import json
import os
import re
import subprocess

import numpy as np

from tf_compat import IS_TF1

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# What step 4 prints, to the byte (README of the paper's repository).
_SPLIT = r' {0} top-1:[01]\.\d+\n {0} top-5:[01]\.\d+\n'
STEP_4 = ''.join(
    r'Classifier {}:\n'.format(k) + _SPLIT.format('Train') +
    _SPLIT.format('Test') for k in range(3))


def run_demo(folder):
  environment = dict(
      os.environ, DEMO_DIR=str(folder), TRAIN_IMAGES='80',
      VALIDATION_IMAGES='33', IMAGE_SIZE='32')
  finished = subprocess.run(
      [os.path.join(ROOT, 'run_demo.sh'), 'tf1' if IS_TF1 else 'tf2'],
      env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, universal_newlines=True)
  assert finished.returncode == 0, finished.stderr
  return finished


def test_steps_end_to_end(tmp_path):
  folder = tmp_path / 'demo folder'
  finished = run_demo(folder)
  commands = [line for line in finished.stdout.splitlines()
              if line.startswith('$ ')]
  assert [re.search(r'\S+\.(py|sh)', command).group() for command in commands] \
      == ['make_demo_dataset.py', './preprocess_imagenet.sh'] + [
          'imagenet_main.py'] * 5 + ['analyze_imagenet_labels.py'] * 2
  assert re.search(STEP_4, finished.stdout)

  # Dumps hold the records' images, and the labels that step 2 wrote.
  dumps = folder / 'resnet' / 'output_softmax'
  for split, num_images in (('train', 80), ('validation', 33)):
    name = '{}_non_onehot.npy'.format(split)
    labels = np.load(str(dumps / name))
    assert len(labels) == num_images
    np.testing.assert_array_equal(
        labels, np.load(str(folder / 'imagenet' / name)))

  # The cost of this network, and the figures.
  with open(str(dumps / 'cascade.json')) as stream:
    record = json.load(stream)
  assert [entry['classifier_id'] for entry in record['exits']] == [0, 1, 2]
  assert (record['network'], record['image_size']) == ('ResNet-v2-18', 32)
  results = folder / 'results'
  assert 'figures are in {}'.format(results) in finished.stdout
  for name in ('accuracy_vs_macs_top1', 'accuracy_vs_macs_top5',
               'confidence_clf', 'exit_shares'):
    assert (results / (name + '.png')).stat().st_size > 1000
    assert (results / (name + '.pdf')).stat().st_size > 1000
  summary = json.loads((results / 'summary.json').read_text())
  assert summary['network'] == 'ResNet-v2-18'

  # Run again, it draws and trains nothing anew.
  again = run_demo(folder)
  assert 'make_demo_dataset.py' not in again.stdout
  assert 'training to step' not in again.stderr
  assert (re.search(STEP_4, again.stdout).group() ==
          re.search(STEP_4, finished.stdout).group())
