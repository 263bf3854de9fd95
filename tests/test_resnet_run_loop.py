"""Schedules, cycles, the model function's losses and steps."""

import types

import numpy as np
import pytest

import devices
import distributed
import imagenet_main
import numpy_resnet
import resnet_run_loop
import rule_weights
import small_network
from resnet_checkpoint import CheckpointPaths
from small_network import HEAD0, IMAGE_SIZE, NUM_CLASSES, TRUNK
from small_network import is_average
from tf_compat import tf

MODES = tf.estimator.ModeKeys
WEIGHT_DECAY = 1e-4


def rule_values():
  """Weights for the trunk and both heads of ResNet-18."""
  return rule_weights.rule_variables(
      rule_weights.cascade_variables(18, 2, NUM_CLASSES))


# ---- Schedules ---------------------------------------------------------------

@pytest.mark.parametrize('params, steps_and_rates', [
    # 0.128 for 256 images, 5 epochs of warm-up; falls at 30, 60, 80, 90. An
    # epoch has 1281167 / 256 = 5004.56 steps; the rate falls after the last
    # whole step of its epoch.
    (dict(batch_size=256, fine_tune=False), [
        (0, 0.), (1, 0.128 / 25022), (12511, 0.064),
        (25021, 0.128 * 25021 / 25022), (25022, 0.128), (25023, 0.128),
        (150136, 0.128), (150137, 0.0128), (300273, 0.0128), (300274, 0.00128),
        (400364, 0.00128), (400365, 0.000128), (450410, 0.000128),
        (450411, 0.0000128), (10**7, 0.0000128)]),
    # To fine-tune: 0.01 for 256 images, no warm-up; falls at 10, 20, 30, 40.
    (dict(batch_size=256, fine_tune=True), [
        (0, 0.01), (1, 0.01), (50045, 0.01), (50046, 0.001), (100091, 0.001),
        (100092, 0.0001), (150136, 0.0001), (150137, 0.00001),
        (200182, 0.00001), (200183, 0.000001), (10**7, 0.000001)]),
    # It scales with the batch and the data.
    (dict(batch_size=512, fine_tune=False, num_train_images=5120), [
        (0, 0), (25, 0.128), (49, 0.25088), (50, 0.256), (300, 0.256),
        (301, 0.0256)])])
def test_schedules(monkeypatch, params, steps_and_rates):
  """The learning rate function that `imagenet_model_fn` passes on."""
  monkeypatch.setattr(resnet_run_loop, 'resnet_model_fn',
                      lambda **kwargs: kwargs)
  arguments = imagenet_main.imagenet_model_fn(None, None, MODES.TRAIN, dict({
      'dtype': tf.float32, 'resnet_size': 50, 'data_format': 'channels_last',
      'resnet_version': 2, 'loss_scale': 1}, **params))
  assert arguments['momentum'] == 0.9
  assert arguments['weight_decay'] == WEIGHT_DECAY
  with tf.Graph().as_default(), tf.Session() as session:
    step = tf.placeholder(tf.int64, [])
    rate = arguments['learning_rate_fn'](step)
    for value, expected in steps_and_rates:
      # float32, with a step of 6e-8.
      assert session.run(rate, {step: value}) == pytest.approx(
          expected, rel=1e-5)


# ---- Cycles of training and evaluation ---------------------------------------

@pytest.fixture
def calls(monkeypatch):
  """What a run asks of its Estimator; evaluation returns `accuracies`.

  12 images, batches of 4: an epoch has 3 steps.
  """
  class Calls(list):
    accuracies = iter([])

    def of(self, folder, epochs, **kwargs):
      del self[:]
      settings = types.SimpleNamespace(**dict(
          dict(epochs=epochs, epochs_between_evals=1, max_steps=None,
               stop_threshold=None, hook_names=[]), **kwargs))
      run = types.SimpleNamespace(
          classifier_ids=[0, 1], checkpoints=CheckpointPaths(str(folder)),
          devices=devices.resolve(0, 4), cluster=distributed.ONE_MACHINE,
          batch_size=4, num_images={'train': 12}, random_seed=5, log_dir=None,
          train=settings, dump=kwargs.get('dump'))
      results = resnet_run_loop._train(
          run, lambda strategy: FakeEstimator(), lambda **kwargs: kwargs)
      return list(self), results

  calls = Calls()

  class FakeEstimator:

    def train(self, input_fn, hooks, max_steps):
      calls.append(('train', max_steps))

  def evaluate(run, *unused):
    calls.append('evaluate')
    clf0, clf1 = next(calls.accuracies, (0., 0.))
    return {'validation': {'clf0': (clf0, 1.), 'clf1': (clf1, 1.)}}

  monkeypatch.setattr(resnet_run_loop, '_evaluate', evaluate)
  return calls


TRAIN_6 = [('train', 3), 'evaluate', ('train', 6), 'evaluate']


@pytest.mark.parametrize('epochs, settings, expected', [
    (2, {}, TRAIN_6),
    (3, dict(epochs_between_evals=2), [('train', 6), 'evaluate', ('train', 9),
                                       'evaluate']),
    # Where dumps follow, they tell the last accuracies.
    (2, dict(dump='a job'), TRAIN_6[:-1]),
])
def test_cycles(tmp_path, calls, epochs, settings, expected):
  assert calls.of(tmp_path, epochs, **settings)[0] == expected


def test_stop_threshold_waits_for_all_heads(tmp_path, calls):
  """The worse of two heads reaches it last."""
  calls.accuracies = iter([(0.7, 0.9), (0.9, 0.7499), (0.75, 0.8), (1., 1.)])
  made, results = calls.of(tmp_path, 90, stop_threshold=0.75)
  assert made == [('train', 3), 'evaluate', ('train', 6), 'evaluate',
                  ('train', 9), 'evaluate']
  assert results['validation']['clf0'] == (0.75, 1.)


# ---- The model function ------------------------------------------------------

def call_model_fn(mode, images, labels, **params):
  tf.train.create_global_step()
  return imagenet_main.imagenet_model_fn(
      images, labels, mode, small_network.params(**params))


def initialize(session):
  """Gives every variable that has one its value by rule."""
  values = rule_values()
  session.run(tf.global_variables_initializer(), {
      variable.initial_value: values[variable.op.name]
      for variable in tf.global_variables()
      if variable.op.name in values and variable.op.name != 'global_step'})


def some_images(count):
  return (rule_weights.rule_images(count, IMAGE_SIZE, IMAGE_SIZE) -
          np.array(numpy_resnet.CHANNEL_MEANS)).astype(np.float32)


def test_without_fine_tuning_everything_is_trained():
  """What fine-tuning changes: test_whole_runs.py."""
  with tf.Graph().as_default():
    call_model_fn(MODES.TRAIN, tf.zeros([2, IMAGE_SIZE, IMAGE_SIZE, 3]),
                  tf.constant([1, 2]), dtype=tf.float16, classifier_ids=[2])
    assert {variable.op.name[:-len('/Momentum')]
            for variable in tf.global_variables()
            if variable.op.name.endswith('/Momentum')} == {
                name for name in TRUNK if not is_average(name)}
    assert len(tf.get_collection(tf.GraphKeys.UPDATE_OPS)) == sum(
        is_average(name) for name in TRUNK)


@pytest.mark.parametrize('fine_tune, classifier_id', [(True, 0), (False, 2)])
def test_loss_and_metrics_by_hand(fine_tune, classifier_id):
  """Cross-entropy of the images; L2 of kernels and biases that are trained."""
  images = some_images(6)
  labels = np.array([3, 0, 10, 7, -1, -1], np.int32)  # The last two: padding.
  with tf.Graph().as_default(), tf.Session() as session:
    spec = call_model_fn(MODES.EVAL, tf.constant(images), tf.constant(labels),
                         fine_tune=fine_tune, classifier_ids=[classifier_id])
    initialize(session)
    session.run(tf.local_variables_initializer())
    loss, _ = session.run([spec.loss, {
        name: update for name, (_, update) in spec.eval_metric_ops.items()}])
    metrics = session.run({
        name: value for name, (value, _) in spec.eval_metric_ops.items()})
  values = rule_values()
  softmax = numpy_resnet.softmaxes(values, images, 18, 2)[classifier_id][:4]
  labels = labels[:4]
  cross_entropy = -np.log(softmax[np.arange(4), labels]).mean()
  prefix = (f'resnet_model/cascaded{classifier_id}_'
            if classifier_id < 2 else 'resnet_model/dense/')
  decayed = [name for name in values if name.startswith(prefix) and
             name.endswith(('/kernel', '/bias'))]
  if not fine_tune:
    # ResNet-18: a first convolution, and five in each block layer.
    num_convolutions = 1 + 5 * 4
    decayed += ['resnet_model/conv2d/kernel'] + [
        f'resnet_model/conv2d_{i}/kernel' for i in range(1, num_convolutions)]
  l2_loss = sum((values[name].astype(np.float64)**2).sum() / 2
                for name in decayed)
  assert WEIGHT_DECAY * l2_loss > 1e-3  # Else it would not be seen.
  # Sums of float32. Seen: 5e-7.
  np.testing.assert_allclose(loss, cross_entropy + WEIGHT_DECAY * l2_loss,
                             rtol=1e-5)
  best = np.argsort(-softmax, axis=1)
  np.testing.assert_allclose(
      metrics['accuracy'], (best[:, 0] == labels).mean(), atol=1e-6)
  np.testing.assert_allclose(
      metrics['accuracy_top_5'],
      (best[:, :5] == labels[:, np.newaxis]).any(axis=1).mean(), atol=1e-6)
  np.testing.assert_allclose(metrics['cross_entropy'], cross_entropy,
                             rtol=1e-5)


def test_a_step_follows_the_gradient():
  """Of head 0, which is fine-tuned."""
  with tf.Graph().as_default(), tf.Session() as session:
    spec = call_model_fn(
        MODES.TRAIN, tf.constant(some_images(6)),
        tf.constant([3, 0, 10, 7, 1, 2]), fine_tune=True, classifier_ids=[0],
        loss_scale=128)
    trained = [variable for variable in tf.trainable_variables()
               if 'cascaded0' in variable.op.name]
    gradients = tf.gradients(spec.loss, trained)
    rate = tf.get_default_graph().get_tensor_by_name('learning_rate:0')
    initialize(session)
    variables = {variable.op.name: variable
                 for variable in tf.global_variables()}
    before = session.run(variables)
    gradients, rate = session.run([
        dict(zip([variable.op.name for variable in trained], gradients)), rate])
    session.run(spec.train_op)
    after = session.run(variables)
  assert rate == np.float32(0.01)
  assert after['global_step'] == before['global_step'] + 1
  for name in HEAD0 - set(gradients):
    assert is_average(name) and not np.array_equal(before[name], after[name])
  for name, gradient in gradients.items():
    # One product and one sum: rounding is of 1e-7.
    np.testing.assert_allclose(after[name], before[name] - rate * gradient,
                               rtol=1e-5, atol=1e-7)
    assert not np.array_equal(after[name], before[name])
  for name in set(before) & TRUNK:
    np.testing.assert_array_equal(after[name], before[name])
