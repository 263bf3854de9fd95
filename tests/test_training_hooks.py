"""The hooks do what `--hooks` promises: log, time, profile."""

import json
import re
import types

import pytest

import resnet_model
import shared_terminal
import training_hooks
from tf_compat import tf


def train(hooks, steps, classifier_ids=(2,)):
  """Runs `steps` steps of a graph that has the tensors the hooks look for."""
  with tf.Graph().as_default():
    step = tf.train.get_or_create_global_step()
    names = training_hooks.logged_tensors(classifier_ids) + [
        resnet_model.value_name('train_accuracy_top_5', k, classifier_ids)
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
def logged(caplog):
  """The messages of our log."""
  caplog.set_level('INFO', 'cascade')
  return lambda: [record.getMessage() for record in caplog.records]


def test_profiler_writes_a_timeline(tmp_path):
  train(training_hooks.make_hooks(
      ['ProfilerHook'], str(tmp_path), None, 4, [2]), 1002)
  timeline, = tmp_path.glob('timeline-*.json')
  assert json.loads(timeline.read_text())['traceEvents']


def test_images_per_second_counts_images_not_steps(logged):
  hook, = training_hooks.make_hooks(
      ['examplesPERsecondhook'], '', None, 32, [2])
  train([hook], 201)
  pattern = r'images/second: (\S+) since the start, \S+ now, step (\d+)'
  _, (rate, step) = re.findall(pattern, '\n'.join(logged()))
  assert step == '201'
  assert float(rate) == pytest.approx(200 * 32 / hook._seconds, rel=1e-3)


@pytest.mark.parametrize('classifier_ids, names', [
    ([0], ['learning_rate', 'cross_entropy', 'train_accuracy']),
    ([0, 1], ['learning_rate', 'cross_entropy_clf0', 'train_accuracy_clf0',
              'cross_entropy_clf1', 'train_accuracy_clf1'])])
def test_tensors_are_logged(logged, classifier_ids, names):
  hooks = training_hooks.make_hooks(
      ['LoggingTensorHook'], '', None, 4, classifier_ids)
  train(hooks, 101, classifier_ids)
  text = '\n'.join(logged())
  for name in names:
    assert len(re.findall(name + r' = \d+\.25', text)) == 2  # Steps 0 and 100.


def test_training_tells_of_each_head(monkeypatch, capsys):
  """A line when one is due: means over the batches since the one before."""
  clock = types.SimpleNamespace(now=1000.)
  clock.monotonic = lambda: clock.now
  monkeypatch.setattr(shared_terminal, 'time', clock)
  monkeypatch.setattr(shared_terminal, '_LOG_SECONDS', 5)

  class Tick(tf.train.SessionRunHook):

    def before_run(self, unused):
      clock.now += 2

  train([training_hooks.TrainingProgressHook(100, 10, [0, 1]), Tick()], 6,
        [0, 1])
  stdout, stderr = capsys.readouterr()
  assert stdout == ''
  # Values are the step and a quarter. Lines after 6 and 12 seconds.
  first, second = stderr.splitlines()
  assert first == (
      'training: 30 of 1,000 images, 5 images/s, 3 min 14 s left; '
      'clf0 loss 1.2500, top-1 1.2500, top-5 1.2500; '
      'clf1 loss 1.2500, top-1 1.2500, top-5 1.2500')
  assert second.count('4.2500') == 6
