"""Images that really leave: the speed-up measured, and where the rest goes.

  python3 benchmarks/real_exits.py [--batch_sizes 1,8,32,64] [--rounds N] ...

On drawn images in memory and with random weights, on the TensorFlow of the
Python it is run with, in interleaved rounds,

  plain: the network as it is;
  heads: the cascade where nobody leaves, so with all heads;
  cascade: with images that leave at random places in the batch, for several
    shares of them. A batch of one cannot be split: each exit is timed, and
    the shares weigh the times.

The measured speed-up stands beside the one that MACs promise and the one that
the times of the stages promise, which are measured in the same run. Why it is
less than by MACs:

  heads_percent: more time for the network with all heads than for the plain
    one. The promises have the cost of heads in them;
  small_batches_percent: more time for the stages at the sizes of what is left
    of a batch than at the size of the whole batch;
  gather_percent: more time for the cascade than for its stages at the sizes of
    what is left: putting together what left at different exits, and noise.

What then is left of the difference is that a MAC of the first layers takes
longer.

With --onnx there is a second table (requirements-onnx.txt): milliseconds of a
batch of 1 and of 32 in TensorFlow and in ONNX Runtime, in turns. For batches of
1, each image's exit is drawn with the shares. The tables go to stdout and to CSV
files, all else to stderr.
"""

import argparse
import csv
import functools
import io
import math
import os
import re
import statistics
import sys
import tempfile
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
for room in ('Imagenet', 'Imagenet_tools'):
  sys.path.insert(0, os.path.join(ROOT, room))

from tf_compat import configure_logging, num_local_gpus, tf

import devices as devices_lib
import resnet_checkpoint
import resnet_cost
from benchmark_arguments import check_smallest, make_parser
from cascade_graph import Cascade
from cascade_session import CascadeSession, profile_stages
from shared_cascade_json import cumulative_costs
from shared_files import write_atomically
from imagenet_main import ImagenetModel
from resnet_model import BLOCK_SIZES, CLASSIFIER_IDS
from shared_stage_seconds import promised_speedup
from step3_runs import run_pretrained
from shared_terminal import UserError, run_main, say

# Of clf0 and clf1; the other images leave at clf2.
_SHARES = ((0, 0), (1 / 3, 1 / 3), (.6, .2), (1, 0))

# A shorter run is repeated until it had as many.
_LEAST_IMAGES = 16

# Width and digits after the point, in the table and in the file.
_COLUMNS = {
    'batch_size': (5, 0), 'share_clf0': (6, 3), 'share_clf1': (6, 3),
    'plain_images_per_second': (7, 2), 'heads_images_per_second': (7, 2),
    'cascade_images_per_second': (7, 2), 'speedup_measured': (8, 3),
    'speedup_by_macs': (7, 3), 'speedup_by_stage_times': (7, 3),
    'part_of_macs': (7, 3), 'part_of_stage_times': (8, 3),
    'heads_percent': (6, 1), 'gather_percent': (7, 1),
    'small_batches_percent': (6, 1)}
_TITLES = ('batch', 'clf0', 'clf1', 'plain', 'heads', 'cascade', 'speedup',
           'by MACs', 'by time', 'of MACs', 'of times', 'heads', 'gather',
           'small')


def exit_counts(batch_size, shares):
  """How many images of a batch leave at each exit, a tuple."""
  first = round(batch_size * shares[0])
  second = min(round(batch_size * shares[1]), batch_size - first)
  return first, second, batch_size - first - second


def forced_thresholds(counts, rng):
  """float32 [batch, 2] that make `counts` images leave at each exit."""
  rows = np.repeat(np.array(
      [[-np.inf, -np.inf], [np.inf, -np.inf], [np.inf, np.inf]], np.float32),
      counts, axis=0)
  return rng.permutation(rows)


def measure(session, images, all_counts, num_rounds):
  """Seconds per image, medians of interleaved rounds.

  Args:
    session: a `CascadeSession`.
    images: a batch.
    all_counts: images that leave at each exit, a list of tuples.
    num_rounds: int.

  Returns:
    Those of the plain network, those with heads, and a dict of the cascade's
    from counts.

  Raises:
    UserError: images leave elsewhere than they should.
  """
  rng = np.random.RandomState(0)
  runs = {'plain': lambda: session.run_plain(images),
          'heads': lambda: session.run_to(images, len(CLASSIFIER_IDS) - 1)}
  for counts in all_counts:
    thresholds = forced_thresholds(counts, rng)
    runs[counts] = lambda fed=thresholds: session.run(images, fed)
    exits = runs[counts]().exits
    if tuple(np.sum(exits == k) for k in CLASSIFIER_IDS) != counts:
      raise UserError(f'of {len(images)} images, {counts} should leave at '
                       f'each exit; they left at {exits.tolist()}')
  runs['plain'](), runs['heads']()  # First runs; the others have had theirs.
  repeats = math.ceil(_LEAST_IMAGES / len(images))
  seconds = {name: [] for name in runs}
  for _ in range(num_rounds):
    for name, run_once in runs.items():
      start = time.perf_counter()
      for _ in range(repeats):
        run_once()
      seconds[name].append(
          (time.perf_counter() - start) / repeats / len(images))
  medians = {name: statistics.median(of) for name, of in seconds.items()}
  return medians.pop('plain'), medians.pop('heads'), medians


def at_size(profile, batch_size):
  """`StageSeconds` that are at any size those of `batch_size`."""
  index = profile.batch_sizes.index(batch_size)
  return profile._replace(
      batch_sizes=[batch_size],
      seconds_per_image={k: [seconds[index]] for k, seconds in
                         profile.seconds_per_image.items()},
      plain_seconds_per_image=[profile.plain_seconds_per_image[index]])


def rows_of(session, network, profile, images, num_rounds):
  """Measures a batch size; yields a row, a dict, for each of `_SHARES`."""
  batch_size = len(images)
  all_counts = [exit_counts(batch_size, shares) for shares in _SHARES]
  if batch_size == 1:
    all_counts = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
  plain, heads, cascade = measure(
      session, images, list(dict.fromkeys(all_counts)), num_rounds)
  macs = cumulative_costs([cost.trunk_macs for cost in network.exits],
                          [cost.head_macs for cost in network.exits])
  final = network.exits[-1]
  for number, shares in enumerate(_SHARES):
    if batch_size == 1:
      shares = (*shares, 1 - sum(shares))
      seconds = sum(share * cascade[counts]
                    for share, counts in zip(shares, all_counts))
    else:
      seconds = cascade[all_counts[number]]
      shares = [count / batch_size for count in all_counts[number]]
    measured = plain / seconds
    by_macs = (final.trunk_macs + final.head_macs) / np.dot(shares, macs)
    by_times = promised_speedup(profile, shares, batch_size)
    by_full_times = promised_speedup(
        at_size(profile, batch_size), shares, batch_size)
    yield dict(zip(_COLUMNS, (
        batch_size, *shares[:2], 1 / plain, 1 / heads, 1 / seconds, measured,
        by_macs, by_times, measured / by_macs, measured / by_times,
        100 * (heads / plain - 1), 100 * (by_times / measured - 1),
        100 * (by_full_times / by_times - 1))))


# ---- Beside ONNX Runtime ----------------------------------------------------

_ONNX_SHARES = ((1 / 3, 1 / 3), (.6, .2))
_ONNX_BATCH_SIZES = (1, 32)
_ONNX_COLUMNS = ('runtime', 'network', 'batch', 'clf0', 'clf1', 'p50 ms',
                 'p99 ms', 'images/s')


def onnx_networks(folder, cascade):
  """The whole network and the cascade as `run_onnx_cascade.Cascade`s."""
  import cascade_onnx
  sys.path.insert(0, ROOT)
  import run_onnx_cascade
  networks = []
  for ids in (cascade.classifier_ids[-1:], cascade.classifier_ids):
    path = os.path.join(folder, f'onnx{len(ids)}')
    cascade_onnx.write(path, cascade._replace(classifier_ids=ids), {
        'classifiers': ids, 'metric': 'top1',
        'image_size': cascade.network.image_size,
        'thresholds': [1] * (len(ids) - 1), 'class_names': None,
        'class_names_first_label': 1})
    networks.append(run_onnx_cascade.Cascade(path))
  return networks


def onnx_rows(session, whole, cascade, images, num_runs):
  """Times one batch size; yields rows of `_ONNX_COLUMNS`.

  Args:
    session: a `CascadeSession`.
    whole, cascade: of `onnx_networks`.
    images: a batch.
    num_runs: of each network.
  """
  rng = np.random.RandomState(0)
  all_shares = ((0, 0),) + _ONNX_SHARES
  runs = {('TensorFlow', 'plain', None): lambda _: session.run_plain(images),
          ('ONNX Runtime', 'plain', None): lambda _: whole.run(images)}
  for runtime, of in (('TensorFlow', session), ('ONNX Runtime', cascade)):
    for shares in all_shares:
      runs[runtime, 'cascade', shares] = functools.partial(of.run, images)
  seconds = {name: [] for name in runs}
  for _ in range(num_runs + 1):
    thresholds = {None: None}
    for shares in all_shares:
      counts = exit_counts(len(images), shares) if len(images) > 1 else (
          rng.multinomial(1, [*shares, 1 - sum(shares)]))
      thresholds[shares] = forced_thresholds(counts, rng)
    for name, run_once in runs.items():
      start = time.perf_counter()
      run_once(thresholds[name[2]])
      seconds[name].append(time.perf_counter() - start)
  for (runtime, network, shares), of in seconds.items():
    p50, p99 = 1000 * np.percentile(of[1:], [50, 99])  # The first warms up.
    yield (runtime, network, len(images), *(
        f'{share:.3f}' for share in shares or (0, 0)), f'{p50:.1f}',
           f'{p99:.1f}', f'{len(images) / np.mean(of[1:]):.2f}')


def onnx_benchmark(args, session, networks, images):
  """Prints the second table; returns its lines, the titles first."""
  lines = [_ONNX_COLUMNS]
  for batch_size in _ONNX_BATCH_SIZES:
    say(f'ONNX Runtime, batch {batch_size}')
    rows = np.resize(np.arange(len(images)), batch_size)
    lines.extend(onnx_rows(
        session, *networks, images[rows],
        args.rounds * (20 if batch_size == 1 else 1)))
  for line in lines:
    print(''.join(f'{cell:>13}' for cell in line), flush=True)
  return lines


# ---- The command line -------------------------------------------------------

def benchmark(args):
  """Measures everything, prints the table and writes the file."""
  devices = devices_lib.resolve(num_local_gpus(), max(args.batch_sizes))
  os.environ.update(devices_lib.gpu_environment(None, devices.num_gpus))
  os.environ.update(devices_lib.CASCADE_ENVIRONMENT)
  stack = 'tf' + tf.VERSION.split('.')[0]
  device = devices_lib.describe(devices)
  machine = re.sub('[^A-Za-z0-9]+', '_', device).strip('_')
  output = args.output or os.path.join(
      ROOT, 'benchmarks', 'results', f'real_exits_{stack}_{machine}.csv')
  os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)

  model = ImagenetModel(args.resnet_size, devices.data_format)
  network = resnet_cost.describe(model, args.image_size)
  image_shape = [args.image_size, args.image_size, 3]
  images = np.random.RandomState(0).normal(
      scale=60, size=[max(args.batch_sizes)] + image_shape).astype(np.float32)
  with tempfile.TemporaryDirectory(
      prefix='real_exits_', dir=args.folder) as folder:
    run_pretrained(argparse.Namespace(**dict(vars(args), folder=folder)))
    weights = resnet_checkpoint.to_evaluate(
        resnet_checkpoint.CheckpointPaths(folder),
        resnet_checkpoint.exit_shapes(model, CLASSIFIER_IDS, image_shape))
    cascade = Cascade(model, network, list(CLASSIFIER_IDS), weights, 'top1',
                      np.full(len(CLASSIFIER_IDS) - 1, np.inf, np.float32))
    session = CascadeSession(cascade, devices)
    networks = args.onnx and onnx_networks(folder, cascade)
  with session:
    profile = profile_stages(
        session, cascade, devices, max(args.batch_sizes))
    print(f'ResNet-v2-{args.resnet_size}, {args.image_size} pixels; '
          f'{args.rounds} rounds; TensorFlow {tf.VERSION}; {device}')
    print(''.join(f'{title:>{width + 1}}' for title, (width, _) in
                  zip(_TITLES, _COLUMNS.values())), flush=True)
    lines = []
    for batch_size in args.batch_sizes:
      say(f'batch {batch_size}')
      for row in rows_of(session, network, profile, images[:batch_size],
                         args.rounds):
        cells = [f'{row[name]:.{digits}f}'
                 for name, (_, digits) in _COLUMNS.items()]
        lines.append([stack, device] + cells)
        print(''.join(f'{cell:>{width + 1}}' for cell, (width, _) in
                      zip(cells, _COLUMNS.values())), flush=True)
    write_csv(output, [['stack', 'device', *_COLUMNS]] + lines)
    if networks:
      write_csv(re.sub(r'(\.csv)?$', '_onnx.csv', output, 1),
                onnx_benchmark(args, session, networks, images))


def write_csv(path, lines):
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows(lines)
  write_atomically(path, text.getvalue().encode())
  say(f'written to {path}')


def parse_arguments(arguments=None):
  """Parses the command line; raises `UserError` where it is wrong."""
  parser = make_parser(__doc__)
  parser.add_argument('--batch_sizes', default='1,8,32,64', metavar='N,N',
                      help='powers of two (%(default)s)')
  for flag, default, what in (
      ('rounds', 5, 'how often each is run'),
      ('resnet_size', 50, 'depth of the network'),
      ('image_size', 224, 'height and width of the images')):
    parser.add_argument(f'--{flag}', type=int, default=default, metavar='N',
                        help=what + ' (%(default)s)')
  parser.add_argument('--onnx', action='store_true',
                      help='also measure ONNX Runtime, in a second table')
  parser.add_argument('--output', metavar='FILE', help='the CSV file '
                      '(benchmarks/results/real_exits_STACK_MACHINE.csv)')
  args = parser.parse_args(arguments)
  check_smallest(args, {'rounds': 1, 'image_size': 32})
  if args.resnet_size not in BLOCK_SIZES:
    raise UserError(f'--resnet_size {args.resnet_size}: give one of '
                     f'{", ".join(map(str, BLOCK_SIZES))}')
  named = args.batch_sizes
  args.batch_sizes = [int(size) if size.isdigit() else 0
                      for size in named.split(',')]
  # Of these `profile_stages` has the times.
  if not all(size and size & (size - 1) == 0 for size in args.batch_sizes):
    raise UserError(f'--batch_sizes {named}: give powers of two, such as 1,8')
  return args


def main():
  args = parse_arguments()
  configure_logging()
  try:
    benchmark(args)
  except UserError as error:  # Of the modules in `Imagenet/`.
    raise UserError(str(error))


if __name__ == '__main__':
  sys.exit(run_main(main))
