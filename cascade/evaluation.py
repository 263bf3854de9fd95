"""Accuracy and cost of a cascade at given thresholds (paper, section 3)."""

import collections

import numpy as np

# Of S settings.
#   num_correct: int64 [S], images whose own exit is right.
#   exit_counts: int64 [S, classifiers], images that leave at each.
#   macs_per_image: float64 [S], mean cumulative multiply-accumulates.
Outcomes = collections.namedtuple(
    'Outcomes', 'num_correct exit_counts macs_per_image')

# One row of the results. `setting` is epsilon in percent (cst, ccst), the
# threshold (global), q (budgeted) or GMACs per image (pareto); `thresholds`
# holds one float per classifier but the last, NaN where they depend on the
# class. Accuracies and shares are fractions.
Point = collections.namedtuple(
    'Point', 'metric method setting thresholds test_accuracy test_accuracy_low '
    'test_accuracy_high gmacs_per_image speedup exit_shares')

# Two-sided 95 % quantile of the normal distribution.
_Z = 1.959963984540054


def evaluate(answers, thresholds, exit_macs):
  """Sends every image through the cascade.

  Args:
    answers: `answers.Answers`.
    thresholds: float64 [S, T], or [S, T, classes] by predicted class.
    exit_macs: ints, cumulative MACs of leaving at each classifier.

  Returns:
    `Outcomes`.
  """
  num_classifiers, num_images = len(exit_macs), len(answers.correct[0])
  num_correct = np.zeros(len(thresholds), np.int64)
  exit_counts = np.zeros((len(thresholds), num_classifiers), np.int64)
  for setting, of_setting in enumerate(thresholds):
    remains = np.ones(num_images, bool)
    for m in range(num_classifiers):
      leaves = remains
      if m < num_classifiers - 1:
        threshold = of_setting[m]
        if np.ndim(threshold):
          threshold = threshold[answers.predicted[m]]  # [images]
        leaves = remains & (answers.confidence[m] >= threshold)
        remains = remains & ~leaves
      exit_counts[setting, m] = np.count_nonzero(leaves)
      num_correct[setting] += np.count_nonzero(leaves & answers.correct[m])
  return Outcomes(num_correct, exit_counts,
                  exit_counts.dot(np.array(exit_macs, np.int64)) /
                  float(num_images))


def wilson_interval(num_correct, num_images):
  """95 % interval of a proportion (Wilson 1927).

  Returns:
    `(low, high)`, fractions.
  """
  share = num_correct / float(num_images)
  centre = share + _Z**2 / (2 * num_images)
  spread = _Z * np.sqrt(
      share * (1 - share) / num_images + (_Z / (2 * num_images))**2)
  scale = 1 + _Z**2 / num_images
  return (np.maximum((centre - spread) / scale, 0.),
          np.minimum((centre + spread) / scale, 1.))


def points(metric, method, settings, thresholds, answers, cost):
  """Judges the thresholds of one method.

  Args:
    metric: 'top1' or 'top5'.
    method: such as 'cst'.
    settings: floats [S].
    thresholds: float64 [S, T] or [S, T, classes].
    answers: `answers.Answers` of the judging split.
    cost: `macs.NetworkCost`.

  Returns:
    A list of S `Point`s.
  """
  outcomes = evaluate(answers, thresholds, cost.exit_macs)
  num_images = len(answers.correct[0])
  low, high = wilson_interval(outcomes.num_correct, num_images)
  per_class = (float('nan'),) * (len(answers.correct) - 1)
  return [
      Point(metric, method, float(settings[i]),
            per_class if np.ndim(thresholds[i]) > 1
            else tuple(thresholds[i].tolist()),
            float(outcomes.num_correct[i] / float(num_images)),
            float(low[i]), float(high[i]),
            float(outcomes.macs_per_image[i] / 1e9),
            float(cost.plain_macs / outcomes.macs_per_image[i]),
            tuple((outcomes.exit_counts[i] / float(num_images)).tolist()))
      for i in range(len(settings))]


def area_under_curve(method_points, classifier_accuracies, cost):
  """Mean accuracy over cost, from the first classifier's to the last's.

  The area under the line through a method's points in the accuracy-MACs plane,
  divided by its width. Both ends belong to every method: all images leave at
  the first classifier, or at the last.

  Args:
    method_points: `Point`s of one method and metric.
    classifier_accuracies: fractions, of each classifier on its own, on the
      judging split.
    cost: `macs.NetworkCost`.

  Returns:
    A fraction.
  """
  ends = [(cost.exit_macs[0] / 1e9, classifier_accuracies[0]),
          (cost.exit_macs[-1] / 1e9, classifier_accuracies[-1])]
  line = sorted(ends + [(point.gmacs_per_image, point.test_accuracy)
                        for point in method_points])
  gmacs, accuracies = np.array(line).T
  return float(np.trapezoid(accuracies, gmacs) if hasattr(np, 'trapezoid')
               else np.trapz(accuracies, gmacs)) / (ends[1][0] - ends[0][0])
