"""Small archives like ImageNet's for tests, and the builder's command line."""

import collections
import io
import os
import tarfile

import numpy as np
from PIL import Image
import pytest

import build_imagenet_tfrecords as builder

SYNSETS = ('n00000003', 'n00000012', 'n00000100')


def encode(seed, mode='RGB', file_format='JPEG', size=(9, 7)):
  pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3))
  image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
  encoded = io.BytesIO()
  image.save(encoded, file_format)
  return encoded.getvalue()


def tar_bytes(files):
  """A tar of `files`, pairs of a name and bytes."""
  target = io.BytesIO()
  with tarfile.open(fileobj=target, mode='w') as tar:
    for name, data in files:
      member = tarfile.TarInfo(name)
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  return target.getvalue()


class Dataset:
  """Small archives in a folder, and the builder's command line for them."""

  def __init__(self, folder, num_train=11, num_validation=5):
    self.folder = str(folder)
    self.output = os.path.join(self.folder, 'tf_records')
    self.train = collections.OrderedDict((synset, []) for synset in SYNSETS)
    for i in range(num_train):
      synset = SYNSETS[i % 3]
      self.train[synset].append(
          (f'{synset}_{i}.JPEG', encode(i, size=(9 + i % 4, 7))))
    self.validation = [(f'val_{i:04d}.JPEG', encode(1000 + i))
                       for i in range(num_validation)]
    self.labels = [SYNSETS[i * 2 % 3] for i in range(num_validation)]

  def path(self, *names):
    return os.path.join(self.folder, *names)

  def write(self, name, data):
    with open(self.path(name), 'wb') as target:
      target.write(data)

  def save(self):
    self.write('train.tar', tar_bytes(
        (synset + '.tar', tar_bytes(files))
        for synset, files in self.train.items()))
    self.write('val.tar', tar_bytes(self.validation))
    self.write('labels.txt', ''.join(
        label + '\n' for label in self.labels).encode())
    return self

  def arguments(self, *more):
    return ['--train_archive', self.path('train.tar'),
            '--validation_archive', self.path('val.tar'),
            '--validation_labels', self.path('labels.txt'),
            '--output_dir', self.output,
            '--train_shards', '4', '--validation_shards', '2'] + list(more)

  def build(self, *more):
    assert builder.main(self.arguments(*more)) == 0
    return self

  def shards(self, split):
    folder = os.path.join(self.output, split)
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder))
            if not name.startswith('.')]

  def records(self, split):
    """All records as dicts, in the order of an evaluation pass."""
    from tf_compat import tf  # Only here, for environments without.

    with tf.Graph().as_default(), tf.Session() as session:
      dataset = tf.data.Dataset.from_tensor_slices(self.shards(split))
      record = dataset.interleave(
          tf.data.TFRecordDataset, cycle_length=10, block_length=1,
      ).make_one_shot_iterator().get_next()
      records = []
      while True:
        try:
          example = tf.train.Example.FromString(session.run(record))
        except tf.errors.OutOfRangeError:
          return records
        records.append({
            name: list(getattr(feature, feature.WhichOneof('kind')).value)
            for name, feature in example.features.feature.items()})

  def written_labels(self, split):
    return np.load(self.path(split + '_non_onehot.npy'), allow_pickle=False)

  def files(self):
    return sorted(os.path.join(folder, name)
                  for folder, _, names in os.walk(self.folder)
                  for name in names)


@pytest.fixture
def dataset(tmp_path):
  return Dataset(tmp_path).save()


def check_error(capsys, dataset, *words, **kwargs):
  """The builder must fail with one line that has all `words`, and leave the
  files as they are."""
  before = dataset.files()
  capsys.readouterr()
  assert builder.main(dataset.arguments(*kwargs.get('arguments', ()))) == 1
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and error.endswith('\n'), error
  assert 'Traceback' not in error
  for word in words:
    assert word in error, error
  assert dataset.files() == before
