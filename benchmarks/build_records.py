"""Time and memory of packing archives into TFRecords (step 2).

  python3 benchmarks/build_records.py [--folder DIR] [--images N] [--rounds N]

Draws two archives like ImageNet's, of JPEGs of about 110 KB, and runs on them,
in turns,

  a plain copy (cp) of the archives,
  build_imagenet_tfrecords.py with one and with two workers,
  a straightforward loop: each image is decoded by TensorFlow for its size, put
    into an Example and written, in one process, as the usual scripts do.

Everything is written to the same disk and flushed to it (fsync) within the
time that counts; archives are in the page cache (warm) or dropped from it
(cold). Then it packs as many images as ImageNet has, tiny ones, to show what
the index of them takes.

With the defaults it takes 8 GB of disk and about 10 minutes. Linux only, for
the memory that processes share. The table goes to stdout, all else to stderr.
"""

import argparse
import collections
import functools
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import typing

import numpy as np
import PIL
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOOLS = os.path.join(ROOT, 'Imagenet_tools')
sys.path.insert(0, TOOLS)

from benchmark_arguments import check_smallest, make_parser
from record_shards import images_per_shard
from shared_terminal import Progress, UserError, run_main
from worker_processes import num_cores

_BUILDER = os.path.join(TOOLS, 'build_imagenet_tfrecords.py')
_TRAIN, _VALIDATION, _LABELS = 'train.tar', 'val.tar', 'labels.txt'

# ImageNet's images to a shard, of training and validation.
_IMAGES_PER_SHARD = 1252

_NUM_DISTINCT_IMAGES = 200  # The others differ from them in a comment.
_NUM_SYNSETS = 100

# ILSVRC2012.
FULL_COUNTS = {'train': 1281167, 'validation': 50000}
_FULL_NUM_SYNSETS = 1000

_SAMPLE_SECONDS = 0.05

# What the records of an image take, and of a tiny one with its tar header.
_IMAGE_BYTES, _TINY_BYTES = 115000, 2500

_SPARE_BYTES = 10**9

# The loop takes so long that a part of the images must do.
_NUM_DECODED = 2000


class Measured(typing.NamedTuple):
  """What one run of a case took."""
  seconds: float
  images_per_second: float
  megabytes_per_second: float
  peak_megabytes: float


def draw_jpeg(rng, width, height):
  """A JPEG of about the sizes of ImageNet's: shapes of light and fine grain."""
  coarse = rng.randint(0, 256, (8, 8, 3)).astype(np.uint8)
  smooth = np.asarray(
      Image.fromarray(coarse).resize((width, height), Image.BICUBIC), np.int16)
  grain = rng.randint(-20, 21, (height, width, 1))
  pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
  encoded = io.BytesIO()
  Image.fromarray(pixels).save(encoded, 'JPEG', quality=95)
  return encoded.getvalue()


def with_comment(jpeg, number):
  """The JPEG with a comment, which makes a file of its own of it."""
  comment = b'image %d' % number
  return b'\xff\xd8\xff\xfe%c%c%s%s' % (
      0, len(comment) + 2, comment, jpeg[2:])


def _add(tar, name, data):
  member = tarfile.TarInfo(name)
  member.size = len(data)
  tar.addfile(member, io.BytesIO(data))


def make_archives(folder, num_images, num_synsets, jpegs):
  """Makes a folder of archives like ImageNet's, with the validation labels.

  Args:
    folder: does not exist.
    num_images: a dict from split to int.
    num_synsets: int.
    jpegs: list of bytes; they take turns.
  """
  os.mkdir(folder)
  synsets = ['n{:08d}'.format(i) for i in range(num_synsets)]
  with tarfile.open(os.path.join(folder, _TRAIN), 'w') as tar:
    number = 0
    progress = Progress('drawing', num_images['train'], 'images')
    for i, count in enumerate(
        images_per_shard(num_images['train'], num_synsets)):
      inner = io.BytesIO()
      with tarfile.open(fileobj=inner, mode='w') as inner_tar:
        for _ in range(count):
          _add(inner_tar, '{}_{}.JPEG'.format(synsets[i], number),
               with_comment(jpegs[number % len(jpegs)], number))
          number += 1
      _add(tar, synsets[i] + '.tar', inner.getvalue())
      progress.update(number)
  with tarfile.open(os.path.join(folder, _VALIDATION), 'w') as tar, open(
      os.path.join(folder, _LABELS), 'w') as labels:
    for i in range(num_images['validation']):
      _add(tar, 'ILSVRC2012_val_{:08d}.JPEG'.format(i + 1),
           with_comment(jpegs[i % len(jpegs)], i))
      labels.write(synsets[i % num_synsets] + '\n')


def decode_every_image(folder, output, num_images):
  """The straightforward loop over the first `num_images` training images.

  Prints as JSON how many seconds it took, TensorFlow's import apart.
  """
  import tensorflow as tf
  if not tf.__version__.startswith('1.'):
    tf = tf.compat.v1

  def integer(value):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

  def text(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

  def images():
    with tarfile.open(os.path.join(folder, _TRAIN)) as tar:
      for label, synset_tar in enumerate(tar, 1):
        with tarfile.open(fileobj=tar.extractfile(synset_tar)) as inner_tar:
          for member in inner_tar:
            yield member.name, label, inner_tar.extractfile(member).read()

  with tf.Graph().as_default(), tf.Session() as session:
    jpeg = tf.placeholder(tf.string)
    pixels = tf.image.decode_jpeg(jpeg, channels=3)
    start = time.monotonic()
    with tf.io.TFRecordWriter(output) as writer:
      for (name, label, data), _ in zip(images(), range(num_images)):
        height, width, _ = session.run(pixels, {jpeg: data}).shape
        writer.write(tf.train.Example(features=tf.train.Features(feature={
            'image/encoded': text(data),
            'image/class/label': integer(label),
            'image/class/synset': text(name.split('_')[0].encode()),
            'image/filename': text(name.encode()),
            'image/height': integer(height),
            'image/width': integer(width),
            'image/colorspace': text(b'RGB'),
            'image/channels': integer(3),
            'image/format': text(b'JPEG')})).SerializeToString())
    with open(output, 'rb') as written:
      os.fsync(written.fileno())
    print(json.dumps(time.monotonic() - start))


def _descendants(pid):
  """The process and those that it has started, directly or not."""
  pids = [pid]
  for parent in pids:
    try:
      with open('/proc/{0}/task/{0}/children'.format(parent)) as children:
        pids += [int(child) for child in children.read().split()]
    except OSError:  # It has ended.
      pass
  return pids


def _proportional_bytes(pid):
  """Memory of a process, pages that it shares divided by their users."""
  try:
    with open('/proc/{}/smaps_rollup'.format(pid)) as rollup:
      for line in rollup:
        if line.startswith('Pss:'):
          return 1024 * int(line.split()[1])
  except OSError:
    pass
  return 0


def run_measured(command, sample_seconds=_SAMPLE_SECONDS):
  """Runs a command; returns `(seconds, peak bytes of its processes, stdout)`.

  Its processes are looked at every `sample_seconds`.

  Raises:
    UserError: it failed.
  """
  with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
    peak_bytes = 0
    try:
      while process.poll() is None:
        peak_bytes = max(peak_bytes, sum(
            _proportional_bytes(pid) for pid in _descendants(process.pid)))
        try:
          process.wait(sample_seconds)
        except subprocess.TimeoutExpired:
          pass
      seconds = time.monotonic() - start
    finally:
      if process.poll() is None:
        process.terminate()
        process.wait()
    stdout.seek(0)
    stderr.seek(0)
    if process.returncode:
      raise UserError('{}: failed with: {}'.format(' '.join(command), (
          stderr.read().decode().splitlines() or ['nothing said'])[-1]))
    return seconds, peak_bytes, stdout.read().decode()


def drop_from_page_cache(folder):
  """Makes the next reading of the files of `folder` one from the disk."""
  os.sync()  # Pages not yet written cannot be dropped.
  for name in os.listdir(folder):
    with open(os.path.join(folder, name), 'rb') as stream:
      os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy_command(archives, output, num_images):
  return ['sh', '-c', 'cp "$0" "$1" "$2" && sync "$2"/*',
          os.path.join(archives, _TRAIN), os.path.join(archives, _VALIDATION),
          output]


def builder_command(archives, output, num_images, num_workers):
  """The command line of the builder, with shards as large as ImageNet's."""
  command = [
      sys.executable, _BUILDER, '--output_dir', output,
      '--train_archive', os.path.join(archives, _TRAIN),
      '--validation_archive', os.path.join(archives, _VALIDATION),
      '--validation_labels', os.path.join(archives, _LABELS),
      '--labels_dir', output, '--workers', str(num_workers)]
  for split, count in num_images.items():
    command += ['--{}_shards'.format(split),
                str(-(-count // _IMAGES_PER_SHARD))]
  return command


def loop_command(archives, output, num_images):
  return [sys.executable, os.path.abspath(__file__), '--decode_every_image',
          archives, os.path.join(output, 'records'), str(num_images['train'])]


class Case(typing.NamedTuple):
  """What is measured."""
  title: str
  cache: str
  # From the folder of the archives, an empty folder for the output, and the
  # dict from split to number of images, to the command's arguments.
  command: typing.Callable


_BUILDER_2 = functools.partial(builder_command, num_workers=2)
_BUILDER_1 = functools.partial(builder_command, num_workers=1)
CASES = [
    Case('cp', 'warm', copy_command),
    Case('builder, 2 workers', 'warm', _BUILDER_2),
    Case('builder, 1 worker', 'warm', _BUILDER_1),
    Case('cp', 'cold', copy_command),
    Case('builder, 2 workers', 'cold', _BUILDER_2),
    Case('builder, 1 worker', 'cold', _BUILDER_1),
    Case('decode every image', 'warm', loop_command)]
_FULL_CASE = Case('builder, 2 workers, 1.33 million', 'warm', _BUILDER_2)


def measure(case, archives, output, num_images):
  """Runs a case once; a `Measured`.

  Args:
    case: a `Case`.
    archives: a folder, see `make_archives`.
    output: a folder that is made, and removed in the end.
    num_images: a dict from split to int.

  Raises:
    UserError: its command failed.
  """
  print('{}, {} page cache'.format(case.title, case.cache), file=sys.stderr)
  if case.cache == 'cold':
    drop_from_page_cache(archives)
  os.mkdir(output)
  try:
    seconds, peak_bytes, stdout = run_measured(
        case.command(archives, output, num_images))
    written_bytes = sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(output) for name in names)
  finally:
    shutil.rmtree(output)
  if case.command == loop_command:
    seconds = json.loads(stdout.splitlines()[-1])  # Without the import.
  return Measured(seconds, sum(num_images.values()) / seconds,
                  written_bytes / seconds / 1e6, peak_bytes / 1e6)


def table_lines(measured):
  """The table, a list of str, of a dict from `Case` to a list of `Measured`."""
  form = '{:<33} {:<5} {:>7} {:>8} {:>8} {:>6} {:>7} {:>6} {:>6}'
  lines = [form.format('', 'cache', 'min s', 'median s', 'images/s', 'MB/s',
                       'of cp', 'x loop', 'MB')]
  best = {case: min(results) for case, results in measured.items()}
  rate = {(case.title, case.cache): best[case].images_per_second
          for case in best}
  for case, results in measured.items():
    copy_rate = rate.get(('cp', case.cache))
    is_builder = case.title.startswith('builder') and case != _FULL_CASE
    num_workers = 2 if case.command == _BUILDER_2 else 1
    lines.append(form.format(
        case.title, case.cache, '{:.2f}'.format(best[case].seconds),
        '{:.2f}'.format(statistics.median(r.seconds for r in results)),
        '{:,.0f}'.format(best[case].images_per_second),
        '{:.0f}'.format(best[case].megabytes_per_second),
        '{:.0%}'.format(best[case].images_per_second / copy_rate)
        if is_builder else '',
        '{:.1f}'.format(best[case].images_per_second / num_workers /
                        rate['decode every image', 'warm'])
        if is_builder else '',
        '{:.0f}'.format(max(r.peak_megabytes for r in results))).rstrip())
  return lines


def heading_lines(num_images, num_rounds):
  """What was measured and where, above the table; a list of str."""
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return [
      '{:,} images; {} rounds in turns; {} cores, {:.0f} GB; Python {}, NumPy '
      '{}, Pillow {}'.format(
          sum(num_images.values()), num_rounds, num_cores(), memory / 1e9,
          platform.python_version(), np.__version__, PIL.__version__),
      'all written to one disk and flushed (fsync) within the time; of cp: its '
      'rate by the rate of cp;',
      'x loop: rate of one worker by that of decoding every image; MB: peak of '
      'all processes (PSS)', '']


def benchmark(args):
  """Measures everything and prints the table.

  Raises:
    UserError: too little disk, or a command failed.
  """
  num_images = {'train': args.images, 'validation': -(-args.images // 25)}
  required = 2 * _IMAGE_BYTES * sum(num_images.values()) + _SPARE_BYTES
  if not args.no_full_count:
    required = max(required, 2 * _TINY_BYTES * sum(FULL_COUNTS.values()))
  folder = tempfile.mkdtemp(prefix='build_records_', dir=args.folder)
  try:
    free = shutil.disk_usage(folder).free
    if required > free:
      raise UserError(
          '--folder {}: the benchmark takes {:,} MB and {:,} MB are free; name '
          'a folder on another disk, or fewer --images'.format(
              folder, required // 10**6, free // 10**6))
    archives = os.path.join(folder, 'archives')
    output = os.path.join(folder, 'output')
    measured = collections.OrderedDict((case, []) for case in CASES)
    rng = np.random.RandomState(0)
    make_archives(archives, num_images, _NUM_SYNSETS, [
        draw_jpeg(rng, 500, 375) for _ in range(_NUM_DISTINCT_IMAGES)])
    for _ in range(args.rounds):
      for case in CASES:
        measured[case].append(measure(
            case, archives, output,
            {'train': min(args.images, _NUM_DECODED)}
            if case.command == loop_command else num_images))
    shutil.rmtree(archives)
    if not args.no_full_count:
      make_archives(archives, FULL_COUNTS, _FULL_NUM_SYNSETS, [
          draw_jpeg(rng, 8, 8)])
      measured[_FULL_CASE] = [measure(
          _FULL_CASE, archives, output, FULL_COUNTS)]
  finally:
    shutil.rmtree(folder)
  print('\n'.join(heading_lines(num_images, args.rounds) +
                  table_lines(measured)))


def parse_arguments(arguments=None):
  """Parses the command line; raises `UserError` where it is wrong."""
  parser = make_parser(__doc__)
  parser.add_argument('--images', type=int, default=20000, metavar='N',
                      help='number of training images (%(default)s)')
  parser.add_argument('--rounds', type=int, default=3, metavar='N',
                      help='how often each is run (%(default)s)')
  parser.add_argument('--no_full_count', action='store_true',
                      help='leave the 1.33 million tiny images out')
  parser.add_argument('--decode_every_image', nargs=3, help=argparse.SUPPRESS)
  args = parser.parse_args(arguments)
  check_smallest(args, {'images': _NUM_SYNSETS, 'rounds': 1})
  return args


def main():
  args = parse_arguments()
  if args.decode_every_image:
    archives, output, num_images = args.decode_every_image
    decode_every_image(archives, output, int(num_images))
  else:
    benchmark(args)


if __name__ == '__main__':
  sys.exit(run_main(main))
