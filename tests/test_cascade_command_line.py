"""Steps 5 to 7, as their user meets them: `analyze_imagenet_labels.py` with
-output_dir.
"""

import json
import os

import numpy as np
import pytest

import shared_dumps
from analysed_dumps import (
    analyze, labels_of, make_dumps, read_csv, softmaxes_of, write_stage_seconds)
from dump_folders import cut_into_shards, write_split
from refusals import refused
import slow_cascade

NUM_IMAGES = 90
EXIT_MACS = [21 * 10**8, 32 * 10**8, 43 * 10**8]
PLAIN_MACS = 5 * 10**9

FIGURES = ['accuracy_vs_macs_top1', 'accuracy_vs_macs_top5', 'confidence_clf',
           'exit_shares']
FILES = sorted(
    ['cascade.csv', 'ccst_thresholds.npz', 'confidence.csv', 'exit_quality.csv',
     'report.html', 'summary.json'] +
    [figure + suffix for figure in FIGURES for suffix in ('.pdf', '.png')])


def make_labels(split):
  return labels_of(split, NUM_IMAGES)


def make_softmaxes(split, k):
  return softmaxes_of(split, k, make_labels(split))


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """An `output_softmax` of all dumps, with the cost of its network."""
  monkeypatch.setattr(shared_dumps, 'TRAIN_PART_STARTS', (0, 30, 45))
  make_dumps(tmp_path / 'output_softmax', num_images=NUM_IMAGES)
  return tmp_path / 'output_softmax'


def rows_of(folder, *options):
  """The rows of `cascade.csv` of an analysis."""
  return read_csv(analyze(folder, *options) / 'cascade.csv')


def summary_of(folder):
  return json.loads((folder.parent / 'results' / 'summary.json').read_text())


def error_of(folder, *options):
  """The one line with which the program ends, having written nothing."""
  message = refused(analyze, folder, *options)
  out = folder.parent / 'results'
  assert not out.exists() or os.listdir(str(out)) == []
  return message


def slow_judgement(rows, metric, thresholds):
  """`(accuracy, MACs per image)` by the slow implementation."""
  labels = make_labels('validation').tolist()
  softmaxes = [make_softmaxes('validation', k).tolist() for k in range(3)]
  confidences = [[slow_cascade.confidence(of_one[i], metric) for i in rows]
                 for of_one in softmaxes]
  correct = [[slow_cascade.correct(of_one[i], labels[i], metric) for i in rows]
             for of_one in softmaxes]
  accuracy, macs, _ = slow_cascade.cascade(
      slow_cascade.exits(confidences, thresholds), correct, EXIT_MACS)
  return float(accuracy), float(macs)


def test_every_point_is_that_of_the_slow_implementation(folder):
  rows = rows_of(folder, '-method', 'cst,budgeted,pareto')
  assert {row['method'] for row in rows} == {'cst', 'budgeted', 'pareto'}
  for row in rows[::7]:
    accuracy, macs = slow_judgement(
        range(NUM_IMAGES), row['metric'],
        [float(row['threshold_clf0']), float(row['threshold_clf1'])])
    assert float(row['test_accuracy']) == pytest.approx(accuracy, abs=1e-12)
    assert float(row['gmacs_per_image']) == pytest.approx(macs / 1e9)


def test_table(folder, capsys):
  rows = {(row['metric'], row['setting']): row for row in rows_of(
      folder, '-epsilons', '0,1.5', '-method', 'cst,global')
          if row['method'] == 'cst'}
  lines = capsys.readouterr().out.splitlines()
  start = lines.index('cst          top-1  speedup     top-5  speedup')
  for line, setting in zip(lines[start + 1:], ('0.0', '1.5')):
    assert line == f'{float(setting):6.4g} %' + ''.join(
        f"{float(rows[metric, setting]['test_accuracy']):10.4f}"
        f"{float(rows[metric, setting]['speedup']):9.3f}"
        for metric in ('top1', 'top5'))
  assert lines[start + 3] == ''
  areas = summary_of(folder)['area_under_accuracy_macs']
  for method in ('cst', 'global'):
    top1, top5 = areas['top1'][method], areas['top5'][method]
    assert f'{method:<8}{top1:10.4f}{top5:10.4f}' in lines


def test_files_and_columns(folder, capsys):
  out = analyze(folder, draws=True)
  assert sorted(os.listdir(str(out))) == FILES
  assert sorted(os.listdir(str(folder.parent))) == ['output_softmax', 'results']
  printed = capsys.readouterr()
  assert f'written to {out}: {", ".join(FILES)}' in printed.out
  assert printed.err == ''
  rows = read_csv(out / 'cascade.csv')
  assert list(rows[0]) == (
      'metric,method,setting,threshold_clf0,threshold_clf1,test_accuracy,'
      'test_accuracy_low,test_accuracy_high,gmacs_per_image,speedup,'
      'exit_share_clf0,exit_share_clf1,exit_share_clf2,accuracy_drop,'
      'accuracy_drop_low,accuracy_drop_high,gmacs_low,gmacs_high,'
      'exit_accuracy_clf0,exit_accuracy_clf1,exit_accuracy_clf2').split(',')
  for row in rows:
    shares = [float(row[f'exit_share_clf{k}']) for k in range(3)]
    gmacs = float(row['gmacs_per_image'])
    assert gmacs == pytest.approx(sum(
        share * macs / 1e9 for share, macs in zip(shares, EXIT_MACS)))
    assert float(row['speedup']) == pytest.approx(PLAIN_MACS / 1e9 / gmacs)
    assert (row['threshold_clf0'] == '') == (row['method'] == 'ccst')
    # Empty where nobody leaves; together they are that of the cascade.
    accuracies = [row[f'exit_accuracy_clf{k}'] for k in range(3)]
    assert [text == '' for text in accuracies] == [
        share == 0 for share in shares]
    assert float(row['test_accuracy']) == pytest.approx(sum(
        share * float(text or 0) for share, text in zip(shares, accuracies)))


# In the order of the MACs no longer: clf1 takes less time than clf0.
MS_TO_EXIT, PLAIN_MS = [20., 15., 50.], 45.


def test_cost_in_time(folder):
  path = write_stage_seconds(folder, MS_TO_EXIT, PLAIN_MS)
  out = analyze(folder, '-cost', path, draws=True)
  assert sorted(os.listdir(str(out))) == sorted(FILES + [
      f'accuracy_vs_ms_{metric}.{kind}' for metric in ('top1', 'top5')
      for kind in ('pdf', 'png')])
  summary = summary_of(folder)
  assert summary['ms_source'] == {
      'file': path, 'device': 'a CPU', 'batch_size': 8}
  assert summary['ms_to_exit'] == dict(zip('012', MS_TO_EXIT))
  assert summary['ms_of_plain_network'] == PLAIN_MS
  rows = read_csv(out / 'cascade.csv')
  assert list(rows[0])[-10:-8] == ['ms_per_image', 'speedup_by_time']
  for row in rows:
    ms = sum(float(row[f'exit_share_clf{k}']) * MS_TO_EXIT[k] for k in range(3))
    assert float(row['ms_per_image']) == pytest.approx(ms)
    assert float(row['speedup_by_time']) == pytest.approx(PLAIN_MS / ms)


def test_pareto_is_fitted_to_time(folder):
  """On the images that fitted, nothing is better at its time or below."""
  write_split(folder, 'validation', make_labels('train'), {
      k: make_softmaxes('train', k) for k in range(3)})
  by_method = {}
  for row in rows_of(folder, '-metric', 'top1', '-cost', write_stage_seconds(
      folder, MS_TO_EXIT, PLAIN_MS)):
    by_method.setdefault(row['method'], []).append((
        float(row['ms_per_image']), float(row['test_accuracy']),
        float(row['setting'])))
  front = by_method['pareto']
  assert [setting for _, _, setting in front] == pytest.approx(
      [ms for ms, _, _ in front])
  assert front == sorted(front)
  for ms, accuracy, _ in by_method['cst'] + by_method['budgeted']:
    assert accuracy <= max(
        best for cost, best, _ in front if cost <= ms + 1e-9)


def test_time_of_something_else(folder):
  path = write_stage_seconds(folder)
  with open(path) as stream:
    record = json.load(stream)
  with open(path, 'w') as stream:
    json.dump({**record, 'num_classes': 1001}, stream)
  assert path in error_of(folder, '-cost', path)


def test_two_classifiers_and_epsilons(folder):
  for path in folder.glob('clf1_*'):
    path.unlink()
  for options, epsilons in (
      (['-epsilons', '5,0,1.8,5'], [0, 1.8, 5]),
      (['-epsilon_low', 2, '-epsilon_high', 3, '--num_epsilons', 3],
       [2, 2.5, 3])):
    rows = rows_of(folder, '-method', 'cst', '-metric', 'top1', *options)
    assert [float(row['setting']) for row in rows] == epsilons
    assert 'threshold_clf1' not in rows[0]


@pytest.mark.parametrize('options', [
    ['-epsilons', '1,x'], ['-method', 'best']])
def test_wrong_options(folder, options, capsys):
  with pytest.raises(SystemExit) as caught:
    analyze(folder, *options)
  assert caught.value.code == 2
  assert not (folder.parent / 'results').exists()
  error = capsys.readouterr().err
  assert len(error.splitlines()) == 1
  assert options[0].lstrip('-')[:7] in error


def test_the_validation_split_alone(folder):
  for path in folder.glob('*train*'):
    path.unlink()
  assert 'train_non_onehot.npy' in error_of(folder)
  assert len(rows_of(folder, '-fit_on', 'validation')) > 100


def test_shards_give_the_same(folder):
  def results():
    out = analyze(folder, '-check_all_rows', '-method', 'cst,ccst')
    return [(out / name).read_bytes()
            for name in ('cascade.csv', 'confidence.csv')]

  expected = results()
  cut_into_shards(folder, 4, 7)
  assert results() == expected


@pytest.mark.parametrize('fit_on, num_fitted, num_calibrating', [
    ('train', 90, 45), ('validation', 22, 23)])
def test_risk(folder, fit_on, num_fitted, num_calibrating, capsys):
  """Judged on the second half, whatever fits."""
  rows = rows_of(folder, '-fit_on', fit_on, '-method', 'risk', '-epsilons',
                 '0,5,30,90', '-risk_delta', '.2')
  summary = summary_of(folder)
  assert summary['risk'] == {
      'delta': .2, 'loss': 'wrong', 'halves_seed': 0, 'num_fitted': num_fitted,
      'num_calibrating': num_calibrating, 'num_judged': 45}
  judged = sorted(np.random.RandomState(0).permutation(90)[45:])
  least = 100 * (1 - .2**(1. / num_calibrating))
  for row in rows:
    settings = [float(row['threshold_clf0']), float(row['threshold_clf1'])]
    accuracy, macs = slow_judgement(judged, row['metric'], settings)
    plain, _ = slow_judgement(judged, row['metric'], [np.inf, np.inf])
    assert float(row['test_accuracy']) == pytest.approx(accuracy, abs=1e-12)
    assert float(row['gmacs_per_image']) == pytest.approx(macs / 1e9)
    assert float(row['accuracy_drop']) == pytest.approx(plain - accuracy)
    if float(row['setting']) < least:
      assert settings == [np.inf, np.inf]
  assert float(rows[3]['exit_share_clf2']) < 1
  # Its points are of other images than the ends of the line would be.
  assert summary['area_under_accuracy_macs'] == {'top1': {}, 'top5': {}}
  assert f'an epsilon of {least:.2g} %' in capsys.readouterr().out


def test_ccst_thresholds(folder):
  """Where there are no softmaxes, cascade.json has the number of classes."""
  for path in folder.glob('*all_probabilities*'):
    path.unlink()
  record = json.loads((folder / 'cascade.json').read_text())
  (folder / 'cascade.json').write_text(
      json.dumps({**record, 'num_classes': 20}))
  out = analyze(
      folder, '-epsilons', '0,3', '-metric', 'top5', '-method', 'ccst')
  with np.load(str(out / 'ccst_thresholds.npz')) as arrays:
    assert sorted(arrays) == ['classifiers', 'epsilon_percent', 'top5']
    assert arrays['epsilon_percent'].tolist() == [0, 3]
    assert arrays['classifiers'].tolist() == [0, 1]
    assert arrays['top5'].shape == (2, 2, 20)
    assert (arrays['top5'][0] >= arrays['top5'][1]).all()
