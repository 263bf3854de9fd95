"""One pass through the softmaxes of a dump: the top-5 of every row.

Where the top-5 files are there, the softmaxes need not be read. Published
dumps have no top-5 probabilities; what was read from them can be kept in a
cache, a folder of top-5 files beside them.
"""

import collections
from concurrent import futures
import contextlib
import functools
import json
import os
import sys

import numpy as np

import dump_names
from cascade.array_files import load_array
from cascade.top5 import NUM_TOP, top5_of_rows
from progress import Progress
from user_error import UserError

# What a dump says of every image, as far as the cascade needs it.
#   classes: int32 [images, min(5, classes)], best first.
#   probabilities: float32 of the same shape.
Top5 = collections.namedtuple('Top5', 'classes probabilities')

CACHE_FOLDER = 'top5_cache'
_CACHE_RECORD = 'sources.json'

# Rows that a thread is given at a time: 64 MB of float32 at 1001 classes.
_ROWS_PER_TASK = 1 << 14


def read_top5(dump, use_cache=False, check_all_rows=False):
  """The top-5 of every row, from wherever they are cheapest to have.

  Args:
    dump: `dumps.ClassifierDump`.
    use_cache: take what an earlier run has kept, and keep what this one reads.
    check_all_rows: read all softmaxes, and hold every row of the top-5 files
      against them.

  Returns:
    `Top5`. Classes come from the top-5 file where there is one: equal softmaxes
    have no order of their own.

  Raises:
    UserError: a row is no softmax or disagrees with the top-5 files, or the
      softmaxes are needed and not there.
  """
  if dump.top5_probabilities is not None and not check_all_rows:
    return Top5(dump.top5_classes, dump.top5_probabilities)
  if check_all_rows and not dump.has_softmaxes:
    raise UserError(
        '-check_all_rows: {} has no softmaxes to check; leave this option out '
        '({})'.format(dump.name, dump.path))
  if not dump.has_softmaxes:
    missing = dump_names.top5_probabilities_file_name(
        dump.classifier_id, dump.split)
    raise UserError(
        '{}: no such file, and no softmaxes to make it from; confidences need '
        'one of both: dump classifier {} again (step 3)'.format(
            os.path.join(dump.folder, missing), dump.classifier_id))
  top5 = None
  if use_cache and not check_all_rows:
    top5 = _read_cache(dump)
  if top5 is None:
    sources = _sources(dump)
    top5 = _extract(dump)
    # Softmaxes that were replaced meanwhile are not what was read.
    if use_cache and sources == _sources(dump):
      _write_cache(dump, top5, sources)
  if dump.top5_classes is not None:
    top5 = top5._replace(classes=dump.top5_classes)
  return top5


def _extract(dump):
  """Reads all softmaxes, a thread per core; NumPy leaves the lock to others."""
  shape = (dump.num_images, min(NUM_TOP, dump.num_classes))
  top5 = Top5(np.empty(shape, np.int32), np.empty(shape, np.float32))

  def extract_rows(start):
    stop = min(start + _ROWS_PER_TASK, dump.num_images)
    for rows, probabilities in dump.blocks(start, stop):
      classes, largest = top5_of_rows(probabilities)
      dump.check_top5_rows(rows, probabilities, largest)
      top5.classes[rows], top5.probabilities[rows] = classes, largest
    return stop - start

  progress = Progress(dump.name, dump.num_images, 'rows')
  num_done = 0
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    tasks = [pool.submit(extract_rows, start)
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


def _cache_paths(dump):
  folder = os.path.join(dump.folder, CACHE_FOLDER)
  return folder, Top5(*[os.path.join(folder, name(
      dump.classifier_id, dump.split)) for name in (
          dump_names.top5_classes_file_name,
          dump_names.top5_probabilities_file_name)])


def _sources(dump):
  """What tells whether the softmaxes are still those that were read."""
  sources = {}
  for path in dump.softmax_paths:
    status = os.stat(path)
    sources[os.path.basename(path)] = [status.st_size, status.st_mtime_ns]
  return sources


def _read_record(folder):
  try:
    with open(os.path.join(folder, _CACHE_RECORD)) as stream:
      record = json.load(stream)
    return record if isinstance(record, dict) else {}
  except (OSError, ValueError):
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
  if any(array.shape != shape for array in top5):
    return None
  return top5


def _write_cache(dump, top5, sources):
  """Keeps `top5`; a folder that cannot be written costs time, not the run."""
  folder, paths = _cache_paths(dump)
  try:
    os.makedirs(folder, exist_ok=True)
    record = _read_record(folder)
    replaced = dump_names.probabilities_file_names(
        dump.classifier_id, dump.split)
    for name in list(record):  # Not valid while it is being replaced.
      if name in replaced or dump_names.split_shard_name(name)[0] in replaced:
        del record[name]
    _write_json(folder, record)
    for path, array in zip(paths, top5):
      with _named_when_complete(path) as stream:
        np.save(stream, array)
    record.update(sources)
    _write_json(folder, record)
  except OSError as error:
    _warn_once('{}: the cache cannot be written ({}); the softmaxes will be '
               'read again next time'.format(folder, error.strerror))


@functools.lru_cache(maxsize=None)
def _warn_once(message):
  print(message, file=sys.stderr)


def _write_json(folder, record):
  with _named_when_complete(os.path.join(folder, _CACHE_RECORD)) as stream:
    stream.write(json.dumps(record, indent=1, sort_keys=True).encode())


@contextlib.contextmanager
def _named_when_complete(path):
  unfinished = '{}.{}{}'.format(
      path, os.getpid(), dump_names.UNFINISHED_SUFFIX)
  try:
    with open(unfinished, 'wb') as stream:
      yield stream
    os.replace(unfinished, path)
  except BaseException:
    if os.path.exists(unfinished):
      os.remove(unfinished)
    raise
