"""Time and memory of the analysis (steps 4 to 7) on dumps of full ImageNet.

  python benchmarks/analysis_at_scale.py [--rows N] [--against CHECKOUT]

Makes the softmax dumps of three classifiers over 1,281,167 training and 50,000
validation images, runs `analyze_imagenet_labels.py` on them as a user does, and
prints a table: each case beside `cat FILES >/dev/null` of the same files. With
--against, the script of another checkout runs too, in turns with this one. All
runs must give the same cascade.csv and the same output of step 4, to the byte.

At full scale it needs 17 GB of disk, as much free memory for the warm cases to
be warm, and from 10 minutes to an hour. Linux only, for the page cache. The
table goes to stdout, everything else to stderr.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import typing
from concurrent import futures

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from cascade.top5 import top5_of_rows
import shared_dumps
from shared_terminal import Progress

# ImageNet 2012, and the official network's outputs: 1000 and the background.
NUM_TRAIN_IMAGES = 1281167
NUM_VALIDATION_IMAGES = 50000
NUM_CLASSES = 1001
CLASSIFIER_IDS = (0, 1, 2)

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


class Measured(typing.NamedTuple):
  seconds: float
  megabytes: float  # Peak of resident memory, 10^6 bytes.
  results: bytes    # cascade.csv, or the output of step 4.


class Case(typing.NamedTuple):
  title: str
  is_cold: bool     # Drop the files from the page cache first.
  has_top5: bool    # Top-5 files lie beside the softmaxes.
  options: tuple    # Of the script; OUT is the output folder.


_ALL_STEPS = ('-output_dir', 'OUT')
CASES = [
    Case('steps 4-7, softmaxes', True, False, _ALL_STEPS),
    Case('steps 4-7, softmaxes', False, False, _ALL_STEPS),
    Case('step 4 alone, softmaxes', False, False, ()),
    Case('steps 4-7, -cache, second run', False, False, _ALL_STEPS + (
        '-cache',)),
    Case('steps 4-7, top-5 files', False, True, _ALL_STEPS),
    Case('step 4 alone, top-5 files', False, True, ()),
    Case('cst and ccst, top-5 files, 201 epsilons', False, True, _ALL_STEPS + (
        '-method', 'cst,ccst', '-num_epsilons', '201'))]


class Softmaxes:
  """Draws the softmaxes of one split block by block, the same every time."""

  def __init__(self, split):
    self._split = split
    self._seed = shared_dumps.SPLITS.index(split)
    # Logits spread little at one end and much at the other: networks are sure
    # of some images and not of others.
    noise = np.exp(
        np.random.RandomState(self._seed).normal(size=_NOISE_LENGTH) *
        np.linspace(0.3, 2, _NOISE_LENGTH)).astype(np.float32)
    self._noise_rows = np.lib.stride_tricks.as_strided(
        noise, (_NOISE_LENGTH - NUM_CLASSES + 1, NUM_CLASSES),
        noise.strides * 2, writeable=False)

  def block(self, index, num_rows):
    """Block `index` of the split.

    Returns:
      `(labels, outputs)`: int [rows], and a dict from classifier to softmaxes,
      top-5 classes and top-5 softmaxes.
    """
    shared = np.random.RandomState([self._seed, index])
    labels = shared.randint(1, NUM_CLASSES, num_rows)
    difficulty = shared.normal(size=num_rows)
    outputs = {}
    for k in CLASSIFIER_IDS:
      softmaxes = self._classifier_block(
          k, np.random.RandomState([self._seed, index, k]), labels, difficulty)
      outputs[k] = softmaxes, *top5_of_rows(softmaxes)
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


def make_split(folder, split, num_images):
  """Draws and writes the dumps of all classifiers over one split."""
  def create(name, shape, dtype):
    return np.lib.format.open_memmap(
        os.path.join(folder, name), 'w+', dtype, shape)

  labels = create(shared_dumps.labels_file_name(split), (num_images,), np.int32)
  bounds = shared_dumps.part_bounds(split, num_images)
  files = {}
  for k in CLASSIFIER_IDS:
    parts = [create(name, (stop - start, NUM_CLASSES), np.float32)
             for name, (start, stop) in zip(
                 shared_dumps.probabilities_file_names(k, split), bounds)]
    files[k] = (
        parts,
        create(shared_dumps.top5_classes_file_name(k, split), (num_images, 5),
               np.int32),
        create(shared_dumps.top5_probabilities_file_name(k, split),
               (num_images, 5), np.float32))
  softmaxes = Softmaxes(split)
  progress = Progress(f'making the {split} dumps', num_images, 'rows')
  for index, start in enumerate(range(0, num_images, _ROWS_PER_BLOCK)):
    stop = min(start + _ROWS_PER_BLOCK, num_images)
    labels[start:stop], outputs = softmaxes.block(index, stop - start)
    for k, (rows, classes, largest) in outputs.items():
      parts, classes_file, largest_file = files[k]
      classes_file[start:stop], largest_file[start:stop] = classes, largest
      for part, (part_start, part_stop) in zip(parts, bounds):
        first, last = max(start, part_start), min(stop, part_stop)
        if first < last:
          part[first - part_start:last - part_start] = (
              rows[first - start:last - start])
    progress.update(stop)
  progress.finish()


def link_softmaxes(folder):
  """Makes a folder beside `folder` with its dumps but no top-5 files."""
  view = folder + '_softmaxes'
  os.mkdir(view)
  for name in os.listdir(folder):
    if '_top5_' not in name:
      os.symlink(os.path.join(folder, name), os.path.join(view, name))
  return view


def drop_from_page_cache(folder):
  """Makes the next reading of the files of `folder` one from the disk."""
  os.sync()  # Pages not yet written cannot be dropped.
  for name in os.listdir(folder):
    if name.endswith('.npy'):
      with open(os.path.join(folder, name), 'rb') as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_measured(command, output):
  """Runs a command to its end; `Measured`."""
  with tempfile.TemporaryFile() as stdout:
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=stdout)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    process.returncode = status
    if status:
      sys.exit(f'{" ".join(command)}: failed')
    stdout.seek(0)
    results = stdout.read()
  if os.path.exists(output):
    with open(os.path.join(output, 'cascade.csv'), 'rb') as stream:
      results = stream.read()
    shutil.rmtree(output)
  return Measured(seconds, usage.ru_maxrss * 1024 / 1e6, results)


def run_cases(folder, checkouts, num_runs):
  """Runs all cases in turns.

  Args:
    folder: of the dumps.
    checkouts: folders of `analyze_imagenet_labels.py`.
    num_runs: of each case.

  Returns:
    A dict from (case, checkout) to a list of `Measured`; the checkout None is
    `cat` of the files that the case may read.
  """
  views = {True: folder, False: link_softmaxes(folder)}
  output = folder + '_output'
  measured = {}
  for number in range(num_runs):
    for case in CASES:
      view = views[case.has_top5]
      for checkout in (None, *checkouts):
        print(f'run {number + 1} of {num_runs}: {case.title}', file=sys.stderr)
        if case.is_cold:
          drop_from_page_cache(view)
        command = ['sh', '-c', 'cat "$0"/*.npy >/dev/null', view]
        if checkout is not None:
          command = [sys.executable,
                     os.path.join(checkout, 'analyze_imagenet_labels.py'),
                     '-softmax_dir_to_validate_against', view]
          command += [option.replace('OUT', output) for option in case.options]
        if checkout is not None and '-cache' in case.options:
          run_measured(command, output)  # The first run writes top-5 files.
        measured.setdefault((case, checkout), []).append(
            run_measured(command, output))
        for name in os.listdir(view):
          path = os.path.join(view, name)
          if not case.has_top5 and not os.path.islink(path):
            os.remove(path)
  for options in {case.options for case in CASES}:
    results = {one.results for (case, checkout), ones in measured.items()
               if checkout is not None and
               set(case.options) - {'-cache'} == set(options) - {'-cache'}
               for one in ones}
    if len(results) > 1:
      sys.exit(f'the results of {options} differ between runs; the analysis is '
               'wrong in one of them')
  return measured


def table_lines(measured, checkouts):
  """The table: of each case the fastest run, and ratios of these."""
  yield (f'{"":<41} {"cache":<5} {"cat s":>7}' +
         ''.join(f' {name:>7} {"x cat":>6} {"MB":>5}' for name in (
             ['s', 'other s'][:len(checkouts)])) +
         (' this/other' if len(checkouts) > 1 else ''))
  for case in CASES:
    cat, *seconds = [min(one.seconds for one in measured[case, checkout])
                     for checkout in (None, *checkouts)]
    line = f'{case.title:<41} {"cold" if case.is_cold else "warm"} {cat:8.2f}'
    for checkout, fastest in zip(checkouts, seconds):
      megabytes = max(one.megabytes for one in measured[case, checkout])
      line += f' {fastest:7.2f} {fastest / cat:6.2f} {megabytes:5.0f}'
    if len(seconds) > 1:
      this, other = seconds
      line += f' {this / other:10.2f}'
    yield line


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
      '--rows', type=int, default=NUM_TRAIN_IMAGES, metavar='N',
      help='training rows, validation rows in proportion (all of ImageNet)')
  parser.add_argument('--runs', type=int, default=3, metavar='N',
                      help='how often each case is measured (3)')
  parser.add_argument('--against', metavar='CHECKOUT',
                      help='measure the script of this folder too')
  parser.add_argument('--folder', metavar='FOLDER',
                      help='an existing folder on a disk with room')
  arguments = parser.parse_args()
  checkouts = [ROOT] + [arguments.against] * bool(arguments.against)
  num_images = {
      'train': arguments.rows,
      'validation':
          arguments.rows * NUM_VALIDATION_IMAGES // NUM_TRAIN_IMAGES}
  with tempfile.TemporaryDirectory(dir=arguments.folder) as parent:
    folder = os.path.join(parent, 'dumps')
    os.mkdir(folder)
    for split, count in num_images.items():
      # In a process of its own: the memory that a process has used counts in
      # the peak of those that it starts.
      with futures.ProcessPoolExecutor(1) as executor:
        executor.submit(make_split, folder, split, count).result()
    measured = run_cases(folder, checkouts, arguments.runs)
  print(f'{num_images["train"]:,} training and {num_images["validation"]:,} '
        f'validation rows, {len(CLASSIFIER_IDS)} classifiers; the fastest of '
        f'{arguments.runs} runs; {os.cpu_count()} cores, Python '
        f'{sys.version.split()[0]}, NumPy {np.__version__}')
  print('\n'.join(table_lines(measured, checkouts)))


if __name__ == '__main__':
  main()
