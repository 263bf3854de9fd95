"""The five largest softmaxes of each row, fast enough to keep up with a disk.

They are all that the cascade needs from a dump: the confidences, the predicted
class, and whether the label is first or among the five.
"""

import functools
import io
import json
import os
import sys
import typing
from concurrent import futures

import numpy as np

import dump_names
from cascade import UserError
from cascade.npy_files import load_array
from dump_names import NUM_TOP
from files import write_atomically
from progress import Progress

CACHE_FOLDER = 'top5_cache'
_CACHE_RECORD = 'sources.json'

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
  is_crowded = counts > _MAX_CANDIDATES
  if is_crowded.any():
    classes = np.empty((num_rows, NUM_TOP), np.int32)
    largest = np.empty((num_rows, NUM_TOP), np.float32)
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
  classes = np.empty((num_rows, NUM_TOP), np.int32)
  largest = np.empty((num_rows, NUM_TOP), np.float32)
  for place in range(NUM_TOP):
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
  row_stride, stride = probabilities.strides
  folded = np.lib.stride_tricks.as_strided(
      probabilities, (num_rows, _NUM_FOLDS, width),
      (row_stride, width * stride, stride), writeable=False)
  maxima = folded.max(axis=1)  # [rows, width]
  if width < NUM_TOP:
    return probabilities.min(axis=1)
  fifth = width - NUM_TOP
  return np.partition(maxima, fifth, axis=1)[:, fifth]


def _sorted_top5(probabilities):
  order = np.argsort(-probabilities, axis=1, kind='mergesort')[:, :NUM_TOP]
  return order.astype(np.int32), np.take_along_axis(
      probabilities, order, axis=1)


# ---- Of a whole dump --------------------------------------------------------


class Top5(typing.NamedTuple):
  """All that the cascade needs from a dump."""
  classes: np.ndarray        # int32 [images, min(5, classes)], best first.
  probabilities: np.ndarray  # float32 of the same shape, or None.


def read_top5(dump, use_cache=False, check_all_rows=False):
  """The top-5 of every row, from wherever they are cheapest to get.

  If there are top-5 files, the softmaxes need not be read. Published dumps have
  no top-5 probabilities; what is read from their softmaxes can be kept in a
  cache, a folder of top-5 files beside them.

  Args:
    dump: `dumps.ClassifierDump`.
    use_cache: use what an earlier run has kept, and keep what this one reads.
    check_all_rows: read all softmaxes, and compare every row of the top-5 files
      with them.

  Returns:
    `Top5`. Classes come from the top-5 file if there is one: equal softmaxes
    have no order of their own.

  Raises:
    UserError: a row is no softmax or disagrees with the top-5 files, or the
      softmaxes are needed and not there.
  """
  if dump.top5_probabilities is not None and not check_all_rows:
    return Top5(dump.top5_classes, dump.top5_probabilities)
  if not dump.softmax_paths:
    if check_all_rows:
      raise UserError(
          f'-check_all_rows: {dump.name} has no softmaxes to check; leave this '
          f'option out ({dump.path})')
    missing = os.path.join(
        dump.folder, dump_names.top5_probabilities_file_name(
            dump.classifier_id, dump.split))
    raise UserError(
        f'{missing}: no such file, and no softmaxes to make it from; '
        'confidences need one of the two: dump classifier '
        f'{dump.classifier_id} again (step 3)')
  top5 = None
  if use_cache and not check_all_rows:
    top5 = _read_cache(dump)
  if top5 is None:
    sources = _sources(dump)
    top5 = _read_softmaxes(dump)
    # Softmaxes that were replaced meanwhile are not what was read.
    if use_cache and sources == _sources(dump):
      _write_cache(dump, top5, sources)
  if dump.top5_classes is not None:
    top5 = top5._replace(classes=dump.top5_classes)
  return top5


def _read_softmaxes(dump):
  """One pass, a thread per core: NumPy releases the interpreter's lock."""
  shape = (dump.num_images, min(NUM_TOP, dump.num_classes))
  top5 = Top5(np.empty(shape, np.int32), np.empty(shape, np.float32))

  def read_rows(start):
    stop = min(start + _ROWS_PER_TASK, dump.num_images)
    for rows, probabilities in dump.blocks(start, stop):
      classes, largest = top5_of_rows(probabilities)
      dump.check_top5_rows(rows, probabilities, largest)
      top5.classes[rows], top5.probabilities[rows] = classes, largest
    return stop - start

  progress = Progress(dump.name, dump.num_images, 'rows')
  num_done = 0
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    tasks = [pool.submit(read_rows, start)
             for start in range(0, dump.num_images, _ROWS_PER_TASK)]
    try:
      # In row order, so that the first wrong row is the one reported.
      for task in tasks:
        num_done += task.result()
        progress.update(num_done)
    finally:
      for task in tasks:
        task.cancel()
  progress.finish()
  return top5


# ---- The cache --------------------------------------------------------------


def _cache_paths(dump):
  """The cache's folder, and the paths of classes and probabilities in it."""
  folder = os.path.join(dump.folder, CACHE_FOLDER)
  return folder, [
      os.path.join(folder, name_of(dump.classifier_id, dump.split))
      for name_of in (dump_names.top5_classes_file_name,
                      dump_names.top5_probabilities_file_name)]


def _sources(dump):
  """Tells whether the softmaxes are still those that were read."""
  sources = {}
  for path in dump.softmax_paths:
    status = os.stat(path)
    sources[os.path.basename(path)] = [status.st_size, status.st_mtime_ns]
  return sources


def _read_record(folder):
  """What the cache was made from; empty if it is damaged or not there."""
  try:
    with open(os.path.join(folder, _CACHE_RECORD)) as stream:
      return dict(json.load(stream))
  except (OSError, ValueError, TypeError):
    return {}


def _read_cache(dump):
  """`Top5` that an earlier run has kept, or None."""
  folder, paths = _cache_paths(dump)
  record = _read_record(folder)
  if any(record.get(name) != source
         for name, source in _sources(dump).items()):
    return None
  try:
    top5 = Top5(*[load_array(path) for path in paths])
  except UserError:
    return None
  shape = (dump.num_images, min(NUM_TOP, dump.num_classes))
  return top5 if all(array.shape == shape for array in top5) else None


def _write_cache(dump, top5, sources):
  """Keeps `top5`; a folder that cannot be written costs time, not the run."""
  folder, paths = _cache_paths(dump)
  try:
    os.makedirs(folder, exist_ok=True)
    replaced = dump_names.probabilities_file_names(
        dump.classifier_id, dump.split)
    # Not valid while it is being replaced.
    record = {name: source for name, source in _read_record(folder).items()
              if name not in replaced and
              dump_names.split_shard_name(name)[0] not in replaced}
    _write_record(folder, record)
    for path, array in zip(paths, top5):
      stream = io.BytesIO()
      np.save(stream, array)
      write_atomically(path, stream.getbuffer())
    _write_record(folder, dict(record, **sources))
  except OSError as error:
    _warn_once(f'{folder}: the cache cannot be written ({error.strerror}); the '
               'softmaxes will be read again next time')


def _write_record(folder, record):
  write_atomically(os.path.join(folder, _CACHE_RECORD),
                   json.dumps(record, indent=1, sort_keys=True).encode())


@functools.lru_cache(maxsize=None)
def _warn_once(message):
  print(message, file=sys.stderr)
