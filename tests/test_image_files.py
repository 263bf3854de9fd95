"""Image files: what passes unchanged, what is encoded anew, what is refused."""

import io
import struct
import warnings
import zlib

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
    'baseline': save(noise()),
    'progressive': save(noise(), progressive=True),
    'grey': save(noise('L')),
    'comment with markers': with_segment(
        save(noise()), 0xfe, b'\xff\xd9 and \xff\xda'),
    'preview': with_segment(
        save(noise()), 0xe1, b'Exif\0\0' + save(noise(size=(9, 9)))),
    'damaged EXIF': with_segment(save(noise()), 0xe1, b'Exif\0\0MM\0'),
    'another JPEG behind it': save(noise()) + save(noise('L')),
    'anything behind it': save(noise()) + b'anything',
}


@pytest.mark.parametrize('kind', sorted(PLAIN))
def test_plain_jpegs_pass_unchanged(decode_jpeg, kind):
  data = PLAIN[kind]
  for is_decoding in (False, True):
    assert image_files.prepare_image(data, is_decoding) == (
        data, 37, 29, False)
  assert decode_jpeg(data).shape == (29, 37, 3)


def test_the_size_is_read_without_decoding(monkeypatch):
  monkeypatch.setattr(Image.Image, 'load', None)
  image_files.prepare_image(PLAIN['baseline'])


# What is encoded anew.


def png_chunk(name, content):
  return (struct.pack('>I', len(content)) + name + content
          + struct.pack('>I', zlib.crc32(name + content)))


def png_of_16_bits(colour_type):
  """A PNG of 3 x 1 pixels, each with a value in all channels."""
  channels = {0: 1, 2: 3}[colour_type]
  values = [value for value in (0, 0x80ff, 0xffff) for _ in range(channels)]
  row = b'\0' + struct.pack(f'>{len(values)}H', *values)
  return (b'\x89PNG\r\n\x1a\n'
          + png_chunk(b'IHDR', struct.pack(
              '>IIBBBBB', 3, 1, 16, colour_type, 0, 0, 0))
          + png_chunk(b'IDAT', zlib.compress(row)) + png_chunk(b'IEND', b''))


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


@pytest.mark.parametrize('colour_type', [0, 2])
def test_png_of_16_bits_keeps_its_greys(decode_jpeg, colour_type):
  expected = np.array([0, 0x80, 0xff]).reshape(1, 3, 1).repeat(3, axis=2)
  check_encoded(png_of_16_bits(colour_type), expected, decode_jpeg)


@pytest.mark.parametrize('transparency', [0, b'\x00\x80\xff'])
def test_transparency_is_dropped(decode_jpeg, transparency):
  image = Image.new('P', (8, 8), 1)
  image.putpalette([0, 0, 0, 200, 100, 50, 9, 9, 9])
  data = save(image, 'PNG', transparency=transparency)
  check_encoded(data, np.full((8, 8, 3), (200, 100, 50)), decode_jpeg)


# What is refused.


def check_refused(data, *words):
  with pytest.raises(ValueError) as refusal:
    image_files.prepare_image(data)
  message = str(refusal.value)
  assert message and '\n' not in message
  assert ' at 0x' not in message  # Of an object in memory.
  for word in words:
    assert word in message, message


@pytest.mark.parametrize('data, word', [
    (b'', 'no bytes'), (b'not an image', 'not a JPEG'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not a JPEG'),
    (b'\xff\xd8', 'cut short'), (b'\xff\xd8\xff\xd9', 'damaged'),
    (b'\0' * 999, 'not a JPEG')])
def test_files_that_are_no_images(data, word):
  check_refused(data, word)


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


def test_a_download_that_ends_in_zeros():
  data = save(noise())
  check_refused(data[:len(data) // 2] + bytes(len(data) // 2), 'cut short')


def test_damage_amid_a_png():
  data = bytearray(save(noise(), 'PNG'))
  for position in range(8, len(data) - 12, 97):  # Not the end mark.
    damaged = bytearray(data)
    damaged[position] ^= 0x10
    check_refused(bytes(damaged))


@pytest.mark.parametrize('data', [
    save(Image.new('1', (65501, 1)), 'PNG'),
    save(Image.new('1', (20000, 6711)), 'PNG')])
def test_images_that_are_too_large(data):
  check_refused(data, 'too large')
