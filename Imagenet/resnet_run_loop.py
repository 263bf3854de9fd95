"""The model function, and the loop that trains, evaluates, dumps and exports.

Knows of residual networks and their exits, not of ImageNet: the data set's
names, counts and schedule come from `imagenet_main.py`.
"""

import collections
import functools
import os

from tf_compat import num_local_gpus, tf

import cascade_record
import imagenet_preprocessing
import resnet_checkpoint
import resnet_model
import run_record
import training_hooks
# Under the names the official code has here.
from imagenet_input import process_record_dataset  # pylint: disable=unused-import
from devices import gpu_thread_settings, resolve_devices, run_config
from resnet_flags import define_resnet_flags  # pylint: disable=unused-import
from resnet_flags import parsed_dtype, parsed_loss_scale
from progress import Progress
from softmax_dump import SplitDump


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
                    classifier_id=resnet_model.FINAL_CLASSIFIER_ID,
                    trunk_batch_norm='frozen', initial_checkpoint=None):
  """The Estimator's model function: one classifier of the network.

  The network is built as far as this classifier. Fine-tuning trains the
  classifier's own variables and nothing else.

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
    fine_tune: train the classifier alone.
    classifier_id: one of `resnet_model.CLASSIFIER_IDS`.
    trunk_batch_norm: in fine-tuning, 'frozen' runs the trunk's BN with its
      moving averages and leaves them; 'update' uses the batch's statistics
      and updates them, as the published code does.
    initial_checkpoint: where the trunk starts from in training; None for a
      new one. The classifier starts new.

  Returns:
    An EstimatorSpec. Predictions: 'classes' int64 [batch], 'probabilities'
    float32 [batch, classes], 'top5_classes' int32 and 'top5_probabilities'
    float32 [batch, 5], best first; and 'labels' if the features hold them.
    Metrics: 'accuracy', 'accuracy_top_5', 'cross_entropy'.
  """
  is_training = mode == tf.estimator.ModeKeys.TRAIN
  images, carried_labels = features, None
  if isinstance(features, dict):
    images, carried_labels = features['image'], features.get('label')
  images = tf.cast(images, dtype)

  model = model_class(resnet_size, data_format, resnet_version=resnet_version,
                      dtype=dtype)
  trunk_is_fixed = fine_tune and trunk_batch_norm == 'frozen'
  logits = model.exit_logits(
      images, [classifier_id],
      trunk_training=is_training and not trunk_is_fixed,
      head_training=is_training)[classifier_id]
  # Softmax and loss in float32, whatever the network computes in.
  logits = tf.cast(logits, tf.float32)

  predictions = {
      'classes': tf.argmax(logits, axis=1),
      'probabilities': tf.nn.softmax(logits, name='softmax_tensor'),
  }
  top5_probabilities, top5_classes = tf.nn.top_k(
      predictions['probabilities'], k=min(5, logits.shape[1].value))

  if mode == tf.estimator.ModeKeys.PREDICT:
    exported = tf.estimator.export.PredictOutput(dict(predictions))
    predictions.update(top5_classes=top5_classes,
                       top5_probabilities=top5_probabilities)
    if carried_labels is not None:
      predictions['labels'] = carried_labels
    return tf.estimator.EstimatorSpec(
        mode=mode, predictions=predictions,
        export_outputs={'predict': exported})

  trained = trained_variables(classifier_id, fine_tune)
  labels = tf.to_int32(labels)
  is_image = labels >= 0
  cross_entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(
      logits=logits, labels=tf.maximum(labels, 0))
  cross_entropy = tf.losses.compute_weighted_loss(
      cross_entropies, weights=tf.to_float(is_image))
  tf.identity(cross_entropy, name='cross_entropy')

  if loss_filter_fn is None:
    loss_filter_fn = lambda name: not resnet_model.is_batch_norm(name)
  l2_loss = weight_decay * tf.add_n([
      tf.nn.l2_loss(tf.cast(variable, tf.float32)) for variable in trained
      if loss_filter_fn(variable.name)])
  loss = cross_entropy + l2_loss

  is_top1 = tf.to_float(tf.equal(top5_classes[:, 0], labels))
  is_top5 = tf.to_float(tf.reduce_any(
      tf.equal(top5_classes, labels[:, tf.newaxis]), axis=1))

  if mode == tf.estimator.ModeKeys.EVAL:
    return tf.estimator.EstimatorSpec(
        mode=mode, predictions=predictions, loss=loss, eval_metric_ops={
            'accuracy': tf.metrics.mean(is_top1, weights=is_image),
            'accuracy_top_5': tf.metrics.mean(is_top5, weights=is_image),
            'cross_entropy': tf.metrics.mean(
                cross_entropies, weights=is_image),
        })

  if initial_checkpoint:
    resnet_checkpoint.initialize_from(initial_checkpoint, [
        variable for variable in tf.global_variables()
        if resnet_checkpoint.is_pretrained(
            resnet_checkpoint.saved_name(variable), classifier_id)])

  learning_rate = learning_rate_fn(tf.train.get_or_create_global_step())
  for name, value in (('learning_rate', learning_rate),
                      ('train_accuracy', tf.reduce_mean(is_top1)),
                      ('train_accuracy_top_5', tf.reduce_mean(is_top5))):
    tf.identity(value, name=name)
    tf.summary.scalar(name, value)
  tf.summary.scalar('cross_entropy', cross_entropy)

  optimizer = tf.train.MomentumOptimizer(learning_rate, momentum)
  gradients = optimizer.compute_gradients(loss * loss_scale, trained)
  if loss_scale != 1:
    gradients = [(gradient / loss_scale, variable)
                 for gradient, variable in gradients]
  # With BN's moving averages; if the trunk is frozen there are the head's
  # alone. Control dependencies would not do: in a replica of TensorFlow 1.12's
  # MirroredStrategy `apply_gradients` drops them, and the averages stay 0 and 1.
  train_op = tf.group(
      optimizer.apply_gradients(
          gradients, tf.train.get_or_create_global_step()),
      *tf.get_collection(tf.GraphKeys.UPDATE_OPS))
  return tf.estimator.EstimatorSpec(
      mode=mode, predictions=predictions, loss=loss, train_op=train_op)


def trained_variables(classifier_id, fine_tune):
  """The variables that training changes (BN's moving averages aside)."""
  prefix = (resnet_model.head_prefix(classifier_id) if fine_tune
            else resnet_model.MODEL_SCOPE + '/')
  variables = [variable for variable in tf.trainable_variables()
               if variable.name.startswith(prefix)]
  assert variables, 'no variable named {}*'.format(prefix)
  return variables


# One pass over a split for the dumps: `dataset_fn` returns a dataset of
# (images, labels) in reading order.
DumpPass = collections.namedtuple('DumpPass', 'split num_images dataset_fn')


def resnet_main(flags_obj, model_function, input_function, dataset_name,
                shape=None, num_images=None, model_params=None,
                dump_passes=(), network=None):
  """Trains, evaluates, dumps and exports, as the flags say.

  Args:
    flags_obj: the parsed flags.
    model_function: an Estimator's model function.
    input_function: like `imagenet_input.input_fn`.
    dataset_name: for the record of the run.
    shape: of an image, [height, width, channels].
    num_images: a dict from split to count.
    model_params: for the model function, beside the official ones.
    dump_passes: `DumpPass`es, done last, into an existing --softmax_dir.
    network: `cascade_record.Network` of the dumps; None where there are none.

  Returns:
    A dict of results: accuracies per split (fractions), global step.

  Raises:
    UserError: the flags, the devices or the checkpoints do not fit.
  """
  devices = resolve_devices(flags_obj, num_local_gpus())
  environment, inter_op_threads, private_threads = gpu_thread_settings(
      flags_obj, devices.num_gpus)
  os.environ.update(environment)
  # No epochs to train: as the official code has it, evaluation alone.
  eval_only = flags_obj.eval_only or not flags_obj.train_epochs

  params = {
      'resnet_size': int(flags_obj.resnet_size),
      'data_format': devices.data_format,
      'batch_size': flags_obj.batch_size,
      'resnet_version': int(flags_obj.resnet_version),
      'loss_scale': parsed_loss_scale(flags_obj),
      'dtype': parsed_dtype(flags_obj),
      'fine_tune': flags_obj.fine_tune,
      'classifier_id': resnet_model.FINAL_CLASSIFIER_ID,
  }
  params.update(model_params or {})
  graph_shapes = functools.partial(
      variable_shapes, model_function, dict(params), shape)
  evaluated_checkpoint = None
  if eval_only:
    evaluated_checkpoint = resnet_checkpoint.checkpoint_to_evaluate(
        flags_obj, graph_shapes)
  else:
    params['initial_checkpoint'] = resnet_checkpoint.checkpoint_to_start_from(
        flags_obj, params['classifier_id'], graph_shapes)
  if flags_obj.clean:
    run_record.remove_earlier_run(
        flags_obj.model_dir,
        evaluated_checkpoint or params['initial_checkpoint'])

  mode = ('eval_only' if eval_only else
          'fine_tune' if flags_obj.fine_tune else 'train')
  run = run_record.describe_run(flags_obj, dataset_name, devices)
  run_record.write_results(flags_obj.model_dir, mode, run, {})
  if flags_obj.benchmark_log_dir:
    run_record.write_benchmark_run(flags_obj.benchmark_log_dir, run)

  def make_estimator(distributed):
    return tf.estimator.Estimator(
        model_function, flags_obj.model_dir, params=params, config=run_config(
            flags_obj, devices, inter_op_threads, distributed))

  read = functools.partial(
      input_function, data_dir=flags_obj.data_dir,
      batch_size=flags_obj.batch_size // len(devices.replicas),
      dtype=params['dtype'], datasets_num_private_threads=private_threads,
      num_parallel_batches=flags_obj.datasets_num_parallel_batches or 1)
  results = {}
  if not eval_only:
    results = _train_and_evaluate(
        flags_obj, make_estimator(distributed=True), read, num_images,
        len(devices.replicas), evaluate_last=not dump_passes)
    evaluated_checkpoint = resnet_checkpoint.newest_checkpoint(
        flags_obj.model_dir)
  elif not dump_passes:
    results = _evaluate(
        flags_obj, make_estimator(distributed=True), read, num_images,
        len(devices.replicas), evaluated_checkpoint)
  for dump_pass in dump_passes:
    results[dump_pass.split] = _dump(
        make_estimator(distributed=False), evaluated_checkpoint, dump_pass,
        flags_obj.softmax_dir, params['classifier_id'], params['num_classes'])
  if dump_passes:
    cascade_record.write(flags_obj.softmax_dir, network,
                         params['classifier_id'], evaluated_checkpoint,
                         run['versions'])
  if flags_obj.export_dir:
    _export(make_estimator(distributed=False), evaluated_checkpoint,
            flags_obj.export_dir, shape, params['dtype'],
            flags_obj.image_bytes_as_serving_input)
  results['global_step'] = resnet_checkpoint.checkpoint_step(
      evaluated_checkpoint)
  run_record.write_results(flags_obj.model_dir, mode, run, results)
  return results


def variable_shapes(model_function, params, shape, mode):
  """Names and shapes of the variables that a mode of the model builds.

  Args:
    model_function: an Estimator's model function.
    params: for it.
    shape: of an image.
    mode: a `tf.estimator.ModeKeys`.

  Returns:
    An ordered dict from name to shape.
  """
  with tf.Graph().as_default():
    tf.train.create_global_step()
    images = tf.placeholder(tf.float32, [None] + list(shape))
    labels = tf.placeholder(tf.int32, [None])
    model_function(images, labels, mode, params)
    return collections.OrderedDict(
        (variable.op.name, variable.shape.as_list())
        for variable in tf.global_variables())


def _train_and_evaluate(flags_obj, estimator, read, num_images, num_replicas,
                        evaluate_last):
  """Trains in cycles of --epochs_between_evals, evaluating after each.

  The number of steps is fixed by epochs, images and batch, so that a run that
  was interrupted ends where an undisturbed one does.
  """
  hooks = training_hooks.make_hooks(
      flags_obj.hooks, flags_obj.model_dir, flags_obj.benchmark_log_dir,
      flags_obj.batch_size)
  checkpoint = resnet_checkpoint.newest_checkpoint(flags_obj.model_dir)
  step = resnet_checkpoint.checkpoint_step(checkpoint) if checkpoint else 0
  last_step = _steps_in(flags_obj.train_epochs, flags_obj, num_images)
  cycle_epochs = flags_obj.epochs_between_evals
  results = {}
  for epoch in range(cycle_epochs, flags_obj.train_epochs + cycle_epochs,
                     cycle_epochs):
    cycle_step = min(_steps_in(epoch, flags_obj, num_images), last_step)
    if cycle_step < min(step, last_step):
      continue  # Done by an earlier run of the same command.
    if step < cycle_step:
      tf.logging.info('training to step %d of %d', cycle_step, last_step)
      estimator.train(lambda: read(is_training=True, num_epochs=None),
                      hooks=hooks, max_steps=cycle_step)
      step = cycle_step
    if step < last_step or evaluate_last:
      results = _evaluate(flags_obj, estimator, read, num_images, num_replicas,
                          None)
      threshold = flags_obj.stop_threshold
      if threshold is not None and results['validation'][0] >= threshold:
        tf.logging.info('top-1 accuracy has reached --stop_threshold %s',
                        threshold)
        break
    if step >= last_step:
      break
  return results


def _steps_in(epochs, flags_obj, num_images):
  """Training steps in `epochs` passes, --max_train_steps at most."""
  steps = -(-epochs * num_images['train'] // flags_obj.batch_size)
  return min(steps, flags_obj.max_train_steps or steps)


def _evaluate(flags_obj, estimator, read, num_images, num_replicas,
              checkpoint):
  """Top-1 and top-5 of the validation split; `checkpoint` None: the newest."""
  steps = None
  if flags_obj.use_synthetic_data:  # Without end.
    steps = flags_obj.max_train_steps or (
        num_images['validation'] // flags_obj.batch_size)
  padding = {}
  if num_replicas > 1 and not flags_obj.use_synthetic_data:
    # Replicas take their batches together: a round that is not full would be
    # dropped, and with it images.
    padding['num_padding_images'] = (
        -num_images['validation'] % flags_obj.batch_size)
  metrics = estimator.evaluate(
      lambda: read(is_training=False, num_epochs=1, **padding), steps=steps,
      checkpoint_path=checkpoint)
  training_hooks.log_metrics(
      flags_obj.benchmark_log_dir or flags_obj.model_dir, metrics,
      int(metrics['global_step']))
  top1, top5 = float(metrics['accuracy']), float(metrics['accuracy_top_5'])
  print('validation at step {}: top-1 {:.4f}, top-5 {:.4f}'.format(
      metrics['global_step'], top1, top5))
  return {'validation': (top1, top5)}


def _dump(estimator, checkpoint, dump_pass, folder, classifier_id,
          num_classes):
  """Dumps one classifier's softmaxes of one split; its top-1 and top-5."""
  title = 'clf{} {}'.format(classifier_id, dump_pass.split)
  progress = Progress(title, dump_pass.num_images, 'images')
  with SplitDump(folder, dump_pass.split, dump_pass.num_images, num_classes,
                 [classifier_id]) as dump:
    for rows in estimator.predict(
        dump_pass.dataset_fn, checkpoint_path=checkpoint,
        yield_single_examples=False):
      dump.append(rows['labels'], {classifier_id: (
          rows['probabilities'], rows['top5_classes'],
          rows['top5_probabilities'])})
      progress.update(dump.num_written)
  progress.finish()
  top1, top5 = dump.accuracy(classifier_id)
  print('{}: top-1 {:.4f}, top-5 {:.4f} of {:,} images'.format(
      title, top1, top5, dump_pass.num_images))
  return top1, top5


def _export(estimator, checkpoint, export_dir, shape, dtype,
            from_image_bytes):
  """Writes a SavedModel into a new, dated folder of `export_dir`."""
  def receive():
    if not from_image_bytes:
      images = tf.placeholder(dtype, [None] + list(shape), 'input_tensor')
      return tf.estimator.export.TensorServingInputReceiver(images, images)
    height, width, num_channels = shape
    image_bytes = tf.placeholder(tf.string, [None], 'input_tensor')
    no_boxes = tf.zeros([1, 0, 4], tf.float32)
    images = tf.map_fn(
        lambda image: tf.cast(imagenet_preprocessing.preprocess_image(
            image, no_boxes, height, width, num_channels), dtype),
        image_bytes, dtype=dtype, back_prop=False)
    return tf.estimator.export.TensorServingInputReceiver(
        images, {'image_bytes': image_bytes})

  folder = estimator.export_savedmodel(
      export_dir, receive, checkpoint_path=checkpoint,
      strip_default_attrs=True)
  print('exported {}'.format(folder.decode()))
