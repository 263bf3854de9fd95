"""Confidence thresholds fitted on one split: the paper's method and others.

An image leaves at the first classifier m whose confidence is at least threshold
m; the last classifier accepts everything. For S settings of a method and T
classifiers before the last, thresholds are float64 [S, T]; those per predicted
class are [S, T, classes]. At a threshold of infinity no image leaves. Each is a
float32, as confidences are, so that the network decides as the analysis did.

Throughout, `predictions` are the `predictions.CascadePredictions` of the
fitting split, `epsilon_fractions` [E] is the accuracy that may be given up, and
`exit_costs` are the cumulative costs of leaving at each classifier, as whole
numbers of MACs or, with -cost, of nanoseconds.

To add a method, write its function and add a row to `METHODS`, and its line to
the figures (`figures.METHOD_LINES`).
"""

import typing

import numpy as np

from cascade import risk

# Accuracies are rounded quotients of whole numbers. Two that are equal in exact
# arithmetic, such as 9/10 - 5 % and 17/20, may differ by this much.
_ROUNDING = 4e-16

# Values of the threshold that all classifiers share.
COMMON_SETTINGS = np.linspace(0, 1, 1000)

# Budgets of budgeted batch classification, q = p / 20 (Huang et al. 2018).
BUDGET_STEPS = range(1, 40)
BUDGET_STEPS_PER_UNIT = 20

# `pareto`: thresholds per classifier (quantiles of its confidences) and costs
# for which thresholds are given, in addition to those of the other methods.
_NUM_QUANTILES = 300
_NUM_COSTS = 101
# More have too many combinations of thresholds.
MOST_SEARCHED_CLASSIFIERS = 3


# ---- The paper's thresholds -------------------------------------------------


def group_starts(confidence):
  """Where each distinct value of float [images], ascending, begins."""
  return np.flatnonzero(np.append(True, confidence[1:] != confidence[:-1]))


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
  starts = group_starts(confidence)
  num_images = len(confidence) - starts
  num_correct = np.cumsum(correct[::-1])[::-1][starts]
  return confidence[starts], num_correct / num_images.astype(np.float64)


def _smallest_thresholds(confidence, correct, epsilon_fractions):
  """The smallest d with alpha(d) >= max alpha - epsilon, for each epsilon.

  For example, alpha is 3/5 at d = .5, 3/4 at .6, 2/3 at .8 and 1 at .9. An
  epsilon of 25 % gives .6, although .8 is further off than that; 24 % gives .9.
  """
  thresholds, alpha = alpha_curve(confidence, correct)
  # The first alpha to reach a value is where the running maximum reaches it,
  # and running maxima ascend.
  maxima = np.maximum.accumulate(alpha)
  wanted = maxima[-1] - np.asarray(epsilon_fractions) - _ROUNDING
  return thresholds[np.searchsorted(maxima, wanted)]


def cst(predictions, epsilon_fractions):
  """The paper's classifier-specific thresholds (section 3); float64 [E, T].

  All settings come from one sort per classifier.
  """
  thresholds = []
  for m in range(len(predictions.confidence) - 1):
    order = predictions.rising(m)
    thresholds.append(_smallest_thresholds(
        predictions.confidence[m][order], predictions.correct[m][order],
        epsilon_fractions))
  return np.stack(thresholds, axis=1)


def ccst(predictions, epsilon_fractions, num_classes):
  """Thresholds per predicted class, by the same rule; float64 [E, T, classes].

  If a classifier never predicts a class on the fitting split, nothing is known
  about it. Its threshold is infinite: such an image goes on.
  """
  num_thresholds = len(predictions.confidence) - 1
  thresholds = np.full(
      (len(epsilon_fractions), num_thresholds, num_classes), np.inf)
  for m in range(num_thresholds):
    # A stable sort: by class, and within a class by confidence. It is fastest
    # by far on 16-bit numbers.
    order = predictions.rising(m)
    predicted = predictions.predicted[m][order]
    if num_classes <= 1 << 16:
      predicted = predicted.astype(np.uint16)
    order = order[np.argsort(predicted, kind='mergesort')]
    confidence = predictions.confidence[m][order]
    correct = predictions.correct[m][order]
    stops = np.cumsum(np.bincount(predicted, minlength=num_classes))
    start = 0
    for predicted_class, stop in enumerate(stops):
      if stop > start:
        thresholds[:, m, predicted_class] = _smallest_thresholds(
            confidence[start:stop], correct[start:stop], epsilon_fractions)
      start = stop
  return thresholds


# ---- Thresholds to compare with ---------------------------------------------


def common(num_classifiers):
  """`COMMON_SETTINGS` for all classifiers, as float32s; float64 [1000, T]."""
  values = COMMON_SETTINGS.astype(np.float32).astype(np.float64)
  return np.repeat(values[:, np.newaxis], num_classifiers - 1, axis=1)


def budgeted(predictions):
  """Budgeted batch classification (MSDNet, Huang et al. 2018, section 4.2).

  For q = p / 20 the shares of images that leave at classifier m = 1, 2, ...
  are proportional to q^m. Of the images that have not left yet, the most
  confident ones leave: n times the share, rounded down. The threshold is the
  confidence of the last of them. If ties have taken more images before and
  fewer remain, all that remain leave.

  Returns:
    float64 [39, T], for p = 1 to 39.
  """
  num_classifiers = len(predictions.confidence)
  num_images = len(predictions.confidence[0])
  thresholds = np.full((len(BUDGET_STEPS), num_classifiers - 1), np.inf)
  for m in range(num_classifiers - 1):
    order = predictions.rising(m)[::-1]  # The most confident images first.
    confidence = [predictions.confidence[k][order] for k in range(m + 1)]
    for setting, p in enumerate(BUDGET_STEPS):
      # In whole numbers: q^(m + 1) = p^(m + 1) / 20^(m + 1).
      weights = [p**i * BUDGET_STEPS_PER_UNIT**(num_classifiers - i)
                 for i in range(1, num_classifiers + 1)]
      num_to_leave = num_images * weights[m] // sum(weights)
      remains = np.ones(num_images, bool)
      for earlier in range(m):
        remains &= confidence[earlier] < thresholds[setting, earlier]
      remaining = np.flatnonzero(remains)
      if num_to_leave and len(remaining):
        last = remaining[min(num_to_leave, len(remaining)) - 1]
        thresholds[setting, m] = confidence[m][last]
  return thresholds


# ---- The best thresholds for each cost, by search ---------------------------
#
# This project's own method. The others set thresholds classifier by classifier.
# Here all combinations of a grid of thresholds are counted at once, and for
# each cost the one with the best accuracy is taken.


def pareto(predictions, exit_costs, others):
  """The best thresholds for each cost.

  On the fitting split, no point of `others`, thresholds float64 [S, T] of other
  methods, is better than the point of the same or the next lower cost: their
  thresholds are in the grid and their costs among the costs.

  Returns:
    `(cost_per_image, thresholds)`: float64 [P], ascending, the mean cost on
    the fitting split in GMACs or in seconds, and float64 [P, T].
  """
  num_images = len(predictions.correct[0])
  quantiles = np.linspace(0, num_images - 1, _NUM_QUANTILES).astype(int)
  grid = [
      np.unique(np.concatenate([
          predictions.confidence[m][predictions.rising(m)[quantiles]],
          values, [np.inf]]))
      for m, values in enumerate(others.T)]
  num_correct, costs = _count_grid(predictions, grid, exit_costs)
  of_others = costs[tuple(
      np.searchsorted(values, column)
      for values, column in zip(grid, others.T))]
  # Beyond 2^53, floats may leave the range that they are to divide.
  even_costs = np.linspace(costs.min(), costs.max(), _NUM_COSTS).astype(
      np.int64).clip(costs.min(), costs.max())
  budgets = np.unique(np.concatenate([of_others, even_costs]))

  # The front: cells that are better than all cheaper ones. Among cells of equal
  # cost there may be several of them, the best one last.
  shape = costs.shape
  num_correct, costs = num_correct.ravel(), costs.ravel()
  order = np.argsort(costs, kind='mergesort')
  best = np.maximum.accumulate(num_correct[order])
  front = order[np.concatenate([[True], best[1:] > best[:-1]])]
  chosen = front[np.unique(
      np.searchsorted(costs[front], budgets, side='right') - 1)]
  thresholds = np.stack(
      [values[index] for values, index in zip(
          grid, np.unravel_index(chosen, shape))], axis=1)
  return costs[chosen] / (num_images * 1e9), thresholds


def _count_grid(predictions, grid, exit_costs):
  """Right answers and total cost of every combination of thresholds.

  All that matters about an image is how many grid values each of its
  confidences reaches, so all combinations follow from one histogram.

  Returns:
    `(num_correct, costs)`: int64 [thresholds of clf0, of clf1], all images'.
  """
  # An image passes threshold i unless its bin is beyond i.
  bins = [_bins(predictions, m, values) for m, values in enumerate(grid)]
  shape = tuple(len(values) for values in grid)
  num_correct, costs = np.zeros((2,) + shape, np.int64)
  everybody = np.ones(len(predictions.correct[0]), bool)
  for m, cost_of_exit in enumerate(exit_costs):
    for total, images, weight in ((num_correct, predictions.correct[m], 1),
                                  (costs, everybody, cost_of_exit)):
      # Those that come as far as classifier m, less those that go on.
      leaving = _count_remaining(bins[:m], images, shape)
      if m < len(bins):
        leaving = leaving - _count_remaining(bins[:m + 1], images, shape)
      total += weight * leaving
  return num_correct, costs


def _bins(predictions, m, values):
  """How many of `values` the confidence reaches; int32 [images]."""
  order = predictions.rising(m)
  # Sorted, the images of each bin lie together.
  starts = np.searchsorted(predictions.confidence[m][order], values)
  bins = np.empty(len(order), np.int32)
  bins[order] = np.repeat(
      np.arange(len(values) + 1, dtype=np.int32),
      np.diff(np.concatenate([[0], starts, [len(order)]])))
  return bins


def _count_remaining(bins, images, shape):
  """How many of `images` pass all thresholds of the classifiers of `bins`.

  The result broadcasts to `shape`: it has length 1 along the other classifiers.
  """
  num_asked = len(bins)
  lengths = [length + 1 for length in shape[:num_asked]]
  cells = np.zeros(np.count_nonzero(images), np.int64)
  for column, length in zip(bins, lengths):
    cells = cells * length + column[images]
  counts = np.bincount(cells, minlength=int(np.prod(lengths, dtype=int)))
  counts = counts.reshape(lengths)
  for axis in range(num_asked):
    np.cumsum(counts, axis=axis, out=counts)
  counts = counts[(slice(-1),) * num_asked]
  return counts.reshape(shape[:num_asked] + (1,) * (len(shape) - num_asked))


# ---- The table of methods ---------------------------------------------------


class Fitted(typing.NamedTuple):
  """What a method found on the fitting split."""
  settings: typing.Sequence  # float [S], in the unit of its `Method.setting`.
  thresholds: np.ndarray     # float64 [S, T] or [S, T, classes].


class Fitting:
  """The fitting split, and what thresholds are fitted for.

  Methods may build on each other, so each is fitted at most once. `calibration`
  are further predictions, for `risk`: of images that neither fit nor judge.
  """

  def __init__(self, predictions, epsilon_percents, num_classes, cost,
               calibration=None, risk_delta=None, risk_loss='wrong'):
    self.predictions = predictions
    self.epsilon_percents = epsilon_percents
    self.epsilon_fractions = np.array(epsilon_percents) / 100.
    self.num_classes = num_classes
    self.cost = cost  # `macs.NetworkCost`.
    self.calibration = calibration
    self.risk_delta = risk_delta
    self.risk_loss = risk_loss
    self._fitted = {}

  def fit(self, method):
    """`Fitted` of a method, by its name."""
    if method not in self._fitted:
      self._fitted[method] = METHODS[method].fit(self)
    return self._fitted[method]


def _fit_pareto(fitting):
  others = np.concatenate([fitting.fit(method).thresholds
                           for method in ('cst', 'global', 'budgeted')])
  time = fitting.cost.time
  costs, thresholds = pareto(
      fitting.predictions,
      time.exit_nanoseconds if time else fitting.cost.exit_macs, others)
  return Fitted(1000 * costs if time else costs, thresholds)


def _fit_risk(fitting):
  sequence = np.empty((0, len(fitting.predictions.confidence) - 1))
  if len(fitting.predictions.correct[0]):
    sequence = fitting.fit('pareto').thresholds
  return Fitted(fitting.epsilon_percents, risk.calibrate(
      sequence, fitting.calibration, fitting.epsilon_fractions,
      fitting.risk_delta, fitting.risk_loss))


class Method(typing.NamedTuple):
  setting: str            # What a setting is, as figures label it.
  fit: typing.Callable    # `Fitting` -> `Fitted`.


EPSILON_SETTING = 'Accuracy given up, ε (%)'

# In the order of tables and figures; the paper's comes first.
METHODS = {
    'cst': Method(EPSILON_SETTING, lambda fitting: Fitted(
        fitting.epsilon_percents,
        cst(fitting.predictions, fitting.epsilon_fractions))),
    'global': Method('Threshold of all classifiers', lambda fitting: Fitted(
        COMMON_SETTINGS, common(len(fitting.predictions.confidence)))),
    'ccst': Method(EPSILON_SETTING, lambda fitting: Fitted(
        fitting.epsilon_percents,
        ccst(fitting.predictions, fitting.epsilon_fractions,
             fitting.num_classes))),
    'budgeted': Method('Ratio of exit shares, q', lambda fitting: Fitted(
        np.array(BUDGET_STEPS) / float(BUDGET_STEPS_PER_UNIT),
        budgeted(fitting.predictions))),
    'pareto': Method('Cost where fitted (GMACs per image)', _fit_pareto),
    'risk': Method(EPSILON_SETTING, _fit_risk),
}
EPSILON_METHODS = [name for name, method in METHODS.items()
                   if method.setting == EPSILON_SETTING]


def main_method(methods):
  """The one to show: the paper's, or else another with epsilon, or any."""
  return next(method for method in EPSILON_METHODS + list(METHODS)
              if method in methods)


def setting_label(method, is_by_time):
  """What a setting of a method is, where cost is measured time or MACs."""
  if method == 'pareto' and is_by_time:
    return 'Cost where fitted (ms per image)'
  return METHODS[method].setting

