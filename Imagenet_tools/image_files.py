"""Image files to the JPEGs of the records, and whether they are whole.

Most images are RGB or greyscale JPEGs, which the network's reader takes as they
are: their markers tell that and the size, and no pixel is decoded. Everything
else is decoded by Pillow, which takes some hundred times as long.

Source: ITU-T T.81, annex B, for the markers; what the readers refuse was tried
on TensorFlow 1.12 and 2.15, and is libjpeg's rule where no other is given.
"""

import collections
import functools
import io
import re
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

# An image as it goes into a record.
#   jpeg: bytes of an RGB or greyscale JPEG.
#   width, height: pixels.
#   was_encoded: whether `jpeg` is not the file itself.
PreparedImage = collections.namedtuple(
    'PreparedImage', ['jpeg', 'width', 'height', 'was_encoded'])

_JPEG_QUALITY = 100  # Of the scripts that the published records come from.
_MAX_SIDE_PIXELS = 65500  # libjpeg's.
_MAX_PIXELS = 2**27  # Decoded, 400 MB.

_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP')
_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'

# Second bytes of markers, behind 0xff.
_END_OF_IMAGE, _START_OF_SCAN = 0xd9, 0xda
_QUANTIZATION_TABLES, _HUFFMAN_TABLES, _RESTART_INTERVAL = 0xdb, 0xc4, 0xdd
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xc0, 0xc1, 0xc2
_COMMENTS = tuple(range(0xe0, 0xf0)) + (0xfe,)  # And applications' data.

# The marker behind coded pixels. Among these, 0xff is followed by a 0 or by a
# restart marker's second byte.
_END_OF_PIXELS = re.compile(b'\xff[^\x00\xd0-\xd7]')

_SEARCHED_BYTES = 2**17  # At a time: most images, in the processor's cache.

# Numbers of the Huffman tables of AC coefficients; those of DC begin at 0.
_FIRST_AC_TABLE = 0x10

# What a JPEG's frame header says.
#   components: a dict from identifier to `(sampling, quantization table)`, the
#     former being horizontal and vertical factor.
_Frame = collections.namedtuple(
    '_Frame', ['width', 'height', 'is_progressive', 'components'])


class _Unusual(Exception):
  """A JPEG that has to be decoded to tell whether it is one."""


def prepare_image(data):
  """Makes an image file fit for a record.

  An RGB or greyscale JPEG (Huffman-coded, 8 bits, in one or several scans)
  comes back unchanged, with whatever else it holds: further JPEGs behind it, as
  some cameras write, or an orientation, which is not applied, as in the
  published records. A PNG, WebP or BMP, a CMYK or another unusual JPEG is
  encoded anew as an RGB JPEG; transparency is dropped.

  Args:
    data: bytes of a file.

  Returns:
    A `PreparedImage`.

  Raises:
    ValueError: not an image, not a whole one, or one that is too large; in a
      line, without its name.
  """
  if data.startswith(b'\xff\xd8'):
    try:
      frame = _checked_frame(data)
      return PreparedImage(data, frame.width, frame.height, False)
    except _Unusual:
      pass
  image = _decoded(data)
  if image.mode.startswith('I'):  # A greyscale PNG of 16 bits.
    pixels = np.clip(np.asarray(image), 0, 2**16 - 1) >> 8
    image = Image.fromarray(pixels.astype(np.uint8))
  image.info.pop('transparency', None)  # A palette's draws a warning.
  if image.mode != 'RGB':
    image = image.convert('RGB')
  encoded = io.BytesIO()
  image.save(encoded, 'JPEG', quality=_JPEG_QUALITY)
  return PreparedImage(encoded.getvalue(), image.width, image.height, True)


def decode_image(data):
  """Decodes every pixel of an image file.

  A JPEG has no checksum: damage amid its pixels shows only if it breaks the
  code.

  Args:
    data: bytes of a file.

  Raises:
    ValueError: as `prepare_image` does.
  """
  if data.startswith(b'\xff\xd8'):
    try:
      _checked_frame(data)
    except _Unusual:
      pass
  _decoded(data)


def _check_size(width, height):
  if max(width, height) > _MAX_SIDE_PIXELS or width * height > _MAX_PIXELS:
    raise ValueError('of {:,} x {:,} pixels, which is too large'.format(
        width, height))


def _decoded(data):
  """Returns a file as a Pillow image whose pixels are decoded."""
  if not data:
    raise ValueError('has no bytes')
  is_jpeg = data.startswith(b'\xff\xd8')
  if is_jpeg and data.rfind(b'\xff\xd9') < data.rfind(b'\xff\xda'):
    _raise_cut_short()  # Pillow takes some of these.
  if data.startswith(_PNG_SIGNATURE):
    _check_png(data)
  # Pillow's decoders raise OSError, SyntaxError, struct.error and others on
  # damaged data; to the caller all of them mean the same.
  try:
    with warnings.catch_warnings():
      # Of damaged EXIF data, which some images of ImageNet have, and of sizes.
      warnings.simplefilter('ignore')
      image = Image.open(io.BytesIO(data), formats=_FORMATS)
      _check_size(*image.size)
      image.load()
      return image
  except UnidentifiedImageError:  # Its text names a place in memory.
    raise ValueError('a JPEG with a damaged header' if is_jpeg else
                     'not a JPEG, PNG, WebP or BMP image')
  except Exception as error:
    text = ' '.join(str(error).split())
    raise ValueError(text or type(error).__name__)


def _check_png(data):
  """Raises ValueError unless a PNG's chunks are whole, by their checksums."""
  position, name = len(_PNG_SIGNATURE), None
  while name != b'IEND':
    header = data[position:position + 8]
    if len(header) < 8:
      raise ValueError('a PNG that is cut short')
    length, name = struct.unpack('>I4s', header)
    checksum = data[position + 8 + length:position + 12 + length]
    if len(checksum) < 4:
      raise ValueError('a PNG that is cut short or damaged')
    if zlib.crc32(data[position + 4:position + 8 + length]) != (
        int.from_bytes(checksum, 'big')):
      raise ValueError('a PNG that is damaged: a wrong checksum')
    position += 12 + length


def _raise_cut_short():
  raise ValueError('a JPEG that is cut short: no end-of-image marker')


def _checked_frame(data):
  """Reads a JPEG's markers, from the first to the end of the image.

  Args:
    data: bytes that begin with a start-of-image marker.

  Returns:
    The `_Frame` of an RGB or greyscale JPEG that TensorFlow decodes.

  Raises:
    ValueError: there is no end, or the image is too large.
    _Unusual: of another kind, or damaged.
  """
  frame = None
  quantization, huffman, scanned = set(), set(), set()
  position = 2
  try:
    while True:
      if data[position] != 0xff:
        raise _Unusual
      while data[position] == 0xff:  # It may be repeated.
        position += 1
      marker = data[position]
      if marker == _END_OF_IMAGE:
        if frame is None or len(scanned) < len(frame.components):
          raise _Unusual
        return frame
      length = data[position + 1] << 8 | data[position + 2]
      segment = data[position + 3:position + 1 + length]
      position += 1 + length
      if length < 2:
        raise _Unusual
      if position > len(data):
        _raise_cut_short()
      if marker in _COMMENTS:
        continue
      if marker == _QUANTIZATION_TABLES:
        quantization |= _quantization_tables(segment)
      elif marker == _HUFFMAN_TABLES:
        huffman |= _huffman_tables(segment)
      elif marker in (_BASELINE, _EXTENDED, _PROGRESSIVE) and frame is None:
        frame = _read_frame(segment, marker == _PROGRESSIVE)
      elif marker == _START_OF_SCAN and frame is not None:
        if len(scanned) == len(frame.components) and not frame.is_progressive:
          raise _Unusual  # libjpeg refuses a scan beyond the last one.
        scanned |= _read_scan(segment, frame, quantization, huffman)
        position = _end_of_pixels(data, position)
      elif marker != _RESTART_INTERVAL or length != 4:
        raise _Unusual
  except IndexError:
    _raise_cut_short()


def _end_of_pixels(data, position):
  """Where the marker behind coded pixels is; ValueError if there is none."""
  codes = np.frombuffer(data, np.uint8)
  # NumPy leads to the first marker, the expression on from restart markers.
  while position < len(data) - 1:
    stop = position + _SEARCHED_BYTES
    is_marker = codes[position:stop][:len(data) - 1 - position] == 0xff
    is_marker &= codes[position + 1:stop + 1] != 0
    first = int(is_marker.argmax())
    if is_marker[first]:
      end = _END_OF_PIXELS.search(data, position + first)
      if end:
        return end.start()
      break
    position = stop
  _raise_cut_short()


@functools.lru_cache(maxsize=256)  # Most images share a few tables.
def _quantization_tables(segment):
  """The set of numbers of the tables that a segment defines."""
  numbers, position = set(), 0
  while position < len(segment):
    precision, number = divmod(segment[position], 16)
    if precision > 1 or number > 3:
      raise _Unusual
    numbers.add(number)
    position += 1 + 64 * (1 + precision)
  if position != len(segment):
    raise _Unusual
  return numbers


@functools.lru_cache(maxsize=256)
def _huffman_tables(segment):
  """The set of numbers of the tables that a segment defines."""
  numbers, position = set(), 0
  while position < len(segment):
    number = segment[position]
    counts = segment[position + 1:position + 17]
    symbols = segment[position + 17:position + 17 + sum(counts)]
    position += 17 + sum(counts)
    if number & ~_FIRST_AC_TABLE > 3 or sum(counts) > 256:
      raise _Unusual
    if number < _FIRST_AC_TABLE and any(symbol > 15 for symbol in symbols):
      raise _Unusual
    code = 0
    for length, count in enumerate(counts, 1):
      code += count
      if count and code >= 1 << length:  # All ones is not a code.
        raise _Unusual
      code <<= 1
    numbers.add(number)
  if position != len(segment):
    raise _Unusual
  return numbers


@functools.lru_cache(maxsize=2**10)
def _read_frame(segment, is_progressive):
  """The `_Frame` of a frame header's segment."""
  if len(segment) < 6:
    raise _Unusual
  precision, height, width, num_components = struct.unpack_from(
      '>BHHB', segment)
  if (precision != 8 or num_components not in (1, 3) or not width or not height
      or len(segment) != 6 + 3 * num_components):
    raise _Unusual
  _check_size(width, height)
  components = {}
  for position in range(6, len(segment), 3):
    identifier, factors, table = segment[position:position + 3]
    components[identifier] = divmod(factors, 16), table
  sampling = [factors for factors, _ in components.values()]
  if len(sampling) != num_components:
    raise _Unusual
  for factors in zip(*sampling):  # Horizontal ones, then vertical ones.
    if min(factors) < 1 or max(factors) > 4 or any(
        max(factors) % factor for factor in factors):
      raise _Unusual
  return _Frame(width, height, is_progressive, components)


def _read_scan(segment, frame, quantization, huffman):
  """The set of the components in the scan of a scan header's segment.

  Args:
    segment: bytes.
    frame: a `_Frame`.
    quantization, huffman: sets of the numbers of the tables defined so far.
  """
  num_components = segment[0]
  if len(segment) != 4 + 2 * num_components:
    raise _Unusual
  needs_dc, needs_ac = True, True
  if frame.is_progressive:  # Elsewhere, libjpeg makes nothing of these bytes.
    first, last, bits = segment[-3:]
    high, low = divmod(bits, 16)
    if (last if first == 0 else not first <= last <= 63 or num_components > 1):
      raise _Unusual
    if low > 13 or high not in (0, low + 1):
      raise _Unusual
    needs_dc, needs_ac = first == 0 and high == 0, first > 0

  scanned, num_blocks = set(), 0
  for position in range(1, len(segment) - 3, 2):
    identifier = segment[position]
    dc_table, ac_table = divmod(segment[position + 1], 16)
    if identifier not in frame.components or identifier in scanned:
      raise _Unusual
    (horizontal, vertical), quantization_table = frame.components[identifier]
    if (quantization_table not in quantization
        or needs_dc and dc_table not in huffman
        or needs_ac and ac_table + _FIRST_AC_TABLE not in huffman):
      raise _Unusual
    num_blocks += horizontal * vertical
    scanned.add(identifier)
  if not scanned or len(scanned) > 1 and num_blocks > 10:
    raise _Unusual
  return scanned
