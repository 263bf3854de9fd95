"""Steps 5 to 7, as their user meets them: `analyze_imagenet_labels.py` with
-output_dir.
"""

import csv
import json
import os

import signal
import subprocess
import sys
import types

import numpy as np
import pytest

import analyze_imagenet_labels
import cascade_results
import dump_names
import stage_seconds
from cascade import figures, report, thresholds
from dump_folders import (
    cut_into_shards, publish, random_softmaxes, write_split)
import slow_cascade

SCRIPT = os.path.abspath(analyze_imagenet_labels.__file__)
NUM_CLASSES = 12
NUM_IMAGES = {'train': 90, 'validation': 70}
EXIT_MACS = [2 * 10**9, 3 * 10**9, 5 * 10**9]
PLAIN_MACS = 48 * 10**8

FIGURES = ['accuracy_vs_macs_top1', 'accuracy_vs_macs_top5', 'confidence_clf',
           'exit_shares']
FILES = sorted(
    ['cascade.csv', 'ccst_thresholds.npz', 'confidence.csv', 'exit_quality.csv',
     'report.html', 'summary.json'] +
    [figure + suffix for figure in FIGURES for suffix in ('.pdf', '.png')])


def make_labels(split):
  return np.random.RandomState(len(split)).randint(
      1, NUM_CLASSES, NUM_IMAGES[split]).astype(np.int32)


def make_softmaxes(split, k):
  """Softmaxes that the labels push up, the more the later the classifier."""
  softmaxes = random_softmaxes(10 * k + len(split), NUM_IMAGES[split],
                               NUM_CLASSES)
  softmaxes[np.arange(len(softmaxes)), make_labels(split)] += 0.1 + 0.2 * k
  return softmaxes / softmaxes.sum(axis=1, keepdims=True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """An `output_softmax` of all dumps, with the cost of its network."""
  monkeypatch.setattr(dump_names, 'TRAIN_PART_STARTS', (0, 30, 45))
  folder = tmp_path / 'output_softmax'
  folder.mkdir()
  for split in dump_names.SPLITS:
    write_split(folder, split, make_labels(split), {
        k: make_softmaxes(split, k) for k in range(3)})
  (folder / 'cascade.json').write_text(json.dumps({
      'format_version': 1, 'network': 'Tiny', 'num_classes': NUM_CLASSES,
      'plain_network_macs': PLAIN_MACS,
      'exits': [{'classifier_id': k, 'trunk_macs': macs - 10**8 * (k + 1),
                 'head_macs': 10**8} for k, macs in enumerate(EXIT_MACS)]}))
  return folder


@pytest.fixture
def drawn():
  """Asks for the figures; tests without it are spared the time they take."""


@pytest.fixture(autouse=True)
def figures_as_asked(request, monkeypatch):
  if 'drawn' not in request.fixturenames:
    monkeypatch.setattr(figures, 'write_figures', lambda *_: None)


def analyze(folder, *options):
  """Runs the program in this process, results into `out` beside `folder`."""
  analyze_imagenet_labels.main(
      ['-softmax_path', str(folder), '-output_dir', str(out(folder))] +
      [str(option) for option in options])


def out(folder):
  return folder.parent / 'out'


def read_csv(folder, name='cascade.csv'):
  with open(str(out(folder) / name), newline='') as stream:
    return list(csv.DictReader(stream))


def error_of(folder, *options):
  """The one line with which the program ends."""
  with pytest.raises(SystemExit) as caught:
    analyze(folder, *options)
  message = str(caught.value)
  assert message.startswith('analyze_imagenet_labels.py: ')
  assert '\n' not in message
  assert not out(folder).exists()
  leftovers = [name for name in os.listdir(str(folder.parent))
               if 'unfinished' in name]
  assert leftovers == []
  return message


def slow_judgement(rows, metric, thresholds):
  """`(accuracy, MACs per image)` by the slow implementation."""
  labels = make_labels('validation')
  confidences, correct = [], []
  for k in range(3):
    ranked = np.sort(make_softmaxes('validation', k).astype(np.float64))
    softmaxes = make_softmaxes('validation', k)
    ranks = [(softmaxes[i] > softmaxes[i, label]).sum()
             for i, label in enumerate(labels)]
    if metric == 'top1':
      confidences.append([float(value) for value in ranked[rows, -1]])
      correct.append([bool(ranks[i] < 1) for i in rows])
    else:
      confidences.append([float(ranked[i, :-6:-1].sum()) for i in rows])
      correct.append([bool(ranks[i] < 5) for i in rows])
  accuracy, macs, _ = slow_cascade.cascade(
      slow_cascade.exits(confidences, thresholds), correct, EXIT_MACS)
  return float(accuracy), float(macs)


@pytest.mark.parametrize('metric', ['top1', 'top5'])
def test_every_point_is_that_of_the_slow_implementation(folder, metric):
  analyze(folder, '-metric', metric, '-method', 'cst,budgeted,pareto')
  rows = read_csv(folder)
  assert {row['metric'] for row in rows} == {metric}
  assert {row['method'] for row in rows} == {'cst', 'budgeted', 'pareto'}
  for row in rows[::7]:
    thresholds = [float(row['threshold_clf0']), float(row['threshold_clf1'])]
    accuracy, macs = slow_judgement(
        range(NUM_IMAGES['validation']), metric, thresholds)
    assert float(row['test_accuracy']) == pytest.approx(accuracy, abs=1e-12)
    assert float(row['gmacs_per_image']) == pytest.approx(macs / 1e9)


def test_table(folder, capsys):
  analyze(folder, '-epsilons', '0,1.5', '-method', 'cst,global')
  lines = capsys.readouterr().out.splitlines()
  start = lines.index('cst          top-1  speedup     top-5  speedup')
  rows = {(row['metric'], row['setting']): row for row in read_csv(folder)
          if row['method'] == 'cst'}
  for line, setting in zip(lines[start + 1:], ('0.0', '1.5')):
    assert line == f'{float(setting):6.4g} %' + ''.join(
        f"{float(rows[metric, setting]['test_accuracy']):10.4f}"
        f"{float(rows[metric, setting]['speedup']):9.3f}"
        for metric in ('top1', 'top5'))
  assert lines[start + 3] == ''
  summary = json.loads((out(folder) / 'summary.json').read_text())
  areas = summary['area_under_accuracy_macs']
  for method in ('cst', 'global'):
    top1, top5 = areas['top1'][method], areas['top5'][method]
    assert f'{method:<8}{top1:10.4f}{top5:10.4f}' in lines


def test_files_columns_and_settings(folder, drawn, capsys):
  analyze(folder)
  assert sorted(os.listdir(str(out(folder)))) == FILES
  assert sorted(os.listdir(str(folder.parent))) == ['out', 'output_softmax']
  printed = capsys.readouterr()
  assert f'written to {out(folder)}: {", ".join(FILES)}' in printed.out
  assert printed.err == ''
  rows = read_csv(folder)
  assert list(rows[0]) == (
      'metric,method,setting,threshold_clf0,threshold_clf1,test_accuracy,'
      'test_accuracy_low,test_accuracy_high,gmacs_per_image,speedup,'
      'exit_share_clf0,exit_share_clf1,exit_share_clf2,accuracy_drop,'
      'accuracy_drop_low,accuracy_drop_high,gmacs_low,gmacs_high').split(',')
  for metric in ('top1', 'top5'):
    settings = {
        method: [float(row['setting']) for row in rows
                 if (row['metric'], row['method']) == (metric, method)]
        for method in thresholds.METHODS}
    for method in ('cst', 'ccst', 'risk'):
      assert settings[method] == list(range(21))
    assert settings['global'] == np.linspace(0, 1, 1000).tolist()
    assert settings['budgeted'] == [p / 20. for p in range(1, 40)]
    assert settings['pareto'] == sorted(settings['pareto'])
  for row in rows:
    shares = [float(row[f'exit_share_clf{k}']) for k in range(3)]
    gmacs = float(row['gmacs_per_image'])
    assert gmacs == pytest.approx(sum(
        share * macs / 1e9 for share, macs in zip(shares, EXIT_MACS)))
    assert float(row['speedup']) == pytest.approx(PLAIN_MACS / 1e9 / gmacs)
    assert (row['threshold_clf0'] == '') == (row['method'] == 'ccst')


def test_network_weights_and_names_reach_those_who_run_the_cascade(folder):
  record = json.loads((folder / 'cascade.json').read_text())
  record['class_names'] = [f'class {i}' for i in range(1, NUM_CLASSES)]
  for k, entry in enumerate(record['exits']):
    entry['origin'] = {
        'trunk_checkpoint': 'trunk', 'trunk_sha256': f'{k}a', 'flags': {},
        'head_checkpoint': f'head{k}', 'head_sha256': f'{k}b'}
  (folder / 'cascade.json').write_text(json.dumps(record))
  analyze(folder)
  results = cascade_results.load(str(out(folder)))
  assert results.summary['class_names'] == record['class_names']
  assert results.summary['num_classes'] == NUM_CLASSES
  sources = {k: types.SimpleNamespace(**entry['origin'])
             for k, entry in enumerate(record['exits'])}
  cascade_results.check_weights(
      results, [0, 1, 2], {'num_classes': NUM_CLASSES}, sources)
  for row in read_csv(folder)[::50]:
    choice = cascade_results.choose(
        results, f"{row['method']}:{row['setting']}", row['metric'])
    assert choice.row['test_accuracy'] == float(row['test_accuracy'])
    if row['method'] == 'ccst':
      assert choice.thresholds.shape == (2, NUM_CLASSES)
    else:
      assert choice.thresholds.tolist() == np.float32(
          [row['threshold_clf0'], row['threshold_clf1']]).tolist()


# In the order of the MACs no longer: clf1 takes less time than clf0.
MS_TO_EXIT, PLAIN_MS = [20., 15., 50.], 45.


@pytest.fixture
def measured_time(tmp_path):
  path = str(tmp_path / 'stage_seconds.json')
  stage_seconds.write(path, stage_seconds.StageSeconds(
      {'resnet_version': 2, 'resnet_size': 18, 'image_size': 32,
       'num_classes': NUM_CLASSES}, 'a CPU', {}, {},
      [1, 8], {k: [1., ms / 1000] for k, ms in enumerate(MS_TO_EXIT)},
      [1., PLAIN_MS / 1000]))
  return path


def test_cost_in_time(folder, measured_time, drawn, capsys):
  analyze(folder, '-cost', measured_time)
  assert sorted(os.listdir(str(out(folder)))) == sorted(FILES + [
      f'accuracy_vs_ms_{metric}.{kind}' for metric in ('top1', 'top5')
      for kind in ('pdf', 'png')])
  printed = capsys.readouterr().out
  assert f'Time: {measured_time}, batches of 8 on a CPU\n' in printed
  summary = json.loads((out(folder) / 'summary.json').read_text())
  assert summary['ms_source'] == {
      'file': measured_time, 'device': 'a CPU', 'batch_size': 8}
  assert summary['ms_to_exit'] == dict(zip('012', MS_TO_EXIT))
  assert summary['ms_of_plain_network'] == PLAIN_MS
  rows = read_csv(folder)
  assert list(rows[0])[-7:-5] == ['ms_per_image', 'speedup_by_time']
  for row in rows:
    ms = sum(float(row[f'exit_share_clf{k}']) * MS_TO_EXIT[k] for k in range(3))
    assert float(row['ms_per_image']) == pytest.approx(ms)
    assert float(row['speedup_by_time']) == pytest.approx(PLAIN_MS / ms)
  first = rows[0]
  assert (f"{float(first['test_accuracy']):10.4f}{float(first['speedup']):9.3f}"
          f"{float(first['ms_per_image']):9.4g}"
          f"{float(first['speedup_by_time']):9.3f}") in printed


def test_pareto_is_fitted_to_time(folder, measured_time):
  """On the images that fitted, nothing is better at its time or below."""
  for name in os.listdir(str(folder)):  # Judged on the images that fit.
    if name.startswith(('validation', 'clf')) and 'train' not in name:
      (folder / name).unlink()
  write_split(folder, 'validation', make_labels('train'), {
      k: make_softmaxes('train', k) for k in range(3)})
  analyze(folder, '-cost', measured_time, '-metric', 'top1')
  by_method = {}
  for row in read_csv(folder):
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


@pytest.mark.parametrize('change, words', [
    ({'num_classes': 1001}, 'of another network (num_classes 1001, and the '
     'dumps have 12)'),
    ({'exits': [{'classifier_id': k, 'seconds_per_image': [1, 1]}
                for k in (0, 2)]}, 'classifiers 0, 2, and the dumps are of 0, '
     '1, 2'),
    ({'batch_sizes': [8, 1]}, 'do not ascend')])
def test_time_of_something_else(folder, measured_time, change, words):
  with open(measured_time) as stream:
    record = json.load(stream)
  with open(measured_time, 'w') as stream:
    json.dump({**record, **change}, stream)
  message = error_of(folder, '-cost', measured_time)
  assert measured_time in message and words in message


def test_names_that_do_not_fit(folder):
  record = json.loads((folder / 'cascade.json').read_text())
  record['class_names'] = ['one']
  (folder / 'cascade.json').write_text(json.dumps(record))
  assert 'class_names is not a list of 11 names' in error_of(folder)


def test_two_classifiers_and_epsilons(folder):
  for path in folder.glob('clf1_*'):
    path.unlink()
  for options, epsilons in (
      (['-epsilons', '5,0,1.8,5'], [0, 1.8, 5]),
      (['-epsilon_low', 2, '-epsilon_high', 3, '--num_epsilons', 3],
       [2, 2.5, 3])):
    analyze(folder, '-method', 'cst', '-metric', 'top1', *options)
    rows = read_csv(folder)
    assert [float(row['setting']) for row in rows] == epsilons
    assert 'threshold_clf1' not in rows[0]


@pytest.mark.parametrize('options', [
    ['-epsilons', '1,x'], ['-epsilons', '101'], ['-epsilons', '-1'],
    ['-epsilons', ''], ['-num_epsilons', '0'], ['-epsilons', 'nan'],
    ['-num_epsilons', '1000000000000'], ['-method', 'best'], ['-method', ','],
    ['-risk_delta', '1'], ['-risk_delta', 'nan'], ['-fit_on', 'test\nset'],
    ['-output_dir', ''], ['-met', 'top1']])
def test_wrong_options(folder, options, capsys):
  with pytest.raises(SystemExit) as caught:
    analyze(folder, *options)
  assert caught.value.code == 2
  assert not out(folder).exists()
  error = capsys.readouterr().err
  assert len(error.splitlines()) == 1
  assert options[0].lstrip('-')[:7] in error


def test_halves_of_the_validation_split(folder):
  analyze(folder, '-fit_on', 'validation', '-method', 'cst')
  summary = json.loads((out(folder) / 'summary.json').read_text())
  assert summary['fitted_on'] == {'split': 'validation', 'num_images': 35}
  assert summary['judged_on'] == {'split': 'validation', 'num_images': 35}
  order = np.random.RandomState(0).permutation(70)
  for row in read_csv(folder)[::10]:
    thresholds = [float(row['threshold_clf0']), float(row['threshold_clf1'])]
    accuracy, macs = slow_judgement(
        sorted(order[35:]), row['metric'], thresholds)
    assert float(row['test_accuracy']) == pytest.approx(accuracy, abs=1e-12)
    assert float(row['gmacs_per_image']) == pytest.approx(macs / 1e9)


def test_the_validation_split_alone(folder, capsys):
  for path in folder.glob('*train*'):
    path.unlink()
  assert 'train_non_onehot.npy: no such file' in error_of(folder)
  capsys.readouterr()
  analyze(folder, '-fit_on', 'validation')
  printed = capsys.readouterr().out
  assert printed.startswith('Classifier 0:\n Test top-1:')
  assert len(read_csv(folder)) > 100


def test_shards_give_the_same(folder):
  def results():
    analyze(folder, '-check_all_rows')
    return [(out(folder) / name).read_bytes()
            for name in ('cascade.csv', 'confidence.csv')]

  expected = results()
  cut_into_shards(folder, 4, 7)
  assert results() == expected


@pytest.mark.parametrize('fit_on,num_fitted,num_calibrating', [
    ('train', 90, 35), ('validation', 17, 18)])
def test_risk(folder, fit_on, num_fitted, num_calibrating, capsys):
  """Judged on the second half, whatever fits."""
  analyze(folder, '-fit_on', fit_on, '-method', 'risk', '-epsilons',
          '0,5,30,90', '-risk_delta', '.2')
  summary = json.loads((out(folder) / 'summary.json').read_text())
  assert summary['risk'] == {
      'delta': .2, 'halves_seed': 0, 'num_fitted': num_fitted,
      'num_calibrating': num_calibrating, 'num_judged': 35}
  judged = sorted(np.random.RandomState(0).permutation(70)[35:])
  least = 100 * (1 - .2**(1. / num_calibrating))
  rows = read_csv(folder)
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
  printed = capsys.readouterr().out
  assert (f'risk: calibrated on {num_calibrating} validation images, judged on '
          '35 others; delta 0.2\n') in printed
  assert (f'{num_calibrating} images can promise nothing below an epsilon of '
          f'{least:.2g} %') in printed
  assert 'risk         top-1  speedup     top-5  speedup\n' in printed
  assert 'Mean accuracy' not in printed


def test_risk_that_can_promise_nothing(folder, capsys):
  analyze(folder, '-method', 'risk', '-epsilons', '50', '-risk_delta', '0')
  assert ('35 images can promise nothing at this delta; below an epsilon of '
          '100 %, no image leaves early'
          in capsys.readouterr().out)
  assert {row['exit_share_clf2'] for row in read_csv(folder)} == {'1.0'}


def test_quality_and_bound(folder):
  analyze(folder, '-method', 'cst')
  lines = read_csv(folder, 'exit_quality.csv')
  assert [(line['metric'], line['classifier']) for line in lines] == [
      (metric, str(k)) for metric in ('top1', 'top5') for k in range(3)]
  assert list(lines[0]) == [
      'metric', 'classifier', 'num_images', 'accuracy', 'auroc', 'aurc',
      'excess_aurc', 'ece', 'lost_share']
  summary = json.loads((out(folder) / 'summary.json').read_text())
  for metric, oracle in summary['oracle'].items():
    accuracies = [float(line['accuracy']) for line in lines
                  if line['metric'] == metric]
    assert accuracies == summary['judged_classifier_accuracy'][metric]
    assert oracle['accuracy'] >= max(accuracies)
    assert oracle['gmacs_per_image'] == pytest.approx(np.dot(
        oracle['exit_shares'], EXIT_MACS) / 1e9)
    assert oracle['speedup'] == pytest.approx(
        PLAIN_MACS / 1e9 / oracle['gmacs_per_image'])


def test_ccst_thresholds(folder):
  analyze(folder, '-epsilons', '0,3', '-metric', 'top5')
  with np.load(str(out(folder) / 'ccst_thresholds.npz')) as arrays:
    assert sorted(arrays) == ['classifiers', 'epsilon_percent', 'top5']
    assert arrays['epsilon_percent'].tolist() == [0, 3]
    assert arrays['classifiers'].tolist() == [0, 1]
    assert arrays['top5'].shape == (2, 2, NUM_CLASSES)
    assert (arrays['top5'][0] >= arrays['top5'][1]).all()


def test_the_same_input_gives_the_same_bytes(folder, drawn):
  out(folder).mkdir()
  (out(folder) / 'notes.txt').write_text('mine')
  (out(folder) / 'cascade.csv').write_text('old')
  analyze(folder)
  assert (out(folder) / 'notes.txt').read_text() == 'mine'
  first = {name: (out(folder) / name).read_bytes() for name in FILES}
  for path in out(folder).iterdir():
    path.unlink()
  for path in folder.glob('*top5*'):  # Read from the softmaxes this time.
    path.unlink()
  analyze(folder)
  for name in FILES:
    assert (out(folder) / name).read_bytes() == first[name], name


def test_a_folder_in_the_way_of_a_file(folder):
  (out(folder) / 'summary.json').mkdir(parents=True)
  with pytest.raises(SystemExit, match='holds a folder named summary.json'):
    analyze(folder)
  assert os.listdir(str(out(folder))) == ['summary.json']


@pytest.mark.parametrize('signal_sent', [signal.SIGINT, signal.SIGTERM])
def test_interrupted(folder, signal_sent):
  """While it writes the results."""
  script = (
      'import os, signal, sys\n'
      'from cascade import report\n'
      'report.write_summary = lambda *_: os.kill('
      f'os.getpid(), {signal_sent:d})\n'
      'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
      'signal.signal(signal.SIGTERM, signal.default_int_handler)\n'
      'import analyze_imagenet_labels\n'
      'analyze_imagenet_labels.main()\n')
  process = subprocess.Popen(
      [sys.executable, '-c', script, '-softmax_path', str(folder),
       '-method', 'cst', '-output_dir', str(out(folder))],
      cwd=os.path.dirname(SCRIPT), stdout=subprocess.PIPE,
      stderr=subprocess.PIPE)
  stdout, stderr = process.communicate()
  assert (process.returncode, stdout) == (130, b'')
  assert stderr == b'analyze_imagenet_labels.py: interrupted\n'
  assert sorted(os.listdir(str(folder.parent))) == ['output_softmax']


def test_a_failure_while_writing_leaves_nothing(folder, monkeypatch):
  def fail(*_, **__):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(report, 'write_summary', fail)
  assert 'No space left' in error_of(folder)


# Rows that were never filled.


@pytest.fixture
def published(folder):
  """Published dumps whose last rows were never filled: 5 and 7 of them."""
  for split, num_lost in (('validation', 5), ('train', 7)):
    labels = make_labels(split)
    labels[-num_lost:] = 0
    np.save(str(folder / dump_names.labels_file_name(split)), labels)
    for k in range(3):
      for name in dump_names.probabilities_file_names(k, split)[-1:] + [
          dump_names.top5_classes_file_name(k, split),
          dump_names.top5_probabilities_file_name(k, split)]:
        array = np.load(str(folder / name))
        array[-num_lost:] = 0
        np.save(str(folder / name), array)
  cost = (folder / 'cascade.json').read_text()
  (folder / 'cascade.json').unlink()
  publish(folder, folder)
  (folder / 'cascade.json').write_text(cost)
  return folder


def test_unfilled_rows_are_left_out_and_reported(published, capsys):
  analyze(published)
  printed = capsys.readouterr()
  assert 'validation: rows that were never filled are left out' in printed.err
  summary = json.loads((out(published) / 'summary.json').read_text())
  assert summary['num_unfilled_rows'] == {'train': 7, 'validation': 5}
  assert summary['judged_on']['num_images'] == 65
  assert summary['fitted_on']['num_images'] == 83
  for row in read_csv(published)[:21]:
    accuracy, _ = slow_judgement(range(65), 'top1', [
        float(row['threshold_clf0']), float(row['threshold_clf1'])])
    assert float(row['test_accuracy']) == pytest.approx(accuracy, abs=1e-12)


def test_effect_of_unfilled_rows_on_each_number(published):
  analyze(published)
  left_out = read_csv(published)
  effects = {}
  for row in read_csv(published, 'unfilled_rows_effect.csv'):
    effects[row['metric'], row['method'], row['setting']] = row
  analyze(published, '-count_unfilled_rows')
  counted = read_csv(published)
  for treatment, rows in (('left_out', left_out), ('counted', counted)):
    rows = [row for row in rows if row['method'] not in ('pareto', 'risk')]
    assert len(rows) == len(effects)
    for row in rows:
      effect = effects[row['metric'], row['method'], row['setting']]
      for column in ('test_accuracy', 'gmacs_per_image', 'speedup'):
        assert effect[f'{column}_{treatment}'] == row[column]


# Bad input.


def test_an_argument_with_line_breaks(folder):
  assert 'absent\\n.json' in error_of(folder, '-macs', 'absent\n.json')


def test_as_a_command(folder):
  """With no display, from another folder, and warnings as errors."""
  environment = {name: value for name, value in os.environ.items()
                 if name not in ('DISPLAY', 'MPLBACKEND')}
  done = subprocess.run(
      [sys.executable, '-W', 'error::RuntimeWarning', SCRIPT,
       '-softmax_dir_to_validate_against', 'output_softmax',
       '-dataset_path', 'output_softmax', '-output_dir', 'out'],
      cwd=str(folder.parent), env=environment, stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
  assert (done.returncode, done.stderr) == (0, '')
  assert sorted(os.listdir(str(out(folder)))) == FILES
