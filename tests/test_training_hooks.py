"""The hooks do what `--hooks` promises: log, time, profile."""

import datetime
import json
import logging
import re

import pytest

import progress
import training_hooks
from tf_compat import tf


def train(hooks, steps, classifier_ids=(2,)):
  """Runs `steps` steps of a graph that has the tensors the hooks look for."""
  with tf.Graph().as_default():
    step = tf.train.get_or_create_global_step()
    names = training_hooks.logged_tensors(classifier_ids) + [
        training_hooks.value_name('train_accuracy_top_5', k, classifier_ids)
        for k in classifier_ids]
    tensors = [tf.add(tf.to_float(step), 0.25, name=name) for name in names]
    with tf.control_dependencies(tensors):
      train_op = tf.assign_add(step, 1)
    # Not `MonitoredTrainingSession`, which has hooks of its own.
    with tf.train.MonitoredSession(
        tf.train.ChiefSessionCreator(), hooks) as session:
      for _ in range(steps):
        session.run(train_op)


@pytest.fixture
def logged():
  """The lines of TensorFlow's log."""
  lines = []
  handler = logging.Handler()
  handler.emit = lambda record: lines.append(record.getMessage())
  verbosity = tf.logging.get_verbosity()
  tf.logging.set_verbosity(tf.logging.INFO)
  logging.getLogger('tensorflow').addHandler(handler)
  yield lines
  logging.getLogger('tensorflow').removeHandler(handler)
  tf.logging.set_verbosity(verbosity)


def metric_lines(folder):
  with open(str(folder / 'metric.log')) as log:
    return [json.loads(line) for line in log]


def test_names_make_their_hooks_in_any_letter_case(tmp_path):
  for change_case in (str, str.lower, str.upper):
    hooks = training_hooks.make_hooks(
        [change_case(name) for name in training_hooks.HOOK_NAMES],
        str(tmp_path), None, 32, [2])
    assert [type(hook).__name__ for hook in hooks] == list(
        training_hooks.HOOK_NAMES)
  assert training_hooks.make_hooks([], str(tmp_path), None, 32, [2]) == []


def test_profiler_writes_a_timeline(tmp_path):
  train(training_hooks.make_hooks(
      ['ProfilerHook'], str(tmp_path), None, 4, [2]), 1002)
  timelines = list(tmp_path.glob('timeline-*.json'))
  assert len(timelines) == 1
  assert json.loads(timelines[0].read_text())['traceEvents']


def test_metric_log(tmp_path):
  folder = tmp_path / 'made_by_it'
  earliest = datetime.datetime.utcnow()
  train([training_hooks.LoggingMetricHook(
      str(folder), training_hooks.logged_tensors([2]))], 3)
  lines = metric_lines(folder)
  # Once at the first step, once at the end.
  assert [(line['name'], line['value']) for line in lines] == [
      (name, value) for value in (0.25, 2.25)
      for name in ('cross_entropy', 'learning_rate', 'train_accuracy')]
  for line in lines:
    assert set(line) == {'name', 'value', 'unit', 'global_step', 'timestamp',
                         'extras'}
    timestamp = datetime.datetime.strptime(
        line['timestamp'], '%Y-%m-%dT%H:%M:%S.%fZ')
    assert earliest <= timestamp <= datetime.datetime.utcnow()


@pytest.mark.parametrize('benchmark_log_dir', [None, 'benchmark'])
def test_where_the_metric_log_goes(tmp_path, benchmark_log_dir):
  train(training_hooks.make_hooks(
      ['LoggingMetricHook'], str(tmp_path / 'model'),
      benchmark_log_dir and str(tmp_path / benchmark_log_dir), 4, [2]), 2)
  assert [str(path.parent.name) for path in tmp_path.rglob('metric.log')] == [
      benchmark_log_dir or 'model']


def test_images_per_second_counts_images_not_steps(monkeypatch, logged):
  hook = training_hooks.ExamplesPerSecondHook(32, every_n_steps=10)
  durations = iter([(None, None), (2., 10), (8., 10)])  # seconds, steps
  monkeypatch.setattr(hook._timer, 'update_last_triggered_step',
                      lambda step: next(durations))
  monkeypatch.setattr(hook._timer, 'should_trigger_for_step',
                      lambda step: step % 10 == 0)
  with tf.Graph().as_default():
    hook.begin()
  for step in range(21):
    hook.after_run(None, tf.train.SessionRunValues(step, None, None))
  assert logged == [
      'images/second: 160 since the start, 160 now, step 10',
      'images/second: 64 since the start, 40 now, step 20']


@pytest.mark.parametrize('classifier_ids, names', [
    ([0], ['learning_rate', 'cross_entropy', 'train_accuracy']),
    ([0, 1], ['learning_rate', 'cross_entropy_clf0', 'train_accuracy_clf0',
              'cross_entropy_clf1', 'train_accuracy_clf1'])])
def test_tensors_are_logged(logged, classifier_ids, names):
  hooks = training_hooks.make_hooks(
      ['LoggingTensorHook'], '', None, 4, classifier_ids)
  train(hooks, 101, classifier_ids)
  text = '\n'.join(logged)
  for name in names:
    assert len(re.findall(name + r' = \d+\.25', text)) == 2  # Steps 0 and 100.


# ---- How far training has come ----------------------------------------------

class Clock:
  """Stands in for the module `time` of `progress`."""

  now = 1000.

  def monotonic(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(progress, 'time', clock)
  monkeypatch.setattr(progress, '_LOG_SECONDS', 5)
  return clock


def begin(folder, first_step, last_step, classifier_ids):
  """A `TrainingProgressHook` for batches of 10, in a session of its own."""
  hook = training_hooks.TrainingProgressHook(
      str(folder), last_step, 10, classifier_ids)
  with tf.Graph().as_default(), tf.Session() as session:
    step = tf.train.create_global_step()
    hook.begin()
    session.run(step.initializer, {step.initial_value: first_step})
    hook.after_create_session(session, None)
  return hook


def after(hook, clock, seconds, values):
  """A step that took so long, with (loss, top-1, top-5) by classifier."""
  clock.now += seconds
  hook.after_run(None, tf.train.SessionRunValues(values, None, None))


def test_training_tells_of_each_head(tmp_path, clock, capsys):
  hook = begin(tmp_path, 0, 100, [0, 1])
  # A line after five seconds: means over the batches since the one before.
  after(hook, clock, 2, {0: [3., 0.1, 0.5], 1: [2., 0.3, 0.7]})
  after(hook, clock, 2, {0: [2., 0.2, 0.6], 1: [2., 0.4, 0.7]})
  after(hook, clock, 1, {0: [1., 0.3, 0.7], 1: [2., 0.5, 0.7]})
  after(hook, clock, 4, {0: [9., 0.9, 0.9], 1: [1., 0.2, 0.3]})
  after(hook, clock, 1, {0: [7., 0.8, 0.9], 1: [1., 0.2, 0.3]})
  stdout, stderr = capsys.readouterr()
  assert stdout == ''
  assert stderr.splitlines() == [
      'training: 30 of 1,000 images, 6 images/s, 2 min 41 s left; '
      'clf0 loss 2.0000, top-1 0.2000, top-5 0.6000; '
      'clf1 loss 2.0000, top-1 0.4000, top-5 0.7000',
      'training: 50 of 1,000 images, 5 images/s, 3 min 10 s left; '
      'clf0 loss 8.0000, top-1 0.8500, top-5 0.9000; '
      'clf1 loss 1.0000, top-1 0.2000, top-5 0.3000']


@pytest.mark.parametrize('classifier_ids', [[0], [0, 1]])
def test_training_progress_in_a_session(tmp_path, monkeypatch, capsys,
                                        classifier_ids):
  """It finds the model function's tensors; the rate goes to TensorBoard."""
  monkeypatch.setattr(training_hooks, '_SECONDS_BETWEEN_SUMMARIES', 0)
  monkeypatch.setattr(progress, '_LOG_SECONDS', 0)
  train([training_hooks.TrainingProgressHook(
      str(tmp_path), 4, 10, classifier_ids)], 4, classifier_ids)
  lines = capsys.readouterr().err.splitlines()
  assert [line.split(',')[0] for line in lines] == [
      'training: 10 of 40 images', 'training: 20 of 40 images',
      'training: 30 of 40 images', 'training: 40 of 40 images']
  for step, line in enumerate(lines):
    for k in classifier_ids:
      assert (f'clf{k} loss {step}.2500, top-1 {step}.2500, '
              f'top-5 {step}.2500') in line
  tf.summary.FileWriterCache.clear()  # Closes, and so writes.
  rates = [(value.tag, event.step) for path in tmp_path.iterdir()
           for event in tf.train.summary_iterator(str(path))
           for value in event.summary.value]
  # The first step has no step before it to tell the time from.
  assert rates == [('training/images_per_second', step) for step in (2, 3, 4)]
