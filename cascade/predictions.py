"""What the classifiers of a cascade predict: how confident, and right?

The confidence of a classifier on an image (paper, section 3) is its largest
softmax for top-1, and the sum of its five largest for top-5, rounded to float32
once. `Imagenet/cascade_graph.py` does the same: both must decide alike.
"""

import typing

import numpy as np

from cascade import dumps
from cascade.shared import UserError, shared_results

METRICS = tuple(shared_results.CONFIDENCE_TERMS)
METRIC_TITLES = dict(zip(METRICS, ('top-1', 'top-5')))


class ClassifierPredictions(typing.NamedTuple):
  """Of one classifier on one split, for both metrics."""
  # Metric -> float64 [images], each a float32; None if not read.
  confidence: dict
  correct: dict          # Metric -> bool [images].
  predicted: np.ndarray  # int32 [images], the top-1 class.
  unfilled: np.ndarray   # bool [images], rows that were never filled.


def classifier_predictions(top5, labels):
  """Compares a `top5.Top5` with the labels; `ClassifierPredictions`.

  Rows that were never filled count as the published script counted them: class
  0 with confidence 0. Their five zeros are one class, so such a row is right
  for top-5 only if it is right for top-1.
  """
  unfilled, confidence = dumps.unfilled_top5(top5.classes), None
  if top5.probabilities is not None:
    # A softmax's maximum is positive, so 0 means the row was never written.
    unfilled = top5.probabilities[:, 0] == 0
    confidence = {
        metric: top5.probabilities[:, :num_terms].sum(
            axis=1, dtype=np.float64).astype(np.float32).astype(np.float64)
        for metric, num_terms in shared_results.CONFIDENCE_TERMS.items()}
  predicted = np.where(unfilled, 0, top5.classes[:, 0]).astype(np.int32)
  is_label = top5.classes == labels[:, np.newaxis]  # [images, 1 to 5]
  is_top1 = predicted == labels
  is_top5 = np.where(unfilled, is_top1, is_label.any(axis=1))
  return ClassifierPredictions(
      confidence, {'top1': is_top1, 'top5': is_top5}, predicted, unfilled)


def unfilled_rows(classifiers):
  """Rows that at least one classifier never filled; bool [images]."""
  return np.logical_or.reduce([one.unfilled for one in classifiers])


class DumpAccuracy(typing.NamedTuple):
  """Accuracy of one classifier over one split; accuracies are fractions."""
  num_images: int
  num_unfilled: int
  top1: float                # Over the filled rows.
  top5: float
  top1_with_unfilled: float  # Over all rows, counted as published.
  top5_with_unfilled: float

  def top1_and_top5(self, count_unfilled_rows):
    """Both accuracies, with the rows that were never filled or without."""
    if count_unfilled_rows:
      return self.top1_with_unfilled, self.top5_with_unfilled
    return self.top1, self.top5


def dump_accuracy(dump, predictions):
  """`DumpAccuracy` of a `dumps.ClassifierDump` and its predictions."""
  top1, top5 = predictions.correct['top1'], predictions.correct['top5']
  filled = ~predictions.unfilled
  if not filled.any():
    raise UserError(
        f'{dump.name}: none of its {dump.num_images:,} rows was filled '
        f'({dump.path}); dump this classifier again (step 3)')
  return DumpAccuracy(
      dump.num_images, int(predictions.unfilled.sum()),
      float(top1[filled].mean()), float(top5[filled].mean()),
      float(top1.mean()), float(top5.mean()))


class CascadePredictions:
  """What all classifiers of a cascade predict, on one split for one metric.

  Attributes, each a list with an array [images] per classifier:
    confidence: float64, each a float32.
    correct: bool; the label is the top-1 class, or among the top-5.
    predicted: int32, the top-1 class, for both metrics.
  """

  def __init__(self, confidence, correct, predicted):
    self.confidence = confidence
    self.correct = correct
    self.predicted = predicted
    self._rising = {}

  def rising(self, m):
    """Images by rising confidence of classifier m; int64 [images]."""
    if m not in self._rising:
      self._rising[m] = np.argsort(self.confidence[m])
    return self._rising[m]


def cascade_predictions(classifiers, metric, rows):
  """Puts `ClassifierPredictions` of one split side by side.

  `rows` are the images: int [chosen], or a slice, which copies nothing.
  """
  return CascadePredictions(
      [one.confidence[metric][rows] for one in classifiers],
      [one.correct[metric][rows] for one in classifiers],
      [one.predicted[rows] for one in classifiers])
