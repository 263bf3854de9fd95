"""Session hooks: the progress of training, and those of --hooks."""

import datetime
import json
import os

import numpy as np

from tf_compat import log, tf

from resnet_model import value_name
from shared_terminal import Progress

METRIC_LOG_NAME = 'metric.log'

HOOK_NAMES = ('LoggingTensorHook', 'ProfilerHook', 'ExamplesPerSecondHook',
              'LoggingMetricHook')


def logged_tensors(classifier_ids):
  """Names of the tensors that the model function has for these hooks."""
  return ['learning_rate'] + [
      value_name(name, k, classifier_ids) for k in classifier_ids
      for name in ('cross_entropy', 'train_accuracy')]


def make_hooks(names, model_dir, benchmark_log_dir, batch_size,
               classifier_ids):
  """The hooks of --hooks: `HOOK_NAMES`, in any letter case.

  Profiles go to `model_dir`, and the metric log to `benchmark_log_dir` or else
  there too. `batch_size` is of a step, over all replicas.
  """
  tensors = logged_tensors(classifier_ids)
  makers = {
      'loggingtensorhook': lambda: tf.train.LoggingTensorHook(
          {name: name for name in tensors}, every_n_iter=100,
          formatter=_log_values),
      'profilerhook': lambda: tf.train.ProfilerHook(
          save_steps=1000, output_dir=model_dir),
      'examplespersecondhook': lambda: ExamplesPerSecondHook(batch_size),
      'loggingmetrichook': lambda: LoggingMetricHook(
          benchmark_log_dir or model_dir, tensors),
  }
  return [makers[name.lower()]() for name in names]


def _log_values(values):
  """Logs tensors by name as ours; the hook's own line is TensorFlow's."""
  line = ', '.join(f'{name} = {values[name]:.6g}' for name in sorted(values))
  log.info(line)
  return line


class TrainingProgressHook(tf.train.SessionRunHook):
  """Prints a line now and then: images, their rate, time left, accuracies.

  Loss, top-1 and top-5 of each classifier are means over the batches since
  the last line.
  """

  def __init__(self, last_step, batch_size, classifier_ids):
    self._last_step = last_step    # At which training ends.
    self._batch_size = batch_size  # Images in a step, over all replicas.
    self._names = {
        k: [value_name(name, k, classifier_ids) + ':0' for name in (
            'cross_entropy', 'train_accuracy', 'train_accuracy_top_5')]
        for k in classifier_ids}

  def begin(self):
    self._global_step = tf.train.get_or_create_global_step()
    self._batches = []  # Values by classifier, since the last line.

  def after_create_session(self, session, coord):
    # Images of an earlier run or cycle do not count in the rate.
    self._step = session.run(self._global_step)
    self._progress = Progress(
        'training', self._last_step * self._batch_size, 'images',
        done=self._step * self._batch_size)

  def before_run(self, run_context):
    return tf.train.SessionRunArgs(self._names)

  def after_run(self, run_context, run_values):
    self._step += 1
    self._batches.append(run_values.results)
    if self._progress.update(self._step * self._batch_size, self._description):
      self._batches = []

  def _description(self):
    parts = []
    for k in self._names:
      loss, top1, top5 = np.mean(
          [values[k] for values in self._batches], axis=0, dtype=np.float64)
      parts.append(f'clf{k} loss {loss:.4f}, top-1 {top1:.4f}, '
                   f'top-5 {top5:.4f}')
    return '; '.join(parts)


class ExamplesPerSecondHook(tf.train.StepCounterHook):
  """Logs images per second, over the last steps and since the start."""

  def __init__(self, batch_size, every_n_steps=100):
    super().__init__(every_n_steps)
    self._batch_size = batch_size
    self._num_images, self._seconds = 0, 0.

  def _log_and_record(self, elapsed_steps, elapsed_time, global_step):
    self._num_images += elapsed_steps * self._batch_size
    self._seconds += elapsed_time
    log.info('images/second: %.4g since the start, %.4g now, step %d',
             self._num_images / self._seconds,
             elapsed_steps * self._batch_size / elapsed_time, global_step)


class LoggingMetricHook(tf.train.LoggingTensorHook):
  """Appends the logged tensors to `metric.log` every ten minutes."""

  def __init__(self, log_dir, tensor_names):
    super().__init__(
        {name: name for name in tensor_names}, every_n_secs=600,
        formatter=lambda values: log_metrics(log_dir, values))

  def begin(self):
    self._tensors['global_step'] = tf.identity(
        tf.train.get_or_create_global_step())
    super().begin()


def log_metrics(log_dir, values):
  """Appends one line per metric, with the fields of the official logger.

  Args:
    log_dir: made if it is not there.
    values: a dict from name to number, 'global_step' among them.
  """
  tf.gfile.MakeDirs(log_dir)
  timestamp = datetime.datetime.utcnow().strftime('%Y-%m-%dT%H:%M:%S.%fZ')
  with tf.gfile.GFile(os.path.join(log_dir, METRIC_LOG_NAME), 'a') as metric_log:
    for name in sorted(values):
      if name != 'global_step':
        metric_log.write(json.dumps({
            'name': name, 'value': float(values[name]), 'unit': None,
            'global_step': int(values['global_step']),
            'timestamp': timestamp, 'extras': []}) + '\n')
