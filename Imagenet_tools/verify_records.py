"""Reads a folder of records from the disk and says whether they are sound.

    python3 verify_records.py tf_records

checks the checksum of every record, that it has a JPEG and a label, and, where
dataset.json lists the shards, their SHA-256. Records made by other programs are
checked as well.
"""

import collections
import os
import sys

from record_shards import check_records
from shared_dataset import (
    DATASET_FILE_NAME, SPLITS, find_shards, read_dataset)
from shared_terminal import UserError, print_line, run_main, say
from tools_arguments import ArgumentParser, check_range
from worker_processes import num_cores, run_in_processes


def verify(data_dir, is_decoding, num_workers):
  """Checks a folder of records, in several processes; prints what is in it.

  Raises:
    UserError: there are no records, or some are damaged; these are listed.
  """
  paths = {split: find_shards(data_dir, split) for split in SPLITS}
  tasks = [(split, path) for split in SPLITS for path in paths[split]]
  if not tasks:
    raise UserError(
        f'{data_dir}: no records, such as train/train-00000-of-01024')
  dataset = read_dataset(data_dir)

  def work(task):
    """How often each label occurs in a shard, or what is wrong with it."""
    split, path = task
    try:
      sha256, labels = check_records(path, dataset.num_classes, is_decoding)
    except UserError as error:
      return str(error)
    described = dataset.shard_sha256.get(split)
    if described and described.get(os.path.basename(path)) != sha256:
      return (f'{path}: whole, but not the shard that {DATASET_FILE_NAME} '
              'describes (its SHA-256 differs); build or copy it again')
    return collections.Counter(labels)

  damaged, counts = [], {split: collections.Counter() for split in SPLITS}

  def add(task, result):
    if isinstance(result, str):
      damaged.append(result)
    else:
      counts[task[0]].update(result)

  run_in_processes(work, tasks, num_workers, 'checking records', add)
  for error in sorted(damaged):
    say(error)
  if damaged:
    raise UserError(f'{data_dir}: {len(damaged):,} of {len(tasks):,} shards '
                    'are damaged')
  for split in SPLITS:
    as_described = (f', and as {DATASET_FILE_NAME} describes them'
                    if split in dataset.shard_sha256 else '')
    if paths[split]:
      print_line(
          f'{split}: {sum(counts[split].values()):,} records of '
          f'{len(counts[split]):,} classes in {len(paths[split]):,} shards are '
          f'sound{as_described}')


def parse_arguments(arguments=None):
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
  def verify_arguments():
    args = parse_arguments(arguments)
    verify(args.data_dir, args.verify == 'full', args.workers)
  return run_main(verify_arguments)


if __name__ == '__main__':
  sys.exit(main())
