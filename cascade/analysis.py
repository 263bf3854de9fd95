"""From predictions to the points of the cascade: steps 5 and 6 of the README.

Thresholds are fitted on the train split and judged on the validation split, as
in the paper, or on two halves of the validation split.
"""

import typing
from concurrent import futures

import numpy as np

from cascade import UserError, evaluation
from cascade.predictions import cascade_predictions, unfilled_rows
from cascade.thresholds import METHODS, Fitting

# Of the permutation that halves the validation split.
HALVES_SEED = 0


class Division(typing.NamedTuple):
  """Which images fit thresholds and which judge them."""
  fit_split: str
  fit_rows: object    # int [chosen], or a slice of all rows.
  num_fit: int
  judge_split: str
  judge_rows: object
  num_judged: int


class MetricResults(typing.NamedTuple):
  """The results for one metric."""
  points: dict                 # Method -> list of `evaluation.Point`.
  ccst_thresholds: np.ndarray  # float64 [E, T, classes], or None.
  classifier_accuracies: list  # Fractions, each on all judging images.


def divide(predictions, fit_on, count_unfilled_rows):
  """Chooses the images that fit and those that judge.

  Args:
    predictions: a dict from split to a list of
      `predictions.ClassifierPredictions`.
    fit_on: 'train', the paper's way: the validation split judges; or
      'validation': one half of it fits and the other half judges.
    count_unfilled_rows: whether rows that were never filled take part.

  Raises:
    UserError: there are too few images.
  """
  rows, num_images = {}, {}
  for split, classifiers in predictions.items():
    is_unfilled = unfilled_rows(classifiers)
    if count_unfilled_rows or not is_unfilled.any():
      rows[split], num_images[split] = slice(None), len(is_unfilled)
    else:
      rows[split] = np.flatnonzero(~is_unfilled)
      num_images[split] = len(rows[split])
    if num_images[split] < (2 if fit_on == split == 'validation' else 1):
      raise UserError(
          f'{split}: {num_images[split]:,} rows were filled by every '
          'classifier, not enough for thresholds; dump the classifiers again '
          '(step 3)')
  if fit_on == 'train':
    return Division('train', rows['train'], num_images['train'],
                    'validation', rows['validation'], num_images['validation'])
  all_rows = np.arange(len(unfilled_rows(predictions['validation'])))
  chosen = all_rows[rows['validation']]
  order = np.random.RandomState(HALVES_SEED).permutation(len(chosen))
  first, second = np.split(order, [len(chosen) // 2])
  return Division('validation', chosen[np.sort(first)], len(first),
                  'validation', chosen[np.sort(second)], len(second))


def analyse(predictions, division, metrics, methods, epsilon_percents,
            num_classes, cost):
  """Fits and judges the thresholds of all methods.

  Args:
    predictions: as for `divide`, in the cascade's order.
    division: `Division`.
    metrics, methods: which of `predictions.METRICS` and `thresholds.METHODS`.
    epsilon_percents: accuracy that may be given up, in percent.
    num_classes: outputs of each classifier.
    cost: `macs.NetworkCost`.

  Returns:
    A dict from metric to `MetricResults`.
  """
  def analyse_metric(metric):
    fit = cascade_predictions(
        predictions[division.fit_split], metric, division.fit_rows)
    judge = cascade_predictions(
        predictions[division.judge_split], metric, division.judge_rows)
    fitting = Fitting(fit, epsilon_percents, num_classes, cost)
    points = {
        method: evaluation.points(
            metric, method, fitting.fit(method), judge, cost)
        for method in METHODS if method in methods}
    return MetricResults(
        points,
        fitting.fit('ccst').thresholds if 'ccst' in methods else None,
        [float(correct.mean()) for correct in judge.correct])

  # NumPy sorts without the interpreter's lock, so the metrics run side by side.
  with futures.ThreadPoolExecutor(len(metrics)) as pool:
    return dict(zip(metrics, pool.map(analyse_metric, metrics)))
