"""Image files: what passes unchanged, what is encoded anew, what is refused."""

import io
import struct
import warnings

import numpy as np
from PIL import Image
import pytest

import image_files
from tf_compat import tf


@pytest.fixture(scope='module')
def decode_jpeg():
  """The network's decoder: from bytes to uint8 [height, width, 3]."""
  with tf.Graph().as_default(), tf.Session() as session:
    jpeg = tf.placeholder(tf.string, [])
    pixels = tf.image.decode_jpeg(jpeg, channels=3)
    yield lambda data: session.run(pixels, {jpeg: data})


def save(image, file_format='JPEG', **options):
  encoded = io.BytesIO()
  image.save(encoded, file_format, **options)
  return encoded.getvalue()


def noise(mode='RGB', size=(37, 29)):
  pixels = np.random.RandomState(0).randint(0, 256, size[::-1] + (3,))
  return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def with_segment(jpeg, marker, content):
  """The JPEG with a segment after its start."""
  return (jpeg[:2] + struct.pack('>BBH', 0xff, marker, len(content) + 2)
          + content + jpeg[2:])


# What passes unchanged: the kinds of ImageNet's images and of cameras.


PLAIN = {
    'progressive': save(noise(), progressive=True),
    'grey': save(noise('L')),
    'comment with markers': with_segment(
        save(noise()), 0xfe, b'\xff\xd9 and \xff\xda'),
    'preview': with_segment(
        save(noise()), 0xe1, b'Exif\0\0' + save(noise(size=(9, 9)))),
    'damaged EXIF': with_segment(save(noise()), 0xe1, b'Exif\0\0MM\0'),
    'another JPEG behind it': save(noise()) + save(noise('L')),
    # Phones append a film; what looks like a scan may be in it.
    'a film behind it': (
        save(noise()) + b'\xff\xd9' + bytes(999) + b'\xff\xda' + bytes(999)),
    'a film behind a progressive one with a preview': with_segment(
        save(noise(), progressive=True), 0xe1,
        b'Exif\0\0' + save(noise(size=(9, 9)))) + b'\xff\xda film',
}


@pytest.mark.parametrize('kind', sorted(PLAIN))
def test_plain_jpegs_pass_unchanged(decode_jpeg, kind):
  data = PLAIN[kind]
  for is_decoding in (False, True):
    assert image_files.prepare_image(data, is_decoding) == (
        data, 37, 29, False)
  assert decode_jpeg(data).shape == (29, 37, 3)


# What is encoded anew.


def check_encoded(data, expected, decode_jpeg):
  """`expected`: uint8 [height, width, 3]."""
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    prepared = image_files.prepare_image(data)
  height, width, _ = expected.shape
  assert prepared[1:] == (width, height, True)
  image = Image.open(io.BytesIO(prepared.jpeg))
  assert (image.format, image.mode) == ('JPEG', 'RGB')
  # JPEG of quality 100 rounds a plain colour by at most 2; twice that here.
  difference = np.asarray(image, np.int32) - expected
  assert np.abs(difference).max() <= 4
  assert decode_jpeg(prepared.jpeg).shape == expected.shape
  # What comes out is what may go in.
  assert image_files.prepare_image(prepared.jpeg) == (
      prepared.jpeg, width, height, False)


@pytest.mark.parametrize('mode, file_format', [
    ('RGB', 'PNG'), ('L', 'PNG'), ('P', 'PNG'), ('RGBA', 'PNG'), ('LA', 'PNG'),
    ('1', 'PNG'), ('CMYK', 'JPEG'), ('RGB', 'BMP'), ('RGBA', 'WEBP')])
def test_other_images_become_rgb_jpegs(decode_jpeg, mode, file_format):
  smooth = Image.new('RGB', (16, 12), (204, 51, 102)).convert(mode)
  options = {'JPEG': {'quality': 100}, 'WEBP': {'lossless': True}}
  data = save(smooth, file_format, **options.get(file_format, {}))
  check_encoded(data, np.asarray(smooth.convert('RGB'), np.int32), decode_jpeg)


def test_png_of_16_bits_keeps_its_greys(decode_jpeg):
  image = Image.fromarray(np.array([[0, 0x80ff, 0xffff]], np.uint16))
  expected = np.array([0, 0x80, 0xff]).reshape(1, 3, 1).repeat(3, axis=2)
  check_encoded(save(image, 'PNG'), expected, decode_jpeg)


def test_transparency_is_white(decode_jpeg):
  """By an alpha channel, of a colour in a palette, of a grey level."""
  halves = np.repeat([[0, 255]], 4, axis=1).repeat(8, axis=0).astype(np.uint8)
  black = Image.new('RGBA', (8, 8), (0, 0, 0, 0))
  black.putalpha(Image.fromarray(halves))
  palette = Image.fromarray(halves // 255, 'P')
  palette.putpalette([200, 100, 50, 0, 0, 0])
  grey = Image.fromarray(255 - halves)
  expected = np.repeat(255 - halves[:, :, np.newaxis], 3, axis=2).astype(int)
  for image, options in ((black, {}), (black.convert('LA'), {}),
                         (palette, {'transparency': 0}),
                         (grey, {'transparency': 255})):
    check_encoded(save(image, 'PNG', **options), expected, decode_jpeg)


def test_half_transparent_colours_are_mixed_with_white(decode_jpeg):
  image = Image.new('RGBA', (8, 8), (100, 200, 0, 128))
  check_encoded(save(image, 'PNG'), np.full((8, 8, 3), (177, 227, 127)),
                decode_jpeg)


# What is refused.


def check_refused(data, word=''):
  with pytest.raises(ValueError) as refusal:
    image_files.prepare_image(data)
  message = str(refusal.value)
  assert message and '\n' not in message and word in message
  assert ' at 0x' not in message  # Of an object in memory.


@pytest.mark.parametrize('data', [
    b'', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', b'\xff\xd8',
    b'\xff\xd8\xff\xd9'], ids=len)
def test_files_that_are_no_images(data):
  check_refused(data)


@pytest.mark.parametrize('mode, options', [
    ('RGB', {}), ('L', {'progressive': True}), ('CMYK', {}),
    ('RGB', {'file_format': 'PNG'}), ('RGB', {'file_format': 'BMP'}),
    ('RGB', {'file_format': 'WEBP'})])
def test_every_truncation_is_noticed(mode, options):
  # A width that needs no padding, whose loss would be none.
  data = save(noise(mode, (36, 29)), **options)
  if data.startswith(b'\x89PNG'):
    data = data[:-4]  # The checksum of the end mark, which Pillow ignores.
  for length in list(range(0, len(data), 53)) + [len(data) - 1, len(data) - 2]:
    check_refused(data[:length])


@pytest.mark.parametrize('size, word', [
    ((65501, 1), 'too large'), ((20000, 6711), 'too large'),
    # Evaluation would resize it to 256 x 15,360,000 pixels.
    ((60000, 1), '60,000 x 1'), ((201, 2), '201 x 2')])
def test_sizes_that_are_refused(size, word):
  check_refused(save(Image.new('1', size), 'PNG'), word)
  assert image_files.prepare_image(save(noise(size=(200, 2))))[1:] == (
      200, 2, False)


# Folders of images.


def test_walk(tmp_path):
  names = ['b.JPG', 'a/c.jfif', 'a/d/e.webp', '.hidden.jpg', '._b.JPG',
           '.ipynb_checkpoints/b.png', 'notes.txt', 'a/f.gif']
  for name in names:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  # Each image once, though links lead in circles.
  for link, target in (('self', '.'), ('again', '.'), ('a/up', '..'),
                       ('a/d/above', '..')):
    (tmp_path / link).symlink_to(target)
  passed_over = []
  assert image_files.walk_images(str(tmp_path), passed_over) == [
      str(tmp_path / name) for name in ('a/c.jfif', 'a/d/e.webp', 'b.JPG')]
  assert passed_over == [str(tmp_path / 'notes.txt'), str(tmp_path / 'a/f.gif')]
  # A hidden folder that is named is meant.
  assert len(image_files.walk_images(
      str(tmp_path / '.ipynb_checkpoints'))) == 1
