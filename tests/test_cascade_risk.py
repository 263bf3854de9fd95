"""cascade/risk.py: the binomial tail, edges, and the promise kept."""

from fractions import Fraction
import math

import numpy as np
import pytest

from cascade import evaluation, risk
from cascade.macs import NetworkCost
from cascade.predictions import CascadePredictions
from cascade.thresholds import Fitting
import slow_cascade as slow

COST = NetworkCost('Tiny', 'a test', [4, 7, 10], 10, False)


def predictions_of(rng, num_images, is_trained_on=False):
  """An image has a difficulty; early classifiers err on more of them.

  On images that they were trained on they err less, at the same confidence.
  """
  difficulty = rng.rand(num_images)
  skill = np.array([[.55], [.7], [.8]])
  correct = difficulty < skill + .15 * is_trained_on + rng.normal(
      scale=.1, size=(3, num_images))
  confidence = 1 / (1 + np.exp(
      5 * (difficulty - skill) + rng.normal(size=(3, num_images))))
  # Class 0 is right; wrong answers are of one of three.
  predicted = np.where(correct, 0, rng.randint(1, 4, (3, num_images)))
  return CascadePredictions(confidence, correct, predicted)


@pytest.mark.parametrize('num_images,most,probability', [
    (1, 0, '0.5'), (7, 3, '0.3'), (20, 0, '0.01'), (20, 20, '0.4'),
    (400, 3, '0.02'), (400, 399, '0.98'), (1000, 13, '0.02'),
    (5000, 40, '0.01'), (5000, 2500, '0.5'), (10000, 8, '0.001')])
def test_tail_to_ten_digits(num_images, most, probability):
  exact = slow.binomial_tail(most, num_images, Fraction(probability))
  tail = risk.log_binomial_tail(most, num_images, float(probability))
  assert math.exp(tail) == pytest.approx(float(exact), rel=1e-10, abs=0)


def test_least_promise():
  for num_images, delta in ((1, .1), (400, .1), (50000, .01)):
    least = risk.least_promise(num_images, delta)
    log_delta = math.log(delta)
    assert risk.log_binomial_tail(0, num_images, least + 1e-9) <= log_delta
    assert risk.log_binomial_tail(0, num_images, least - 1e-9) > log_delta


@pytest.mark.parametrize('loss', sorted(evaluation.LOSSES))
def test_the_promise_is_kept_where_cst_breaks_it(loss):
  """200 draws of the data; what is true is seen on many more images."""
  epsilons = np.array([.02, .05, .1])
  delta, num_draws = .1, 200
  rng = np.random.RandomState(1)
  everybody = predictions_of(rng, 100000)
  fitting = Fitting(predictions_of(rng, 2000, is_trained_on=True),
                    100 * epsilons, 4, COST)
  sequence = fitting.fit('pareto').thresholds

  def true_losses(thresholds):
    outcomes = evaluation.evaluate(everybody, thresholds,
                                   evaluation.LOSSES[loss](everybody))
    return outcomes.num_lost / 1e5

  true = dict(zip(map(tuple, sequence), true_losses(sequence)))
  true[np.inf, np.inf] = 0.
  assert (true_losses(fitting.fit('cst').thresholds) > epsilons).any()

  chosen = [risk.calibrate(sequence, predictions_of(rng, 500), epsilons, delta,
                           loss) for _ in range(num_draws)]
  losses = np.array([[true[tuple(thresholds)] for thresholds in of_draw]
                     for of_draw in chosen])
  num_broken = (losses > epsilons).sum(axis=0)
  allowed = num_draws * delta + 3 * math.sqrt(num_draws * delta * (1 - delta))
  assert (num_broken <= allowed).all(), num_broken
  # The promise is not kept by letting nobody leave.
  assert np.mean(losses > 0, axis=0)[-1] > .9
