"""What the analysis found, for those who use it: thresholds of a chosen row.

The analysis writes the files (`cascade/report.py`), with the names that are
given here, and `run_cascade.py` reads them. No TensorFlow.
"""

import csv
import json
import os
import re
import typing
import zipfile

import numpy as np

from shared_cascade_json import WEIGHT_FIELDS
from shared_files import explain_content
from shared_terminal import UserError

# The metrics, and how many of the largest softmaxes confidence adds up for each
# (paper, section 3).
CONFIDENCE_TERMS = {'top1': 1, 'top5': 5}

# Files of the analysis' output folder.
CASCADE_CSV = 'cascade.csv'
CCST_NPZ = 'ccst_thresholds.npz'
SUMMARY_JSON = 'summary.json'

# Columns of `CASCADE_CSV`, in their order but for those of each classifier.
# What a row is of:
KEY_COLUMNS = ('metric', 'method', 'setting')
# For each classifier but the last:
THRESHOLD_COLUMN = 'threshold_clf{}'
# What it comes to, in fields of `evaluation.Point`:
POINT_COLUMNS = ('test_accuracy', 'test_accuracy_low', 'test_accuracy_high',
                 'gmacs_per_image', 'speedup')
EXIT_SHARE_COLUMN = 'exit_share_clf{}'
# If time was measured (-cost):
TIME_COLUMNS = ('ms_per_image', 'speedup_by_time')
# Against the last classifier alone, on the same images:
DROP_COLUMNS = ('accuracy_drop', 'accuracy_drop_low', 'accuracy_drop_high')
COST_INTERVAL_COLUMNS = ('gmacs_low', 'gmacs_high')
EXIT_ACCURACY_COLUMN = 'exit_accuracy_clf{}'  # Empty if no image leaves there.

# In `CCST_NPZ`, beside an array for each metric.
CCST_SETTINGS = 'epsilon_percent'

# Settings and limits that people type are as good as equal within this.
_TOLERANCE = 1e-9

_REMEDY = ('--results takes the -output_dir of analyze_imagenet_labels.py; '
           'analyse again')


class Choice(typing.NamedTuple):
  """Thresholds of one row of `CASCADE_CSV`."""
  metric: str             # 'top1' or 'top5'.
  method: str
  setting: float          # In the unit of the method.
  # float32 [T], or [T, classes] by predicted class; infinite: nobody leaves.
  thresholds: np.ndarray
  row: dict               # Column -> float, NaN if empty; key columns as here.
  num_rows: int           # Of which a condition took the best; else 1.


class Results(typing.NamedTuple):
  """An output folder of the analysis."""
  folder: str
  summary: dict         # The content of `SUMMARY_JSON`.
  rows: list            # Of `CASCADE_CSV`, each as `Choice.row`.
  classifier_ids: list  # Of the cascade, ascending.


def load(folder):
  """Reads the results in a folder.

  Returns:
    `Results`.

  Raises:
    UserError: there are none, or they are damaged.
  """
  path = os.path.join(folder, SUMMARY_JSON)
  with explain_content(path, _REMEDY):
    with open(path, encoding='utf-8') as stream:
      summary = dict(json.load(stream))
  path = os.path.join(folder, CASCADE_CSV)
  with explain_content(path, _REMEDY):
    with open(path, newline='', encoding='utf-8') as stream:
      rows, classifier_ids = _read_rows(stream)
  return Results(folder, summary, rows, classifier_ids)


def _read_rows(stream):
  """The rows of `CASCADE_CSV`, and the classifiers of its columns."""
  reader = csv.DictReader(stream)
  share = EXIT_SHARE_COLUMN.format('')
  classifier_ids = [int(column[len(share):]) for column in
                    reader.fieldnames or [] if column.startswith(share)]
  thresholds = [THRESHOLD_COLUMN.format(k) for k in classifier_ids[:-1]]
  rows = []
  for row in reader:
    rows.append({column: text if column in KEY_COLUMNS[:2] else
                         float('nan' if text == '' else text)
                 for column, text in row.items()})
    numbers = [rows[-1][column] for column in
               KEY_COLUMNS[2:] + POINT_COLUMNS + DROP_COLUMNS]
    if not np.isfinite(numbers).all():
      raise ValueError(f'line {reader.line_num} lacks a number')
    if row['method'] != 'ccst':
      checked_thresholds([rows[-1][column] for column in thresholds])
  if not rows or not thresholds:
    raise ValueError('no rows of a cascade')
  return rows, classifier_ids


def checked_thresholds(values):
  """Thresholds as confidences are compared with them: float32, as `values`.

  Raises:
    ValueError: one is neither from 0 to 1 nor infinite.
  """
  thresholds = np.array(values, np.float32)
  with np.errstate(invalid='ignore'):  # False for NaN.
    # Sums of rounded softmaxes end a little above 1.
    is_one = (thresholds >= 0) & (thresholds <= 1.001) | (thresholds == np.inf)
  if not is_one.all():
    raise ValueError('thresholds are from 0 to 1, or inf, at which no image '
                     'leaves')
  return thresholds


def thresholds_of_flag(values, num_thresholds):
  """float32 [T] of --thresholds, of which `values` are the texts.

  Raises:
    UserError: they are no thresholds, or not so many.
  """
  where = f'--thresholds {",".join(values)}'
  try:
    thresholds = checked_thresholds(values)
  except ValueError as error:
    raise UserError(f'{where}: {error}; give such as 0.9,0.8')
  if len(thresholds) != num_thresholds:
    raise UserError(f'{where}: give {num_thresholds}, one for each exit before '
                    'the last')
  return thresholds


# ---- Choosing a row ----------------------------------------------------------


def choose(results, choice, metric):
  """The thresholds that the text of --choose asks for.

  `METHOD:SETTING` is that row, or that of the nearest setting if this is no
  further off than the next one is from it. Of the rows that keep the condition
  `speedup>=X` or `gmacs<=X`, it is the one with the least drop in accuracy, and
  of equal ones the cheapest; of those that keep `accuracy_drop<=X`, in
  percentage points, the cheapest, and of equal ones the one with the least
  drop. The drop is against the plain network on the images that judged, which
  for `risk` are half as many. All methods take part.

  Args:
    results: `Results`.
    choice: the text.
    metric: 'top1' or 'top5'.

  Returns:
    `Choice`.

  Raises:
    UserError: the text is malformed, or there is no such row; names the
      nearest.
  """
  where = f'--choose {choice}'
  rows = [row for row in results.rows if row['metric'] == metric]
  if not rows:
    raise UserError(f'--metric {metric}: no rows of it in {results.folder}; '
                    f'analyse again with -metric {metric}')
  match = re.fullmatch(r'(?:(speedup)>=|(gmacs|accuracy_drop)<=|(\w+):)'
                       r'(-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)',
                       choice.replace(' ', ''))
  if not match:
    raise UserError(
        f'{where}: a choice is METHOD:SETTING, such as cst:2, or one of '
        'speedup>=X, gmacs<=X and accuracy_drop<=X (percentage points)')
  name, limit = match.group(1) or match.group(2), float(match.group(4))
  row = _best_row(rows, where, name, limit) if name else _row_of_setting(
      rows, where, match.group(3), limit)
  if row['method'] == 'ccst':
    thresholds = _ccst_thresholds(results, row)
  else:
    thresholds = [row[THRESHOLD_COLUMN.format(k)]
                  for k in results.classifier_ids[:-1]]
  return Choice(metric, row['method'], row['setting'],
                checked_thresholds(thresholds), row, len(rows) if name else 1)


def _best_row(rows, where, name, limit):
  """The best of the rows that keep a condition; see `choose`."""
  value, sign = {
      'speedup': (lambda row: row['speedup'], -1),
      'gmacs': (lambda row: row['gmacs_per_image'], 1),
      'accuracy_drop': (lambda row: 100 * row['accuracy_drop'], 1)}[name]
  kept = [row for row in rows
          if sign * value(row) <= sign * limit + _TOLERANCE]
  if not kept:
    nearest = min(rows, key=lambda row: sign * value(row))
    raise UserError(f'{where}: no row meets it; the nearest is '
                    f'{row_name(nearest)} with {name} {value(nearest):.6g}')
  order = ['accuracy_drop', 'gmacs_per_image']
  if name == 'accuracy_drop':
    order.reverse()
  return min(kept, key=lambda row: [row[column] for column in order])


def _row_of_setting(rows, where, method, setting):
  of_method = [row for row in rows if row['method'] == method]
  if not of_method:
    methods = ', '.join(dict.fromkeys(row['method'] for row in rows))
    raise UserError(f'{where}: no such method; there are {methods}')
  nearest = sorted(of_method, key=lambda row: abs(row['setting'] - setting))
  first, second = nearest[0], nearest[:2][-1]
  step = abs(first['setting'] - second['setting'])
  if abs(first['setting'] - setting) > step + _TOLERANCE:
    raise UserError(f'{where}: no such setting; the nearest is '
                    f'{row_name(first)}')
  return first


def row_name(row):
  """A row as --choose takes it."""
  setting = row['setting']
  return f'{row["method"]}:{setting:.0f}' if setting.is_integer() else (
      f'{row["method"]}:{setting!r}')


def describe(choice):
  """Which row it is, and what the analysis says of it: a line's words."""
  row = choice.row
  words = (f'{row_name(row)}, {choice.metric} {row["test_accuracy"]:.4f}, drop '
           f'{100 * row["accuracy_drop"]:.2f} points, speedup '
           f'{row["speedup"]:.3f} by MACs')
  if choice.num_rows > 1:
    words += (f'; chosen on these images, as the best of {choice.num_rows:,} '
              'rows, so others may lose more (method risk makes a promise)')
  return words


def _ccst_thresholds(results, row):
  """float64 [T, classes] of a row whose thresholds are per class."""
  path = os.path.join(results.folder, CCST_NPZ)
  with explain_content(path, _REMEDY):
    with open(path, 'rb') as stream:
      if not zipfile.is_zipfile(stream):  # Old NumPy prints a traceback.
        raise ValueError('not a zip file')
    with np.load(path) as arrays:
      settings, thresholds = arrays[CCST_SETTINGS], arrays[row['metric']]
    index, = np.flatnonzero(np.abs(settings - row['setting']) <= _TOLERANCE)
    shape = (len(settings), len(results.classifier_ids) - 1,
             results.summary.get('num_classes', thresholds.shape[-1]))
    if thresholds.shape != shape:
      raise ValueError(f'{thresholds.shape}, not {shape}')
    return checked_thresholds(thresholds[index])


# ---- Are they results of this network? ---------------------------------------


def check_weights(results, classifier_ids, network_fields, sources):
  """Checks that the results are of these classifiers and their weights.

  Args:
    results: `Results`.
    classifier_ids: of the cascade that is going to run, ascending.
    network_fields: `shared_cascade_json.shared_fields` of its network.
    sources: a dict from classifier to `resnet_checkpoint.ExitSource`.

  Raises:
    UserError: they are of others, or it is not recorded.
  """
  where = f'--results {results.folder}'
  if list(classifier_ids) != results.classifier_ids:
    raise UserError(
        f'{where}: are of classifiers {_listed(results.classifier_ids)}, and '
        f'the cascade is of {_listed(classifier_ids)}; name these with '
        '--classifier_id')
  for field, value in network_fields.items():
    known = results.summary.get(field, value)
    if known != value:
      raise UserError(f'{where}: are of another network ({field} {known}, here '
                      f'{value})')
  for k in classifier_ids:
    recorded = results.summary.get('exits', {}).get(str(k), {})
    for field in WEIGHT_FIELDS:
      if recorded.get(field) != getattr(sources[k], field):
        checkpoint = field.replace('sha256', 'checkpoint')
        raise UserError(
            f'{where}: are of other weights: the '
            f'{field.replace("_sha256", "")} of clf{k} was that of '
            f'{recorded.get(checkpoint, "an unknown checkpoint")}, and here it '
            f'is that of {getattr(sources[k], checkpoint)}; dump (step 3) and '
            'analyse again, or give --thresholds')


def _listed(classifier_ids):
  return ','.join(map(str, classifier_ids))
