"""Image files to the JPEGs of the records, and whether they are whole.

Most images are RGB or greyscale JPEGs, which the network's reader takes as they
are: Pillow reads their header, and no pixel is decoded. Everything else is
decoded and encoded anew, which takes some hundred times as long.
"""

import io
import typing
import warnings

import numpy as np
from PIL import (
    Image, UnidentifiedImageError, WebPImagePlugin)  # pylint: disable=W0611

_JPEG_QUALITY = 100  # Of the scripts that the published records come from.
_MAX_SIDE_PIXELS = 65500  # libjpeg's.
_MAX_PIXELS = 2**27  # 400 MB when decoded.

_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP')

# The plugins are loaded here, so that not every forked process loads them.
# preinit() leaves out WebP's, which registers itself when it is imported.
Image.preinit()

# Markers of ITU-T T.81. Neither occurs among coded pixels, where 0xff is
# followed by 0 or by a restart marker's second byte.
_START_OF_IMAGE = b'\xff\xd8'
_START_OF_SCAN, _END_OF_IMAGE = b'\xff\xda', b'\xff\xd9'


class PreparedImage(typing.NamedTuple):
  """An image as it goes into a record."""
  jpeg: bytes        # An RGB or greyscale JPEG.
  width: int         # Pixels.
  height: int        # Pixels.
  was_encoded: bool  # Whether `jpeg` is not the file itself.


def prepare_image(data, is_decoding=False):
  """Makes an image file fit for a record.

  An RGB or greyscale JPEG comes back unchanged, with whatever else it holds:
  other JPEGs behind it, as some cameras write, or an orientation, which is not
  applied, as in the published records. A PNG, WebP, BMP or CMYK JPEG is
  encoded anew as an RGB JPEG; transparency is dropped.

  Args:
    data: bytes of a file.
    is_decoding: whether every pixel is decoded, also where that is not needed.
      A JPEG has no checksum: damage amid its pixels shows only if it breaks
      the code.

  Returns:
    A `PreparedImage`.

  Raises:
    ValueError: not an image, not a whole one, or one that is too large; a
      line without the file's name.
  """
  if not data:
    raise ValueError('has no bytes')
  is_jpeg = data.startswith(_START_OF_IMAGE)
  if is_jpeg:
    # In a JPEG that is cut short, the last end marker, if any, is that of a
    # preview, before the scans of the image itself.
    end = data.rfind(_END_OF_IMAGE)
    if end < 0 or data.find(_START_OF_SCAN, end) > 0:
      raise ValueError('a JPEG that is cut short: no end-of-image marker')
  # Pillow's decoders raise OSError, SyntaxError, struct.error and others on
  # damaged data; all of them mean the same here.
  try:
    with warnings.catch_warnings():
      # About damaged EXIF data, which some images of ImageNet have, and sizes.
      warnings.simplefilter('ignore')
      image = Image.open(io.BytesIO(data), formats=_FORMATS)
      if (max(image.size) > _MAX_SIDE_PIXELS
          or image.width * image.height > _MAX_PIXELS):
        raise ValueError(f'of {image.width:,} x {image.height:,} pixels, which '
                         'is too large')
      is_kept = is_jpeg and image.mode in ('RGB', 'L')
      if image.format == 'PNG':
        image.verify()  # Checksums; Pillow wants it opened again afterwards.
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
      if is_decoding or not is_kept:
        image.load()
  except UnidentifiedImageError:  # Its text names a place in memory.
    raise ValueError('a JPEG with a damaged header' if is_jpeg else
                     'not a JPEG, PNG, WebP or BMP image')
  except Exception as error:
    raise ValueError(' '.join(str(error).split()) or type(error).__name__)
  if is_kept:
    return PreparedImage(data, image.width, image.height, False)
  return PreparedImage(_encoded(image), image.width, image.height, True)


def _encoded(image):
  """The bytes of a Pillow image as an RGB JPEG."""
  if image.mode.startswith('I'):  # A greyscale PNG of 16 bits.
    pixels = np.clip(np.asarray(image), 0, 2**16 - 1) >> 8
    image = Image.fromarray(pixels.astype(np.uint8))
  image.info.pop('transparency', None)  # A palette's draws a warning.
  if image.mode != 'RGB':
    image = image.convert('RGB')
  encoded = io.BytesIO()
  image.save(encoded, 'JPEG', quality=_JPEG_QUALITY)
  return encoded.getvalue()
