"""Session hooks: the progress of training, and those of --hooks."""

import datetime
import json
import os

import numpy as np

from tf_compat import tf

from progress import Progress

METRIC_LOG_NAME = 'metric.log'

_SECONDS_BETWEEN_SUMMARIES = 60


def value_name(name, classifier_id, classifier_ids):
  """Name of a classifier's tensor or metric among those of a run.

  A run of one classifier has the official names, such as 'accuracy'; in a run
  of several it is 'accuracy_clf0'.
  """
  if len(classifier_ids) == 1:
    return name
  return f'{name}_clf{classifier_id}'


def logged_tensors(classifier_ids):
  """Names of the tensors that the model function has for these hooks."""
  return ['learning_rate'] + [
      value_name(name, k, classifier_ids) for k in classifier_ids
      for name in ('cross_entropy', 'train_accuracy')]


def make_hooks(names, model_dir, benchmark_log_dir, batch_size,
               classifier_ids):
  """The hooks of --hooks.

  Args:
    names: some of `HOOK_NAMES`, in any letter case.
    model_dir: where profiles go.
    benchmark_log_dir: where the metric log goes; None for `model_dir`.
    batch_size: images in a step, over all replicas.
    classifier_ids: those that are trained.
  """
  tensors = logged_tensors(classifier_ids)
  makers = {
      'loggingtensorhook': lambda: tf.train.LoggingTensorHook(
          {name: name for name in tensors}, every_n_iter=100),
      'profilerhook': lambda: tf.train.ProfilerHook(
          save_steps=1000, output_dir=model_dir),
      'examplespersecondhook': lambda: ExamplesPerSecondHook(batch_size),
      'loggingmetrichook': lambda: LoggingMetricHook(
          benchmark_log_dir or model_dir, tensors),
  }
  return [makers[name.lower()]() for name in names]


HOOK_NAMES = ('LoggingTensorHook', 'ProfilerHook', 'ExamplesPerSecondHook',
              'LoggingMetricHook')


class TrainingProgressHook(tf.train.SessionRunHook):
  """Prints a line now and then: images, their rate, time left, accuracies.

  Loss, top-1 and top-5 of each classifier are means over the batches since
  the last line. The rate also goes to TensorBoard, once a minute.
  """

  def __init__(self, model_dir, last_step, batch_size, classifier_ids):
    self._model_dir = model_dir    # Where the summaries go.
    self._last_step = last_step    # At which training ends.
    self._batch_size = batch_size  # Images in a step, over all replicas.
    self._names = {
        k: [value_name(name, k, classifier_ids) + ':0' for name in (
            'cross_entropy', 'train_accuracy', 'train_accuracy_top_5')]
        for k in classifier_ids}

  def begin(self):
    self._global_step = tf.train.get_or_create_global_step()
    self._progress = None
    self._batches = []  # Values by classifier, since the last line.
    self._timer = tf.train.SecondOrStepTimer(
        every_secs=_SECONDS_BETWEEN_SUMMARIES)

  def after_create_session(self, session, coord):
    # Images of an earlier run or cycle do not count in the rate.
    self._step = session.run(self._global_step)
    self._progress = Progress(
        'training', self._last_step * self._batch_size, 'images',
        done=self._step * self._batch_size)

  def before_run(self, run_context):
    return tf.train.SessionRunArgs(self._names)

  def after_run(self, run_context, run_values):
    step = self._step = self._step + 1
    self._batches.append(run_values.results)
    if self._progress.update(step * self._batch_size, self._description):
      self._batches = []
    if self._timer.should_trigger_for_step(step):
      seconds, steps = self._timer.update_last_triggered_step(step)
      if seconds:  # None the first time, when there is nothing to compare.
        tf.summary.FileWriterCache.get(self._model_dir).add_summary(
            tf.Summary(value=[tf.Summary.Value(
                tag='training/images_per_second',
                simple_value=steps * self._batch_size / seconds)]), step)

  def _description(self):
    parts = []
    for k in self._names:
      loss, top1, top5 = np.mean(
          [values[k] for values in self._batches], axis=0, dtype=np.float64)
      parts.append(f'clf{k} loss {loss:.4f}, top-1 {top1:.4f}, '
                   f'top-5 {top5:.4f}')
    return '; '.join(parts)


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

  def __init__(self, log_dir, tensor_names, every_n_secs=600):
    self._log_dir = log_dir
    self._tensor_names = tensor_names
    self._timer = tf.train.SecondOrStepTimer(every_secs=every_n_secs)

  def begin(self):
    graph = tf.get_default_graph()
    self._tensors = {
        name: graph.get_tensor_by_name(name + ':0')
        for name in self._tensor_names}
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
  tf.gfile.MakeDirs(log_dir)
  timestamp = datetime.datetime.utcnow().strftime('%Y-%m-%dT%H:%M:%S.%fZ')
  with tf.gfile.GFile(os.path.join(log_dir, METRIC_LOG_NAME), 'a') as log:
    for name in sorted(values):
      if name != 'global_step':
        log.write(json.dumps({
            'name': name, 'value': float(values[name]), 'unit': None,
            'global_step': global_step,
            'timestamp': timestamp, 'extras': []}) + '\n')
