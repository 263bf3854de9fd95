"""Writes the results: CSV, NPZ and JSON files, and the tables for the terminal.

Each file has one writer; a column of `cascade.csv` is a field of
`evaluation.Point`, named in `shared_results.POINT_COLUMNS`.
"""

import contextlib
import csv
import functools
import json
import os
import platform
import tempfile

import numpy as np

from cascade import evaluation, figures, page, quality, risk
from cascade.analysis import HALVES_SEED
from cascade.predictions import (
    METRIC_TITLES, cascade_predictions, unfilled_rows)
from cascade.thresholds import EPSILON_METHODS, main_method
from cascade.shared import shared_files, shared_results

# Files that nobody else reads.
CONFIDENCE_CSV = 'confidence.csv'
QUALITY_CSV = 'exit_quality.csv'
REPORT_HTML = 'report.html'
UNFILLED_CSV = 'unfilled_rows_effect.csv'

# What only some options write.
_OPTIONAL_FILES = {UNFILLED_CSV, shared_results.CCST_NPZ}.union(
    f'accuracy_vs_{cost}_{metric}.{kind}' for cost in ('macs', 'ms')
    for metric in METRIC_TITLES for kind in ('png', 'pdf'))

# Numbers on which `UNFILLED_CSV` shows the effect of unfilled rows.
_AFFECTED_COLUMNS = ('test_accuracy', 'gmacs_per_image', 'speedup')


def make_output_dir(folder):
  """Makes the folder; a `UserError`, before any work, if it is not writable."""
  with _unfinished_folder(folder):
    pass


@contextlib.contextmanager
def _unfinished_folder(folder):
  with shared_files.explain_error(
      f'-output_dir {folder}', 'free space or name another folder'):
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix='.', suffix=shared_files.UNFINISHED_SUFFIX,
        dir=folder) as temporary:
      yield temporary


@contextlib.contextmanager
def output_files(folder):
  """Yields a temporary folder; its files move to `folder` when all are written.

  If the block raises, nothing is moved and nothing is left behind. Files of
  the same names in `folder` are replaced, and those of an earlier run with
  other options are removed; others stay.
  """
  with _unfinished_folder(folder) as temporary:
    yield temporary
    written = os.listdir(temporary)
    for name in written:
      os.replace(os.path.join(temporary, name), os.path.join(folder, name))
    for name in _OPTIONAL_FILES.difference(written):
      with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(folder, name))


def write_results(folder, options, predictions, measured, division, results,
                  other_results, cost, recorded):
  """Writes all files of steps 5 to 7; returns the lines for the terminal.

  Args:
    folder: where the files go; they get their names when all are written.
    options: a dict of the command line's options, for the record.
    predictions: a dict from split to a list of
      `predictions.ClassifierPredictions`.
    measured: a dict from split to a dict from classifier to
      `predictions.DumpAccuracy`.
    division: `analysis.Division`.
    results: a dict from metric to `analysis.MetricResults`.
    other_results: the same with the opposite treatment of rows that were never
      filled, or None if there are none.
    cost: `macs.NetworkCost`.
    recorded: `shared_cascade_json.network_and_weights` of the dumps.
  """
  classifier_ids = list(measured['validation'])
  areas = {
      metric: {
          method: evaluation.area_under_curve(
              points, result.classifier_accuracies, cost)
          # `risk` may be judged on other images than the ends of the line.
          for method, points in result.points.items() if method != 'risk'}
      for metric, result in results.items()}
  curves, qualities = _confidences(
      predictions['validation'], classifier_ids, results)
  summary = summary_of(options, predictions, measured, division, results, areas,
                       cost, recorded)
  with output_files(folder) as temporary:
    path = functools.partial(os.path.join, temporary)
    write_cascade_csv(path(shared_results.CASCADE_CSV), results, classifier_ids,
                      cost)
    if 'ccst' in options['method']:
      # Of each metric [E, T, classes].
      np.savez(path(shared_results.CCST_NPZ), **{
          shared_results.CCST_SETTINGS: np.array(
              options['epsilons'], np.float64),
          'classifiers': np.array(classifier_ids[:-1]),
          **{metric: result.ccst_thresholds
             for metric, result in results.items()}})
    if other_results is not None:
      write_unfilled_csv(path(UNFILLED_CSV), results, other_results,
                         options['count_unfilled_rows'])
    edges = evaluation.bin_edges().tolist()
    _write_csv(
        path(CONFIDENCE_CSV),
        ('metric', 'classifier', 'confidence_low', 'confidence_high') +
        evaluation.ConfidenceCurve._fields,
        ((metric, k, *row) for metric, by_classifier in curves.items()
         for k, curve in by_classifier.items()
         for row in zip(edges[:-1], edges[1:],
                        *[column.tolist() for column in curve])))
    _write_csv(
        path(QUALITY_CSV),
        ('metric', 'classifier') + quality.ExitQuality._fields,
        ((metric, k, *of_classifier)
         for metric, by_classifier in qualities.items()
         for k, of_classifier in by_classifier.items()))
    figures.write_figures(temporary, results, curves, classifier_ids, cost)
    with open(path(shared_results.SUMMARY_JSON), 'w') as stream:
      json.dump(summary, stream, indent=1)
      stream.write('\n')
    page.write(path(REPORT_HTML), folder, summary, results, curves, qualities,
               classifier_ids, cost)
    names = sorted(os.listdir(temporary))
  lines = table_lines(results, areas, division, cost)
  if 'risk' in options['method']:
    lines += risk_lines(
        division, options['risk_delta'], options['risk_loss'])
  lines += ['', f'MACs: {cost.source}']
  if cost.time:
    lines.append(f'Time: {cost.time.file}, batches of {cost.time.batch_size} '
                 f'on {cost.time.device}')
  return lines + [f'written to {folder}: {", ".join(names)}']


def _confidences(classifiers, classifier_ids, metrics):
  """Of the whole validation split, without rows that were never filled.

  Returns two dicts from metric to a dict from classifier:
  `evaluation.ConfidenceCurve` and `quality.ExitQuality`.
  """
  filled = ~unfilled_rows(classifiers)
  curves, qualities = {}, {}
  for metric in metrics:
    predictions = cascade_predictions(classifiers, metric, filled)
    curves[metric] = {
        k: evaluation.confidence_curve(confidence, correct)
        for k, confidence, correct in zip(
            classifier_ids, predictions.confidence, predictions.correct)}
    qualities[metric] = dict(
        zip(classifier_ids, quality.exit_qualities(predictions)))
  return curves, qualities


def summary_of(
    options, predictions, measured, division, results, areas, cost, recorded):
  """The content of `shared_results.SUMMARY_JSON`: the record of the run."""
  import matplotlib  # Not before it is needed, as in `figures`.
  summary = {
      'format_version': 1,
      'options': options,
      'num_images': {split: len(classifiers[0].unfilled)
                     for split, classifiers in predictions.items()},
      'num_unfilled_rows': {
          split: int(unfilled_rows(classifiers).sum())
          for split, classifiers in predictions.items()},
      **{name: {'split': images.split, 'num_images': images.num_images}
         for name, images in (('fitted_on', division.fit),
                              ('judged_on', division.judge))},
      'halves_seed': HALVES_SEED if options['fit_on'] == 'validation' else None,
      'classifiers': {
          str(k): {split: of_split[k]._asdict()
                   for split, of_split in measured.items()}
          for k in measured['validation']},
      'network': cost.network,
      'macs_source': cost.source,
      'macs_to_exit': dict(zip(map(str, measured['validation']),
                               cost.exit_macs)),
      'macs_of_plain_network': cost.plain_macs,
      'judged_classifier_accuracy': {
          metric: result.classifier_accuracies
          for metric, result in results.items()},
      'oracle': {
          metric: _oracle_fields(result.oracle, cost)
          for metric, result in results.items()},
      'num_points': {
          metric: {method: len(points)
                   for method, points in result.points.items()}
          for metric, result in results.items()},
      'area_under_accuracy_macs': areas,
      'versions': {'python': platform.python_version(),
                   'numpy': np.__version__,
                   'matplotlib': matplotlib.__version__},
      **recorded,
  }
  if 'risk' in options['method']:
    summary['risk'] = {
        'delta': options['risk_delta'], 'loss': options['risk_loss'],
        'halves_seed': HALVES_SEED,
        'num_fitted': division.risk_fit.num_images,
        'num_calibrating': division.risk_calibration.num_images,
        'num_judged': division.risk_judge.num_images}
  if cost.time:
    summary.update({
        'ms_source': {'file': os.path.abspath(cost.time.file),
                      'device': cost.time.device,
                      'batch_size': cost.time.batch_size},
        'ms_to_exit': {str(k): nanoseconds / 1e6 for k, nanoseconds in zip(
            measured['validation'], cost.time.exit_nanoseconds)},
        'ms_of_plain_network': cost.time.plain_nanoseconds / 1e6})
  return summary


def _oracle_fields(oracle, cost):
  macs = float(np.dot(oracle.exit_shares, cost.exit_macs))
  return {**oracle._asdict(), 'gmacs_per_image': macs / 1e9,
          'speedup': cost.plain_macs / macs}


def write_cascade_csv(path, results, classifier_ids, cost):
  columns = shared_results.POINT_COLUMNS
  later_columns = shared_results.DROP_COLUMNS + (
      shared_results.COST_INTERVAL_COLUMNS)
  if cost.time:
    later_columns = shared_results.TIME_COLUMNS + later_columns
  thresholds, shares, accuracies = [
      [column.format(k) for k in classifier_ids] for column in (
          shared_results.THRESHOLD_COLUMN, shared_results.EXIT_SHARE_COLUMN,
          shared_results.EXIT_ACCURACY_COLUMN)]
  _write_csv(
      path, [*shared_results.KEY_COLUMNS, *thresholds[:-1], *columns, *shares,
             *later_columns, *accuracies],
      ([point.metric, point.method, point.setting, *point.thresholds,
        *(getattr(point, column) for column in columns), *point.exit_shares,
        *(getattr(point, column) for column in later_columns),
        *point.exit_accuracies]
       for result in results.values()
       for points in result.points.values() for point in points))


def write_unfilled_csv(path, results, other_results, count_unfilled_rows):
  """Writes `UNFILLED_CSV`: the effect of unfilled rows on each number.

  `results` counts such rows if `count_unfilled_rows`, or else leaves them out;
  `other_results` does the opposite.
  """
  left_out, counted = results, other_results
  if count_unfilled_rows:
    left_out, counted = counted, left_out
  _write_csv(
      path,
      [*shared_results.KEY_COLUMNS,
       *(f'{column}_{treatment}' for column in _AFFECTED_COLUMNS
         for treatment in ('left_out', 'counted'))],
      ([metric, method, point.setting] +
       [getattr(treated, column) for column in _AFFECTED_COLUMNS
        for treated in (point, other)]
       for metric, result in left_out.items()
       for method, points in result.points.items()
       # Costs of `pareto` differ, and so do the images that judge `risk`.
       if method not in ('pareto', 'risk')
       for point, other in zip(points, counted[metric].points[method])))


def _write_csv(path, header, rows):
  """Writes a CSV file with `\\n` as line end.

  A float is written as the shortest text that reads back as the same float,
  NaN as an empty field. Rows hold str, int or float, not NumPy's types.
  """
  with open(path, 'w', newline='') as stream:
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow(header)
    for row in rows:
      # Only NaN differs from itself; csv writes floats by repr.
      writer.writerow(['' if value != value else value for value in row])


def table_lines(results, areas, division, cost):
  """The tables for the terminal. The first is like the paper's Table 3."""
  titles = [METRIC_TITLES[metric] for metric in results]
  methods = next(iter(results.values())).points
  method = main_method(methods)
  fit, judge = ((division.risk_fit, division.risk_judge) if method == 'risk'
                else (division.fit, division.judge))
  others = 'others' if fit.split == judge.split else f'{judge.split} images'
  lines = ['', f'Cascade: thresholds fitted on {fit.num_images:,} {fit.split} '
           f'images, judged on {judge.num_images:,} {others}']
  if method in EPSILON_METHODS:
    time_titles = f'{"ms":>9}{"by time":>9}' if cost.time else ''
    header = ''.join(
        f'{title:>10}{"speedup":>9}{time_titles}' for title in titles)
    lines += ['', f'{method:<8}{header}']
    for row in zip(*[result.points[method] for result in results.values()]):
      lines.append(f'{row[0].setting:6.4g} %' + ''.join(
          f'{point.test_accuracy:10.4f}{point.speedup:9.3f}' + (
              f'{point.ms_per_image:9.4g}{point.speedup_by_time:9.3f}'
              if cost.time else '') for point in row))
  measured = areas[next(iter(results))]
  if measured:
    lines += ['', f'Mean accuracy over cost, {cost.exit_macs[0] / 1e9:.4g} to '
              f'{cost.exit_macs[-1] / 1e9:.4g} GMACs per image (README, steps '
              '5 to 7)',
              ' ' * 8 + ''.join(f'{title:>10}' for title in titles)]
  return lines + [
      f'{method:<8}' + ''.join(
          f'{areas[metric][method]:10.4f}' for metric in results)
      for method in measured]


def risk_lines(division, delta, loss):
  """What `risk` promises, for the terminal."""
  num_images = division.risk_calibration.num_images
  title = 'risk' if loss == 'wrong' else f'risk ({loss})'
  least = float(f'{100 * risk.least_promise(num_images, delta):.2g}')
  return ['', f'{title}: calibrated on {num_images:,} validation images, '
          f'judged on {division.risk_judge.num_images:,} others; delta '
          f'{delta:g}', f'{num_images:,} images can promise nothing below an '
          f'epsilon of {least:g} %; there, no image leaves early']
