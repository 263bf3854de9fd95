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


def test_alpha():
  assert [slow.alpha(d, CONFIDENCES, CORRECT) for d in (.9, .8, .6, .5)] == [
      1, Fraction(2, 3), Fraction(3, 4), Fraction(3, 5)]
  # Between two confidences: the images above.
  assert slow.alpha(.7, CONFIDENCES, CORRECT) == Fraction(2, 3)


@pytest.mark.parametrize('epsilon,threshold', [
    (0, .9), (percent(24), .9),
    # .6 comes within 25 % of the best; that .8 is further off is no matter.
    (percent(25), .6), (percent(39), .6),
    (percent(40), .5), (1, .5)])
def test_cst_threshold(epsilon, threshold):
  assert slow.cst_threshold(CONFIDENCES, CORRECT, epsilon) == threshold


def test_cst_threshold_where_alpha_is_exactly_epsilon_below_its_maximum():
  confidences = [.9] * 10 + [.5] * 10
  correct = [True] * 9 + [False] + [True] * 8 + [False] * 2
  # 9/10 and 17/20.
  assert slow.cst_threshold(confidences, correct, percent('4.999')) == .9
  assert slow.cst_threshold(confidences, correct, percent(5)) == .5


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


def test_published_rule():
  confidences = [.7, .5, .9, .6, .8]
  # By falling confidence: right, right, wrong, right, wrong; so far 1, 1,
  # 2/3, 3/4, 3/5.
  for epsilon, threshold in ((0, .8), (percent(24), .8), (percent(25), .6),
                             (percent(40), .5)):
    assert slow.published_rule(
        confidences, CORRECT, epsilon) == threshold
  with pytest.raises(AssertionError):
    slow.published_rule(CONFIDENCES, CORRECT, 0)


def test_budgeted_thresholds():
  # p = 20: thirds of six. 2 leave at the first, and of the others
  # (.4 .6 .9 .8) 2 at the second.
  assert slow.budgeted_thresholds(OF_THREE, 20) == [.8, .8]
  # p = 10: 4/7, 2/7, 1/7 of six: 3 and 1.
  assert slow.budgeted_thresholds(OF_THREE, 10) == [.7, .9]
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


def test_exits_per_class():
  predicted = [[0, 1, 0, 1, 0, 1], [1, 1, 1, 1, 0, 0], [0] * 6]
  # First: class 0 from .6, class 1 never. Second: class 0 from .85, class 1
  # from .5.
  assert slow.exits_per_class(
      OF_THREE, predicted, [[.6, slow.INFINITY], [.85, .5]]) == [
          0, 1, 0, 1, 1, 2]


def test_cascade():
  # 3 leave at the first (2 right), 2 at the second (1 right), 1 at the third
  # (wrong).
  accuracy, macs_per_image, counts = slow.cascade(
      slow.exits(OF_THREE, [.7, .8]), CORRECT_OF_THREE, EXIT_MACS)
  assert accuracy == Fraction(3, 6)
  assert macs_per_image == Fraction(3 * 10 + 2 * 16 + 21, 6)
  assert counts == [3, 2, 1]


def test_best_accuracy_within():
  confidences = [[.9, .2, .3], [.1, .8, .7], [0, 0, 0]]
  correct = [[True, False, False], [False, True, False], [False, True, True]]

  def best(budget):
    return slow.best_accuracy_within(confidences, correct, EXIT_MACS, budget)

  # All at the first: 1 right at 30 / 3. Image 1 alone goes on to the second:
  # 2 right at 36 / 3. Image 2 goes on too, and to the third: 3 right at 47 / 3.
  assert best(10) == best(Fraction(35, 3)) == Fraction(1, 3)
  assert best(12) == best(Fraction(46, 3)) == Fraction(2, 3)
  assert best(Fraction(47, 3)) == best(21) == 1


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


def test_difference_interval():
  # Both right 20, plain 12, cascade 2, neither 16: phi is
  # (20 * 16 - 12 * 2 - 25) / sqrt(32 * 18 * 22 * 28) = 271 / 595.67.
  phi = .454950
  plain = slow.wilson_interval(32, 50)
  cascade = slow.wilson_interval(22, 50)
  a, b = .64 - plain[0], cascade[1] - .44
  c, d = plain[1] - .64, .44 - cascade[0]
  assert slow.difference_interval(20, 12, 2, 50) == pytest.approx((
      .2 - (a * a - 2 * phi * a * b + b * b)**.5,
      .2 + (c * c - 2 * phi * c * d + d * d)**.5), abs=1e-6)
  # Plain and cascade trade places.
  low, high = slow.difference_interval(20, 2, 12, 50)
  assert slow.difference_interval(20, 12, 2, 50) == pytest.approx(
      (-high, -low))


@pytest.mark.parametrize('most,n,probability,tail', [
    (0, 2, Fraction(1, 3), Fraction(4, 9)),
    (1, 2, Fraction(1, 3), Fraction(8, 9)), (2, 2, Fraction(1, 3), 1),
    (0, 5, 0, 1), (4, 5, 1, 0), (5, 5, 1, 1), (0, 0, Fraction(1, 2), 1),
    (1, 4, Fraction(1, 2), Fraction(5, 16))])
def test_binomial_tail(most, n, probability, tail):
  assert slow.binomial_tail(most, n, Fraction(probability)) == tail


def test_losses():
  # At the first: images 0 to 2; only image 2 is wrong there and right at last.
  assert slow.losses(
      slow.exits(OF_THREE, [.7, slow.INFINITY]), CORRECT_OF_THREE) == 1
  assert slow.losses([2] * 6, CORRECT_OF_THREE) == 0
  # Images 2, 4 and 5 are right at the last, and wrong at the first.
  assert slow.losses([0] * 6, CORRECT_OF_THREE) == 3


def test_risk_thresholds():
  nobody = [slow.INFINITY] * 2
  all_leave, some_leave = [0, 0], [.7, slow.INFINITY]

  def chosen(sequence, epsilon, delta):
    return slow.risk_thresholds(
        sequence, OF_THREE, CORRECT_OF_THREE, Fraction(epsilon), delta)

  # P(Binomial(6, 1/2) <= 1) is 7/64, and <= 3 it is 42/64.
  assert chosen([some_leave, all_leave], '1/2', Fraction(7, 64)) == some_leave
  assert chosen([some_leave, all_leave], '1/2', Fraction(6, 64)) == nobody
  assert chosen([some_leave, all_leave], '1/2', Fraction(42, 64)) == all_leave
  # What comes after the first to fail is not looked at.
  assert chosen([all_leave, some_leave], '1/2', Fraction(7, 64)) == nobody


def test_oracle():
  # Image 0, 1, 3 leave at the first, 2 and 4 at the second, 5 at the third.
  accuracy, macs, counts = slow.oracle(CORRECT_OF_THREE, EXIT_MACS)
  assert (accuracy, counts) == (1, [3, 2, 1])
  assert macs == Fraction(3 * 10 + 2 * 16 + 21, 6)
  # One that nobody has right costs least.
  assert slow.oracle([[False, True], [False, True]], [10, 16]) == (
      Fraction(1, 2), 10, [2, 0])
