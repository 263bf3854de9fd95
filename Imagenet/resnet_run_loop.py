"""The model function, and the loop that trains, evaluates, dumps and exports.

Knows of residual networks and their exits, not of ImageNet: the data set's
names, counts and schedule come from `imagenet_main.py`.
"""

import collections
import functools
import math
import typing

from tf_compat import tf

import devices as devices_lib
import distributed
import dump_pass
import imagenet_preprocessing
import resnet_checkpoint
import resnet_model
import run_record
import training_hooks
from training_hooks import value_name
# Under the names the official code has here.
# pylint: disable=unused-import
from imagenet_input import process_record_dataset
from resnet_flags import define_resnet_flags
# pylint: enable=unused-import
from user_error import UserError


class TrainSettings(typing.NamedTuple):
  """How long training takes, and what it tells."""
  epochs: int
  epochs_between_evals: int
  # Step to stop at, if it comes before the end of the epochs; or None.
  max_steps: typing.Optional[int]
  # Top-1 accuracy (a fraction) at which training stops; or None.
  stop_threshold: typing.Optional[float]
  # Of `training_hooks.HOOK_NAMES`, in any letter case.
  hook_names: typing.Sequence[str]


class ExportSettings(typing.NamedTuple):
  """A SavedModel to write."""
  folder: str
  # Whether it takes JPEG bytes, not image tensors.
  takes_image_bytes: bool


class RunSettings(typing.NamedTuple):
  """One run of the command line, resolved and checked."""
  # 'train', 'fine_tune' or 'eval_only'.
  mode: str
  # Ascending.
  classifier_ids: typing.Sequence[int]
  checkpoints: resnet_checkpoint.CheckpointPaths
  devices: devices_lib.Devices
  cluster: distributed.Cluster
  # Images in a step, over all replicas of all machines.
  batch_size: int
  # From split to images.
  num_images: typing.Dict[str, int]
  # [height, width, channels].
  image_shape: typing.Sequence[int]
  # Random images instead of records.
  is_synthetic: bool
  random_seed: typing.Optional[int]
  # Of metric.log and benchmark_run.log; None for the model folder.
  log_dir: typing.Optional[str]
  # For `results.json`: a dict from the names of the flags to their values.
  flag_values: typing.Dict[str, typing.Any]
  # None in mode 'eval_only'.
  train: typing.Optional[TrainSettings]
  # None for no export.
  export: typing.Optional[ExportSettings]


# ---- The model function -----------------------------------------------------

def learning_rate_with_decay(batch_size, batch_denom, num_images,
                             boundary_epochs, decay_rates, base_lr=0.1,
                             warmup=False):
  """A learning rate that falls in steps, after a linear rise if wanted.

  Args:
    batch_size: images in a step, over all replicas.
    batch_denom: the batch size for which `base_lr` is meant; the rate scales
      with the batch.
    num_images: images in an epoch.
    boundary_epochs: when the rate falls.
    decay_rates: factors of the initial rate, one more than boundaries.
    base_lr: the initial rate for a batch of `batch_denom`.
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
    resnet_size: depth of the network.
    weight_decay: factor of the L2 loss.
    learning_rate_fn: from global step to rate.
    momentum: of the optimizer.
    data_format: 'channels_first', 'channels_last' or None.
    resnet_version: 1 or 2.
    loss_scale: factor of the loss while gradients are computed, against
      underflow in half precision; they are divided by it again.
    loss_filter_fn: which variables, by name, have weight decay; None for
      all but those of batch normalization.
    dtype: of the computation.
    fine_tune: train the heads alone.
    classifier_ids: of `resnet_model.CLASSIFIER_IDS`, which ones.
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

def resnet_main(run, model_function, input_function, dataset_name, params,
                model, dump_job=None):
  """Trains, evaluates, dumps and exports, as the settings say.

  Args:
    run: `RunSettings`.
    model_function: an Estimator's model function.
    input_function: like `imagenet_input.input_fn`, but for `data_dir` and the
      dtype.
    dataset_name: for the record of the run.
    params: for the model function.
    model: the `resnet_model.Model` that the model function builds.
    dump_job: a `dump_pass.DumpJob`, done last; None for no dumps.

  Returns:
    A dict of results: 'global_step' (None if the checkpoint has none), and for
    each split a dict from classifier ('clf0') to its top-1 and top-5 accuracy,
    fractions. Empty on all machines of a cluster but the chief.

  Raises:
    UserError: the checkpoints do not fit, before any work.
  """
  exit_shapes = collections.OrderedDict(
      (k, exit_variable_shapes(model, k, run.image_shape))
      for k in run.classifier_ids)
  if run.train:
    params = dict(params, initial_checkpoint=resnet_checkpoint.to_train(
        run.checkpoints,
        _training_shapes(model_function, params, run.image_shape),
        run.classifier_ids, fine_tune=run.mode == 'fine_tune',
        may_start_anew=run.mode == 'train' or run.is_synthetic))
  else:
    weights = resnet_checkpoint.to_evaluate(run.checkpoints, exit_shapes)
    if run.export or not dump_job:
      _only_checkpoint(weights)
  if not run.cluster.is_chief:
    return _train(run, model_function, input_function, params)
  entry, record = _start_record(run, dataset_name, params, dump_job)

  results = {}
  if run.train:
    results = _train(run, model_function, input_function, params,
                     evaluates_last=not dump_job)
    weights = resnet_checkpoint.of_one_checkpoint(
        resnet_checkpoint.newest_checkpoint(run.checkpoints.model_dir),
        exit_shapes)
  elif not dump_job:
    results = _evaluate(run, model_function, input_function, params,
                        _only_checkpoint(weights))
  if dump_job:
    results.update(dump_pass.run(
        dump_job, model, weights, run.devices.replicas,
        devices_lib.session_config(run.devices), record))
  if run.export:
    _export(run, model_function, params, _only_checkpoint(weights))
  results['global_step'] = resnet_checkpoint.checkpoint_step(
      weights.sources[run.classifier_ids[0]].head_checkpoint)
  run_record.finish(run.checkpoints.model_dir, entry, record, results)
  return results


def _start_record(run, dataset_name, params, dump_job):
  """Notes that the run begins; (name of its entry, its description)."""
  model_dir = run.checkpoints.model_dir
  if run.checkpoints.clean:
    run_record.remove_earlier_run(model_dir, params['initial_checkpoint'])
  record = run_record.describe_run(dataset_name, run.flag_values, run.devices)
  entry = run_record.entry_name(
      run.mode, run.classifier_ids, dump_job and dump_job.shard)
  run_record.start(model_dir, entry, record)
  if run.log_dir:
    run_record.write_benchmark_run(run.log_dir, record)
  return entry, record


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


def exit_variable_shapes(model, classifier_id, image_shape):
  """Names and shapes of the variables that one classifier needs, in order."""
  with tf.Graph().as_default():
    images = tf.placeholder(model.dtype, [None] + list(image_shape))
    model.exit_logits(images, [classifier_id], trunk_training=False,
                      head_training=False)
    return _shapes_of_variables()


def _training_shapes(model_function, params, image_shape):
  """Names and shapes of the variables of the training graph, in order."""
  with tf.Graph().as_default():
    tf.train.create_global_step()
    images = tf.placeholder(tf.float32, [None] + list(image_shape))
    labels = tf.placeholder(tf.int32, [None])
    model_function(images, labels, tf.estimator.ModeKeys.TRAIN, params)
    return _shapes_of_variables()


def _shapes_of_variables():
  return collections.OrderedDict(
      (variable.op.name, variable.shape.as_list())
      for variable in tf.global_variables())


def _estimator(run, model_function, params, strategy):
  """An Estimator on the model folder; `strategy` None for one replica."""
  save_steps = None
  if run.cluster.num_workers > 1:
    save_steps = distributed.STEPS_BETWEEN_CHECKPOINTS
  return tf.estimator.Estimator(
      model_function, run.checkpoints.model_dir, params=params,
      config=devices_lib.run_config(
          run.devices, run.random_seed, strategy, save_steps))


# ---- Training ---------------------------------------------------------------

def _train(run, model_function, input_function, params, evaluates_last=False):
  """Trains in cycles of `epochs_between_evals`, evaluating after each.

  Several machines train in one stretch, without evaluations on the way.

  The number of steps is fixed by epochs, images and batch, so that a run that
  was interrupted ends where an undisturbed one does. With 13 images, batches
  of 4 and 2 epochs that are 7 steps: the fourth batch has images of both
  epochs.

  Returns:
    The results of the last evaluation; empty if there was none.
  """
  num_workers = run.cluster.num_workers
  make_estimator = functools.partial(_estimator, run, model_function, params)
  checkpoint = resnet_checkpoint.newest_checkpoint(run.checkpoints.model_dir)
  step = resnet_checkpoint.checkpoint_step(checkpoint) if checkpoint else 0
  last_step = _steps_in(run.train.epochs, run)
  hooks = []
  if run.cluster.is_chief:
    hooks = training_hooks.make_hooks(
        run.train.hook_names, run.checkpoints.model_dir, run.log_dir,
        run.batch_size, run.classifier_ids)
    hooks.append(training_hooks.TrainingProgressHook(
        run.checkpoints.model_dir, last_step, run.batch_size,
        run.classifier_ids))
  if num_workers == 1:
    estimator = make_estimator(devices_lib.strategy(run.devices))
    cycle_steps = _cycle_steps(run, last_step)
  else:
    cycle_steps = [last_step]
  results = {}
  for cycle_step in cycle_steps:
    if cycle_step < min(step, last_step):
      continue  # Done by an earlier run of the same command.
    if step < cycle_step:
      tf.logging.info('training to step %d of %d', cycle_step, last_step)
      read = functools.partial(
          input_function, is_training=True, num_epochs=None,
          batch_size=run.batch_size // (
              len(run.devices.replicas) * num_workers),
          seed=_seed_from_step(run.random_seed, step))
      if num_workers == 1:
        estimator.train(read, hooks=hooks, max_steps=cycle_step)
      else:
        distributed.train(
            run.cluster, make_estimator, run.devices.num_gpus,
            run.devices.all_reduce_alg, read, hooks, cycle_step)
      step = cycle_step
    if run.cluster.is_chief and (step < last_step or evaluates_last):
      results = _evaluate(run, model_function, input_function, params, None)
      threshold = run.train.stop_threshold
      if threshold is not None and threshold <= min(
          top1 for top1, _ in results['validation'].values()):
        tf.logging.info('top-1 accuracy has reached --stop_threshold %s',
                        threshold)
        break
  return results


def _cycle_steps(run, last_step):
  """The steps at which training stops for an evaluation, ascending."""
  cycle_epochs = run.train.epochs_between_evals
  steps = [min(_steps_in(epochs, run), last_step)
           for epochs in range(cycle_epochs, run.train.epochs, cycle_epochs)]
  return sorted(set(steps + [last_step]))


def _steps_in(epochs, run):
  """Training steps in `epochs` passes, but no more than --max_train_steps."""
  steps = math.ceil(epochs * run.num_images['train'] / run.batch_size)
  return min(steps, run.train.max_steps or steps)


def _seed_from_step(random_seed, step):
  """Seed of the images' order and distortions from `step` on; None for none.

  With the same seed every cycle would bring the images of the first.
  """
  if random_seed is None:
    return None
  return (random_seed * 1000003 + step) % 2**31


# ---- Evaluation and export --------------------------------------------------

def _evaluate(run, model_function, input_function, params, checkpoint):
  """Top-1 and top-5 of the validation split; `checkpoint` None: the newest."""
  num_replicas = len(run.devices.replicas)
  num_images = run.num_images['validation']
  steps, padding = None, {}
  if run.is_synthetic:  # Without end.
    steps = (run.train and run.train.max_steps) or num_images // run.batch_size
  elif num_replicas > 1:
    # Replicas take their batches together: a round that is not full would be
    # dropped, and with it images.
    padding['num_padding_images'] = -num_images % run.batch_size
  estimator = _estimator(run, model_function, params,
                         devices_lib.strategy(run.devices))
  metrics = estimator.evaluate(
      functools.partial(
          input_function, is_training=False, num_epochs=1,
          batch_size=run.batch_size // num_replicas, **padding),
      steps=steps, checkpoint_path=checkpoint)
  training_hooks.log_metrics(
      run.log_dir or run.checkpoints.model_dir, metrics,
      int(metrics['global_step']))
  accuracies = collections.OrderedDict()
  for k in run.classifier_ids:
    top1, top5 = (
        float(metrics[value_name(name, k, run.classifier_ids)])
        for name in ('accuracy', 'accuracy_top_5'))
    accuracies[f'clf{k}'] = (top1, top5)
    print(f'clf{k} validation at step {metrics["global_step"]}: '
          f'top-1 {top1:.4f}, top-5 {top5:.4f}')
  return {'validation': accuracies}


def _export(run, model_function, params, checkpoint):
  """Writes a SavedModel into a new, dated folder of `run.export.folder`."""
  dtype = params['dtype']

  def receive():
    if not run.export.takes_image_bytes:
      images = tf.placeholder(
          dtype, [None] + list(run.image_shape), 'input_tensor')
      return tf.estimator.export.TensorServingInputReceiver(images, images)
    image_bytes = tf.placeholder(tf.string, [None], 'input_tensor')
    images = imagenet_preprocessing.preprocess_images(
        image_bytes, *run.image_shape)
    return tf.estimator.export.TensorServingInputReceiver(
        tf.cast(images, dtype), {'image_bytes': image_bytes})

  folder = _estimator(run, model_function, params, None).export_savedmodel(
      run.export.folder, receive, checkpoint_path=checkpoint,
      strip_default_attrs=True)
  print(f'exported {folder.decode()}')
