"""Time and memory of the analysis (steps 4 to 7) on dumps of full ImageNet.

  python benchmarks/analysis_at_scale.py [--folder FOLDER --keep] [--rows N]

Makes the softmax dumps of three classifiers over 1,281,167 training and 50,000
validation images, runs `analyze_imagenet_labels.py` on them as a user does,
and prints one table: each run beside `cat FILES >/dev/null` of the same files,
with the page cache cold (these files dropped from it) and warm. The cases take
turns, --runs times. Every cascade.csv must be the same, to the byte.

At full scale it needs 17 GB of disk, as much free memory for the warm rows to
be warm, and 10 minutes with a disk of 1 GB/s, up to an hour with slower ones.
Linux only, for the page cache. The table goes to stdout, all else to stderr.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from cascade import dumps
from cascade.array_files import load_array
from cascade.top5 import top5_of_rows
from progress import Progress
import dump_names
import softmax_dump
from user_error import UserError

# ImageNet 2012, and the official network's outputs: 1000 and the background.
NUM_TRAIN_IMAGES = 1281167
NUM_VALIDATION_IMAGES = 50000
NUM_CLASSES = 1001

# Mean of the label's logit, chosen so that the accuracies come out near those
# of the paper's repository (README, step 4): top-1 0.52, 0.69, 0.90 on the
# training images and 0.47, 0.63, 0.765 on the others.
_MEAN_LABEL_LOGITS = {'train': (5.7, 7.6, 11.0),
                      'validation': (5.2, 6.95, 8.55)}
_LABEL_LOGIT_DEVIATION = 4.0
# How much of that deviation the classifiers share: an image hard for one is
# hard for all.
_DIFFICULTY_CORRELATION = 0.85
# A few classes resemble the label's.
_NUM_SIMILAR_CLASSES = 6
# The other classes' logits come from a row of random numbers, each softmax
# from another place in it.
_NOISE_LENGTH = 1 << 20
_ROWS_PER_BLOCK = 1024

# Room for the caches and outputs beside the dumps.
_SPARE_BYTES = 10**9

Measured = collections.namedtuple('Measured', 'seconds megabytes stdout')


class Softmaxes(object):
  """Draws the softmaxes of one split, block by block, the same every time."""

  def __init__(self, split):
    self._split = split
    self._seed = dump_names.SPLITS.index(split)
    # Logits spread little at one end and much at the other, as networks are
    # sure of some images and not of others.
    noise = np.exp(
        np.random.RandomState(self._seed).normal(size=_NOISE_LENGTH) *
        np.linspace(0.3, 2, _NOISE_LENGTH)).astype(np.float32)
    self._noise_rows = np.lib.stride_tricks.as_strided(
        noise, (_NOISE_LENGTH - NUM_CLASSES + 1, NUM_CLASSES),
        noise.strides * 2, writeable=False)

  def block(self, index, num_rows):
    """Block `index` of the split.

    Returns:
      `(labels, outputs)`, as `softmax_dump.SplitDump.append` takes them.
    """
    shared = np.random.RandomState([self._seed, index])
    labels = shared.randint(1, NUM_CLASSES, num_rows)
    difficulty = shared.normal(size=num_rows)
    outputs = {}
    for k in dumps.CLASSIFIER_IDS:
      softmaxes = self._classifier_block(
          k, np.random.RandomState([self._seed, index, k]), labels, difficulty)
      outputs[k] = (softmaxes,) + top5_of_rows(softmaxes)
    return labels, outputs

  def _classifier_block(self, k, random, labels, difficulty):
    num_rows = len(labels)
    rows = np.arange(num_rows)
    # [rows, classes], exponentials of logits
    softmaxes = self._noise_rows[
        random.randint(len(self._noise_rows), size=num_rows)]
    # How far all classes that resemble the image stand out from the rest.
    lift = random.normal(2.5, 1.5, num_rows)
    similar = random.randint(1, NUM_CLASSES, (num_rows, _NUM_SIMILAR_CLASSES))
    softmaxes[rows[:, np.newaxis], similar] = np.exp(
        random.normal(3, 2, similar.shape) + lift[:, np.newaxis])
    deviation = (
        _DIFFICULTY_CORRELATION * difficulty +
        (1 - _DIFFICULTY_CORRELATION**2)**0.5 * random.normal(size=num_rows))
    softmaxes[rows, labels] = np.exp(
        _MEAN_LABEL_LOGITS[self._split][k] +
        _LABEL_LOGIT_DEVIATION * deviation + lift)
    softmaxes /= softmaxes.sum(axis=1, keepdims=True)
    return softmaxes


def _softmax_files(split):
  """The labels and softmaxes of `split`."""
  return [dump_names.labels_file_name(split)] + [
      name for k in dumps.CLASSIFIER_IDS
      for name in dump_names.probabilities_file_names(k, split)]


def _top5_files(split):
  return [name for k in dumps.CLASSIFIER_IDS
          for name in (dump_names.top5_classes_file_name(k, split),
                       dump_names.top5_probabilities_file_name(k, split))]


def _split_is_there(folder, split, num_images):
  """Whether `folder` holds `split`.

  Raises:
    UserError: it holds a part of it, or dumps of another number of images.
  """
  present = {name: os.path.exists(os.path.join(folder, name))
             for name in _softmax_files(split) + _top5_files(split)}
  if not any(present.values()):
    return False
  for name in present:
    if not present[name]:
      raise UserError(
          '--folder {}: holds {} dumps, but no {}; remove them or name another '
          'folder'.format(folder, split, name))
  path = os.path.join(folder, dump_names.labels_file_name(split))
  num_there = len(load_array(path))
  if num_there != num_images:
    raise UserError('{}: labels of {:,} images, where --rows asks for {:,}; '
                    'change it or name another --folder'.format(
                        path, num_there, num_images))
  return True


def make_split(folder, split, num_images):
  """Draws and writes the dumps of all classifiers over one split.

  Args:
    folder: an existing folder.
    split: 'validation' or 'train'.
    num_images: rows.
  """
  softmaxes = Softmaxes(split)
  progress = Progress('making the {} dumps'.format(split), num_images, 'rows')
  with softmax_dump.SplitDump(folder, split, num_images, NUM_CLASSES,
                              dumps.CLASSIFIER_IDS) as dump:
    for index, start in enumerate(range(0, num_images, _ROWS_PER_BLOCK)):
      dump.append(*softmaxes.block(
          index, min(_ROWS_PER_BLOCK, num_images - start)))
      progress.update(dump.num_written)
  progress.finish()


@contextlib.contextmanager
def dump_folder(folder, num_images, keep):
  """Gives a folder that holds the dumps.

  Args:
    folder: where they are or will be made; None: a temporary folder.
    num_images: a dict from split to rows.
    keep: whether to leave there, in the end, what was made here. What was
      there before stays in any case.

  Raises:
    UserError: too little disk, or `folder` holds other dumps.
  """
  made = []
  is_new_folder = folder is None or not os.path.exists(folder)
  if folder is None:
    folder = tempfile.mkdtemp(prefix='analysis_at_scale_')
  else:
    os.makedirs(folder, exist_ok=True)
  try:
    missing = [split for split in num_images
               if not _split_is_there(folder, split, num_images[split])]
    required = _SPARE_BYTES + sum(
        dump_names.dump_bytes(num_images[split], NUM_CLASSES,
                                len(dumps.CLASSIFIER_IDS))
        for split in missing)
    free = shutil.disk_usage(folder).free
    if required > free:
      raise UserError(
          '--folder {}: the benchmark takes {:,} MB and {:,} MB are free; '
          'name a folder on another disk, or fewer --rows'.format(
              folder, required // 10**6, free // 10**6))
    for split in missing:
      made += _softmax_files(split) + _top5_files(split)
      # In a process of its own, since what a process has used in memory counts
      # in the peak of those that it starts.
      with concurrent.futures.ProcessPoolExecutor(1) as executor:
        executor.submit(
            make_split, folder, split, num_images[split]).result()
    yield folder
  finally:
    if keep:
      print('the dumps are kept in {}'.format(folder), file=sys.stderr)
    else:
      for name in made:
        with contextlib.suppress(FileNotFoundError):
          os.remove(os.path.join(folder, name))
      if is_new_folder:
        os.rmdir(folder)


@contextlib.contextmanager
def views(folder):
  """Gives a dict to folders with links to the dumps in `folder`.

  'softmaxes' and 'uncached' are without the top-5 files, 'top5' is with them.
  All are new, and so without a cache.
  """
  softmaxes = [name for split in dump_names.SPLITS
               for name in _softmax_files(split)]
  top5 = [name for split in dump_names.SPLITS for name in _top5_files(split)]
  with tempfile.TemporaryDirectory(prefix='views_', dir=folder) as parent:
    linked = {}
    for view, names in (('softmaxes', softmaxes), ('uncached', softmaxes),
                        ('top5', softmaxes + top5)):
      linked[view] = os.path.join(parent, view)
      os.mkdir(linked[view])
      for name in names:
        os.symlink(os.path.join(os.path.abspath(folder), name),
                   os.path.join(linked[view], name))
    yield linked


def drop_from_page_cache(folder):
  """Makes the next reading of the files of `folder` one from the disk."""
  os.sync()  # Pages not yet written cannot be dropped.
  for name in os.listdir(folder):
    with open(os.path.join(folder, name), 'rb') as stream:
      os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_measured(command):
  """Runs a command to its end.

  Args:
    command: a list of str; the analysis is one process with threads.

  Returns:
    `Measured`: seconds, the peak of its resident memory in MB (10^6 bytes),
    and what it wrote to stdout.

  Raises:
    UserError: it failed.
  """
  with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
    try:
      _, process.returncode, usage = os.wait4(process.pid, 0)
      seconds = time.monotonic() - start
    finally:
      if process.returncode is None:
        process.kill()
        process.wait()
    stdout.seek(0)
    stderr.seek(0)
    if process.returncode:
      raise UserError('{}: failed with: {}'.format(' '.join(command), (
          stderr.read().decode().splitlines() or ['nothing said'])[-1]))
    return Measured(seconds, usage.ru_maxrss * 1024 / 1e6,
                    stdout.read().decode())


_CAT = ('sh', '-c', 'cat "$0"/*.npy >/dev/null', '{view}')
_STEP4 = (sys.executable, os.path.join(ROOT, 'analyze_imagenet_labels.py'),
          '-softmax_dir_to_validate_against', '{view}',
          '-dataset_path', '{view}')
_ALL_STEPS = _STEP4 + ('-output_dir', '{output}')
_ALL_STEPS_CACHED = _ALL_STEPS + ('-cache',)
# The methods that have an epsilon.
_EPSILONS = _ALL_STEPS + ('-method', 'cst,ccst', '-num_epsilons')

# A row of the table. `view` is a key of `views`; `command` has the folders to
# be filled in.
Case = collections.namedtuple('Case', 'title cache view command target')
# `ratio` is to the case titled `baseline` in the same state of the page cache.
Target = collections.namedtuple('Target', 'baseline ratio seconds megabytes')

_CAT_TITLE = 'cat FILES >/dev/null'
_ONE_EPSILON_TITLE = 'cst and ccst, top-5 files, 1 epsilon'
_NO_TARGET = Target(None, None, None, None)
_NEAR_CAT = Target(_CAT_TITLE, 1.5, None, 500)
_SECONDS = Target(None, None, 5, 500)
# Two runs of one command may differ by a tenth.
_NEAR_ONE_EPSILON = Target(_ONE_EPSILON_TITLE, 1.1, None, None)

# In the order of running, in which a warm run reads what the one before read.
CASES = [
    Case(_CAT_TITLE, 'cold', 'softmaxes', _CAT, _NO_TARGET),
    Case(_CAT_TITLE, 'warm', 'softmaxes', _CAT, _NO_TARGET),
    Case('steps 4-7, softmaxes', 'warm', 'softmaxes', _ALL_STEPS, _NEAR_CAT),
    Case('steps 4-7, softmaxes', 'cold', 'softmaxes', _ALL_STEPS, _NEAR_CAT),
    Case('step 4 alone, softmaxes', 'warm', 'softmaxes', _STEP4, _NEAR_CAT),
    Case('steps 4-7, -cache, first run', 'warm', 'uncached',
         _ALL_STEPS_CACHED, _NEAR_CAT),
    Case('steps 4-7, -cache, second run', 'warm', 'uncached',
         _ALL_STEPS_CACHED, _SECONDS),
    Case('steps 4-7, top-5 files', 'cold', 'top5', _ALL_STEPS, _SECONDS),
    Case('steps 4-7, top-5 files', 'warm', 'top5', _ALL_STEPS, _SECONDS),
    Case('step 4 alone, top-5 files', 'warm', 'top5', _STEP4, _SECONDS),
    Case(_ONE_EPSILON_TITLE, 'warm', 'top5', _EPSILONS + ('1',), _NO_TARGET),
    Case('cst and ccst, top-5 files, 21 epsilons', 'warm', 'top5',
         _EPSILONS + ('21',), _NEAR_ONE_EPSILON),
    Case('cst and ccst, top-5 files, 201 epsilons', 'warm', 'top5',
         _EPSILONS + ('201',), _NEAR_ONE_EPSILON)]


def run_cases(folder, num_runs):
  """Runs all cases `num_runs` times, in turns.

  Args:
    folder: holds the dumps.
    num_runs: at least 1.

  Returns:
    `(measured, step4_stdout)`: a dict from `Case` to a list of `Measured`, and
    what step 4 printed.

  Raises:
    UserError: a command failed, or two gave different results.
  """
  measured = collections.OrderedDict((case, []) for case in CASES)
  csv, stdout = {}, {}  # What was written, to the title of the case.
  with views(folder) as linked, tempfile.TemporaryDirectory() as parent:
    # Compiled modules and matplotlib's list of fonts are made once in the life
    # of an environment.
    run_measured(_filled_in(
        _ALL_STEPS, linked['top5'], os.path.join(parent, 'output')))
  for number in range(num_runs):
    with views(folder) as linked:
      for case in CASES:
        print('run {} of {}: {}, {} page cache'.format(
            number + 1, num_runs, case.title, case.cache), file=sys.stderr)
        if case.cache == 'cold':
          drop_from_page_cache(linked[case.view])
        with tempfile.TemporaryDirectory() as parent:
          output = os.path.join(parent, 'output')
          measured[case].append(run_measured(_filled_in(
              case.command, linked[case.view], output)))
          if case.command in (_ALL_STEPS, _ALL_STEPS_CACHED):
            with open(os.path.join(output, 'cascade.csv')) as stream:
              csv.setdefault(stream.read(), case.title)
        if case.command == _STEP4:
          stdout.setdefault(measured[case][-1].stdout, case.title)
  for name, contents in (('cascade.csv', csv), ("step 4's output", stdout)):
    if len(contents) > 1:
      raise UserError('{} differs between runs: {}; the analysis is wrong in '
                      'one of them'.format(name, ', '.join(contents.values())))
  return measured, next(iter(stdout))


def _filled_in(command, view, output):
  return [part.format(view=view, output=output) for part in command]


def table_lines(measured, is_full_scale):
  """The table, a list of str.

  Args:
    measured: as `run_cases` returns it.
    is_full_scale: whether to say if the targets are met.
  """
  form = '{:<41} {:<5} {:>7} {:>8} {:>6} {:>5}  {}'
  lines = [form.format('', 'cache', 'min s', 'median s', 'ratio', 'MB',
                       'target')]
  fastest = {(case.title, case.cache): min(r.seconds for r in results)
             for case, results in measured.items()}
  for case, results in measured.items():
    target = case.target
    seconds = fastest[case.title, case.cache]
    megabytes = max(result.megabytes for result in results)
    ratio = target.baseline and (
        seconds / fastest[target.baseline, case.cache])
    limits = [(value, most, unit) for value, most, unit in (
        (ratio, target.ratio, 'x'), (seconds, target.seconds, 's'),
        (megabytes, target.megabytes, 'MB')) if most]
    verdict = ', '.join('{} {}'.format(most, unit) for _, most, unit in limits)
    if limits and is_full_scale:
      verdict += ': met' if all(
          value <= most for value, most, _ in limits) else ': MISSED'
    lines.append(form.format(
        case.title, case.cache, '{:.2f}'.format(seconds),
        '{:.2f}'.format(statistics.median(r.seconds for r in results)),
        '{:.2f}'.format(ratio) if ratio else '',
        '{:.0f}'.format(megabytes) if case.command != _CAT else '',
        verdict).rstrip())
  return lines


def heading_lines(num_images, num_runs):
  """What was measured and where, above the table; a list of str."""
  num_bytes = sum(dump_names.dump_bytes(
      count, NUM_CLASSES, len(dumps.CLASSIFIER_IDS))
                  for count in num_images.values())
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  lines = [
      '{} classifiers x ({:,} training + {:,} validation rows) x {:,} classes, '
      '{:,.1f} GB'.format(len(dumps.CLASSIFIER_IDS), num_images['train'],
                          num_images['validation'], NUM_CLASSES,
                          num_bytes / 1e9),
      '{} cores, {:.0f} GB of memory; Python {}, NumPy {}; runs of each, in '
      'turns: {}'.format(len(os.sched_getaffinity(0)), memory / 1e9,
                     sys.version.split()[0], np.__version__, num_runs),
      'ratio: of the minima, to cat in the same cache state, or to 1 epsilon; '
      'MB: the largest']
  if num_bytes > memory:
    lines.append('The files are larger than the memory: no warm run is.')
  return lines


def parse_arguments(argv):
  """Parses the command line, without the program's name."""
  parser = argparse.ArgumentParser(
      description=__doc__, allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
      '--folder', metavar='FOLDER',
      help='where to make the dumps, or where they are from an earlier --keep; '
      'without it, a temporary folder')
  parser.add_argument(
      '--keep', action='store_true',
      help='leave the dumps there in the end; without it, those made by this '
      'run are removed')
  parser.add_argument(
      '--rows', type=int, default=NUM_TRAIN_IMAGES, metavar='N',
      help='training rows, validation rows in proportion (default: all of '
      'ImageNet)')
  parser.add_argument(
      '--runs', type=int, default=3, metavar='N',
      help='how often each case is measured (default: 3)')
  arguments = parser.parse_args(argv)
  if not hasattr(os, 'posix_fadvise'):
    parser.error('files can be dropped from the page cache on Linux alone')
  if arguments.rows < NUM_TRAIN_IMAGES // NUM_VALIDATION_IMAGES + 1:
    parser.error('--rows {}: too few for a validation row'.format(
        arguments.rows))
  if arguments.runs < 1:
    parser.error('--runs {}: at least 1'.format(arguments.runs))
  return arguments


def main(argv=None):
  arguments = parse_arguments(argv)
  num_images = {
      'train': arguments.rows,
      'validation':
          arguments.rows * NUM_VALIDATION_IMAGES // NUM_TRAIN_IMAGES}
  # So that batch systems, too, leave no 16 GB behind.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    with dump_folder(arguments.folder, num_images, arguments.keep) as folder:
      measured, step4_stdout = run_cases(folder, arguments.runs)
  except UserError as error:
    sys.exit('analysis_at_scale.py: {}'.format(error))
  except OSError as error:
    sys.exit('analysis_at_scale.py: {}: {}'.format(
        error.filename or 'input or output', error.strerror or error))
  except KeyboardInterrupt:
    sys.exit('analysis_at_scale.py: interrupted')
  print(step4_stdout)
  print('\n'.join(heading_lines(num_images, arguments.runs)))
  print()
  print('\n'.join(table_lines(
      measured, arguments.rows == NUM_TRAIN_IMAGES)))
  print('\ncascade.csv and the output of step 4 are the same in all runs of '
        'one kind.')


if __name__ == '__main__':
  main()
