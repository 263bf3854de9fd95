"""The hooks do what `--hooks` promises: log, time, profile."""

import datetime
import json
import logging
import re

import pytest

import training_hooks
from tf_compat import tf


def train(hooks, steps):
  """Runs `steps` steps of a graph that has the tensors the hooks look for."""
  with tf.Graph().as_default():
    step = tf.train.get_or_create_global_step()
    for name in training_hooks.LOGGED_TENSORS:
      tf.add(tf.to_float(step), 0.25, name=name)
    with tf.control_dependencies([
        tf.get_default_graph().get_tensor_by_name(name + ':0')
        for name in training_hooks.LOGGED_TENSORS]):
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
        str(tmp_path), None, 32)
    assert [type(hook).__name__ for hook in hooks] == list(
        training_hooks.HOOK_NAMES)
  assert training_hooks.make_hooks([], str(tmp_path), None, 32) == []


def test_profiler_writes_a_timeline(tmp_path):
  train(training_hooks.make_hooks(['ProfilerHook'], str(tmp_path), None, 4),
        1002)
  timelines = list(tmp_path.glob('timeline-*.json'))
  assert len(timelines) == 1
  assert json.loads(timelines[0].read_text())['traceEvents']


def test_metric_log(tmp_path):
  folder = tmp_path / 'made_by_it'
  earliest = datetime.datetime.utcnow()
  train([training_hooks.LoggingMetricHook(str(folder))], 3)
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
      benchmark_log_dir and str(tmp_path / benchmark_log_dir), 4), 2)
  assert [str(path.parent.name) for path in tmp_path.rglob('metric.log')] == [
      benchmark_log_dir or 'model']


def test_metric_log_is_appended_to(tmp_path):
  for value in (1, 2):
    training_hooks.log_metrics(
        str(tmp_path), {'accuracy': value, 'global_step': 7}, 7)
  assert [(line['name'], line['value'], line['global_step'])
          for line in metric_lines(tmp_path)] == [
              ('accuracy', 1, 7), ('accuracy', 2, 7)]


def test_images_per_second(logged):
  train([training_hooks.ExamplesPerSecondHook(32, every_n_steps=10)], 35)
  lines = [line for line in logged if 'images/second' in line]
  assert len(lines) == 3  # From the first step on, after 10, 20 and 30.
  for line in lines:
    average, current = re.match(
        r'images/second: (\S+) since the start, (\S+) now, step \d+$',
        line).groups()
    assert float(average) > 0 and float(current) > 0
  # Over the first steps there are, both mean the same.
  assert lines[0].split()[1] == lines[0].split()[5]


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


def test_tensors_are_logged(logged):
  hooks = training_hooks.make_hooks(['LoggingTensorHook'], '', None, 4)
  train(hooks, 101)
  text = '\n'.join(logged)
  for name in ('learning_rate', 'cross_entropy', 'train_accuracy'):
    assert len(re.findall(name + r' = \d+\.25', text)) == 2  # Steps 0 and 100.
