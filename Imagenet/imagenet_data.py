"""Finds and counts the records of a data folder, before any work.

What a data folder is stands in `shared_dataset.py`.
"""

import multiprocessing.pool
import os
import struct
import sys

from google.protobuf.message import DecodeError

from tf_compat import tf

import shared_dataset
from shared_dataset import DATASET_FILE_NAME, FRAME_BYTES, FRAME_HEADER_BYTES
from shared_files import explain_error
from shared_terminal import Progress, UserError

_NUM_THREADS = 16


def find_shards(data_dir, split):
  """Paths of all shards of `split`, in name order.

  Raises:
    UserError: there are none, or not just those of one set.
  """
  paths = shared_dataset.find_shards(data_dir, split)
  if not paths:
    raise UserError(
        f'--data_dir {data_dir}: no {split} shards ({split}/{split}-00000-of-N)'
        '; step 2 of the README makes them')
  return paths


def record_frames(path):
  """Yields (offset, data length) in bytes of each record of a TFRecord file.

  Reads the length fields only and trusts them. The last frame ends beyond
  the end of the file if the file is truncated or a length is corrupt.
  """
  size = os.path.getsize(path)
  with open(path, 'rb', buffering=0) as shard:
    offset = 0
    while offset < size:
      header = os.pread(shard.fileno(), FRAME_HEADER_BYTES, offset)
      if len(header) < FRAME_HEADER_BYTES:
        yield offset, size
        return
      length, = struct.unpack('<Q', header[:8])
      yield offset, length
      offset += FRAME_BYTES + length


def count_records(paths):
  """Records in each shard, from the length fields: seconds for ImageNet.

  Raises:
    UserError: a shard cannot be read, is truncated, or a length in it is
      corrupt; names the file and the position.
  """
  def count(path):
    num_records, end = 0, 0
    with explain_error(path, 'build or copy this shard again', 'read'):
      for offset, length in record_frames(path):
        if not length:  # No image has no bytes: filled up with zeros.
          raise corrupt_record(path, offset)
        num_records, end = num_records + 1, offset + FRAME_BYTES + length
      if end != os.path.getsize(path):
        raise corrupt_record(path, offset)
    return num_records

  progress = Progress('counting records', len(paths), 'shards')
  counts = []
  # Several reads at the same time, for disks that must seek.
  with multiprocessing.pool.ThreadPool(_NUM_THREADS) as pool:
    for num_records in pool.imap(count, paths):
      counts.append(num_records)
      progress.update(len(counts))
  progress.finish()
  return counts


def corrupt_record(path, offset):
  """The error of a shard that is corrupt at a position, or before."""
  return UserError(
      f'{path}: truncated or corrupt at byte {offset:,} of '
      f'{os.path.getsize(path):,}; build or copy this shard again')


def count_split(data_dir, split, dataset_info):
  """Finds and counts the records of a split; checks the count and a record.

  Returns:
    (paths of the shards, records in each of them)

  Raises:
    UserError: see `find_shards` and `count_records`; or `dataset.json` has
      another count, the split is empty, or its first record is no image.
  """
  paths = find_shards(data_dir, split)
  counts = count_records(paths)
  folder, num_records = os.path.dirname(paths[0]), sum(counts)
  expected = dataset_info.num_images[split]
  if not num_records:
    raise UserError(f'{folder}: the {split} shards hold no record')
  _check_record(next(path for path, count in zip(paths, counts) if count))
  if num_records != expected:
    if os.path.exists(os.path.join(data_dir, DATASET_FILE_NAME)):
      raise UserError(
          f'{folder}: the shards hold {num_records:,} records where '
          f'{DATASET_FILE_NAME} says {expected:,}; build or copy the records '
          'again')
    # Not an error: the published record script drops 80 validation and 143
    # training images.
    sys.stderr.write(f'{folder}: {num_records:,} records where ImageNet has '
                     f'{expected:,} images\n')
  return paths, counts


def _check_record(path):
  """Refuses TFRecords of another kind, on which TensorFlow 1.12 crashes."""
  try:
    record = next(tf.python_io.tf_record_iterator(path))
    features = tf.train.Example.FromString(record).features.feature
  except tf.errors.DataLossError:
    raise corrupt_record(path, 0)
  except DecodeError:
    features = {}
  for name in ('image/encoded', 'image/class/label'):
    if name not in features:
      raise UserError(f'{path}: record 0 has no {name}; step 2 of the README '
                      'makes the records that are read here')
