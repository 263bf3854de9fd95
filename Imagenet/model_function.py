"""The model function of the Estimator, and its learning rate.

Knows of residual networks and their exits, not of ImageNet: names, counts and
schedule come from `imagenet_main.py`.
"""

import collections
import functools

from tf_compat import tf

import resnet_checkpoint
import resnet_model
from training_hooks import value_name


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

  The network is built as far as the deepest of them. Fine-tuning trains the
  classifiers' own variables and nothing else; the sum of their losses is
  minimised, so that with a frozen trunk each is trained as if it were alone.

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
    fine_tune: train the classifiers alone.
    classifier_ids: of `resnet_model.CLASSIFIER_IDS`, which ones.
    trunk_batch_norm: in fine-tuning, 'frozen' runs the trunk's BN with its
      moving averages and leaves them; 'update' uses the batch's statistics
      and updates them, as the published code does.
    initial_checkpoint: where the trunk starts from in training; None for a
      new one. The classifiers start new.

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
  images = tf.cast(images, dtype)
  named = functools.partial(value_name, classifier_ids=classifier_ids)

  model = model_class(resnet_size, data_format, resnet_version=resnet_version,
                      dtype=dtype)
  trunk_is_fixed = fine_tune and trunk_batch_norm == 'frozen'
  outputs = collections.OrderedDict(
      (k, ExitOutput.of_logits(logits, named('softmax_tensor', k)))
      for k, logits in model.exit_logits(
          images, classifier_ids,
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
  # With BN's moving averages; if the trunk is frozen there are the head's
  # alone. Control dependencies would not do: in a replica of TensorFlow 1.12's
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
  prefixes = tuple(
      resnet_model.head_prefix(k) for k in classifier_ids) if fine_tune else (
          resnet_model.MODEL_SCOPE + '/',)
  variables = [variable for variable in tf.trainable_variables()
               if variable.name.startswith(prefixes)]
  assert variables, 'no variable named {}*'.format('* or '.join(prefixes))
  return variables


class ExitOutput(collections.namedtuple(
    'ExitOutput', 'logits probabilities top5_classes top5_probabilities')):
  """What one classifier says: float32 [batch, classes] twice, then the five
  most probable classes, best first, int32 and float32 [batch, 5]."""

  @classmethod
  def of_logits(cls, logits, name=None):
    """Softmax and top-5 in float32, whatever the network computes in."""
    logits = tf.cast(logits, tf.float32)
    probabilities = tf.nn.softmax(logits, name=name)
    top5_probabilities, top5_classes = tf.nn.top_k(
        probabilities, k=min(5, logits.shape[1].value))
    return cls(logits, probabilities, top5_classes, top5_probabilities)
