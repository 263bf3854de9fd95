"""The folders that records and labels go to: made, checked, written safely."""

import glob
import json
import os
import re
import shutil

import numpy as np

from record_shards import SPLITS, shard_name
from tools_command_line import InputError, unfinished_file, unfinished_path

DATASET_FILE_NAME = 'dataset.json'


def labels_file_name(split):
  """File name of a split's labels, as the paper's repository has it."""
  return '{}_non_onehot.npy'.format(split)


class RecordFolder(object):
  """Where a build writes.

  Attributes:
    output_dir: gets the folders train and validation, and dataset.json.
    num_shards: a dict from split to int.
    dataset_path: of dataset.json.
  """

  def __init__(self, output_dir, labels_dir, num_shards):
    """
    Args:
      output_dir, num_shards: as above.
      labels_dir: gets the label files; None: the parent of `output_dir`.
    """
    self.output_dir = output_dir
    self.num_shards = num_shards
    self.dataset_path = os.path.join(output_dir, DATASET_FILE_NAME)
    self._labels_dir = labels_dir or os.path.dirname(
        os.path.abspath(output_dir))

  def split_dir(self, split):
    return os.path.join(self.output_dir, split)

  def labels_path(self, split):
    return os.path.join(self._labels_dir, labels_file_name(split))

  def shard_paths(self):
    """Paths of all shards to be, split by split, in name order."""
    return [os.path.join(self.split_dir(split), shard_name(split, i, count))
            for split, count in sorted(self.num_shards.items())
            for i in range(count)]

  def prepare(self):
    """Makes the folders and checks that they can be written.

    Raises:
      InputError: there are shards of another count, which a reader would mix
        up with the new ones, or a label file that is not one of ours; or a
        folder cannot be made or written.
    """
    for split, count in self.num_shards.items():
      for path in find_shards(self.split_dir(split), split):
        if int(path[-5:]) != count:
          raise InputError(
              '{}: a shard of another count than --{}_shards {}; remove the '
              'old shards, give their count or name another --output_dir'
              .format(path, split, count))
      _check_replaceable(self.labels_path(split))
    for folder in [self._labels_dir] + [
        self.split_dir(split) for split in SPLITS]:
      try:
        os.makedirs(folder, exist_ok=True)
        probe = os.path.join(folder, '.write_probe')
        with open(probe, 'wb'):
          pass
        os.remove(probe)
      except OSError as error:
        raise InputError(
            '{}: cannot be written ({}); name another --output_dir or '
            '--labels_dir'.format(folder, error.strerror))

  def check_shards_are_of(self, journal):
    """Raises `InputError` if there are shards that the journal does not know.
    """
    for split in SPLITS if journal.build is None else []:
      for path in find_shards(self.split_dir(split), split):
        raise InputError(
            '{}: made by another program, or by an earlier version of this '
            'one; remove these shards or name another --output_dir'.format(
                path))

  def check_space(self, required_bytes):
    """Raises `InputError` if so many bytes would not fit on the disk."""
    free_bytes = shutil.disk_usage(self.output_dir).free
    if required_bytes > free_bytes:
      raise InputError(
          '--output_dir {}: the records take {:,} MB and {:,} MB are free; '
          'free some space or name a folder on another disk'.format(
              self.output_dir, -(-required_bytes // 10**6),
              free_bytes // 10**6))

  def is_complete(self, journal):
    """Whether every file is there, the shards as the journal has them."""
    return (
        os.path.exists(self.dataset_path) and
        all(os.path.exists(self.labels_path(split)) for split in SPLITS) and
        all(is_finished(path, journal) for path in self.shard_paths()))

  def remove_unfinished(self):
    """Removes what is left of shards whose writing was stopped."""
    for path in self.shard_paths():
      if os.path.exists(unfinished_path(path)):
        os.remove(unfinished_path(path))

  def withdraw_dataset(self):
    """Removes dataset.json, as the records are not complete."""
    if os.path.exists(self.dataset_path):
      os.remove(self.dataset_path)

  def write_labels(self, split, labels):
    """Writes the labels of a split (int32 [images]) as .npy."""
    with unfinished_file(self.labels_path(split)) as temporary:
      with open(temporary, 'wb') as labels_file:
        np.save(labels_file, labels)

  def write_dataset(self, content):
    """Writes dataset.json, which says that the records are complete."""
    with unfinished_file(self.dataset_path) as temporary:
      with open(temporary, 'w') as dataset_file:
        json.dump(content, dataset_file, indent=1, sort_keys=True)
        dataset_file.write('\n')


def find_shards(folder, split):
  """Paths of the files in a folder that are named as shards, in name order."""
  pattern = os.path.join(glob.escape(folder), split + '-*-of-*')
  return [path for path in sorted(glob.glob(pattern))
          if re.search(r'-\d{5}-of-\d{5}$', path)]


def is_finished(path, journal):
  """Whether a shard is there as the journal has it, by its size."""
  entry = journal.entries.get(os.path.basename(path))
  return (entry is not None and os.path.exists(path) and
          os.path.getsize(path) == entry['bytes'])


def _check_replaceable(path):
  """Refuses to overwrite published labels, which are a pickle named .npy."""
  if not os.path.exists(path):
    return
  try:
    labels = np.load(path, mmap_mode='r', allow_pickle=False)
  except (ValueError, EOFError, OSError):  # Depends on the version of NumPy.
    labels = None
  if labels is None or labels.dtype != np.int32 or labels.ndim != 1:
    raise InputError('{}: not a label file of this program; move it away or '
                     'name another --labels_dir'.format(path))
