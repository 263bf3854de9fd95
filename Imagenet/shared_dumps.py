"""Softmax dumps: file names, parts of the training split, and shards.

A dump holds what one classifier says about every image of one split: one row
per image, in reading order. The file names are those of the paper's repository
(README, steps 3 to 6), and the analysis takes them from here. Several processes
may share a pass over a split (`--dump_shard`): each writes a range of the rows,
into its own shard of every file. No TensorFlow.
"""

import os
import re
import typing

from shared_terminal import UserError

SPLITS = ('validation', 'train')

# The published training dumps come in three files, cut at these rows.
TRAIN_PART_STARTS = (0, 400000, 800000)

# The most probable classes of each row have files of their own.
NUM_TOP = 5

# The record of the dumps in a folder, see `shared_cascade_json.py`.
CASCADE_FILE_NAME = 'cascade.json'


class DumpShard(typing.NamedTuple):
  """One of the processes that share a pass."""
  number: int  # Which one; the first is 1.
  total: int   # How many there are.


def labels_file_name(split):
  """Name of the labels of `split`, int32 [images]."""
  return f'{split}_non_onehot.npy'


def probabilities_file_names(classifier_id, split):
  """Names of the softmax files, float32 [images, classes], in row order."""
  if split == 'validation':
    return [f'clf{classifier_id}_all_probabilities.npy']
  num_parts = len(TRAIN_PART_STARTS)
  return [f'clf{classifier_id}_train_{part}of{num_parts}_all_probabilities.npy'
          for part in range(1, num_parts + 1)]


def whole_train_file_name(classifier_id):
  """Name of a training dump in one file, as other programs write it."""
  return f'clf{classifier_id}_train_all_probabilities.npy'


def top5_classes_file_name(classifier_id, split):
  """Name of the five most probable classes, int32 [images, 5], best first."""
  return f'clf{classifier_id}_{_infix(split)}top5_classes.npy'


def top5_probabilities_file_name(classifier_id, split):
  """Name of the five largest softmaxes, float32 [images, 5], best first."""
  return f'clf{classifier_id}_{_infix(split)}top5_probabilities.npy'


def _infix(split):
  return '' if split == 'validation' else 'train_'


def dumped_classifiers(folder):
  """Classifiers of which `folder` holds a dump, or a part of one, ascending."""
  matches = [re.match(r'clf(\d+)_', name) for name in names_in(folder)]
  numbers = {int(match.group(1)) for match in matches if match}
  return [k for k in sorted(numbers)
          if any(holds_dump(folder, k, split) for split in SPLITS)]


def holds_dump(folder, classifier_id, split):
  """Whether `folder` holds any file of a dump, or a shard of one.

  Top-5 probabilities alone do not count.
  """
  counted = probabilities_file_names(classifier_id, split) + [
      top5_classes_file_name(classifier_id, split)]
  if split == 'train':
    counted.append(whole_train_file_name(classifier_id))
  return any(name in counted or split_shard_name(name)[0] in counted
             for name in names_in(folder))


def names_in(folder):
  """Names in `folder`, sorted; none if there is no such folder."""
  return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def part_bounds(split, num_images):
  """Rows `(start, stop)` of each file of `probabilities_file_names`.

  A split that ends before a part begins leaves that part without rows: 400,001
  training images give (0, 400000), (400000, 400001), (400001, 400001).
  """
  starts = TRAIN_PART_STARTS if split == 'train' else (0,)
  stops = starts[1:] + (max(num_images, starts[-1]),)
  return [(min(start, num_images), min(stop, num_images))
          for start, stop in zip(starts, stops)]


def parse_shard(text):
  """The `DumpShard` of a flag such as '2/4'; None for None.

  Raises:
    UserError: the text is something else.
  """
  if text is None:
    return None
  match = re.fullmatch(r'(\d+)/(\d+)', text)
  shard = match and DumpShard(*map(int, match.groups()))
  if not shard or not 1 <= shard.number <= shard.total:
    raise UserError(f'--dump_shard {text}: which of how many, such as 1/4, '
                    '2/4, 3/4 and 4/4')
  return shard


def shard_rows(num_images, number, total, batch_size):
  """Rows `(start, stop)` of a split that shard `number` of `total` takes.

  Shards are cut between batches, so that their batches are those of a single
  process. Two shards of 10 images in batches of 4 take rows 0 to 4 and 4 to 10.
  If there are more shards than batches, some have no rows.
  """
  num_batches = -(-num_images // batch_size)
  start, stop = [min(num_batches * n // total * batch_size, num_images)
                 for n in (number - 1, number)]
  return start, stop


def shard_file_name(name, shard):
  """Name of a shard of the file `name`; `name` itself if `shard` is None."""
  if shard is None:
    return name
  stem, suffix = os.path.splitext(name)
  return f'{stem}.shard-{shard.number:02d}-of-{shard.total:02d}{suffix}'


def split_shard_name(name):
  """Reverses `shard_file_name`.

  Returns:
    (name of the whole file, its `DumpShard`); (None, None) if `name` is not
    that of a shard.
  """
  match = re.fullmatch(r'(.*)\.shard-(\d+)-of-(\d+)(\.npy)', name)
  if not match:
    return None, None
  return match.group(1) + match.group(4), DumpShard(
      int(match.group(2)), int(match.group(3)))
