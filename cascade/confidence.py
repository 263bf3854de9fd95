"""Softmax as a confidence measure: the data of figure 5.d.

Paper, section "softmax as a confidence measure": if the softmax tells how sure
a classifier is, the classifier is the more accurate the higher the confidence.
"""

import collections

import numpy as np

from cascade import csv_files

# As in figure 5.d: bins of confidence, and bins that alpha is averaged over.
NUM_BINS = 200
NUM_SMOOTHED_BINS = 11

# Of one classifier, on one split in one metric; all of shape [NUM_BINS]. What
# cannot be said, such as the accuracy of no images, is NaN.
#   num_images: int64, images whose confidence falls into the bin.
#   share: float64, the same as a fraction of all images.
#   accuracy_in_bin: float64, a fraction.
#   alpha: float64, accuracy over the images whose confidence is at least the
#     bin's lower edge, a fraction.
#   alpha_smoothed: float64, its moving average.
ConfidenceCurve = collections.namedtuple(
    'ConfidenceCurve',
    'num_images share accuracy_in_bin alpha alpha_smoothed')


def bin_edges():
  """Edges of the bins, ascending from 0 to 1; float64 [NUM_BINS + 1].

  A bin holds its lower edge. The last holds 1 too, and what a sum of rounded
  softmaxes has above it.
  """
  return np.arange(NUM_BINS + 1) / float(NUM_BINS)


def confidence_curve(confidence, correct):
  """Accuracy of a classifier against its confidence.

  Args:
    confidence: float [images], from 0 to 1; see `answers.Answers`.
    correct: bool [images].

  Returns:
    `ConfidenceCurve`.
  """
  # Looked up among the edges: a product with 200 would put some confidences
  # that equal an edge below it.
  bins = np.searchsorted(bin_edges()[:-1], confidence, side='right') - 1
  num_images = np.bincount(bins, minlength=NUM_BINS)
  num_correct = np.bincount(bins[correct], minlength=NUM_BINS)
  alpha = _quotient(_count_from_bin_on(num_correct),
                    _count_from_bin_on(num_images))
  return ConfidenceCurve(
      num_images,
      _quotient(num_images, np.full(NUM_BINS, len(confidence))),
      _quotient(num_correct, num_images), alpha, _smoothed(alpha))


def _count_from_bin_on(counts):
  return np.cumsum(counts[::-1])[::-1]


def _quotient(numerator, denominator):
  """Quotients of whole numbers, NaN where the denominator is 0."""
  return np.divide(numerator, denominator, where=denominator > 0,
                   out=np.full(len(numerator), np.nan))


def _smoothed(alpha):
  """The mean of each value and its neighbours, fewer of them at the ends.

  Alpha ends at the largest confidence and is NaN from there on. So is this.
  """
  filled = ~np.isnan(alpha)
  window = np.ones(NUM_SMOOTHED_BINS)
  sums = np.convolve(np.where(filled, alpha, 0), window, mode='same')
  counts = np.convolve(filled, window, mode='same')
  return _quotient(np.where(filled, sums, np.nan), counts)


def write_csv(path, curves):
  """Writes a row per bin; a NaN becomes an empty field.

  Args:
    path: the file.
    curves: a dict from metric to a dict from classifier to `ConfidenceCurve`.
  """
  edges = bin_edges().tolist()
  csv_files.write_csv(
      path,
      ('metric', 'classifier', 'confidence_low', 'confidence_high') +
      ConfidenceCurve._fields,
      ((metric, classifier) + row
       for metric, of_metric in curves.items()
       for classifier, curve in of_metric.items()
       for row in zip(edges[:-1], edges[1:],
                      *[column.tolist() for column in curve])))
