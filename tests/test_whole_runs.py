"""Whole runs of `run_imagenet` on tiny records: what they change and leave.

Fine-tuning, evaluation, dumps, export, going on; by one replica and several.
"""

import collections
import glob
import json
import logging
import os
import shutil
import typing

import numpy as np
import pytest

import imagenet_input
import imagenet_main
import numpy_resnet
import run_record
import small_world
import tf_compat
import training_hooks
from small_network import DENSE, HEAD0, NUM_CLASSES, TRUNK
from small_network import is_average
from small_world import accuracies
from refusals import refused
from tf_compat import tf
from tiny_checkpoints import read_checkpoint, write_checkpoint

NUM_TRAIN, NUM_VALIDATION = 13, 11
# 13 images and batches of 4: two epochs end in the middle of a batch.
STEPS_OF_1_EPOCH, STEPS_OF_2_EPOCHS = 4, 7


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  return small_world.make(tmp_path_factory.mktemp('world'))


def run(world, name, *args):
  """Runs with its own model and dump folder; (results, model folder)."""
  model_dir = world.folder / name
  results = world.run(
      '-md', model_dir, '--softmax_dir', f'{model_dir}_softmax', *args)
  return results, model_dir


def checkpoint(model_dir, step):
  return read_checkpoint(model_dir / f'model.ckpt-{step}')


def dumped(model_dir, classifier_id, split='validation'):
  """(softmaxes, labels) of a run."""
  infix = '' if split == 'validation' else 'train_1of3_'
  return [np.load(f'{model_dir}_softmax/{name}.npy') for name in (
      f'clf{classifier_id}_{infix}all_probabilities', f'{split}_non_onehot')]


class ReplicaValues(tf.train.SessionRunHook):
  """Reads every variable of every replica at the start of the first session."""

  start = None

  def after_create_session(self, session, coord):
    if self.start is not None:
      return
    graph = session.graph
    tensors = {}
    for op in graph.get_operations():
      if op.name.startswith('resnet_model/'):
        if op.type == 'VariableV2':
          tensors[op.name] = op.outputs[0]
        elif op.type == 'VarHandleOp':
          tensors[op.name] = graph.get_tensor_by_name(
              op.name + '/Read/ReadVariableOp:0')
    self.start = session.run(tensors)


class FineTuned(typing.NamedTuple):
  results: dict
  model_dir: typing.Any   # A pathlib.Path.
  start: dict             # From variable to value, of both replicas.
  log: list               # Lines of our log.
  reads: list             # Arguments of the calls of the input function.


@pytest.fixture(scope='module')
def fine_tuned(world):
  """Head 0, fine-tuned for two epochs by two replicas."""
  spy, log, reads = ReplicaValues(), [], []
  handler = logging.Handler()
  handler.emit = lambda record: log.append(record.getMessage())
  tf_compat.log.addHandler(handler)
  make_hooks = training_hooks.make_hooks
  tf_compat.log.setLevel(logging.INFO)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(training_hooks, 'make_hooks',
                  lambda *args: make_hooks(*args) + [spy])
    patch.setattr(imagenet_main, 'input_fn', lambda **kwargs: (
        reads.append(kwargs), imagenet_input.input_fn(**kwargs))[1])
    results, model_dir = run(
        world, 'fine_tuned', '--fine_tune', '--te', 2, '--is_cascaded',
        '--classifier_id', 0, '--cpu_replicas', 2, '--hooks',
        'loggingMETRIChook,LoggingTensorHook', '-bld',
        world.folder / 'benchmark', '--export_dir', world.folder / 'exported0',
        '--random_seed', 7, '--min_crop_area', 0.5)
  tf_compat.log.setLevel(logging.NOTSET)
  tf_compat.log.removeHandler(handler)
  return FineTuned(results, model_dir, spy.start, log, reads)


@pytest.fixture(scope='module')
def evaluated(world):
  """The network's own classifier as pretrained, dumped."""
  return run(world, 'evaluated', '--eval_only', '--classifier_id', 2,
             '--export_dir', world.folder / 'exported2',
             '--image_bytes_as_serving_input')


class TestFineTuning:

  def test_replicas_share_the_batch(self, fine_tuned):
    for read in fine_tuned.reads:
      assert read['batch_size'] == 4 // 2
      assert read['min_crop_area'] == 0.5
    # 11 images: one more makes it whole batches. None in training.
    assert {(read['is_training'], read.get('num_padding_images', 0))
            for read in fine_tuned.reads} == {(True, 0), (False, 1)}

  def test_every_cycle_has_an_order_of_its_own(self, fine_tuned):
    """With --random_seed every cycle used to repeat the order of the first."""
    # That another seed is another order: test_imagenet_input.py.
    first, second = [read for read in fine_tuned.reads if read['is_training']]
    assert first['seed'] != second['seed']

  def test_both_replicas_start_from_the_pretrained_trunk(
      self, world, fine_tuned):
    """Moving averages too: TensorFlow issues 19958 and 23986."""
    start = fine_tuned.start
    num_restored = 0
    for name, value in world.weights.items():
      if name in start:
        for replica in (name, name + '/replica_1'):
          np.testing.assert_array_equal(start[replica], value, replica)
          num_restored += 1
    # Six convolutions to each of two block layers less one, and their BN.
    assert num_restored == 2 * (11 + 8 * 4)

  def test_changes_the_head_and_nothing_else(self, world, fine_tuned):
    assert fine_tuned.results['global_step'] == STEPS_OF_2_EPOCHS
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
          weights, world.preprocessed(split), 18, 2)[0]
      assert softmaxes.shape == (count, NUM_CLASSES)
      np.testing.assert_allclose(softmaxes, expected, atol=1e-5)
      np.testing.assert_allclose(
          fine_tuned.results[split]['clf0'], accuracies(softmaxes, labels),
          atol=1e-6)

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
      entry = json.load(stream)['fine_tune clf0']
    assert entry['flags']['classifier_id'] == ['0']
    assert entry['results'] == json.loads(json.dumps(fine_tuned.results))

  def test_exported_head_takes_image_tensors(self, world, fine_tuned):
    expected, _ = dumped(fine_tuned.model_dir, 0)
    check_export(world.folder / 'exported0', 'input',
                 world.preprocessed('validation'), expected)

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
        end, world.preprocessed('validation'), 18, 2)[0]
    # float16 has a step of 5e-4 below 1, and there are 10 layers. Seen: 2e-3.
    np.testing.assert_allclose(softmaxes, expected, rtol=0, atol=0.05)
    assert softmaxes.std() > 0.05  # Else anything would pass.


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
        # Rounding, by another graph of the same operations. Seen: 1.2e-7.
        np.testing.assert_allclose(
            fetched['probabilities'], expected[rows], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(
            fetched['classes'], expected[rows].argmax(axis=1))


class TestEvaluation:

  # That dumps equal NumPy's softmaxes: test_joint_runs.py.

  def test_exported_classifier_takes_jpeg_bytes(self, world, evaluated):
    softmaxes, _ = dumped(evaluated[1], 2)
    check_export(
        world.folder / 'exported2', 'image_bytes',
        np.array([jpeg for jpeg, _ in world.rows['validation']], object),
        softmaxes)

  @pytest.mark.parametrize('name, args', [
      ('one', ['--eval_only']),
      # The last batch of the second replica has no image but padding.
      ('two', ['--train_epochs', 0, '--cpu_replicas', 2, '-bs', 8]),
  ])
  def test_every_image_counts_once(self, world, evaluated, name, args):
    """The plain network, by any number of replicas: as the dump says."""
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
    # Nothing was trained, nothing dumped.
    assert not glob.glob(str(model_dir / 'model.ckpt*'))
    assert not glob.glob(str(model_dir) + '_softmax*')


class TestResuming:

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

  def test_training_that_diverged(self, world):
    """In its last step, after which no loss is looked at."""
    message = refused(
        run, world, 'diverged', '--fine_tune', '--classifier_id', 0, '-mts', 1,
        '--base_lr', 1e42)
    assert 'diverged/model.ckpt-1: ' in message and '--clean' in message

  def test_records_of_other_classes(self, world, fine_tuned):
    """The same classes in another order: labels mean something else."""
    shutil.copytree(str(world.folder / 'tf_records'),
                    str(world.folder / 'other'))
    path = world.folder / 'other' / 'dataset.json'
    fields = json.loads(path.read_text())
    names = fields['class_names']
    assert run_record.class_names(str(fine_tuned.model_dir)) == names
    fields['class_names'] = names[:3] + names[:2:-1]
    path.write_text(json.dumps(fields))
    for mode in ('--eval_only', '--fine_tune'):
      message = refused(
          run, world, 'fine_tuned', mode, '--classifier_id', 0, '-dd',
          world.folder / 'other')
      assert 'class 4 ' in message and str(fine_tuned.model_dir) in message

  def test_clean_keeps_everything_until_the_rest_is_right(self, world,
                                                          tmp_path):
    write_checkpoint(tmp_path, {'global_step': np.int64(5)}, 5)
    files = set(os.listdir(str(tmp_path)))
    # No trunk is in it.
    refused(run, world, 'unused', '--fine_tune', '--clean', '-md', tmp_path,
            '-pmcp', tmp_path)
    assert set(os.listdir(str(tmp_path))) == files
