"""The fast numbers of cascade/ against those of tests/slow_cascade.py.

Thresholds and counts must be equal, not close; what the slow one has as a
fraction must be the float nearest to it.
"""

from fractions import Fraction
import itertools

import numpy as np
import pytest

from cascade import evaluation, risk, thresholds
from cascade.predictions import (
    METRICS, CascadePredictions, classifier_predictions)
from cascade.top5 import Top5, top5_of_rows
import slow_cascade as slow

NUM_CLASSES = 6
SIZES = [1, 2, 7, 60]  # images in a data set
KINDS = ['continuous', 'tied', 'equal', 'saturated', 'neighbouring',
         'all right', 'all wrong', 'from softmaxes']
# To each classifier; as large as real ones, so that sums must not lose digits.
EXIT_MACS = [1816683520, 3284142080, 4095430656]

# As a user names them, in percent, in any order and more than once.
EPSILONS_PERCENT = ['5', '0', '0.1', '1.8', '2.5', '100', '20', '10', '12.5',
                    '25', '33.3', '50', '5']
EPSILONS = [Fraction(percent) / 100 for percent in EPSILONS_PERCENT]
EPSILON_FRACTIONS = [float(percent) / 100 for percent in EPSILONS_PERCENT]

of_2_and_3_classifiers = pytest.mark.parametrize('num_classifiers', [2, 3])


@pytest.fixture(params=itertools.product(KINDS, (2, 3), SIZES), ids=str)
def answers(request):
  """Of each kind, 2 and 3 classifiers, and any number of images."""
  return random_answers(*request.param)


def answers_of_softmaxes(softmaxes, labels, metric):
  """`CascadePredictions` of softmax rows per classifier, the slow way."""
  return CascadePredictions(
      np.array([[slow.confidence(row, metric) for row in rows]
                for rows in softmaxes]),
      np.array([[slow.correct(row, label, metric)
                 for row, label in zip(rows, labels)] for rows in softmaxes]),
      np.array([[slow.predicted(row) for row in rows] for rows in softmaxes],
               np.int32))


def random_softmaxes(rng, num_classifiers, num_images):
  """float32 [classifiers, images, classes], many of them alike."""
  logits = 9. * rng.randint(0, 3, (num_classifiers, num_images, NUM_CLASSES))
  exponentials = np.exp(logits)
  return (exponentials / exponentials.sum(axis=2, keepdims=True)).astype(
      np.float32)


def random_answers(kind, num_classifiers, num_images, seed=0):
  """`CascadePredictions` of a kind, mostly right on confident images."""
  rng = np.random.RandomState(
      [KINDS.index(kind), num_classifiers, num_images, seed])
  shape = num_classifiers, num_images
  if kind == 'from softmaxes':
    softmaxes = random_softmaxes(rng, *shape)
    labels = rng.randint(0, NUM_CLASSES, num_images)
    return answers_of_softmaxes(softmaxes.tolist(), labels, METRICS[seed % 2])
  confidence = rng.rand(*shape)
  correct = rng.rand(*shape) < confidence
  if kind == 'tied':
    confidence = np.ceil(confidence * 4) / 8
  elif kind == 'equal':
    confidence = np.full(shape, 0.7)
  elif kind == 'saturated':
    confidence = np.minimum(confidence * 2, 1)
  elif kind == 'neighbouring':
    # As float64 has them, around 1: sums of five softmaxes may be above.
    confidence = 1 + np.floor(confidence * 9 - 5) * 2 ** -52
  elif kind in ('all right', 'all wrong'):
    confidence = np.ceil(confidence * 30) / 32
    correct = np.full(shape, kind == 'all right')
  # Two classes are never predicted.
  predicted = rng.randint(1, NUM_CLASSES - 1, shape).astype(np.int32)
  return CascadePredictions(confidence, correct, predicted)


def as_lists(answers):
  return [array.tolist() for array in (
      answers.confidence, answers.correct, answers.predicted)]


def slow_cst(answers, epsilons):
  """A list by epsilon of lists by classifier; the last one has none."""
  confidence, correct, _ = as_lists(answers)
  return [[slow.cst_threshold(confidence[m], correct[m], epsilon)
           for m in range(len(confidence) - 1)] for epsilon in epsilons]


def slow_ccst(answers, epsilons, num_classes):
  confidence, correct, predicted = as_lists(answers)
  return [[slow.ccst_thresholds(confidence[m], correct[m], predicted[m],
                                num_classes, epsilon)
           for m in range(len(confidence) - 1)] for epsilon in epsilons]


def slow_cascades(answers, settings):
  """`slow.cascade` under each of the settings."""
  confidence, correct, predicted = as_lists(answers)
  cascades = []
  for setting in settings.tolist():
    if settings.ndim == 3:
      leaves_at = slow.exits_per_class(confidence, predicted, setting)
    else:
      leaves_at = slow.exits(confidence, setting)
    cascades.append(slow.cascade(leaves_at, correct,
                                 EXIT_MACS[:len(confidence)]))
  return cascades


def test_cst(answers):
  assert thresholds.cst(answers, EPSILON_FRACTIONS).tolist() == slow_cst(
      answers, EPSILONS)


def ties_at_epsilon():
  """Two alphas that are an epsilon of whole tenths of a percent apart.

  Yields:
    (hits, images) from the higher and from the lower of two confidences up,
    and the epsilon in tenths of a percent.
  """
  for n1, n2 in [(10, 20), (10, 50), (12, 15), (6, 8), (7, 40), (20, 25)]:
    for h1, more_hits in itertools.product(range(1, n1 + 1),
                                           range(n2 - n1 + 1)):
      h2 = h1 + more_hits
      tenths = 1000 * (Fraction(h1, n1) - Fraction(h2, n2))
      if tenths > 0 and tenths.denominator == 1:
        yield (h1, n1), (h2, n2), int(tenths)


def test_cst_and_ccst_where_alpha_is_exactly_epsilon_below_its_maximum():
  num_ties = 0
  for (h1, n1), (h2, n2), tenths in ties_at_epsilon():
    # First exit: the tie. Second: the same in another order of images.
    confidence = np.array([.9] * n1 + [.3] * (n2 - n1))
    correct = np.array([True] * h1 + [False] * (n1 - h1)
                       + [True] * (h2 - h1) + [False] * (n2 - n1 - h2 + h1))
    answers = CascadePredictions(
        np.array([confidence, confidence[::-1], confidence]),
        np.array([correct, correct[::-1], correct]),
        np.ones((3, n2), np.int32))
    # At the epsilon, as a user's percent and as the nearest fraction, and
    # just short of it.
    epsilon = Fraction(tenths, 1000)
    short = epsilon - Fraction(1, 10 ** 7)
    epsilon_fractions = [tenths / 10. / 100, float(epsilon), float(short)]
    expected = [[.3, .3], [.3, .3], [.9, .9]]
    assert slow_cst(answers, [epsilon, epsilon, short]) == expected
    assert thresholds.cst(answers, epsilon_fractions).tolist() == expected, (
        h1, n1, h2, n2)
    per_class = thresholds.ccst(answers, epsilon_fractions, 2)
    assert per_class[:, :, 1].tolist() == expected, (h1, n1, h2, n2)
    assert (per_class[:, :, 0] == np.inf).all()
    num_ties += 1
  assert num_ties > 100


@of_2_and_3_classifiers
@pytest.mark.parametrize('kind', ['continuous', 'neighbouring'])
def test_cst_is_the_published_rule_where_no_confidences_are_equal(
    kind, num_classifiers):
  for num_images, seed in itertools.product(SIZES, range(2)):
    answers = random_answers(kind, num_classifiers, num_images, seed)
    if kind == 'neighbouring':
      steps = np.argsort(np.argsort(answers.confidence, kind='mergesort'))
      answers.confidence = 1 - steps * 2 ** -53
    confidence, correct, _ = as_lists(answers)
    expected = [[slow.published_rule(confidence[m], correct[m], epsilon)
                 for m in range(num_classifiers - 1)] for epsilon in EPSILONS]
    assert slow_cst(answers, EPSILONS) == expected
    assert thresholds.cst(answers, EPSILON_FRACTIONS).tolist() == expected


def test_ccst(answers):
  for num_classes in (NUM_CLASSES, 11):
    fast = thresholds.ccst(answers, EPSILON_FRACTIONS, num_classes)
    assert fast.tolist() == slow_ccst(answers, EPSILONS, num_classes)


def test_budgeted(answers):
  assert thresholds.budgeted(answers).tolist() == [
      slow.budgeted_thresholds(answers.confidence.tolist(), p)
      for p in range(1, 40)]


def test_evaluate_of_any_thresholds(answers):
  # At a confidence, just above and just below it, and beyond all of them.
  choices = []
  for confidence in answers.confidence[:-1]:
    middle = np.sort(confidence)[len(confidence) // 2]
    choices.append([-np.inf, 0., confidence.min(), middle,
                    np.nextafter(middle, 0), np.nextafter(middle, 2),
                    confidence.max(), 1., 2., np.inf])
  settings = np.array(list(itertools.product(*choices)))
  num_classifiers, num_images = answers.confidence.shape
  outcomes = evaluation.evaluate(answers, settings)
  accuracies, macs_per_image, counts = zip(*slow_cascades(answers, settings))
  assert outcomes.exit_correct.sum(axis=1).tolist() == [
      accuracy * num_images for accuracy in accuracies]
  assert outcomes.exit_counts.tolist() == list(counts)
  assert (outcomes.exit_correct <= outcomes.exit_counts).all()
  macs = outcomes.exit_counts.dot(EXIT_MACS[:num_classifiers])
  assert (macs / num_images).tolist() == [
      float(macs) for macs in macs_per_image]


@of_2_and_3_classifiers
@pytest.mark.parametrize('kind', KINDS)
def test_pareto_is_the_best_of_all_thresholds_on_few_images(
    kind, num_classifiers):
  exit_macs = EXIT_MACS[:num_classifiers]
  for num_images, seed in itertools.product([1, 2, 5, 9], range(2)):
    answers = random_answers(kind, num_classifiers, num_images, seed)
    confidence, correct, _ = as_lists(answers)
    gmacs_per_image, settings = thresholds.pareto(
        answers, exit_macs, thresholds.cst(answers, EPSILON_FRACTIONS))
    accuracies, macs_per_image, _ = zip(*slow_cascades(answers, settings))
    assert gmacs_per_image.tolist() == pytest.approx(
        [float(macs) / 1e9 for macs in macs_per_image], rel=1e-12)
    assert list(macs_per_image) == sorted(set(macs_per_image))
    assert list(accuracies) == [
        slow.best_accuracy_within(confidence, correct, exit_macs, macs)
        for macs in macs_per_image]
    # The best at any cost, and at the cost of leaving at the first exit.
    assert accuracies[-1] == slow.best_accuracy_within(
        confidence, correct, exit_macs, exit_macs[-1])
    assert macs_per_image[0] == exit_macs[0]


def test_wilson_interval():
  for n in (1, 2, 7, 60, 50000):
    for num_correct in sorted({0, 1, n // 3, n - 1, n}):
      assert evaluation.wilson_interval(num_correct, n) == pytest.approx(
          slow.wilson_interval(num_correct, n), rel=1e-12, abs=1e-15)


def test_difference_interval():
  for n in (1, 2, 7, 60, 50000):
    for both, lost, gained in itertools.product(
        sorted({0, 1, n // 5, n // 2, n}), sorted({0, 1, n // 9, n}),
        sorted({0, 1, n // 11})):
      if both + lost + gained <= n:
        assert evaluation.difference_interval(
            np.array(lost), np.array(gained), np.array(both + gained),
            n) == pytest.approx(
                slow.difference_interval(both, lost, gained, n), rel=1e-9,
                abs=1e-12), (both, lost, gained, n)


def test_losses_and_oracle(answers):
  confidence, correct, _ = as_lists(answers)
  settings = thresholds.cst(answers, EPSILON_FRACTIONS)
  outcomes = evaluation.evaluate(answers, settings)
  assert outcomes.num_lost.tolist() == [
      slow.losses(slow.exits(confidence, of_setting), correct)
      for of_setting in settings]
  accuracy, _, counts = slow.oracle(correct, EXIT_MACS)
  assert evaluation.oracle(answers) == (float(accuracy), tuple(
      count / len(confidence[0]) for count in counts))


def test_risk(answers):
  """Never a pair that the test did not pass, nor one behind such a pair."""
  sorted_epsilons = sorted(EPSILONS)
  confidence, correct, predicted = as_lists(answers)
  for delta, loss in itertools.product(
      (Fraction(1, 10), Fraction(9, 20), Fraction(1, 1000)), evaluation.LOSSES):

    def count_lost(leaves_at):
      if loss == 'wrong':
        return slow.losses(leaves_at, correct)
      return slow.differences(leaves_at, predicted)

    sequence = thresholds.cst(answers, EPSILON_FRACTIONS)
    chosen = risk.calibrate(
        sequence, answers, [float(epsilon) for epsilon in sorted_epsilons],
        float(delta), loss)
    assert chosen.tolist() == [
        slow.risk_thresholds(sequence[::-1].tolist(), confidence, count_lost,
                             epsilon, delta) for epsilon in sorted_epsilons]


def test_answers_from_softmaxes():
  rng = np.random.RandomState(0)
  rows = random_softmaxes(rng, 1, 300)[0]
  rows[:100] = rng.dirichlet([.05] * NUM_CLASSES, 100)
  labels = rng.randint(0, NUM_CLASSES, len(rows))
  fast = classifier_predictions(Top5(*top5_of_rows(rows)), labels)
  for metric in METRICS:
    expected = answers_of_softmaxes([rows.tolist()], labels, metric)
    assert fast.correct[metric].tolist() == expected.correct[0].tolist()
    assert fast.predicted.tolist() == expected.predicted[0].tolist()
    assert fast.confidence[metric].tolist() == expected.confidence[0].tolist()


# One value, two, a few, and as many as there are numbers.
SOFTMAX_VALUES = {
    'zero': [0.], 'uniform': [.125], 'zero and one': [0., 1.],
    'few': [0., .125, .25, .5],
    'denormal': [0., 2. ** -149, 2. ** -148, 2. ** -127, 2. ** -126],
    'neighbouring': [.5, .5 + 2. ** -24, .5 + 2. ** -23, .5 - 2. ** -25],
    'continuous': None}


@pytest.mark.parametrize('num_classes',
                         [1, 4, 6, 13, 77, 1001])
def test_top5_of_rows(num_classes):
  rng = np.random.RandomState(num_classes)
  num_rows = 40 if num_classes < 100 else 8
  for name, values in sorted(SOFTMAX_VALUES.items()):
    shape = num_rows, num_classes
    rows = rng.rand(*shape) if values is None else rng.choice(values, shape)
    assert_top5_as_slow(rows.astype(np.float32), name)


def assert_top5_as_slow(rows, name):
  classes, probabilities = top5_of_rows(rows)
  expected = [slow.best_classes(row, 'top5') for row in rows.tolist()]
  assert classes.dtype == np.int32
  assert probabilities.dtype == np.float32
  assert classes.tolist() == expected, name
  assert probabilities.tolist() == [
      [row[c] for c in best] for row, best in zip(rows.tolist(), expected)]
