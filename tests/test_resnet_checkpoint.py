"""Checkpoints: found, compared with a graph, restored; errors name the cause.
"""

import collections
import os
import shutil

import numpy as np
import pytest

import command_line
import resnet_checkpoint
from tf_compat import tf
from tiny_checkpoints import read_checkpoint, write_checkpoint
from user_error import UserError

KERNEL = 'resnet_model/conv2d/kernel'
MEAN = 'resnet_model/batch_normalization/moving_mean'
DENSE = 'resnet_model/dense/kernel'
SLOT = DENSE + '/Momentum'

VALUES = {
    KERNEL: np.full([2, 2], 3, np.float32),
    MEAN: np.arange(5, dtype=np.float32),
    DENSE: np.full([5, 11], 4, np.float32),
    SLOT: np.zeros([5, 11], np.float32),
    'global_step': np.int64(40),
}
SHAPES = collections.OrderedDict(
    (name, list(VALUES[name].shape))
    for name in ('global_step', KERNEL, MEAN, DENSE, SLOT))


def graph_shapes(mode):
  """Stands for the shapes of the graph that a mode builds."""
  return collections.OrderedDict(
      (name, shape) for name, shape in SHAPES.items()
      if mode == tf.estimator.ModeKeys.TRAIN or name != SLOT)


def no_graph(mode):
  raise AssertionError('a graph was built for ' + mode)


def values_without(*names):
  return {name: VALUES[name] for name in VALUES if name not in names}


def message_of(function, *args):
  """What a `UserError` says, which is one line."""
  with pytest.raises(UserError) as error:
    function(*args)
  message = str(error.value)
  assert '\n' not in message
  return message


class TestFinding(object):

  def test_folder_and_prefix(self, tmp_path):
    prefix = write_checkpoint(tmp_path, VALUES, 40)
    assert prefix == str(tmp_path / 'model.ckpt-40')
    assert resnet_checkpoint.find_checkpoint(str(tmp_path), '-x') == prefix
    assert resnet_checkpoint.find_checkpoint(prefix, '-x') == prefix
    assert resnet_checkpoint.checkpoint_step(prefix) == 40

  def test_without_a_number_in_the_name(self, tmp_path):
    prefix = write_checkpoint(tmp_path, VALUES)
    os.remove(str(tmp_path / 'checkpoint'))
    assert resnet_checkpoint.find_checkpoint(str(tmp_path), '-x') == prefix

  @pytest.mark.parametrize('name', ['missing', 'folder/model.ckpt-7'])
  def test_nothing_of_that_name(self, tmp_path, name):
    message = message_of(
        resnet_checkpoint.find_checkpoint, str(tmp_path / name), '-pmcp')
    assert message.startswith('-pmcp ' + str(tmp_path / name))
    assert 'no such folder or checkpoint' in message

  def test_folder_without_checkpoint(self, tmp_path):
    (tmp_path / 'model.ckpt-7.data-00000-of-00001').write_bytes(b'')
    assert resnet_checkpoint.newest_checkpoint(str(tmp_path)) is None
    message = message_of(
        resnet_checkpoint.find_checkpoint, str(tmp_path), '-pmcp')
    assert str(tmp_path) in message and 'no checkpoint' in message

  def test_newest_is_what_the_checkpoint_file_says(self, tmp_path):
    for step in (40, 50):
      write_checkpoint(tmp_path, VALUES, step)
    earlier = str(tmp_path / 'model.ckpt-40')
    tf.train.update_checkpoint_state(str(tmp_path), earlier)
    assert resnet_checkpoint.newest_checkpoint(str(tmp_path)) == earlier

  def test_newest_by_steps_without_checkpoint_file(self, tmp_path):
    for step in (9, 100, 20):  # By name, 9 would come last.
      write_checkpoint(tmp_path, VALUES, step)
    os.remove(str(tmp_path / 'checkpoint'))
    assert resnet_checkpoint.newest_checkpoint(str(tmp_path)) == str(
        tmp_path / 'model.ckpt-100')

  @pytest.mark.parametrize('content', [
      'model_checkpoint_path: "model.ckpt-70"', 'not a message {', ''])
  def test_useless_checkpoint_file(self, tmp_path, content):
    for step in (9, 100):
      write_checkpoint(tmp_path, VALUES, step)
    (tmp_path / 'checkpoint').write_text(content)
    assert resnet_checkpoint.newest_checkpoint(str(tmp_path)) == str(
        tmp_path / 'model.ckpt-100')

  def test_paths_from_another_machine(self, tmp_path):
    """The official archives name the folder they were trained in."""
    for step in (40, 50):
      write_checkpoint(tmp_path, VALUES, step)
    (tmp_path / 'checkpoint').write_text(
        'model_checkpoint_path: "/home/somebody/train/model.ckpt-40"\n'
        'all_model_checkpoint_paths: "/home/somebody/train/model.ckpt-40"\n')
    assert resnet_checkpoint.newest_checkpoint(str(tmp_path)) == str(
        tmp_path / 'model.ckpt-40')

  def test_no_folder_at_all(self, tmp_path):
    assert resnet_checkpoint.newest_checkpoint(str(tmp_path / 'none')) is None


class TestComparing(object):

  def test_fits(self, tmp_path):
    prefix = write_checkpoint(tmp_path, VALUES, 40)
    resnet_checkpoint.check_variables(prefix, SHAPES, 'a remedy')
    resnet_checkpoint.check_variables(prefix, {KERNEL: [2, 2]}, 'a remedy')

  def test_missing_variable_is_named(self, tmp_path):
    prefix = write_checkpoint(tmp_path, values_without(MEAN), 40)
    message = message_of(
        resnet_checkpoint.check_variables, prefix, SHAPES, 'a remedy')
    assert message == '{}: lacks {}; a remedy'.format(prefix, MEAN)

  def test_many_missing_are_counted(self, tmp_path):
    prefix = write_checkpoint(tmp_path, VALUES, 40)
    shapes = dict(SHAPES, **{'layer{}'.format(i): [1] for i in range(7)})
    message = message_of(
        resnet_checkpoint.check_variables, prefix, shapes, 'a remedy')
    assert 'layer0, layer1, layer2 and 4 more' in message

  def test_misshapen_variable_is_named(self, tmp_path):
    prefix = write_checkpoint(
        tmp_path, dict(VALUES, **{DENSE: np.zeros([5, 1001], np.float32)}))
    message = message_of(
        resnet_checkpoint.check_variables, prefix, SHAPES, 'a remedy')
    assert '{} is [5, 1001], needed [5, 11]'.format(DENSE) in message
    assert KERNEL not in message and 'a remedy' in message

  def test_not_a_checkpoint(self, tmp_path):
    path = tmp_path / 'README.md'
    path.write_text('Not a checkpoint.\n' * 100)
    message = message_of(
        resnet_checkpoint.check_variables,
        resnet_checkpoint.find_checkpoint(str(path), '-pmcp'), SHAPES,
        'a remedy')
    assert str(path) in message and 'cannot be read' in message

  def test_damaged_index(self, tmp_path):
    prefix = write_checkpoint(tmp_path, VALUES, 40)
    (tmp_path / 'model.ckpt-40.index').write_bytes(b'\0' * 500)
    message = message_of(
        resnet_checkpoint.check_variables, prefix, SHAPES, 'a remedy')
    assert prefix in message and 'cannot be read' in message

  @pytest.mark.parametrize('num_bytes_left', [0, 100, None])
  def test_data_missing_or_truncated(self, tmp_path, num_bytes_left):
    """As a download that was interrupted leaves it."""
    prefix = write_checkpoint(tmp_path, VALUES, 40)
    data = tmp_path / 'model.ckpt-40.data-00000-of-00001'
    if num_bytes_left is None:
      data.unlink()
    else:
      data.write_bytes(data.read_bytes()[:num_bytes_left])
    message = message_of(
        resnet_checkpoint.check_variables, prefix, SHAPES, 'a remedy')
    assert prefix in message and 'a remedy' in message


class TestRestoring(object):

  def test_moving_averages_too(self, tmp_path):
    prefix = write_checkpoint(tmp_path, VALUES, 40)
    with tf.Graph().as_default(), tf.Session() as session:
      with tf.variable_scope('resnet_model'):
        with tf.variable_scope('batch_normalization'):
          mean = tf.get_variable('moving_mean', [5], trainable=False)
        with tf.variable_scope('dense'):
          dense = tf.get_variable('kernel', [5, 11])
      resnet_checkpoint.initialize_from(prefix, [mean])
      session.run(tf.global_variables_initializer())
      np.testing.assert_array_equal(session.run(mean), VALUES[MEAN])
      assert not np.array_equal(session.run(dense), VALUES[DENSE])

  def test_nothing_to_restore_is_a_mistake(self, tmp_path):
    with pytest.raises(AssertionError):
      resnet_checkpoint.initialize_from(
          write_checkpoint(tmp_path, VALUES, 40), [])

  @pytest.mark.parametrize('name, classifier_ids, expected', [
      ('resnet_model/conv2d/kernel', [0], True),
      ('resnet_model/batch_normalization_4/moving_variance', [1], True),
      ('resnet_model/conv2d/kernel/Momentum', [0], False),
      ('resnet_model/dense/kernel', [2], False),
      ('resnet_model/dense/kernel', [0, 1], True),
      ('resnet_model/dense/bias', [0, 2], False),
      ('resnet_model/cascaded0_bn00/moving_mean', [0, 1], False),
      ('resnet_model/cascaded1_fc1/kernel', [0, 1], False),
      ('global_step', [2], False),
  ])
  def test_what_is_pretrained(self, name, classifier_ids, expected):
    assert resnet_checkpoint.is_pretrained(
        name, classifier_ids) == expected


class TestEvaluating(object):

  @staticmethod
  def choose(shapes, *args):
    return resnet_checkpoint.checkpoint_to_evaluate(
        command_line.parse('--eval_only', *args), shapes)

  def test_model_dir_comes_first(self, tmp_path):
    own = write_checkpoint(tmp_path / 'own', VALUES, 7)
    other = write_checkpoint(tmp_path / 'other', VALUES, 40)
    assert self.choose(
        graph_shapes, '-md', tmp_path / 'own', '-pmcp', other) == own
    assert self.choose(
        graph_shapes, '-md', tmp_path / 'new', '-pmcp', other) == other
    assert self.choose(
        graph_shapes, '-md', tmp_path / 'new', '-pmcp',
        tmp_path / 'other') == other

  def test_optimizer_slots_are_not_needed(self, tmp_path):
    prefix = write_checkpoint(tmp_path, values_without(SLOT), 7)
    assert self.choose(graph_shapes, '-md', tmp_path) == prefix

  def test_neither(self, tmp_path):
    message = message_of(self.choose, no_graph, '-md', tmp_path)
    assert str(tmp_path) in message and '-pmcp' in message

  def test_wrong_path_is_found_before_the_graph_is_built(self, tmp_path):
    message = message_of(
        self.choose, no_graph, '-md', tmp_path, '-pmcp', tmp_path / 'none')
    assert '-pmcp {}'.format(tmp_path / 'none') in message

  @pytest.mark.parametrize('where', ['-md', '-pmcp'])
  def test_does_not_fit(self, tmp_path, where):
    write_checkpoint(tmp_path / 'run', values_without(DENSE), 7)
    message = message_of(
        self.choose, graph_shapes, '-md', tmp_path / 'new', where,
        tmp_path / 'run')
    assert DENSE in message and str(tmp_path / 'run') in message


class TestStarting(object):

  @staticmethod
  def choose(shapes, *args):
    return resnet_checkpoint.checkpoint_to_start_from(
        command_line.parse(*args), [2], shapes)

  def test_from_the_pretrained_one(self, tmp_path):
    prefix = write_checkpoint(tmp_path / 'trunk', values_without(DENSE, SLOT))
    for path in (tmp_path / 'trunk', prefix):
      assert self.choose(graph_shapes, '--fine_tune', '-pmcp', path, '-md',
                         tmp_path / 'new') == prefix

  def test_from_nothing(self, tmp_path):
    assert self.choose(graph_shapes, '-md', tmp_path) is None

  def test_fine_tuning_nothing(self, tmp_path):
    message = message_of(
        self.choose, no_graph, '--fine_tune', '-md', tmp_path)
    assert '--fine_tune' in message and '-pmcp' in message
    assert self.choose(graph_shapes, '--fine_tune', '--use_synthetic_data',
                       '-md', tmp_path) is None

  def test_going_on(self, tmp_path):
    write_checkpoint(tmp_path / 'own', VALUES, 7)
    assert self.choose(graph_shapes, '--fine_tune', '-md', tmp_path / 'own',
                       '-pmcp', tmp_path / 'none') is None

  def test_going_on_in_a_copied_folder(self, tmp_path):
    """The Estimator would go on from the folder the copy was made of."""
    for step in (7, 9):
      write_checkpoint(tmp_path / 'own', VALUES, step)
    shutil.copytree(str(tmp_path / 'own'), str(tmp_path / 'copy'))
    copy = str(tmp_path / 'copy')
    assert tf.train.latest_checkpoint(copy) == str(
        tmp_path / 'own' / 'model.ckpt-9')
    assert self.choose(graph_shapes, '-md', copy) is None
    assert tf.train.latest_checkpoint(copy) == os.path.join(
        copy, 'model.ckpt-9')

  def test_going_on_without_checkpoint_file(self, tmp_path):
    for step in (9, 100):
      write_checkpoint(tmp_path, VALUES, step)
    os.remove(str(tmp_path / 'checkpoint'))
    assert self.choose(graph_shapes, '-md', tmp_path) is None
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(
        tmp_path / 'model.ckpt-100')

  def test_going_on_leaves_the_checkpoint_file_alone(self, tmp_path):
    """It lists the older checkpoints, which the Saver removes in time."""
    write_checkpoint(tmp_path, VALUES, 7)
    content = ('model_checkpoint_path: "model.ckpt-7"\n'
               'all_model_checkpoint_paths: "model.ckpt-3"\n'
               'all_model_checkpoint_paths: "model.ckpt-7"\n')
    (tmp_path / 'checkpoint').write_text(content)
    self.choose(graph_shapes, '-md', tmp_path)
    assert (tmp_path / 'checkpoint').read_text() == content

  def test_going_on_with_another_classifier(self, tmp_path):
    write_checkpoint(tmp_path, values_without(DENSE, SLOT), 7)
    message = message_of(self.choose, graph_shapes, '-md', tmp_path)
    assert DENSE in message and '--model_dir' in message

  def test_clean_looks_at_the_pretrained_one_alone(self, tmp_path):
    write_checkpoint(tmp_path / 'own', {'other': np.zeros(3)}, 7)
    prefix = write_checkpoint(tmp_path / 'trunk', VALUES, 40)
    assert self.choose(graph_shapes, '--clean', '-md', tmp_path / 'own',
                       '-pmcp', tmp_path / 'trunk') == prefix
    assert self.choose(graph_shapes, '--clean', '-md',
                       tmp_path / 'own') is None
    assert os.path.exists(str(tmp_path / 'own' / 'model.ckpt-7.index'))

  def test_wrong_path_is_found_before_the_graph_is_built(self, tmp_path):
    message = message_of(
        self.choose, no_graph, '-md', tmp_path, '-pmcp', tmp_path / 'none')
    assert '-pmcp {}'.format(tmp_path / 'none') in message

  @pytest.mark.parametrize('values, name', [
      (values_without(MEAN), MEAN),
      (dict(VALUES, **{KERNEL: np.zeros([3, 3], np.float32)}), KERNEL)])
  def test_trunk_does_not_fit(self, tmp_path, values, name):
    write_checkpoint(tmp_path / 'trunk', values, 7)
    message = message_of(self.choose, graph_shapes, '--fine_tune', '-md',
                         tmp_path / 'new', '-pmcp', tmp_path / 'trunk')
    assert name in message and '-pmcp' in message


def test_checkpoints_of_tests_come_back(tmp_path):
  read = read_checkpoint(write_checkpoint(tmp_path, VALUES, 3))
  assert set(read) == set(VALUES)
  for name in VALUES:
    np.testing.assert_array_equal(read[name], VALUES[name])
