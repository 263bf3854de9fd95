"""Image files: what passes unchanged, what is encoded anew, what is refused."""

import glob
import io
import os
import struct
import warnings
import zlib

import numpy as np
from PIL import Image
import pytest

import image_files
from tf_compat import tf
from tiny_archives import encode

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SAMPLES = sorted(glob.glob(os.path.join(
    os.path.dirname(ROOT), 'shared', 'imagenet_samples', '*.JPEG')))


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


def noise(mode='RGB', size=(37, 29), seed=0):
  pixels = np.random.RandomState(seed).randint(0, 256, size[::-1] + (3,))
  return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def segment(marker, content=b''):
  return struct.pack('>BBH', 0xff, marker, len(content) + 2) + content


# Tables with a single code, the bit 0: of an equal block, and of its end.
QUANTIZATION = segment(0xdb, b'\0' + b'\1' * 64)
HUFFMAN = segment(0xc4, b''.join(
    number + b'\1' + bytes(15) + b'\0' for number in (b'\0', b'\x10')))


def frame(marker=0xc0, size=(16, 8), sampling=b'\x11', precision=8,
          table=b'\0'):
  """A frame header; `sampling` has a byte for each component."""
  return segment(marker, struct.pack(
      '>BHHB', precision, size[1], size[0], len(sampling)) + b''.join(
          bytes([1 + i, factors]) + table
          for i, factors in enumerate(bytearray(sampling))))


def scan(components=b'\1', tables=b'\0', rest=b'\0\x3f\0', pixels=b'\x0f'):
  """A scan of equal blocks; of two as it is, in which a block has two bits."""
  return segment(0xda, bytes([len(components)]) + b''.join(
      bytes([component]) + tables for component in bytearray(components))
                 + rest) + pixels


def jpeg(*segments):
  return b'\xff\xd8' + b''.join(segments) + b'\xff\xd9'


def plain(**options):
  """A mid-grey JPEG of two blocks; `options` are of `frame`."""
  return jpeg(QUANTIZATION, HUFFMAN, frame(**options), scan())


# What passes unchanged.


# Put together here, all of their pixels being 128.
GREY = {
    'plain': plain(),
    'extended': plain(marker=0xc1),
    'sampling of grey': plain(sampling=b'\x22'),
    'largest side': jpeg(
        QUANTIZATION, HUFFMAN, frame(size=(65500, 8)),
        scan(pixels=bytes(-(-65500 // 8 * 2 // 8) + 1))),
    'repeated 0xff': jpeg(
        b'\xff\xff', QUANTIZATION, b'\xff', HUFFMAN, frame(), scan(), b'\xff'),
    'comments': jpeg(
        segment(0xfe, b'a comment with \xff\xd9 and \xff\xda in it'),
        segment(0xe0, b'JFIF\0\1\1\0\0\1\0\1\0\0'), segment(0xed),
        QUANTIZATION, HUFFMAN, frame(), scan(), segment(0xfe, b'behind')),
    'tables in any order': jpeg(frame(), HUFFMAN, QUANTIZATION, scan()),
    'tables of 16 bits': jpeg(
        segment(0xdb, b'\x10' + b'\0\1' * 64), HUFFMAN, frame(), scan()),
    'unused tables': jpeg(
        segment(0xdb, b'\3' + b'\7' * 64 + b'\0' + b'\1' * 64), HUFFMAN,
        segment(0xc4, b'\x13' + bytes(16)), frame(), scan()),
    'restarts': jpeg(
        QUANTIZATION, HUFFMAN, segment(0xdd, b'\0\1'), frame(size=(32, 8)),
        scan(pixels=b'\x3f\xff\xd0\x3f\xff\xd1\x3f\xff\xd2\x3f')),
    'three components': jpeg(
        QUANTIZATION, HUFFMAN, frame(sampling=b'\x22\x11\x11'),
        scan(b'\1\2\3', pixels=bytes(2))),
    'a scan for each component': jpeg(
        QUANTIZATION, HUFFMAN, frame(sampling=b'\x11' * 3), scan(b'\1'),
        HUFFMAN, scan(b'\2'), segment(0xfe, b'\xff\xd9'), scan(b'\3')),
    'progressive': jpeg(
        QUANTIZATION, HUFFMAN, frame(marker=0xc2),
        scan(rest=b'\0\0\1', pixels=b'\x3f'),
        scan(rest=b'\1\x3f\0', pixels=b'\x3f'),
        scan(rest=b'\0\0\x10', pixels=b'\x3f')),
    # libjpeg takes note of it, no more; some cameras write it.
    'wrong bytes in the scan header': jpeg(
        QUANTIZATION, HUFFMAN, frame(), scan(rest=b'\0\0\0')),
    'a JPEG behind it': plain() + plain(),
    'anything behind it': plain() + b'anything',
}

NOISE = {
    'baseline': save(noise()),
    'optimized': save(noise(), optimize=True),
    'progressive, of noise': save(noise(), progressive=True),
    'grey': save(noise('L')),
    'progressive grey': save(noise('L'), progressive=True),
    'full sampling': save(noise(), subsampling=0),
    'half sampling': save(noise(), subsampling=1),
    'best quality': save(noise(), quality=100),
}


@pytest.mark.parametrize('kind', sorted(GREY) + sorted(NOISE))
def test_plain_jpegs_pass_unchanged(decode_jpeg, monkeypatch, kind):
  data = GREY[kind] if kind in GREY else NOISE[kind]
  image = Image.open(io.BytesIO(data))
  image.load()
  monkeypatch.setattr(image_files, '_decoded', None)  # Not a pixel is decoded.
  prepared = image_files.prepare_image(data)
  assert prepared == (data,) + image.size + (False,)
  pixels = decode_jpeg(data)
  assert pixels.shape == image.size[::-1] + (3,)
  if kind in GREY:
    assert set(pixels.ravel()) == {128}


@pytest.mark.skipif(not SAMPLES, reason='the sample images are not here')
def test_images_of_imagenet_pass_unchanged(decode_jpeg):
  for path in SAMPLES:
    with open(path, 'rb') as sample:
      data = sample.read()
    prepared = image_files.prepare_image(data)
    assert prepared.jpeg == data and not prepared.was_encoded, path
    assert decode_jpeg(data).shape == (prepared.height, prepared.width, 3)
    image_files.decode_image(data)
  assert len(SAMPLES) == 23


# What is encoded anew.


def png_of_16_bits(colour_type):
  """A PNG of 3 x 1 pixels, each with a value in all channels."""
  channels = {0: 1, 2: 3}[colour_type]
  values = [value for value in (0, 0x80ff, 0xffff) for _ in range(channels)]

  def chunk(name, content):
    return (struct.pack('>I', len(content)) + name + content
            + struct.pack('>I', zlib.crc32(name + content)))

  return (b'\x89PNG\r\n\x1a\n'
          + chunk(b'IHDR', struct.pack('>IIBBBBB', 3, 1, 16, colour_type,
                                       0, 0, 0))
          + chunk(b'IDAT', zlib.compress(
              b'\0' + struct.pack('>{}H'.format(len(values)), *values)))
          + chunk(b'IEND', b''))


def check_encoded(data, expected, decode_jpeg):
  """`expected`: uint8 [height, width, 3]."""
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    prepared = image_files.prepare_image(data)
    image_files.decode_image(data)
  height, width, _ = expected.shape
  assert prepared.was_encoded
  assert (prepared.width, prepared.height) == (width, height)
  image = Image.open(io.BytesIO(prepared.jpeg))
  assert (image.format, image.mode) == ('JPEG', 'RGB')
  pixels = np.asarray(image, np.int32)
  assert np.abs(pixels - expected).max() <= 4
  assert decode_jpeg(prepared.jpeg).shape == expected.shape
  # What comes out is what may go in.
  assert image_files.prepare_image(prepared.jpeg) == (
      prepared.jpeg, width, height, False)


@pytest.mark.parametrize('mode, file_format', [
    ('RGB', 'PNG'), ('L', 'PNG'), ('P', 'PNG'), ('RGBA', 'PNG'), ('LA', 'PNG'),
    ('1', 'PNG'), ('CMYK', 'JPEG'), ('RGB', 'BMP'), ('L', 'BMP'), ('P', 'BMP'),
    ('RGB', 'WEBP'), ('RGBA', 'WEBP')])
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


UNUSUAL = {
    # TensorFlow takes none of these for an RGB or grey JPEG; Pillow some.
    'four components': jpeg(
        QUANTIZATION, HUFFMAN, frame(sampling=b'\x11' * 4),
        scan(b'\1\2\3\4', pixels=bytes(2))),
    'two components': jpeg(
        QUANTIZATION, HUFFMAN, frame(sampling=b'\x11' * 2),
        scan(b'\1\2', pixels=b'\0')),
    '12 bits': plain(precision=12),
    'lossless': plain(marker=0xc3),
    'arithmetic code': plain(marker=0xc9),
    'no lines': plain(size=(16, 0)),
    'no columns': plain(size=(0, 8)),
    'no quantization table': jpeg(HUFFMAN, frame(), scan()),
    'another quantization table': plain(table=b'\1'),
    'no such quantization table': plain(table=b'\7'),
    'no Huffman table': jpeg(QUANTIZATION, frame(), scan()),
    'another Huffman table': jpeg(
        QUANTIZATION, HUFFMAN, frame(), scan(tables=b'\x10')),
    'Huffman table without an end': jpeg(
        QUANTIZATION, HUFFMAN[:-1], frame(), scan()),
    'Huffman table of all ones': jpeg(
        QUANTIZATION, HUFFMAN, segment(0xc4, b'\0\2' + bytes(17)), frame(),
        scan()),
    'Huffman table of wrong symbols': jpeg(
        QUANTIZATION, HUFFMAN, segment(0xc4, b'\0\1' + bytes(15) + b'\x10'),
        frame(), scan()),
    'no such Huffman table': jpeg(
        QUANTIZATION, HUFFMAN, segment(0xc4, b'\4\1' + bytes(16)), frame(),
        scan()),
    'quantization table of odd length': jpeg(
        segment(0xdb, b'\0' + b'\1' * 60), HUFFMAN, frame(), scan()),
    'no sampling': plain(sampling=b'\x01'),
    'sampling of 5': plain(sampling=b'\x51'),
    'too many blocks': jpeg(
        QUANTIZATION, HUFFMAN, frame(sampling=b'\x33\x11\x11'),
        scan(b'\1\2\3', pixels=bytes(9))),
    'fractional sampling': jpeg(
        QUANTIZATION, HUFFMAN, frame(sampling=b'\x31\x21\x11'),
        scan(b'\1\2\3', pixels=bytes(9))),
    'two frames': jpeg(QUANTIZATION, HUFFMAN, frame(), frame(), scan()),
    'no frame': jpeg(QUANTIZATION, HUFFMAN, scan()),
    'no scan': jpeg(QUANTIZATION, HUFFMAN, frame()),
    'two scans of one component': jpeg(
        QUANTIZATION, HUFFMAN, frame(), scan(), scan()),
    'another component': jpeg(QUANTIZATION, HUFFMAN, frame(), scan(b'\2')),
    'a component twice': jpeg(QUANTIZATION, HUFFMAN, frame(), scan(b'\1\1')),
    'no component': jpeg(QUANTIZATION, HUFFMAN, frame(), scan(b'')),
    'a component missing': jpeg(
        QUANTIZATION, HUFFMAN, frame(sampling=b'\x11' * 3), scan(b'\1')),
    'progressive backwards': jpeg(
        QUANTIZATION, HUFFMAN, frame(marker=0xc2), scan(rest=b'\5\3\0')),
    'progressive with too many bits': jpeg(
        QUANTIZATION, HUFFMAN, frame(marker=0xc2), scan(rest=b'\0\0\x0e')),
    'a start amid pixels': jpeg(
        QUANTIZATION, HUFFMAN, frame(), scan(pixels=b'\x0f\xff\xd8')),
    'a frame amid pixels': jpeg(
        QUANTIZATION, HUFFMAN, frame(), scan(), frame()),
    'a segment of no length': jpeg(
        b'\xff\xe0\0\1', QUANTIZATION, HUFFMAN, frame(), scan()),
    'bytes between segments': jpeg(
        QUANTIZATION, b'\0\0', HUFFMAN, frame(), scan()),
}


@pytest.mark.parametrize('kind', sorted(UNUSUAL))
def test_unusual_jpegs_never_pass_as_they_are(decode_jpeg, kind):
  try:
    prepared = image_files.prepare_image(UNUSUAL[kind])
  except ValueError as refusal:
    assert str(refusal) and '\n' not in str(refusal)
    return
  assert prepared.was_encoded
  assert decode_jpeg(prepared.jpeg).shape == (
      prepared.height, prepared.width, 3)


# What is refused.


def check_refused(data, *words):
  for function in (image_files.prepare_image, image_files.decode_image):
    with pytest.raises(ValueError) as refusal:
      function(data)
    message = str(refusal.value)
    assert message and '\n' not in message
    assert ' at 0x' not in message  # Of an object in memory.
    for word in words:
      assert word in message, message


@pytest.mark.parametrize('data, word', [
    (b'', 'no bytes'), (b'not an image', 'not a JPEG'),
    (b'<html>404</html>', 'not a JPEG'),
    (save(noise('P'), 'GIF'), 'not a JPEG'),
    (save(noise(), 'TIFF'), 'not a JPEG'), (save(noise(), 'PPM'), 'not a JPEG'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not a JPEG'),
    (b'\xff\xd8', 'cut short'), (b'\xff\xd8\xff\xd9', 'damaged'),
    (b'\0' * 999, 'not a JPEG'), (b'\xff' * 999, 'not a JPEG')])
def test_files_that_are_no_images(data, word):
  check_refused(data, word)


@pytest.mark.parametrize('mode, options', [
    ('CMYK', {}), ('CMYK', {'progressive': True})] + [
        (mode, options) for mode in ('RGB', 'L') for options in (
            {}, {'progressive': True}, {'file_format': 'PNG'},
            {'file_format': 'BMP'}, {'file_format': 'WEBP'},
            {'file_format': 'WEBP', 'lossless': True})])
def test_every_truncation_is_noticed(mode, options):
  # A width that needs no padding, whose loss would be none.
  data = save(noise(mode, (36, 29)), **options)
  for length in list(range(0, len(data), 53)) + [len(data) - 1, len(data) - 2]:
    check_refused(data[:length])


def test_the_end_of_a_thumbnail_is_not_the_image_s():
  thumbnail = segment(0xe1, b'Exif\0\0' + save(noise(size=(9, 9))))
  for data in (plain(), save(noise('CMYK'))):
    data = b'\xff\xd8' + thumbnail + data[2:]
    image_files.prepare_image(data)
    check_refused(data[:-2], 'cut short')


def test_a_download_that_ends_in_zeros(decode_jpeg):
  data = save(noise())
  data = data[:len(data) // 2] + bytes(len(data) // 2)
  check_refused(data, 'cut short')
  with pytest.raises(tf.errors.InvalidArgumentError):
    decode_jpeg(data)


def test_damage_amid_a_png():
  data = bytearray(save(noise(), 'PNG'))
  for position in range(8, len(data), 97):
    damaged = bytearray(data)
    damaged[position] ^= 0x10
    check_refused(bytes(damaged))


@pytest.mark.parametrize('data', [
    plain(size=(65501, 8)), plain(size=(8, 65501)), plain(size=(65500, 65500)),
    plain(size=(20000, 6711)),
    save(Image.new('1', (65501, 1)), 'PNG'),
    save(Image.new('1', (1, 65501)), 'BMP'),
    save(Image.new('1', (20000, 6711)), 'PNG')])
def test_images_that_are_too_large(data):
  check_refused(data, 'too large')


def test_bombs_are_refused():
  # Of more pixels than Pillow opens.
  data = bytearray(save(Image.new('1', (8, 8)), 'PNG'))
  data[16:24] = struct.pack('>II', 60000, 60000)
  data[29:33] = struct.pack('>I', zlib.crc32(bytes(data[12:29])))
  check_refused(bytes(data))


FUZZED = [save(noise()), save(noise(), progressive=True), save(noise('L')),
          save(noise('CMYK')), save(noise(), 'PNG'), save(noise(), 'BMP'),
          save(noise(), 'WEBP'), GREY['restarts'],
          GREY['a scan for each component'], encode(0)]


def mutated(random):
  data = bytearray(FUZZED[random.randint(len(FUZZED))])
  kind = random.randint(6)
  # Three of four changes are in the headers.
  end = min(len(data), 700) if random.randint(4) else len(data)
  position = random.randint(end)
  if kind == 0:
    del data[position:]
  elif kind == 1:
    for _ in range(random.randint(1, 4)):
      data[random.randint(end)] = random.randint(256)
  elif kind == 2:
    data[position] ^= 1 << random.randint(8)
  elif kind == 3:
    del data[position:position + random.randint(1, 20)]
  elif kind == 4:
    data[position:position] = random.bytes(random.randint(1, 20))
  else:  # A marker with a length.
    data[position:position + 4] = [
        0xff, random.randint(0xc0, 0x100), 0, random.randint(20)]
  return bytes(data)


@pytest.mark.parametrize('searched_bytes', [1, 2, 3, 50, 2**17])
def test_end_of_pixels_wherever_it_is(monkeypatch, searched_bytes):
  """The first 0xff before neither 0 nor a restart marker; by definition."""
  monkeypatch.setattr(image_files, '_SEARCHED_BYTES', searched_bytes)
  within = [0x00] + list(range(0xd0, 0xd8))
  random = np.random.RandomState(0)
  for _ in range(200):
    data = bytes(random.choice(
        [0xff, 0xff, 0, 0, 0, 0xd0, 0xd7, 0xd8, 0xcf, 7],
        random.randint(60), p=[.1, .1, .2, .2, .2, .1, .04, .01, .01, .04]))
    position = random.randint(len(data) + 1)
    ends = [i for i in range(position, len(data) - 1)
            if data[i] == 0xff and data[i + 1] not in within]
    if ends:
      assert image_files._end_of_pixels(data, position) == ends[0]
    else:
      with pytest.raises(ValueError) as refusal:
        image_files._end_of_pixels(data, position)
      assert 'cut short' in str(refusal)


@pytest.mark.parametrize('seed', range(20))
def test_what_passes_can_be_decoded(decode_jpeg, seed):
  random = np.random.RandomState(seed)
  num_passed = 0
  for _ in range(60):
    data = mutated(random)
    try:
      prepared = image_files.prepare_image(data)
    except ValueError as refusal:
      assert str(refusal) and '\n' not in str(refusal)
      continue
    num_passed += 1
    assert prepared.was_encoded or prepared.jpeg == data
    assert decode_jpeg(prepared.jpeg).shape == (
        prepared.height, prepared.width, 3)
    image = Image.open(io.BytesIO(prepared.jpeg))
    assert image.size == (prepared.width, prepared.height)
    assert image.mode in ('RGB', 'L')
  assert 0 < num_passed < 60
