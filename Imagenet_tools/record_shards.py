"""Shards: which images go where, in which order they are read, their bytes.

The record layout is that of the official ResNet (TensorFlow models, October
2018) and its build_imagenet_data.py.
"""

import collections
import contextlib
import hashlib
import os
import typing

import numpy as np

from image_files import prepare_image
from image_index import OpenedFiles
from record_format import (
    BUFFER_BYTES, parse_example, read_records, serialized_example,
    write_record)
from record_folder import unfinished_path
from shared_dataset import INTERLEAVED_SHARDS, shard_name
from shared_files import explain_error
from shared_terminal import UserError

SHARD_SIZE_RULES = ('ceiling', 'published')

# A record's fields beside the JPEG, and its framing: about 500 bytes.
RECORD_OVERHEAD_BYTES = 768

# The system is asked for so many images while as many are read.
_IMAGES_AHEAD = 128


class Shard(typing.NamedTuple):
  """A file of records to be written."""
  split: str  # 'train' or 'validation'.
  path: str   # Its final one.
  first: int  # Its first image, as a position in the index of its split.
  stop: int   # The position behind its last image.

  @property
  def name(self):
    return os.path.basename(self.path)


def images_per_shard(num_images, num_shards, rule='ceiling'):
  """The shard rule: how many images each shard takes, as a list of int.

  'ceiling': `num_images / num_shards`, rounded up, while there are images.
  'published': rounded down, as in the records of the paper's repository; the
  last images are left out.

  Example: 10 images in 4 shards are [3, 3, 3, 1], or published [2, 2, 2, 2].
  """
  if rule == 'published':
    return [num_images // num_shards] * num_shards
  full = -(-num_images // num_shards)
  return [min(full, max(0, num_images - shard * full))
          for shard in range(num_shards)]


def plan_shards(split, folder, shard_sizes):
  """Lists the `Shard`s of a split, to be in `folder`, by images per shard."""
  stops = np.cumsum(shard_sizes).tolist()
  return [
      Shard(split, os.path.join(folder, shard_name(split, i, len(stops))),
            stop - size, stop)
      for i, (size, stop) in enumerate(zip(shard_sizes, stops))]


def reading_order(shard_sizes, cycle_length=INTERLEAVED_SHARDS):
  """The order in which an evaluation pass meets the images.

  That of `shards.interleave(TFRecordDataset, cycle_length, block_length=1)`
  in tf.data: `cycle_length` places take turns. Each holds a shard and gives
  one record per turn. When a place finds its shard at the end, it gives
  nothing in that turn and takes the next waiting shard at its next turn.

  Example: shards of 3, 1 and 2 images, two places: images 0, 3, 1, 2, 4, 5.
  Image 2 follows 1 since the second place finds its shard at the end there.

  Returns:
    int64 [images]. Row r of an evaluation pass is image `result[r]`, counted
    through all shards in name order.
  """
  starts = np.cumsum([0] + list(shard_sizes)).tolist()
  waiting = collections.deque(map(iter, map(range, starts, starts[1:])))
  places, order = [None] * cycle_length, []
  while waiting or any(places):
    for turn, place in enumerate(places):
      if place is None and waiting:
        place = waiting.popleft()
      image = place and next(place, None)
      places[turn] = None if image is None else place
      if image is not None:
        order.append(image)
  return np.array(order, np.int64)


def labels_in_reading_order(labels, shards, entries):
  """The labels of what the shards of one split hold, int32 [records].

  `labels` are int32 [images] of the split, in record order; `entries` what
  `write_shard` returned for each of its `shards`.
  """
  # One shard after the other, with the images that were skipped left out.
  in_shards = [
      np.delete(np.arange(shard.first, shard.stop),
                [bad['position'] for bad in entry['skipped']])
      for shard, entry in zip(shards, entries)]
  rows = reading_order([len(positions) for positions in in_shards])
  return labels[np.concatenate(in_shards)[rows]]


def write_shard(shard, images, class_texts, is_decoding, is_skipping):
  """Writes a shard under its unfinished name and reads it again.

  Args:
    shard: a `Shard`.
    images: `ImageIndex` of its split, in record order.
    class_texts: list [classes] of str, for image/class/text, or None for a
      class of which only the synset is known.
    is_decoding: whether every pixel is decoded, to see that it can be.
    is_skipping: whether bad images are left out; otherwise they are errors.

  Returns:
    A dict: 'bytes', 'records' and 'sha256' of the file, as read again;
    'decoded', whether every image was; 'skipped', for each image left out a
    dict of its 'position' in the shard as planned, its name as 'image', and
    the 'reason'.
  """
  crcs, skipped = [], []
  unfinished = unfinished_path(shard.path)
  with explain_error(shard.path, 'is the disk full?'), \
      OpenedFiles() as opened_files, \
      open(unfinished, 'wb', BUFFER_BYTES) as record_file:
    for i in range(shard.first, shard.stop):
      if (i - shard.first) % _IMAGES_AHEAD == 0:
        # At the start the first ones, and always those behind them.
        _read_ahead(images, i if i == shard.first else i + _IMAGES_AHEAD,
                    min(i + 2 * _IMAGES_AHEAD, shard.stop), opened_files)
      image = images[i]
      with explain_error(image.path, 'check its permissions', 'read'):
        data = opened_files.read(image)
      try:
        prepared = prepare_image(data, is_decoding)
      except ValueError as error:
        if not is_skipping:
          raise UserError(
              f'{image.path}: not a whole image ({error}); replace it, or '
              'leave it out with --skip_bad_images')
        skipped.append({'position': i - shard.first,
                        'image': image.name, 'reason': str(error)})
      else:
        crcs.append(write_record(record_file, *_record(
            image, images.classes, class_texts, prepared)))
  digest = hashlib.sha256()
  if [crc for _, crc in read_records(unfinished, digest)] != crcs:
    raise UserError(f'{shard.path}: reads otherwise than it was written; '
                    'check the disk and the memory')
  return {'bytes': os.path.getsize(unfinished), 'records': len(crcs),
          'sha256': digest.hexdigest(), 'decoded': is_decoding,
          'skipped': skipped}


def _record(image, classes, class_texts, prepared):
  """The serialized Example of a `PreparedImage`, in pieces."""
  features = {
      'image/encoded': prepared.jpeg,
      'image/class/label': image.label,
      'image/class/synset': classes[image.label - 1],
      'image/filename': os.path.basename(image.name),
      'image/height': prepared.height,
      'image/width': prepared.width,
      'image/colorspace': 'RGB',
      'image/channels': 3,
      'image/format': 'JPEG',
  }
  text = class_texts[image.label - 1]
  if text is not None:
    features['image/class/text'] = text
  return serialized_example(features)


def _read_ahead(images, first, stop, opened_files):
  """Has the system read images in the background, in the disk's order.

  Training images come in random order, one seek each. On a hard disk that took
  four times as long as reading from end to end; this takes as long.
  """
  for i in first + np.lexsort([images.columns[column][first:stop]
                               for column in ('offset', 'container')]):
    with contextlib.suppress(OSError):  # Reading the image will say so.
      opened_files.ask_for(images[i])


def check_records(path, num_classes, is_decoding):
  """Checks that a shard's records are such as the network's reader takes.

  Returns `(sha256, labels)`: of the file in hexadecimal; a list of int
  [records].
  """
  labels, digest = [], hashlib.sha256()
  for record, _ in read_records(path, digest):
    try:
      labels.append(_checked_label(record, num_classes, is_decoding))
    except ValueError as error:
      raise UserError(
          f'{path}: record {len(labels):,}: {error}; build this shard again')
  return digest.hexdigest(), labels


def _checked_label(record, num_classes, is_decoding):
  """The label in a record; ValueError if the record is not as it should be."""
  features = parse_example(record)
  for name, kind in (('image/encoded', memoryview), ('image/class/label', int)):
    if [type(value) for value in features.get(name, [])] != [kind]:
      raise ValueError(f'has no {name}')
  (jpeg,), (label,) = features['image/encoded'], features['image/class/label']
  if label >= num_classes:  # A negative one is read as a very large one.
    raise ValueError(f'label {label:,} is out of range')
  if prepare_image(bytes(jpeg), is_decoding).was_encoded:
    raise ValueError('its image is not an RGB or greyscale JPEG')
  return label
