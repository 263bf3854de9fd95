"""Thresholds that keep a promise: risk control by fixed-sequence testing.

The mean loss, and so the drop in accuracy, is at most epsilon with a
probability of at least 1 - delta, over the draw of the calibration images.
"Learn then test" with a fixed sequence (Angelopoulos et al. 2021, arXiv
2110.01052; for early exits Jazbec et al. 2024, arXiv 2405.20915). The promise
holds for images from the same distribution as the calibration images, and for a
single epsilon chosen beforehand.
"""

import functools
import math

import numpy as np

from cascade import evaluation
from cascade.predictions import CascadePredictions


def calibrate(sequence, predictions, epsilon_fractions, delta, loss='wrong'):
  """The cheapest thresholds of a sequence that pass the test.

  The loss of an image is 0 or 1. Thresholds are tested from the most expensive
  to the cheapest; testing stops at the first failure. They fail if, at a mean
  loss of epsilon, this few losses or fewer would have a probability above
  delta. As the sequence is fixed before any calibration image is seen, the
  chance of an error in any of the tests is at most delta.

  For example, 1000 images may have 13 losses at an epsilon of 2 % and a delta
  of 0.1: P(Binomial(1000, 2 %) <= 13) is 0.064, and for 14 it is 0.103.

  Args:
    sequence: float64 [P, T], from the cheapest to the most expensive, none of
      it fitted on the calibration images.
    predictions: `predictions.CascadePredictions` of the calibration images.
    epsilon_fractions: [E], ascending.
    delta: in [0, 1). At 0, nothing passes unless epsilon is 1.
    loss: of `evaluation.LOSSES`.

  Returns:
    float64 [E, T]; infinite, so that no image leaves, where nothing passes.
  """
  no_exit = np.full((1, len(predictions.confidence) - 1), np.inf)
  candidates = np.concatenate([no_exit, sequence[::-1]])
  num_lost = np.zeros(len(candidates), np.int64)
  is_lost = evaluation.LOSSES[loss](predictions)
  rows = np.any(is_lost[:-1], axis=0)  # No thresholds lose others.
  if rows.any():
    num_lost = evaluation.evaluate(
        CascadePredictions([array[rows] for array in predictions.confidence],
                           [array[rows] for array in predictions.correct],
                           None),
        candidates, [array[rows] for array in is_lost]).num_lost
  log_delta = math.log(delta) if delta else -math.inf
  passed = 0  # What passes for an epsilon passes for a larger one.
  chosen = []
  for epsilon in epsilon_fractions:
    while passed + 1 < len(candidates) and log_binomial_tail(
        num_lost[passed + 1], len(rows), epsilon) <= log_delta:
      passed += 1
    chosen.append(candidates[passed])
  return np.stack(chosen)


def log_binomial_tail(most, num_images, probability):
  """log P(Binomial(num_images, probability) <= most), from log-gamma sums."""
  if most >= num_images or probability <= 0:
    return 0.
  if probability >= 1:
    return -math.inf
  log_factorial = _log_factorials(num_images)
  k = np.arange(most + 1)
  log_terms = (
      log_factorial[num_images] - log_factorial[k] -
      log_factorial[num_images - k] + k * math.log(probability) +
      (num_images - k) * math.log1p(-probability))
  largest = log_terms.max()
  return float(largest + math.log(np.exp(log_terms - largest).sum()))


@functools.lru_cache(maxsize=1)
def _log_factorials(largest):
  """log k! for k = 0 to `largest`."""
  return np.array([math.lgamma(k + 1) for k in range(largest + 1)])


def least_promise(num_images, delta):
  """The smallest epsilon that can be promised, if no image is lost."""
  if not num_images or not delta:
    return 1.
  return 1 - delta**(1. / num_images)
