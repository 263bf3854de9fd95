"""Draws a small data set of shapes, packed as ILSVRC2012 is.

    python3 make_demo_dataset.py --output_dir demo

writes ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, synset_names.txt and
synset_labels.txt, which preprocess_imagenet.sh takes as it takes ImageNet's.
The same arguments give the same bytes under the same Pillow.

An image is a field of equal shapes, one of ten, so any part of it shows the
class (training crops as little as a twentieth of an image). Colour, place and
surroundings say nothing. On easy images the shapes are large, upright and
clean, so an early classifier can tell them. On hard ones they are small,
turned, squeezed and pale amid strangers and noise. Some shapes differ in a
detail only, such as disc and ring, so hard images need the whole network.
"""

import io
import math
import os
import sys
import tarfile

import numpy as np
from PIL import Image, ImageDraw

from shared_files import write_atomically
from shared_terminal import UserError, print_line, run_main
from tools_arguments import ArgumentParser, check_range

TRAIN_ARCHIVE = 'ILSVRC2012_img_train.tar'
VALIDATION_ARCHIVE = 'ILSVRC2012_img_val.tar'
NAMES_FILE = 'synset_names.txt'
LABELS_FILE = 'synset_labels.txt'

# One image in so many is greyscale, as ImageNet has them. Among the training
# images, one in so many is a CMYK JPEG, and a single one is a PNG named JPEG.
_GREY_PERIOD = 25
_CMYK_PERIOD = 500

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


def _box(x, y):
  return [(-x, -y), (x, -y), (x, y), (-x, y)]


# Polygons and holes of each class, about the unit circle, y pointing down.
SHAPES = {
    'disc': ([_regular(48)], []),
    'ring': ([_regular(48)], [_regular(48, (0.5,))]),
    'triangle': ([_regular(3)], []),
    'square': ([_box(0.8, 0.8)], []),
    'pentagon': ([_regular(5)], []),
    'five-pointed star': ([_regular(10, (1., 0.42))], []),
    'six-pointed star': ([_regular(12, (1., 0.5))], []),
    'cross': ([_box(0.95, 0.28), _box(0.28, 0.95)], []),
    'straight bars': (_bars(0.), []),
    'wavy bars': (_bars(0.13), []),
}
SHAPE_NAMES = list(SHAPES)


def draw_image(class_index, difficulty, rng, typical_pixels=80):
  """Draws an image of the class `SHAPE_NAMES[class_index]`.

  `difficulty` is from 0 (obvious) to 1 (for a careful eye), `rng` a
  `numpy.random.RandomState`; sides vary by 15 % about `typical_pixels`. Returns
  uint8 [height, width, 3], RGB.
  """
  width, height = size = tuple(
      int(typical_pixels * side) for side in rng.uniform(0.85, 1.15, 2))
  background = rng.uniform(60, 100) + rng.uniform(-25, 25, 3)
  # Lighter in all channels: colour tells nothing, and the greyscale images
  # keep their contrast.
  contrast = _between(110, 55, difficulty) * rng.uniform(0.8, 1.2, 3)

  # The background's brightness and hue drift: random colours, interpolated.
  cells, drift = 2 + int(4 * difficulty), _between(8, 34, difficulty)
  grid = background + rng.uniform(-drift, drift, (cells, cells, 3))
  image = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8)).resize(
      size, Image.BICUBIC)
  draw = ImageDraw.Draw(image)
  for _ in range(rng.poisson(10 * difficulty)):
    _draw_clutter(draw, size, background, contrast, rng)
  image.paste(_colour(background + contrast),
              mask=_field_mask(class_index, difficulty, size, rng))
  for _ in range(rng.poisson(1.5 * difficulty**2)):  # Scratches.
    x0, x1 = rng.uniform(0, width, 2)
    y0, y1 = rng.uniform(0, height, 2)
    draw.line([(x0, y0), (x1, y1)], fill=_colour(background), width=1)

  noise = np.frombuffer(rng.bytes(height * width * 3), np.int8)
  pixels = np.asarray(image, np.float32) + noise.reshape(
      height, width, 3) * np.float32(_between(4, 36, difficulty) / 128)
  return np.clip(pixels, 0, 255).astype(np.uint8)


def _between(easy, hard, difficulty):
  return easy + (hard - easy) * difficulty


def _colour(rgb):
  return tuple(int(channel) for channel in np.clip(rgb, 0, 255))


def _draw_clutter(draw, size, background, contrast, rng):
  """Draws a stroke or a speck of up to the contrast of the shapes."""
  x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
  length = rng.uniform(0.04, 0.22) * min(size)
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


def _field_mask(class_index, difficulty, size, rng):
  """A field of shapes as an 8-bit mask of `size` (width, height) pixels."""
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
      shape = SHAPE_NAMES[stranger if is_stranger else class_index]
      _draw_shape(draw, SHAPES[shape],
                  (x + shift_x, y + shift_y), radius, angle, squeeze)
  return mask.resize(size, Image.BOX)


def _draw_shape(draw, shape, centre, radius, angle, squeeze):
  """Draws a shape, squeezed in width, then turned by `angle` radians."""
  cos, sin = math.cos(angle) * radius, math.sin(angle) * radius
  for outlines, fill in zip(shape, (255, 0)):
    for outline in outlines:
      draw.polygon([
          (_OVERSAMPLING * (centre[0] + cos * squeeze * x - sin * y),
           _OVERSAMPLING * (centre[1] + sin * squeeze * x + cos * y))
          for x, y in outline], fill=fill)


def _draw_file(class_index, rng, typical_pixels, mode='RGB', kind='JPEG'):
  """An image file of random difficulty, as bytes."""
  pixels = draw_image(class_index, rng.uniform()**1.5, rng, typical_pixels)
  encoded = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(encoded, kind, quality=90)
  return encoded.getvalue()


def _tar(files):
  """The bytes of a tar of `(name, bytes)` pairs."""
  target = io.BytesIO()
  # The default format differs between versions of Python.
  with tarfile.open(fileobj=target, mode='w',
                    format=tarfile.USTAR_FORMAT) as tar:
    for name, data in files:
      # TarInfo's own time, owner and mode are constants: the bytes repeat.
      member = tarfile.TarInfo(name)
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  return target.getvalue()


def _synset(class_index):
  """The made-up synset of a class, such as 'n00000001' for class 0."""
  return f'n{class_index + 1:08d}'


def train_archive(num_images, typical_pixels, rng):
  """A tar (bytes) of one tar per class; the classes take turns."""
  files = []
  for index in range(num_images):
    class_index = index % len(SHAPES)
    mode = ('CMYK' if index % _CMYK_PERIOD == 7 else
            'L' if index % _GREY_PERIOD == 3 else 'RGB')
    files.append((f'{_synset(class_index)}_{index}.JPEG', _draw_file(
        class_index, rng, typical_pixels, mode,
        'PNG' if index == 5 else 'JPEG')))
  return _tar((f'{_synset(i)}.tar', _tar(files[i::len(SHAPES)]))
              for i in range(len(SHAPES)))


def validation_archive(num_images, typical_pixels, rng):
  """A flat tar (bytes), and the labels file that belongs to it (bytes).

  Each class occurs as often as the others, to within one, in random order.
  """
  classes = rng.permutation(np.arange(num_images) % len(SHAPES)).tolist()
  archive = _tar(
      (f'ILSVRC2012_val_{index + 1:08d}.JPEG',
       _draw_file(class_index, rng, typical_pixels,
                  'L' if index % _GREY_PERIOD == 3 else 'RGB'))
      for index, class_index in enumerate(classes))
  return archive, ''.join(f'{_synset(i)}\n' for i in classes).encode()


def make_dataset(args):
  """Writes the four files; a `UserError` if one of them exists."""
  paths = [os.path.join(args.output_dir, name) for name in (
      TRAIN_ARCHIVE, NAMES_FILE, VALIDATION_ARCHIVE, LABELS_FILE)]
  for path in paths:
    if os.path.lexists(path):
      raise UserError(f'{path}: exists, and is not overwritten; remove it or '
                      'name another --output_dir')
  os.makedirs(args.output_dir, exist_ok=True)
  # A generator each, so the validation images do not depend on the number of
  # training images.
  train_rng, validation_rng = (
      np.random.RandomState([args.seed, split]) for split in range(2))
  contents = (
      train_archive(args.train_images, args.image_pixels, train_rng),
      ''.join(f'{_synset(i)} {name}\n'
              for i, name in enumerate(SHAPES)).encode(),
      *validation_archive(
          args.validation_images, args.image_pixels, validation_rng))
  for path, content in zip(paths, contents):
    write_atomically(path, content)
  print_line(
      f'{args.output_dir}: {args.train_images:,} training and '
      f'{args.validation_images:,} validation images of {len(SHAPES)} classes')


def parse_arguments(arguments=None):
  parser = ArgumentParser(
      description='Draws a small data set of shapes, packed as ILSVRC2012 is.')
  parser.add_argument('--output_dir', required=True, metavar='DIR',
                      help='gets the two archives, names and labels')
  for flag, default, help_text in (
      ('train_images', 3000, 'number of training images'),
      ('validation_images', 1000, 'number of validation images'),
      ('image_pixels', 80, 'typical side of an image'),
      ('seed', 0, 'other seeds draw other images')):
    parser.add_argument(f'--{flag}', type=int, default=default, metavar='N',
                        help=f'{help_text} (%(default)s)')
  args = parser.parse_args(arguments)
  check_range(args, 'train_images', len(SHAPES), 10**7)  # None may stay empty.
  check_range(args, 'validation_images', 1, 10**7)
  check_range(args, 'image_pixels', 32, 1000)
  check_range(args, 'seed', 0, 2**32 - 1)
  return args


def main(arguments=None):
  return run_main(lambda: make_dataset(parse_arguments(arguments)))


if __name__ == '__main__':
  sys.exit(main())
