"""A folder of one's own images, from files to what the network reads."""

import json

import numpy as np
from PIL import Image

import build_imagenet_tfrecords as builder
import imagenet_input
import verify_records
from shared_dataset import find_shards
from small_network import IMAGE_SIZE
from tf_compat import tf

CLASSES = ['ant', 'b\u00e4r', 'cat', 'dog', 'elk', 'fox two']
FORMATS = [('jpg', 'JPEG', {}), ('PNG', 'PNG', {}), ('bmp', 'BMP', {}),
           ('webp', 'WEBP', {'quality': 90}), ('jpeg', 'JPEG', {})]


def draw(class_index, number):
  """A plain image of the class's brightness, which any encoding keeps."""
  level = 20 + 35 * class_index + number
  return Image.new('RGB', (20 + number, 24), (level, level, level))


def make_images(path):
  """Five images of each class, one in each format, and what is no image."""
  for class_index, name in enumerate(CLASSES):
    (path / name).mkdir(parents=True)
    for number, (extension, encoding, options) in enumerate(FORMATS):
      draw(class_index, number).save(
          str(path / name / f'image {number}.{extension}'), encoding, **options)
  (path / 'ant' / 'notes.txt').write_text('of ants')
  (path / '.hidden').mkdir()


def test_records(tmp_path):
  """Each image once, whatever its format, with the label of its folder."""
  make_images(tmp_path / 'images')
  records = tmp_path / 'tf_records'
  assert builder.main([
      '--image_folder', str(tmp_path / 'images'), '--validation_fraction',
      '0.4', '--output_dir', str(records), '--train_shards', '3',
      '--validation_shards', '2']) == 0
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
