"""cascade/quality.py against slow counts."""

from fractions import Fraction
import itertools

import numpy as np
import pytest

from cascade import quality
from cascade.predictions import CascadePredictions


def random_answers(num_images, kind):
  rng = np.random.RandomState([num_images, len(kind), 0])
  confidence = rng.rand(num_images)
  correct = rng.rand(num_images) < confidence
  if kind == 'tied':
    confidence = np.ceil(confidence * 4) / 4
  elif kind == 'equal':
    confidence[:] = .5
  elif kind == 'all right':
    correct[:] = True
  elif kind == 'all wrong':
    correct[:] = False
  elif kind == 'on edges':
    confidence = np.round(confidence * 15) / 15
  order = np.argsort(confidence, kind='mergesort')
  return confidence[order], correct[order]


of_each_kind = pytest.mark.parametrize(
    'kind', ['continuous', 'tied', 'equal', 'all right', 'all wrong',
             'on edges'])


@of_each_kind
def test_auroc_over_all_pairs(kind):
  for num_images in (1, 2, 9, 60):
    confidence, correct = random_answers(num_images, kind)
    pairs = [(a > b) + Fraction(int(a == b), 2) for a, b in itertools.product(
        confidence[correct], confidence[~correct])]
    auroc = quality.auroc(confidence, correct)
    if pairs:
      assert auroc == pytest.approx(float(sum(pairs) / len(pairs)))
    else:
      assert np.isnan(auroc)


@of_each_kind
def test_aurc_over_all_orders(kind):
  for num_images in (1, 2, 6):
    confidence, correct = random_answers(num_images, kind)
    areas = []
    for order in itertools.permutations(range(num_images)):
      if (np.diff(confidence[list(order)]) <= 0).all():
        wrong = np.cumsum(~correct[list(order)])
        areas.append(sum(Fraction(int(wrong[k]), k + 1)
                         for k in range(num_images)) / num_images)
    assert quality.aurc(confidence, correct) == pytest.approx(
        float(sum(areas) / len(areas)))


def test_excess_is_that_above_the_best_order():
  """With two of three right the best risks are 0, 0 and 1/3."""
  answers = CascadePredictions(
      [np.array([.5, .9, .2]), np.array([.2, .1, .3])],
      [np.array([False, True, True]), np.array([True, False, True])],
      [None, None])
  early, late = quality.exit_qualities(answers)
  assert early.excess_aurc == pytest.approx(5 / 18 - 1 / 9)
  assert late.excess_aurc == pytest.approx(0)
  assert (early.num_images, early.accuracy) == (3, pytest.approx(2 / 3))
  # The early one has images 1 and 2 right; of these the late one misses 1.
  assert (early.lost_share, late.lost_share) == (0, pytest.approx(1 / 3))
  assert (early.auroc, late.auroc) == (.5, 1)


@of_each_kind
def test_calibration_error_bin_by_bin(kind):
  for num_images in (1, 2, 9, 60):
    confidence, correct = random_answers(num_images, kind)
    expected = 0.
    edges = np.linspace(0, 1, 16)
    for low, high in zip(edges, edges[1:]):
      inside = (confidence > low) & (confidence <= high)
      if low == 0:
        inside |= confidence == 0
      if inside.any():
        expected += inside.mean() * abs(
            correct[inside].mean() - confidence[inside].mean())
    assert quality.calibration_error(
        confidence, correct) == pytest.approx(expected)
