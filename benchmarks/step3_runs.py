"""One run of step 3, the published way or the short one, and what it took.

  python3 benchmarks/step3_runs.py RUN [...]

`one_network_one_pass.py` starts these, each in a process of its own; see the
functions named `run_*`. The last line on stdout is JSON: a dict from what was
done to `[seconds, CPU seconds]`, from when it is in full swing: import, graph
and weights are not in it, nor the first steps.
"""

import argparse
import collections
import functools
import json
import os
import resource
import sys
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, 'Imagenet'))

from tf_compat import configure_logging, tf

import shared_dumps
import dump_pass
import imagenet_input
import imagenet_main
import resnet_checkpoint
import resnet_model
import training_hooks
from imagenet_data import find_shards
from resnet_model import CLASSIFIER_IDS

# The command line dumps the splits in this order, all in one session.
_WARM_UP_SPLIT, _MEASURED_SPLIT = shared_dumps.SPLITS

# Official values, as in `imagenet_main.py`; the time does not depend on them.
_LEARNING_RATE, _MOMENTUM, _WEIGHT_DECAY = 0.00125, 0.9, 1e-4


def _now():
  """float64 [2]: a clock, and the CPU seconds of this process, kernel too."""
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return np.array([time.monotonic(), usage.ru_utime + usage.ru_stime])


class _StepClock(tf.train.SessionRunHook):
  """What the steps took that came after the first `num_skipped`.

  Attributes:
    start: `_now()` after the last step that is skipped.
    spent: a list [seconds, CPU seconds], until the last step.
  """

  def __init__(self, num_skipped):
    self._num_skipped = num_skipped

  def after_run(self, run_context, run_values):
    if self._num_skipped:
      self._num_skipped -= 1
      self.start = _now()
    self.spent = list(_now() - self.start)


def _make_model(args):
  return imagenet_main.ImagenetModel(args.resnet_size, 'channels_last')


def run_pretrained(args):
  """Saves the whole network, all exits, with initial values, in --folder; tells
  TensorFlow's version."""
  with tf.Graph().as_default(), tf.Session() as session:
    tf.set_random_seed(0)
    tf.train.get_or_create_global_step()
    _make_model(args).exit_logits(
        tf.zeros([1, args.image_size, args.image_size, 3]), CLASSIFIER_IDS,
        trunk_training=False, head_training=False)
    session.run(tf.global_variables_initializer())
    tf.train.Saver().save(session, os.path.join(args.folder, 'model.ckpt'), 0)
  return {'version': tf.VERSION}


def _published_model_fn(features, labels, mode, params):
  """The published graph: whole, with both heads, for one of the classifiers.

  In training the BN of all of it uses the statistics of the batch and updates
  its moving averages.
  """
  args = params['args']
  is_training = mode == tf.estimator.ModeKeys.TRAIN
  logits = _make_model(args).exit_logits(
      features, CLASSIFIER_IDS, is_training, is_training)[args.classifier]
  predictions = {'classes': tf.argmax(logits, axis=1),
                 'probabilities': tf.nn.softmax(logits)}
  if mode == tf.estimator.ModeKeys.PREDICT:
    return tf.estimator.EstimatorSpec(mode, predictions)
  loss = tf.losses.sparse_softmax_cross_entropy(labels, logits)
  loss += _WEIGHT_DECAY * tf.add_n([
      tf.nn.l2_loss(variable) for variable in tf.trainable_variables()
      if not resnet_model.is_batch_norm(variable.name)])
  metrics = {
      'accuracy': tf.metrics.accuracy(labels, predictions['classes']),
      'accuracy_top_5': tf.metrics.mean(tf.nn.in_top_k(logits, labels, 5))}
  head = [variable for variable in tf.trainable_variables()
          if variable.name.startswith(
              resnet_model.head_prefix(args.classifier))]
  train_op = None
  if is_training:
    minimize = tf.train.MomentumOptimizer(_LEARNING_RATE, _MOMENTUM).minimize(
        loss, tf.train.get_or_create_global_step(), head)
    train_op = tf.group(minimize, tf.get_collection(tf.GraphKeys.UPDATE_OPS))
  return tf.estimator.EstimatorSpec(
      mode, predictions, loss, train_op, eval_metric_ops=metrics)


def _published_estimator(args):
  return tf.estimator.Estimator(
      _published_model_fn, args.folder, params={'args': args})


def run_published_training(args):
  """Trains one head for --steps steps; the time is of the last ones."""
  clock = _StepClock(args.warm_up_steps)
  _published_estimator(args).train(
      lambda: imagenet_input.input_fn(
          True, args.data_dir, args.batch_size, num_epochs=None,
          image_size=args.image_size), [clock], max_steps=args.steps)
  return {'training': clock.spent}


def _warm_up_and_measured(args):
  """One batch, and then, whose reading has not begun before, a split."""
  warm_up, measured = [
      imagenet_input.evaluation_dataset(
          find_shards(args.data_dir, split), args.batch_size,
          image_size=args.image_size)
      for split in (_WARM_UP_SPLIT, _MEASURED_SPLIT)]
  return warm_up.take(1).concatenate(measured)


def run_published_dump(args):
  """Predicts all images, the rows in one array; sorts them; and evaluates."""
  estimator = _published_estimator(args)
  checkpoint = tf.train.latest_checkpoint(args.pretrained)
  make_input = functools.partial(_warm_up_and_measured, args)
  clock = _StepClock(1)
  rows = np.zeros([args.images + args.batch_size,
                   imagenet_main.NUM_CLASSES], np.float32)
  for number, prediction in enumerate(estimator.predict(
      make_input, hooks=[clock], checkpoint_path=checkpoint)):
    rows[number] = prediction['probabilities']
  assert number + 1 == len(rows), (number, len(rows))
  top5_classes = rows.argsort()[:, ::-1][:, :5]  # All of them, as published.
  for name, values in (('probabilities', rows), ('top5', top5_classes)):
    np.save(os.path.join(args.folder, name), values)
  predicting = list(_now() - clock.start)
  clock = _StepClock(1)
  estimator.evaluate(make_input, hooks=[clock], checkpoint_path=checkpoint)
  return {'predicting': predicting, 'evaluating': clock.spent}


def run_command_line(args):
  """`imagenet_main.py` with --flags and those of the sizes and folders.

  The time of training is of the last steps, that of dumping of the split that
  is dumped last: from before its first image is read until all files are whole
  and have their names.
  """
  spent = {}
  clock = _StepClock(args.warm_up_steps)
  make_hooks = training_hooks.make_hooks

  run_dump, dump_split = dump_pass.run, dump_pass._dump_split
  start_of_split = None

  def note_start(*arguments):
    nonlocal start_of_split
    start_of_split = _now()
    return dump_split(*arguments)

  def note_end(*arguments):
    results = run_dump(*arguments)
    spent['dumping'] = list(_now() - start_of_split)
    return results

  training_hooks.make_hooks = (
      lambda *arguments: make_hooks(*arguments) + [clock])
  dump_pass._dump_split, dump_pass.run = note_start, note_end
  sys.argv = [
      'imagenet_main.py', '-rv', '2', '-rs', str(args.resnet_size),
      '-bs', str(args.batch_size), '--image_size', str(args.image_size),
      '--data_dir', args.data_dir, '-pmcp', args.pretrained,
      '-md', os.path.join(args.folder, 'model'),
      '--softmax_dir', os.path.join(args.folder, 'softmax')] + args.flags
  try:
    imagenet_main.main()
  except SystemExit as end:
    if end.code:
      raise
  if hasattr(clock, 'spent'):
    spent['training'] = clock.spent
  return spent


def run_bare(args):
  """The graph of the dumps, over --steps times one batch in memory."""
  shape = [args.image_size, args.image_size, imagenet_main.NUM_CHANNELS]
  model = _make_model(args)
  weights = resnet_checkpoint.to_evaluate(
      resnet_checkpoint.CheckpointPaths(args.pretrained),
      resnet_checkpoint.exit_shapes(model, CLASSIFIER_IDS, shape))

  def make_datasets():
    images = np.random.RandomState(0).uniform(
        -120, 130, [args.batch_size] + shape).astype(np.float32)
    labels = np.zeros([args.batch_size], np.int32)
    return {'all': tf.data.Dataset.from_tensors((images, labels)).repeat(
        args.steps)}

  with dump_pass.ExitSession(
      model, CLASSIFIER_IDS, make_datasets, weights, ['/cpu:0'],
      tf.ConfigProto(allow_soft_placement=True)) as session:
    for number, _ in enumerate(session.run('all')):
      if number < args.warm_up_steps:
        start = _now()
    return {'computing': list(_now() - start)}


RUNS = collections.OrderedDict([
    ('pretrained', run_pretrained),
    ('published_training', run_published_training),
    ('published_dump', run_published_dump),
    ('command_line', run_command_line),
    ('bare', run_bare)])


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('run', choices=RUNS)
  parser.add_argument('--resnet_size', type=int)
  parser.add_argument('--image_size', type=int)
  parser.add_argument('--batch_size', type=int)
  parser.add_argument('--images', type=int, help='in the split that is timed')
  parser.add_argument('--steps', type=int)
  parser.add_argument('--warm_up_steps', type=int)
  parser.add_argument('--classifier', type=int)
  parser.add_argument('--data_dir')
  parser.add_argument('--pretrained', help='folder of the checkpoint')
  parser.add_argument('--folder', help='for what is written')
  parser.add_argument('--flags', type=json.loads,
                      help='more of imagenet_main.py, a JSON list')
  args = parser.parse_args()
  if args.run != 'command_line':  # Which does so itself.
    configure_logging()
  print(json.dumps(RUNS[args.run](args)))


if __name__ == '__main__':
  main()
