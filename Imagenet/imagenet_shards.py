"""What is in a data folder: shards, counts, classes, and the reading order.

A data folder is what `Imagenet_tools/` writes (and others write as well):
`train/train-00000-of-01024`, ..., or the same files without the subfolder as
the official code has it, and perhaps a `dataset.json`. It is read before any
work.

The reading order of an evaluation pass is the row order of every dump. Ten
places take turns. A shard sits in each and gives one record per turn. The turn
in which a shard is found to be at its end gives nothing; the next shard, in
name order, sits down at that place's next turn. With two places and shards
a (1 record), b (3), c (2):

  turn of place  1   2   1   2   1   2   1   2   1   2   1
  record         a0  b0  -   b1  c0  b2  c1  -   -   -   -
"""

import collections
import glob
import json
import multiprocessing.pool
import os
import re
import struct
import sys
import typing

from google.protobuf.message import DecodeError

from tf_compat import tf

from dump_record import check_class_names
from files import check_regular
from progress import Progress
from user_error import UserError

IMAGENET_NUM_CLASSES = 1001  # 1000 synsets and class 0, unused.
IMAGENET_NUM_IMAGES = {'train': 1281167, 'validation': 50000}

DATASET_FILE_NAME = 'dataset.json'

# Shards that are read in turns. `Imagenet_tools/` writes the label files in the
# same order (published: `validation_non_onehot.npy`).
INTERLEAVED_SHARDS = 10

# TFRecord framing: length (8 bytes), its CRC (4), data, the data's CRC (4).
FRAME_HEADER_BYTES = 12
FRAME_BYTES = FRAME_HEADER_BYTES + 4

_NUM_THREADS = 16


class DatasetInfo(typing.NamedTuple):
  """Counts of a data set, and what its classes are called."""
  num_classes: int                  # Background class included.
  num_images: typing.Dict[str, int]  # From split to count.
  # Entry i has label i + 1; None if they are not known.
  class_names: typing.Optional[typing.List[str]] = None


def read_dataset_info(data_dir):
  """Counts and names, from `dataset.json`; or the counts of ImageNet.

  Returns:
    A `DatasetInfo`.

  Raises:
    UserError: `dataset.json` is not what the record builder writes.
  """
  path = os.path.join(data_dir, DATASET_FILE_NAME)
  if not os.path.exists(path):
    return DatasetInfo(IMAGENET_NUM_CLASSES, dict(IMAGENET_NUM_IMAGES))
  check_regular(path)
  try:
    with open(path) as dataset_file:
      fields = json.load(dataset_file)
    num_classes = int(fields['num_classes'])
    if num_classes < 2:
      raise ValueError(f'num_classes {num_classes}')
    class_names = fields.get('class_names')
    if class_names is not None:
      check_class_names(class_names, num_classes)
    return DatasetInfo(
        num_classes, {split: int(fields['num_images'][split])
                      for split in IMAGENET_NUM_IMAGES}, class_names)
  except (OSError, ValueError, KeyError, TypeError, OverflowError,
          RecursionError) as error:
    raise UserError(f'{path}: not a description of a data set '
                    f'({type(error).__name__}: {error}); build the records '
                    'again')


def find_shards(data_dir, split):
  """Paths of all shards of `split`, in name order.

  Raises:
    UserError: there are none, one is missing or too many, or two sets are
      mixed.
  """
  if not os.path.isdir(data_dir):
    raise UserError(f'--data_dir {data_dir}: no such folder')
  for folder in (os.path.join(data_dir, split), data_dir):
    paths = [path for path in glob.glob(os.path.join(
        glob.escape(folder), split + '-*-of-*')) if _shard_number(path)]
    if paths:
      break
  else:
    raise UserError(
        f'--data_dir {data_dir}: no {split} shards ({split}/{split}-00000-of-N)'
        '; step 2 of the README makes them')
  totals = sorted({_shard_number(path)[1] for path in paths})
  if len(totals) > 1:
    names = ' and '.join(f'-of-{total:05d}' for total in totals)
    raise UserError(f'{folder}: shards of {len(totals)} different sets '
                    f'({split}-*{names}); keep one')
  expected = [
      os.path.join(folder, f'{split}-{number:05d}-of-{totals[0]:05d}')
      for number in range(totals[0])]
  missing = sorted(set(expected) - set(paths))
  if missing:
    others = f' ({len(missing)} shards are)' if len(missing) > 1 else ''
    raise UserError(f'{missing[0]}: missing{others}; build or copy it again')
  surplus = sorted(set(paths) - set(expected))
  if surplus:
    raise UserError(f'{surplus[0]}: its number is not below its total; remove '
                    'it')
  for path in expected:
    if not os.path.isfile(path):  # To read a FIFO would wait forever.
      raise UserError(f'{path}: not a regular file; build or copy it again')
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
      frames = list(record_frames(path))
      offset, length = frames[-1] if frames else (-FRAME_BYTES, 0)
      is_whole = offset + FRAME_BYTES + length == os.path.getsize(path)
    except OSError as error:
      raise UserError(f'{path}: cannot be read ({error.strerror})')
    # No image has no bytes: the file may be filled up with zeros.
    if not is_whole or any(length == 0 for _, length in frames):
      error = corrupt_record_error(path)
      if error:
        raise error
    if not is_whole:  # TensorFlow takes a part of a header for the end.
      raise _corrupt_record_error(path, len(frames) - 1, offset)
    return len(frames)

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
      f'{path}: truncated or corrupt at record {number:,} (byte {offset:,} of '
      f'{os.path.getsize(path):,}); build or copy this shard again')


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
      raise UserError(f'{path}: record 0 has no {name}; step 2 of the README '
                      'makes the records that are read here')


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
  _check_first_record(paths)
  if num_records != expected:
    if os.path.exists(os.path.join(data_dir, DATASET_FILE_NAME)):
      raise UserError(
          f'{folder}: the shards hold {num_records:,} records where '
          f'{DATASET_FILE_NAME} says {expected:,}; build or copy the records '
          'again')
    # Not an error: the published record script drops 80 validation and 143
    # training images, and such records are still about.
    sys.stderr.write(f'{folder}: {num_records:,} records where ImageNet has '
                     f'{expected:,} images\n')
  return paths, counts


def shards_from_row(paths, counts, row, cycle_length=INTERLEAVED_SHARDS):
  """What to interleave so that the rows from `row` on come, and no others.

  For example, with the shards a, b, c of the file's docstring and two places,
  row 4 is b2. Place 2 is next, and c, in place 1, has given c0:
  [(b, 2 records to skip), (c, 1)].

  Args:
    paths: the shards, in name order.
    counts: records in each of them.
    row: of the whole pass, the first to come; 0 to the sum of `counts`.
    cycle_length: places.

  Returns:
    A list of (path, records to skip), for `interleave(lambda path, skip:
    TFRecordDataset(path).skip(skip), cycle_length, block_length=1)`. All
    records of a shard are skipped where its end has yet to be found.

  Raises:
    ValueError: there are fewer rows.
  """
  if not 0 <= row <= sum(counts):
    raise ValueError(f'row {row:,} of {sum(counts):,}')
  places = [None] * cycle_length  # Index of the shard that sits there.
  num_read = [0] * len(counts)
  waiting = collections.deque(range(len(counts)))
  turn, rows_left = 0, row
  while rows_left:
    if places[turn] is None and waiting:
      places[turn] = waiting.popleft()
    shard = places[turn]
    if shard is not None:
      if num_read[shard] < counts[shard]:
        num_read[shard] += 1
        rows_left -= 1
      else:
        places[turn] = None
    turn = (turn + 1) % cycle_length
  # The place whose turn it is comes first. The next shard comes to a free
  # place in this round, before any shard that ends in it is replaced.
  remaining = []
  for shard in places[turn:] + places[:turn]:
    if shard is None and waiting:
      shard = waiting.popleft()
    if shard is not None:
      remaining.append(shard)
  remaining.extend(waiting)
  return [(paths[shard], num_read[shard]) for shard in remaining]
