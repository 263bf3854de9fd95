"""The best thresholds for each cost, by search (this project's own method).

The paper's thresholds are set classifier by classifier. Here all combinations
of a grid of thresholds are counted at once on the fitting split, and for each
cost the one with the best accuracy is taken.
"""

import numpy as np

# Thresholds per classifier beside those of the other methods: quantiles of its
# confidences.
_NUM_QUANTILES = 300

# Costs for which thresholds are given, beside those of the other methods.
NUM_COSTS = 101


def fit(answers, exit_macs, others):
  """The best thresholds for each cost.

  On the fitting split no point of `others` has a better accuracy than the
  point of the same or the next lower cost: their thresholds are in the grid
  and their costs among the costs.

  Args:
    answers: `answers.Answers` of the fitting split.
    exit_macs: ints, cumulative MACs of leaving at each classifier.
    others: float64 [S, T], thresholds of other methods.

  Returns:
    `(gmacs_per_image, thresholds)`: float64 [P], ascending, the cost on the
    fitting split, and float64 [P, T].
  """
  num_images = len(answers.correct[0])
  grid = [_grid_values(answers.confidence[m][answers.rising(m)], values)
          for m, values in enumerate(others.T)]
  num_correct, macs = _count_grid(answers, grid, exit_macs)
  of_others = macs[tuple(
      np.searchsorted(values, column)
      for values, column in zip(grid, others.T))]
  budgets = np.unique(np.concatenate([
      of_others, np.linspace(macs.min(), macs.max(), NUM_COSTS).astype(
          np.int64)]))

  # The front: cells that are better than all that cost less. Of cells of equal
  # cost it may hold several, the best one last.
  shape = macs.shape
  num_correct, macs = num_correct.ravel(), macs.ravel()
  order = np.argsort(macs, kind='mergesort')
  best = np.maximum.accumulate(num_correct[order])
  front = order[np.concatenate([[True], best[1:] > best[:-1]])]
  chosen = front[np.unique(
      np.searchsorted(macs[front], budgets, side='right') - 1)]
  thresholds = np.stack(
      [values[index] for values, index in zip(
          grid, np.unravel_index(chosen, shape))], axis=1)
  return macs[chosen] / (num_images * 1e9), thresholds


def _grid_values(confidence, other_values):
  """Thresholds of one classifier that are tried, ascending, without repeats.

  Args:
    confidence: float64 [images], ascending.
    other_values: float64, thresholds that must be among them.
  """
  ranks = np.linspace(0, len(confidence) - 1, _NUM_QUANTILES).astype(int)
  return np.unique(np.concatenate([
      confidence[ranks], other_values, [np.inf]]))


def _count_grid(answers, grid, exit_macs):
  """Right answers and cost of every combination of thresholds.

  Of an image only the number of grid values that its confidences reach
  matters, so that all combinations follow from one histogram.

  Args:
    answers: `answers.Answers`.
    grid: per classifier but the last, ascending thresholds.
    exit_macs: ints, per classifier.

  Returns:
    `(num_correct, macs)`: int64 [thresholds of clf0, of clf1], over all images.
  """
  # An image passes threshold i unless its bin is beyond i.
  bins = [_bins(answers, m, values) for m, values in enumerate(grid)]
  shape = tuple(len(values) for values in grid)
  num_correct, macs = np.zeros((2,) + shape, np.int64)
  everybody = np.ones(len(answers.correct[0]), bool)
  for m, macs_of_exit in enumerate(exit_macs):
    for total, images, weight in ((num_correct, answers.correct[m], 1),
                                  (macs, everybody, macs_of_exit)):
      # Who comes as far as classifier m, less who goes on from there.
      leaving = _count_remaining(bins[:m], images, shape)
      if m < len(bins):
        leaving = leaving - _count_remaining(bins[:m + 1], images, shape)
      total += weight * leaving
  return num_correct, macs


def _bins(answers, m, values):
  """How many of `values` the confidence reaches; int32 [images]."""
  order = answers.rising(m)
  # Sorted, the images of each bin lie together.
  starts = np.searchsorted(answers.confidence[m][order], values)
  bins = np.empty(len(order), np.int32)
  bins[order] = np.repeat(
      np.arange(len(values) + 1, dtype=np.int32),
      np.diff(np.concatenate([[0], starts, [len(order)]])))
  return bins


def _count_remaining(bins, images, shape):
  """How many of `images` pass all thresholds of the classifiers of `bins`.

  Returns:
    int64, of a shape that broadcasts to `shape`: length 1 along the classifiers
    that are not asked.
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
