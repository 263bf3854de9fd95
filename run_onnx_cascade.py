# /// script
# requires-python = ">=3.9"
# dependencies = ["numpy", "pillow", "onnxruntime"]
# ///
"""Runs an exported cascade without TensorFlow: ONNX Runtime, NumPy, Pillow.

  python3 run_onnx_cascade.py EXPORT photo.jpg folder/
  python3 run_onnx_cascade.py EXPORT --benchmark

EXPORT is a folder of `run_cascade.py --export_onnx`. Photos are read as an
evaluation reads them, and each prints the line that `run_cascade.py` prints.
Pillow decodes JPEGs more accurately than TensorFlow does by default: they are a
grey level apart on average, and up to 15 at sharp edges.
"""

import argparse
import io
import json
import os
import sys
import time

import numpy as np
from PIL import Image

ROOT = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(ROOT, 'Imagenet'))

from image_files import prepare_image
from photo_files import find_photos
from shared_files import explain_content
from shared_results import CONFIDENCE_TERMS, checked_thresholds
from shared_terminal import UserError, print_line, run_main, say

CHANNEL_MEANS = np.array([123.68, 116.78, 103.94], np.float32)
BATCH_SIZE = 32
BENCHMARK_SECONDS = 20  # For each batch size.


class Cascade:
  """The stages of an export, and when images leave."""

  def __init__(self, folder, thresholds=None):
    """Loads them; `thresholds` are in place of the export's own."""
    path = os.path.join(folder, 'cascade.json')
    with explain_content(path, 'name a folder of run_cascade.py --export_onnx'):
      with open(path, encoding='utf-8') as stream:
        record = json.load(stream)
      self.classifier_ids = record['classifiers']
      self.class_names = record['class_names']
      self.first_label = record['class_names_first_label']
      self.image_size = record['image_size']
      self.num_terms = CONFIDENCE_TERMS[record['metric']]
      self.thresholds = checked_thresholds(record['thresholds'])
    if thresholds:
      try:
        self.thresholds = checked_thresholds(thresholds.split(','))
      except ValueError as error:
        raise UserError(f'--thresholds {thresholds}: {error}')
      if len(self.thresholds) != len(self.classifier_ids) - 1:
        raise UserError(f'--thresholds {thresholds}: give '
                        f'{len(self.classifier_ids) - 1}')
    self.sessions = load_stages(folder, len(self.classifier_ids))

  def run(self, images, leaves=None):
    """Runs stage by stage on the images that stay.

    Args:
      images: float32 [batch, height, width, 3], preprocessed.
      leaves: a function like `leaves`, which it replaces.

    Returns:
      Of each image's exit: class and classifier, int [batch], and confidence,
      float32 [batch].
    """
    leaves = leaves or self.leaves
    classes, exits = np.empty([2, len(images)], int)
    confidences = np.empty(len(images), np.float32)
    left, inputs = np.arange(len(images)), images
    for number, session in enumerate(self.sessions):
      softmax, *maps = session.run(None, {'inputs': inputs})
      best = np.argsort(-softmax, axis=1, kind='stable')[:, :self.num_terms]
      # Added up in float64 and rounded once, as the analysis does.
      confidence = np.take_along_axis(softmax, best, axis=1).sum(
          axis=1, dtype=np.float64).astype(np.float32)
      is_leaving = leaves(number, confidence, best[:, 0], left) if maps else (
          np.ones(len(left), bool))
      rows = left[is_leaving]
      classes[rows] = best[is_leaving, 0]
      confidences[rows] = confidence[is_leaving]
      exits[rows] = self.classifier_ids[number]
      left = left[~is_leaving]
      if not len(left):
        break
      inputs = maps[0][~is_leaving] if len(rows) else maps[0]
    return classes, exits, confidences

  def leaves(self, number, confidences, predicted, rows):
    """Which images leave at a stage.

    Args:
      number: of the stage.
      confidences: float32 [images that got there].
      predicted: their classes.
      rows: their places in the batch.
    """
    del rows
    threshold = self.thresholds[number]
    if self.thresholds.ndim == 2:  # Of each class.
      threshold = threshold[predicted]
    return confidences >= threshold

  def class_name(self, label):
    """The name of a class; its number if it has none."""
    if self.class_names and label >= self.first_label:
      return self.class_names[label - self.first_label]
    return str(label)


def load_stages(folder, num_stages):
  """An `onnxruntime.InferenceSession` for each stage."""
  try:
    import onnxruntime
  except ImportError as error:
    raise UserError(f'{error}; pip install onnxruntime')
  options = onnxruntime.SessionOptions()
  # The threads of one stage would spin while those of another one work.
  options.add_session_config_entry('session.intra_op.allow_spinning', '0')
  sessions = []
  for number in range(num_stages):
    path = os.path.join(folder, f'stage{number}.onnx')
    try:
      sessions.append(onnxruntime.InferenceSession(
          path, options, providers=['CPUExecutionProvider']))
    except Exception as error:  # It has a class of its own for each.
      raise UserError(f'{path}: onnxruntime {onnxruntime.__version__} cannot '
                      f'load it ({error}); export it again')
  return sessions


# ---- Photos -----------------------------------------------------------------

def read_photo(path, image_size):
  """An image file as evaluation sees it: float32 [size, size, 3].

  Raises:
    OSError, ValueError: it cannot be read, or is no image.
  """
  with open(path, 'rb') as stream:
    prepared = prepare_image(stream.read())
  with Image.open(io.BytesIO(prepared.jpeg)) as image:
    pixels = np.asarray(image.convert('RGB'))
  return resized_centre(pixels, image_size) - CHANNEL_MEANS


def resized_centre(pixels, image_size):
  """The centre of an image whose smaller side is resized to 256 (of 224).

  Bilinear as TensorFlow 1 has it: corners are not aligned, and pixel i of the
  result is at i * scale. All in single precision, as the official code.

  Args:
    pixels: uint8 [height, width, 3].
    image_size: height and width of the result.

  Returns:
    float32 [image_size, image_size, 3], grey levels.
  """
  sides = np.array(pixels.shape[:2], np.float32)
  scale = np.float32(image_size * 256 // 224) / sides.min()
  lower, upper, weight = [], [], []
  for axis, side in enumerate((sides * scale).astype(np.int32)):
    start = (side - image_size) // 2
    places = np.arange(start, start + image_size).astype(np.float32) * (
        sides[axis] / np.float32(side))
    lower.append(np.floor(places).astype(int))
    upper.append(np.minimum(lower[-1] + 1, pixels.shape[axis] - 1))
    weight.append((places - lower[-1]).astype(np.float32)[:, np.newaxis])

  def row(rows):
    left, right = [pixels[rows][:, columns].astype(np.float32)
                   for columns in (lower[1], upper[1])]
    return left + (right - left) * weight[1]

  top, bottom = row(lower[0]), row(upper[0])
  return top + (bottom - top) * weight[0][:, np.newaxis]


def run_photos(cascade, paths):
  """A line for each image; the exit status, 1 if a file was none."""
  status, batch = 0, []
  paths = find_photos(paths)
  for number, path in enumerate(paths, 1):
    try:
      batch.append((path, read_photo(path, cascade.image_size)))
    except (OSError, ValueError) as error:
      say(f'{path}: {getattr(error, "strerror", None) or error}; left out')
      status = 1
    if batch and (len(batch) == BATCH_SIZE or number == len(paths)):
      names, images = zip(*batch)
      for name, label, k, confidence in zip(
          names, *cascade.run(np.stack(images))):
        print_line(
            f'{name}: {cascade.class_name(label)}, {confidence:.4f}, clf{k}')
      batch = []
  return status


def nobody_leaves(number, confidences, predicted, rows):
  """For `Cascade.run`."""
  del number, confidences, predicted
  return np.zeros(len(rows), bool)


def benchmark(cascade, paths):
  """Times batches in memory: nobody leaves, and the cascade, in turns."""
  if paths:
    images = np.stack([read_photo(path, cascade.image_size)
                       for path in find_photos(paths)])
  else:
    images = np.random.RandomState(0).normal(scale=60, size=[
        BATCH_SIZE] + 2 * [cascade.image_size] + [3]).astype(np.float32)
  exits = cascade.run(images)[1]
  print_line(f'{len(images)} images, left at ' + ', '.join(
      f'clf{k} {100 * np.mean(exits == k):.1f} %'
      for k in cascade.classifier_ids))
  for size in (1, BATCH_SIZE):
    seconds, start, first = [], time.perf_counter(), 0
    while time.perf_counter() - start < BENCHMARK_SECONDS or len(seconds) < 3:
      rows = np.arange(first, first + size) % len(images)
      first += size
      turn = []
      for leaves in (nobody_leaves, cascade.leaves):
        begin = time.perf_counter()
        cascade.run(images[rows], leaves)
        turn.append(time.perf_counter() - begin)
      seconds.append(turn)
    for name, times in zip(('nobody leaves', 'cascade'), np.transpose(
        seconds[1:])):  # The first ones warm up.
      p50, p95, p99 = 1000 * np.percentile(times, [50, 95, 99])
      print_line(
          f'batch {size:2}, {name:13}: p50 {p50:.1f} ms, p95 {p95:.1f} ms, '
          f'p99 {p99:.1f} ms, {size / times.mean():.1f} images/s')


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('export', metavar='EXPORT')
  parser.add_argument('paths', nargs='*', metavar='PHOTO', help='or a folder')
  parser.add_argument('--thresholds', metavar='T,T',
                      help="in place of the export's own, such as 0.9,0.8")
  parser.add_argument('--benchmark', action='store_true',
                      help='time batches of 1 and 32, of the photos or of noise')
  args = parser.parse_args()
  if not (args.paths or args.benchmark):
    raise UserError('nothing to do; name images or folders, or --benchmark')
  cascade = Cascade(args.export, args.thresholds)
  if args.benchmark:
    return benchmark(cascade, args.paths)
  return run_photos(cascade, args.paths)


if __name__ == '__main__':
  sys.exit(run_main(main))
