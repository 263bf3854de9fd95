"""How good are the confidences? Do they tell right answers from wrong ones?

Everything here is for one classifier, one split and one metric: `confidence` is
float64 [images], and `correct` bool [images]. Images of equal confidence are
one group; where an order is needed, the result is the mean over all orders
within the groups.
"""

import typing

import numpy as np

from cascade.thresholds import group_starts

# Of the expected calibration error.
NUM_CALIBRATION_BINS = 15


class ExitQuality(typing.NamedTuple):
  """Of one classifier; all but the first are fractions, NaN if not defined."""
  num_images: int
  accuracy: float
  auroc: float        # Of the confidence, for right against wrong.
  aurc: float         # Area under risk against coverage; the lower the better.
  excess_aurc: float  # Above that of the best order.
  ece: float          # Expected calibration error.
  lost_share: float   # Right at an earlier classifier, wrong at this one.


def exit_qualities(predictions):
  """`ExitQuality` of each classifier of `predictions.CascadePredictions`."""
  qualities = []
  earlier_is_right = np.zeros(len(predictions.correct[0]), bool)
  for m, correct in enumerate(predictions.correct):
    order = predictions.rising(m)
    in_order = predictions.confidence[m][order], correct[order]
    risk = aurc(*in_order)
    qualities.append(ExitQuality(
        len(correct), float(correct.mean()), auroc(*in_order), risk,
        risk - aurc(np.arange(len(correct)), np.sort(correct)),
        calibration_error(*in_order),
        float((earlier_is_right & ~correct).mean())))
    earlier_is_right |= correct
  return qualities


def _groups(confidence, correct):
  """Images of each distinct confidence, ascending, and how many are right.

  `confidence` is ascending; int64 [distinct] each.
  """
  starts = group_starts(confidence)
  sizes = np.diff(np.append(starts, len(confidence)))
  return sizes, np.add.reduceat(correct.astype(np.int64), starts)


def auroc(confidence, correct):
  """How often a right answer is more confident than a wrong one.

  Over all pairs of a right and a wrong answer; equal confidences count half.
  NaN if all are right or all are wrong. `confidence` is ascending.
  """
  sizes, right = _groups(confidence, correct)
  wrong = sizes - right
  num_pairs = float(right.sum()) * float(wrong.sum())
  if not num_pairs:
    return float('nan')
  wrong_below = np.cumsum(wrong) - wrong
  return float((right * (wrong_below + wrong / 2.)).sum() / num_pairs)


def aurc(confidence, correct):
  """Area under risk against coverage (Geifman, Uziel & El-Yaniv 2019).

  Risk at a coverage of k images: the share of wrong answers among the k most
  confident ones. This is its mean over k = 1 to all. `confidence` is ascending.

  For example, of three images the second most confident is wrong: the risks
  are 0, 1/2 and 1/3, and their mean is 5/18.
  """
  sizes, right = (counts[::-1] for counts in _groups(confidence, correct))
  wrong = sizes - right
  # Within a group, wrong answers come evenly: that is the mean of all orders.
  wrong_before = np.repeat(np.cumsum(wrong) - wrong, sizes)
  images_before = np.repeat(np.cumsum(sizes) - sizes, sizes)
  k = np.arange(1, len(confidence) + 1)
  wrong_so_far = wrong_before + (k - images_before) * np.repeat(
      wrong / sizes.astype(np.float64), sizes)
  return float((wrong_so_far / k).mean())


def calibration_error(confidence, correct):
  """Expected calibration error (Guo et al. 2017), in 15 bins of equal width.

  The mean over images of |accuracy - mean confidence| of the image's bin. A
  bin contains its upper edge; the last one also holds sums that rounding lifts
  above 1.
  """
  edges = np.linspace(0, 1, NUM_CALIBRATION_BINS + 1)[1:-1]
  bins = np.searchsorted(edges, confidence)
  surplus = np.bincount(bins, weights=confidence - correct,
                        minlength=NUM_CALIBRATION_BINS)
  return float(np.abs(surplus).sum() / len(confidence))
