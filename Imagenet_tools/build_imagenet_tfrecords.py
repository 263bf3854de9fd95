"""Packs the ILSVRC2012 archives into the TFRecords that training reads.

    python3 build_imagenet_tfrecords.py

in the folder of the archives writes tf_records/train/train-00000-of-01024 and
so on, tf_records/validation/validation-00000-of-00128 and so on, the labels of
both splits in reading order, and last tf_records/dataset.json: where that file
is, the records are complete.

The archives are read in place. Every image lands in exactly one shard; the
records of the paper's repository lost the last 80 validation and 143 training
images to a division that rounded down.

Sources: record layout and label rule of the official ResNet (TensorFlow
models, October 2018) and its build_imagenet_data.py.
"""

import collections
import glob
import io
import json
import os
import re
import shutil
import sys

import numpy as np
from PIL import Image, UnidentifiedImageError

import imagenet_archives
from tools_command_line import (
    ArgumentParser, InputError, Progress, run, unfinished_file)

FORMAT_VERSION = 1  # Of dataset.json.
SPLITS = ('train', 'validation')

# Shards that an evaluation pass reads from at a time.
READING_CYCLE_LENGTH = 10

# A record's fields beside the JPEG, and its framing: about 400 bytes.
_RECORD_OVERHEAD_BYTES = 512


def images_per_shard(num_images, num_shards):
  """The shard rule: how many images each shard takes, in order.

  Every shard takes `num_images / num_shards`, rounded up, while there are
  images; the last ones may be shorter or empty.

  Returns:
    A list of `num_shards` ints whose sum is `num_images`.
  """
  full = -(-num_images // num_shards)
  return [min(full, max(0, num_images - shard * full))
          for shard in range(num_shards)]


def shard_name(split, shard, num_shards):
  """File name of a shard, such as 'train-00007-of-01024'."""
  return '{}-{:05d}-of-{:05d}'.format(split, shard, num_shards)


def labels_file_name(split):
  """File name of a split's labels, as the paper's repository has it."""
  return '{}_non_onehot.npy'.format(split)


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


def synset_labels(synsets):
  """A dict from synset to label: its index in sorted order, plus 1.

  Label 0 is the background class, which the official ResNet has and no image
  bears.
  """
  return {synset: label for label, synset in enumerate(sorted(synsets), 1)}


def as_rgb_or_grey_jpeg(data):
  """Returns an image as a JPEG that the network's reader decodes as it should.

  An RGB or greyscale JPEG comes back unchanged. Anything else, such as the PNG
  and the 22 CMYK JPEGs among the training images, is encoded anew as an RGB
  JPEG of quality 100.

  Args:
    data: the bytes of an image file.

  Returns:
    `(jpeg, width, height)`: bytes, pixels, pixels.

  Raises:
    ValueError: the data are not an image or not a whole one.
  """
  # Pillow's decoders raise OSError, SyntaxError, struct.error and others on
  # broken data; to the caller all of them mean the same.
  try:
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    # MPO is a JPEG with further JPEGs, as some cameras write, behind it.
    if image.format in ('JPEG', 'MPO') and image.mode in ('RGB', 'L'):
      jpeg = data
    else:
      encoded = io.BytesIO()
      image.convert('RGB').save(encoded, 'JPEG', quality=100)
      jpeg = encoded.getvalue()
  except UnidentifiedImageError:  # Its text names a place in memory.
    raise ValueError('of no known image format')
  except Exception as error:
    raise ValueError(str(error))
  # tf.image.decode_jpeg refuses a JPEG without this marker (tried on 1.12 and
  # 2.15), in the middle of a training run.
  if b'\xff\xd9' not in jpeg:
    raise ValueError('the JPEG is cut short: it has no end-of-image marker')
  return jpeg, width, height


def make_example(image, data, label):
  """Builds the record of one image.

  Args:
    image: an `imagenet_archives.ArchivedImage`.
    data: the bytes of its file.
    label: int.

  Returns:
    A `tf.train.Example`.

  Raises:
    InputError: the data are not an image.
  """
  import tensorflow as tf

  try:
    jpeg, width, height = as_rgb_or_grey_jpeg(data)
  except ValueError as error:
    raise InputError(
        '{}/{}: not a whole image ({}); replace it or leave it out, and pack '
        'the archive again'.format(
            image.archive, image.name, error))

  def integer(value):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

  def text(value):
    if not isinstance(value, bytes):
      value = value.encode('utf-8', 'surrogateescape')
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

  return tf.train.Example(features=tf.train.Features(feature={
      'image/encoded': text(jpeg),
      'image/class/label': integer(label),
      'image/class/synset': text(image.synset),
      'image/filename': text(os.path.basename(image.name)),
      'image/height': integer(height),
      'image/width': integer(width),
      'image/colorspace': text('RGB'),
      'image/channels': integer(3),
      'image/format': text('JPEG'),
  }))


def write_split(images, labels, num_shards, folder, split, progress):
  """Writes the shards of one split; each gets its name when it is whole.

  Args:
    images: `ArchivedImage`s of one archive, in record order.
    labels: int [images].
    num_shards: how many files to write.
    folder: an existing folder.
    split: 'train' or 'validation'.
    progress: its `step()` is called once per image.

  Raises:
    InputError: an image cannot be read or a shard cannot be written.
  """
  import tensorflow as tf

  records = zip(images, labels)
  with open(images[0].archive, 'rb') as archive:
    for shard, size in enumerate(images_per_shard(len(images), num_shards)):
      path = os.path.join(folder, shard_name(split, shard, num_shards))
      try:
        with unfinished_file(path) as temporary:
          with tf.io.TFRecordWriter(temporary) as writer:
            for _ in range(size):
              image, label = next(records)
              data = imagenet_archives.read_image(archive, image)
              example = make_example(image, data, int(label))
              # A record's fields are a map, whose order may vary otherwise.
              writer.write(example.SerializeToString(deterministic=True))
              progress.step()
      except tf.errors.OpError as error:
        raise InputError('{}: cannot be written ({}); is the disk full?'.format(
            path, error.message))


def prepare_output(output_dir, labels_dir, num_shards):
  """Makes the output folders and checks that they can be written.

  Args:
    output_dir: gets the folders train and validation.
    labels_dir: gets the label files.
    num_shards: a dict from split to the number of shards to come.

  Raises:
    InputError: the output has shards of another count, which a reader would
      mix up with the new ones, or a label file that is not one of ours; or a
      folder cannot be made or written.
  """
  for split in SPLITS:
    folder = os.path.join(output_dir, split)
    for path in sorted(glob.glob(
        os.path.join(glob.escape(folder), '{}-*-of-*'.format(split)))):
      count = re.search(r'-of-(\d+)$', path)
      if count and int(count.group(1)) != num_shards[split]:
        raise InputError(
            '{}: a shard of another count than --{}_shards {}; remove the old '
            'shards, give their count or name another --output_dir'.format(
                path, split, num_shards[split]))
    _check_replaceable(os.path.join(labels_dir, labels_file_name(split)))
  for folder in [labels_dir] + [
      os.path.join(output_dir, split) for split in SPLITS]:
    try:
      os.makedirs(folder, exist_ok=True)
      probe = os.path.join(folder, '.write_probe')
      with open(probe, 'wb'):
        pass
      os.remove(probe)
    except OSError as error:
      raise InputError(
          '{}: cannot be written ({}); name another --output_dir or '
          '--labels_dir'.format(folder, error.strerror))


def _check_replaceable(path):
  """Refuses to overwrite published labels, which are a pickle named .npy."""
  if not os.path.exists(path):
    return
  try:
    labels = np.load(path, mmap_mode='r', allow_pickle=False)
  except (ValueError, EOFError, OSError):  # Depends on the version of NumPy.
    labels = None
  if labels is None or labels.dtype != np.int32 or labels.ndim != 1:
    raise InputError('{}: not a label file of this program; move it away or '
                     'name another --labels_dir'.format(path))


def check_space(images, output_dir, num_shards):
  """Raises `InputError` if the shards would not fit on the disk."""
  required_bytes = sum(
      image.size + _RECORD_OVERHEAD_BYTES
      for split in SPLITS for image in images[split])
  replaced = [
      os.path.join(output_dir, split, shard_name(split, i, num_shards[split]))
      for split in SPLITS for i in range(num_shards[split])]
  available_bytes = shutil.disk_usage(output_dir).free + sum(
      os.path.getsize(path) for path in replaced if os.path.exists(path))
  if required_bytes > available_bytes:
    raise InputError(
        '--output_dir {}: the records take {:,} MB and {:,} MB are free; free '
        'some space or name a folder on another disk'.format(
            output_dir, -(-required_bytes // 10**6), available_bytes // 10**6))


def build(args):
  """Checks everything that can be checked at once, then writes it all.

  Args:
    args: the parsed command line.

  Raises:
    InputError, OSError: as said by the functions above.
  """
  num_shards = {'train': args.train_shards,
                'validation': args.validation_shards}
  output_dir = args.output_dir
  labels_dir = args.labels_dir or os.path.dirname(os.path.abspath(output_dir))
  imagenet_archives.check_is_tar(args.train_archive)
  imagenet_archives.check_is_tar(args.validation_archive)
  prepare_output(output_dir, labels_dir, num_shards)
  # The training archive comes last: its index may take minutes.
  validation_images = imagenet_archives.index_validation_archive(
      args.validation_archive, args.validation_labels)
  _import_tensorflow_quietly()
  train_images = imagenet_archives.index_train_archive(
      args.train_archive, Progress)
  label_of = synset_labels({image.synset for image in train_images})
  imagenet_archives.check_synsets_known(
      validation_images, label_of, args.validation_labels)
  # RandomState's stream is the same in every version of NumPy and Python.
  order = np.random.RandomState(args.seed).permutation(len(train_images))
  images = {'train': [train_images[i] for i in order],
            'validation': validation_images}
  check_space(images, output_dir, num_shards)

  dataset_path = os.path.join(output_dir, 'dataset.json')
  if os.path.exists(dataset_path):
    os.remove(dataset_path)  # Old and new shards mix from here on.
  labels = {split: np.array([label_of[image.synset] for image in images[split]],
                            np.int32) for split in SPLITS}
  num_images = {split: len(images[split]) for split in SPLITS}
  with Progress(sum(num_images.values()), 'images') as progress:
    for split in SPLITS:
      write_split(images[split], labels[split], num_shards[split],
                  os.path.join(output_dir, split), split, progress)
  for split in SPLITS:
    rows = reading_order(images_per_shard(num_images[split], num_shards[split]))
    path = os.path.join(labels_dir, labels_file_name(split))
    _write_labels(path, labels[split][rows])
    print('{}: {:,} images in {:,} shards, labels in {}'.format(
        split, num_images[split], num_shards[split], path))
  _write_json(dataset_path, {
      'format_version': FORMAT_VERSION,
      'num_classes': len(label_of) + 1,  # The background class is one.
      'synsets': sorted(label_of),
      'num_images': num_images,
      'num_shards': num_shards,
      'train_shuffle_seed': args.seed,
  })
  print('{:,} classes and the background class; records in {}'.format(
      len(label_of), output_dir))


def _write_labels(path, labels):
  with unfinished_file(path) as temporary:
    with open(temporary, 'wb') as labels_file:
      np.save(labels_file, labels)


def _write_json(path, content):
  with unfinished_file(path) as temporary:
    with open(temporary, 'w') as json_file:
      json.dump(content, json_file, indent=1, sort_keys=True)
      json_file.write('\n')


def _import_tensorflow_quietly():
  """Imports TensorFlow, whose notes on CPUs and GPUs would bury our lines.

  Raises:
    InputError: there is no TensorFlow.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  try:
    import tensorflow  # pylint: disable=unused-import
  except ImportError as error:
    raise InputError('TensorFlow is needed and cannot be imported ({}); '
                     'install requirements.txt'.format(error))


def parse_arguments(arguments=None):
  """Parses the command line; raises `InputError` where it is wrong."""
  parser = ArgumentParser(
      description='Packs the ILSVRC2012 archives into TFRecords, in place: '
      'nothing is unpacked, changed or deleted.')
  parser.add_argument(
      '--train_archive', default='ILSVRC2012_img_train.tar', metavar='FILE',
      help='tar of one tar per synset of JPEGs (%(default)s)')
  parser.add_argument(
      '--validation_archive', default='ILSVRC2012_img_val.tar', metavar='FILE',
      help='flat tar of JPEGs (%(default)s)')
  parser.add_argument(
      '--validation_labels', metavar='FILE',
      default='imagenet_2012_validation_synset_labels.txt',
      help='one synset per line; line i is of the i-th validation image by '
      'file name (%(default)s)')
  parser.add_argument(
      '--output_dir', default='tf_records', metavar='DIR',
      help='gets train/, validation/ and dataset.json (%(default)s)')
  parser.add_argument(
      '--labels_dir', metavar='DIR',
      help='gets {train,validation}_non_onehot.npy (the parent of '
      '--output_dir)')
  parser.add_argument('--train_shards', type=int, default=1024, metavar='N',
                      help='number of training files (%(default)s)')
  parser.add_argument('--validation_shards', type=int, default=128,
                      metavar='N',
                      help='number of validation files (%(default)s)')
  parser.add_argument('--seed', type=int, default=0, metavar='N',
                      help='of the order of the training images (%(default)s)')
  args = parser.parse_args(arguments)
  for flag in ('train_shards', 'validation_shards'):
    if not 1 <= getattr(args, flag) <= 99999:  # Names have five digits.
      raise InputError('--{} {}: give a number from 1 to 99999'.format(
          flag, getattr(args, flag)))
  if not 0 <= args.seed < 2**32:
    raise InputError('--seed {}: give a number from 0 to 4294967295'.format(
        args.seed))
  return args


def main(arguments=None):
  """Runs the command line and returns its exit status; see `run`."""
  return run(lambda: build(parse_arguments(arguments)))


if __name__ == '__main__':
  sys.exit(main())
