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
  return CascadePredictions(
      confidence, correct, np.zeros((3, num_images), np.int32))


@pytest.mark.parametrize('num_images,most,probability', [
    (1, 0, '0.5'), (7, 3, '0.3'), (20, 0, '0.01'), (20, 20, '0.4'),
    (400, 3, '0.02'), (400, 399, '0.98'), (1000, 13, '0.02'),
    (5000, 40, '0.01'), (5000, 2500, '0.5'), (10000, 8, '0.001')])
def test_tail_to_ten_digits(num_images, most, probability):
  exact = slow.binomial_tail(most, num_images, Fraction(probability))
  tail = risk.log_binomial_tail(most, num_images, float(probability))
  assert math.exp(tail) == pytest.approx(float(exact), rel=1e-10, abs=0)


def test_edges_of_the_tail():
  assert risk.log_binomial_tail(0, 0, .5) == 0
  assert risk.log_binomial_tail(0, 9, 0) == 0
  assert risk.log_binomial_tail(8, 9, 1) == -math.inf
  assert risk.log_binomial_tail(9, 9, 1) == 0
  # Far below the smallest float, and still not 0.
  assert -math.inf < risk.log_binomial_tail(0, 50000, .5) < -30000


@pytest.mark.parametrize('num_images,epsilon,delta', [
    (400, 0, .1), (400, .05, 0), (3, .5, .1), (400, .001, .1)])
def test_what_cannot_be_promised_lets_nobody_leave(num_images, epsilon, delta):
  answers = predictions_of(np.random.RandomState(0), num_images)
  sequence = np.array([[.99, .99]])  # Hardly anybody leaves.
  assert risk.calibrate(sequence, answers, [epsilon], delta).tolist() == [
      [np.inf, np.inf]]
  assert epsilon <= risk.least_promise(num_images, delta)


def test_least_promise():
  for num_images, delta in ((1, .1), (400, .1), (50000, .01)):
    least = risk.least_promise(num_images, delta)
    log_delta = math.log(delta)
    assert risk.log_binomial_tail(0, num_images, least + 1e-9) <= log_delta
    assert risk.log_binomial_tail(0, num_images, least - 1e-9) > log_delta


def test_without_fitting_images():
  """Of three validation images one calibrates, and none is left to fit."""
  answers = predictions_of(np.random.RandomState(0), 1)
  nobody = CascadePredictions([np.empty(0)] * 3, [np.empty(0, bool)] * 3, None)
  fitted = Fitting(nobody, [50.], 2, COST, answers, .1).fit('risk')
  assert fitted.thresholds.tolist() == [[np.inf, np.inf]]


def test_the_promise_is_kept_where_cst_breaks_it():
  """300 draws of the data; what is true is seen on many more images."""
  epsilon_percents, delta, num_draws = [1., 2., 5.], .1, 300
  rng = np.random.RandomState(1)
  everybody = predictions_of(rng, 100000)
  fitting = Fitting(
      predictions_of(rng, 2000, is_trained_on=True), epsilon_percents, 2, COST)
  sequence = fitting.fit('pareto').thresholds
  plain = everybody.correct[-1].mean()
  true = evaluation.evaluate(everybody, sequence, COST.exit_macs)
  true_loss = {tuple(thresholds): num_lost / 1e5
               for thresholds, num_lost in zip(sequence, true.num_lost)}
  true_loss[np.inf, np.inf] = 0.
  cst = evaluation.evaluate(
      everybody, fitting.fit('cst').thresholds, COST.exit_macs)
  assert (plain - cst.num_correct / 1e5 > [.01, .02, .05]).any(), cst

  losses = []
  for _ in range(num_draws):
    chosen = risk.calibrate(
        sequence, predictions_of(rng, 500), [.01, .02, .05], delta)
    losses.append([true_loss[tuple(thresholds)] for thresholds in chosen])
  num_broken = (np.array(losses) > [.01, .02, .05]).sum(axis=0)
  allowed = num_draws * delta + 3 * math.sqrt(num_draws * delta * (1 - delta))
  assert (num_broken <= allowed).all(), num_broken
  # The promise is not kept by letting nobody leave.
  assert np.mean(np.array(losses) > 0, axis=0)[-1] > .9
