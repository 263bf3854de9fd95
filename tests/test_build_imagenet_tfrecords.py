"""Archives to TFRecords: nothing lost, nothing altered."""

import collections
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile

import numpy as np
from PIL import Image
import pytest

import build_imagenet_tfrecords as builder
import imagenet_archives
import record_shards
import tools_command_line
from image_index import IndexBuilder
from tf_compat import tf
from tiny_archives import (  # pylint: disable=unused-import
    SYNSETS, Dataset, dataset, encode, tar_bytes)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = os.path.join(ROOT, 'Imagenet_tools', 'build_imagenet_tfrecords.py')
PUBLISHED_LABELS = os.path.join(
    os.path.dirname(ROOT), 'shared', 'published_labels')

# The shard rule and the reading order.


@pytest.mark.parametrize('num_images', [1, 7, 10, 50, 390, 50000, 1281167])
@pytest.mark.parametrize('num_shards', [1, 3, 10, 128, 1024])
def test_shard_rule_loses_no_image(num_images, num_shards):
  sizes = builder.images_per_shard(num_images, num_shards)
  assert len(sizes) == num_shards
  assert sum(sizes) == num_images
  assert sizes == sorted(sizes, reverse=True)
  assert sizes[-1] >= 0
  assert sizes[0] * num_shards - num_images < num_shards


@pytest.mark.parametrize('num_images, num_shards, size', [
    (1281167, 1024, 1251), (50000, 128, 390), (7, 2, 3), (1, 2, 0)])
def test_published_shard_rule(num_images, num_shards, size):
  assert builder.images_per_shard(num_images, num_shards, 'published') == (
      [size] * num_shards)


def interleaved_by_tensorflow(shard_sizes, cycle_length):
  stops = np.cumsum(shard_sizes).astype(np.int64)
  with tf.Graph().as_default(), tf.Session() as session:
    dataset = tf.data.Dataset.from_tensor_slices((stops - shard_sizes, stops))
    rows = dataset.interleave(
        tf.data.Dataset.range, cycle_length=cycle_length, block_length=1)
    rows = rows.batch(10**6).make_one_shot_iterator().get_next()
    return session.run(rows)


@pytest.mark.parametrize('seed', range(16))
def test_reading_order_is_that_of_tf_data(seed):
  random = np.random.RandomState(seed)
  num_shards = random.randint(1, 41)
  shard_sizes = random.randint(0, 1 + random.randint(1, 20), num_shards)
  shard_sizes[random.randint(num_shards)] = 3  # Not all are empty.
  cycle_length = 10 if seed % 2 else random.randint(1, 13)
  order = builder.reading_order(shard_sizes.tolist(), cycle_length)
  assert order.dtype == np.int64
  assert sorted(order) == list(range(shard_sizes.sum()))
  np.testing.assert_array_equal(
      order, interleaved_by_tensorflow(shard_sizes, cycle_length))


def test_reading_order_of_imagenet_is_that_of_tf_data():
  shard_sizes = np.array(builder.images_per_shard(50000, 128))
  np.testing.assert_array_equal(
      builder.reading_order(shard_sizes),
      interleaved_by_tensorflow(
          shard_sizes, record_shards.READING_CYCLE_LENGTH))


def test_reading_order_of_nothing():
  assert builder.reading_order([]).shape == (0,)
  assert builder.reading_order([0, 0]).shape == (0,)


class ArrayUnpickler(pickle.Unpickler):
  """Admits what a pickled array needs and nothing else."""

  def find_class(self, module, name):
    if (module, name) in (('numpy.core.multiarray', '_reconstruct'),
                          ('numpy', 'ndarray'), ('numpy', 'dtype')):
      return super(ArrayUnpickler, self).find_class(module, name)
    raise pickle.UnpicklingError('{}.{}'.format(module, name))


@pytest.mark.skipif(not os.path.isdir(PUBLISHED_LABELS),
                    reason='the published labels are not here')
def test_labels_are_the_published_ones():
  with open(os.path.join(
      PUBLISHED_LABELS, 'validation_non_onehot.npy'), 'rb') as labels_file:
    published = np.asarray(ArrayUnpickler(labels_file).load()).ravel()
  synsets = imagenet_archives.read_validation_synsets(os.path.join(
      ROOT, 'Imagenet_tools', 'imagenet_2012_validation_synset_labels.txt'))
  classes = sorted(set(synsets))
  images = IndexBuilder(classes)
  images.add_container('val.tar', [
      (b'ILSVRC2012_val_%08d.JPEG' % i, 512 * i, 100) for i in range(50000)],
                       [classes.index(synset) + 1 for synset in synsets])
  sizes = builder.images_per_shard(50000, 128, 'published')
  assert sizes == [390] * 128
  # The published records lack the last 80 images.
  labels = record_shards.labels_in_reading_order(
      images.finish(), record_shards.plan_shards('validation', '', sizes),
      [{'skipped': []}] * 128)
  assert labels.dtype == np.int32 and labels.shape == (49920,)
  np.testing.assert_array_equal(labels, published[:49920])


def test_shipped_validation_labels_are_whole():
  synsets = imagenet_archives.read_validation_synsets(os.path.join(
      ROOT, 'Imagenet_tools', 'imagenet_2012_validation_synset_labels.txt'))
  assert len(synsets) == 50000
  assert set(collections.Counter(synsets).values()) == {50}
  assert len(set(synsets)) == 1000


# What is written.


@pytest.mark.parametrize('num_train, num_validation, shards', [
    (3, 1, (1, 1)), (11, 5, (4, 2)), (5, 4, (8, 9)), (40, 13, (12, 11))])
def test_every_image_is_in_one_record(
    tmp_path, num_train, num_validation, shards):
  dataset = Dataset(tmp_path, num_train, num_validation).save().build(
      '--train_shards', str(shards[0]), '--validation_shards', str(shards[1]))
  expected = {
      'train': sum(dataset.train.values(), []), 'validation':
      dataset.validation}
  for split, num_shards in zip(record_shards.SPLITS, shards):
    assert [os.path.basename(path) for path in dataset.shards(split)] == [
        '{}-{:05d}-of-{:05d}'.format(split, i, num_shards)
        for i in range(num_shards)]
    records = dataset.records(split)
    assert sorted(
        (record['image/filename'][0].decode(), record['image/encoded'][0])
        for record in records) == sorted(expected[split])
    labels = dataset.written_labels(split)
    assert labels.dtype == np.int32
    assert labels.tolist() == [
        record['image/class/label'][0] for record in records]


def test_features_are_those_of_the_official_records(dataset):
  # Labels follow the sorted names, whatever the order in the archive.
  dataset.labels = list(SYNSETS) + list(SYNSETS[:2])
  dataset.validation.reverse()
  dataset.save().build('--validation_shards', '1')
  by_name = dict(dataset.validation)
  records = dataset.records('validation')
  assert len(records) == 5
  for i, record in enumerate(records):  # In sorted file order.
    name = 'val_{:04d}.JPEG'.format(i)
    assert record == {
        'image/encoded': [by_name[name]],
        'image/class/label': [1 + i % 3],
        'image/class/synset': [SYNSETS[i % 3].encode()],
        'image/filename': [name.encode()],
        'image/height': [7],
        'image/width': [9],
        'image/colorspace': [b'RGB'],
        'image/channels': [3],
        'image/format': [b'JPEG'],
    }
  for record in dataset.records('train'):
    synset = record['image/filename'][0].decode().split('_')[0]
    assert record['image/class/synset'] == [synset.encode()]
    assert record['image/class/label'] == [1 + SYNSETS.index(synset)]


def read_dataset_json(dataset):
  with open(os.path.join(dataset.output, 'dataset.json')) as dataset_file:
    return json.load(dataset_file)


def test_dataset_json(dataset):
  dataset.build('--seed', '7')
  content = read_dataset_json(dataset)
  shards = content.pop('shards')
  assert content == {
      'format_version': 1, 'tool_version': builder.TOOL_VERSION,
      'num_classes': 4, 'synsets': list(SYNSETS),
      'num_images': {'train': 11, 'validation': 5},
      'class_counts': {'train': [4, 4, 3], 'validation': [2, 1, 2]},
      'num_shards': {'train': 4, 'validation': 2}, 'train_shuffle_seed': 7,
      'shard_size_rule': 'ceiling', 'verified': 'structure',
      'skipped_images': {'train': [], 'validation': []}}
  for split, records in (('train', [3, 3, 3, 2]), ('validation', [3, 2])):
    for path, count in zip(dataset.shards(split), records):
      with open(path, 'rb') as shard:
        data = shard.read()
      assert shards[split].pop(os.path.basename(path)) == {
          'bytes': len(data), 'records': count,
          'sha256': hashlib.sha256(data).hexdigest()}
    assert shards[split] == {}


def test_published_rule_leaves_images_out(capsys, dataset):
  dataset.build('--shard_size_rule', 'published')
  error = capsys.readouterr().err
  assert 'the last 3 training and 1 validation images are left out' in error
  assert error.count('\n') == 1
  assert [len(dataset.records(split)) for split in record_shards.SPLITS] == [
      8, 4]
  assert [record['image/filename'][0] for record in dataset.records(
      'validation')] == [b'val_0000.JPEG', b'val_0002.JPEG', b'val_0001.JPEG',
                         b'val_0003.JPEG']
  assert read_dataset_json(dataset)['num_images'] == {
      'train': 8, 'validation': 4}
  assert dataset.written_labels('train').shape == (8,)


def test_train_order_is_shuffled_by_the_seed_alone(dataset):
  def names(*arguments):
    shutil.rmtree(dataset.output, ignore_errors=True)
    dataset.build(*arguments)
    with open(dataset.shards('train')[0], 'rb') as shard:
      content = shard.read()
    return content, [record['image/filename'][0].decode()
                     for record in dataset.records('train')]

  # One shard, so that records come in written order.
  content, order = names('--train_shards', '1')
  assert names('--train_shards', '1') == (content, order)
  assert names('--train_shards', '1', '--seed', '1')[1] != order
  # The permutation is a constant of NumPy's legacy generator.
  by_synset = [name for files in dataset.train.values() for name, _ in files]
  by_synset.sort(key=lambda name: (name.split('_')[0], name))
  permutation = [4, 9, 2, 10, 6, 1, 7, 8, 3, 0, 5]
  assert np.random.RandomState(0).permutation(11).tolist() == permutation
  assert order == [by_synset[i] for i in permutation]


def test_png_and_cmyk_are_found_by_content(dataset):
  dataset.validation[1] = ('val_0001.JPEG', encode(1, file_format='PNG'))
  dataset.validation[2] = ('val_0002.JPEG', encode(2, mode='CMYK'))
  dataset.save().build('--validation_shards', '1')
  formats = []
  for record in dataset.records('validation'):
    image = Image.open(io.BytesIO(record['image/encoded'][0]))
    formats.append((image.format, image.mode))
  assert formats == [('JPEG', 'RGB')] * 5


def test_folders_and_dot_names_in_archives(dataset):
  folder = tarfile.TarInfo('./images')
  folder.type = tarfile.DIRTYPE
  dataset.write('val.tar', tar_bytes([('./images', folder)] + [
      ('./' + name, data) for name, data in dataset.validation]))
  dataset.build('--validation_shards', '1')
  assert [record['image/filename'][0].decode()
          for record in dataset.records('validation')] == [
              name for name, _ in dataset.validation]


def test_archives_are_only_read(dataset):
  inputs = ['train.tar', 'val.tar', 'labels.txt']
  def content():
    return [(open(dataset.path(name), 'rb').read(),
             os.stat(dataset.path(name)).st_mtime) for name in inputs]
  before = content()
  dataset.build()
  assert content() == before
  assert [os.path.basename(path) for path in dataset.files()
          if os.path.basename(path).startswith('.')] == [
              '.build_journal.jsonl']


def test_labels_dir(dataset):
  dataset.build('--labels_dir', dataset.path('elsewhere'))
  assert sorted(os.listdir(dataset.path('elsewhere'))) == [
      'train_non_onehot.npy', 'validation_non_onehot.npy']
  assert not os.path.exists(dataset.path('train_non_onehot.npy'))


# The command line itself.


def test_help_tells_the_defaults():
  help_text = subprocess.check_output(
      [sys.executable, SCRIPT, '--help']).decode()
  assert '--validation_labels' in help_text and '(1024)' in help_text


def test_nothing_here_needs_tensorflow(dataset):
  code = ('import sys; sys.modules["tensorflow"] = None\n'
          'import build_imagenet_tfrecords as builder, verify_records\n'
          'assert builder.main({!r}) == 0\n'
          'assert verify_records.main([{!r}, "--verify", "full"]) == 0')
  subprocess.check_call(
      [sys.executable, '-c', code.format(
          dataset.arguments('--verify', 'full'), dataset.output)],
      cwd=os.path.dirname(SCRIPT))


def test_summary(capsys, dataset):
  dataset.build()
  output = capsys.readouterr()
  assert 'train: 11 images in 4 shards' in output.out
  assert 'validation: 5 images in 2 shards' in output.out
  assert output.err == ''


class FakeStream(io.StringIO):
  def __init__(self, is_terminal):
    super(FakeStream, self).__init__()
    self.isatty = lambda: is_terminal


@pytest.mark.parametrize('is_terminal', [False, True])
def test_progress(is_terminal):
  stream, seconds = FakeStream(is_terminal), iter(range(0, 10000, 4))
  progress = tools_command_line.Progress(
      2000, 'images', stream, clock=lambda: float(next(seconds)))
  with progress:
    for _ in range(6):
      progress.step()
  lines = stream.getvalue().replace('\x1b[K', '\n').split('\n')
  lines = [line.strip('\r') for line in lines if line]
  if is_terminal:  # Every step, 4 s apart, and the end.
    assert len(lines) == 7
    assert lines[0] == (
        '[                    ] 1 / 2,000 images, 0/s, 2 h 13 min left')
    assert stream.getvalue().endswith('\n')
  else:  # Every third, when 10 s are over.
    assert len(lines) == 2
    assert lines[0] == '3 / 2,000 images, 0/s, 2 h 13 min left'
