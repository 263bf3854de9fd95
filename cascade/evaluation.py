"""Judges thresholds: accuracy and cost of the cascade (paper, section 3).

Accuracies are compared with the plain network's, which is that of the last
classifier alone, on the same images. All intervals are 95 % intervals.
"""

import typing

import numpy as np

# Two-sided 95 % quantile of the normal distribution.
_Z = 1.959963984540054

# Figure 5.d: bins of confidence, and bins that alpha is averaged over.
NUM_BINS = 200
NUM_SMOOTHED_BINS = 11


# ---- The cascade ------------------------------------------------------------


class Outcomes(typing.NamedTuple):
  """What S settings of thresholds come to."""
  num_lost: np.ndarray      # int64 [S], images that are a loss.
  exit_counts: np.ndarray   # int64 [S, classifiers], images leaving at each.
  exit_correct: np.ndarray  # The same of images that are right there.


class Oracle(typing.NamedTuple):
  """The bound: on these images no thresholds are more accurate.

  Every image leaves at the first classifier that is right; images that no
  classifier gets right leave at the first.
  """
  accuracy: float     # Both are fractions.
  exit_shares: tuple


class Point(typing.NamedTuple):
  """One setting of one method, judged. Accuracies and shares are fractions."""
  metric: str                # 'top1' or 'top5'.
  method: str                # A key of `thresholds.METHODS`.
  setting: float             # In the unit of the method.
  thresholds: tuple          # Per classifier before the last; NaN if per class.
  test_accuracy: float
  test_accuracy_low: float   # 95 % interval.
  test_accuracy_high: float
  gmacs_per_image: float
  speedup: float             # Over the plain network, in MACs.
  exit_shares: tuple         # Images that leave at each classifier.
  accuracy_drop: float       # Plain network minus cascade, on these images.
  accuracy_drop_low: float   # 95 % interval.
  accuracy_drop_high: float
  gmacs_low: float           # 95 % interval; NaN if there is one image.
  gmacs_high: float
  # With -cost only, as measured for a batch that nobody leaves:
  ms_per_image: typing.Optional[float] = None
  speedup_by_time: typing.Optional[float] = None
  exit_accuracies: tuple = ()  # Of the images that leave there; NaN of none.


# What `-risk_loss` may count as a loss: from `predictions.CascadePredictions`
# to bool [images] per classifier, whether leaving there is one.
LOSSES = {
    # Wrong there, and right in the plain network.
    'wrong': lambda predictions: [
        predictions.correct[-1] & ~correct for correct in predictions.correct],
    # Of another class than the plain network says. Needs no labels.
    'differs': lambda predictions: [
        predicted != predictions.predicted[-1]
        for predicted in predictions.predicted],
}


def evaluate(predictions, thresholds, is_lost=None):
  """Sends every image through the cascade; `Outcomes`.

  Args:
    predictions: `predictions.CascadePredictions`.
    thresholds: float64 [S, T], or [S, T, classes] by predicted class.
    is_lost: what one of `LOSSES` gives; by default 'wrong'.
  """
  num_classifiers = len(predictions.correct)
  is_lost = is_lost or LOSSES['wrong'](predictions)
  num_lost = np.zeros(len(thresholds), np.int64)
  exit_counts, exit_correct = np.zeros(
      (2, len(thresholds), num_classifiers), np.int64)
  for setting, of_setting in enumerate(thresholds):
    remains = np.ones(len(predictions.correct[0]), bool)
    for m in range(num_classifiers):
      leaves = remains
      if m < num_classifiers - 1:
        threshold = of_setting[m]
        if np.ndim(threshold):
          threshold = threshold[predictions.predicted[m]]  # [images]
        leaves = remains & (predictions.confidence[m] >= threshold)
        remains = remains & ~leaves
        num_lost[setting] += np.count_nonzero(leaves & is_lost[m])
      exit_counts[setting, m] = np.count_nonzero(leaves)
      exit_correct[setting, m] = np.count_nonzero(
          leaves & predictions.correct[m])
  return Outcomes(num_lost, exit_counts, exit_correct)


def wilson_interval(num_correct, num_images):
  """95 % interval of a proportion (Wilson 1927): `(low, high)`, fractions."""
  share = num_correct / float(num_images)
  centre = share + _Z**2 / (2 * num_images)
  spread = _Z * np.sqrt(
      share * (1 - share) / num_images + (_Z / (2 * num_images))**2)
  scale = 1 + _Z**2 / num_images
  return (np.maximum((centre - spread) / scale, 0.),
          np.minimum((centre + spread) / scale, 1.))


def difference_interval(num_lost, num_gained, num_correct, num_images):
  """95 % interval of the accuracy drop on the same images.

  Newcombe, "Improved confidence intervals for the difference between binomial
  proportions based on paired data", Statistics in Medicine 17 (1998), method
  10. The Wilson intervals of both accuracies are put together with their
  correlation, so that images on which both agree hardly count.

  For example, of 1000 images both get 700 right, the plain network 30 more
  and the cascade 20 others: the drop is 1 %, from -0.4 to 2.4 %.

  Only the plain network gets `num_lost` images right, only the cascade
  `num_gained`; the cascade gets `num_correct` right in all. Returns
  `(low, high)` of plain minus cascade, fractions.
  """
  both = num_correct - num_gained
  neither = num_images - both - num_lost - num_gained
  plain_share = (both + num_lost) / float(num_images)
  share = num_correct / float(num_images)
  plain_low, plain_high = wilson_interval(both + num_lost, num_images)
  low, high = wilson_interval(num_correct, num_images)
  # The correlation phi; with a correction for continuity where it is positive.
  phi = both * neither - num_lost * num_gained.astype(np.float64)
  phi = np.where(phi > 0, np.maximum(phi - num_images / 2., 0), phi)
  spread = np.sqrt(plain_share * (1 - plain_share) * share * (1 - share))
  phi = np.divide(phi, spread * num_images**2, out=np.zeros_like(phi),
                  where=spread > 0)

  def distance(of_plain, of_cascade):
    return np.sqrt(np.maximum(
        of_plain**2 - 2 * phi * of_plain * of_cascade + of_cascade**2, 0))

  drop = (num_lost - num_gained) / float(num_images)
  return (drop - distance(plain_share - plain_low, high - share),
          drop + distance(plain_high - plain_share, share - low))


def mean_cost_interval(exit_counts, exit_costs):
  """95 % interval of the mean cost per image, from its standard error.

  `exit_counts` are int64 [S, classifiers], and `exit_costs` float
  [classifiers]. Returns `(low, high)`: float64 [S], NaN if there is one image.
  """
  num_images = exit_counts.sum(axis=1).astype(np.float64)
  mean = exit_counts.dot(exit_costs) / num_images
  squares = (exit_counts * (exit_costs - mean[:, np.newaxis])**2).sum(axis=1)
  with np.errstate(invalid='ignore'):  # 0 / 0.
    spread = _Z * np.sqrt(squares / (num_images - 1) / num_images)
  return mean - spread, mean + spread


def points(metric, method, fitted, predictions, cost):
  """Judges the thresholds of one method; a list of `Point`, one per setting.

  `fitted` is `thresholds.Fitted`, `predictions` are the
  `predictions.CascadePredictions` of the judging split, and `cost` is
  `macs.NetworkCost`.
  """
  num_lost, exit_counts, exit_correct = evaluate(
      predictions, fitted.thresholds)
  num_images = float(len(predictions.correct[0]))
  num_correct = exit_correct.sum(axis=1)
  num_gained = num_correct + num_lost - np.count_nonzero(
      predictions.correct[-1])

  def per_image(exit_costs):
    return exit_counts.dot(np.array(exit_costs, np.int64)) / num_images

  thresholds = fitted.thresholds
  if thresholds.ndim > 2:  # Per class.
    thresholds = np.full(thresholds.shape[:2], np.nan)
  columns = {
      'setting': fitted.settings,
      'thresholds': thresholds,
      'test_accuracy': num_correct / num_images,
      'gmacs_per_image': per_image(cost.exit_macs) / 1e9,
      'speedup': cost.plain_macs / per_image(cost.exit_macs),
      'exit_shares': exit_counts / num_images,
      'accuracy_drop': (num_lost - num_gained) / num_images}
  for name, interval in (
      ('test_accuracy', wilson_interval(num_correct, num_images)),
      ('accuracy_drop', difference_interval(
          num_lost, num_gained, num_correct, num_images)),
      ('gmacs', mean_cost_interval(
          exit_counts, np.array(cost.exit_macs) / 1e9))):
    columns[f'{name}_low'], columns[f'{name}_high'] = interval
  with np.errstate(invalid='ignore'):  # 0 / 0.
    columns['exit_accuracies'] = exit_correct / exit_counts.astype(float)
  if cost.time:
    nanoseconds = per_image(cost.time.exit_nanoseconds)
    columns['ms_per_image'] = nanoseconds / 1e6
    columns['speedup_by_time'] = cost.time.plain_nanoseconds / nanoseconds
  rows = zip(*(np.asarray(column, float).tolist()
               for column in columns.values()))
  return [Point(metric, method, **{
      name: tuple(value) if isinstance(value, list) else value
      for name, value in zip(columns, row)}) for row in rows]


def oracle(predictions):
  """`Oracle` of `predictions.CascadePredictions`."""
  correct = np.array(predictions.correct)  # [classifiers, images]
  exits = correct.argmax(axis=0)  # 0 where none is right.
  counts = np.bincount(exits, minlength=len(correct))
  return Oracle(float(correct.any(axis=0).mean()),
                tuple((counts / float(len(exits))).tolist()))


def area_under_curve(method_points, classifier_accuracies, cost):
  """Mean accuracy over cost, from the first classifier's to the last's.

  This is the area under the line through a method's points in the
  accuracy-MACs plane, divided by its width. Both ends belong to every method:
  all images leave at the first classifier, or at the last. Their accuracies
  are `classifier_accuracies`, fractions.
  """
  ends = [(cost.exit_macs[m] / 1e9, classifier_accuracies[m]) for m in (0, -1)]
  line = sorted(ends + [(point.gmacs_per_image, point.test_accuracy)
                        for point in method_points])
  gmacs, accuracies = np.array(line).T
  trapezoid = np.trapezoid if hasattr(np, 'trapezoid') else np.trapz
  return float(trapezoid(accuracies, gmacs)) / (ends[1][0] - ends[0][0])


# ---- Softmax as a confidence measure: figure 5.d ----------------------------


class ConfidenceCurve(typing.NamedTuple):
  """Of one classifier, on one split for one metric; each [NUM_BINS].

  What is not defined, such as the accuracy of no images, is NaN.
  """
  num_images: np.ndarray       # int64, images with a confidence in the bin.
  share: np.ndarray            # float64, the same as a fraction of all images.
  accuracy_in_bin: np.ndarray  # float64, a fraction.
  alpha: np.ndarray            # float64, accuracy from the bin's lower edge up.
  alpha_smoothed: np.ndarray   # float64, its moving average.


def bin_edges():
  """Edges of the bins, ascending from 0 to 1; float64 [NUM_BINS + 1].

  A bin contains its lower edge. The last also contains 1, and sums of rounded
  softmaxes above 1.
  """
  return np.arange(NUM_BINS + 1) / float(NUM_BINS)


def confidence_curve(confidence, correct):
  """`ConfidenceCurve` of confidence float, and correct bool, both [images]."""
  # Looked up among the edges: multiplied by 200, some confidences that equal an
  # edge would fall below it.
  bins = np.searchsorted(bin_edges()[:-1], confidence, side='right') - 1
  num_images = np.bincount(bins, minlength=NUM_BINS)
  num_correct = np.bincount(bins[correct], minlength=NUM_BINS)
  alpha = _quotient(*(np.cumsum(counts[::-1])[::-1]
                      for counts in (num_correct, num_images)))
  return ConfidenceCurve(
      num_images,
      _quotient(num_images, np.full(NUM_BINS, len(confidence))),
      _quotient(num_correct, num_images), alpha, _smoothed(alpha))


def _quotient(numerator, denominator):
  """Quotients of whole numbers, NaN if the denominator is 0."""
  return np.divide(numerator, denominator, where=denominator > 0,
                   out=np.full(len(numerator), np.nan))


def _smoothed(alpha):
  """The mean of each value and its neighbours, fewer of them at the ends.

  Alpha ends at the largest confidence and is NaN from there on, as is this.
  """
  filled = ~np.isnan(alpha)
  window = np.ones(NUM_SMOOTHED_BINS)
  sums = np.convolve(np.where(filled, alpha, 0), window, mode='same')
  counts = np.convolve(filled, window, mode='same')
  return _quotient(np.where(filled, sums, np.nan), counts)
