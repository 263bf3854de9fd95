"""Softmax dumps: file names, parts of the training split, and shards.

A dump is what one classifier says of every image of one split: one row per
image, in reading order. The file names are those of the paper's repository
(README, steps 3 to 6).

A pass over a split may be shared by several processes: each dumps one range of
the rows, into a shard of every file (`--dump_shard`).

The analysis takes the names from here.
"""

import collections
import os
import re

from file_system import LOCAL
from user_error import UserError

SPLITS = ('validation', 'train')

# The published training dumps come in three files, cut at these rows.
TRAIN_PART_STARTS = (0, 400000, 800000)

# An unfinished file carries this suffix; it gets its name when it is whole.
UNFINISHED_SUFFIX = '.unfinished'

# Shard `number` of `total`; numbers begin with 1.
DumpShard = collections.namedtuple('DumpShard', 'number total')


def labels_file_name(split):
  """Name of the labels of `split`, int32 [images]."""
  return '{}_non_onehot.npy'.format(split)


def probabilities_file_names(classifier_id, split):
  """Names of the softmax files, float32 [images, classes], in row order."""
  if split == 'validation':
    return ['clf{}_all_probabilities.npy'.format(classifier_id)]
  num_parts = len(TRAIN_PART_STARTS)
  return ['clf{}_train_{}of{}_all_probabilities.npy'.format(
      classifier_id, part, num_parts) for part in range(1, num_parts + 1)]


def top5_classes_file_name(classifier_id, split):
  """Name of the five most probable classes, int32 [images, 5], best first."""
  return 'clf{}_{}top5_classes.npy'.format(classifier_id, _infix(split))


def top5_probabilities_file_name(classifier_id, split):
  """Name of the five largest softmaxes, float32 [images, 5], best first."""
  return 'clf{}_{}top5_probabilities.npy'.format(classifier_id, _infix(split))


def _infix(split):
  return '' if split == 'validation' else 'train_'


def classifier_file_names(classifier_id, split):
  """Names of all files of one classifier's dump of `split`."""
  return probabilities_file_names(classifier_id, split) + [
      top5_classes_file_name(classifier_id, split),
      top5_probabilities_file_name(classifier_id, split)]


def holds_dump(folder, classifier_id, split, file_system=LOCAL):
  """Whether `folder` holds anything of a classifier's dump of `split`.

  A shard of a file counts; top-5 probabilities alone do not.
  """
  counted = classifier_file_names(classifier_id, split)
  counted.remove(top5_probabilities_file_name(classifier_id, split))
  return any(name in counted or split_shard_name(name)[0] in counted
             for name in names_in(folder, file_system))


def names_in(folder, file_system=LOCAL):
  """Names in `folder`, sorted; none where there is no such folder.

  Raises:
    UserError: it cannot be read.
  """
  try:
    return file_system.names(folder)
  except OSError as error:
    raise UserError('{}: cannot be read ({}); check its permissions'.format(
        folder, error.strerror))


def part_bounds(split, num_images):
  """Rows `(start, stop)` of each file of `probabilities_file_names`.

  A split that ends before a part begins leaves that part with no rows.
  """
  starts = TRAIN_PART_STARTS if split == 'train' else (0,)
  stops = starts[1:] + (max(num_images, starts[-1]),)
  return [(min(start, num_images), min(stop, num_images))
          for start, stop in zip(starts, stops)]


def dump_bytes(num_images, num_classes, num_classifiers):
  """Bytes that the dumps of a split take on disk, headers aside."""
  probabilities, top5, label = 4 * num_classes, 5 * (4 + 4), 4
  return num_images * (num_classifiers * (probabilities + top5) + label)


def parse_shard(text):
  """`DumpShard` of a flag such as '2/4'; None of None.

  Raises:
    UserError: it is something else.
  """
  if text is None:
    return None
  match = re.match(r'(\d+)/(\d+)$', text)
  shard = match and DumpShard(*map(int, match.groups()))
  if not shard or not 1 <= shard.number <= shard.total:
    raise UserError('--dump_shard {}: which of how many, such as 1/4, 2/4, '
                    '3/4 and 4/4'.format(text))
  return shard


def shard_rows(num_images, number, total, batch_size):
  """Rows `(start, stop)` of a split that shard `number` of `total` takes.

  Shards are cut between batches, so that their batches are those of a pass by
  one process. Where there are more shards than batches some have no rows.
  """
  num_batches = -(-num_images // batch_size)
  start, stop = [min(num_batches * n // total * batch_size, num_images)
                 for n in (number - 1, number)]
  return start, stop


def shard_file_name(name, shard):
  """Name of a shard of the file `name`; `name` itself where `shard` is None."""
  if shard is None:
    return name
  stem, suffix = os.path.splitext(name)
  return '{}.shard-{:02d}-of-{:02d}{}'.format(
      stem, shard.number, shard.total, suffix)


def split_shard_name(name):
  """The file and the `DumpShard` that a name such as `shard_file_name` gives is
  of; `(None, None)` for any other name."""
  match = re.match(r'(.*)\.shard-(\d+)-of-(\d+)(\.npy)$', name)
  if not match:
    return None, None
  return match.group(1) + match.group(4), DumpShard(
      int(match.group(2)), int(match.group(3)))
