"""The loop that trains, evaluates, dumps and exports.

Knows of residual networks and their exits, not of ImageNet: the data set's
names, counts and schedule come from `imagenet_main.py`.
"""

import collections
import functools
import os

from tf_compat import num_local_gpus, tf

import dump_run
import exit_weights
import imagenet_preprocessing
import resnet_checkpoint
import resnet_model
import run_record
import training_hooks
from cluster import ONE_MACHINE, check_flags
from devices import gpu_thread_settings, resolve_devices, run_config
from devices import session_config
from resnet_flags import parsed_dtype, parsed_loss_scale
from training_cluster import TrainingCluster
# Under the names the official code has here.
# pylint: disable=unused-import
from imagenet_input import process_record_dataset
from model_function import learning_rate_with_decay, resnet_model_fn
from resnet_flags import define_resnet_flags
# pylint: enable=unused-import
from user_error import UserError


def resnet_main(flags_obj, model_function, input_function, dataset_name,
                shape=None, num_images=None, model_params=None,
                dump_job=None, cluster=ONE_MACHINE):
  """Trains, evaluates, dumps and exports, as the flags say.

  Args:
    flags_obj: the parsed flags.
    model_function: an Estimator's model function.
    input_function: like `imagenet_input.input_fn`.
    dataset_name: for the record of the run.
    shape: of an image, [height, width, channels].
    num_images: a dict from split to count.
    model_params: for the model function, beside the official ones.
    dump_job: a `dump_run.DumpJob`, done last; None for no dumps.
    cluster: a `cluster.Cluster` of the machines that train. All that is not
      training is the chief's; the other workers have no results.

  Returns:
    A dict of results: 'global_step', and for each split a dict from classifier
    ('clf0') to its top-1 and top-5 accuracy, fractions.

  Raises:
    UserError: the flags, the devices or the checkpoints do not fit.
  """
  devices = resolve_devices(flags_obj, num_local_gpus())
  check_flags(cluster, flags_obj, len(devices.replicas))
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
      'classifier_ids': [resnet_model.FINAL_CLASSIFIER_ID],
  }
  params.update(model_params or {})
  graph_shapes = functools.partial(
      variable_shapes, model_function, dict(params), shape)
  model = exit_shapes = None
  if dump_job:
    model = dump_job.make_model(
        data_format=devices.data_format, dtype=params['dtype'])
    exit_shapes = collections.OrderedDict(
        (k, exit_variable_shapes(model, k, shape))
        for k in sorted(dump_job.classifier_ids))
  if eval_only and dump_job:
    weights = exit_weights.to_dump(flags_obj, exit_shapes)
    needed_checkpoints = set(weights.checkpoint_of.values())
  elif eval_only:
    evaluated_checkpoint = resnet_checkpoint.checkpoint_to_evaluate(
        flags_obj, graph_shapes)
    needed_checkpoints = {evaluated_checkpoint}
  else:
    params['initial_checkpoint'] = resnet_checkpoint.checkpoint_to_start_from(
        flags_obj, params['classifier_ids'], graph_shapes)
    needed_checkpoints = {params['initial_checkpoint']} - {None}
  _check_export(flags_obj, params['classifier_ids'], needed_checkpoints)
  if flags_obj.clean and cluster.is_chief:
    run_record.remove_earlier_run(flags_obj.model_dir, needed_checkpoints)

  mode = ('eval_only' if eval_only else
          'fine_tune' if flags_obj.fine_tune else 'train')
  run = run_record.describe_run(flags_obj, dataset_name, devices)
  if cluster.is_chief:
    run_record.write_results(flags_obj.model_dir, mode, run, {})
  if flags_obj.benchmark_log_dir and cluster.is_chief:
    run_record.write_benchmark_run(flags_obj.benchmark_log_dir, run)

  def make_estimator(distributed, workers=None):
    return tf.estimator.Estimator(
        model_function, flags_obj.model_dir, params=params, config=run_config(
            flags_obj, devices, inter_op_threads, distributed, workers))

  read = functools.partial(
      input_function, data_dir=flags_obj.data_dir,
      batch_size=flags_obj.batch_size // len(devices.replicas),
      dtype=params['dtype'], datasets_num_private_threads=private_threads,
      num_parallel_batches=flags_obj.datasets_num_parallel_batches or 1)
  estimator = make_estimator(distributed=True)
  evaluate = functools.partial(
      _evaluate, flags_obj, estimator, read, num_images, len(devices.replicas),
      params['classifier_ids'])
  results = {}
  if not eval_only:
    read_to_train = functools.partial(
        read, is_training=True, num_epochs=None, cluster=cluster,
        batch_size=flags_obj.batch_size // (
            len(devices.replicas) * cluster.num_workers))
    train, workers = functools.partial(estimator.train, read_to_train), None
    if cluster.num_workers > 1:
      workers = TrainingCluster(
          cluster, flags_obj.model_dir, devices.num_gpus,
          flags_obj.all_reduce_alg,
          session_config(flags_obj, devices, inter_op_threads))
      train = functools.partial(
          workers.train, make_estimator(distributed=True, workers=workers),
          read_to_train)
      if not cluster.is_chief:
        workers.follow(*train.args)
        return {}
    results = _train_and_evaluate(
        flags_obj, train, num_images, params['classifier_ids'], evaluate,
        evaluate_last=not dump_job)
    if workers is not None:
      workers.dismiss()
    evaluated_checkpoint = resnet_checkpoint.newest_checkpoint(
        flags_obj.model_dir)
    if dump_job:
      weights = exit_weights.of_one_checkpoint(
          evaluated_checkpoint, exit_shapes)
  elif not dump_job:
    results = evaluate(evaluated_checkpoint)
  if dump_job:
    results.update(dump_run.run(
        dump_job, model, weights, devices.replicas,
        session_config(flags_obj, devices, inter_op_threads),
        flags_obj.batch_size, run))
    evaluated_checkpoint = next(
        iter(weights.sources.values())).head_checkpoint
  if flags_obj.export_dir:
    _export(make_estimator(distributed=False), evaluated_checkpoint,
            flags_obj.export_dir, shape, params['dtype'],
            flags_obj.image_bytes_as_serving_input)
  results['global_step'] = resnet_checkpoint.checkpoint_step(
      evaluated_checkpoint)
  run_record.write_results(flags_obj.model_dir, mode, run, results)
  return results


def _check_export(flags_obj, classifier_ids, needed_checkpoints):
  """Refuses an export that does not come from one checkpoint."""
  if flags_obj.export_dir and len(needed_checkpoints) > 1:
    raise UserError(
        '--export_dir: {} would come from {} checkpoints; train or evaluate '
        'from one'.format(' and '.join(
            'clf{}'.format(k) for k in classifier_ids),
                          len(needed_checkpoints)))


def exit_variable_shapes(model, classifier_id, shape):
  """Names and shapes of the variables that one classifier needs.

  Args:
    model: a `resnet_model.Model`.
    classifier_id: the classifier.
    shape: of an image.

  Returns:
    An ordered dict from name to shape.
  """
  with tf.Graph().as_default():
    images = tf.placeholder(model.dtype, [None] + list(shape))
    model.exit_logits(images, [classifier_id], trunk_training=False,
                      head_training=False)
    return _shapes_of_variables()


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
    return _shapes_of_variables()


def _shapes_of_variables():
  return collections.OrderedDict(
      (variable.op.name, variable.shape.as_list())
      for variable in tf.global_variables())


def _train_and_evaluate(flags_obj, train, num_images, classifier_ids,
                        evaluate, evaluate_last):
  """Trains in cycles of --epochs_between_evals, evaluating after each.

  The number of steps is fixed by epochs, images and batch, so that a run that
  was interrupted ends where an undisturbed one does.
  """
  hooks = training_hooks.make_hooks(
      flags_obj.hooks, flags_obj.model_dir, flags_obj.benchmark_log_dir,
      flags_obj.batch_size, classifier_ids)
  checkpoint = resnet_checkpoint.newest_checkpoint(flags_obj.model_dir)
  step = resnet_checkpoint.checkpoint_step(checkpoint) if checkpoint else 0
  last_step = _steps_in(flags_obj.train_epochs, flags_obj, num_images)
  hooks.append(training_hooks.TrainingProgressHook(
      flags_obj.model_dir, last_step, flags_obj.batch_size, classifier_ids))
  cycle_epochs = flags_obj.epochs_between_evals
  results = {}
  for epoch in range(cycle_epochs, flags_obj.train_epochs + cycle_epochs,
                     cycle_epochs):
    cycle_step = min(_steps_in(epoch, flags_obj, num_images), last_step)
    if cycle_step < min(step, last_step):
      continue  # Done by an earlier run of the same command.
    if step < cycle_step:
      tf.logging.info('training to step %d of %d', cycle_step, last_step)
      train(hooks=hooks, max_steps=cycle_step)
      step = cycle_step
    if step < last_step or evaluate_last:
      results = evaluate(None)
      threshold = flags_obj.stop_threshold
      if threshold is not None and threshold <= min(
          top1 for top1, _ in results['validation'].values()):
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
              classifier_ids, checkpoint):
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
  accuracies = collections.OrderedDict()
  for k in classifier_ids:
    top1, top5 = accuracies['clf{}'.format(k)] = tuple(
        float(metrics[training_hooks.value_name(name, k, classifier_ids)])
        for name in ('accuracy', 'accuracy_top_5'))
    print('clf{} validation at step {}: top-1 {:.4f}, top-5 {:.4f}'.format(
        k, metrics['global_step'], top1, top5))
  return {'validation': accuracies}


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
