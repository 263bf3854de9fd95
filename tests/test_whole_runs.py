"""Whole runs of `run_imagenet` on tiny records: what they change and leave.

Fine-tuning, evaluation, dumps, export, going on; by one replica and several.
"""

import collections
import glob
import json
import logging
import os
import shutil

import numpy as np
import pytest

import command_line
import imagenet_input
import imagenet_main
import numpy_resnet
import rule_weights
import tf_compat
import tiny_records
import training_hooks
from small_network import DENSE, HEAD0, IMAGE_SIZE, NUM_CLASSES, TRUNK
from small_network import is_average
from tf_compat import tf
from tiny_checkpoints import read_checkpoint, write_checkpoint
from user_error import UserError

NUM_TRAIN, NUM_VALIDATION = 13, 11
# 13 images and batches of 4: two epochs end in the middle of a batch.
STEPS_OF_1_EPOCH, STEPS_OF_2_EPOCHS = 4, 7


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """A data set, its images, and a pretrained trunk, as if downloaded."""
  folder = tmp_path_factory.mktemp('world')
  rows = tiny_records.make_data_set(
      str(folder / 'data'), {'train': [5, 4, 4], 'validation': [4, 3, 4]},
      NUM_CLASSES)
  weights = rule_weights.rule_variables(
      rule_weights.resnet_variables(18, 2, NUM_CLASSES))
  weights['global_step'] = np.int64(225207)
  write_checkpoint(folder / 'trunk', weights, 225207)
  (folder / 'trunk' / 'checkpoint').write_text(
      'model_checkpoint_path: "/somewhere/else/model.ckpt-225207"\n')
  World = collections.namedtuple('World', 'folder rows weights')
  return World(folder, rows, weights)


def run(world, name, *args):
  """Runs with its own model and dump folder; (results, model folder)."""
  model_dir = world.folder / name
  results = command_line.run(
      '--data_dir', world.folder / 'data', '-rs', 18, '-rv', 2, '--image_size',
      IMAGE_SIZE, '-bs', 4, '-md', model_dir, '--softmax_dir',
      str(model_dir) + '_softmax', '-pmcp', world.folder / 'trunk', *args)
  return results, model_dir


def checkpoint(model_dir, step):
  return read_checkpoint(model_dir / 'model.ckpt-{}'.format(step))


def dumped(model_dir, classifier_id, split='validation'):
  """(softmaxes, labels) of a run."""
  folder = str(model_dir) + '_softmax'
  infix = '' if split == 'validation' else 'train_1of3_'
  return (np.load(os.path.join(folder, 'clf{}_{}all_probabilities.npy'.format(
      classifier_id, infix))), np.load(os.path.join(
          folder, '{}_non_onehot.npy'.format(split))))


def accuracies(softmaxes, labels):
  best = np.argsort(-softmaxes, axis=1)
  return ((best[:, 0] == labels).mean(),
          (best[:, :5] == labels[:, np.newaxis]).any(axis=1).mean())


class ReplicaValues(tf.train.SessionRunHook):
  """Reads every variable of every replica, at the start of the first session.

  Also where the convolutions of the second step were run.
  """

  def __init__(self):
    self.start, self.end_values = None, None
    self.devices = collections.Counter()
    self._num_runs = 0

  @staticmethod
  def _values(session):
    graph = session.graph
    tensors = {}
    for op in graph.get_operations():
      if op.name.startswith('resnet_model/'):
        if op.type == 'VariableV2':
          tensors[op.name] = op.outputs[0]
        elif op.type == 'VarHandleOp':
          tensors[op.name] = graph.get_tensor_by_name(
              op.name + '/Read/ReadVariableOp:0')
    return session.run(tensors)

  def after_create_session(self, session, coord):
    if self.start is None:
      self.start = self._values(session)

  def before_run(self, run_context):
    self._num_runs += 1
    options = tf.RunOptions(trace_level=tf.RunOptions.FULL_TRACE)
    return tf.train.SessionRunArgs(
        [], options=options if self._num_runs == 2 else None)

  def after_run(self, run_context, run_values):
    if self._num_runs == 2:
      for device in run_values.run_metadata.step_stats.dev_stats:
        self.devices[device.device.split(':', 2)[-1]] += sum(
            'Conv2D' in node.node_name for node in device.node_stats)

  def end(self, session):
    self.end_values = self._values(session)


@pytest.fixture(scope='module')
def fine_tuned(world):
  """Head 0, fine-tuned for two epochs by two replicas."""
  spy, log, reads = ReplicaValues(), [], []
  handler = logging.Handler()
  handler.emit = lambda record: log.append(record.getMessage())
  logging.getLogger('tensorflow').addHandler(handler)
  make_hooks = training_hooks.make_hooks
  verbosity = tf.logging.get_verbosity()
  tf.logging.set_verbosity(tf.logging.INFO)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(training_hooks, 'make_hooks',
                  lambda *args: make_hooks(*args) + [spy])
    patch.setattr(imagenet_main, 'input_fn', lambda **kwargs: (
        reads.append(kwargs), imagenet_input.input_fn(**kwargs))[1])
    results, model_dir = run(
        world, 'fine_tuned', '--fine_tune', '--te', 2, '--is_cascaded',
        '--classifier_id', 0, '--cpu_replicas', 2, '--hooks',
        'loggingMETRIChook,LoggingTensorHook', '-bld',
        world.folder / 'benchmark', '--export_dir', world.folder / 'exported0')
  tf.logging.set_verbosity(verbosity)
  logging.getLogger('tensorflow').removeHandler(handler)
  FineTuned = collections.namedtuple(
      'FineTuned', 'results model_dir spy log reads')
  return FineTuned(results, model_dir, spy, log, reads)


@pytest.fixture(scope='module')
def evaluated(world):
  """The network's own classifier as pretrained, dumped."""
  return run(world, 'evaluated', '--eval_only', '--classifier_id', 2,
             '--export_dir', world.folder / 'exported2',
             '--image_bytes_as_serving_input')


class TestFineTuning(object):

  def test_ends_at_the_step_of_its_epochs(self, fine_tuned):
    assert fine_tuned.results['global_step'] == STEPS_OF_2_EPOCHS
    assert checkpoint(fine_tuned.model_dir, STEPS_OF_2_EPOCHS)[
        'global_step'] == STEPS_OF_2_EPOCHS

  def test_replicas_share_the_batch(self, fine_tuned):
    for read in fine_tuned.reads:
      assert read['batch_size'] == 4 // 2
    # 11 images: one more makes it whole batches. None in training.
    assert {(read['is_training'], read.get('num_padding_images', 0))
            for read in fine_tuned.reads} == {(True, 0), (False, 1)}

  def test_both_replicas_start_from_the_pretrained_trunk(
      self, world, fine_tuned):
    """Moving averages too: TensorFlow issues 19958 and 23986."""
    start = fine_tuned.spy.start
    num_restored = 0
    for name, value in world.weights.items():
      if name in start:
        for replica in (name, name + '/replica_1'):
          np.testing.assert_array_equal(start[replica], value, replica)
          num_restored += 1
    # Six convolutions to each of two block layers less one, and their BN.
    assert num_restored == 2 * (11 + 8 * 4)

  def test_each_replica_runs_on_its_own_device(self, fine_tuned):
    counts = fine_tuned.spy.devices
    assert sorted(device[-5:] for device in counts if counts[device]) == [
        'CPU:0', 'CPU:1']
    assert len(set(counts.values())) == 1

  def test_replicas_stay_equal(self, fine_tuned):
    values = fine_tuned.spy.end_values
    heads = [name for name in values if name in HEAD0 and
             not is_average(name)]
    assert len(heads) == 8
    for name in heads:
      np.testing.assert_array_equal(values[name], values[name + '/replica_1'])

  def test_changes_the_head_and_nothing_else(self, world, fine_tuned):
    start = checkpoint(fine_tuned.model_dir, 0)
    end = checkpoint(fine_tuned.model_dir, STEPS_OF_2_EPOCHS)
    trunk = set(end) & TRUNK
    assert len(trunk) == 43
    for name in trunk:
      assert end[name].tobytes() == world.weights[name].tobytes(), name
    for name in HEAD0 - {'resnet_model/cascaded0_fc0/bias'}:
      assert not np.array_equal(start[name], end[name]), name
    assert set(end) == trunk | HEAD0 | {'global_step'} | {
        name + '/Momentum' for name in HEAD0 if not is_average(name)}

  def test_dumps_are_of_the_last_checkpoint(self, world, fine_tuned):
    """NumPy computes the same from the checkpoint and the JPEGs."""
    weights = checkpoint(fine_tuned.model_dir, STEPS_OF_2_EPOCHS)
    for split, count in (('train', NUM_TRAIN), ('validation', NUM_VALIDATION)):
      softmaxes, labels = dumped(fine_tuned.model_dir, 0, split)
      assert labels.tolist() == [label for _, label in world.rows[split]]
      expected = numpy_resnet.softmaxes(
          weights, preprocessed(world, split), 18, 2)[0]
      assert softmaxes.shape == (count, NUM_CLASSES)
      np.testing.assert_allclose(softmaxes, expected, atol=1e-5)
      np.testing.assert_allclose(
          fine_tuned.results[split]['clf0'], accuracies(softmaxes, labels),
          atol=1e-6)

  def test_log_is_told_once_whatever_the_replicas(self, fine_tuned):
    told = [line for line in fine_tuned.log
            if not line.startswith(tf_compat._UNINFORMATIVE)]
    assert sum(line.startswith('training: 8 variables') for line in told) == 1
    assert sum(line.startswith('from ') for line in told) == 1
    assert sum(line.startswith('new: ') for line in told) == 1
    for words in ('devices', 'deprecated', 'WARNING', 'replica'):
      assert not [line for line in told if words in line], words

  def test_hooks_and_records(self, world, fine_tuned):
    with open(str(world.folder / 'benchmark' / 'metric.log')) as log:
      lines = [json.loads(line) for line in log]
    names = collections.Counter(line['name'] for line in lines)
    # From training and from the evaluation after the first epoch.
    assert names['learning_rate'] >= 2 and names['accuracy'] == 1
    assert {line['value'] for line in lines
            if line['name'] == 'learning_rate'} == {
                float(np.float32(0.01 * 4 / 256))}
    assert [line['global_step'] for line in lines
            if line['name'] == 'accuracy'] == [STEPS_OF_1_EPOCH]
    assert 'cross_entropy = ' in '\n'.join(fine_tuned.log)
    assert not (fine_tuned.model_dir / 'metric.log').exists()
    with open(str(world.folder / 'benchmark' / 'benchmark_run.log')) as stream:
      assert json.load(stream)['replicas'] == ['/cpu:0', '/cpu:1']
    with open(str(fine_tuned.model_dir / 'results.json')) as stream:
      entry = json.load(stream)['fine_tune']
    assert entry['flags']['classifier_id'] == ['0']
    assert entry['results'] == json.loads(json.dumps(fine_tuned.results))

  def test_exported_head_takes_image_tensors(self, world, fine_tuned):
    expected, _ = dumped(fine_tuned.model_dir, 0)
    check_export(world.folder / 'exported0', 'input',
                 preprocessed(world, 'validation'), expected)

  def test_updating_the_trunk_replays_the_published_code(self, world):
    results, model_dir = run(
        world, 'updated', '--fine_tune', '--te', 2, '--classifier_id', 0,
        '--trunk_batch_norm', 'update', '-mts', 2)
    assert results['global_step'] == 2
    end = checkpoint(model_dir, 2)
    for name in set(end) & TRUNK:
      same = np.array_equal(end[name], world.weights[name])
      assert same != is_average(name), name

  def test_plain_network_trains_its_last_layer(self, world):
    """As the official code; stops at --stop_threshold; --clean starts anew."""
    model_dir = world.folder / 'plain'
    write_checkpoint(model_dir, {'global_step': np.int64(5)}, 5)
    (model_dir / 'notes.txt').write_text('mine')
    results, _ = run(
        world, 'plain', '--fine_tune', '--te', 3, '--nois_cascaded',
        '--stop_threshold', 0, '--clean')
    assert results['global_step'] == STEPS_OF_1_EPOCH
    assert (model_dir / 'notes.txt').exists()
    assert not (model_dir / 'model.ckpt-5.index').exists()
    assert not glob.glob(str(model_dir) + '_softmax*')
    start, end = checkpoint(model_dir, 0), checkpoint(
        model_dir, STEPS_OF_1_EPOCH)
    assert set(end) == TRUNK | {'global_step'} | {
        name + '/Momentum' for name in DENSE}
    for name in TRUNK - DENSE:
      assert end[name].tobytes() == world.weights[name].tobytes(), name
    for name in DENSE:
      assert not np.array_equal(end[name], start[name])
      assert not np.array_equal(start[name], world.weights[name])  # Anew.

  def test_half_precision(self, world):
    results, model_dir = run(
        world, 'half', '--fine_tune', '--te', 2, '--classifier_id', 0,
        '--dtype', 'fp16', '-mts', 2)
    start, end = checkpoint(model_dir, 0), checkpoint(model_dir, 2)
    for name in set(end) & TRUNK:
      assert end[name].tobytes() == world.weights[name].tobytes(), name
    for name in HEAD0:
      assert end[name].dtype == np.float32
      assert not np.array_equal(start[name], end[name]), name
    softmaxes, _ = dumped(model_dir, 0)
    assert softmaxes.dtype == np.float32
    expected = numpy_resnet.softmaxes(
        end, preprocessed(world, 'validation'), 18, 2)[0]
    np.testing.assert_allclose(softmaxes, expected, atol=0.02)


def preprocessed(world, split):
  """The images of a split in reading order, as the network gets them."""
  with tf.Graph().as_default(), tf.Session() as session:
    shards = sorted(glob.glob(str(world.folder / 'data' / split / '*')))
    images, _ = imagenet_input.evaluation_dataset(
        shards, 100, image_size=IMAGE_SIZE,
        num_classes=NUM_CLASSES).make_one_shot_iterator().get_next()
    return session.run(images)


def check_export(export_dir, input_name, inputs, expected):
  """Loads a SavedModel and compares its softmaxes, for any batch size."""
  folder, = glob.glob(str(export_dir / '*'))
  with tf.Graph().as_default(), tf.Session() as session:
    signatures = tf.saved_model.loader.load(
        session, [tf.saved_model.tag_constants.SERVING], folder).signature_def
    for signature in (signatures['serving_default'], signatures['predict']):
      tensor, = signature.inputs.values()
      assert set(signature.inputs) == {input_name}
      assert tensor.name == 'input_tensor:0'
      outputs = {name: signature.outputs[name].name
                 for name in ('probabilities', 'classes')}
      for rows in (slice(0, 1), slice(1, 4), slice(None)):
        fetched = session.run(outputs, {tensor.name: inputs[rows]})
        np.testing.assert_allclose(
            fetched['probabilities'], expected[rows], atol=1e-6)
        np.testing.assert_array_equal(
            fetched['classes'], expected[rows].argmax(axis=1))


class TestEvaluation(object):

  def test_dump_equals_numpy(self, world, evaluated):
    results, model_dir = evaluated
    softmaxes, labels = dumped(model_dir, 2)
    expected = numpy_resnet.softmaxes(
        world.weights, preprocessed(world, 'validation'), 18, 2)[2]
    np.testing.assert_allclose(softmaxes, expected, atol=1e-5)
    np.testing.assert_allclose(
        results['validation']['clf2'], accuracies(softmaxes, labels),
        atol=1e-6)
    assert results['global_step'] == 225207

  def test_exported_classifier_takes_jpeg_bytes(self, world, evaluated):
    softmaxes, _ = dumped(evaluated[1], 2)
    check_export(
        world.folder / 'exported2', 'image_bytes',
        np.array([jpeg for jpeg, _ in world.rows['validation']], object),
        softmaxes)

  @pytest.mark.parametrize('name, args', [
      ('one', ['--eval_only', '--export_dir', 'exported']),
      # The last batch of the second replica has no image but padding.
      ('two', ['--train_epochs', 0, '--cpu_replicas', 2, '-bs', 8]),
  ])
  def test_every_image_counts_once(self, world, evaluated, name, args,
                                   monkeypatch):
    """The plain network, by any number of replicas: as the dump says."""
    monkeypatch.chdir(world.folder)
    results, model_dir = run(world, name, '--nois_cascaded', *args)
    softmaxes, labels = dumped(evaluated[1], 2)
    np.testing.assert_allclose(
        results['validation']['clf2'], accuracies(softmaxes, labels),
        atol=1e-6)
    with open(str(model_dir / 'metric.log')) as log:
      metrics = {line['name']: line['value']
                 for line in map(json.loads, log)}
    np.testing.assert_allclose(metrics['cross_entropy'], -np.log(
        softmaxes[np.arange(NUM_VALIDATION), labels]).mean(), rtol=1e-5)
    assert results['global_step'] == 225207
    if name == 'one':
      check_export(world.folder / 'exported', 'input',
                   preprocessed(world, 'validation'), softmaxes)
    # Nothing was trained, nothing dumped.
    assert not glob.glob(str(model_dir / 'model.ckpt*'))
    assert not glob.glob(str(model_dir) + '_softmax*')

  @pytest.mark.parametrize('damage, name', [
      (lambda weights: weights.pop('resnet_model/conv2d_3/kernel'),
       'resnet_model/conv2d_3/kernel'),
      (lambda weights: weights.pop(
          'resnet_model/batch_normalization_2/moving_variance'),
       'resnet_model/batch_normalization_2/moving_variance'),
      (lambda weights: weights.update({
          'resnet_model/dense/bias': np.zeros(1001, np.float32)}),
       'resnet_model/dense/bias is [1001], needed [11]'),
  ])
  def test_checkpoint_that_does_not_fit(self, world, tmp_path, damage, name):
    weights = dict(world.weights)
    damage(weights)
    write_checkpoint(tmp_path, weights, 1)
    with pytest.raises(UserError) as error:
      run(world, 'unfit', '--eval_only', '-pmcp', tmp_path)
    assert name in str(error.value) and '\n' not in str(error.value)
    assert not (world.folder / 'unfit').exists()
    assert not os.listdir(str(world.folder / 'unfit_softmax'))

  def test_head_of_another_class_count(self, world, tmp_path):
    weights = dict(rule_weights.rule_variables(
        rule_weights.cascade_variables(18, 2, 21)))
    write_checkpoint(tmp_path, weights, 1)
    with pytest.raises(UserError) as error:
      run(world, 'unfit', '--eval_only', '--classifier_id', 1, '-md', tmp_path)
    assert ('resnet_model/cascaded1_fc11/kernel is [1024, 21], needed '
            '[1024, 11]') in str(error.value)


class TestGoingOn(object):

  def test_interrupted_moved_finished(self, world, monkeypatch):
    """Ends where the run that nothing disturbed ended."""
    args = ['--fine_tune', '--te', 2, '--classifier_id', 0]
    results, model_dir = run(world, 'first', '-mts', 2, *args)
    assert results['global_step'] == 2
    first = checkpoint(model_dir, 2)
    moved = world.folder / 'moved'
    shutil.move(str(model_dir), str(moved))

    results, _ = run(world, 'moved', *args)
    assert results['global_step'] == STEPS_OF_2_EPOCHS
    assert not model_dir.exists()
    end = checkpoint(moved, STEPS_OF_2_EPOCHS)
    for name in set(end) & TRUNK:
      assert end[name].tobytes() == world.weights[name].tobytes(), name
    # The head went on from its weights and its momentum.
    kernel = 'resnet_model/cascaded0_fc0/kernel'
    assert np.abs(end[kernel] - first[kernel]).max() < 0.01
    assert not np.array_equal(end[kernel], first[kernel])

    # The same command once more: no training, the same dumps.
    trained = []
    monkeypatch.setattr(tf.estimator.Estimator, 'train',
                        lambda self, *args, **kwargs: trained.append(kwargs))
    softmaxes, _ = dumped(moved, 0)
    again, _ = run(world, 'moved', *args)
    assert not trained
    assert again == results
    np.testing.assert_allclose(dumped(moved, 0)[0], softmaxes, atol=1e-6)

  def test_clean_keeps_everything_until_the_rest_is_right(self, world,
                                                          tmp_path):
    write_checkpoint(tmp_path, {'global_step': np.int64(5)}, 5)
    files = set(os.listdir(str(tmp_path)))
    for pretrained in (tmp_path / 'none', tmp_path):
      with pytest.raises(UserError):
        run(world, 'unused', '--fine_tune', '--clean', '-md', tmp_path,
            '-pmcp', pretrained)
    assert set(os.listdir(str(tmp_path))) == files
