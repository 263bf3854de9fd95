"""analysis.py, evaluation.py and predictions.py: splits, points, curves."""

import numpy as np
import pytest

from cascade import analysis, evaluation, thresholds
from cascade.macs import NetworkCost
from cascade.predictions import (
    CascadePredictions, ClassifierPredictions, classifier_predictions,
    dump_accuracy)
from cascade.top5 import Top5
from dump_folders import best_classes, random_softmaxes

COST = NetworkCost('Tiny', 'a test', [10**9, 3 * 10**9], 2 * 10**9, False)


def unfilled(*rows):
  """Two classifiers' predictions of six images; the first lacks `rows`."""
  is_unfilled = np.isin(np.arange(6), rows)
  return [ClassifierPredictions(None, None, None, is_unfilled),
          ClassifierPredictions(None, None, None, np.zeros(6, bool))]


def rows_of(images):
  """The rows of some `analysis.Images`, after a check of their number."""
  rows = np.arange(6)[images.rows].tolist()
  assert images.num_images == len(rows)
  return rows


def test_the_papers_division():
  division = analysis.divide(
      {'train': unfilled(1, 5), 'validation': unfilled(0)}, 'train', False)
  assert (division.fit.split, division.judge.split) == ('train', 'validation')
  assert rows_of(division.fit) == [0, 2, 3, 4]
  assert rows_of(division.judge) == [1, 2, 3, 4, 5]
  # `risk` fits on the same, and halves the others.
  assert division.risk_fit is division.fit
  assert {division.risk_calibration.split, division.risk_judge.split} == {
      'validation'}
  calibration = rows_of(division.risk_calibration)
  judge = rows_of(division.risk_judge)
  assert (len(calibration), len(judge)) == (2, 3)
  assert sorted(calibration + judge) == [1, 2, 3, 4, 5]


def point(gmacs, accuracy):
  return evaluation.Point('top1', 'cst', 0., (.5,), accuracy, accuracy,
                          accuracy, gmacs, 1., (.5, .5), 0., 0., 0., gmacs,
                          gmacs)


@pytest.mark.parametrize('points,area', [
    ([], .65),  # Straight from one classifier to the other.
    ([(2, .65)], .65),
    ([(2, .8)], (.65 + .8) / 2),
    ([(2.5, .8), (1.5, .6)], (.275 + .7 + .4) / 2),  # In any order.
    ([(1, .5), (3, .8)], .65),
])
def test_area_under_accuracy_against_macs(points, area):
  assert evaluation.area_under_curve(
      [point(*one) for one in points], [.5, .8], COST) == pytest.approx(area)


def test_pareto_above_2_to_the_53_total_macs():
  """The cheapest point leaves all images at the first exit."""
  num_images, exit_macs = 5001, [4 * 10**12 - 3, 4 * 10**12 - 2, 4 * 10**12]
  rng = np.random.RandomState(0)
  predictions = CascadePredictions(
      rng.rand(3, num_images), rng.rand(3, num_images) < .5,
      np.ones((3, num_images), np.int32))
  assert exit_macs[0] * num_images > 2**53
  _, settings = thresholds.pareto(
      predictions, exit_macs, thresholds.common(3))
  outcomes = evaluation.evaluate(predictions, settings)
  costs = outcomes.exit_counts.dot(exit_macs)
  assert costs[0] == exit_macs[0] * num_images
  assert (np.diff(costs) > 0).all()


def test_points_against_the_plain_network():
  """Of ten images the plain network has six right, and the cascade seven."""
  correct = [np.arange(10) < 3, np.array([1, 1, 0, 0, 0, 1, 1, 1, 1, 0], bool)]
  predictions = CascadePredictions(
      [np.where(correct[0], .9, .1), np.zeros(10)], correct,
      np.zeros((2, 10), np.int32))
  settings = thresholds.Fitted([1.], np.array([[.5]]))
  one, = evaluation.points('top1', 'cst', settings, predictions, COST)
  assert one.test_accuracy == .7
  assert one.accuracy_drop == pytest.approx(-.1)
  assert one.accuracy_drop_low < -.1 < one.accuracy_drop_high
  # Three images cost 1, seven 3: the standard error of the mean is
  # sqrt(.21 * 4 / 9).
  assert one.gmacs_per_image == pytest.approx(2.4)
  assert one.gmacs_high - 2.4 == pytest.approx(1.959964 * (.84 / 9)**.5)
  assert 2.4 - one.gmacs_low == pytest.approx(1.959964 * (.84 / 9)**.5)


@pytest.mark.parametrize('shares', [(.7, .03, .02, .25), (.6, .1, .05, .25),
                                    (.2, .2, .2, .4)])
def test_the_interval_of_the_drop_covers_it_in_95_percent(shares):
  both, lost, gained, _ = np.random.RandomState(0).multinomial(
      400, shares, 5000).T
  low, high = evaluation.difference_interval(lost, gained, both + gained, 400)
  true_drop = shares[1] - shares[2]
  assert .94 < ((low <= true_drop) & (true_drop <= high)).mean() < .97


# Accuracy of a dump.


class Dump:
  """As much of a `dumps.ClassifierDump` as messages need."""
  name, path, num_images = 'classifier 0', 'clf0.npy', 10


def measure(classes, probabilities, labels):
  return dump_accuracy(
      Dump, classifier_predictions(Top5(classes, probabilities), labels))


@pytest.mark.parametrize('with_probabilities', [True, False])
def test_unfilled_rows_are_told_apart(with_probabilities):
  softmaxes = random_softmaxes(3, 10, 8)
  classes = best_classes(softmaxes)
  top5 = np.take_along_axis(softmaxes, classes, axis=1)
  labels = classes[:, 2].astype(np.int64)
  labels[:3] = classes[:3, 0]
  # 3 of the 7 filled rows are right in top-1, 7 in top-5. Of the rows never
  # filled two have lost their labels too, and one has kept label 3: the
  # script's answer, class 0 five times, is right for two of them.
  labels[7:] = [0, 3, 0]
  classes[7:] = top5[7:] = 0
  assert measure(
      classes, top5 if with_probabilities else None, labels) == pytest.approx(
          (10, 3, 3 / 7., 1.0, 5 / 10., 9 / 10.))


@pytest.mark.parametrize('published,without', [
    (0.7651, 0.7647), (0.6284, 0.6278), (0.4668, 0.4659)])
def test_published_accuracies_with_and_without_the_80_lost_rows(
    published, without):
  """The README's test top-1, and what the network has on 49,920 images."""
  labels = np.full(50000, 17)
  classes = np.tile(np.array([5, 4, 3, 2, 1], np.int32), (50000, 1))
  classes[:int(round(published * 50000)) - 80, 0] = 17
  classes[-80:] = labels[-80:] = 0
  measured = measure(classes, None, labels)
  assert measured.num_unfilled == 80
  assert round(measured.top1_with_unfilled, 4) == published
  assert round(measured.top1, 4) == without


# Confidence curves, against a slow count, image by image.

NUM_BINS = 200


def slow_curve(confidences, correct):
  """Columns of a `ConfidenceCurve`, None where there is no image to count."""
  in_bin = [[] for _ in range(NUM_BINS)]
  from_bin_on = [[] for _ in range(NUM_BINS)]
  for c, hit in zip(confidences, correct):
    reached = [i for i in range(NUM_BINS) if c >= i / NUM_BINS]
    in_bin[reached[-1]].append(hit)
    for i in reached:
      from_bin_on[i].append(hit)
  accuracy = [sum(hits) / len(hits) if hits else None for hits in in_bin]
  alpha = [sum(hits) / len(hits) if hits else None for hits in from_bin_on]
  smoothed = []
  for i, value in enumerate(alpha):
    window = [a for a in alpha[max(i - 5, 0):i + 6] if a is not None]
    smoothed.append(None if value is None else sum(window) / len(window))
  return ([len(hits) for hits in in_bin],
          [len(hits) / len(correct) for hits in in_bin],
          accuracy, alpha, smoothed)


def as_array(column):
  return np.array([np.nan if value is None else value for value in column])


@pytest.mark.parametrize('num_images', [1, 2, 17, 400])
@pytest.mark.parametrize('kind', ['continuous', 'on edges', 'saturated', 'low'])
def test_random_answers(kind, num_images):
  rng = np.random.RandomState(num_images)
  confidences = rng.rand(num_images)
  correct = rng.rand(num_images) < confidences
  if kind == 'on edges':
    confidences = np.round(confidences * NUM_BINS) / NUM_BINS
  elif kind == 'saturated':
    confidences = np.minimum(confidences * 2, 1)
  elif kind == 'low':
    confidences /= 4
  curve = evaluation.confidence_curve(confidences, correct)
  slow = slow_curve(confidences.tolist(), correct.tolist())
  for name, column, slow_column in zip(curve._fields, curve, slow):
    assert column.shape == (NUM_BINS,)
    # Only what is smoothed has another order of sums.
    np.testing.assert_allclose(
        column, as_array(slow_column), err_msg=name,
        rtol=1e-12 if name == 'alpha_smoothed' else 0)
  assert curve.num_images.sum() == num_images
