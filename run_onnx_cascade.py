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

from photo_files import find_photos, read_photos
from shared_files import explain_content
from shared_results import (
    CONFIDENCE_TERMS, checked_thresholds, thresholds_of_flag)
from shared_terminal import UserError, print_line, run_main

CHANNEL_MEANS = np.array([123.68, 116.78, 103.94], np.float32)
BATCH_SIZE = 32
BENCHMARK_SECONDS = 20  # For each batch size.


class Cascade:
  """The stages of an export, and when images leave."""

  def __init__(self, folder, thresholds=None):
    """Loads them; `thresholds`, a text, are in place of the export's own."""
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
      self.thresholds = thresholds_of_flag(
          thresholds.split(','), len(self.classifier_ids) - 1)
    self.sessions = load_stages(folder, len(self.classifier_ids))

  def run(self, images, thresholds=None):
    """Runs stage by stage on the images that stay.

    Args:
      images: float32 [batch, height, width, 3], preprocessed.
      thresholds: float32 [batch, T] for each image, in place of the cascade's.

    Returns:
      Of each image's exit: class and classifier, int [batch], and confidence,
      float32 [batch].
    """
    classes, exits = np.empty([2, len(images)], int)
    confidences = np.empty(len(images), np.float32)
    left, inputs = np.arange(len(images)), images
    for number, session in enumerate(self.sessions):
      softmax, *maps = session.run(None, {'inputs': inputs})
      best = np.argsort(-softmax, axis=1, kind='stable')[:, :self.num_terms]
      # Added up in float64 and rounded once, as the analysis does.
      confidence = np.take_along_axis(softmax, best, axis=1).sum(
          axis=1, dtype=np.float64).astype(np.float32)
      if not maps:
        threshold = -np.inf  # The last classifier accepts everything.
      elif thresholds is not None:
        threshold = thresholds[left, number]
      elif self.thresholds.ndim == 2:
        threshold = self.thresholds[number, best[:, 0]]  # Of each class.
      else:
        threshold = self.thresholds[number]
      leaves = confidence >= threshold
      rows = left[leaves]
      classes[rows], confidences[rows] = best[leaves, 0], confidence[leaves]
      exits[rows] = self.classifier_ids[number]
      left = left[~leaves]
      if not len(left):
        break
      inputs = maps[0][~leaves] if len(rows) else maps[0]
    return classes, exits, confidences

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

def read_batches(paths, image_size):
  """Batches of photos as evaluation sees them; of `photo_files.read_photos`."""
  def preprocess(jpeg):
    with Image.open(io.BytesIO(jpeg)) as image:
      pixels = np.asarray(image.convert('RGB'))
    return resized_centre(pixels, image_size) - CHANNEL_MEANS

  return read_photos(paths, BATCH_SIZE, preprocess)


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
  num_read = 0
  for names, images in read_batches(paths, cascade.image_size):
    num_read += len(names)
    for name, label, k, confidence in zip(names, *cascade.run(images)):
      print_line(
          f'{name}: {cascade.class_name(label)}, {confidence:.4f}, clf{k}')
  return int(num_read < len(paths))


def benchmark(cascade, paths):
  """Times batches in memory: nobody leaves, and the cascade, in turns."""
  if paths:
    images = np.concatenate([images for _, images in read_batches(
        paths, cascade.image_size)])
  else:
    images = np.random.RandomState(0).normal(scale=60, size=[
        BATCH_SIZE, cascade.image_size, cascade.image_size, 3]).astype(
            np.float32)
  exits = cascade.run(images)[1]
  print_line(f'{len(images)} images, left at ' + ', '.join(
      f'clf{k} {100 * np.mean(exits == k):.1f} %'
      for k in cascade.classifier_ids))
  for size in (1, BATCH_SIZE):
    nobody_leaves = np.full([size, len(cascade.sessions) - 1], np.inf)
    seconds, start, first = [], time.perf_counter(), 0
    while time.perf_counter() - start < BENCHMARK_SECONDS or len(seconds) < 3:
      rows = np.arange(first, first + size) % len(images)
      first += size
      turn = []
      for thresholds in (nobody_leaves, None):
        begin = time.perf_counter()
        cascade.run(images[rows], thresholds)
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
                      help='time batches of 1 and 32, of photos or of noise')
  args = parser.parse_args()
  if not (args.paths or args.benchmark):
    raise UserError('nothing to do; name images or folders, or --benchmark')
  paths = find_photos(args.paths)
  cascade = Cascade(args.export, args.thresholds)
  return (benchmark if args.benchmark else run_photos)(cascade, paths)


if __name__ == '__main__':
  sys.exit(run_main(main))
