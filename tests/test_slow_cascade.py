"""tests/slow_cascade.py against examples worked out by hand."""

from fractions import Fraction

import pytest

import slow_cascade as slow

# One classifier, five images. From each confidence up, the accuracy is
# 1/1 at .9, 2/3 at .8 (both images that have it), 3/4 at .6, 3/5 at .5.
CONFIDENCES = [.8, .5, .9, .6, .8]
CORRECT = [False, False, True, True, True]

# Three classifiers, six images, without ties.
OF_THREE = [[.9, .8, .7, .6, .5, .4],
            [.3, .5, .4, .6, .9, .8],
            [.2, .2, .2, .2, .2, .2]]
CORRECT_OF_THREE = [[True, True, False, True, False, False],
                    [True, False, True, True, True, False],
                    [False, False, True, False, True, True]]
EXIT_MACS = [10, 16, 21]


def percent(number):
  return Fraction(number) / 100


def test_a_softmax():
  row = [.0625, .25, .125, .25, .0625, .125, .125]
  # Best first: 1, 3, 2, 5, 6, 0, 4; the fifth is 6.
  assert slow.predicted(row) == 1
  assert slow.best_classes(row, 'top5') == [1, 3, 2, 5, 6]
  assert slow.confidence(row, 'top1') == .25
  assert slow.confidence(row, 'top5') == .875
  assert slow.correct(row, 1, 'top1')
  assert not slow.correct(row, 3, 'top1')
  assert slow.correct(row, 6, 'top5')
  assert not slow.correct(row, 0, 'top5')


@pytest.mark.parametrize('epsilon,threshold', [
    (0, .9), (percent(24), .9),
    # .6 comes within 25 % of the best; that .8 is further off is no matter.
    (percent(25), .6), (percent(39), .6),
    (percent(40), .5), (1, .5)])
def test_cst_threshold(epsilon, threshold):
  assert slow.cst_threshold(CONFIDENCES, CORRECT, epsilon) == threshold


def test_ccst_thresholds():
  # Of class 0: .9 right, .8 wrong. Of class 2: .8 right, .6 right, .5 wrong.
  predicted = [0, 2, 0, 2, 2]
  assert slow.ccst_thresholds(CONFIDENCES, CORRECT, predicted, 4, 0) == [
      .9, slow.INFINITY, .6, slow.INFINITY]
  assert slow.ccst_thresholds(
      CONFIDENCES, CORRECT, predicted, 3, Fraction(1, 3)) == [
          .9, slow.INFINITY, .5]
  assert slow.ccst_thresholds(
      CONFIDENCES, CORRECT, predicted, 3, percent(50)) == [
          .8, slow.INFINITY, .5]


def test_budgeted_thresholds():
  # p = 20: thirds of six. 2 leave at the first, and of the others
  # (.4 .6 .9 .8) 2 at the second.
  assert slow.budgeted_thresholds(OF_THREE, 20) == [.8, .8]
  # p = 39: 400 : 780 : 1521 of 2701: 0 and 1.
  assert slow.budgeted_thresholds(OF_THREE, 39) == [slow.INFINITY, .9]
  # Two classifiers, p = 10: 2/3 and 1/3 of six.
  assert slow.budgeted_thresholds(OF_THREE[:2], 10) == [.6]


def test_exits():
  assert slow.exits(OF_THREE, [.7, .8]) == [0, 0, 0, 2, 1, 1]
  assert slow.exits(OF_THREE, [slow.INFINITY, .5]) == [2, 1, 2, 1, 1, 1]
  assert slow.exits(OF_THREE, [.4, 0]) == [0] * 6
  assert slow.exits(OF_THREE, [slow.INFINITY] * 2) == [2] * 6
  assert slow.exits(OF_THREE[1:], [.6]) == [1, 1, 1, 0, 0, 0]


def test_cascade():
  # 3 leave at the first (2 right), 2 at the second (1 right), 1 at the third
  # (wrong).
  accuracy, macs_per_image, counts = slow.cascade(
      slow.exits(OF_THREE, [.7, .8]), CORRECT_OF_THREE, EXIT_MACS)
  assert accuracy == Fraction(3, 6)
  assert macs_per_image == Fraction(3 * 10 + 2 * 16 + 21, 6)
  assert counts == [3, 2, 1]


@pytest.mark.parametrize('num_correct,n,low,high', [
    # Newcombe, Statistics in Medicine 17 (1998), table I, score method.
    (81, 263, .2553, .3662), (15, 148, .0624, .1605), (0, 20, 0, .1611),
    (1, 29, .0061, .1718)])
def test_wilson_interval(num_correct, n, low, high):
  assert slow.wilson_interval(num_correct, n) == pytest.approx(
      (low, high), abs=5e-5)
  # Right and wrong trade places.
  assert slow.wilson_interval(n - num_correct, n) == pytest.approx(
      (1 - high, 1 - low), abs=5e-5)
