"""Reads a folder of records from the disk and says whether they are sound.

    python3 verify_records.py tf_records

checks the checksum of every record, that it has a JPEG and a label, and, where
dataset.json lists them, each shard's SHA-256 and the images of each class.
Records made by other programs are checked as well.
"""

import json
import os
import sys

import numpy as np

from record_folder import DATASET_FILE_NAME, find_shards
from record_shards import SPLITS, check_records, shard_name
from shard_workers import Workers, num_cores
from tools_command_line import ArgumentParser, InputError, Progress, run, say

_IMAGENET_NUM_CLASSES = 1001  # 1000 synsets and class 0, unused.


def read_dataset(data_dir):
  """The contents of dataset.json, as far as they are used here.

  Returns:
    A dict with 'num_classes' (int), 'shards' (a dict from split to a dict from
    file name to a dict with 'sha256') and 'class_counts' (a dict from split to
    a list of int); the latter two are empty where the file, or an older one,
    does not tell. Without the file the classes are as many as ImageNet has.

  Raises:
    InputError: it is not what the record builder writes.
  """
  path = os.path.join(data_dir, DATASET_FILE_NAME)
  if not os.path.exists(path):
    return {'num_classes': _IMAGENET_NUM_CLASSES, 'shards': {},
            'class_counts': {}}
  try:
    with open(path) as dataset_file:
      content = json.load(dataset_file)
    dataset = {'num_classes': int(content['num_classes'])}
    for key, kind in (('shards', dict), ('class_counts', list)):
      dataset[key] = content.get(key, {})
      for split, value in dataset[key].items():
        if split not in SPLITS or not isinstance(value, kind):
          raise ValueError('{} {}'.format(key, split))
    for shards in dataset['shards'].values():
      for shard in shards.values():
        str(shard['sha256'])
    return dataset
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError('{}: not a description of a data set ({}: {}); build the '
                     'records again'.format(path, type(error).__name__, error))


def list_shards(data_dir, split, expected_names):
  """Paths of a split's shards, in `data_dir/split` or `data_dir` itself.

  Args:
    data_dir: str.
    split: 'train' or 'validation'.
    expected_names: the file names that there should be; empty: as many as the
      first name says.

  Returns:
    A list of str; empty if there are none and none are expected.

  Raises:
    InputError: one is missing, or of another set.
  """
  for folder in (os.path.join(data_dir, split), data_dir):
    paths = find_shards(folder, split)
    if paths:
      break
  names = [os.path.basename(path) for path in paths]
  if names and not expected_names:
    count = int(names[0][-5:])
    expected_names = [shard_name(split, i, count) for i in range(count)]
  for name in sorted(set(expected_names) - set(names)):
    raise InputError('{}: missing; build or copy it again'.format(
        os.path.join(data_dir, split, name)))
  for name in sorted(set(names) - set(expected_names)):
    raise InputError('{}: of another set than the other shards; remove it'
                     .format(os.path.join(folder, name)))
  return paths


def verify(data_dir, is_decoding, num_workers):
  """Checks a folder of records and prints what is in it.

  Args:
    data_dir: has train/ and validation/, or their files, and dataset.json.
    is_decoding: whether every pixel of every image is decoded.
    num_workers: number of processes.

  Raises:
    InputError: there are no records, or some are damaged; these are listed.
  """
  if not os.path.isdir(data_dir):
    raise InputError('{}: no such folder'.format(data_dir))
  dataset = read_dataset(data_dir)
  paths = {split: list_shards(
      data_dir, split, sorted(dataset['shards'].get(split, {})))
           for split in SPLITS}
  tasks = [(split, path) for split in SPLITS for path in paths[split]]
  if not tasks:
    raise InputError('{}: no records, such as train/train-00000-of-01024'
                     .format(data_dir))

  def work(task, step):
    split, path = task
    try:
      contents = check_records(path, dataset['num_classes'], is_decoding, step)
      stated = dataset['shards'].get(split, {}).get(os.path.basename(path))
      if stated and stated['sha256'] != contents['sha256']:
        raise InputError(
            '{}: whole, but not the shard that dataset.json describes (its '
            'SHA-256 differs); build or copy it again'.format(path))
    except InputError as error:
      return str(error), []
    return None, np.bincount(np.array(contents['labels'], np.int64)).tolist()

  damaged = []
  counts = {split: np.zeros(0, np.int64) for split in SPLITS}
  with Progress(len(tasks), 'shards') as progress:
    with Workers(min(num_workers, len(tasks)), work) as workers:
      for (split, path), (error, labels) in workers.run(
          tasks, lambda num_records: None):
        if error:
          damaged.append((path, error))
        counts[split] = _sum_of(counts[split], np.array(labels, np.int64))
        progress.step()
  for _, error in sorted(damaged):
    say(error)
  if damaged:
    raise InputError('{}: {:,} of {:,} shards are damaged'.format(
        data_dir, len(damaged), len(tasks)))
  for split in SPLITS:
    if paths[split]:
      _check_class_counts(data_dir, split, counts[split], dataset)
      print('{}: {:,} records of {:,} classes in {:,} shards are sound{}'
            .format(split, counts[split].sum(), np.count_nonzero(counts[split]),
                    len(paths[split]), ', and as dataset.json describes them'
                    if split in dataset['shards'] else ''))


def _sum_of(one, other):
  """The sum of two int64 vectors, the shorter one continued with zeros."""
  total = np.zeros(max(len(one), len(other)), np.int64)
  total[:len(one)] += one
  total[:len(other)] += other
  return total


def _check_class_counts(data_dir, split, counts, dataset):
  stated = np.array([0] + dataset['class_counts'].get(split, []), np.int64)
  if split in dataset['class_counts'] and _sum_of(counts, -stated).any():
    raise InputError('{}: the {} records are not as many of each class as {} '
                     'says; build them again'.format(
                         data_dir, split, DATASET_FILE_NAME))


def parse_arguments(arguments=None):
  """Parses the command line; raises `InputError` where it is wrong."""
  parser = ArgumentParser(
      description='Reads a folder of records from the disk and says whether '
      'they are sound. The 144 GB of ImageNet take as long as the disk takes '
      'to read them, or on fast disks a core 10 to 30 minutes.')
  parser.add_argument('data_dir', metavar='DIR',
                      help='has train/, validation/ and dataset.json')
  parser.add_argument(
      '--verify', choices=('structure', 'full'), default='structure',
      help='full: every pixel of every image is decoded, too, which takes a '
      'core some ms per image (%(default)s)')
  parser.add_argument('--workers', type=int, metavar='N', default=num_cores(),
                      help='number of processes (the cores: %(default)s)')
  args = parser.parse_args(arguments)
  if not 1 <= args.workers <= 999:
    raise InputError('--workers {}: give a number from 1 to 999'.format(
        args.workers))
  return args


def main(arguments=None):
  """Runs the command line and returns its exit status; see `run`."""
  def verify_arguments():
    args = parse_arguments(arguments)
    verify(args.data_dir, args.verify == 'full', args.workers)
  return run(verify_arguments)


if __name__ == '__main__':
  sys.exit(main())
