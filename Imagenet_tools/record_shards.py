"""Shards: which images go where, in which order they are read, their bytes.

The record layout is that of the official ResNet (TensorFlow models, October
2018) and its build_imagenet_data.py.
"""

import collections
import contextlib
import hashlib
import os

import numpy as np

from image_files import decode_image, prepare_image
from image_index import OpenedFiles
from record_format import (
    BUFFER_BYTES, CorruptRecordError, parse_example, read_records,
    serialized_example, write_record)
from tools_command_line import InputError, unfinished_path, wait_for_disk

SPLITS = ('train', 'validation')

# Shards that an evaluation pass reads from at a time.
READING_CYCLE_LENGTH = 10

SHARD_SIZE_RULES = ('ceiling', 'published')

# A record's fields beside the JPEG, and its framing: about 500 bytes.
RECORD_OVERHEAD_BYTES = 768

# So many images are read at a time, and as many are asked for beforehand.
_IMAGES_AHEAD = 128

# A file of records to be.
#   split: 'train' or 'validation'.
#   path: its final one.
#   first, stop: its images, as positions in the index of its split.
Shard = collections.namedtuple('Shard', 'split path first stop')


def images_per_shard(num_images, num_shards, rule='ceiling'):
  """The shard rule: how many images each shard takes, in order.

  Args:
    num_images, num_shards: ints.
    rule: 'ceiling': every shard takes `num_images / num_shards`, rounded up,
      while there are images; the last ones may be shorter or empty.
      'published': rounded down, as in the records of the paper's repository;
      the last images, fewer than there are shards, go nowhere.

  Returns:
    A list of `num_shards` ints; with the first rule, their sum is `num_images`.
  """
  if rule == 'published':
    return [num_images // num_shards] * num_shards
  full = -(-num_images // num_shards)
  return [min(full, max(0, num_images - shard * full))
          for shard in range(num_shards)]


def shard_name(split, shard, num_shards):
  """File name of a shard, such as 'train-00007-of-01024'."""
  return '{}-{:05d}-of-{:05d}'.format(split, shard, num_shards)


def plan_shards(split, folder, shard_sizes):
  """Lists the `Shard`s of a split, to be in `folder`, by images per shard."""
  stops = np.cumsum(shard_sizes).tolist()
  return [
      Shard(split, os.path.join(folder, shard_name(split, i, len(stops))),
            stop - size, stop)
      for i, (size, stop) in enumerate(zip(shard_sizes, stops))]


def reading_order(shard_sizes, cycle_length=READING_CYCLE_LENGTH):
  """The order in which an evaluation pass meets the images.

  That of `shards.interleave(TFRecordDataset, cycle_length, block_length=1)`
  in tf.data: `cycle_length` places take turns, a shard sits in each, and gives
  one record per turn. The turn in which a shard is found to be at its end
  gives nothing; the next shard sits down at the next turn of that place.

  Args:
    shard_sizes: images in each shard, in name order; zeros are allowed.
    cycle_length: number of places.

  Returns:
    int64 [images]. Row r of an evaluation pass is image `result[r]`, counted
    through all shards in name order.
  """
  starts = np.cumsum([0] + list(shard_sizes)).tolist()
  waiting = collections.deque(
      iter(range(start, stop)) for start, stop in zip(starts, starts[1:]))
  places = [None] * cycle_length
  order = []
  while waiting or any(place is not None for place in places):
    for turn in range(cycle_length):
      if places[turn] is None and waiting:
        places[turn] = waiting.popleft()
      if places[turn] is None:
        continue
      image = next(places[turn], None)
      if image is None:
        places[turn] = None
      else:
        order.append(image)
  return np.array(order, np.int64)


def labels_in_reading_order(images, shards, entries):
  """The labels of what the shards of one split hold.

  Args:
    images: `ImageIndex` of the split, in record order.
    shards: its `Shard`s.
    entries: what `ShardWriter.write` returned for each of them.

  Returns:
    int32 [records].
  """
  # One shard after the other, with the images that were skipped left out.
  in_shards = [
      np.delete(np.arange(shard.first, shard.stop),
                [bad['position'] for bad in entry['skipped']])
      for shard, entry in zip(shards, entries)]
  rows = reading_order([len(positions) for positions in in_shards])
  return images.label[np.concatenate(in_shards)[rows]]


class ShardWriter(object):
  """Writes shards, in any order and in any process, to the same bytes.

  They have temporary names until `give_name`.
  """

  def __init__(self, images, class_texts, is_decoding, is_skipping):
    """
    Args:
      images: a dict from split to the `ImageIndex` in record order.
      class_texts: list of str [classes], for image/class/text; or None.
      is_decoding: whether every pixel of every image is decoded, to see that
        it can be.
      is_skipping: whether bad images are left out; otherwise they are errors.
    """
    self._images = images
    self._class_texts = class_texts
    self._is_decoding = is_decoding
    self._is_skipping = is_skipping

  def write(self, shard, step):
    """Writes a shard under its temporary name and reads it again.

    Args:
      shard: a `Shard`.
      step: called once per image.

    Returns:
      A dict: 'shard', its file name; 'bytes', 'records' and 'sha256' of the
      file, as read again; 'decoded', whether every image was; 'skipped', for
      each image left out a dict of its 'position' in the shard as planned,
      its name as 'image', and the 'reason'.

    Raises:
      InputError: an image cannot be read, or the shard cannot be written.
    """
    temporary = unfinished_path(shard.path)
    with _output_errors(shard.path):
      with open(temporary, 'wb', BUFFER_BYTES) as record_file:
        crcs, skipped = self._write_records(shard, record_file, step)
    crcs_read = []
    num_bytes, sha256 = read_shard(
        temporary, lambda record, crc: crcs_read.append(crc))
    if crcs_read != crcs:
      raise InputError('{}: is not read as it was written; are the disk and '
                       'the memory sound?'.format(shard.path))
    return {'shard': os.path.basename(shard.path), 'bytes': num_bytes,
            'records': len(crcs), 'sha256': sha256,
            'decoded': self._is_decoding, 'skipped': skipped}

  def _write_records(self, shard, record_file, step):
    """Returns the records' CRCs and what 'skipped' says, see `write`."""
    images = self._images[shard.split]
    crcs, skipped = [], []
    with OpenedFiles() as opened_files:
      for i in range(shard.first, shard.stop):
        if (i - shard.first) % _IMAGES_AHEAD == 0:
          # At the start the first ones, and always those behind them.
          _read_ahead(images, i if i == shard.first else i + _IMAGES_AHEAD,
                      min(i + 2 * _IMAGES_AHEAD, shard.stop), opened_files)
        try:
          data = images.read(i, opened_files)
        except OSError as error:
          raise InputError('{}: cannot be read ({})'.format(
              images.path(i), error.strerror))
        try:
          prepared = prepare_image(data)
          if self._is_decoding:
            decode_image(prepared.jpeg)
        except ValueError as error:
          if not self._is_skipping:
            raise InputError(
                '{}: not a whole image ({}); replace it, or leave it out with '
                '--skip_bad_images'.format(images.path(i), error))
          skipped.append({'position': i - shard.first,
                          'image': images[i].name, 'reason': str(error)})
        else:
          crcs.append(write_record(
              record_file, *self._record(images, i, prepared)))
        step()
    return crcs, skipped

  def _record(self, images, i, prepared):
    """The serialized Example of a `PreparedImage`, in pieces."""
    image = images[i]
    features = {
        'image/encoded': prepared.jpeg,
        'image/class/label': image.label,
        'image/class/synset': images.classes[image.label - 1],
        'image/filename': os.path.basename(image.name),
        'image/height': prepared.height,
        'image/width': prepared.width,
        'image/colorspace': 'RGB',
        'image/channels': 3,
        'image/format': 'JPEG',
    }
    if self._class_texts is not None:
      features['image/class/text'] = self._class_texts[image.label - 1]
    return serialized_example(features)


def give_name(shard):
  """Gives a shard that is whole its name, once it is on the disk.

  After a crash of the machine, too, what has the name must be whole.

  Raises:
    InputError: it cannot be written.
  """
  temporary = unfinished_path(shard.path)
  with _output_errors(shard.path):
    wait_for_disk(temporary)
    _drop_from_memory(temporary)
    os.replace(temporary, shard.path)


def _drop_from_memory(path):
  """Has the system forget a file that is on the disk, where it can.

  The next shard gets that memory, and the archives keep theirs. Fresh memory
  made writing take up to six times as long on a virtual machine of ours.
  """
  if hasattr(os, 'posix_fadvise'):
    with contextlib.suppress(OSError), open(path, 'rb') as written:
      os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def _output_errors(path):
  """Says for any OSError that a shard cannot be written."""
  try:
    yield
  except OSError as error:
    raise InputError('{}: cannot be written ({}); is the disk full?'.format(
        path, error.strerror))


def _read_ahead(images, first, stop, opened_files):
  """Has the system read images into memory meanwhile, in the disk's order.

  Training images come in random order, one seek each. On a disk of our own,
  that took four times as long as reading from end to end; this, as long.
  """
  for i in first + np.lexsort(
      (images.offset[first:stop], images.container[first:stop])):
    try:
      opened_files.ask_for(images[i])
    except OSError:  # Reading the image will say so.
      pass


def read_shard(path, on_record):
  """Reads a shard to its end and checks every CRC.

  Args:
    path: of the shard.
    on_record: a function of `(record, crc)`, called for each: bytes, int.

  Returns:
    `(bytes in the file, SHA-256 of the file in hexadecimal)`.

  Raises:
    InputError: it is truncated or corrupt, or cannot be read.
  """
  digest = hashlib.sha256()
  try:
    with open(path, 'rb', BUFFER_BYTES) as record_file:
      for record, crc in read_records(record_file, digest):
        on_record(record, crc)
      return record_file.tell(), digest.hexdigest()
  except CorruptRecordError as error:
    raise InputError(
        '{}: truncated or corrupt at record {:,} (byte {:,} of {:,}); build or '
        'copy this shard again'.format(
            path, error.number, error.offset, os.path.getsize(path)))
  except OSError as error:
    raise InputError('{}: cannot be read ({})'.format(path, error.strerror))


def check_records(path, num_classes, is_decoding, step):
  """Reads a shard and checks what its records say.

  Args:
    path: of the shard.
    num_classes: int; labels are from 0 to `num_classes - 1`.
    is_decoding: whether every pixel of every image is decoded.
    step: called once per record.

  Returns:
    A dict of 'bytes', 'records' and 'sha256' of the file, and 'labels', a list
    of int [records].

  Raises:
    InputError: the file is corrupt or cannot be read, or a record is not one
      that the reader takes; names the record.
  """
  labels = []

  def check(record, _):
    try:
      labels.append(_checked_label(record, num_classes, is_decoding))
    except ValueError as error:
      raise InputError('{}: record {:,}: {}; build this shard again'.format(
          path, len(labels), error))
    step()

  num_bytes, sha256 = read_shard(path, check)
  return {'bytes': num_bytes, 'records': len(labels), 'sha256': sha256,
          'labels': labels}


def _checked_label(record, num_classes, is_decoding):
  """The label in a record; ValueError if the record is not as it should be."""
  features = parse_example(record)
  values = []
  for name, kind in (('image/encoded', memoryview), ('image/class/label', int)):
    value = features.get(name, [])
    if len(value) != 1 or not isinstance(value[0], kind):
      raise ValueError('has no {}'.format(name))
    values += value
  jpeg, label = values
  if label >= num_classes:  # A negative one is read as a very large one.
    raise ValueError('label {:,} is out of range'.format(label))
  prepared = prepare_image(bytes(jpeg))
  if prepared.was_encoded:
    raise ValueError('its image is not an RGB or greyscale JPEG')
  if is_decoding:
    decode_image(prepared.jpeg)
  return label
