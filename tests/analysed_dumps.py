"""Small dumps of any classifiers, analysed with -output_dir."""

import csv
import json

import numpy as np

import analyze_imagenet_labels
import stage_seconds
from cascade import figures
from dump_folders import random_softmaxes, write_split
from dump_record import CHECKPOINT_FIELDS, SHARED_FIELDS, WEIGHT_FIELDS

NUM_CLASSES = 12

# What the page must show, as arguments of `analysed`.
RUNS = {
    'three exits': dict(),
    'two exits': dict(classifier_ids=(0, 2)),
    'four exits': dict(classifier_ids=(0, 1, 2, 3), options=(
        '-method', 'cst,global,ccst,budgeted')),
    'measured time': dict(is_timed=True),
    'unfilled rows': dict(num_unfilled=9),
    'published dumps': dict(knows_weights=False),
    'one metric, one setting': dict(options=(
        '-metric', 'top5', '-method', 'ccst', '-epsilons', '2')),
    'a thousand settings': dict(options=('-num_epsilons', '1000')),
    'one method': dict(options=('-method', 'global')),
    'on validation': dict(options=('-fit_on', 'validation')),
    'few images': dict(num_images=3),
}


def analysed(folder, monkeypatch, *more_options, options=(),
             classifier_ids=(0, 1, 2), num_images=200, num_unfilled=0,
             network='ResNet-v2-50', knows_weights=True, is_timed=False):
  """Makes the dumps and analyses them without drawing; returns the results.

  Later classifiers are better. Where `knows_weights`, the last one's checkpoint
  has the trunk. With `is_timed`, -cost is given.
  """
  monkeypatch.setattr(figures, 'write_figures', lambda *_: None)
  dumps = folder / 'output_softmax'
  dumps.mkdir()
  for seed, split in enumerate(('validation', 'train')):
    labels = np.random.RandomState(seed).randint(1, NUM_CLASSES, num_images)
    softmaxes = {}
    for k in classifier_ids:
      of_one = random_softmaxes(10 * k + seed, num_images, NUM_CLASSES)
      of_one[np.arange(num_images), labels] += .1 + .2 * k
      of_one /= of_one.sum(axis=1, keepdims=True)
      of_one[num_images - num_unfilled:] = 0
      softmaxes[k] = of_one
    write_split(dumps, split, labels, softmaxes)
  record = {
      'format_version': 1, 'network': network, 'num_classes': NUM_CLASSES,
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
  if is_timed:
    path = folder / 'stage_seconds.json'
    stage_seconds.write(str(path), stage_seconds.StageSeconds(
        {field: record[field] for field in SHARED_FIELDS}, 'a CPU', {}, {},
        [1, 8], {k: [1., .02 + .01 * k] for k in classifier_ids}, [1., .04]))
    options += ('-cost', path)
  results = folder / 'results'
  analyze_imagenet_labels.main(
      ['-softmax_path', str(dumps), '-output_dir', str(results)] +
      [str(option) for option in options + more_options])
  return results


def read_csv(path):
  with open(str(path), newline='') as stream:
    return list(csv.DictReader(stream))
