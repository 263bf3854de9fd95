"""Kills a build of records (step 2) or a dump (step 3), and finishes it.

  python3 benchmarks/kill_and_resume.py build|dump [--kills N] [--seed N]

Draws a small data set, does the work once without disturbance, and notes how
long that takes. Then it is killed (SIGKILL) at a random moment of that time, in
turns the main process alone and all processes at once, given again until it has
been killed as often as --kills_per_run says, and finished. Every file must come
out with the same bytes. A dump needs TensorFlow. With the defaults it takes
about 5 minutes and 200 MB of disk. Exit status 1 if one file differs.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOOLS, NETWORK = [os.path.join(ROOT, folder)
                  for folder in ('Imagenet_tools', 'Imagenet')]
sys.path.insert(0, NETWORK)

from shared_terminal import UserError, run_main  # pylint: disable=wrong-import-position


def build_command(archives, output):
  """The command that builds the records, with two workers."""
  def archive(name):
    return os.path.join(archives, name)

  return [
      sys.executable, os.path.join(TOOLS, 'build_imagenet_tfrecords.py'),
      '--train_archive', archive('ILSVRC2012_img_train.tar'),
      '--validation_archive', archive('ILSVRC2012_img_val.tar'),
      '--validation_labels', archive('synset_labels.txt'),
      '--output_dir', os.path.join(output, 'tf_records'), '--workers', '2',
      '--train_shards', '96', '--validation_shards', '32']


def network_command(folder, *more):
  """`imagenet_main.py` on these records, with a small network."""
  return [
      sys.executable, os.path.join(NETWORK, 'imagenet_main.py'),
      '--data_dir', os.path.join(folder, 'records', 'tf_records'), '-rs', '18',
      '-rv', '2', '--image_size', '32', '--num_gpus', '0', *more]


def finish(command):
  """Runs a command to its end."""
  process = subprocess.Popen(
      command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
  _, error = process.communicate()
  if process.returncode:
    raise UserError(f'{os.path.basename(command[1])} failed: '
                    f'{error.decode().strip()}')


def contents(output):
  """All files but hidden ones, such as locks, by their paths."""
  found = {}
  for folder, folders, names in os.walk(output):
    folders[:] = [name for name in folders if not name.startswith('.')]
    for name in names:
      if not name.startswith('.'):
        path = os.path.join(folder, name)
        with open(path, 'rb') as stream:
          found[os.path.relpath(path, output)] = stream.read()
  return found


def kill_at(command, seconds, kill):
  """Starts a command and kills it after some seconds.

  Args:
    kill: `os.kill` for the main process, `os.killpg` for all at once.

  Returns:
    Whether it was still at work.
  """
  process = subprocess.Popen(
      command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
      start_new_session=True)
  try:
    process.wait(seconds)
    return False
  except subprocess.TimeoutExpired:
    kill(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def prepare(work, folder):
  """Makes what the work needs; returns its command and its output folder."""
  archives, output = [
      os.path.join(folder, name) for name in ('archives', 'output')]
  finish([sys.executable, os.path.join(TOOLS, 'make_demo_dataset.py'),
          '--output_dir', archives, '--train_images', '4500',
          '--validation_images', '1500', '--image_pixels', '40'])
  if work == 'build':
    return build_command(archives, output), output
  finish(build_command(archives, os.path.join(folder, 'records')))
  model = os.path.join(folder, 'model')  # One step of training is enough.
  finish(network_command(folder, '-md', model, '--nois_cascaded', '-mts', '1'))
  heads = os.path.join(folder, 'heads')
  finish(network_command(
      folder, '-md', heads, '--fine_tune', '--classifier_id', '0,1', '-pmcp',
      model, '-mts', '1', '--nodump_softmaxes'))
  return network_command(
      folder, '-md', os.path.join(folder, 'record'), '--eval_only', '-pmcp',
      model, '--head_model_dirs', heads, '--classifier_id', '0,1,2',
      '--softmax_dir', output), output


def kill_and_resume(args):
  """Does what this file is for and prints a summary.

  Raises:
    UserError: the command failed, or its files differ.
  """
  folder = tempfile.mkdtemp(prefix='kill_and_resume_', dir=args.folder)
  try:
    command, output = prepare(args.work, folder)
    start = time.monotonic()
    finish(command)
    seconds = time.monotonic() - start
    expected = contents(output)

    moments = random.Random(args.seed)
    num_killed, num_resumed, differing = 0, 0, set()
    while num_killed < args.kills:
      shutil.rmtree(output)
      for _ in range(args.kills_per_run):
        kill = os.killpg if num_killed % 2 else os.kill
        num_killed += kill_at(command, moments.uniform(0, seconds), kill)
      num_resumed += bool(contents(output))
      finish(command)
      found = contents(output)
      differing.update(name for name in set(found) | set(expected)
                       if found.get(name) != expected.get(name))
      print(f'{num_killed} killed', file=sys.stderr)
  finally:
    shutil.rmtree(folder)
  size = sum(map(len, expected.values()))
  print(f'{args.work}: {len(expected)} files of {size:,} bytes in {seconds:.1f} '
        f's; {num_killed} kills, {args.kills_per_run} to a run, of which '
        f'{num_resumed} found something to go on from; seed {args.seed}')
  if differing:
    raise UserError(f'{len(differing)} files differ from the undisturbed run, '
                    f'such as {min(differing)}')
  print('after every kill: the same bytes as without')


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('work', choices=('build', 'dump'))
  parser.add_argument('--kills', type=int, default=30, metavar='N',
                      help='how many in all, or one more (%(default)s)')
  parser.add_argument('--kills_per_run', type=int, default=2, metavar='N',
                      help='before a run is finished (%(default)s)')
  parser.add_argument('--seed', type=int, default=0, metavar='N',
                      help='other seeds kill at other moments (%(default)s)')
  parser.add_argument('--folder', metavar='DIR',
                      help='where the data go, which are removed in the end (a '
                      'temporary folder)')
  kill_and_resume(parser.parse_args())


if __name__ == '__main__':
  sys.exit(run_main(main))
