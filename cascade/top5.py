"""The five largest softmaxes of each row, fast enough to keep up with a disk.

They are all that the cascade needs from a dump: the confidences, the predicted
class, and whether the label is first or among the five.
"""

import io
import os
import typing
from concurrent import futures

import numpy as np

from cascade.shared import Progress, UserError, shared_dumps, shared_files

# Rows in a task of a thread: 64 MB of float32 at 1001 classes.
_ROWS_PER_TASK = 1 << 14

# Columns are folded onto each other to find few candidates per row. Fewer
# folds give a bound that is too low, more give more maxima to look through
# (measured on rows of 1001).
_NUM_FOLDS = 13

# Rows with more candidates, such as a row of equal softmaxes, are sorted whole.
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
  classes = np.empty((num_rows, shared_dumps.NUM_TOP), np.int32)
  largest = np.empty((num_rows, shared_dumps.NUM_TOP), np.float32)
  is_crowded = counts > _MAX_CANDIDATES
  if is_crowded.any():
    for chosen, find in ((is_crowded, _sorted_top5),
                         (~is_crowded, top5_of_rows)):
      classes[chosen], largest[chosen] = find(probabilities[chosen])
    return classes, largest

  # The candidates of each row side by side, ordered by class.
  positions = np.arange(len(flat)) - np.repeat(
      np.cumsum(counts) - counts, counts)
  candidates = np.full((num_rows, counts.max()), -np.inf, np.float32)
  candidates[rows, positions] = probabilities.ravel()[flat]
  candidate_classes = np.zeros(candidates.shape, np.int32)
  candidate_classes[rows, positions] = flat - rows * num_classes
  all_rows = np.arange(num_rows)
  for place in range(shared_dumps.NUM_TOP):
    best = candidates.argmax(axis=1)  # [rows]; the first among equals
    classes[:, place] = candidate_classes[all_rows, best]
    largest[:, place] = candidates[all_rows, best]
    candidates[all_rows, best] = -np.inf
  return classes, largest


def _lower_bounds(probabilities):
  """Values that at least five softmaxes of the row reach; float32 [rows].

  The columns are folded. Each of the `width` maxima is that of its own group
  of columns, so the fifth largest maximum is such a value.
  """
  num_rows, num_classes = probabilities.shape
  width = num_classes // _NUM_FOLDS
  fifth = width - shared_dumps.NUM_TOP
  if fifth < 0:
    return probabilities.min(axis=1)
  maxima = probabilities[:, :_NUM_FOLDS * width].reshape(  # A view.
      num_rows, _NUM_FOLDS, width).max(axis=1)  # [rows, width]
  return np.partition(maxima, fifth, axis=1)[:, fifth]


def _sorted_top5(probabilities):
  order = np.argsort(-probabilities, axis=1, kind='mergesort')
  order = order[:, :shared_dumps.NUM_TOP]
  return order.astype(np.int32), np.take_along_axis(
      probabilities, order, axis=1)


# ---- Of a whole dump --------------------------------------------------------


class Top5(typing.NamedTuple):
  """All that the cascade needs from a dump."""
  classes: np.ndarray        # int32 [images, min(5, classes)], best first.
  probabilities: np.ndarray  # float32 of the same shape, or None.


def read_top5(dump, need_probabilities=True, use_cache=False,
              check_all_rows=False):
  """The top-5 of every row, from wherever they are cheapest to get.

  If there are top-5 files, the softmaxes need not be read.

  Args:
    dump: `dumps.ClassifierDump`.
    need_probabilities: published dumps have top-5 files of the classes alone.
    use_cache: write the top-5 files that are missing beside the softmaxes.
    check_all_rows: read all softmaxes, and compare every row of the top-5 files
      with them.

  Returns:
    `Top5`. Classes come from the top-5 file if there is one: equal softmaxes
    have no order of their own.
  """
  names = [name_of(dump.classifier_id, dump.split) for name_of in (
      shared_dumps.top5_classes_file_name,
      shared_dumps.top5_probabilities_file_name)]
  top5 = Top5(dump.top5_classes, dump.top5_probabilities)
  is_enough = top5.classes is not None and not (
      need_probabilities and top5.probabilities is None)
  if is_enough and not check_all_rows:
    return top5
  if not dump.has_softmaxes:
    raise UserError(
        f'{os.path.join(dump.folder, names[1])}: there are no softmaxes to '
        f'make it from or to check it; dump classifier {dump.classifier_id} '
        'again (step 3)')
  read = _read_softmaxes(dump)
  if use_cache:
    for name, known, array in zip(names, top5, read):
      if known is None:
        path, stream = os.path.join(dump.folder, name), io.BytesIO()
        np.save(stream, array)
        with shared_files.explain_error(path, 'leave -cache out'):
          shared_files.write_atomically(path, stream.getvalue())
  return read if top5.classes is None else read._replace(classes=top5.classes)


def _read_softmaxes(dump):
  """One pass, a thread per core: NumPy releases the interpreter's lock."""
  shape = (dump.num_images, min(shared_dumps.NUM_TOP, dump.num_classes))
  top5 = Top5(np.empty(shape, np.int32), np.empty(shape, np.float32))

  def read_rows(start):
    stop = min(start + _ROWS_PER_TASK, dump.num_images)
    for rows, probabilities in dump.blocks(start, stop):
      classes, largest = top5_of_rows(probabilities)
      dump.check_top5_rows(rows, probabilities, largest)
      top5.classes[rows], top5.probabilities[rows] = classes, largest
    return stop

  progress = Progress(dump.name, dump.num_images, 'rows')
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    # In row order, so that the first wrong row is the one reported. An error
    # cancels what waits.
    for num_done in pool.map(
        read_rows, range(0, dump.num_images, _ROWS_PER_TASK)):
      progress.update(num_done)
  progress.finish()
  return top5
