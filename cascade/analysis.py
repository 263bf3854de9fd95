"""From predictions to the points of the cascade: steps 5 and 6 of the README.

Thresholds are fitted on the train split and judged on the validation split, as
in the paper, or on two halves of the validation split. `risk` needs images of
its own to calibrate, so it is always judged on half of the validation split.
"""

import typing
from concurrent import futures

import numpy as np

from cascade import evaluation
from cascade.predictions import cascade_predictions, unfilled_rows
from cascade.thresholds import METHODS, Fitting
from cascade.shared import UserError

# Of the permutation that halves the validation split.
HALVES_SEED = 0


class Images(typing.NamedTuple):
  """Some images of a split."""
  split: str
  rows: object  # int [num_images], or a slice of all rows.
  num_images: int


class Division(typing.NamedTuple):
  """Which images fit thresholds and which judge them; all are `Images`."""
  fit: Images
  judge: Images
  risk_fit: Images  # For `risk`, which fits, calibrates and judges.
  risk_calibration: Images
  risk_judge: Images


class MetricResults(typing.NamedTuple):
  """The results for one metric."""
  points: dict                 # Method -> list of `evaluation.Point`.
  ccst_thresholds: np.ndarray  # float64 [E, T, classes], or None.
  classifier_accuracies: list  # Fractions, each on all judging images.
  oracle: evaluation.Oracle    # Of all judging images.


def divide(predictions, fit_on, count_unfilled_rows):
  """Chooses the images that fit and those that judge.

  Args:
    predictions: a dict from split to a list of
      `predictions.ClassifierPredictions`.
    fit_on: 'train', the paper's way: the validation split judges, or for
      `risk` one half of it calibrates and the other half judges. 'validation':
      one half of it fits and the other half judges; for `risk` the first half
      is halved again, to fit and to calibrate.
    count_unfilled_rows: whether rows that were never filled take part.
  """
  images = {}
  for split, classifiers in predictions.items():
    is_unfilled = unfilled_rows(classifiers)
    rows = np.flatnonzero(~is_unfilled | count_unfilled_rows)
    if len(rows) < (2 if fit_on == split == 'validation' else 1):
      raise UserError(
          f'{split}: {len(rows):,} rows were filled by every classifier, not '
          'enough for thresholds; dump the classifiers again (step 3)')
    # A slice copies nothing.
    images[split] = Images(
        split, rows if len(rows) < len(is_unfilled) else slice(None), len(rows))
    if split == 'validation':
      first, second = _halves(rows)
  if fit_on == 'train':
    return Division(images['train'], images['validation'],
                    images['train'], first, second)
  risk_fit, risk_calibration = _halves(first.rows)
  return Division(first, second, risk_fit, risk_calibration, second)


def _halves(rows):
  """Two random halves of validation rows, always the same; `Images`."""
  order = np.random.RandomState(HALVES_SEED).permutation(len(rows))
  return [Images('validation', rows[np.sort(half)], len(half))
          for half in np.split(order, [len(rows) // 2])]


def analyse(predictions, division, metrics, methods, epsilon_percents,
            risk_delta, risk_loss, num_classes, cost):
  """Fits and judges; returns a dict from metric to `MetricResults`.

  Args:
    predictions: as for `divide`, in the cascade's order.
    division: `Division`.
    metrics, methods: their names.
    epsilon_percents: accuracy that may be given up, in percent, ascending.
    risk_delta: how often `risk` may break its promise, a fraction.
    risk_loss: what it promises; of `evaluation.LOSSES`.
    num_classes: int.
    cost: `macs.NetworkCost`.
  """
  def analyse_metric(metric):
    def predictions_of(images):
      return cascade_predictions(
          predictions[images.split], metric, images.rows)

    def fitting_on(images):
      return Fitting(predictions_of(images), epsilon_percents, num_classes,
                     cost, predictions_of(division.risk_calibration),
                     risk_delta, risk_loss)

    fitting, judge = fitting_on(division.fit), predictions_of(division.judge)
    points = {
        method: evaluation.points(
            metric, method, fitting.fit(method), judge, cost)
        for method in METHODS if method in methods and method != 'risk'}
    if 'risk' in methods:
      # With the paper's division it reuses the `pareto` already fitted.
      risk_fitting = fitting if division.risk_fit is division.fit else (
          fitting_on(division.risk_fit))
      points['risk'] = evaluation.points(
          metric, 'risk', risk_fitting.fit('risk'),
          predictions_of(division.risk_judge), cost)
    return MetricResults(
        points,
        fitting.fit('ccst').thresholds if 'ccst' in methods else None,
        [float(correct.mean()) for correct in judge.correct],
        evaluation.oracle(judge))

  # NumPy sorts without the interpreter's lock, so the metrics run side by side.
  with futures.ThreadPoolExecutor(len(metrics)) as pool:
    return dict(zip(metrics, pool.map(analyse_metric, metrics)))
