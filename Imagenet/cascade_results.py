"""What the analysis found, for those who use it: thresholds of a chosen row.

The analysis writes the files (`cascade/report.py`), with the names that are
given here, and `run_cascade.py` reads them. No TensorFlow.
"""

import csv
import json
import math
import os
import re
import typing
import zipfile

import numpy as np

from dump_record import WEIGHT_FIELDS
from user_error import UserError

# The metrics, and how many of the largest softmaxes confidence adds up for each
# (paper, section 3).
CONFIDENCE_TERMS = {'top1': 1, 'top5': 5}

# Files of the analysis' output folder.
CASCADE_CSV = 'cascade.csv'
CCST_NPZ = 'ccst_thresholds.npz'
SUMMARY_JSON = 'summary.json'

# Columns of `CASCADE_CSV`. What a row is of:
KEY_COLUMNS = ('metric', 'method', 'setting')
# What it comes to, in fields of `evaluation.Point`; behind the thresholds.
POINT_COLUMNS = ('test_accuracy', 'test_accuracy_low', 'test_accuracy_high',
                 'gmacs_per_image', 'speedup')
# Then, if time was measured (-cost); fields of `Point` as well.
TIME_COLUMNS = ('ms_per_image', 'speedup_by_time')
# The last columns: against the last classifier alone, on the same images, and
# how certain the cost is; fields of `Point` as well.
LAST_COLUMNS = ('accuracy_drop', 'accuracy_drop_low', 'accuracy_drop_high',
                  'gmacs_low', 'gmacs_high')
# For each classifier, the last of which has no threshold.
THRESHOLD_COLUMN = 'threshold_clf{}'
EXIT_SHARE_COLUMN = 'exit_share_clf{}'

# In `CCST_NPZ`, beside an array for each metric.
CCST_SETTINGS = 'epsilon_percent'

# Settings and limits that people type are as good as equal within this.
_TOLERANCE = 1e-9

_FORMS = ('a choice is METHOD:SETTING, such as cst:2, or one of speedup>=X, '
          'gmacs<=X and accuracy_drop<=X (percentage points)')


class Choice(typing.NamedTuple):
  """Thresholds of one row of `CASCADE_CSV`."""
  metric: str             # 'top1' or 'top5'.
  method: str
  setting: float          # In the unit of the method.
  # float32 [T], or [T, classes] by predicted class; infinite: nobody leaves.
  thresholds: np.ndarray
  row: dict               # Column -> float, NaN if empty; key columns as here.


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
  if not os.path.isdir(folder):
    raise UserError(f'--results {folder}: no such folder; it is the '
                    '-output_dir of analyze_imagenet_labels.py')
  summary = _read(folder, SUMMARY_JSON, _read_summary)
  rows, classifier_ids = _read(folder, CASCADE_CSV, _read_rows)
  return Results(folder, summary, rows, classifier_ids)


def _read(folder, name, read):
  path = os.path.join(folder, name)
  if not os.path.isfile(path):
    raise UserError(f'--results {folder}: holds no {name}; it is the '
                    '-output_dir of analyze_imagenet_labels.py')
  try:
    with open(path, newline='', encoding='utf-8') as stream:
      return read(stream)
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror})')
  except (ValueError, KeyError, TypeError, RecursionError,
          csv.Error) as error:
    raise _damaged(path, error)


def _damaged(path, error):
  return UserError(f'{path}: is not as the analysis writes it '
                   f'({type(error).__name__}: {error}); analyse again')


def _read_summary(stream):
  summary = json.load(stream)
  if not isinstance(summary, dict):
    raise ValueError('not an object')
  return summary


def _read_rows(stream):
  """The rows of `CASCADE_CSV`, and the classifiers of its columns."""
  reader = csv.DictReader(stream, strict=True)
  share = re.compile(EXIT_SHARE_COLUMN.format(r'(\d+)') + '$')
  classifier_ids = [int(match.group(1)) for match in map(
      share.match, reader.fieldnames or []) if match]
  needed = POINT_COLUMNS + LAST_COLUMNS + tuple(
      THRESHOLD_COLUMN.format(k) for k in classifier_ids[:-1])
  rows = []
  for row in reader:
    rows.append({column: text if column in KEY_COLUMNS[:2] else
                         float('nan' if text == '' else text)
                 for column, text in row.items()})
    for column in KEY_COLUMNS + needed:
      rows[-1][column]  # KeyError: it lacks the column.
  if not rows or len(classifier_ids) < 2:
    raise ValueError('no rows of a cascade')
  return rows, classifier_ids


# ---- Choosing a row ----------------------------------------------------------


def choose(results, choice, metric):
  """The thresholds that the text of --choose asks for.

  `METHOD:SETTING` is that row. Of the rows that keep the condition `speedup>=X`
  or `gmacs<=X`, it is the one with the least drop in accuracy, and of equal
  ones the cheapest; of those that keep `accuracy_drop<=X`, in percentage
  points, the cheapest, and of equal ones the one with the least drop. The drop
  is against the plain network on the images that judged, which for `risk` are
  half as many. All methods take part.

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
  rows = [row for row in results.rows if row['metric'] == metric]
  if not rows:
    raise UserError(f'--metric {metric}: no rows of it in {results.folder}; '
                    f'analyse again with -metric {metric}')
  condition = re.match(r'(speedup)>=(.+)$|(gmacs|accuracy_drop)<=(.+)$',
                       choice.replace(' ', ''))
  setting = re.match(r'(\w+):(.+)$', choice)
  if condition:
    name, limit = [group for group in condition.groups() if group]
    row = _best_row(results, rows, choice, name, _number(choice, limit))
  elif setting:
    row = _row_of_setting(
        results, rows, choice, setting.group(1),
        _number(choice, setting.group(2)))
  else:
    raise UserError(f'--choose {choice}: {_FORMS}')
  if row['method'] == 'ccst':
    thresholds = _ccst_thresholds(results, row)
  else:
    thresholds = [row[THRESHOLD_COLUMN.format(k)]
                  for k in results.classifier_ids[:-1]]
  return Choice(metric, row['method'], row['setting'],
                np.array(thresholds, np.float32), row)


def _number(choice, text):
  try:
    number = float(text)
  except ValueError:
    number = math.nan
  if not math.isfinite(number):
    raise UserError(f'--choose {choice}: {text} is not a number; {_FORMS}')
  return number


def _best_row(results, rows, choice, name, limit):
  """The best of the rows that keep a condition; see `choose`."""
  value, sign = {
      'speedup': (lambda row: row['speedup'], -1),
      'gmacs': (lambda row: row['gmacs_per_image'], 1),
      'accuracy_drop': (lambda row: 100 * row['accuracy_drop'], 1)}[name]
  kept = [row for row in rows
          if sign * value(row) <= sign * limit + _TOLERANCE]
  if not kept:
    nearest = min(rows, key=lambda row: sign * value(row))
    raise UserError(
        f'--choose {choice}: no row for {nearest["metric"]} in '
        f'{os.path.join(results.folder, CASCADE_CSV)} meets it; the nearest is '
        f'{row_name(nearest)} with {name} {value(nearest):.6g}')
  order = ['accuracy_drop', 'gmacs_per_image']
  if name == 'accuracy_drop':
    order.reverse()
  return min(kept, key=lambda row: [row[column] for column in order])


def _row_of_setting(results, rows, choice, method, setting):
  of_method = [row for row in rows if row['method'] == method]
  path = os.path.join(results.folder, CASCADE_CSV)
  if not of_method:
    methods = ', '.join(dict.fromkeys(row['method'] for row in rows))
    raise UserError(f'--choose {choice}: no such method in {path}; there are '
                    f'{methods}')
  nearest = sorted(of_method, key=lambda row: abs(row['setting'] - setting))
  if abs(nearest[0]['setting'] - setting) > _TOLERANCE:
    raise UserError(f'--choose {choice}: no such setting in {path}; the '
                    f'nearest are {", ".join(map(row_name, nearest[:2]))}')
  return nearest[0]


def row_name(row):
  """A row as --choose takes it."""
  setting = row['setting']
  return f'{row["method"]}:{setting:.0f}' if setting.is_integer() else (
      f'{row["method"]}:{setting!r}')


def _ccst_thresholds(results, row):
  """float64 [T, classes] of a row whose thresholds are per class."""
  path = os.path.join(results.folder, CCST_NPZ)
  if not os.path.isfile(path):
    raise UserError(f'{path}: no such file; analyse again with -method ccst')
  try:
    if not zipfile.is_zipfile(path):  # Old NumPy prints more than its error.
      raise ValueError('not a zip file')
    with np.load(path) as arrays:
      settings, thresholds = arrays[CCST_SETTINGS], arrays[row['metric']]
    index, = np.flatnonzero(np.abs(settings - row['setting']) <= _TOLERANCE)
    if thresholds.ndim != 3 or np.isnan(thresholds).any() or (
        thresholds.shape[1] != len(results.classifier_ids) - 1):
      raise ValueError(f'{row["metric"]} {list(thresholds.shape)}')
    return thresholds[index]
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror or error})')
  except Exception as error:  # A damaged zip file raises whatever it likes.
    raise _damaged(path, error)


# ---- Are they results of this network? ---------------------------------------


def check_weights(results, classifier_ids, network_fields, sources):
  """Checks that the results are of these classifiers and their weights.

  Args:
    results: `Results`.
    classifier_ids: of the cascade that is going to run, ascending.
    network_fields: `dump_record.shared_fields` of its network.
    sources: a dict from classifier to `resnet_checkpoint.ExitSource`.

  Raises:
    UserError: they are of others, or it is not known.
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
      if field not in recorded:
        raise UserError(
            f'{where}: does not say which weights of clf{k} it is of; dump '
            '(step 3) and analyse again, or give --thresholds')
      if recorded[field] != getattr(sources[k], field):
        checkpoint = field.replace('sha256', 'checkpoint')
        part = field.replace('_sha256', '')
        raise UserError(
            f'{where}: are of other weights: the {part} of clf{k} was that of '
            f'{recorded.get(checkpoint, "an unknown checkpoint")}, and here it '
            f'is that of {getattr(sources[k], checkpoint)}; dump (step 3) and '
            'analyse again, or name the weights of the results')


def _listed(classifier_ids):
  return ','.join(map(str, classifier_ids))
