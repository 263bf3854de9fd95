"""The table of run_tiny_imagenet.sh: means and deviations over the seeds.

  python3 benchmarks/tiny_imagenet_table.py tiny_imagenet/seed{1,2,3} \\
      --output_dir tiny_imagenet

reads of each seed's folder what the steps left there (`results/`,
`output_softmax/`, `cascade/*/`). It prints the table, and writes it as
`table.md`, and the rows of each seed behind it as `table.csv`.

  python3 benchmarks/tiny_imagenet_table.py tiny_imagenet/seed1 --settings 32

prints what of one seed is to be run at batch 32: a line for each cascade, with
the batch size, the setting as `run_cascade.py --choose` takes it, and a name.

`cst` and `risk` are taken at the same epsilons. `pareto` has costs for its
settings; beside `cst` stands its dearest setting that is no dearer than `cst`
where they are judged, or its cheapest.
"""

import argparse
import csv
import io
import json
import os
import statistics
import sys

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, 'Imagenet'))

import shared_dumps
import shared_results
from shared_files import write_atomically
from shared_terminal import UserError, run_main

METHODS = ('cst', 'pareto', 'risk')
EPSILONS = (0, 1, 2, 5, 10)
# Closer than this to a threshold, rounding may decide whether an image leaves.
ROUNDING = 1e-5


class Seed:
  """What is in the folder of one seed.

  Attributes:
    name: of the folder.
    summary: the content of `summary.json`.
    rows: of `cascade.csv`, a dict from column to float each.
    auroc: a dict from (metric, classifier) to float.
    runs: a dict from the name of a cascade (`run_name`) to its `run.json`,
      with 'agreement' (see `_agreement`).
  """

  def __init__(self, folder):
    self.folder = folder
    self.name = os.path.basename(os.path.normpath(folder))
    results = shared_results.load(os.path.join(folder, 'results'))
    self.summary, self.rows = results.summary, results.rows
    self.classifier_ids = results.classifier_ids
    self.runs = {}
    with open(os.path.join(folder, 'results', 'exit_quality.csv')) as csv_file:
      # How often a right answer is more confident than a wrong one.
      self.auroc = {
          (row['metric'], int(row['classifier'])): float(row['auroc'] or 'nan')
          for row in csv.DictReader(csv_file)}

  def read_runs(self):
    """Reads the cascades that were run."""
    parent = os.path.join(self.folder, 'cascade')
    for name in sorted(os.listdir(parent)) if os.path.isdir(parent) else ():
      path = os.path.join(parent, name, 'run.json')
      if os.path.exists(path):
        with open(path) as run_file:
          record = json.load(run_file)
        record['agreement'] = _agreement(self, record, os.path.dirname(path))
        self.runs[name] = record

  def row(self, metric, method, epsilon):
    """The row of a method at an epsilon (percent), or None."""
    rows = [row for row in self.rows
            if (row['metric'], row['method']) == (metric, method)]
    if method != 'pareto':
      return next((row for row in rows if row['setting'] == epsilon), None)
    beside = self.row(metric, 'cst', epsilon)
    if not beside or not rows:
      return None
    cost = 'ms_per_image' if 'ms_per_image' in beside else 'gmacs_per_image'
    rows.sort(key=lambda row: row[cost])
    no_dearer = [row for row in rows if row[cost] <= beside[cost]]
    return no_dearer[-1] if no_dearer else rows[0]


def run_name(method, epsilon, batch_size):
  """Name of the folder of a cascade that is run."""
  return f'{method}_{epsilon:g}_batch_{batch_size}'


def _agreement(seed, record, folder):
  """Compares what was run with what the dumps and the thresholds say.

  Returns:
    A dict: 'num_images'; 'near_threshold', how many have a confidence within
    `ROUNDING` of a threshold; 'different', how many of the others left
    elsewhere or were given another class.
  """
  with open(os.path.join(folder, 'predictions.csv'), newline='') as csv_file:
    predictions = list(csv.DictReader(csv_file))
  terms = shared_results.CONFIDENCE_TERMS[record['metric']]
  def dumped(name):
    return np.load(os.path.join(seed.folder, 'output_softmax', name))

  if not np.array_equal(dumped(shared_dumps.labels_file_name('validation')),
                        [int(row['label']) for row in predictions]):
    raise UserError(f'{folder}: of other images than the dumps of {seed.name}; '
                    'run the cascade again')
  thresholds = [float(t) for t in record['thresholds']] + [-np.inf]
  num_images = len(predictions)
  exits = np.full(num_images, -1)
  classes = np.zeros(num_images, int)
  is_near = np.zeros(num_images, bool)
  for k, threshold in zip(record['classifiers'], thresholds):
    softmax = dumped(shared_dumps.top5_probabilities_file_name(k, 'validation'))
    top5_classes = dumped(shared_dumps.top5_classes_file_name(k, 'validation'))
    confidences = softmax[:, :terms].sum(axis=1, dtype=np.float64)
    is_here = exits < 0
    is_near |= is_here & (abs(confidences - threshold) < ROUNDING)
    is_leaving = is_here & (confidences.astype(np.float32) >= threshold)
    exits[is_leaving] = k
    classes[is_leaving] = top5_classes[is_leaving, 0]
  is_other = ((exits != [int(row['exit']) for row in predictions]) |
              (classes != [int(row['class']) for row in predictions]))
  return {'num_images': num_images, 'near_threshold': int(is_near.sum()),
          'different': int((is_other & ~is_near).sum())}


# ---- Rows -------------------------------------------------------------------

def rows_of(seed):
  """The rows of one seed for the CSV: dicts of equal keys, None where empty."""
  rows = []

  def add(table, **values):
    rows.append(dict({'seed': seed.name, 'table': table}, **values))

  for k in seed.classifier_ids:
    splits = seed.summary['classifiers'][str(k)]
    add('classifiers', classifier=f'clf{k}', **{
        f'{split}_{metric}': splits[split][metric]
        for split in ('train', 'validation') for metric in ('top1', 'top5')},
        auroc=seed.auroc.get(('top1', k)))
  for metric in shared_results.CONFIDENCE_TERMS:
    for method in METHODS:
      for epsilon in EPSILONS:
        row = seed.row(metric, method, epsilon)
        if row:
          add('analysis', metric=metric, method=method, epsilon=epsilon,
              **{column: None if value != value else value
                 for column, value in row.items()
                 if column not in shared_results.KEY_COLUMNS})
  for name, record in seed.runs.items():
    method, epsilon, _, batch_size = name.split('_')
    add('runs', metric=record['metric'], method=method, epsilon=float(epsilon),
        batch_size=int(batch_size), **{
            column: record[column] for column in (
                'top1', 'top5', 'plain_top1', 'plain_top5', 'speedup_by_macs',
                'speedup_by_stage_times', 'speedup_measured',
                'images_per_second', 'plain_images_per_second')},
        **record['agreement'])
  return rows


def write_csv(path, rows):
  columns = list(dict.fromkeys(column for row in rows for column in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write_atomically(path, text.getvalue().encode())


# ---- The table --------------------------------------------------------------

def _spread(rows, column, factor=1, digits=3, sign=''):
  """'mean ± deviation' of a column, over the seeds."""
  values = [factor * row[column] for row in rows]
  text = f'{statistics.mean(values):{sign}.{digits}f}'
  if len(values) > 1:
    text += f' ± {statistics.stdev(values):.{digits}f}'
  return text


def table_lines(rows):
  """Markdown of the rows of all seeds: three tables and a sentence."""
  def groups(table, *columns):
    found = {}
    for row in rows:
      if row['table'] == table:
        found.setdefault(tuple(row[c] for c in columns), []).append(row)
    return found.items()

  def percent(group, column):
    return _spread(group, column, 100, 2)

  seeds = list(dict.fromkeys(row['seed'] for row in rows))
  lines = [f'Mean ± standard deviation over {len(seeds)} seeds of the '
           f'classifiers clf0 and clf1 ({", ".join(seeds)}); one network.', '',
           '| % | train top-1 | train top-5 | validation top-1 | validation '
           'top-5 | AUROC of the confidence |',
           '| --- | --- | --- | --- | --- | --- |']
  for (name,), group in groups('classifiers', 'classifier'):
    lines.append(f'| {name} | ' + ' | '.join(
        percent(group, f'{split}_{metric}')
        for split in ('train', 'validation')
        for metric in ('top1', 'top5')) +
                 f' | {_spread(group, "auroc")} |')
  for metric in shared_results.CONFIDENCE_TERMS:
    lines += [
        '', f'{metric}: what the analysis says. In brackets, the outermost '
        "limits of the seeds' 95 % intervals.", '',
        '| method, epsilon | accuracy, % | drop, points | leave at clf0, clf1, '
        'clf2, % | speed-up by MACs | by stage times |',
        '| --- | --- | --- | --- | --- | --- |']
    for (_, method, epsilon), group in groups(
        'analysis', 'metric', 'method', 'epsilon'):
      if group[0]['metric'] != metric:
        continue
      name = (f'pareto beside cst {epsilon:g} %' if method == 'pareto'
              else f'{method} {epsilon:g} %')
      low = min(100 * row['accuracy_drop_low'] for row in group)
      high = max(100 * row['accuracy_drop_high'] for row in group)
      shares = ', '.join(
          _spread(group, column, 100, 1) for column in group[0]
          if column.startswith('exit_share_'))
      by_time = ('speedup_by_time' in group[0] and
                 _spread(group, 'speedup_by_time')) or 'not measured'
      lines.append(
          f'| {name} | {percent(group, "test_accuracy")} | '
          f'{percent(group, "accuracy_drop")} ({low:.2f} to {high:.2f}) | '
          f'{shares} | {_spread(group, "speedup")} | {by_time} |')
  runs = groups('runs', 'batch_size', 'method', 'epsilon')
  if runs:
    lines += ['', 'top1: images that leave (`run_cascade.py`, network alone).',
              '', '| batch | method, epsilon | accuracy, % | speed-up by MACs '
              '| by stage times | measured | images/s | plain |',
              '| --- | --- | --- | --- | --- | --- | --- | --- |']
    for (batch_size, method, epsilon), group in sorted(
        runs, key=lambda item: (-item[0][0],) + item[0][1:]):
      lines.append(
          f'| {batch_size:g} | {method} {epsilon:g} % | '
          f'{percent(group, "top1")} | ' + ' | '.join(
              _spread(group, column) for column in (
                  'speedup_by_macs', 'speedup_by_stage_times',
                  'speedup_measured')) + ' | ' + ' | '.join(
                      _spread(group, column, digits=0) for column in (
                          'images_per_second', 'plain_images_per_second')) +
          ' |')
    compared = [row for row in rows if row['table'] == 'runs']
    lines += ['', '{:,} decisions of {} runs compared with the analysis: {} '
              'different, {} within {:g} of a threshold.'.format(
                  sum(row['num_images'] for row in compared), len(compared),
                  sum(row['different'] for row in compared),
                  sum(row['near_threshold'] for row in compared), ROUNDING)]
  return lines


# ---- The command line -------------------------------------------------------

def settings_lines(seed, batch_size, methods, epsilons):
  """Lines of --settings, see the file's docstring."""
  lines = []
  for method in methods:
    for epsilon in epsilons:
      row = seed.row('top1', method, epsilon)
      if row:
        lines.append(f'{batch_size} {method}:{row["setting"]!r} '
                     f'{run_name(method, epsilon, batch_size)}')
  return lines


def main(arguments=None):
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('folders', nargs='+', metavar='FOLDER')
  parser.add_argument('--output_dir', help='where table.md and table.csv go')
  parser.add_argument('--settings', type=int, metavar='BATCH_SIZE')
  parser.add_argument('--methods', default=','.join(METHODS))
  parser.add_argument('--epsilons', default=','.join(map(str, EPSILONS)))
  args = parser.parse_args(arguments)
  seeds = [Seed(folder) for folder in args.folders]
  if args.settings:
    epsilons = [float(text) for text in args.epsilons.split(',')]
    for seed in seeds:
      print('\n'.join(settings_lines(
          seed, args.settings, args.methods.split(','), epsilons)))
    return
  rows = []
  for seed in seeds:
    seed.read_runs()
    rows += rows_of(seed)
  lines = table_lines(rows)
  print('\n'.join(lines))
  if args.output_dir:
    write_csv(os.path.join(args.output_dir, 'table.csv'), rows)
    write_atomically(os.path.join(args.output_dir, 'table.md'),
                     ('\n'.join(lines) + '\n').encode())


if __name__ == '__main__':
  sys.exit(run_main(main))
