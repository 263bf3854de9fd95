"""The folder of a build: its shards, labels, dataset.json and journal."""

import errno
import fcntl
import glob
import io
import json
import os
import re
import shutil
import time

import numpy as np

from record_shards import SPLITS, shard_name
from tools_command_line import (
    InputError, open_regular, unfinished_path, write_file)

DATASET_FILE_NAME = 'dataset.json'
JOURNAL_FILE_NAME = '.build_journal.jsonl'

# The workers of a build that was killed end within this time.
_LOCK_SECONDS = 10.
_LOCK_RETRY_SECONDS = 0.05

# What `write_shard` returns, and what it says of each skipped image.
_ENTRY_TYPES = {'shard': str, 'bytes': int, 'records': int, 'sha256': str,
                'decoded': bool, 'skipped': list}
_SKIPPED_TYPES = {'position': int, 'image': str, 'reason': str}


class RecordFolder:
  """Where a build writes: train/, validation/ and dataset.json, the labels."""

  def __init__(self, output_dir, labels_dir, num_shards):
    """
    Args:
      output_dir: str.
      labels_dir: str, gets the labels; None: the parent of `output_dir`.
      num_shards: a dict from split to int.
    """
    self.output_dir = output_dir
    self.num_shards = num_shards
    self._dataset_path = os.path.join(output_dir, DATASET_FILE_NAME)
    self._labels_dir = labels_dir or os.path.dirname(
        os.path.abspath(output_dir))

  def split_dir(self, split):
    return os.path.join(self.output_dir, split)

  def labels_path(self, split):
    """Of a split's labels; the name is that of the paper's repository."""
    return os.path.join(self._labels_dir, f'{split}_non_onehot.npy')

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
              f'{path}: a shard of another count than --{split}_shards '
              f'{count}; remove the old shards, give their count or name '
              'another --output_dir')
      _check_replaceable(self.labels_path(split))
    for folder in (self._labels_dir, *map(self.split_dir, SPLITS)):
      try:
        os.makedirs(folder, exist_ok=True)
        probe = os.path.join(folder, '.write_probe')
        open(probe, 'wb').close()
        os.remove(probe)
      except OSError as error:
        raise InputError(f'{folder}: cannot be written ({error.strerror}); '
                         'name another --output_dir or --labels_dir')

  def check_no_shards(self):
    """Raises `InputError` if there are shards, whoever made them."""
    for split in SPLITS:
      for path in find_shards(self.split_dir(split), split):
        raise InputError(
            f'{path}: made by another program, or by an earlier version of '
            'this one; remove these shards or name another --output_dir')

  def check_space(self, required_bytes):
    """Raises `InputError` if so many bytes would not fit on the disk."""
    free_bytes = shutil.disk_usage(self.output_dir).free
    if required_bytes > free_bytes:
      raise InputError(
          f'--output_dir {self.output_dir}: the records take '
          f'{-(-required_bytes // 10**6):,} MB and {free_bytes // 10**6:,} MB '
          'are free; free some space or name a folder on another disk')

  def is_complete(self, journal):
    """Whether every file is there, the shards as the journal has them."""
    return (os.path.exists(self._dataset_path) and
            all(map(os.path.exists, map(self.labels_path, SPLITS))) and
            all(map(journal.has, self.shard_paths())))

  def remove_unfinished(self):
    """Removes what is left of shards whose writing was stopped."""
    for path in map(unfinished_path, self.shard_paths()):
      if os.path.exists(path):
        os.remove(path)

  def withdraw_dataset(self):
    """Removes dataset.json, as the records are not complete."""
    if os.path.exists(self._dataset_path):
      os.remove(self._dataset_path)

  def write_labels(self, split, labels):
    """Writes the labels of a split (int32 [images]) as .npy."""
    content = io.BytesIO()
    np.save(content, labels)
    write_file(self.labels_path(split), content.getvalue())

  def write_dataset(self, content):
    """Writes dataset.json, which says that the records are complete."""
    text = json.dumps(content, indent=1, sort_keys=True)
    write_file(self._dataset_path, f'{text}\n'.encode())


def find_shards(folder, split):
  """Paths of the files in a folder that are named as shards, in name order."""
  pattern = os.path.join(glob.escape(folder), f'{split}-*-of-*')
  return [path for path in sorted(glob.glob(pattern))
          if re.search(r'-\d{5}-of-\d{5}$', path)]


def _check_replaceable(path):
  """Refuses to overwrite published labels, which are a pickle named .npy."""
  labels = None
  if os.path.isfile(path):
    try:
      labels = np.load(path, mmap_mode='r', allow_pickle=False)
    except Exception:  # NumPy lets through what its header's parser raises.
      pass
  if os.path.lexists(path) and (
      getattr(labels, 'dtype', None) != np.int32 or labels.ndim != 1):
    raise InputError(f'{path}: not a label file of this program; move it away '
                     'or name another --labels_dir')


def read_dataset(data_dir):
  """What dataset.json says of the shards.

  Returns:
    A dict with 'num_classes' (int), 'shards' (a dict from split to a dict from
    file name to SHA-256) and 'class_counts' (a dict from split to a list of
    int); the latter two are empty where the file, or an older one, does not
    tell. None without the file.

  Raises:
    InputError: it is not what the record builder writes.
  """
  path = os.path.join(data_dir, DATASET_FILE_NAME)
  if not os.path.exists(path):
    return None
  try:
    with open_regular(path) as dataset_file:
      content = json.loads(dataset_file.read().decode())
    shards = _of_type(dict, content.get('shards', {}))
    class_counts = _of_type(dict, content.get('class_counts', {}))
    for split in set(shards) | set(class_counts):
      if split not in SPLITS:
        raise ValueError(f'no split is named {split}')
    return {
        'num_classes': _of_type(int, content['num_classes']),
        'shards': {
            split: {name: _of_type(str, shard['sha256'])
                    for name, shard in _of_type(dict, listed).items()}
            for split, listed in shards.items()},
        'class_counts': {
            split: [_of_type(int, count) for count in _of_type(list, counts)]
            for split, counts in class_counts.items()}}
  except (ValueError, KeyError, TypeError, AttributeError,
          RecursionError) as error:
    raise InputError(
        f'{path}: not a description of a data set ({type(error).__name__}: '
        f'{error}); build the records again')


def _of_type(kind, value):
  """The value read from JSON; TypeError unless it is of that very type."""
  if type(value) is not kind:  # True is an int to isinstance.
    raise TypeError(f'a {type(value).__name__} where a {kind.__name__} belongs')
  return value


class BuildJournal:
  """What a build has done so far, so it can go on after any stop.

  A file of one JSON object per line: first what is being built, then one line,
  written durably, for each shard that has its final name. A context manager:
  the file is locked as long as a process of the build is alive.

  Attributes:
    build: the dict that `begin` was given, by this run or an earlier one; None
      if there was none.
    entries: a dict from the file names of shards to what `add` was given.
  """

  def __init__(self, output_dir):
    """`output_dir`: an existing folder."""
    self.build = None
    self.entries = {}
    self._path = os.path.join(output_dir, JOURNAL_FILE_NAME)
    self._file = None
    self._output_dir = output_dir

  def __enter__(self):
    """Locks and reads the journal.

    Raises:
      InputError: another run is at work in this folder, or the file system
        has no locks.
      OSError: the journal cannot be read or written.
    """
    give_up_at = time.monotonic() + _LOCK_SECONDS
    while not self._is_locked():
      if time.monotonic() > give_up_at:
        raise InputError(f'{self._output_dir}: another run is at work here; '
                         'wait for its end, or name another --output_dir')
      time.sleep(_LOCK_RETRY_SECONDS)
    self._read()
    return self

  def __exit__(self, *_):
    if self.build is None:  # Nothing was begun.
      os.remove(self._path)
    self._file.close()

  def _is_locked(self):
    """Opens and locks the file, if no other process has it."""
    if os.path.exists(self._path):
      open_regular(self._path).close()
    self._file = open(self._path, 'a+b')
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      # A run that began nothing may have removed it before the lock.
      if os.path.exists(self._path) and os.path.samestat(
          os.fstat(self._file.fileno()), os.stat(self._path)):
        return True
    except OSError as error:
      if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
        raise InputError(f'{self._path}: cannot be locked ({error.strerror})'
                         '; name an --output_dir on another disk')
    self._file.close()
    return False

  def _read(self):
    """Reads line by line up to one that is cut short or damaged.

    That line and those behind it are dropped: their shards are written again.
    """
    self._file.seek(0)
    whole_bytes = 0
    for line in self._file:
      try:
        content = _of_type(dict, json.loads(line.decode()))
        if self.build is not None:
          _check_entry(content)
      except (ValueError, KeyError, TypeError, RecursionError):
        break
      if not line.endswith(b'\n'):
        break
      if self.build is None:
        self.build = content
      else:
        self.entries[content['shard']] = content
      whole_bytes += len(line)
    if whole_bytes < os.fstat(self._file.fileno()).st_size:
      self._file.truncate(whole_bytes)

  def has(self, path):
    """Whether a shard is there as the journal has it, by its size."""
    entry = self.entries.get(os.path.basename(path))
    return (entry is not None and os.path.isfile(path) and
            os.path.getsize(path) == entry['bytes'])

  def check(self, build):
    """Raises `InputError` if an earlier run has begun another build.

    `build`: all that `begin` will be given, or as much of it as is known.
    """
    for key in sorted(build) if self.build is not None else []:
      here, there = build[key], self.build.get(key)
      if here == there:
        continue
      difference = f'{key} {there} there, {here} here'
      if isinstance(here, dict) or len(difference) > 80:
        difference = f'other {key}'
      difference = difference.replace('_', ' ')
      raise InputError(
          f'{self._output_dir}: holds records of another build ({difference});'
          ' remove that folder or name another --output_dir')

  def begin(self, build):
    """States what is being built, unless an earlier run has."""
    if self.build is None:
      self._append(build)
      self.build = build

  def add(self, entry):
    """Notes a finished shard, durably; `entry` is of `write_shard`."""
    self._append(entry)
    self.entries[entry['shard']] = entry

  def _append(self, content):
    line = json.dumps(content, sort_keys=True) + '\n'
    self._file.seek(0, os.SEEK_END)
    self._file.write(line.encode())
    self._file.flush()
    os.fsync(self._file.fileno())


def _check_entry(entry):
  """KeyError or TypeError unless a dict is what `write_shard` returns."""
  for key, kind in _ENTRY_TYPES.items():
    _of_type(kind, entry[key])
  for bad in entry['skipped']:
    for key, kind in _SKIPPED_TYPES.items():
      _of_type(kind, bad[key])
