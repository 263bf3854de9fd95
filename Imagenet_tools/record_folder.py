"""The folder of a build: shards, labels, dataset.json, and what is done so far.

    train/train-00000-of-01024 ...     a shard has its name when it is whole
    dataset.json                       written last
    .build/settings.json               what is being built
    .build/train-00000-of-01024.json   what a shard holds; written before the
                                       shard gets its name
"""

import contextlib
import glob
import io
import json
import os
import shutil
import tempfile

import numpy as np

from shared_dataset import DATASET_FILE_NAME, SPLITS, shards_in
from shared_files import (
    UNFINISHED_SUFFIX, explain_content, explain_error, give_name, locked,
    write_atomically)
from shared_terminal import UserError

_BUILD_FOLDER = '.build'
_NO_SPACE = 'free some space, and give the same command again'


def unfinished_path(shard_path):
  """Where a shard is written; hidden, so 'train-*' does not match it."""
  folder, name = os.path.split(shard_path)
  return os.path.join(folder, f'.{name}{UNFINISHED_SUFFIX}')


class RecordFolder:
  """Where a build writes: the output folder, and the folder of the labels."""

  def __init__(self, output_dir, labels_dir):
    """`labels_dir`: str, or None for the parent of `output_dir`."""
    self.output_dir = output_dir
    self._dataset_path = os.path.join(output_dir, DATASET_FILE_NAME)
    self._labels_dir = labels_dir or os.path.dirname(
        os.path.abspath(output_dir))
    self._build_dir = os.path.join(output_dir, _BUILD_FOLDER)
    self._settings_path = os.path.join(self._build_dir, 'settings.json')

  def split_dir(self, split):
    return os.path.join(self.output_dir, split)

  def labels_path(self, split):
    """Of a split's labels; the name is that of the paper's repository."""
    return os.path.join(self._labels_dir, f'{split}_non_onehot.npy')

  @contextlib.contextmanager
  def opened(self):
    """Makes the folders and holds the build's lock.

    Raises:
      UserError: another run is at work here, a folder cannot be written, or
        there are label files or shards that are not ours.
    """
    for folder in (self._labels_dir, self._build_dir,
                   *map(self.split_dir, SPLITS)):
      with explain_error(folder, 'name another --output_dir or --labels_dir'):
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    for split in SPLITS:
      _check_replaceable(self.labels_path(split))

    def refuse():
      raise UserError(f'{self.output_dir}: another run is at work here; wait '
                      'for its end, or name another --output_dir')
    with locked(self._build_dir, refuse):
      if not os.path.exists(self._settings_path):
        for split in SPLITS:
          for path in shards_in(self.split_dir(split), split):
            raise UserError(
                f'{path}: made by another program, or by an earlier version of '
                'this one; remove these shards or name another --output_dir')
      yield

  def check(self, settings):
    """Raises `UserError` if an earlier run has begun another build.

    `settings`: what is being built, a dict of what JSON can express.
    """
    if not os.path.exists(self._settings_path):
      return
    earlier = self._read(self._settings_path)
    different = [key for key in settings if earlier.get(key) != settings[key]]
    if different:
      raise UserError(
          f'{self.output_dir}: holds records of another build (of other '
          f'{different[0].replace("_", " ")}); remove that folder or name '
          'another --output_dir')

  def begin(self, settings):
    """States what is being built: no longer complete, if it was."""
    # What a run that was killed has left.
    for start in (os.path.join(self.split_dir('train'), '.'),
                  os.path.join(self.split_dir('validation'), '.'),
                  os.path.join(self._build_dir, ''), self._dataset_path,
                  *map(self.labels_path, SPLITS)):
      for path in glob.glob(f'{glob.escape(start)}*{UNFINISHED_SUFFIX}'):
        os.remove(path)
    self._write_json(self._settings_path, settings)
    if os.path.exists(self._dataset_path):
      os.remove(self._dataset_path)

  def entry(self, shard_path):
    """What `finish_shard` was given for a shard that is there, or None."""
    note = self._note_path(shard_path)
    if not (os.path.exists(shard_path) and os.path.exists(note)):
      return None
    entry = self._read(note)
    is_whole = os.path.getsize(shard_path) == entry['bytes']
    return entry if is_whole else None

  def finish_shard(self, shard_path, entry):
    """Notes what a written shard holds (a dict), and gives it its name."""
    self._write_json(self._note_path(shard_path), entry)
    with explain_error(shard_path, _NO_SPACE):
      give_name(unfinished_path(shard_path), shard_path)
    # The next shard gets the memory of this one, and the archives keep theirs.
    # Fresh memory made writing take up to six times as long on one machine.
    if hasattr(os, 'posix_fadvise'):
      with contextlib.suppress(OSError), open(shard_path, 'rb') as written:
        os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

  def _note_path(self, shard_path):
    return os.path.join(
        self._build_dir, f'{os.path.basename(shard_path)}.json')

  def check_space(self, required_bytes):
    """Raises `UserError` if so many bytes would not fit on the disk."""
    free_bytes = shutil.disk_usage(self.output_dir).free
    if required_bytes > free_bytes:
      raise UserError(
          f'--output_dir {self.output_dir}: the records take '
          f'{-(-required_bytes // 10**6):,} MB and {free_bytes // 10**6:,} MB '
          'are free; free some space or name a folder on another disk')

  def is_complete(self):
    """Whether dataset.json and the labels are there."""
    return all(map(os.path.exists, (
        self._dataset_path, *map(self.labels_path, SPLITS))))

  def write_labels(self, split, labels):
    """Writes the labels of a split (int32 [images]) as .npy."""
    content = io.BytesIO()
    np.save(content, labels)
    self._write(self.labels_path(split), content.getvalue())

  def write_dataset(self, content):
    """Writes dataset.json, which says that the records are complete."""
    self._write_json(self._dataset_path, content)

  def _read(self, path):
    with explain_content(path, f'remove {self.output_dir}'), open(
        path, encoding='utf-8') as stream:
      return dict(json.load(stream))

  def _write_json(self, path, content):
    self._write(path, (json.dumps(content, indent=1, sort_keys=True) +
                       '\n').encode())

  def _write(self, path, content):
    with explain_error(path, _NO_SPACE):
      write_atomically(path, content)


def _check_replaceable(path):
  """Refuses to overwrite published labels, which are a pickle named .npy."""
  if os.path.exists(path):
    magic = np.lib.format.MAGIC_PREFIX
    with open(path, 'rb') as stream:
      if stream.read(len(magic)) != magic:
        raise UserError(f'{path}: not a label file of this program; move it '
                        'away or name another --labels_dir')
