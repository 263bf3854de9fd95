"""A data set of TFRecords on the disk: shards, reading order, dataset.json.

A data folder is what `Imagenet_tools/` writes (and others write as well):
`train/train-00000-of-01024`, ..., or the same files without the subfolder as
the official code has it, and perhaps a `dataset.json`.
"""

import glob
import itertools
import json
import os
import re
import typing

from shared_files import explain_content
from shared_terminal import UserError

SPLITS = ('train', 'validation')

IMAGENET_NUM_CLASSES = 1001  # 1000 synsets and class 0, unused.
IMAGENET_NUM_IMAGES = {'train': 1281167, 'validation': 50000}

DATASET_FILE_NAME = 'dataset.json'

# Shards that an evaluation pass reads in turns; see `record_shards.py` of
# Imagenet_tools/, which writes the label files in this order.
INTERLEAVED_SHARDS = 10

# TFRecord framing: length (8 bytes), its CRC (4), data, the data's CRC (4).
FRAME_HEADER_BYTES = 12
FRAME_BYTES = FRAME_HEADER_BYTES + 4


class DatasetInfo(typing.NamedTuple):
  """What dataset.json says, as far as it is read again."""
  num_classes: int                   # Background class included.
  num_images: typing.Dict[str, int]  # From split to count.
  # Entry i has label i + 1; None if they are not known.
  class_names: typing.Optional[typing.List[str]] = None
  # From split to SHA-256 by file name; empty for records of other programs.
  shard_sha256: typing.Dict[str, typing.Dict[str, str]] = {}


def read_dataset(data_dir):
  """Reads dataset.json; where there is none, the records are of ImageNet.

  Returns:
    A `DatasetInfo`.

  Raises:
    UserError: the file is not what the record builder writes.
  """
  path = os.path.join(data_dir, DATASET_FILE_NAME)
  if not os.path.exists(path):
    return DatasetInfo(IMAGENET_NUM_CLASSES, dict(IMAGENET_NUM_IMAGES))
  with explain_content(path, 'build the records again'):
    with open(path, encoding='utf-8') as stream:
      content = json.load(stream)
    names = content.get('class_names')
    info = DatasetInfo(
        int(content['num_classes']),
        {split: int(content['num_images'][split]) for split in SPLITS},
        names and check_class_names(names, content['num_classes']),
        {split: {name: shard['sha256'] for name, shard in shards.items()}
         for split, shards in content.get('shards', {}).items()})
    if info.num_classes < 2:
      raise ValueError(f'num_classes {info.num_classes}')
  return info


def check_class_names(class_names, num_classes):
  """Returns the names of all classes but the background class, 0.

  Raises:
    ValueError: they are not a list of so many strings.
  """
  if not (isinstance(class_names, list) and
          len(class_names) == num_classes - 1 and
          all(isinstance(name, str) for name in class_names)):
    raise ValueError(f'class_names is not a list of {num_classes - 1:,} names')
  return class_names


def check_same_classes(names, source, others, other_source):
  """Refuses two lists of class names that differ; either may be None.

  The sources are files or flags, for the message.
  """
  pairs = itertools.zip_longest(names or [], others or [], fillvalue='none')
  for label, (name, other) in enumerate(pairs, start=1):
    if names and others and name != other:
      raise UserError(f'{source}: class {label} is {name!r}, and {other!r} in '
                      f'{other_source}; use records and weights of the same '
                      'classes')


def shard_name(split, number, total):
  """File name of a shard, such as 'train-00007-of-01024'."""
  return f'{split}-{number:05d}-of-{total:05d}'


def shards_in(folder, split):
  """Paths of the files in a folder that are named as shards, in name order."""
  return [path for path in sorted(glob.glob(
      os.path.join(glob.escape(folder), f'{split}-*-of-*')))
          if re.search(r'-\d{5}-of-\d{5}$', path)]


def find_shards(data_dir, split):
  """Paths of all shards of `split`, in name order; empty if there are none.

  They are in `data_dir/split`, or in `data_dir` itself.

  Raises:
    UserError: there is no such folder, or not just the shards of one set.
  """
  if not os.path.isdir(data_dir):
    raise UserError(f'{data_dir}: no such folder; step 2 of the README makes '
                    'it')
  folder = os.path.join(data_dir, split)
  paths = shards_in(folder, split)
  if not paths:
    folder, paths = data_dir, shards_in(data_dir, split)
  total = int(paths[0][-5:]) if paths else 0
  expected = [os.path.join(folder, shard_name(split, number, total))
              for number in range(total)]
  for path in sorted(set(paths) ^ set(expected)):
    problem = 'of another set of shards' if path in paths else 'missing'
    raise UserError(f'{path}: {problem}; build or copy one whole set of '
                    f'{split} shards')
  return expected
