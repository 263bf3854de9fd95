"""Kills builds of records at random moments and finishes them (step 2).

  python3 benchmarks/kill_and_resume.py [--kills N] [--seed N]

Draws a small data set, packs it once without disturbance, and notes how long
that takes. Then each build is killed (SIGKILL) at a random moment of that time,
in turns the main process alone and all processes at once, given again until it
has been killed as often as --kills_per_build says, and finished. Every file
must come out with the same bytes. With the defaults it takes about 3 minutes
and 100 MB of disk. Exit status 1 if one build differs.
"""

import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOOLS = os.path.join(ROOT, 'Imagenet_tools')
sys.path.insert(0, TOOLS)

from benchmark_arguments import check_smallest, make_parser
import make_demo_dataset
from record_folder import JOURNAL_FILE_NAME
from tools_command_line import InputError, run

_NUM_IMAGES = {'train': 4500, 'validation': 1500}
_NUM_SHARDS = {'train': 96, 'validation': 32}


def builder_command(archives, output):
  """The command line of the builder, two workers, records into `output`."""
  command = [
      sys.executable, os.path.join(TOOLS, 'build_imagenet_tfrecords.py'),
      '--train_archive', os.path.join(
          archives, make_demo_dataset.TRAIN_ARCHIVE),
      '--validation_archive', os.path.join(
          archives, make_demo_dataset.VALIDATION_ARCHIVE),
      '--validation_labels', os.path.join(
          archives, make_demo_dataset.LABELS_FILE),
      '--output_dir', os.path.join(output, 'tf_records'), '--workers', '2']
  for split, count in _NUM_SHARDS.items():
    command += ['--{}_shards'.format(split), str(count)]
  return command


def finish(archives, output):
  """Runs the builder to its end; the contents of what it wrote, by name.

  Raises:
    InputError: it failed.
  """
  process = subprocess.Popen(
      builder_command(archives, output), stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE)
  _, error = process.communicate()
  if process.returncode:
    raise InputError('the builder failed with: {}'.format(
        error.decode().strip()))
  contents = {}
  for folder, _, names in os.walk(output):
    for name in names:
      path = os.path.join(folder, name)
      with open(path, 'rb') as written:
        contents[os.path.relpath(path, output)] = written.read()
  # Its lines are in the order in which the shards were finished.
  del contents[os.path.join('tf_records', JOURNAL_FILE_NAME)]
  return contents


def kill_at(archives, output, seconds, kill):
  """Starts the builder and kills it after some seconds.

  Args:
    archives, output: as above.
    seconds: float.
    kill: `os.kill` for the main process, `os.killpg` for all at once.

  Returns:
    Whether it was still at work.
  """
  process = subprocess.Popen(
      builder_command(archives, output), stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL, start_new_session=True)
  try:
    process.wait(seconds)
    return False
  except subprocess.TimeoutExpired:
    kill(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def num_shards_there(output):
  """How many shards have their names."""
  return sum(name.startswith(('train-', 'validation-'))
             for _, _, names in os.walk(output) for name in names)


def kill_and_resume(args):
  """Does what this file is for and prints a summary.

  Raises:
    InputError: a build failed, or its files differ.
  """
  folder = tempfile.mkdtemp(prefix='kill_and_resume_', dir=args.folder)
  try:
    archives = os.path.join(folder, 'archives')
    status = make_demo_dataset.main([
        '--output_dir', archives, '--train_images', str(_NUM_IMAGES['train']),
        '--validation_images', str(_NUM_IMAGES['validation']),
        '--image_pixels', '40'])
    if status:
      raise InputError('the data set could not be drawn')
    expected = finish(archives, os.path.join(folder, 'undisturbed'))
    start = time.monotonic()
    finish(archives, os.path.join(folder, 'timed'))
    seconds = time.monotonic() - start
    shutil.rmtree(os.path.join(folder, 'timed'))

    moments = random.Random(args.seed)
    num_killed, differing = 0, []
    shards_there = collections.Counter()
    while num_killed < args.kills:
      output = os.path.join(folder, 'killed')
      for _ in range(args.kills_per_build):
        kill = os.killpg if num_killed % 2 else os.kill
        if kill_at(archives, output, moments.uniform(0, seconds), kill):
          num_killed += 1
          shards_there[num_shards_there(output)] += 1
      found = finish(archives, output)
      differing += sorted(
          name for name in set(found) | set(expected)
          if found.get(name) != expected.get(name))
      shutil.rmtree(output)
      print('{} killed'.format(num_killed), file=sys.stderr)
  finally:
    shutil.rmtree(folder)
  print('{} files of {:,} bytes; a build takes {:.1f} s; {} kills, {} to a '
        'build, seed {}'.format(
            len(expected), sum(map(len, expected.values())), seconds,
            num_killed, args.kills_per_build, args.seed))
  print('shards there when killed: ' + ', '.join(
      '{} ({}x)'.format(count, times)
      for count, times in sorted(shards_there.items())))
  if differing:
    raise InputError('{} files differ from the undisturbed build, such as {}'
                     .format(len(differing), differing[0]))
  print('after every kill: the same bytes as without')


def parse_arguments(arguments=None):
  """Parses the command line; raises `InputError` where it is wrong."""
  parser = make_parser(__doc__)
  parser.add_argument('--kills', type=int, default=50, metavar='N',
                      help='how many in all, or one more (%(default)s)')
  parser.add_argument('--kills_per_build', type=int, default=2, metavar='N',
                      help='of a build before it is finished (%(default)s)')
  parser.add_argument('--seed', type=int, default=0, metavar='N',
                      help='other seeds kill at other moments (%(default)s)')
  args = parser.parse_args(arguments)
  check_smallest(args, {'kills': 1, 'kills_per_build': 1})
  return args


if __name__ == '__main__':
  sys.exit(run(lambda: kill_and_resume(parse_arguments())))
