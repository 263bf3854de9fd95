"""All exits over a dataset: by any number of replicas the same rows."""

import collections

import numpy as np
import pytest

import exit_weights
import numpy_resnet
import resnet_run_loop
import rule_weights
from exit_session import ExitSession
from imagenet_main import ImagenetModel
from small_network import IMAGE_SIZE, NUM_CLASSES
from tf_compat import tf
from tiny_checkpoints import write_checkpoint

NUM_IMAGES = 7
SHAPE = [IMAGE_SIZE, IMAGE_SIZE, 3]
IMAGES = (rule_weights.rule_images(NUM_IMAGES, IMAGE_SIZE, IMAGE_SIZE) -
          np.array(numpy_resnet.CHANNEL_MEANS)).astype(np.float32)
LABELS = np.array([3, 0, 10, 7, 1, 1, 2], np.int32)
VALUES = rule_weights.rule_variables(
    rule_weights.cascade_variables(18, 2, NUM_CLASSES))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  return write_checkpoint(tmp_path_factory.mktemp('all'), VALUES)


@pytest.fixture(scope='module')
def expected():
  return numpy_resnet.softmaxes(VALUES, IMAGES, 18, 2)


def batches_of(batch_size):
  """A dataset of the images, of which `run` may leave out the first."""
  def dataset():
    num_skipped = tf.placeholder(tf.int64, [])
    return (tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))
            .skip(num_skipped).batch(batch_size), {'num_skipped': num_skipped})
  return dataset


def open_session(checkpoint, num_replicas=1, batch_size=4,
                 classifier_ids=(0, 1, 2), dtype=tf.float32,
                 checkpoint_of=None):
  """An `ExitSession`; `checkpoint_of` names variables of other checkpoints."""
  model = ImagenetModel(18, 'channels_last', NUM_CLASSES, 2, dtype)
  exit_shapes = collections.OrderedDict(
      (k, resnet_run_loop.exit_variable_shapes(model, k, SHAPE))
      for k in classifier_ids)
  weights = exit_weights.of_one_checkpoint(checkpoint, exit_shapes)
  weights.checkpoint_of.update(checkpoint_of or {})
  return ExitSession(
      model, classifier_ids, batches_of(batch_size), weights,
      ['/cpu:{}'.format(i) for i in range(num_replicas)],
      tf.ConfigProto(device_count={'CPU': num_replicas}))


def rows_of(session, num_skipped=0):
  """Sizes of the batches, labels, and outputs by classifier of all rows."""
  batches = list(session.run(num_skipped=num_skipped))
  outputs = {
      k: tuple(np.concatenate([outputs[k][i] for _, outputs in batches])
               for i in range(3)) for k in batches[0][1]}
  return ([len(labels) for labels, _ in batches],
          np.concatenate([labels for labels, _ in batches]), outputs)


@pytest.fixture(scope='module')
def one_replica(checkpoint):
  with open_session(checkpoint, batch_size=NUM_IMAGES) as session:
    return rows_of(session)[2]


def test_one_replica_gives_what_numpy_does(one_replica, expected):
  for k in (0, 1, 2):
    probabilities, top5_classes, top5_probabilities = one_replica[k]
    assert probabilities.dtype == top5_probabilities.dtype == np.float32
    assert top5_classes.dtype == np.int32
    np.testing.assert_allclose(probabilities, expected[k], atol=1e-5)
    best = np.argsort(-probabilities, axis=1, kind='mergesort')[:, :5]
    np.testing.assert_array_equal(top5_classes, best)
    np.testing.assert_array_equal(
        top5_probabilities, probabilities[np.arange(NUM_IMAGES)[:, None], best])
  # Rows worth comparing: any two are unlike.
  distances = np.abs(expected[2][:, None] - expected[2]).max(axis=2)
  assert (distances + np.eye(NUM_IMAGES)).min() > 1e-3


@pytest.mark.parametrize('num_replicas, batch_size, sizes', [
    (2, 5, [5, 2]),  # A batch does not divide.
    (3, 6, [6, 1]),  # The last batch is smaller than the replicas are many.
])
def test_replicas_give_the_same_rows(checkpoint, one_replica, num_replicas,
                                     batch_size, sizes):
  with open_session(checkpoint, num_replicas, batch_size) as session:
    found_sizes, labels, outputs = rows_of(session)
  assert found_sizes == sizes
  assert labels.tolist() == LABELS.tolist()
  assert list(outputs) == [0, 1, 2]
  for k in outputs:
    for found, wanted in zip(outputs[k], one_replica[k]):
      assert found.shape == wanted.shape and found.dtype == wanted.dtype
      # Rounding: a batch of another size is convolved in another order.
      np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-6)


def test_each_replica_is_on_its_device_with_all_weights(checkpoint):
  """Every variable of every replica has the checkpoint's value."""
  with open_session(checkpoint, 2) as session:
    graph = session._session.graph
    convolutions = collections.Counter(
        (op.name.split('/')[0], op.device) for op in graph.get_operations()
        if op.type == 'Conv2D')
    assert {name: device[-5:] for name, device in convolutions} == {
        'replica_{}'.format(i): 'CPU:{}'.format(i) for i in range(2)}
    shared = {(op.type, op.device[-5:]) for op in graph.get_operations()
              if op.type in ('Split', 'ConcatV2') and
              not op.name.startswith('replica_')}
    assert shared == {('Split', 'CPU:0'), ('ConcatV2', 'CPU:0')}
    with graph.as_default():
      variables = tf.global_variables()
    found = session._session.run(variables)
    assert len(variables) == 2 * (len(VALUES) - 1)  # No global step.
    for variable, value in zip(variables, found):
      name = variable.op.name.split('/', 1)[1]
      np.testing.assert_array_equal(value, VALUES[name], variable.op.name)


def test_weights_of_several_checkpoints(checkpoint, expected, tmp_path):
  """One head from elsewhere: that one changes, and nothing else does."""
  head = {name: value for name, value in VALUES.items()
          if name.startswith('resnet_model/cascaded0_')}
  head['resnet_model/cascaded0_fc00/bias'] = np.arange(
      NUM_CLASSES, dtype=np.float32)
  own = write_checkpoint(tmp_path, head)
  with open_session(checkpoint, classifier_ids=[0, 1], checkpoint_of={
      name: own for name in head}) as session:
    _, _, outputs = rows_of(session)
  changed = numpy_resnet.softmaxes(dict(VALUES, **head), IMAGES, 18, 2)[0]
  assert np.abs(changed - expected[0]).max() > 0.01
  np.testing.assert_allclose(outputs[0][0], changed, atol=1e-5)
  np.testing.assert_allclose(outputs[1][0], expected[1], atol=1e-5)


def test_half_precision(checkpoint, expected):
  with open_session(checkpoint, classifier_ids=[0, 1],
                    dtype=tf.float16) as session:
    _, _, outputs = rows_of(session)
  for k in outputs:
    probabilities, top5_classes, top5_probabilities = outputs[k]
    assert probabilities.dtype == top5_probabilities.dtype == np.float32
    assert top5_classes.dtype == np.int32
    np.testing.assert_allclose(probabilities, expected[k], atol=0.02)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_it_runs_again_over_other_rows(checkpoint, one_replica):
  """As for the second split, and where a killed run goes on."""
  with open_session(checkpoint, 1, 4, [0]) as session:
    for num_skipped in (5, 0):
      _, labels, outputs = rows_of(session, num_skipped)
      assert list(outputs) == [0]
      assert labels.tolist() == LABELS[num_skipped:].tolist()
      np.testing.assert_allclose(
          outputs[0][0], one_replica[0][0][num_skipped:], rtol=0, atol=5e-6)
    assert list(session.run(num_skipped=NUM_IMAGES)) == []
