"""What is in a data folder: shards, classes, counts. Read before any work.

A data folder is what `Imagenet_tools/` writes (and others write as well):
`train/train-00000-of-01024`, ..., or the same files without the subfolder as
the official code has it, and perhaps a `dataset.json`.
"""

import collections
import glob
import json
import multiprocessing.pool
import os
import re
import struct
import sys

from google.protobuf.message import DecodeError

from tf_compat import tf

from progress import Progress
from user_error import UserError

IMAGENET_NUM_CLASSES = 1001  # 1000 synsets and class 0, unused.
IMAGENET_NUM_IMAGES = {'train': 1281167, 'validation': 50000}

DATASET_FILE_NAME = 'dataset.json'

# TFRecord framing: length (8 bytes), its CRC (4), data, the data's CRC (4).
FRAME_HEADER_BYTES = 12
FRAME_BYTES = FRAME_HEADER_BYTES + 4

_NUM_THREADS = 16

DatasetInfo = collections.namedtuple('DatasetInfo', 'num_classes num_images')


def read_dataset_info(data_dir):
  """Class count and image counts, from `dataset.json` or those of ImageNet.

  Returns:
    A `DatasetInfo`; `num_images` is a dict from split to count.

  Raises:
    UserError: `dataset.json` is not what the record builder writes.
  """
  path = os.path.join(data_dir, DATASET_FILE_NAME)
  if not os.path.exists(path):
    return DatasetInfo(IMAGENET_NUM_CLASSES, dict(IMAGENET_NUM_IMAGES))
  try:
    with open(path) as dataset_file:
      fields = json.load(dataset_file)
    num_classes = int(fields['num_classes'])
    if num_classes < 2:
      raise ValueError('num_classes {}'.format(num_classes))
    return DatasetInfo(
        num_classes, {split: int(fields['num_images'][split])
                      for split in IMAGENET_NUM_IMAGES})
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError('{}: not a description of a data set ({}: {}); build the '
                    'records again'.format(path, type(error).__name__, error))


def find_shards(data_dir, split):
  """Paths of all shards of `split`, in name order.

  Raises:
    UserError: there are none, one is missing or too many, or two sets are
      mixed.
  """
  if not os.path.isdir(data_dir):
    raise UserError('--data_dir {}: no such folder'.format(data_dir))
  for folder in (os.path.join(data_dir, split), data_dir):
    paths = [path for path in glob.glob(os.path.join(
        glob.escape(folder), split + '-*-of-*')) if _shard_number(path)]
    if paths:
      break
  else:
    raise UserError(
        '--data_dir {0}: no {1} shards ({1}/{1}-00000-of-N); step 2 of the '
        'README makes them'.format(data_dir, split))
  totals = sorted({_shard_number(path)[1] for path in paths})
  if len(totals) > 1:
    raise UserError('{}: shards of {} different sets ({}-*-of-{}); keep one'
                    .format(folder, len(totals), split, ' and -of-'.join(
                        '{:05d}'.format(total) for total in totals)))
  expected = [os.path.join(folder, '{}-{:05d}-of-{:05d}'.format(
      split, number, totals[0])) for number in range(totals[0])]
  missing = sorted(set(expected) - set(paths))
  if missing:
    raise UserError('{}: missing{}; build or copy it again'.format(
        missing[0], ' ({} shards are)'.format(len(missing))
        if len(missing) > 1 else ''))
  surplus = sorted(set(paths) - set(expected))
  if surplus:
    raise UserError('{}: its number is not below its total; remove it'.format(
        surplus[0]))
  return expected


def _shard_number(path):
  """(number, total) from the name of a shard, or None for another file."""
  match = re.search(r'-(\d{5})-of-(\d{5})$', path)
  return match and (int(match.group(1)), int(match.group(2)))


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
      corrupt; names the file, the record and its position.
  """
  def count(path):
    try:
      num_records, offset, end, has_empty = 0, 0, 0, False
      for offset, length in record_frames(path):
        num_records, end = num_records + 1, offset + FRAME_BYTES + length
        # No image has no bytes: the file may be filled up with zeros.
        has_empty = has_empty or length == 0
      is_whole = end == os.path.getsize(path)
    except OSError as error:
      raise UserError('{}: cannot be read ({})'.format(path, error.strerror))
    if not is_whole or has_empty:
      error = corrupt_record_error(path)
      if error:
        raise error
    if not is_whole:  # TensorFlow takes a part of a header for the end.
      raise _corrupt_record_error(path, num_records - 1, offset)
    return num_records

  return list(map_shards(count, paths, 'counting records'))


def map_shards(function, paths, title):
  """Yields `function(path)` of each path, in order, with progress on stderr.

  Several threads keep several reads under way, for disks that must seek.
  """
  progress = Progress(title, len(paths), 'shards')
  pool = multiprocessing.pool.ThreadPool(_NUM_THREADS)
  try:
    for number, result in enumerate(pool.imap(function, paths), 1):
      progress.update(number)
      yield result
  finally:
    pool.terminate()
  progress.finish()


def corrupt_record_error(path, last_offset=None):
  """A `UserError` that names the first corrupt record of a shard.

  Args:
    path: of the shard, read with TensorFlow, which checks every CRC.
    last_offset: records that begin after it are not read; None for all.

  Returns:
    The error, or None if all is well.
  """
  num_good, offset = 0, 0
  try:
    for record in tf.python_io.tf_record_iterator(path):
      num_good, offset = num_good + 1, offset + FRAME_BYTES + len(record)
      if last_offset is not None and offset > last_offset:
        break
  except tf.errors.DataLossError:
    return _corrupt_record_error(path, num_good, offset)
  return None


def _corrupt_record_error(path, number, offset):
  return UserError(
      '{}: truncated or corrupt at record {:,} (byte {:,} of {:,}); build or '
      'copy this shard again'.format(
          path, number, offset, os.path.getsize(path)))


def record_features(record):
  """Features by name of a serialized record; None if it is not an Example."""
  try:
    return tf.train.Example.FromString(record).features.feature
  except DecodeError:
    return None


def _check_first_record(paths):
  """Refuses TFRecords of another kind, on which TensorFlow 1.12 crashes."""
  path = next(path for path in paths if os.path.getsize(path))
  try:
    record = next(tf.python_io.tf_record_iterator(path))
  except tf.errors.DataLossError:
    raise corrupt_record_error(path, last_offset=0)
  features = record_features(record)
  for name in ('image/encoded', 'image/class/label'):
    if features is None or name not in features:
      raise UserError('{}: record 0 has no {}; step 2 of the README makes '
                      'the records that are read here'.format(path, name))


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
  num_records = sum(counts)
  expected = dataset_info.num_images[split]
  if num_records == 0:
    raise UserError('{}: the {} shards hold no record'.format(
        os.path.dirname(paths[0]), split))
  _check_first_record(paths)
  if num_records != expected:
    if os.path.exists(os.path.join(data_dir, DATASET_FILE_NAME)):
      raise UserError(
          '{}: the shards hold {:,} records where {} says {:,}; build or copy '
          'the records again'.format(os.path.dirname(paths[0]), num_records,
                                     DATASET_FILE_NAME, expected))
    # Not an error: the published record script drops 80 validation and 143
    # training images, and such records are still about.
    sys.stderr.write('{}: {:,} records where ImageNet has {:,} images\n'.format(
        os.path.dirname(paths[0]), num_records, expected))
  return paths, counts
