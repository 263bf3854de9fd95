"""Image files: finding them, and what of them goes into the records.

Most images are RGB or greyscale JPEGs, which the network's reader takes as they
are: Pillow reads their header, and no pixel is decoded. Everything else is
decoded and encoded anew, which takes some hundred times as long.
"""

import io
import os
import re
import typing
import warnings

import numpy as np
from PIL import (
    Image, UnidentifiedImageError, WebPImagePlugin)  # pylint: disable=W0611

EXTENSIONS = ('.jpg', '.jpeg', '.jfif', '.png', '.webp', '.bmp')
KINDS = 'JPEG, PNG, WebP or BMP'  # The same in words.

_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP')
_JPEG_QUALITY = 100  # Of the scripts that the published records come from.
_MAX_SIDE_PIXELS = 65500  # libjpeg's.
_MAX_PIXELS = 2**27  # 400 MB when decoded.
# Longer side by the shorter one, which evaluation resizes to 256 pixels: the
# longer one then takes 80 MB. A strip of 60,000 x 1 pixels would take 50 GB.
_MAX_ASPECT = 100

# The plugins are loaded here, so that not every forked process loads them.
# preinit() leaves out WebP's, which registers itself when it is imported.
Image.preinit()

# Markers of ITU-T T.81. Among coded pixels, 0xff is followed by 0 or by a
# restart marker's second byte (0xd0 to 0xd7).
_START_OF_IMAGE = b'\xff\xd8'
_START_OF_SCAN, _END_OF_IMAGE = b'\xff\xda', b'\xff\xd9'
_MARKER = re.compile(b'\xff[^\x00\x01\xd0-\xd8\xff]')


class PreparedImage(typing.NamedTuple):
  """An image as it goes into a record."""
  jpeg: bytes        # An RGB or greyscale JPEG.
  width: int         # Pixels.
  height: int        # Pixels.
  was_encoded: bool  # Whether `jpeg` is not the file itself.


def walk_images(folder, passed_over=None):
  """Paths of the images in a folder and all folders within it, sorted.

  Images are told by their extensions; paths of other files go into the list
  `passed_over`. Hidden files and folders are left out. Symbolic links are
  followed, but no folder is walked twice.
  """
  def fail(error):
    raise error

  found, walked = [], set()
  for parent, folders, names in os.walk(
      folder, followlinks=True, onerror=fail):
    status = os.stat(parent)
    if (status.st_dev, status.st_ino) in walked:
      folders.clear()
      continue
    walked.add((status.st_dev, status.st_ino))
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    for name in sorted(names):
      if name.startswith('.'):
        continue
      if name.lower().endswith(EXTENSIONS):
        found.append(os.path.join(parent, name))
      elif passed_over is not None:
        passed_over.append(os.path.join(parent, name))
  return sorted(found)


def prepare_image(data, is_decoding=False):
  """Makes an image file fit for a record.

  An RGB or greyscale JPEG comes back unchanged, with whatever else it holds:
  data behind its end, as some cameras write, or an orientation, which is not
  applied, as in the published records. A PNG, WebP, BMP or CMYK JPEG is
  encoded anew as an RGB JPEG, with white where it is transparent.

  Args:
    data: bytes of a file.
    is_decoding: whether every pixel is decoded, also where that is not needed.
      A JPEG has no checksum: damage amid its pixels shows only if it breaks
      the code.

  Returns:
    A `PreparedImage`.

  Raises:
    ValueError: not an image, not a whole one, or one that is too large or too
      narrow; a line without the file's name.
  """
  if not data:
    raise ValueError('has no bytes')
  is_jpeg = data.startswith(_START_OF_IMAGE)
  if is_jpeg and not _has_end(data):
    raise ValueError('a JPEG that is cut short: no end-of-image marker')
  # Pillow's decoders raise OSError, SyntaxError, struct.error and others on
  # damaged data; all of them mean the same here.
  try:
    with warnings.catch_warnings():
      # About damaged EXIF data, which some images of ImageNet have, and sizes.
      warnings.simplefilter('ignore')
      image = Image.open(io.BytesIO(data), formats=_FORMATS)
      _check_size(*image.size)
      is_kept = is_jpeg and image.mode in ('RGB', 'L')
      if image.format == 'PNG':
        image.verify()  # Checksums; Pillow wants it opened again afterwards.
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
      if is_decoding or not is_kept:
        image.load()
  except UnidentifiedImageError:  # Its text names a place in memory.
    raise ValueError('a JPEG with a damaged header' if is_jpeg else
                     f'not a {KINDS} image')
  except Exception as error:
    raise ValueError(' '.join(str(error).split()) or type(error).__name__)
  if is_kept:
    return PreparedImage(data, image.width, image.height, False)
  return PreparedImage(_encoded(image), image.width, image.height, True)


def _check_size(width, height):
  if max(width, height) > _MAX_SIDE_PIXELS or width * height > _MAX_PIXELS:
    problem = 'which is too large'
  elif max(width, height) > _MAX_ASPECT * min(width, height):
    problem = f'one side more than {_MAX_ASPECT} times the other'
  else:
    return
  raise ValueError(f'of {width:,} x {height:,} pixels, {problem}')


def _has_end(jpeg):
  """Whether a JPEG has its end-of-image marker, or is cut short."""
  # In one that is cut short, the last end marker, if any, is that of a
  # preview, before the scans of the image itself.
  end = jpeg.rfind(_END_OF_IMAGE)
  if end >= 0 and jpeg.find(_START_OF_SCAN, end) < 0:
    return True
  # What looks like a scan may be in data behind the end, such as a film. So
  # the segments are walked, which takes longer.
  position = len(_START_OF_IMAGE)
  while True:
    marker = _MARKER.search(jpeg, position)
    if marker is None or marker.group() == _END_OF_IMAGE:
      return marker is not None
    length = jpeg[marker.end():marker.end() + 2]  # Of the segment, with itself.
    position = marker.end() + int.from_bytes(length, 'big')


def _encoded(image):
  """The bytes of a Pillow image as an RGB JPEG."""
  if image.mode.startswith('I'):  # A greyscale PNG of 16 bits.
    pixels = np.clip(np.asarray(image), 0, 2**16 - 1) >> 8
    image = Image.fromarray(pixels.astype(np.uint8))
  if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
    image = image.convert('RGBA')
    image = Image.alpha_composite(
        Image.new('RGBA', image.size, 'white'), image)
  if image.mode != 'RGB':
    image = image.convert('RGB')
  encoded = io.BytesIO()
  image.save(encoded, 'JPEG', quality=_JPEG_QUALITY)
  return encoded.getvalue()
