"""Small dumps of any classifiers, analysed with -output_dir."""

import csv
import json

import numpy as np
import pytest

import analyze_imagenet_labels
import shared_dumps
import shared_stage_seconds
from cascade import figures, page
from dump_folders import random_softmaxes, write_split
from shared_cascade_json import CHECKPOINT_FIELDS, SHARED_FIELDS, WEIGHT_FIELDS

NUM_CLASSES = 12

# What the page must show, as arguments of `analysed`.
RUNS = {
    'three exits': dict(),
    'four exits': dict(classifier_ids=(0, 1, 2, 3), options=(
        '-method', 'cst,global,ccst,budgeted')),
    'measured time': dict(is_timed=True),
    'unfilled rows': dict(num_unfilled=9),
    'published dumps': dict(knows_weights=False),
    'one metric, one setting': dict(options=(
        '-metric', 'top5', '-method', 'ccst', '-epsilons', '2')),
    'a thousand settings': dict(options=('-num_epsilons', '1000')),
    'few images': dict(num_images=3),
}


def softmaxes_of(split, k, labels, num_classes=NUM_CLASSES):
  """float32 [images, classes]; later classifiers are better."""
  softmaxes = random_softmaxes(
      10 * k + shared_dumps.SPLITS.index(split), len(labels), num_classes)
  softmaxes[np.arange(len(labels)), labels] += .1 + .2 * k
  return softmaxes / softmaxes.sum(axis=1, keepdims=True)


def labels_of(split, num_images, num_classes=NUM_CLASSES, first=1):
  """int [images]; each class occurs, from `first` on."""
  return np.random.RandomState(len(split)).permutation(
      np.arange(num_images) % (num_classes - first)) + first


def make_dumps(dumps, classifier_ids=(0, 1, 2), num_images=200, num_unfilled=0,
               network='ResNet-v2-50', knows_weights=True,
               num_classes=NUM_CLASSES, first_label=1):
  """Makes a folder of dumps; returns the content of its cascade.json.

  Where `knows_weights`, the last classifier's checkpoint has the trunk.
  """
  dumps.mkdir()
  for split in shared_dumps.SPLITS:
    labels = labels_of(split, num_images, num_classes, first_label)
    softmaxes = {k: softmaxes_of(split, k, labels, num_classes)
                 for k in classifier_ids}
    for of_one in softmaxes.values():
      of_one[num_images - num_unfilled:] = 0
    write_split(dumps, split, labels, softmaxes)
  record = {
      'format_version': 1, 'network': network, 'num_classes': num_classes,
      'plain_network_macs': 5 * 10**9,
      'exits': [{'classifier_id': k, 'trunk_macs': (2 + k) * 10**9,
                 'head_macs': 10**8} for k in classifier_ids]}
  if knows_weights:
    record.update(resnet_version=2, resnet_size=50, image_size=224)
    for k, entry in zip(classifier_ids, record['exits']):
      names = ['official/model.ckpt-7', f'my heads/clf{k}/model.ckpt-9']
      if k == classifier_ids[-1]:
        names[1] = names[0]
      entry['origin'] = dict(zip(CHECKPOINT_FIELDS, names), **{
          field: f'{field} of clf{k}' for field in WEIGHT_FIELDS})
  (dumps / 'cascade.json').write_text(json.dumps(record))
  return record


def write_stage_seconds(dumps, ms_to_exit=(20, 30, 40), plain_ms=40):
  """Writes a `stage_seconds.json` beside a folder of dumps; its path."""
  record = json.loads((dumps / 'cascade.json').read_text())
  path = str(dumps.parent / 'stage_seconds.json')
  shared_stage_seconds.write(path, shared_stage_seconds.StageSeconds(
      {field: record[field] for field in SHARED_FIELDS}, 'a CPU', {}, {},
      [1, 8], {entry['classifier_id']: [1., ms / 1000]
               for entry, ms in zip(record['exits'], ms_to_exit)},
      [1., plain_ms / 1000]))
  return path


def analyze(dumps, *options, draws=False, writes_page=False):
  """Analyses a folder of dumps into `results` beside it, which it returns.

  The figures and the page, which take most of the time, are made on request.
  """
  results = dumps.parent / 'results'
  with pytest.MonkeyPatch.context() as patch:
    if not draws:
      patch.setattr(figures, 'write_figures', lambda *_: None)
    if not draws and not writes_page:
      patch.setattr(page, 'write', lambda *_: None)
    analyze_imagenet_labels.main(
        ['-softmax_path', str(dumps), '-output_dir', str(results)] +
        [str(option) for option in options])
  return results


def analysed(folder, *more_options, options=(), is_timed=False, **of_dumps):
  """The results of an analysis with its page; with -cost if `is_timed`."""
  dumps = folder / 'output_softmax'
  make_dumps(dumps, **of_dumps)
  if is_timed:
    options += ('-cost', write_stage_seconds(dumps))
  return analyze(dumps, *options, *more_options, writes_page=True)


def read_csv(path):
  with open(str(path), newline='') as stream:
    return list(csv.DictReader(stream))
