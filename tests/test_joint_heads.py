"""Heads that are trained in one run: each as if it were alone."""

import collections
import itertools

import numpy as np
import pytest

import command_line
import devices
import imagenet_main
import numpy_resnet
import rule_weights
from small_network import HEAD0, IMAGE_SIZE, NUM_CLASSES, TRUNK
from small_network import is_average
from tf_compat import tf
from tiny_checkpoints import read_checkpoint, write_checkpoint

MODES = tf.estimator.ModeKeys
HEADS = {0: HEAD0,
         1: set(rule_weights.head_variables(1, 256, NUM_CLASSES))}
NUM_STEPS, BATCH_SIZE = 3, 4
SEED = 7


def call_model_fn(mode, images, labels, classifier_ids, **params):
  return imagenet_main.imagenet_model_fn(
      images, labels, mode, params_of(classifier_ids, **params))


def params_of(classifier_ids, **params):
  """A batch of 2560 as far as the rate goes: few steps must make much."""
  return dict({
      'dtype': tf.float32, 'resnet_size': 18, 'data_format': 'channels_last',
      'batch_size': 2560, 'resnet_version': 2, 'loss_scale': 1,
      'fine_tune': True, 'num_classes': NUM_CLASSES,
      'classifier_ids': list(classifier_ids)}, **params)


# ---- Trained together and alone ---------------------------------------------

@pytest.fixture(scope='module')
def trunk(tmp_path_factory):
  """Checkpoint of the trunk, and its values."""
  values = rule_weights.rule_variables(
      rule_weights.resnet_variables(18, 2, NUM_CLASSES))
  return write_checkpoint(tmp_path_factory.mktemp('trunk'), values), values


def images_and_labels():
  """From memory; for each step a batch."""
  images = (rule_weights.rule_images(
      NUM_STEPS * BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE) -
            np.array(numpy_resnet.CHANNEL_MEANS)).astype(np.float32)
  labels = np.arange(len(images), dtype=np.int32) % NUM_CLASSES
  return images, labels


def train(folder, checkpoint, classifier_ids, num_replicas):
  """Trains from a seed; the checkpoints of the first and the last step."""
  flags_obj = command_line.parse(
      '--random_seed', SEED, '--cpu_replicas', num_replicas)
  config = devices.run_config(
      flags_obj, devices.resolve_devices(flags_obj, 0), 0, distributed=True)
  images, labels = images_and_labels()
  if num_replicas > 1:
    # TensorFlow 1.12's replicas take their batches from one queue, whoever
    # comes first: only of equal ones is it sure which they get.
    images, labels = images[:BATCH_SIZE], labels[:BATCH_SIZE]
  tf.estimator.Estimator(
      imagenet_main.imagenet_model_fn, str(folder), config, params_of(
          classifier_ids, initial_checkpoint=checkpoint)).train(
              lambda: tf.data.Dataset.from_tensor_slices(
                  (images, labels)).repeat().batch(BATCH_SIZE),
              steps=NUM_STEPS)
  return [read_checkpoint(folder / 'model.ckpt-{}'.format(step))
          for step in (0, NUM_STEPS)]


@pytest.fixture(scope='module', params=[1, 2], ids=['alone', 'replicas'])
def trained(trunk, request, tmp_path_factory):
  """(first, last) values by classifiers trained; and the joint folder."""
  folder = tmp_path_factory.mktemp('trained')
  Trained = collections.namedtuple('Trained', 'values joint_folder')
  return Trained({
      classifier_ids: train(
          folder / ''.join(map(str, classifier_ids)), trunk[0], classifier_ids,
          request.param)
      for classifier_ids in ((0,), (1,), (0, 1))}, folder / '01')


def variables_of_head(k):
  """With the optimizer's slots."""
  return HEADS[k] | {name + '/Momentum' for name in HEADS[k]
                     if not is_average(name)}


@pytest.mark.parametrize('k', [0, 1])
def test_a_head_has_the_weights_of_one_trained_alone(trained, k):
  (first, last), (joint_first, joint_last) = (
      trained.values[(k,)], trained.values[(0, 1)])
  # Batch normalization takes this bias out again: its gradient is rounding.
  bias = 'resnet_model/cascaded{0}_fc{0}/bias'.format(k)
  for name in variables_of_head(k):
    np.testing.assert_array_equal(joint_first[name], first[name], name)
    np.testing.assert_allclose(
        joint_last[name], last[name], rtol=1e-5,
        atol=1e-4 if name.startswith(bias) else 1e-6, err_msg=name)
    if not name.startswith(bias):
      assert np.abs(last[name] - first[name]).max() > 1e-4, name


def test_the_trunk_is_as_pretrained(trunk, trained):
  for classifier_ids, (_, last) in trained.values.items():
    of_trunk = set(last) & TRUNK
    assert len(of_trunk) == {0: 43, 1: 64}[max(classifier_ids)]
    for name in of_trunk:
      assert last[name].tobytes() == trunk[1][name].tobytes(), name


def test_nothing_is_kept_that_is_not_needed(trained):
  """The trunk as far as the deepest exit; slots of what is trained alone."""
  for classifier_ids, (_, last) in trained.values.items():
    assert set(last) - TRUNK == {'global_step'}.union(
        *(variables_of_head(k) for k in classifier_ids))


def test_summaries_are_by_head(trained):
  tags = set()
  for path in trained.joint_folder.glob('events.out.tfevents.*'):
    for event in tf.train.summary_iterator(str(path)):
      tags.update(value.tag for value in event.summary.value)
  assert {tag for tag in tags if tag.startswith('training/')} == {
      'training/learning_rate'} | {
          name.format(k) for k in (0, 1) for name in (
              'training/cross_entropy_clf{}', 'training/accuracy_clf{}',
              'training/accuracy_top_5_clf{}')}


# ---- The graph --------------------------------------------------------------

def ops_of_training(classifier_ids):
  with tf.Graph().as_default() as graph:
    tf.train.create_global_step()
    call_model_fn(MODES.TRAIN, tf.zeros([2, IMAGE_SIZE, IMAGE_SIZE, 3]),
                  tf.constant([1, 2]), classifier_ids)
    return graph.get_operations()


def test_the_graph_ends_at_the_deepest_exit():
  ops = ops_of_training([0, 1])
  names = [op.name for op in ops]
  assert 'resnet_model/block_layer3' in names
  assert not [name for name in names
              if 'block_layer4' in name or 'resnet_model/dense' in name]
  # One trunk for both: the first convolution and five of each block layer, and
  # once more where the BN that follows is folded in.
  assert sum(op.type == 'Conv2D' for op in ops) == 1 + 3 * (5 + 2)


def test_the_trunk_has_no_gradient():
  ops = ops_of_training([0, 1])
  assert not [op.name for op in ops if op.type.startswith('Conv2DBackprop')]
  l2_losses = [op for op in ops if op.type == 'L2Loss']
  assert {op.inputs[0].op.name.split('/')[1].split('_')[0]
          for op in l2_losses} == {'cascaded0', 'cascaded1'}
  assert len(l2_losses) == 8  # Kernels and biases of two layers each.


def test_losses_and_metrics_of_each_head():
  """As NumPy has them; the loss is their sum."""
  values = rule_weights.rule_variables(
      rule_weights.cascade_variables(18, 2, NUM_CLASSES))
  images, _ = images_and_labels()
  images, labels = images[:5], np.array([3, 0, 10, 7, -1])  # Padding, last.
  with tf.Graph().as_default(), tf.Session() as session:
    tf.train.create_global_step()
    spec = call_model_fn(MODES.EVAL, tf.constant(images), tf.constant(labels),
                         [0, 1])
    session.run([tf.global_variables_initializer(),
                 tf.local_variables_initializer()], {
                     variable.initial_value: values[variable.op.name]
                     for variable in tf.global_variables()
                     if variable.op.name != 'global_step'})
    loss, _ = session.run([spec.loss, {
        name: update for name, (_, update) in spec.eval_metric_ops.items()}])
    metrics = session.run({
        name: value for name, (value, _) in spec.eval_metric_ops.items()})
  softmaxes = numpy_resnet.softmaxes(values, images, 18, 2)
  labels = labels[:4]
  expected, loss_by_hand = {}, 0
  for k in (0, 1):
    softmax = softmaxes[k][:4]
    best = np.argsort(-softmax, axis=1)
    entropy = -np.log(softmax[np.arange(4), labels]).mean()
    expected['cross_entropy_clf{}'.format(k)] = entropy
    expected['accuracy_clf{}'.format(k)] = (best[:, 0] == labels).mean()
    expected['accuracy_top_5_clf{}'.format(k)] = (
        best[:, :5] == labels[:, np.newaxis]).any(axis=1).mean()
    loss_by_hand += entropy + 1e-4 * sum(
        (values[name].astype(np.float64)**2).sum() / 2 for name in HEADS[k]
        if name.endswith(('/kernel', '/bias')))
  assert set(metrics) - {'loss', 'global_step'} == set(expected)
  for name in expected:
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5,
                               atol=1e-6, err_msg=name)
  np.testing.assert_allclose(loss, loss_by_hand, rtol=1e-5)


# ---- Initial values ---------------------------------------------------------

def initial_values(classifier_ids, seed):
  """Of the kernels of the heads."""
  with tf.Graph().as_default(), tf.Session() as session:
    tf.set_random_seed(seed)
    tf.train.create_global_step()
    call_model_fn(MODES.EVAL, tf.zeros([1, IMAGE_SIZE, IMAGE_SIZE, 3]),
                  tf.constant([1]), classifier_ids)
    kernels = [variable for variable in tf.global_variables()
               if 'cascaded' in variable.op.name and
               variable.op.name.endswith('/kernel')]
    session.run([kernel.initializer for kernel in kernels])
    return dict(zip([kernel.op.name for kernel in kernels],
                    session.run(kernels)))


def test_initial_values_do_not_depend_on_what_is_beside():
  alone = dict(initial_values([0], SEED), **initial_values([1], SEED))
  for classifier_ids in ([0, 1], [0, 1, 2]):
    together = initial_values(classifier_ids, SEED)
    assert set(together) == set(alone) and len(alone) == 4
    for name in alone:
      np.testing.assert_array_equal(together[name], alone[name], name)
  # Any two of the kernels differ, also where they are of one size.
  for one, other in itertools.combinations(alone.values(), 2):
    assert not np.array_equal(one.flat[:100], other.flat[:100])


@pytest.mark.parametrize('seeds', [(SEED, SEED + 1), (None, None)])
def test_initial_values_differ_from_seed_to_seed_and_without(seeds):
  one, other = [initial_values([0, 1], seed) for seed in seeds]
  for name in one:
    assert not np.array_equal(one[name].flat[:100], other[name].flat[:100])
