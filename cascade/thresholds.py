"""Confidence thresholds from one split, by five methods.

An image leaves at the first classifier m with confidence >= threshold m; the
last classifier accepts everything. With S settings of a method and T = all
classifiers but the last, thresholds are float64 [S, T], those per predicted
class [S, T, classes]. At a threshold of infinity nobody leaves.

`cascade.pareto` has the fifth method.
"""

import numpy as np

# Accuracies are quotients of whole numbers, rounded. Two that are equal in
# exact arithmetic, such as 9/10 - 5 % and 17/20, may differ by this much.
_ROUNDING = 4e-16

# Values of the one threshold that all classifiers share.
NUM_COMMON_THRESHOLDS = 1000

# Budgets of budgeted batch classification, q = p / 20 (Huang et al. 2018).
BUDGET_STEPS = range(1, 40)
BUDGET_STEPS_PER_UNIT = 20


def alpha_curve(confidence, correct):
  """alpha(d): accuracy over the images whose confidence is at least d.

  Paper, section 3. Images of equal confidence stand or fall together.

  Args:
    confidence: float [images], at least one, ascending.
    correct: bool [images].

  Returns:
    `(thresholds, alpha)`: the distinct confidences, ascending, and alpha at
    each; float64 [distinct].
  """
  is_first = np.ones(len(confidence), bool)
  is_first[1:] = confidence[1:] != confidence[:-1]
  starts = np.flatnonzero(is_first)  # [distinct]
  num_images = len(confidence) - starts
  num_correct = np.cumsum(correct[::-1])[::-1][starts]
  return confidence[starts], num_correct / num_images.astype(np.float64)


def _smallest_thresholds(thresholds, alpha, epsilon_fractions):
  """The smallest d with alpha(d) >= max alpha - epsilon, for each epsilon."""
  # The first alpha to reach a value is the first at which the maximum of all
  # up to it does, and these maxima ascend.
  maxima = np.maximum.accumulate(alpha)
  wanted = maxima[-1] - np.asarray(epsilon_fractions) - _ROUNDING
  return thresholds[np.searchsorted(maxima, wanted)]


def cst(answers, epsilon_fractions):
  """The paper's classifier-specific thresholds (section 3).

  All settings come from one sort per classifier.

  Args:
    answers: `answers.Answers` of the fitting split.
    epsilon_fractions: [E], the accuracy that may be given up, as fractions.

  Returns:
    float64 [E, T].
  """
  thresholds = []
  for m in range(len(answers.confidence) - 1):
    order = answers.rising(m)
    thresholds.append(_smallest_thresholds(
        *alpha_curve(answers.confidence[m][order], answers.correct[m][order]),
        epsilon_fractions=epsilon_fractions))
  return np.stack(thresholds, axis=1)


def ccst(answers, epsilon_fractions, num_classes):
  """Thresholds per classifier and predicted class, by the same rule.

  Of a class that a classifier never predicts on the fitting split nothing is
  known, and its threshold is infinite: such an image goes on.

  Args:
    answers: `answers.Answers` of the fitting split.
    epsilon_fractions: [E], as fractions.
    num_classes: outputs of each classifier.

  Returns:
    float64 [E, T, classes].
  """
  num_thresholds = len(answers.confidence) - 1
  thresholds = np.full(
      (len(epsilon_fractions), num_thresholds, num_classes), np.inf)
  for m in range(num_thresholds):
    # A stable sort: by class, and within a class by confidence. That of 16-bit
    # numbers is the fastest by far.
    order = answers.rising(m)
    predicted = answers.predicted[m][order]
    if num_classes <= 1 << 16:
      predicted = predicted.astype(np.uint16)
    order = order[np.argsort(predicted, kind='mergesort')]
    confidence, correct = answers.confidence[m][order], answers.correct[m][order]
    stops = np.cumsum(np.bincount(predicted, minlength=num_classes))
    start = 0
    for predicted_class, stop in enumerate(stops):
      if stop > start:
        thresholds[:, m, predicted_class] = _smallest_thresholds(
            *alpha_curve(confidence[start:stop], correct[start:stop]),
            epsilon_fractions=epsilon_fractions)
      start = stop
  return thresholds


def common(num_classifiers):
  """One threshold for all classifiers, evenly from 0 to 1; float64 [1000, T]."""
  values = np.linspace(0, 1, NUM_COMMON_THRESHOLDS)
  return np.repeat(values[:, np.newaxis], num_classifiers - 1, axis=1)


def budget_ratios():
  """q of each setting of `budgeted`; float64 [39]."""
  return np.array(BUDGET_STEPS) / float(BUDGET_STEPS_PER_UNIT)


def budgeted(answers):
  """Budgeted batch classification (MSDNet, Huang et al. 2018, section 4.2).

  For q = p / 20 the shares of images that leave at classifier m = 1, 2, ...
  are proportional to q^m. The threshold is the confidence of the last of those
  who leave, n times the share rounded down, of the most confident images that
  have not yet left. Where images of equal confidence have left with them and
  fewer remain, all that remain leave.

  Args:
    answers: `answers.Answers` of the fitting split.

  Returns:
    float64 [39, T], in order of p = 1 to 39.
  """
  num_classifiers = len(answers.confidence)
  num_images = len(answers.confidence[0])
  thresholds = np.full((len(BUDGET_STEPS), num_classifiers - 1), np.inf)
  for m in range(num_classifiers - 1):
    order = answers.rising(m)[::-1]
    # Those of whom classifier m is most confident first.
    confidence = [answers.confidence[k][order] for k in range(m + 1)]
    for setting, p in enumerate(BUDGET_STEPS):
      num_to_leave = _num_to_leave(p, m, num_classifiers, num_images)
      remains = np.ones(num_images, bool)
      for earlier in range(m):
        remains &= confidence[earlier] < thresholds[setting, earlier]
      remaining = np.flatnonzero(remains)
      if num_to_leave and len(remaining):
        last = remaining[min(num_to_leave, len(remaining)) - 1]
        thresholds[setting, m] = confidence[m][last]
  return thresholds


def _num_to_leave(p, m, num_classifiers, num_images):
  """floor(n * share) in whole numbers: q^m = p^m / 20^m."""
  weights = [p**i * BUDGET_STEPS_PER_UNIT**(num_classifiers - i)
             for i in range(1, num_classifiers + 1)]
  return num_images * weights[m] // sum(weights)
