"""Image files of every kind that evaluation decodes."""

import io

import numpy as np
from PIL import Image

# Factors of the luminance's sampling in a JPEG's frame header, by the usual
# names, and the chroma subsampling of Pillow's JPEGs that have as many blocks
# to a unit.
SAMPLINGS = {
    '4:4:4': (0x11, 0), '4:2:2': (0x21, 1), '4:4:0': (0x12, 1),
    '4:2:0': (0x22, 2), '4:1:1': (0x41, 2), '4:1:0 upright': (0x14, 2)}
_PILLOWS_SAMPLINGS = (0x11, 0x21, 0x22)
_BLOCK = 8  # Pixels.
# Behind a frame header's marker: its length, the precision, height and width.
_HEIGHT_OFFSET, _LUMINANCE_OFFSET = 5, 11


def noise(rng, height, width):
  """uint8 [height, width, 3]: edges and grain in all colours."""
  coarse = rng.randint(0, 256, [(height + 3) // 4, (width + 3) // 4, 3])
  pixels = np.kron(coarse, np.ones([4, 4, 1], int))[:height, :width]
  pixels = pixels + rng.randint(-30, 31, pixels.shape)
  return np.clip(pixels, 0, 255).astype(np.uint8)


def encode(pixels, kind='JPEG', mode='RGB', **options):
  """Bytes of an image file of Pillow's."""
  stream = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
  return stream.getvalue()


def sampled_jpeg(rng, height, width, sampling, progressive=False):
  """A JPEG of a given chroma subsampling, those that Pillow lacks included.

  A unit of 4:4:0 has the blocks of a unit of 4:2:2, only that the two of the
  luminance lie one below the other. So another sampling and size in the header
  of one make a sound JPEG of the other, of another picture.

  Args:
    rng: a RandomState.
    height, width: pixels, to be rounded up to whole units.
    sampling: of `SAMPLINGS`.
    progressive: bool.

  Returns:
    bytes.
  """
  factors, pillows = SAMPLINGS[sampling]
  unit_width, unit_height = _unit(factors)
  rows, columns = -(-height // unit_height), -(-width // unit_width)
  drawn_width, drawn_height = _unit(_PILLOWS_SAMPLINGS[pillows])
  jpeg = bytearray(encode(
      noise(rng, rows * drawn_height, columns * drawn_width), quality=90,
      subsampling=pillows, progressive=progressive))
  header = jpeg.index(b'\xff\xc2' if progressive else b'\xff\xc0')
  size = np.array([rows * unit_height, columns * unit_width], '>u2').tobytes()
  jpeg[header + _HEIGHT_OFFSET:header + _HEIGHT_OFFSET + 4] = size
  jpeg[header + _LUMINANCE_OFFSET] = factors
  return bytes(jpeg)


def _unit(factors):
  """Width and height in pixels of a JPEG's smallest coded unit."""
  return (factors >> 4) * _BLOCK, (factors & 15) * _BLOCK
