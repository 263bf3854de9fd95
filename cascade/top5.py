"""The five largest softmaxes of each row, fast enough to keep up with a disk.

They hold all that the cascade needs of a dump: the confidences, the predicted
class, and whether the label is first or among the five.
"""

import numpy as np

NUM_TOP = 5

# Columns that are folded onto each other to find few candidates per row. Fewer
# leave a bound that is too low, more leave more maxima to look through
# (measured on rows of 1001).
_NUM_FOLDS = 13

# Rows with more candidates than this, such as one of equal softmaxes, are
# sorted as a whole.
_MAX_CANDIDATES = 48


def top5_of_rows(probabilities):
  """Finds the largest softmaxes of each row.

  Among equal softmaxes the lower class comes first, as in `tf.nn.top_k`.

  Args:
    probabilities: float32 [rows, classes] without NaN.

  Returns:
    `(classes, top5_probabilities)`: int32 and float32 [rows, min(5, classes)],
    best first.
  """
  num_rows, num_classes = probabilities.shape
  if num_classes < 2 * _NUM_FOLDS or num_rows == 0:
    return _sorted_top5(probabilities)
  probabilities = np.ascontiguousarray(probabilities)
  is_candidate = probabilities >= _lower_bounds(probabilities)[:, np.newaxis]
  flat = np.flatnonzero(is_candidate)  # [candidates], row by row
  rows = flat // num_classes
  counts = np.bincount(rows, minlength=num_rows)  # [rows], each at least 5
  is_crowded = counts > _MAX_CANDIDATES
  if is_crowded.any():
    return _top5_of_some_crowded_rows(probabilities, is_crowded)

  # The candidates of each row side by side, in order of their classes.
  positions = np.arange(len(flat)) - np.repeat(
      np.cumsum(counts) - counts, counts)
  candidates = np.full((num_rows, counts.max()), -np.inf, np.float32)
  candidates[rows, positions] = probabilities.ravel()[flat]
  candidate_classes = np.zeros(candidates.shape, np.int32)
  candidate_classes[rows, positions] = flat - rows * num_classes
  all_rows = np.arange(num_rows)
  classes = np.empty((num_rows, NUM_TOP), np.int32)
  largest = np.empty((num_rows, NUM_TOP), np.float32)
  for place in range(NUM_TOP):
    best = candidates.argmax(axis=1)  # [rows]; of equal ones the first
    classes[:, place] = candidate_classes[all_rows, best]
    largest[:, place] = candidates[all_rows, best]
    candidates[all_rows, best] = -np.inf
  return classes, largest


def _lower_bounds(probabilities):
  """float32 [rows]: values that at least five softmaxes of the row reach.

  The columns are folded: each of the `width` maxima is that of its own group
  of columns, so that the fifth largest maximum is such a value.
  """
  num_rows, num_classes = probabilities.shape
  width = num_classes // _NUM_FOLDS
  row_stride, stride = probabilities.strides
  folded = np.lib.stride_tricks.as_strided(
      probabilities, (num_rows, _NUM_FOLDS, width),
      (row_stride, width * stride, stride), writeable=False)
  maxima = folded.max(axis=1)  # [rows, width]
  if width < NUM_TOP:
    return probabilities.min(axis=1)
  fifth = width - NUM_TOP
  return np.partition(maxima, fifth, axis=1)[:, fifth]


def _top5_of_some_crowded_rows(probabilities, is_crowded):
  num_top = min(NUM_TOP, probabilities.shape[1])
  classes = np.empty((len(probabilities), num_top), np.int32)
  largest = np.empty((len(probabilities), num_top), np.float32)
  classes[is_crowded], largest[is_crowded] = _sorted_top5(
      probabilities[is_crowded])
  classes[~is_crowded], largest[~is_crowded] = top5_of_rows(
      probabilities[~is_crowded])
  return classes, largest


def _sorted_top5(probabilities):
  order = np.argsort(-probabilities, axis=1, kind='mergesort')[:, :NUM_TOP]
  return order.astype(np.int32), np.take_along_axis(
      probabilities, order, axis=1)
