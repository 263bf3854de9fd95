"""Heads that are trained in one run: each as if it were alone."""

import numpy as np
import pytest

import devices
import imagenet_main
import numpy_resnet
import rule_weights
import small_network
from small_network import HEAD0, IMAGE_SIZE, NUM_CLASSES, TRUNK
from small_network import is_average
from tf_compat import tf
from tiny_checkpoints import read_checkpoint, write_checkpoint

HEADS = {0: HEAD0,
         1: set(rule_weights.head_variables(1, 256, NUM_CLASSES))}
NUM_STEPS, BATCH_SIZE = 3, 4
SEED = 7


def params_of(classifier_ids, **params):
  """A batch of 2560 as far as the rate goes: few steps must make much."""
  return small_network.params(
      batch_size=2560, fine_tune=True, classifier_ids=list(classifier_ids),
      **params)


# ---- Trained together and alone ---------------------------------------------

@pytest.fixture(scope='module')
def trunk(tmp_path_factory):
  """Checkpoint of the trunk, and its values."""
  values = rule_weights.rule_variables(
      rule_weights.resnet_variables(18, 2, NUM_CLASSES))
  return write_checkpoint(tmp_path_factory.mktemp('trunk'), values), values


def train(folder, checkpoint, classifier_ids, num_replicas=1,
          num_batches=NUM_STEPS):
  """Trains from a seed; values by name, of the first and the last step.

  Several replicas need `num_batches` 1: TensorFlow 1.12's take their batches
  from one queue, whoever comes first.
  """
  images = (rule_weights.rule_images(
      num_batches * BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE) -
            np.array(numpy_resnet.CHANNEL_MEANS)).astype(np.float32)
  labels = np.arange(len(images), dtype=np.int32) % NUM_CLASSES
  resolved = devices.resolve(0, BATCH_SIZE, cpu_replicas=num_replicas)
  config = devices.run_config(resolved, SEED, devices.strategy(resolved))
  tf.estimator.Estimator(
      imagenet_main.imagenet_model_fn, str(folder), config, params_of(
          classifier_ids, initial_checkpoint=checkpoint)).train(
              lambda: tf.data.Dataset.from_tensor_slices(
                  (images, labels)).repeat().batch(BATCH_SIZE),
              steps=NUM_STEPS)
  return [read_checkpoint(folder / f'model.ckpt-{step}')
          for step in (0, NUM_STEPS)]


@pytest.fixture(scope='module')
def trained(trunk, tmp_path_factory):
  """First and last values, by the classifiers trained."""
  folder = tmp_path_factory.mktemp('trained')
  return {classifier_ids: train(
      folder / ''.join(map(str, classifier_ids)), trunk[0], classifier_ids)
          for classifier_ids in ((0,), (1,), (0, 1))}


def variables_of_head(k):
  """With the optimizer's slots."""
  return HEADS[k] | {name + '/Momentum' for name in HEADS[k]
                     if not is_average(name)}


def assert_same_training(found, wanted, k):
  """The head's first values to the bit, the last ones to a part of the change.

  Sums may be taken in another order; that made up to 1e-5 of a variable's
  largest change. A gradient taken twice or not at all makes about all of it.
  """
  # Batch normalization takes this bias out again: its gradient is rounding.
  bias = f'resnet_model/cascaded{k}_fc{k}/bias'
  for name in variables_of_head(k):
    np.testing.assert_array_equal(found[0][name], wanted[0][name], name)
    if not name.startswith(bias):
      largest_change = np.abs(wanted[1][name] - wanted[0][name]).max()
      assert largest_change > 1e-4, name
      np.testing.assert_allclose(
          found[1][name], wanted[1][name], rtol=0,
          atol=0.01 * largest_change, err_msg=name)


@pytest.mark.parametrize('k', [0, 1])
def test_a_head_has_the_weights_of_one_trained_alone(trained, k):
  assert_same_training(trained[0, 1], trained[k,], k)


def test_replicas_average_their_gradients(trunk, tmp_path):
  """Two replicas with the same images do what one does with them."""
  one, two = [
      train(tmp_path / str(num_replicas), trunk[0], (0, 1), num_replicas, 1)
      for num_replicas in (1, 2)]
  for k in (0, 1):
    assert_same_training(two, one, k)


def test_the_trunk_is_as_pretrained(trunk, trained):
  for classifier_ids, (_, last) in trained.items():
    of_trunk = set(last) & TRUNK
    assert len(of_trunk) == {0: 43, 1: 64}[max(classifier_ids)]
    for name in of_trunk:
      assert last[name].tobytes() == trunk[1][name].tobytes(), name


# ---- The graph --------------------------------------------------------------
