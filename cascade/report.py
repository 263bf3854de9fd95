"""Writes the results: CSV, NPZ and JSON files, and the table for the terminal.
"""

import collections
import contextlib
import functools
import json
import os
import platform
import shutil
import tempfile

import numpy as np

from cascade import confidence, csv_files, evaluation, figures
from cascade.analysis import EPSILON_METHODS, HALVES_SEED
from cascade.answers import METRIC_TITLES, unfilled_rows
from user_error import UserError

CASCADE_CSV = 'cascade.csv'
CCST_NPZ = 'ccst_thresholds.npz'
CONFIDENCE_CSV = 'confidence.csv'
SUMMARY_JSON = 'summary.json'
UNFILLED_CSV = 'unfilled_rows_effect.csv'



def check_output_dir(folder):
  """Makes sure, before any work, that `folder` can be written.

  Raises:
    UserError: it cannot.
  """
  if os.path.exists(folder) and not os.path.isdir(folder):
    raise UserError('-output_dir {}: is a file; name a folder'.format(folder))
  needed = _folder_to_write(folder)
  if not os.path.isdir(needed):
    raise UserError('-output_dir {}: {} is not there; make it first'.format(
        folder, needed))
  if not os.access(needed, os.W_OK | os.X_OK):
    raise UserError('-output_dir {}: {} cannot be written; name another folder'
                    .format(folder, needed))


def _folder_to_write(folder):
  """`folder` itself, which may be a disk of its own, or where it will be."""
  if os.path.isdir(folder):
    return folder
  return os.path.dirname(os.path.abspath(folder))


@contextlib.contextmanager
def output_files(folder):
  """A folder to write into, whose files move to `folder` when all is written.

  If the block raises, nothing is moved and nothing is left behind. Files of
  the same names in `folder` are replaced, others stay.

  Args:
    folder: made if it is not there.

  Yields:
    The path of the temporary folder.
  """
  temporary = None
  try:
    temporary = tempfile.mkdtemp(
        prefix='.{}.'.format(os.path.basename(os.path.abspath(folder))),
        suffix='.unfinished', dir=_folder_to_write(folder))
    yield temporary
    os.makedirs(folder, exist_ok=True)
    names = os.listdir(temporary)
    for name in names:
      if os.path.isdir(os.path.join(folder, name)):
        raise UserError('-output_dir {}: holds a folder named {}; move it or '
                        'name another folder'.format(folder, name))
    for name in names:
      os.replace(os.path.join(temporary, name), os.path.join(folder, name))
  except OSError as error:
    raise UserError('-output_dir {}: cannot be written ({})'.format(
        folder, error.strerror or error))
  finally:
    if temporary is not None:
      shutil.rmtree(temporary, ignore_errors=True)


def write_results(folder, options, answers, measured, division, results,
                  other_results, cost):
  """Writes all files of steps 5 to 7.

  Args:
    folder: where they go, under their names only when all are written.
    options: a dict of the command line's options, for the record.
    answers: a dict from split to a list of `answers.ClassifierAnswers`.
    measured: a dict from split to a dict from classifier to
      `accuracy.DumpAccuracy`.
    division: `analysis.Division`.
    results: a dict from metric to `analysis.MetricResults`.
    other_results: the same with rows that were never filled treated the other
      way, or None where there are none.
    cost: `macs.NetworkCost`.

  Returns:
    A list of str for the terminal: the table, and where the files are.
  """
  classifier_ids = list(measured['validation'])
  areas = {
      metric: collections.OrderedDict(
          (method, evaluation.area_under_curve(
              points, of_metric.classifier_accuracies, cost))
          for method, points in of_metric.points.items())
      for metric, of_metric in results.items()}
  curves = _confidence_curves(answers['validation'], classifier_ids, results)
  with output_files(folder) as temporary:
    path = functools.partial(os.path.join, temporary)
    write_cascade_csv(path(CASCADE_CSV), results, classifier_ids)
    if any(of_metric.ccst_thresholds is not None
           for of_metric in results.values()):
      write_ccst_npz(path(CCST_NPZ), results, options['epsilons'],
                     classifier_ids)
    if other_results is not None:
      write_unfilled_csv(path(UNFILLED_CSV), results, other_results,
                         options['count_unfilled_rows'])
    confidence.write_csv(path(CONFIDENCE_CSV), curves)
    figures.write_figures(temporary, results, curves, classifier_ids, cost)
    write_summary(path(SUMMARY_JSON), _summary(
        options, answers, measured, division, results, areas, cost))
    names = sorted(os.listdir(temporary))
  return table_lines(results, areas, division, cost) + [
      '', 'MACs: {}'.format(cost.source),
      'written to {}: {}'.format(folder, ', '.join(names))]


def _confidence_curves(classifiers, classifier_ids, metrics):
  """Figure 5.d is of the whole validation split, less rows never filled."""
  filled = ~unfilled_rows(classifiers)
  return collections.OrderedDict(
      (metric, collections.OrderedDict(
          (k, confidence.confidence_curve(
              one.confidence[metric][filled], one.correct[metric][filled]))
          for k, one in zip(classifier_ids, classifiers)))
      for metric in metrics)


def _summary(options, answers, measured, division, results, areas, cost):
  """What is written to `SUMMARY_JSON`."""
  return {
      'format_version': 1,
      'options': options,
      'num_images': {split: len(classifiers[0].unfilled)
                     for split, classifiers in answers.items()},
      'num_unfilled_rows': {
          split: int(unfilled_rows(classifiers).sum())
          for split, classifiers in answers.items()},
      'fitted_on': {'split': division.fit_split,
                    'num_images': division.num_fit},
      'judged_on': {'split': division.judge_split,
                    'num_images': division.num_judged},
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
          metric: of_metric.classifier_accuracies
          for metric, of_metric in results.items()},
      'num_points': {
          metric: {method: len(points)
                   for method, points in of_metric.points.items()}
          for metric, of_metric in results.items()},
      'area_under_accuracy_macs': areas,
      'versions': {'python': platform.python_version(),
                   'numpy': np.__version__,
                   'matplotlib': figures.matplotlib_version()},
  }


def write_cascade_csv(path, results, classifier_ids):
  """Writes a row per point.

  Args:
    path: the file.
    results: a dict from metric to `analysis.MetricResults`.
    classifier_ids: the cascade's classifiers, ascending.
  """
  csv_files.write_csv(
      path,
      ['metric', 'method', 'setting'] +
      ['threshold_clf{}'.format(k) for k in classifier_ids[:-1]] +
      ['test_accuracy', 'test_accuracy_low', 'test_accuracy_high',
       'gmacs_per_image', 'speedup'] +
      ['exit_share_clf{}'.format(k) for k in classifier_ids],
      (point[:3] + point.thresholds + point[4:9] + point.exit_shares
       for of_metric in results.values()
       for points in of_metric.points.values() for point in points))


def write_unfilled_csv(path, results, other_results, count_unfilled_rows):
  """What rows that were never filled do to each number.

  Args:
    path: the file.
    results: a dict from metric to `analysis.MetricResults`, as reported.
    other_results: the same with such rows counted if they are left out in
      `results`, and left out if they are counted.
    count_unfilled_rows: which of both `results` is.
  """
  columns = ('test_accuracy', 'gmacs_per_image', 'speedup')
  left_out, counted = results, other_results
  if count_unfilled_rows:
    left_out, counted = counted, left_out
  csv_files.write_csv(
      path,
      ['metric', 'method', 'setting'] +
      ['{}_{}'.format(column, treatment) for column in columns
       for treatment in ('left_out', 'counted')],
      ([metric, method, point.setting] +
       [getattr(one, column) for column in columns for one in (point, other)]
       for metric, of_metric in left_out.items()
       for method, points in of_metric.points.items()
       if method != 'pareto'  # It has other costs, so that no rows match.
       for point, other in zip(points, counted[metric].points[method])))


def write_ccst_npz(path, results, epsilon_percents, classifier_ids):
  """Writes thresholds per class: `top1`, `top5` float64 [E, T, classes]."""
  arrays = {metric: of_metric.ccst_thresholds
            for metric, of_metric in results.items()}
  np.savez(path, epsilon_percent=np.array(epsilon_percents, np.float64),
           classifiers=np.array(classifier_ids[:-1]), **arrays)


def write_summary(path, summary):
  """Writes the record of the run."""
  with open(path, 'w') as stream:
    json.dump(summary, stream, indent=1)
    stream.write('\n')


def table_lines(results, areas, division, cost):
  """The tables for the terminal; the first is like the paper's Table 3.

  Args:
    results: a dict from metric to `analysis.MetricResults`.
    areas: a dict from metric to a dict from method to mean accuracy over cost.
    division: `analysis.Division`.
    cost: `macs.NetworkCost`.

  Returns:
    A list of str.
  """
  titles = [METRIC_TITLES[metric] for metric in results]
  lines = ['', 'Cascade: thresholds fitted on {:,} {} images, judged on {:,} '
           '{} images'.format(
               division.num_fit, division.fit_split,
               division.num_judged, division.judge_split)]
  methods = areas[next(iter(results))]
  for method in [name for name in EPSILON_METHODS if name in methods][:1]:
    lines += ['', '{:<8}'.format(method) + ''.join(
        '{:>10}{:>9}'.format(title, 'speedup') for title in titles)]
    for row in zip(*[of_metric.points[method]
                     for of_metric in results.values()]):
      lines.append('{:6.4g} %'.format(row[0].setting) + ''.join(
          '{:10.4f}{:9.3f}'.format(point.test_accuracy, point.speedup)
          for point in row))
  lines += ['', 'Mean accuracy over cost, {:.4g} to {:.4g} GMACs per image'
            .format(cost.exit_macs[0] / 1e9, cost.exit_macs[-1] / 1e9) +
            ' (README, step 5)',
            ' ' * 8 + ''.join('{:>10}'.format(title) for title in titles)]
  for method in methods:
    lines.append('{:<8}'.format(method) + ''.join(
        '{:10.4f}'.format(areas[metric][method]) for metric in results))
  return lines
