"""Archives to TFRecords: nothing lost, nothing altered."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import build_imagenet_tfrecords as builder
import image_folder
import imagenet_archives
import record_shards
from image_index import ImageFile, ImageIndex
from tiny_archives import (  # pylint: disable=unused-import
    SYNSETS, Dataset, dataset)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# The shard rule. The reading order is in test_imagenet_input.py.


def test_labels_are_the_published_ones():
  """All 49,920 rows of the paper's label file, through their digest."""
  with open(os.path.join(
      ROOT, 'tests', 'data', 'published_label_order.json')) as opened:
    published = json.load(opened)
  synsets = image_folder.read_lines(os.path.join(
      ROOT, 'Imagenet_tools', 'imagenet_2012_validation_synset_labels.txt'))
  classes = sorted(set(synsets))
  names = imagenet_archives.imagenet_class_names()
  assert sorted(names) == classes and all(names.values())
  images = ImageIndex(classes, [('val.tar', [
      ImageFile(b'ILSVRC2012_val_%08d.JPEG' % i, 512 * i, 100, 0)
      for i in range(50000)], [classes.index(synset) + 1
                               for synset in synsets])])
  sizes = record_shards.images_per_shard(50000, 128, 'published')
  assert sizes == [390] * 128
  # The published records lack the last 80 images.
  labels = record_shards.labels_in_reading_order(
      images.columns['label'],
      record_shards.plan_shards('validation', '', sizes),
      [{'skipped': []}] * 128)
  assert labels.dtype == np.int32 and labels.shape == (published['rows'],)
  assert labels[:5].tolist() == published['first_labels']
  assert hashlib.sha256(labels.astype(published['dtype']).tobytes()).hexdigest(
      ) == published['sha256']


# What is written.


@pytest.mark.parametrize('num_train, num_validation, shards', [
    (3, 1, (1, 1)), (5, 4, (8, 9)), (40, 13, (12, 11))])
def test_every_image_is_in_one_record(
    tmp_path, num_train, num_validation, shards):
  dataset = Dataset(tmp_path, num_train, num_validation).save().build(
      '--train_shards', str(shards[0]), '--validation_shards', str(shards[1]))
  expected = {
      'train': sum(dataset.train.values(), []), 'validation':
      dataset.validation}
  for split, num_shards in zip(('train', 'validation'), shards):
    assert [os.path.basename(path) for path in dataset.shards(split)] == [
        f'{split}-{i:05d}-of-{num_shards:05d}'
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
    name = f'val_{i:04d}.JPEG'
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
  assert capsys.readouterr().err.endswith(
      'the last 3 training and 1 validation images are left out\n')
  assert len(dataset.records('train')) == 8
  assert [record['image/filename'][0] for record in dataset.records(
      'validation')] == [b'val_0000.JPEG', b'val_0002.JPEG', b'val_0001.JPEG',
                         b'val_0003.JPEG']


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


def test_class_names_of_imagenet(tmp_path):
  """Records name ImageNet's classes; see above for made-up synsets."""
  dataset = Dataset(tmp_path)
  names = dict(zip(SYNSETS, ('n01440764', 'n01443537', 'n01484850')))
  dataset.train = {names[synset]: files
                   for synset, files in dataset.train.items()}
  dataset.labels = [names[synset] for synset in dataset.labels]
  dataset.save().build()
  class_names = ['tench', 'goldfish', 'great white shark']
  assert read_dataset_json(dataset)['class_names'] == class_names
  for record in dataset.records('train') + dataset.records('validation'):
    label, = record['image/class/label']
    assert record['image/class/text'] == [class_names[label - 1].encode()]


def test_class_names_of_a_file(dataset, capsys):
  names = dataset.path('names.txt')
  dataset.write('names.txt', b'n01440764\n')
  assert builder.main(dataset.arguments('--class_names', names)) == 1
  assert f'{names}: ' in capsys.readouterr().err
  dataset.write('names.txt', ''.join(
      f'{synset} the {synset}\n' for synset in SYNSETS).encode())
  dataset.build('--class_names', names)
  assert read_dataset_json(dataset)['class_names'] == [
      f'the {synset}' for synset in SYNSETS]


def test_nothing_here_needs_tensorflow(dataset):
  code = ('import sys; sys.modules["tensorflow"] = None\n'
          'import build_imagenet_tfrecords as builder, verify_records\n'
          f'assert builder.main({dataset.arguments("--verify", "full")}) == 0\n'
          f'assert verify_records.main([{dataset.output!r}]) == 0')
  subprocess.check_call(
      [sys.executable, '-c', code], cwd=os.path.dirname(builder.__file__))
