"""The dumps' softmaxes against an independent evaluation, to 1e-5.

ResNet-50 v2 at 224 pixels with 1001 classes and weights made from a rule,
through step 3 and back from the dumps, next to float64 NumPy that knows nothing
of our code.
"""

import os

import numpy as np
import pytest

import command_line
import numpy_resnet
import rule_weights
import shared_dumps
import tiny_checkpoints
import tiny_records
from tf_compat import tf

NUM_CLASSES = 1001
SPLIT_SHARDS = {'train': [1, 1], 'validation': [3, 2]}  # All kinds of image.


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A folder of records and a checkpoint of trunk and heads."""
  folder = str(tmp_path_factory.mktemp('rule'))
  rows = tiny_records.make_data_set(
      os.path.join(folder, 'tf_records'), SPLIT_SHARDS, NUM_CLASSES)
  variables = rule_weights.rule_variables(
      rule_weights.cascade_variables(50, 2, NUM_CLASSES))
  # One checkpoint holds everything: each command takes what it needs.
  tiny_checkpoints.write_checkpoint(
      os.path.join(folder, 'everything'), variables)
  return folder, rows, variables


@pytest.fixture(scope='module')
def dumps(data):
  folder, _, _ = data
  softmax_dir = os.path.join(folder, 'output_softmax')
  command_line.run(
      '--eval_only', '--is_cascaded', '--classifier_id', '0,1,2',
      '--data_format', 'channels_first', '-rv', '2', '-rs', '50',
      '-md', os.path.join(folder, 'run'),
      '-pmcp', os.path.join(folder, 'everything'),
      '--data_dir', os.path.join(folder, 'tf_records'),
      '--softmax_dir', softmax_dir, '--num_gpus', '0')
  return softmax_dir


def reference(rows, variables):
  """float64 softmaxes of the images of `rows`, a dict from classifier."""
  with tf.Graph().as_default(), tf.Session() as session:
    encoded = tf.placeholder(tf.string, [])
    # TensorFlow decodes: libjpeg's and Pillow's grey levels differ by a few.
    decoded = tf.image.decode_jpeg(encoded, channels=3)
    pixels = [session.run(decoded, {encoded: jpeg}) for jpeg, _ in rows]
  images = np.stack([numpy_resnet.preprocess_for_eval(image)
                     for image in pixels])
  return numpy_resnet.softmaxes(variables, images)


@pytest.mark.parametrize('split', ['validation', 'train'])
def test_dumps_equal_numpy(data, dumps, split):
  _, rows, variables = data
  expected = reference(rows[split], variables)
  for k in range(3):
    dumped = np.concatenate([
        np.load(os.path.join(dumps, name))
        for name in shared_dumps.probabilities_file_names(k, split)])
    assert dumped.dtype == np.float32
    np.testing.assert_allclose(dumped, expected[k], rtol=0, atol=1e-5)
    # Softmaxes worth comparing: no two images alike, nothing near uniform.
    assert dumped.max(axis=1).min() > 3 / NUM_CLASSES
    assert np.abs(dumped[0] - dumped[1]).max() > 1e-3
