"""Finds the files of a dump, whole or in shards that are read as one.

Shards are what the processes of a pass that was shared (`--dump_shard`) leave;
their names and rows have their home in `Imagenet/dump_names.py`.
"""

import math
import os

import numpy as np

import dump_names
from cascade.array_files import load_array
from dump_names import DumpShard
from user_error import UserError


def find(folder, name):
  """Paths of the file `name`, or of all its shards in row order.

  A whole file and shards of it beside each other are refused: nothing tells
  which of them the rest of the dump belongs to.

  Args:
    folder: an existing folder.
    name: of the whole file.

  Returns:
    A list of paths: one, or as many as there are shards; empty where there is
    neither the file nor a shard of it.

  Raises:
    UserError: both are there, or the shards are not those of one pass.
  """
  path = os.path.join(folder, name)
  shards = find_shards(folder, name)
  if os.path.exists(path):
    if shards:
      raise UserError('{}: is there as a whole and in shards ({}); remove what '
                      'is of another pass'.format(
                          path, os.path.basename(shards[0])))
    return [path]
  return shards


def find_shards(folder, name):
  """Paths of all shards of the file `name`, in row order.

  Returns:
    A list of paths, empty where there is no shard.

  Raises:
    UserError: one is missing, too many or doubled, or there are two sets.
  """
  numbers, total = {}, None
  for other in dump_names.names_in(folder):
    whole_name, shard = dump_names.split_shard_name(other)
    if whole_name != name:
      continue
    path = os.path.join(folder, other)
    if total is not None and shard.total != total:
      raise UserError(
          '{}: a shard of {}, where {} is one of {}; remove one of both sets'
          .format(path, shard.total,
                  os.path.basename(next(iter(numbers.values()))), total))
    if not 1 <= shard.number <= shard.total:
      raise UserError('{}: there is no such shard, the first is 1 and the last '
                      '{}; remove it'.format(path, shard.total))
    if shard.number in numbers:
      raise UserError('{}: the same shard as {}; remove one of both'.format(
          path, os.path.basename(numbers[shard.number])))
    numbers[shard.number], total = path, shard.total
  for number in range(1, (total or 0) + 1):
    if number not in numbers:
      raise UserError(
          '{}: no such file, and {} of {} shards are there; copy it here, or '
          'dump it (step 3, --dump_shard {}/{})'.format(
              os.path.join(folder, dump_names.shard_file_name(
                  name, DumpShard(number, total))),
              len(numbers), total, number, total))
  return [numbers[number] for number in sorted(numbers)]


def load(paths):
  """Loads an array of a file, or of all its shards.

  Args:
    paths: as `find` returns them.

  Returns:
    A read-only array, memory-mapped if there is one file; shards are copied.

  Raises:
    UserError: a file is damaged, or does not fit the other shards.
  """
  arrays = [load_array(path) for path in paths]
  if len(arrays) == 1:
    return arrays[0]
  for path, array in zip(paths, arrays):
    if (array.dtype, array.shape[1:]) != (
        arrays[0].dtype, arrays[0].shape[1:]) or not array.ndim:
      raise UserError('{}: {} {}, where {} is {} {}; dump it again (step 3)'
                      .format(path, array.dtype, array.shape,
                              os.path.basename(paths[0]), arrays[0].dtype,
                              arrays[0].shape))
  check_rows(paths, [len(array) for array in arrays])
  joined = np.concatenate(arrays)
  joined.flags.writeable = False
  return joined


def check_rows(paths, rows_in_shards):
  """Checks that a pass was cut into shards of so many rows.

  Passes of other batch sizes are cut at other rows: their shards, mixed, would
  have rows twice or not at all.

  Args:
    paths: of the shards.
    rows_in_shards: a list of ints.

  Raises:
    UserError: it was not.
  """
  num_images, total = sum(rows_in_shards), len(rows_in_shards)
  divisor = 0  # Of every batch that fits; the last one may be smaller.
  for num_rows in rows_in_shards[:-1]:
    divisor = math.gcd(divisor, num_rows)
  for batch_size in _divisors(divisor) if divisor else [max(num_images, 1)]:
    bounds = [dump_names.shard_rows(num_images, number, total, batch_size)
              for number in range(1, total + 1)]
    if [stop - start for start, stop in bounds] == rows_in_shards:
      return
  raise UserError(
      '{}: this shard and its {} siblings have {} rows, which no pass is cut '
      'into; dump again (step 3) those of another --batch_size or other '
      'records'.format(paths[0], total - 1, ', '.join(
          '{:,}'.format(num_rows) for num_rows in rows_in_shards)))


def _divisors(number):
  small = [factor for factor in range(1, int(math.sqrt(number)) + 1)
           if number % factor == 0]
  return small + [number // factor for factor in small]
