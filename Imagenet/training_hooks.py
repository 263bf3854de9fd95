"""Session hooks by name: what `--hooks` can switch on during training."""

import datetime
import json
import os

from tf_compat import tf

# Tensors that the model function names for these hooks.
LOGGED_TENSORS = ('learning_rate', 'cross_entropy', 'train_accuracy')

METRIC_LOG_NAME = 'metric.log'


def make_hooks(names, model_dir, benchmark_log_dir, batch_size):
  """Hooks for training.

  Args:
    names: of hooks, in any letter case; see `HOOK_NAMES`.
    model_dir: where profiles go.
    benchmark_log_dir: where the metric log goes; None for `model_dir`.
    batch_size: images in a step, over all replicas.
  """
  makers = {
      'loggingtensorhook': lambda: tf.train.LoggingTensorHook(
          {name: name for name in LOGGED_TENSORS}, every_n_iter=100),
      'profilerhook': lambda: tf.train.ProfilerHook(
          save_steps=1000, output_dir=model_dir),
      'examplespersecondhook': lambda: ExamplesPerSecondHook(batch_size),
      'loggingmetrichook': lambda: LoggingMetricHook(
          benchmark_log_dir or model_dir),
  }
  return [makers[name.lower()]() for name in names]


HOOK_NAMES = ('LoggingTensorHook', 'ProfilerHook', 'ExamplesPerSecondHook',
              'LoggingMetricHook')


class ExamplesPerSecondHook(tf.train.SessionRunHook):
  """Logs images per second, over the last steps and since the start."""

  def __init__(self, batch_size, every_n_steps=100):
    self._batch_size = batch_size
    self._timer = tf.train.SecondOrStepTimer(every_steps=every_n_steps)

  def begin(self):
    self._global_step = tf.train.get_or_create_global_step()
    self._num_images, self._seconds = 0, 0.

  def before_run(self, run_context):
    return tf.train.SessionRunArgs(self._global_step)

  def after_run(self, run_context, run_values):
    step = run_values.results
    if not self._timer.should_trigger_for_step(step):
      return
    seconds, steps = self._timer.update_last_triggered_step(step)
    if seconds:  # None the first time, when there is nothing to compare.
      self._num_images += steps * self._batch_size
      self._seconds += seconds
      tf.logging.info(
          'images/second: %.4g since the start, %.4g now, step %d',
          self._num_images / self._seconds,
          steps * self._batch_size / seconds, step)


class LoggingMetricHook(tf.train.SessionRunHook):
  """Appends the logged tensors to `metric.log`, a JSON object per line."""

  def __init__(self, log_dir, every_n_secs=600):
    self._log_dir = log_dir
    self._timer = tf.train.SecondOrStepTimer(every_secs=every_n_secs)

  def begin(self):
    graph = tf.get_default_graph()
    self._tensors = {
        name: graph.get_tensor_by_name(name + ':0') for name in LOGGED_TENSORS}
    self._tensors['global_step'] = tf.train.get_or_create_global_step()
    self._last_values = None

  def before_run(self, run_context):
    return tf.train.SessionRunArgs(self._tensors)

  def after_run(self, run_context, run_values):
    self._last_values = run_values.results
    step = self._last_values['global_step']
    if self._timer.should_trigger_for_step(step):
      self._timer.update_last_triggered_step(step)
      self._log()

  def end(self, session):
    if self._last_values is not None:
      self._log()

  def _log(self):
    log_metrics(self._log_dir, self._last_values,
                int(self._last_values['global_step']))


def log_metrics(log_dir, values, global_step):
  """Appends one line per metric, with the fields of the official logger.

  Args:
    log_dir: made if it is not there.
    values: a dict from metric name to number.
    global_step: when they were measured.
  """
  if not os.path.isdir(log_dir):
    os.makedirs(log_dir)
  timestamp = datetime.datetime.utcnow().strftime('%Y-%m-%dT%H:%M:%S.%fZ')
  with open(os.path.join(log_dir, METRIC_LOG_NAME), 'a') as log:
    for name in sorted(values):
      if name != 'global_step':
        log.write(json.dumps({
            'name': name, 'value': float(values[name]), 'unit': None,
            'global_step': global_step,
            'timestamp': timestamp, 'extras': []}) + '\n')
