"""The model function, and the loop that trains, evaluates, dumps and exports.

Knows of residual networks and their exits, not of ImageNet: the data set's
names, counts and schedule come from `imagenet_main.py`.
"""

import collections
import functools
import math
import os
import typing

from tf_compat import log, tf

import devices as devices_lib
import distributed
import dump_pass
import imagenet_preprocessing
import resnet_checkpoint
import resnet_model
import run_record
import training_hooks
from resnet_model import value_name
# Under the names the official code has here.
# pylint: disable=unused-import
from imagenet_input import process_record_dataset
from resnet_flags import define_resnet_flags
# pylint: enable=unused-import
from shared_dataset import check_same_classes
from shared_terminal import UserError


class TrainSettings(typing.NamedTuple):
  """How a run trains."""
  epochs: int
  epochs_between_evals: int
  max_steps: typing.Optional[int]         # To stop before the last epoch ends.
  stop_threshold: typing.Optional[float]  # Top-1 to stop at, a fraction.
  hook_names: typing.List[str]            # Of `training_hooks.HOOK_NAMES`.
  base_lr: typing.Optional[float]         # None for the schedule's own.
  loss_scale: int                         # Factor of the loss for gradients.
  trunk_batch_norm: str                   # 'frozen' or 'update'.


class RunSettings(typing.NamedTuple):
  """One run of the command line, resolved and checked: all that is known."""
  mode: str                               # 'train', 'fine_tune', 'eval_only'.
  classifier_ids: typing.List[int]        # Ascending.
  model: resnet_model.Model               # Every graph of the run is of it.
  image_shape: typing.List[int]           # [height, width, channels].
  batch_size: int                         # Over all replicas of all machines.
  num_images: typing.Dict[str, int]       # From split to count.
  class_names: typing.Optional[typing.List[str]]  # From label 1 on.
  checkpoints: resnet_checkpoint.CheckpointPaths
  devices: devices_lib.Devices
  cluster: distributed.Cluster
  is_synthetic: bool                      # Random images, not records.
  random_seed: typing.Optional[int]
  log_dir: typing.Optional[str]           # Of metric.log; None: --model_dir.
  flag_values: typing.Dict[str, typing.Any]  # For `results.json`.
  train: typing.Optional[TrainSettings]   # None with 'eval_only'.
  dump: typing.Optional[dump_pass.DumpJob]
  export_dir: typing.Optional[str]        # For a SavedModel
  exports_image_bytes: bool               # of JPEG bytes, not image tensors.


# ---- The model function -----------------------------------------------------

def learning_rate_with_decay(batch_size, batch_denom, num_images,
                             boundary_epochs, decay_rates, base_lr=0.1,
                             warmup=False):
  """A learning rate that falls in steps, after a linear rise if wanted.

  Args:
    batch_size: images in a step, over all replicas.
    batch_denom: the batch size that `base_lr` is for; the rate scales with it.
    num_images: images in an epoch.
    boundary_epochs: when the rate falls.
    decay_rates: factors of the initial rate, one more than boundaries.
    warmup: whether the rate rises from 0 during the first five epochs.

  Returns:
    A function from the global step to the rate, a scalar tensor.
  """
  initial_rate = base_lr * batch_size / batch_denom
  batches_per_epoch = num_images / batch_size
  boundaries = [int(batches_per_epoch * epoch) for epoch in boundary_epochs]
  rates = [initial_rate * decay for decay in decay_rates]

  def learning_rate_fn(global_step):
    # piecewise_constant wants boundaries of the step's own type.
    rate = tf.train.piecewise_constant(
        global_step, [tf.constant(boundary, global_step.dtype.base_dtype)
                      for boundary in boundaries], rates)
    warmup_steps = int(batches_per_epoch * 5)
    if not warmup or not warmup_steps:
      return rate
    warmup_rate = initial_rate * tf.to_float(global_step) / warmup_steps
    return tf.cond(global_step < warmup_steps, lambda: warmup_rate,
                   lambda: rate)

  return learning_rate_fn


def resnet_model_fn(features, labels, mode, model_class, resnet_size,
                    weight_decay, learning_rate_fn, momentum, data_format,
                    resnet_version, loss_scale, loss_filter_fn=None,
                    dtype=resnet_model.DEFAULT_DTYPE, fine_tune=False,
                    classifier_ids=(resnet_model.FINAL_CLASSIFIER_ID,),
                    trunk_batch_norm='frozen', initial_checkpoint=None):
  """The Estimator's model function: one or more classifiers of the network.

  The network is built as far as the deepest of them. Fine-tuning trains their
  heads and nothing else. It minimizes the sum of their losses, so that with a
  frozen trunk each head is trained as if it were alone.

  Args:
    features: images [batch, height, width, 3], or a dict of 'image' and
      'label', whose labels come back among the predictions.
    labels: int [batch]; None to predict. Images of a negative label (padding)
      count in no metric.
    mode: a `tf.estimator.ModeKeys`.
    model_class: makes the model from (resnet_size, data_format,
      resnet_version=, dtype=).
    weight_decay: factor of the L2 loss.
    learning_rate_fn: from global step to rate.
    loss_scale: factor of the loss while gradients are computed, against
      underflow in half precision; they are divided by it again.
    loss_filter_fn: which variables, by name, have weight decay; None for
      all but those of batch normalization.
    fine_tune: train the heads alone.
    classifier_ids: any of `resnet_model.CLASSIFIER_IDS`, ascending.
    trunk_batch_norm: in fine-tuning, 'frozen' runs the trunk's BN with its
      moving averages and leaves them; 'update' uses the batch's statistics
      and updates them, as the published code does.
    initial_checkpoint: where training takes the trunk from; None for a new
      one. Heads that are trained start anew.

  Returns:
    An EstimatorSpec. Predictions: 'classes' int64 [batch], 'probabilities'
    float32 [batch, classes], 'top5_classes' int32 and 'top5_probabilities'
    float32 [batch, 5], best first; and 'labels' if the features hold them.
    Metrics: 'accuracy', 'accuracy_top_5', 'cross_entropy'. If there are
    several classifiers, each has its own, named by `value_name`.
  """
  is_training = mode == tf.estimator.ModeKeys.TRAIN
  images, carried_labels = features, None
  if isinstance(features, dict):
    images, carried_labels = features['image'], features.get('label')
  named = functools.partial(value_name, classifier_ids=classifier_ids)

  model = model_class(resnet_size, data_format, resnet_version=resnet_version,
                      dtype=dtype)
  trunk_is_fixed = fine_tune and trunk_batch_norm == 'frozen'
  outputs = collections.OrderedDict(
      (k, resnet_model.exit_output(logits, named('softmax_tensor', k)))
      for k, logits in model.exit_logits(
          tf.cast(images, dtype), classifier_ids,
          trunk_training=is_training and not trunk_is_fixed,
          head_training=is_training).items())

  predictions = {}
  for k, output in outputs.items():
    predictions[named('classes', k)] = tf.argmax(output.logits, axis=1)
    predictions[named('probabilities', k)] = output.probabilities
  if mode == tf.estimator.ModeKeys.PREDICT:
    exported = tf.estimator.export.PredictOutput(dict(predictions))
    for k, output in outputs.items():
      predictions[named('top5_classes', k)] = output.top5_classes
      predictions[named('top5_probabilities', k)] = output.top5_probabilities
    if carried_labels is not None:
      predictions['labels'] = carried_labels
    return tf.estimator.EstimatorSpec(
        mode=mode, predictions=predictions,
        export_outputs={'predict': exported})

  labels = tf.to_int32(labels)
  is_image = labels >= 0
  # float32 [batch] each.
  cross_entropies, is_top1, is_top5 = {}, {}, {}
  for k, output in outputs.items():
    cross_entropies[named('cross_entropy', k)] = (
        tf.nn.sparse_softmax_cross_entropy_with_logits(
            logits=output.logits, labels=tf.maximum(labels, 0)))
    is_top1[named('accuracy', k)] = tf.to_float(
        tf.equal(output.top5_classes[:, 0], labels))
    is_top5[named('accuracy_top_5', k)] = tf.to_float(tf.reduce_any(
        tf.equal(output.top5_classes, labels[:, tf.newaxis]), axis=1))
  losses = {
      name: tf.identity(tf.losses.compute_weighted_loss(
          values, weights=tf.to_float(is_image)), name)
      for name, values in cross_entropies.items()}

  trained = trained_variables(classifier_ids, fine_tune)
  if loss_filter_fn is None:
    loss_filter_fn = lambda name: not resnet_model.is_batch_norm(name)
  l2_loss = weight_decay * tf.add_n([
      tf.nn.l2_loss(tf.cast(variable, tf.float32)) for variable in trained
      if loss_filter_fn(variable.name)])
  loss = tf.add_n(list(losses.values())) + l2_loss

  if mode == tf.estimator.ModeKeys.EVAL:
    return tf.estimator.EstimatorSpec(
        mode=mode, predictions=predictions, loss=loss, eval_metric_ops={
            name: tf.metrics.mean(values, weights=is_image)
            for measured in (cross_entropies, is_top1, is_top5)
            for name, values in measured.items()})

  if initial_checkpoint:
    resnet_checkpoint.initialize_from(initial_checkpoint, [
        variable for variable in tf.global_variables()
        if resnet_checkpoint.is_pretrained(
            resnet_checkpoint.saved_name(variable), classifier_ids)])

  learning_rate = learning_rate_fn(tf.train.get_or_create_global_step())
  summarized = dict(losses, learning_rate=tf.identity(
      learning_rate, name='learning_rate'))
  for measured in (is_top1, is_top5):
    for name, values in measured.items():
      summarized[name] = tf.reduce_mean(values, name='train_' + name)
  for name in sorted(summarized):
    # The names themselves are those of the tensors.
    tf.summary.scalar('training/' + name, summarized[name])

  optimizer = tf.train.MomentumOptimizer(learning_rate, momentum)
  gradients = optimizer.compute_gradients(loss * loss_scale, trained)
  if loss_scale != 1:
    gradients = [(gradient / loss_scale, variable)
                 for gradient, variable in gradients]
  # With BN's moving averages; if the trunk is frozen, the heads' alone.
  # Control dependencies would not do: in a replica of TensorFlow 1.12's
  # MirroredStrategy `apply_gradients` drops them, and the averages stay 0 and
  # 1.
  train_op = tf.group(
      optimizer.apply_gradients(
          gradients, tf.train.get_or_create_global_step()),
      *tf.get_collection(tf.GraphKeys.UPDATE_OPS))
  return tf.estimator.EstimatorSpec(
      mode=mode, predictions=predictions, loss=loss, train_op=train_op)


def trained_variables(classifier_ids, fine_tune):
  """The variables that training changes (BN's moving averages aside)."""
  prefixes = (resnet_model.MODEL_SCOPE + '/',)
  if fine_tune:
    prefixes = tuple(resnet_model.head_prefix(k) for k in classifier_ids)
  variables = [variable for variable in tf.trainable_variables()
               if variable.name.startswith(prefixes)]
  assert variables, f'no variable named {prefixes}'
  return variables


# ---- The main path ----------------------------------------------------------

def resnet_main(run, model_function, input_function, dataset_name):
  """Trains or evaluates, dumps and exports, as the settings say.

  Args:
    run: `RunSettings`.
    model_function: an Estimator's model function of the parameters that
      `model_params` makes.
    input_function: like `imagenet_input.input_fn`, given all that does not
      change during a run.

  Returns:
    A dict of results: 'global_step' (None if the checkpoint has none), and for
    each split a dict from classifier ('clf0') to its top-1 and top-5 accuracy,
    fractions. Empty on all machines of a cluster but the chief.

  Raises:
    UserError: the checkpoints do not fit, before any work.
  """
  params = model_params(run)
  exit_shapes = resnet_checkpoint.exit_shapes(
      run.model, run.classifier_ids, run.image_shape)
  if run.train:
    params['initial_checkpoint'] = resnet_checkpoint.to_train(
        run.checkpoints,
        _training_shapes(model_function, params, run.image_shape),
        run.classifier_ids, fine_tune=run.mode == 'fine_tune',
        may_start_anew=run.mode == 'train' or run.is_synthetic)
    folders = [] if run.checkpoints.clean else [run.checkpoints.model_dir]
  else:
    weights = resnet_checkpoint.to_evaluate(run.checkpoints, exit_shapes)
    folders = [os.path.dirname(source.head_checkpoint)
               for source in weights.sources.values()]
    if run.export_dir or not run.dump:
      _only_checkpoint(weights)
  for folder in folders:
    check_same_classes(run.class_names, '--data_dir',
                       run_record.class_names(folder), folder)
  make_estimator = functools.partial(_estimator, run, model_function, params)
  if not run.cluster.is_chief:
    return _train(run, make_estimator, input_function)
  entry, record = run_record.start(
      run, dataset_name, params['initial_checkpoint'])

  results = {}
  if run.train:
    results = _train(run, make_estimator, input_function)
    weights = resnet_checkpoint.to_evaluate(
        resnet_checkpoint.CheckpointPaths(run.checkpoints.model_dir),
        exit_shapes)
  elif not run.dump:
    results = _evaluate(run, make_estimator, input_function,
                        _only_checkpoint(weights))
  if run.dump:
    results.update(dump_pass.run(
        run.dump, run.model, weights, run.devices.replicas,
        devices_lib.session_config(run.devices), record))
  if run.export_dir:
    _export(run, make_estimator, _only_checkpoint(weights))
  results['global_step'] = resnet_checkpoint.checkpoint_step(
      weights.sources[run.classifier_ids[0]].head_checkpoint)
  run_record.finish(run.checkpoints.model_dir, entry, record, results)
  return results


def model_params(run):
  """The official code's `params` of a run, and below them what we add."""
  model, train = run.model, run.train
  return {
      'resnet_size': model.resnet_size,
      'data_format': model.data_format,
      'batch_size': run.batch_size,
      'resnet_version': model.resnet_version,
      'loss_scale': train.loss_scale if train else 1,
      'dtype': model.dtype,
      'fine_tune': run.mode == 'fine_tune',
      'model': model,
      'classifier_ids': run.classifier_ids,
      'num_train_images': run.num_images['train'],
      'base_lr': train and train.base_lr,
      'trunk_batch_norm': train.trunk_batch_norm if train else 'frozen',
      'initial_checkpoint': None,
  }


def _only_checkpoint(weights):
  """The one checkpoint that all weights come from."""
  checkpoints = sorted(set(weights.checkpoint_of.values()))
  if len(checkpoints) > 1:
    raise UserError(
        '{}: the weights would come from {}; --export_dir and evaluation '
        'without dumps take one checkpoint'.format(
            ' and '.join(f'clf{k}' for k in weights.sources),
            ' and '.join(checkpoints)))
  return checkpoints[0]


def _training_shapes(model_function, params, image_shape):
  """Names and shapes of the variables of the training graph, in order."""
  with tf.Graph().as_default():
    tf.train.create_global_step()
    images = tf.placeholder(tf.float32, [None] + image_shape)
    labels = tf.placeholder(tf.int32, [None])
    model_function(images, labels, tf.estimator.ModeKeys.TRAIN, params)
    return resnet_checkpoint.shapes_of_variables()


def _estimator(run, model_function, params, strategy):
  """An Estimator on the model folder; `strategy` None for one replica."""
  save_steps = (distributed.STEPS_BETWEEN_CHECKPOINTS
                if run.cluster.num_workers > 1 else None)
  return tf.estimator.Estimator(
      model_function, run.checkpoints.model_dir, params=params,
      config=devices_lib.run_config(
          run.devices, run.random_seed, strategy, save_steps))


# ---- Training ---------------------------------------------------------------

def _train(run, make_estimator, input_function):
  """Trains in cycles of `epochs_between_evals`, evaluating after each.

  Several machines train in one stretch, without evaluations on the way; and
  after the last cycle there is none where a dump follows, which measures the
  same.

  The number of steps is fixed by epochs, images and batch, so that a run that
  was interrupted ends where an undisturbed one does. With 13 images, batches
  of 4 and 2 epochs that are 7 steps: the fourth batch has images of both
  epochs.

  Returns:
    The results of the last evaluation; empty if there was none.
  """
  model_dir, num_workers = run.checkpoints.model_dir, run.cluster.num_workers
  checkpoint = resnet_checkpoint.newest_checkpoint(model_dir)
  step = resnet_checkpoint.checkpoint_step(checkpoint) if checkpoint else 0
  last_step = _steps_in(run.train.epochs, run)
  hooks = []
  if run.cluster.is_chief:
    hooks = training_hooks.make_hooks(
        run.train.hook_names, model_dir, run.log_dir, run.batch_size,
        run.classifier_ids)
    hooks.append(training_hooks.TrainingProgressHook(
        last_step, run.batch_size, run.classifier_ids))
  if num_workers == 1:
    estimator = make_estimator(devices_lib.strategy(run.devices))
  results = {}
  for cycle_step in _cycle_steps(run, last_step):
    if cycle_step < min(step, last_step):
      continue  # Done by an earlier run of the same command.
    if step < cycle_step:
      log.info('training to step %d of %d', cycle_step, last_step)
      read = functools.partial(
          input_function, is_training=True, num_epochs=None,
          batch_size=run.batch_size // (
              len(run.devices.replicas) * num_workers),
          # With one seed every cycle would bring the images of the first.
          seed=None if run.random_seed is None else (
              run.random_seed * 1000003 + step) % 2**31)
      if num_workers == 1:
        estimator.train(read, hooks=hooks, max_steps=cycle_step)
      else:
        distributed.train(
            run.cluster, make_estimator, run.devices.num_gpus,
            run.devices.all_reduce_alg, read, hooks, cycle_step)
      step = cycle_step
    if run.cluster.is_chief and (step < last_step or not run.dump):
      results = _evaluate(run, make_estimator, input_function, None)
      threshold = run.train.stop_threshold
      if threshold is not None and threshold <= min(
          top1 for top1, _ in results['validation'].values()):
        log.info('top-1 accuracy has reached --stop_threshold %s', threshold)
        break
  return results


def _cycle_steps(run, last_step):
  """The steps at which training stops for an evaluation, ascending."""
  if run.cluster.num_workers > 1:
    return [last_step]
  cycle_epochs = run.train.epochs_between_evals
  steps = [min(_steps_in(epochs, run), last_step)
           for epochs in range(cycle_epochs, run.train.epochs, cycle_epochs)]
  return sorted(set(steps + [last_step]))


def _steps_in(epochs, run):
  """Training steps in `epochs` passes, but no more than --max_train_steps."""
  steps = math.ceil(epochs * run.num_images['train'] / run.batch_size)
  return min(steps, run.train.max_steps or steps)


# ---- Evaluation and export --------------------------------------------------

def _evaluate(run, make_estimator, input_function, checkpoint):
  """Top-1 and top-5 of the validation split; `checkpoint` None: the newest."""
  num_replicas = len(run.devices.replicas)
  num_images = run.num_images['validation']
  steps, num_padding_images = None, 0
  if run.is_synthetic:  # Without end.
    steps = (run.train and run.train.max_steps) or num_images // run.batch_size
  elif num_replicas > 1:
    # Replicas take their batches together: a round that is not full would be
    # dropped, and with it images.
    num_padding_images = -num_images % run.batch_size
  metrics = make_estimator(devices_lib.strategy(run.devices)).evaluate(
      functools.partial(
          input_function, is_training=False, num_epochs=1,
          batch_size=run.batch_size // num_replicas,
          num_padding_images=num_padding_images),
      steps=steps, checkpoint_path=checkpoint)
  training_hooks.log_metrics(
      run.log_dir or run.checkpoints.model_dir, metrics)
  accuracies = collections.OrderedDict()
  for k in run.classifier_ids:
    top1, top5 = (
        float(metrics[value_name(name, k, run.classifier_ids)])
        for name in ('accuracy', 'accuracy_top_5'))
    accuracies[f'clf{k}'] = (top1, top5)
    print(f'clf{k} validation at step {metrics["global_step"]}: '
          f'top-1 {top1:.4f}, top-5 {top5:.4f}')
  return {'validation': accuracies}


def _export(run, make_estimator, checkpoint):
  """Writes a SavedModel into a new, dated folder of `run.export_dir`."""
  dtype = run.model.dtype

  def receive():
    if not run.exports_image_bytes:
      images = tf.placeholder(dtype, [None] + run.image_shape, 'input_tensor')
      return tf.estimator.export.TensorServingInputReceiver(images, images)
    image_bytes = tf.placeholder(tf.string, [None], 'input_tensor')
    images = imagenet_preprocessing.preprocess_images(
        image_bytes, *run.image_shape)
    return tf.estimator.export.TensorServingInputReceiver(
        tf.cast(images, dtype), {'image_bytes': image_bytes})

  folder = make_estimator(None).export_savedmodel(
      run.export_dir, receive, checkpoint_path=checkpoint,
      strip_default_attrs=True)
  print(f'exported {folder.decode()}')
