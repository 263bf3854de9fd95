"""Reads a folder of records from the disk and says whether they are sound.

    python3 verify_records.py tf_records

checks the checksum of every record, that it has a JPEG and a label, and, where
dataset.json lists them, each shard's SHA-256 and the number of images of each
class. Records made by other programs are checked as well.
"""

import collections
import os
import sys

from record_folder import DATASET_FILE_NAME, find_shards, read_dataset
from record_shards import SPLITS, check_records, shard_name
from tools_command_line import (
    ArgumentParser, InputError, Progress, check_range, num_cores, print_result,
    run, run_in_processes, say)

_IMAGENET_NUM_CLASSES = 1001  # 1000 synsets and class 0, unused.


def list_shards(data_dir, split, expected_names):
  """Paths of a split's shards, in `data_dir/split` or `data_dir` itself.

  Empty if there are none and none are expected. `expected_names`: the file
  names that there should be; if empty, as many as the first name says.

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
    raise InputError(f'{os.path.join(data_dir, split, name)}: missing; build '
                     'or copy it again')
  for name in sorted(set(names) - set(expected_names)):
    raise InputError(f'{os.path.join(folder, name)}: of another set than the '
                     'other shards; remove it')
  return paths


def verify(data_dir, is_decoding, num_workers):
  """Checks a folder of records, in several processes; prints what is in it.

  With `is_decoding`, every pixel of every image is decoded.

  Raises:
    InputError: there are no records, or some are damaged; these are listed.
  """
  if not os.path.isdir(data_dir):
    raise InputError(f'{data_dir}: no such folder')
  dataset = read_dataset(data_dir) or {
      'num_classes': _IMAGENET_NUM_CLASSES, 'shards': {}, 'class_counts': {}}
  paths = {split: list_shards(data_dir, split, dataset['shards'].get(split, {}))
           for split in SPLITS}
  tasks = [(split, path) for split in SPLITS for path in paths[split]]
  if not tasks:
    raise InputError(
        f'{data_dir}: no records, such as train/train-00000-of-01024')

  def work(task, step):
    """Returns what is wrong with a shard, and how often each label occurs."""
    split, path = task
    try:
      sha256, labels = check_records(
          path, dataset['num_classes'], is_decoding, step)
    except InputError as error:
      return str(error), None
    if dataset['shards'].get(split, {}).get(
        os.path.basename(path), sha256) != sha256:
      return (f'{path}: whole, but not the shard that {DATASET_FILE_NAME} '
              'describes (its SHA-256 differs); build or copy it again'), None
    return None, collections.Counter(labels)

  damaged = []
  counts = {split: collections.Counter() for split in SPLITS}
  with Progress(len(tasks), 'shards') as progress:
    for (split, path), (error, shard_counts) in run_in_processes(
        work, tasks, num_workers, lambda num_records: None):
      if error:
        damaged.append((path, error))
      else:
        counts[split] += shard_counts
      progress.step()
  for _, error in sorted(damaged):
    say(error)
  if damaged:
    raise InputError(f'{data_dir}: {len(damaged):,} of {len(tasks):,} shards '
                     'are damaged')
  for split in SPLITS:
    if not paths[split]:
      continue
    # Class i of the list has the label i + 1; no image is of the background.
    if split in dataset['class_counts'] and counts[split] != {
        label: count for label, count in
        enumerate(dataset['class_counts'][split], 1) if count}:
      raise InputError(
          f'{data_dir}: the {split} records are not as many of each class as '
          f'{DATASET_FILE_NAME} says; build them again')
    as_described = (f', and as {DATASET_FILE_NAME} describes them'
                    if split in dataset['shards'] else '')
    print_result(
        f'{split}: {sum(counts[split].values()):,} records of '
        f'{len(counts[split]):,} classes in {len(paths[split]):,} shards are '
        f'sound{as_described}')


def parse_arguments(arguments=None):
  """Parses the command line; raises `InputError` where it is wrong."""
  parser = ArgumentParser(
      description='Reads a folder of records from the disk and says whether '
      'they are sound.')
  parser.add_argument('data_dir', metavar='DIR',
                      help='has train/, validation/ and dataset.json')
  parser.add_argument(
      '--verify', choices=('structure', 'full'), default='structure',
      help='full: every pixel of every image is decoded, too (%(default)s)')
  parser.add_argument('--workers', type=int, metavar='N', default=num_cores(),
                      help='number of processes (the cores: %(default)s)')
  args = parser.parse_args(arguments)
  check_range(args, 'workers', 1, 999)
  return args


def main(arguments=None):
  """Runs the command line and returns its exit status; see `run`."""
  def verify_arguments():
    args = parse_arguments(arguments)
    verify(args.data_dir, args.verify == 'full', args.workers)
  return run(verify_arguments)


if __name__ == '__main__':
  sys.exit(main())
