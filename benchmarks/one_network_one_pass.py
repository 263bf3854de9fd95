"""Step 3 as published against one network and one pass: time and memory.

  python3 benchmarks/one_network_one_pass.py [--folder DIR] [--images N] ...

On drawn images like ImageNet's, on the TensorFlow of the Python it is run with,
in turns,

  published: each head trained in its own run, with the whole network and both
    heads in the graph and all BN in training mode; then, for each classifier,
    all images predicted (rows in one array in memory, all columns sorted) and
    evaluated in another pass;
  short: `imagenet_main.py --fine_tune --classifier_id 0,1` and
    `imagenet_main.py --eval_only --classifier_id 0,1,2`;
  bare: the graph of that dump over one batch that is in memory.

The published way reads its images with this project's input, so the ratios
are, if anything, too small. Import, building the graph and restoring are not
in the times. CPU seconds are those of the whole process, user and kernel: what
else runs on the machine hardly shows in them.

Then it extrapolates all of step 3 on ImageNet, and dumps 1,000 to 100,000 tiny
images with a small network, to show that memory does not grow with their
number. On two cores that other work shared it took 13 minutes with TensorFlow
2.15 and over 25 with 1.12 (--rounds 1 --skip_memory is less than half), and 2
GB of disk. Linux only. The table goes to stdout, all else to stderr.
"""

import collections
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import typing

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOOLS = os.path.join(ROOT, 'Imagenet_tools')
sys.path.insert(0, TOOLS)

from benchmark_arguments import check_smallest, make_parser
from build_records import FULL_COUNTS, draw_jpeg, run_measured
from record_format import serialized_example, write_record
from worker_processes import num_cores
from shared_terminal import run_main, say

_RUNS = os.path.join(ROOT, 'benchmarks', 'step3_runs.py')

_NUM_DISTINCT_IMAGES = 48
_WIDTH, _HEIGHT = 500, 375  # The size that most of ImageNet's images have.
_NUM_CLASSES = 1000  # And class 0, which no image has.
_SHARDS = 4

# Steps until the queues of the input are full and all memory is allocated.
_WARM_UP_STEPS = 3

_TRAIN_EPOCHS = 20  # Step 3.

# A process is looked at rarely: it waits while it is.
_SAMPLE_SECONDS = 0.5

_SMALL_RESNET_SIZE, _SMALL_IMAGE_SIZE, _SMALL_BATCH_SIZE = 18, 32, 250
_SMALL_COUNTS = (1000, 10000, 100000)

_TRAINED, _CLASSIFIERS = (0, 1), (0, 1, 2)
_DUMP_FLAGS = ['--eval_only', '--classifier_id', '0,1,2']

# Titles of the rows.
_TRAINING = 'published: training clf{}'
_SHORT_TRAINING = 'short: training clf0 and clf1'
_PREDICTING = 'published: predicting clf{}'
_EVALUATING = 'published: evaluating clf{}'
_SHORT_DUMP = 'short: dumping clf0, clf1 and clf2'
_BARE = 'bare: computing clf0, clf1 and clf2'


class Cost(typing.NamedTuple):
  """What something took."""
  seconds: float          # Per image.
  cpu_seconds: float      # Per image.
  peak_bytes: int         # Of the whole process.


def in_turn(parts):
  """What it costs to do several things one after the other.

  Args:
    parts: lists of `Cost`, one per round.

  Returns:
    A list of `Cost`, one per round.
  """
  return [Cost(sum(cost.seconds for cost in costs),
               sum(cost.cpu_seconds for cost in costs),
               max(cost.peak_bytes for cost in costs))
          for costs in zip(*parts)]


def write_split(folder, split, num_images, jpegs):
  """Writes the shards of a split; `jpegs`, a list of bytes, take turns."""
  frames = []
  for number, jpeg in enumerate(jpegs):
    frame = io.BytesIO()
    write_record(frame, *serialized_example({
        'image/encoded': jpeg, 'image/class/label': 1 + number % _NUM_CLASSES,
        'image/filename': f'drawn_{number}.JPEG'}))
    frames.append(frame.getvalue())
  os.makedirs(os.path.join(folder, split))
  for shard in range(_SHARDS):
    name = f'{split}-{shard:05d}-of-{_SHARDS:05d}'
    with open(os.path.join(folder, split, name), 'wb') as records:
      for number in range(shard, num_images, _SHARDS):
        records.write(frames[number % len(frames)])


class Bench:
  """The runs, each in a process of its own, and where their files are.

  Attributes:
    costs: an ordered dict from title to a list of `Cost`, one per round.
  """

  def __init__(self, args, folder):
    self._args = args
    self._folder = folder
    self._pretrained = os.path.join(folder, 'pretrained')
    self._dump_data = os.path.join(folder, 'dump_data')
    self._train_data = os.path.join(folder, 'train_data')
    self.costs = collections.OrderedDict()

  def prepare(self):
    """Draws the images and makes a checkpoint to start from.

    Returns:
      TensorFlow's version.
    """
    rng = np.random.RandomState(0)
    jpegs = [draw_jpeg(rng, _WIDTH, _HEIGHT)
             for _ in range(_NUM_DISTINCT_IMAGES)]
    batch_size = self._args.batch_size
    write_split(self._dump_data, 'validation', batch_size, jpegs)
    write_split(self._dump_data, 'train', self._args.images, jpegs)
    # Small: what has been trained is evaluated, and that is not timed.
    for split in ('validation', 'train'):
      write_split(self._train_data, split, batch_size, jpegs)
    said, _ = self._run('pretrained', folder=self._pretrained)
    return said['version']

  def _run(self, name, **arguments):
    """A run of `step3_runs.py`; `arguments` win over our command line's.

    Returns:
      What it says, a dict; the peak bytes of its memory.
    """
    own = {flag: getattr(self._args, flag) for flag in (
        'resnet_size', 'image_size', 'batch_size', 'images', 'steps')}
    command = [sys.executable, _RUNS, name,
               '--warm_up_steps', str(_WARM_UP_STEPS)]
    own['pretrained'] = self._pretrained
    for flag, value in dict(own, **arguments).items():
      command += [f'--{flag}', value if isinstance(value, str) else
                  json.dumps(value)]
    _, peak_bytes, stdout = run_measured(command, _SAMPLE_SECONDS)
    return json.loads(stdout.splitlines()[-1]), peak_bytes

  def _measure(self, name, titles, num_images, **arguments):
    """Does a run and notes its costs.

    Args:
      name: of the run.
      titles: a dict from what the run calls it to the title for `costs`.
      num_images: images that the run tells the time of.
      **arguments: of the run.
    """
    say(', '.join(titles.values()))
    with tempfile.TemporaryDirectory(dir=self._folder) as output:
      spent, peak_bytes = self._run(name, folder=output, **arguments)
    for key, title in titles.items():
      seconds, cpu_seconds = spent[key]
      self.costs.setdefault(title, []).append(Cost(
          seconds / num_images, cpu_seconds / num_images, peak_bytes))

  def measure_round(self):
    """Runs everything once."""
    num_steps, num_images = self._args.steps, self._args.images
    num_trained = (num_steps - _WARM_UP_STEPS) * self._args.batch_size
    for k in _TRAINED:
      self._measure('published_training', {'training': _TRAINING.format(k)},
                    num_trained, data_dir=self._train_data, classifier=k)
    self._measure('command_line', {'training': _SHORT_TRAINING}, num_trained,
                  data_dir=self._train_data, flags=[
                      '--fine_tune', '--classifier_id', '0,1',
                      '--nodump_softmaxes', '-te', '1000', '-ebe', '1000',
                      '-mts', str(num_steps)])
    for k in _CLASSIFIERS:
      self._measure('published_dump', {'predicting': _PREDICTING.format(k),
                                       'evaluating': _EVALUATING.format(k)},
                    num_images, data_dir=self._dump_data, classifier=k)
    self._measure('command_line', {'dumping': _SHORT_DUMP}, num_images,
                  data_dir=self._dump_data, flags=_DUMP_FLAGS)
    self._measure('bare', {'computing': _BARE}, num_trained)

  def dump_memory(self):
    """Peak bytes of a dump with a small network, by number of images."""
    small = dict(resnet_size=_SMALL_RESNET_SIZE, image_size=_SMALL_IMAGE_SIZE,
                 batch_size=_SMALL_BATCH_SIZE)
    pretrained = os.path.join(self._folder, 'small_pretrained')
    self._run('pretrained', folder=pretrained, **small)
    jpeg = draw_jpeg(np.random.RandomState(0), 8, 8)
    peaks = collections.OrderedDict()
    for num_images in _SMALL_COUNTS:
      say(f'dumping {num_images:,} tiny images')
      with tempfile.TemporaryDirectory(dir=self._folder) as folder:
        data_dir = os.path.join(folder, 'data')
        write_split(data_dir, 'validation', _SMALL_BATCH_SIZE, [jpeg])
        write_split(data_dir, 'train', num_images, [jpeg])
        _, peaks[num_images] = self._run(
            'command_line', folder=folder, data_dir=data_dir,
            pretrained=pretrained, flags=_DUMP_FLAGS, **small)
    return peaks


def table_lines(costs):
  """The table, a list of str, and what follows from it.

  Args:
    costs: of `Bench`.
  """
  published_training = in_turn(
      costs[_TRAINING.format(k)] for k in _TRAINED)
  published_dump = in_turn(
      costs[title.format(k)] for k in _CLASSIFIERS
      for title in (_PREDICTING, _EVALUATING))
  form = '{:<42} {:>8} {:>8} {:>9} {:>9} {:>7}'
  lines = [form.format('', 'images/s', 'images/s', 'CPU s/', 'image',
                       'peak'),
           form.format('', 'best', 'median', 'best', 'median', 'MB')]

  def add(title, of_rounds):
    seconds, cpu_seconds, peak_bytes = zip(*of_rounds)
    lines.append(form.format(
        title, f'{1 / min(seconds):.2f}',
        f'{1 / statistics.median(seconds):.2f}', f'{min(cpu_seconds):.4f}',
        f'{statistics.median(cpu_seconds):.4f}',
        f'{max(peak_bytes) / 1e6:.0f}'))

  def compare(title, slow, fast, number_form):
    ratios = [number_form.format(function(s) / function(f))
              for s, f in list(zip(zip(*slow), zip(*fast)))[:2]
              for function in (min, statistics.median)]
    lines.extend([form.format(title, *ratios + ['']).rstrip(), ''])

  for title, of_rounds in costs.items():
    if title == _SHORT_TRAINING:
      add('published: training both', published_training)
    if title == _SHORT_DUMP:
      add('published: all of these', published_dump)
    add(title, of_rounds)
    if title == _SHORT_TRAINING:
      compare('  times as fast', published_training, of_rounds, '{:.2f}')
    if title == _SHORT_DUMP:
      compare('  times as fast', published_dump, of_rounds, '{:.2f}')
  compare('  rate of the short dump by this', costs[_BARE], costs[_SHORT_DUMP],
          '{:.1%}')
  return lines + step3_lines(costs)


def step3_hours(costs):
  """Hours and CPU hours of step 3 on ImageNet, by these rates.

  Returns:
    An ordered dict from what is done to the two arrays [2] of the published
    way and the short one.
  """
  def best(title):
    return np.array([min(cost.seconds for cost in costs[title]),
                     min(cost.cpu_seconds for cost in costs[title])]) / 3600

  trained = _TRAIN_EPOCHS * FULL_COUNTS['train']
  evaluated = _TRAIN_EPOCHS * FULL_COUNTS['validation']
  dumped = sum(FULL_COUNTS.values())
  return collections.OrderedDict([
      (f'training, {_TRAIN_EPOCHS} epochs', (
          trained * sum(best(_TRAINING.format(k)) for k in _TRAINED),
          trained * best(_SHORT_TRAINING))),
      ('evaluation after each', (
          evaluated * sum(best(_EVALUATING.format(k)) for k in _TRAINED),
          # Of which it is a part.
          evaluated * best(_SHORT_DUMP))),
      ('dumps of both splits', (
          dumped * sum(best(title.format(k)) for k in _CLASSIFIERS
                       for title in (_PREDICTING, _EVALUATING)),
          dumped * best(_SHORT_DUMP)))])


def step3_lines(costs):
  """The hours of step 3, a list of str."""
  hours = step3_hours(costs)
  hours['all of step 3'] = [sum(way) for way in zip(*hours.values())]
  form = '{:<28} {:>9} {:>8} {:>7} {:>13} {:>8} {:>7}'
  lines = ['Step 3 on ImageNet at the best of these rates (extrapolated)',
           form.format('', 'published', 'short', 'ratio',
                       'published', 'short', 'ratio'),
           form.format('', 'hours', 'hours', '', 'CPU hours', 'CPU h', '')]
  for title, (published, short) in hours.items():
    cells = []
    for before, after in zip(published, short):
      cells += [f'{before:,.0f}', f'{after:,.0f}', f'{before / after:.2f}']
    lines.append(form.format(title, *cells))
  return lines


def memory_lines(peaks):
  """The memory of dumps by number of images, a list of str."""
  image_bytes = len(_CLASSIFIERS) * (_NUM_CLASSES + 1) * 4
  return ['', f'Peak memory of a dump with ResNet-v2-{_SMALL_RESNET_SIZE}, '
          f'{_SMALL_IMAGE_SIZE} pixels'] + [
              f'{num_images:>8,} images {peak_bytes / 1e6:>6.0f} MB, '
              f'of dumps {num_images * image_bytes / 1e6:>6.0f} MB'
              for num_images, peak_bytes in peaks.items()]


def heading_lines(args, tensorflow_version):
  """What is measured and where, a list of str."""
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return [
      f'ResNet-v2-{args.resnet_size}, {args.image_size} pixels, '
      f'{_NUM_CLASSES + 1} classes; batch {args.batch_size}; {args.images} '
      f'images dumped, {args.steps} steps of training,',
      f'{args.rounds} rounds in turns; {num_cores()} cores, '
      f'{memory / 1e9:.0f} GB; Python {platform.python_version()}, TensorFlow '
      f'{tensorflow_version}',
      'peak: of the whole process (PSS), training and dumping alike', '']


def benchmark(args):
  """Measures everything and prints the table.

  Raises:
    UserError: a run failed.
  """
  with tempfile.TemporaryDirectory(
      prefix='one_network_', dir=args.folder) as folder:
    bench = Bench(args, folder)
    version = bench.prepare()
    for _ in range(args.rounds):
      bench.measure_round()
    print('\n'.join(heading_lines(args, version) + table_lines(bench.costs)),
          flush=True)
    if not args.skip_memory:
      print('\n'.join(memory_lines(bench.dump_memory())))


def parse_arguments(arguments=None):
  """Parses the command line; raises `UserError` where it is wrong."""
  parser = make_parser(__doc__)
  for flag, default, what in (
      ('images', 192, 'images of the split whose dump is timed'),
      ('steps', 8, f'training steps, of which the first {_WARM_UP_STEPS} are '
       'not timed'),
      ('batch_size', 32, 'images in a step'),
      ('rounds', 2, 'how often each is run'),
      ('resnet_size', 50, 'depth of the network'),
      ('image_size', 224, 'height and width of the images')):
    parser.add_argument(f'--{flag}', type=int, default=default, metavar='N',
                        help=what + ' (%(default)s)')
  parser.add_argument('--skip_memory', action='store_true',
                      help='leave the dump of 100,000 images out')
  args = parser.parse_args(arguments)
  check_smallest(args, {'images': 1, 'steps': _WARM_UP_STEPS + 1,
                        'batch_size': 2, 'rounds': 1})
  return args


def main():
  benchmark(parse_arguments())


if __name__ == '__main__':
  sys.exit(run_main(main))
