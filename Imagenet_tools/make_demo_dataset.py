"""Draws a small data set of shapes, packed as ILSVRC2012 is.

    python3 make_demo_dataset.py --output_dir demo

writes ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and synset_labels.txt,
which preprocess_imagenet.sh takes as it takes ImageNet's. The same arguments
give the same bytes under the same Pillow.

An image is a field of equal shapes, one of ten, so that any part of it shows
the class (training crops as little as a twentieth of an image); colour, place
and surroundings say nothing. Each image has a difficulty from 0 to 1. On easy
ones the shapes are large, upright and clean, so that an early classifier can
tell them; on hard ones they are small, turned, squeezed and pale amid strangers
and noise, and some shapes differ in a detail only (disc and ring, square and
pentagon, five- and six-pointed star, bars straight and wavy), so that they need
the whole network.
"""

import io
import math
import os
import sys
import tarfile

import numpy as np
from PIL import Image, ImageDraw

from tools_command_line import ArgumentParser, InputError, run, unfinished_file

TRAIN_ARCHIVE = 'ILSVRC2012_img_train.tar'
VALIDATION_ARCHIVE = 'ILSVRC2012_img_val.tar'
LABELS_FILE = 'synset_labels.txt'

# One image in so many is greyscale, as ImageNet has them; among the training
# images, one in so many is a CMYK JPEG and one in all is a PNG named JPEG.
_GREY_PERIOD = 25
_CMYK_PERIOD = 500

_JPEG_QUALITY = 90

# Shapes are drawn at so many times the size and averaged down, for smooth
# edges.
_OVERSAMPLING = 2


def _regular(num_corners, radii=(1.,)):
  """Corners on circles of `radii`, in turn; the first one points up."""
  return [(radii[i % len(radii)] * math.sin(2 * math.pi * i / num_corners),
           -radii[i % len(radii)] * math.cos(2 * math.pi * i / num_corners))
          for i in range(num_corners)]


def _bars(wave_height):
  """Four bars across the unit circle's square, bent into a sine wave."""
  bars = []
  for top in (-0.85, -0.35, 0.15, 0.65):
    upper = [(x, top - 0.03 + wave_height * math.sin(2 * math.pi * x / 0.8))
             for x in np.linspace(-0.85, 0.85, 33).tolist()]
    bars.append(upper + [(x, y + 0.26) for x, y in reversed(upper)])
  return bars


# Name and polygons of each class, about the unit circle, y pointing down. A
# hole is cut out after the polygons are filled.
SHAPES = (
    ('disc', [_regular(48)], []),
    ('ring', [_regular(48)], [_regular(48, (0.5,))]),
    ('triangle', [_regular(3)], []),
    ('square', [[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]], []),
    ('pentagon', [_regular(5)], []),
    ('five-pointed star', [_regular(10, (1., 0.42))], []),
    ('six-pointed star', [_regular(12, (1., 0.5))], []),
    ('cross', [[(-0.95, -0.28), (0.95, -0.28), (0.95, 0.28), (-0.95, 0.28)],
               [(-0.28, -0.95), (0.28, -0.95), (0.28, 0.95), (-0.28, 0.95)]],
     []),
    ('straight bars', _bars(0.), []),
    ('wavy bars', _bars(0.13), []),
)


def synset(class_index):
  """The made-up synset of a class, such as 'n00000001' for class 0."""
  return 'n{:08d}'.format(class_index + 1)


def _between(easy, hard, difficulty):
  return easy + (hard - easy) * difficulty


def draw_image(class_index, difficulty, rng, typical_pixels=80):
  """Draws one image.

  Args:
    class_index: index into `SHAPES`.
    difficulty: 0 (obvious) to 1 (for a careful eye).
    rng: a `numpy.random.RandomState`, drawn from.
    typical_pixels: typical side; sides vary by 15 % about it.

  Returns:
    uint8 [height, width, 3], RGB.
  """
  width, height = (
      int(typical_pixels * side) for side in rng.uniform(0.85, 1.15, 2))
  background = rng.uniform(60, 100) + rng.uniform(-25, 25, 3)
  # Lighter in all channels: colour tells nothing, and the greyscale images
  # keep their contrast.
  contrast = _between(110, 55, difficulty) * rng.uniform(0.8, 1.2, 3)
  foreground = _colour(background + contrast)

  image = _blotches(width, height, background,
                    amplitude=_between(8, 34, difficulty),
                    cells=2 + int(4 * difficulty), rng=rng)
  _draw_clutter(image, background, contrast, difficulty, rng)

  mask = _field_mask(class_index, difficulty, (width, height), rng)
  image.paste(foreground, mask=mask)
  _draw_scratches(image, background, difficulty, rng)

  noise_amplitude = _between(4, 36, difficulty)
  noise = np.frombuffer(rng.bytes(height * width * 3), np.int8)
  pixels = np.asarray(image, np.float32) + (
      noise.reshape(height, width, 3) * np.float32(noise_amplitude / 128))
  return np.clip(pixels, 0, 255).astype(np.uint8)


def _colour(rgb):
  return tuple(int(channel) for channel in np.clip(rgb, 0, 255))


def _blotches(width, height, background, amplitude, cells, rng):
  """A background whose brightness and hue drift: `cells` random colours per
  side, interpolated."""
  grid = background + rng.uniform(-amplitude, amplitude, (cells, cells, 3))
  grid = np.clip(grid, 0, 255).astype(np.uint8)
  return Image.fromarray(grid).resize((width, height), Image.BICUBIC)


def _draw_clutter(image, background, contrast, difficulty, rng):
  """Strokes and specks behind the shape, up to its own contrast."""
  draw = ImageDraw.Draw(image)
  for _ in range(rng.poisson(10 * difficulty)):
    x, y = rng.uniform(0, image.width), rng.uniform(0, image.height)
    length = rng.uniform(0.04, 0.22) * min(image.size)
    direction = rng.uniform(0, 2 * math.pi)
    colour = _colour(background + contrast * rng.uniform(-0.8, 0.9))
    if rng.uniform() < 0.5:
      draw.line([(x, y), (x + length * math.cos(direction),
                          y + length * math.sin(direction))],
                fill=colour, width=int(rng.randint(1, 4)))
    else:
      draw.polygon([(x + length / 3 * math.cos(direction + corner),
                     y + length / 3 * math.sin(direction + corner))
                    for corner in (0., 1.6, 3.5)], fill=colour)


def _draw_scratches(image, background, difficulty, rng):
  """Thin lines of the background's colour across hard shapes."""
  draw = ImageDraw.Draw(image)
  for _ in range(rng.poisson(1.5 * difficulty**2)):
    x0, x1 = rng.uniform(0, image.width, 2)
    y0, y1 = rng.uniform(0, image.height, 2)
    draw.line([(x0, y0), (x1, y1)], fill=_colour(background), width=1)


def _field_mask(class_index, difficulty, size, rng):
  """A field of shapes as an 8-bit mask of `size` (width, height) pixels.

  Most are of the class. On hard images others are strewn in, and shapes are
  smaller, squeezed and turned.
  """
  mask = Image.new('L', tuple(_OVERSAMPLING * side for side in size))
  draw = ImageDraw.Draw(mask)
  radius = min(size) * rng.uniform(0.9, 1.1) * _between(0.19, 0.13, difficulty)
  pitch = 2.3 * radius
  x0, y0 = rng.uniform(-0.5, 0.5, 2) * pitch
  for y in np.arange(y0, size[1] + radius, pitch):
    for x in np.arange(x0, size[0] + radius, pitch):
      is_stranger = rng.uniform() < 0.35 * difficulty
      stranger = rng.randint(len(SHAPES))
      angle = rng.uniform(-1, 1) * _between(0.1, 0.8, difficulty)
      squeeze = 1 - rng.uniform(0, 0.3) * difficulty
      shift_x, shift_y = rng.uniform(-0.15, 0.15, 2) * radius
      _draw_shape(draw, SHAPES[stranger if is_stranger else class_index],
                  (x + shift_x, y + shift_y), radius, angle, squeeze)
  return mask.resize(size, Image.BOX)


def _draw_shape(draw, shape, centre, radius, angle, squeeze):
  """Draws a shape, oversampled.

  Args:
    draw: of the mask.
    shape: an entry of `SHAPES`.
    centre, radius: pixels.
    angle: radians the shape is turned by.
    squeeze: factor on its width, before it is turned.
  """
  _, polygons, holes = shape
  cos, sin = math.cos(angle) * radius, math.sin(angle) * radius
  for outlines, fill in ((polygons, 255), (holes, 0)):
    for outline in outlines:
      draw.polygon([
          (_OVERSAMPLING * (centre[0] + cos * squeeze * x - sin * y),
           _OVERSAMPLING * (centre[1] + sin * squeeze * x + cos * y))
          for x, y in outline], fill=fill)


def _encode(pixels, mode, file_format):
  """An image file of `pixels` (uint8 [height, width, 3]) as bytes."""
  encoded = io.BytesIO()
  image = Image.fromarray(pixels)
  if mode != 'RGB':
    image = image.convert(mode)
  image.save(encoded, file_format, quality=_JPEG_QUALITY)
  return encoded.getvalue()


def _add_file(tar, name, data):
  # TarInfo's own time, owner and mode are constants: the bytes repeat.
  member = tarfile.TarInfo(name)
  member.size = len(data)
  tar.addfile(member, io.BytesIO(data))


def _open_tar(target):
  # The default format differs between versions of Python.
  return tarfile.open(fileobj=target, mode='w', format=tarfile.USTAR_FORMAT)


def write_train_archive(path, num_images, typical_pixels, rng):
  """Writes a tar of one tar per class; the classes take turns in getting the
  `num_images` images."""
  members = [[] for _ in SHAPES]
  for index in range(num_images):
    class_index = index % len(SHAPES)
    mode, file_format = 'RGB', 'JPEG'
    if index % _CMYK_PERIOD == 7:
      mode = 'CMYK'
    elif index % _GREY_PERIOD == 3:
      mode = 'L'
    elif index == 5:
      file_format = 'PNG'
    pixels = draw_image(class_index, rng.uniform()**1.5, rng, typical_pixels)
    name = '{}_{}.JPEG'.format(synset(class_index), index)
    members[class_index].append((name, _encode(pixels, mode, file_format)))
  with open(path, 'wb') as archive, _open_tar(archive) as tar:
    for class_index, files in enumerate(members):
      inner = io.BytesIO()
      with _open_tar(inner) as inner_tar:
        for name, data in files:
          _add_file(inner_tar, name, data)
      _add_file(tar, synset(class_index) + '.tar', inner.getvalue())


def write_validation_archive(path, num_images, typical_pixels, rng):
  """Writes a flat tar and returns the class index of each image, in file
  order: every class as often as the others, to one, shuffled."""
  classes = rng.permutation(np.arange(num_images) % len(SHAPES)).tolist()
  with open(path, 'wb') as archive, _open_tar(archive) as tar:
    for index, class_index in enumerate(classes):
      mode = 'L' if index % _GREY_PERIOD == 3 else 'RGB'
      pixels = draw_image(class_index, rng.uniform()**1.5, rng, typical_pixels)
      _add_file(tar, 'ILSVRC2012_val_{:08d}.JPEG'.format(index + 1),
                _encode(pixels, mode, 'JPEG'))
  return classes


def make_dataset(args):
  """Writes the three files of the parsed command line `args`.

  Raises:
    InputError: one of them exists.
    OSError: the folder cannot be written.
  """
  train_path, validation_path, labels_path = paths = [
      os.path.join(args.output_dir, name)
      for name in (TRAIN_ARCHIVE, VALIDATION_ARCHIVE, LABELS_FILE)]
  for path in paths:
    if os.path.lexists(path):
      raise InputError('{}: exists, and is not overwritten; remove it or name '
                       'another --output_dir'.format(path))
  os.makedirs(args.output_dir, exist_ok=True)
  # A generator each, so that the validation images do not depend on the number
  # of training images.
  train_rng, validation_rng = (
      np.random.RandomState([args.seed, split]) for split in range(2))
  with unfinished_file(train_path) as unfinished_train, \
      unfinished_file(validation_path) as unfinished_validation, \
      unfinished_file(labels_path) as unfinished_labels:
    write_train_archive(
        unfinished_train, args.train_images, args.image_pixels, train_rng)
    classes = write_validation_archive(
        unfinished_validation, args.validation_images, args.image_pixels,
        validation_rng)
    with open(unfinished_labels, 'w') as labels_file:
      for class_index in classes:
        labels_file.write(synset(class_index) + '\n')
  print('{}: {:,} training and {:,} validation images of {} classes'.format(
      args.output_dir, args.train_images, args.validation_images, len(SHAPES)))


def parse_arguments(arguments=None):
  """Parses the command line; raises `InputError` where it is wrong."""
  parser = ArgumentParser(
      description='Draws a small data set of shapes, packed as ILSVRC2012 is.')
  parser.add_argument('--output_dir', required=True, metavar='DIR',
                      help='gets the two archives and synset_labels.txt')
  parser.add_argument('--train_images', type=int, default=3000, metavar='N',
                      help='number of training images (%(default)s)')
  parser.add_argument('--validation_images', type=int, default=1000,
                      metavar='N',
                      help='number of validation images (%(default)s)')
  parser.add_argument('--image_pixels', type=int, default=80, metavar='N',
                      help='typical side of an image (%(default)s)')
  parser.add_argument('--seed', type=int, default=0, metavar='N',
                      help='other seeds draw other images (%(default)s)')
  args = parser.parse_args(arguments)
  for flag, smallest, largest in (
      ('train_images', len(SHAPES), 10**7),  # No class may stay empty.
      ('validation_images', 1, 10**7),
      ('image_pixels', 32, 1000),
      ('seed', 0, 2**32 - 1)):
    if not smallest <= getattr(args, flag) <= largest:
      raise InputError('--{} {}: give a number from {} to {}'.format(
          flag, getattr(args, flag), smallest, largest))
  return args


def main(arguments=None):
  """Runs the command line and returns its exit status; see `run`."""
  return run(lambda: make_dataset(parse_arguments(arguments)))


if __name__ == '__main__':
  sys.exit(main())
