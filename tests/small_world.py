"""A tiny data set and a pretrained trunk, and runs of the command line on them.

ResNet-18 v2 at 32 pixels, 11 classes: the small network of many tests.
"""

import glob
import typing

import numpy as np

import command_line
import imagenet_input
import rule_weights
import tiny_records
from small_network import IMAGE_SIZE, NUM_CLASSES
from tf_compat import tf
from tiny_checkpoints import write_checkpoint

TRUNK_STEP = 225207
SPLIT_SHARDS = {'train': [5, 4, 4], 'validation': [4, 3, 4]}


class World(typing.NamedTuple):
  """A folder with `tf_records/` and `trunk/`, and what they hold."""
  folder: typing.Any      # A pathlib.Path.
  rows: dict              # From split to (jpeg, label)s in reading order.
  weights: dict           # Of the trunk, from name to array.

  def run(self, *args):
    """The results of `imagenet_main.run_imagenet`; later flags win."""
    return command_line.run(
        '--data_dir', self.folder / 'tf_records', '-rs', 18, '-rv', 2,
        '--image_size', IMAGE_SIZE, '-bs', 4, '-pmcp', self.folder / 'trunk',
        *args)

  def preprocessed(self, split):
    """The images of a split in reading order, as the network gets them."""
    with tf.Graph().as_default(), tf.Session() as session:
      shards = sorted(glob.glob(str(self.folder / 'tf_records' / split / '*')))
      images, _ = imagenet_input.evaluation_dataset(
          shards, 100, image_size=IMAGE_SIZE,
          num_classes=NUM_CLASSES).make_one_shot_iterator().get_next()
      return session.run(images)


def make(folder, split_shards=SPLIT_SHARDS):
  """Makes a `World` in a folder."""
  rows = tiny_records.make_data_set(
      str(folder / 'tf_records'), split_shards, NUM_CLASSES)
  weights = rule_weights.rule_variables(
      rule_weights.resnet_variables(18, 2, NUM_CLASSES))
  weights['global_step'] = np.int64(TRUNK_STEP)
  write_checkpoint(folder / 'trunk', weights, TRUNK_STEP)
  # As if downloaded.
  (folder / 'trunk' / 'checkpoint').write_text(
      f'model_checkpoint_path: "/somewhere/else/model.ckpt-{TRUNK_STEP}"\n')
  return World(folder, rows, weights)


def accuracies(softmaxes, labels):
  """Top-1 and top-5 accuracy, fractions."""
  labels = np.asarray(labels)[:, np.newaxis]
  hits = np.argsort(-softmaxes, axis=1)[:, :5] == labels
  return hits[:, 0].mean(), hits.any(axis=1).mean()
