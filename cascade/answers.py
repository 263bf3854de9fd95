"""What the classifiers of a cascade answer: confident, and right?

Confidence of a classifier on an image (paper, section 3): its largest softmax
in top-1, the sum of its five largest in top-5.
"""

import collections

import numpy as np

from cascade import dumps

METRICS = ('top1', 'top5')
METRIC_TITLES = {'top1': 'top-1', 'top5': 'top-5'}

# Of one classifier on one split, both metrics: `confidence` and `correct` are
# dicts from metric to [images]; `unfilled`, bool [images], marks the rows that
# were never filled. `confidence` is None where only classes were read.
ClassifierAnswers = collections.namedtuple(
    'ClassifierAnswers', 'confidence correct predicted unfilled')


def classifier_answers(top5_classes, top5_probabilities, labels):
  """Holds one classifier's five best classes against the labels.

  Rows that were never filled count as the published script counted them: class
  0 with confidence 0. It took their five zeros for class 0 once, so that they
  are right in top-5 only where they are in top-1.

  Args:
    top5_classes: int [images, 1 to 5], best first.
    top5_probabilities: float32 of the same shape, or None.
    labels: int [images].

  Returns:
    `ClassifierAnswers`.
  """
  if top5_probabilities is None:
    unfilled = dumps.unfilled_top5(top5_classes)
    confidence = None
  else:
    unfilled = top5_probabilities[:, 0] == 0  # No softmax has no largest.
    confidence = {
        'top1': top5_probabilities[:, 0].astype(np.float64),
        'top5': top5_probabilities.sum(axis=1, dtype=np.float64)}
  predicted = np.where(unfilled, 0, top5_classes[:, 0]).astype(np.int32)
  is_label = top5_classes == labels[:, np.newaxis]  # [images, 1 to 5]
  is_top1 = predicted == labels
  is_top5 = np.where(unfilled, is_top1, is_label.any(axis=1))
  return ClassifierAnswers(
      confidence, {'top1': is_top1, 'top5': is_top5}, predicted, unfilled)


def unfilled_rows(classifiers):
  """Rows that at least one classifier never filled; bool [images]."""
  return np.logical_or.reduce([one.unfilled for one in classifiers])


class Answers(collections.namedtuple(
    'Answers', 'confidence correct predicted')):
  """What all classifiers of a cascade answer, on one split in one metric.

  Attributes:
    confidence: per classifier, float64 [images].
    correct: per classifier, bool [images]: the label is the top-1 class, or
      among the top-5.
    predicted: per classifier, int32 [images]: the top-1 class, in both metrics.
  """

  def rising(self, m):
    """Images by rising confidence of classifier m; int64 [images].

    It is computed once and kept: all methods share it.
    """
    orders = self.__dict__.setdefault('_orders', {})
    if m not in orders:
      orders[m] = np.argsort(self.confidence[m])
    return orders[m]


def cascade_answers(classifiers, metric, rows):
  """Puts the classifiers of a cascade side by side.

  Args:
    classifiers: `ClassifierAnswers` of one split, in the cascade's order.
    metric: 'top1' or 'top5'.
    rows: which images: int [chosen], or a slice, which copies nothing.

  Returns:
    `Answers`.
  """
  return Answers([one.confidence[metric][rows] for one in classifiers],
                 [one.correct[metric][rows] for one in classifiers],
                 [one.predicted[rows] for one in classifiers])
