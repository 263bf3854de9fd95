"""CPU time of an image's way through evaluation, before and after.

  python3 benchmarks/decode_rates.py [--folder DIR] [--images N] [--rounds N]

Before: the plain preprocessing of tests/plain_preprocessing.py, which is how
the official code does it. After: Imagenet/imagenet_preprocessing.py. Between
them, what was tried and not taken: decoding only the rows and columns that the
centre crop reads (with the rest of the rows below them, in which a missing end
would show). All of them on drawn JPEGs of 500 x 375 pixels and about 110 KB,
and on the JPEGs of --folder if it is given; and the largest difference in grey
levels between before and after.

Times are those of one thread's CPU, the least of some rounds in which the
cases take turns; what else runs on the machine still shows in the second
decimal. Takes about a minute. The table goes to stdout.
"""

import argparse
import os
import platform
import sys
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
for room in ('Imagenet', 'Imagenet_tools', 'tests', 'benchmarks'):
  sys.path.insert(0, os.path.join(ROOT, room))

from tf_compat import tf

import imagenet_preprocessing
import plain_preprocessing
from build_records import draw_jpeg
from imagenet_input import NUM_CHANNELS
from imagenet_preprocessing import DEFAULT_IMAGE_SIZE
from shared_terminal import UserError, run_main
from tools_arguments import ArgumentParser

_SUFFIXES = ('.jpeg', '.jpg')
_WIDTH, _HEIGHT = 500, 375  # The size that most of ImageNet's images have.
_REPEATS = 4  # Passes over the images in a round.


def decode(jpeg):
  return _some_value(tf.image.decode_jpeg(jpeg, channels=NUM_CHANNELS))


def decode_window(jpeg):
  """What the centre crop reads, two pixels more around it, and all below."""
  shape = tf.image.extract_jpeg_shape(jpeg)
  smaller_side = tf.to_float(tf.minimum(shape[0], shape[1]))
  kept = DEFAULT_IMAGE_SIZE * smaller_side / tf.to_float(
      imagenet_preprocessing.resize_min(DEFAULT_IMAGE_SIZE))
  top, left = [
      tf.maximum(tf.to_int32((tf.to_float(side) - kept) / 2) - 2, 0)
      for side in (shape[0], shape[1])]
  width = tf.minimum(tf.to_int32(kept) + 4, shape[1] - left)
  return _some_value(tf.image.decode_and_crop_jpeg(
      jpeg, tf.stack([top, left, shape[0] - top, width]),
      channels=NUM_CHANNELS))


def before(jpeg):
  return plain_preprocessing.preprocess_for_eval(jpeg, DEFAULT_IMAGE_SIZE)


def after(jpeg):
  return imagenet_preprocessing.preprocess_image(
      jpeg, tf.zeros([1, 0, 4]), DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE,
      NUM_CHANNELS)


CASES = [('decode', decode), ('decode window', decode_window),
         ('before', before), ('after', after)]


def _some_value(image):
  """For which all of the image has to be computed, and little is copied."""
  return tf.reshape(image, [-1])[-1]


def measure(jpegs, num_rounds):
  """The least CPU seconds per image of each of `CASES`, in a list."""
  config = tf.ConfigProto(intra_op_parallelism_threads=1)
  least = [float('inf')] * len(CASES)
  with tf.Graph().as_default(), tf.Session(config=config) as session:
    iterators = [
        tf.data.Dataset.from_tensor_slices(jpegs).repeat(_REPEATS).map(
            function).batch(len(jpegs)).make_initializable_iterator()
        for _, function in CASES]
    steps = [iterator.get_next().op for iterator in iterators]
    for _ in range(num_rounds):
      for i, iterator in enumerate(iterators):
        session.run(iterator.initializer)
        begin = time.process_time()
        # To its end: nothing of it runs on into the turn of the next.
        for _ in range(_REPEATS):
          session.run(steps[i])
        seconds = time.process_time() - begin
        least[i] = min(least[i], seconds / (_REPEATS * len(jpegs)))
  return least


def largest_difference(jpegs):
  """Between before and after, in grey levels."""
  with tf.Graph().as_default(), tf.Session() as session:
    jpeg = tf.placeholder(tf.string, [])
    difference = tf.reduce_max(tf.abs(before(jpeg) - after(jpeg)))
    return max(session.run(difference, {jpeg: data}) for data in jpegs)


def table_lines(name, jpegs, seconds, difference):
  """The lines of one set of images."""
  kilobytes = sum(len(jpeg) for jpeg in jpegs) / len(jpegs) / 1e3
  return ['{}: {} images of {:.0f} KB'.format(name, len(jpegs), kilobytes),
          '{:16}{:>14}{:>16}'.format('', 'CPU ms/image', 'images/s a core')] + [
              '{:16}{:>14.3f}{:>16.0f}'.format(case, 1e3 * value, 1 / value)
              for (case, _), value in zip(CASES, seconds)] + [
                  'largest difference: {:g} grey levels'.format(difference), '']


def read_folder(folder):
  """The JPEGs of a folder, in the order of their names."""
  jpegs = []
  for name in sorted(os.listdir(folder)):
    if name.lower().endswith(_SUFFIXES):
      with open(os.path.join(folder, name), 'rb') as stream:
        jpegs.append(stream.read())
  if not jpegs:
    raise UserError('--folder {}: holds no file named *.jpeg or *.jpg'.format(
        folder))
  return jpegs


def parse_arguments(arguments=None):
  """Parses the command line; raises `UserError` where it is wrong."""
  parser = ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--folder', metavar='DIR', help='of JPEGs')
  parser.add_argument('--images', type=int, default=24, metavar='N',
                      help='number of drawn images (%(default)s)')
  parser.add_argument('--rounds', type=int, default=10, metavar='N',
                      help='how often each is run (%(default)s)')
  args = parser.parse_args(arguments)
  for flag in ('images', 'rounds'):
    if getattr(args, flag) < 1:
      raise UserError('--{} {}: give a number from 1 on'.format(
          flag, getattr(args, flag)))
  return args


def main():
  args = parse_arguments()
  rng = np.random.RandomState(0)
  sets = [('drawn, {} x {}'.format(_WIDTH, _HEIGHT),
           [draw_jpeg(rng, _WIDTH, _HEIGHT) for _ in range(args.images)])]
  if args.folder:
    sets.append((os.path.basename(os.path.abspath(args.folder)),
                 read_folder(args.folder)))
  print('Python {}, TensorFlow {}\n'.format(
      platform.python_version(), tf.VERSION))
  for name, jpegs in sets:
    print('\n'.join(table_lines(
        name, jpegs, measure(jpegs, args.rounds), largest_difference(jpegs))))


if __name__ == '__main__':
  sys.exit(run_main(main))
