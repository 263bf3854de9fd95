"""A folder of one's own images: records, then steps 3 and 4 as for ImageNet."""

import json
import os
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

import build_imagenet_tfrecords as builder
import command_line
import imagenet_input
import rule_weights
import verify_records
from shared_dataset import find_shards
from small_network import IMAGE_SIZE
from tf_compat import tf
from tiny_checkpoints import write_checkpoint

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CLASSES = ['ant', 'b\u00e4r', 'cat', 'dog', 'elk', 'fox two']
FORMATS = [('jpg', 'JPEG', {}), ('PNG', 'PNG', {}), ('bmp', 'BMP', {}),
           ('webp', 'WEBP', {'quality': 90}), ('jpeg', 'JPEG', {})]


def draw(class_index, number):
  """A plain image of the class's brightness, which any encoding keeps."""
  level = 20 + 35 * class_index + number
  return Image.new('RGB', (20 + number, 24), (level, level, level))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Five images of each class, one in each format, and what is no image."""
  path = tmp_path_factory.mktemp('own')
  for class_index, name in enumerate(CLASSES):
    (path / 'images' / name).mkdir(parents=True)
    for number, (extension, encoding, options) in enumerate(FORMATS):
      draw(class_index, number).save(
          str(path / 'images' / name / f'image {number}.{extension}'),
          encoding, **options)
  (path / 'images' / 'ant' / 'notes.txt').write_text('of ants')
  (path / 'images' / '.hidden').mkdir()
  return path


@pytest.fixture(scope='module')
def records(folder):
  assert builder.main([
      '--image_folder', str(folder / 'images'), '--validation_fraction', '0.4',
      '--output_dir', str(folder / 'tf_records'), '--train_shards', '3',
      '--validation_shards', '2']) == 0
  return folder / 'tf_records'


def test_records(records):
  """Each image once, whatever its format, with the label of its folder."""
  content = json.loads((records / 'dataset.json').read_text())
  assert content['class_names'] == CLASSES
  assert content['num_classes'] == 7
  assert content['num_images'] == {'train': 18, 'validation': 12}
  assert verify_records.main([str(records), '--verify', 'full']) == 0
  levels = []
  for split in ('train', 'validation'):
    with tf.Graph().as_default(), tf.Session() as session:
      images, labels = session.run(imagenet_input.evaluation_dataset(
          find_shards(str(records), split), 30, image_size=IMAGE_SIZE,
          num_classes=7).make_one_shot_iterator().get_next())
    for level, label in zip(images[:, 16, 16, 0] + 123.68, labels):
      assert label == int(level - 18) // 35 + 1
      levels.append(level)
  expected = [20 + 35 * class_index + number for class_index in range(6)
              for number in range(5)]
  np.testing.assert_allclose(sorted(levels), expected, atol=2.5)


def test_steps_3_and_4(folder, records):
  """As for ImageNet, but for sizes and paths."""
  weights = rule_weights.rule_variables(rule_weights.resnet_variables(18, 2, 7))
  weights['global_step'] = np.int64(0)
  write_checkpoint(folder / 'trunk', weights, 0)
  common = ['--is_cascaded', '-rv', 2, '-rs', 18, '--image_size', IMAGE_SIZE,
            '-bs', 4, '-pmcp', folder / 'trunk', '--data_dir', records,
            '--softmax_dir', folder / 'output_softmax']
  command_line.run('--eval_only', '--classifier_id', 2,
                   '-md', folder / 'clf2', *common)
  command_line.run('--fine_tune', '--te', 1, '--classifier_id', 0,
                   '-md', folder / 'clf0', *common)
  for split, count in (('train', 18), ('validation', 12)):
    name = f'{split}_non_onehot.npy'
    dumped = np.load(str(folder / 'output_softmax' / name))
    assert dumped.shape == (count,)
    np.testing.assert_array_equal(np.load(str(folder / name)), dumped)
  output = subprocess.check_output([
      sys.executable, os.path.join(ROOT, 'analyze_imagenet_labels.py'),
      '-dataset_path', str(folder), '-softmax_dir_to_validate_against',
      str(folder / 'output_softmax')]).decode()
  assert [line.partition(':')[0] for line in output.splitlines()] == [
      'Classifier 0', ' Train top-1', ' Train top-5', ' Test top-1',
      ' Test top-5', 'Classifier 2', ' Train top-1', ' Train top-5',
      ' Test top-1', ' Test top-5']
