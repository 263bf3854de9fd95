"""Dumps as other people have them, through `analyze_imagenet_labels.py`."""

import json
import os
import re

import numpy as np
import pytest

from analysed_dumps import (
    analyze, labels_of, make_dumps, read_csv, softmaxes_of, write_stage_seconds)
from refusals import refused

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def make(folder, **options):
  make_dumps(folder, **{'num_images': 60, 'classifier_ids': (0, 1), **options})
  return folder


def results_of(folder, *options):
  """Pairs of metric and method of which there are results."""
  return {(row['metric'], row['method'])
          for row in read_csv(analyze(folder, *options) / 'cascade.csv')}


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_the_recipe_of_the_docs_word_for_word(
    tmp_path, monkeypatch, capsys, dtype):
  path = os.path.join(ROOT, 'docs', 'file_formats.md')
  with open(path, encoding='utf-8') as stream:
    code, command = re.search(
        r'```python\n(.*?)```\n\n    python (.*?)\n', stream.read(),
        re.S).groups()

  def my_softmaxes(split):
    labels = labels_of(split, 60, 20, first=0)
    return [softmaxes_of(split, k, labels, 20).astype(dtype)
            for k in range(2)], labels

  monkeypatch.chdir(tmp_path)
  exec(code, {'my_softmaxes': my_softmaxes})  # pylint: disable=exec-used
  script, *arguments = command.split()
  assert script == 'analyze_imagenet_labels.py'
  analyze(tmp_path, *arguments)  # Of two folders the last one counts.
  printed = capsys.readouterr()
  assert 'MyNet' in (tmp_path / 'results' / 'summary.json').read_text()
  assert printed.err == ''
  softmaxes, labels = my_softmaxes('train')
  accuracy = (softmaxes[0].argmax(axis=1) == labels).mean()
  assert f'Classifier 0:\n Train top-1:{accuracy:.4}\n' in printed.out


def test_one_training_file_and_parts_of_it(tmp_path):
  folder = make(tmp_path / 'dumps')
  whole = np.load(str(folder / 'clf0_train_1of3_all_probabilities.npy'))
  np.save(str(folder / 'clf0_train_all_probabilities.npy'), whole)
  assert 'clf0_train_all_probabilities.npy' in refused(analyze, folder)
  for part in (1, 2, 3):
    (folder / f'clf0_train_{part}of3_all_probabilities.npy').unlink()
  analyze(folder, '-method', 'cst')


def test_four_classifiers(tmp_path, capsys):
  folder = make(tmp_path / 'dumps', classifier_ids=(0, 1, 2, 3))
  methods = {method for _, method in results_of(folder)}
  assert methods == {'cst', 'global', 'ccst', 'budgeted'}
  assert 'without pareto and risk' in capsys.readouterr().err
  assert '-method cst,risk: ' in refused(
      analyze, folder, '-method', 'cst,risk')


@pytest.mark.parametrize('num_classes, metrics', [
    (5, {'top1'}), (6, {'top1', 'top5'})])
def test_few_classes(tmp_path, capsys, num_classes, metrics):
  folder = make(tmp_path / 'dumps', num_classes=num_classes)
  assert {metric for metric, _ in results_of(folder)} == metrics
  assert ('without top-5' in capsys.readouterr().err) == (len(metrics) == 1)
  assert ('top5', 'cst') in results_of(folder, '-metric', 'top5')


def test_classes_without_validation_images(tmp_path, capsys):
  folder = make(tmp_path / 'dumps')
  analyze(folder, '-method', 'cst')
  assert capsys.readouterr().err == ''
  path = str(folder / 'validation_non_onehot.npy')
  labels = np.load(path)
  labels[(labels == 3) | (labels == 7)] = 1
  np.save(path, labels)
  analyze(folder, '-method', 'cst')
  assert 'validation: 2 classes have no images: 3, 7' in capsys.readouterr().err


def test_labels_that_are_one_too_low(tmp_path, capsys):
  """Not those of a network whose class 0 is a class as any other."""
  folder = make(tmp_path / 'dumps', first_label=0)
  analyze(folder, '-method', 'cst')
  assert capsys.readouterr().err == ''
  folder = make(tmp_path / 'others')
  for path in folder.glob('*probabilities*'):  # Class 0 is never said.
    array = np.load(str(path))
    if array.shape[1] == 12:
      array[:, 0] = 0
      np.save(str(path), array / array.sum(axis=1, keepdims=True))
  for path in folder.glob('*top5*'):
    path.unlink()
  analyze(folder, '-method', 'cst')
  assert 'label 0' not in capsys.readouterr().err
  for split in ('train', 'validation'):
    path = str(folder / f'{split}_non_onehot.npy')
    np.save(path, np.load(path) - 1)
  analyze(folder, '-method', 'cst')
  notes = capsys.readouterr().err
  assert 'train: ' in notes and 'validation: ' in notes and 'label 0' in notes


def test_what_another_run_left(tmp_path):
  folder = make(tmp_path / 'dumps')
  out = analyze(folder, '-cost', write_stage_seconds(folder), draws=True)
  (out / 'notes.txt').write_text('mine')
  before = set(os.listdir(str(out)))
  analyze(folder, '-method', 'cst', '-metric', 'top1', draws=True)
  removed = before - set(os.listdir(str(out)))
  assert removed == {'ccst_thresholds.npz'}.union(
      f'accuracy_vs_{stem}.{kind}' for kind in ('png', 'pdf')
      for stem in ('ms_top1', 'ms_top5', 'macs_top5'))


# Rows that were never filled, as in the published dumps.


def test_effect_of_unfilled_rows_on_each_number(tmp_path, capsys):
  rows = {}
  for treatment, option in (('left_out', []),
                            ('counted', ['-count_unfilled_rows'])):
    (tmp_path / treatment).mkdir()
    results = analyze(make(tmp_path / treatment / 'dumps', num_unfilled=9),
                      '-method', 'cst,budgeted', *option)
    rows[treatment] = read_csv(results / 'cascade.csv')
    effects = read_csv(results / 'unfilled_rows_effect.csv')
    assert len(effects) == len(rows[treatment])
    assert re.search('9 of 60 rows, .* instead of ', capsys.readouterr().err)
    summary = json.loads((results / 'summary.json').read_text())
    assert summary['judged_on']['num_images'] == (60 if option else 51)
  for treatment, of_treatment in rows.items():
    for row, effect in zip(of_treatment, effects):
      for column in ('metric', 'method', 'setting'):
        assert effect[column] == row[column]
      for column in ('test_accuracy', 'gmacs_per_image', 'speedup'):
        assert effect[f'{column}_{treatment}'] == row[column]


def test_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  folder = make(tmp_path / 'dumps')
  (folder / 'cascade.json').rename(tmp_path / 'mine.json')
  monkeypatch.chdir(tmp_path / 'dumps')
  analyze(tmp_path, '-softmax_path=~/dumps', '-dataset_path=~/dumps',
          '-output_dir=~/out', '-macs=~/mine.json', '-method', 'cst')
  assert (tmp_path / 'out' / 'cascade.csv').is_file()
