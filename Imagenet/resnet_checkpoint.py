"""Checkpoints: finding them, checking them against a graph, restoring.

A network restores from checkpoints in one of three ways. To evaluate, every
variable of the graph comes from one checkpoint. To train, the variables named
to `initialize_from` come from the pretrained one and the rest are new. To dump,
trunk and heads may come from one each (`exit_weights.py`). In any case names
and shapes are compared first, so that what does not fit stops the run with its
name, before any work. Paths are any that TensorFlow's file systems take.
"""

import collections
import contextlib
import os
import re

from tf_compat import tf

import resnet_model
from user_error import UserError

# The end of the names of MomentumOptimizer's own variables.
_OPTIMIZER_SLOT = '/Momentum'

_MOST_NAMES_IN_A_MESSAGE = 3


def checkpoint_to_evaluate(flags_obj, graph_shapes):
  """--model_dir's checkpoint, else the pretrained one; checked to fit.

  Args:
    flags_obj: the parsed flags.
    graph_shapes: a function from a `tf.estimator.ModeKeys` to the names and
      shapes of the variables that this mode's graph has.

  Raises:
    UserError: there is none, or it does not fit.
  """
  checkpoint = earlier_checkpoint(flags_obj)
  remedy = 'is --model_dir of this classifier and this network?'
  if checkpoint is None:
    if not flags_obj.pretrained_model_checkpoint_path:
      raise UserError(
          '--eval_only: --model_dir {} holds no checkpoint and '
          '--pretrained_model_checkpoint_path (-pmcp) is not given'.format(
              flags_obj.model_dir))
    checkpoint = find_checkpoint(
        flags_obj.pretrained_model_checkpoint_path, '-pmcp')
    remedy = ('-pmcp must be of this network; a head comes from --model_dir, '
              'after --fine_tune')
  check_variables(
      checkpoint, graph_shapes(tf.estimator.ModeKeys.PREDICT), remedy)
  tf.logging.info('evaluating %s', checkpoint)
  return checkpoint


def checkpoint_to_start_from(flags_obj, classifier_ids, graph_shapes):
  """The pretrained checkpoint for the trunk, or None; checked to fit.

  None where --model_dir holds a checkpoint, from which training goes on. Logs
  what is trained and where every variable comes from.

  Args:
    flags_obj: the parsed flags.
    classifier_ids: the classifiers, which do not come from there.
    graph_shapes: as for `checkpoint_to_evaluate`.

  Raises:
    UserError: there is nothing to fine-tune, or a checkpoint does not fit.
  """
  resumed, pretrained = earlier_checkpoint(flags_obj), None
  if resumed is None:
    if flags_obj.pretrained_model_checkpoint_path:
      pretrained = find_checkpoint(
          flags_obj.pretrained_model_checkpoint_path, '-pmcp')
    elif flags_obj.fine_tune and not flags_obj.use_synthetic_data:
      raise UserError('--fine_tune: needs a pretrained network, '
                      '--pretrained_model_checkpoint_path (-pmcp)')
  shapes = graph_shapes(tf.estimator.ModeKeys.TRAIN)
  _log_names('training', [
      name for name in shapes if name + _OPTIMIZER_SLOT in shapes])
  if resumed is not None:
    check_variables(resumed, shapes, 'it is of another run: name another '
                    '--model_dir, or pass --clean')
    if _named_checkpoint(flags_obj.model_dir) != resumed:
      # The Estimator goes by the `checkpoint` file, which may have been
      # written before the folder was copied, or be missing.
      tf.train.update_checkpoint_state(
          flags_obj.model_dir, os.path.basename(resumed))
    _log_names('going on from {} with'.format(resumed), list(shapes))
  elif pretrained is not None:
    restored = collections.OrderedDict(
        (name, shape) for name, shape in shapes.items()
        if is_pretrained(name, classifier_ids))
    check_variables(pretrained, restored, '-pmcp must be of this network')
    _log_names('from {}'.format(pretrained), list(restored))
    _log_names('new', [name for name in shapes if name not in restored])
  return pretrained


def earlier_checkpoint(flags_obj):
  """The newest checkpoint that --clean leaves in --model_dir, or None."""
  return None if flags_obj.clean else newest_checkpoint(flags_obj.model_dir)


def _log_names(title, names):
  tf.logging.info('%s: %d variables, %s to %s', title, len(names), names[0],
                  names[-1])


def is_pretrained(variable_name, classifier_ids):
  """Whether a variable comes from the pretrained checkpoint: the trunk's do."""
  heads = tuple(resnet_model.head_prefix(k) for k in classifier_ids)
  return (variable_name.startswith(resnet_model.MODEL_SCOPE + '/') and
          not variable_name.startswith(heads) and
          not variable_name.endswith(_OPTIMIZER_SLOT))


def find_checkpoint(path, flag_name):
  """The checkpoint prefix that a folder or a prefix stands for.

  Args:
    path: a folder with checkpoints (its newest is taken), or a prefix such as
      'folder/model.ckpt-225207'.
    flag_name: for the message.

  Raises:
    UserError: nothing there.
  """
  try:
    for file_path in (path + '.index', path):
      if tf.gfile.Exists(file_path) and not tf.gfile.IsDirectory(file_path):
        return path
    is_folder = tf.gfile.IsDirectory(path)
  except tf.errors.OpError as error:  # No such scheme, no permission.
    raise UserError('{} {}: cannot be read ({}); name another folder or '
                    'checkpoint'.format(flag_name, path, error.message))
  if not is_folder:
    raise UserError('{} {}: no such folder or checkpoint'.format(
        flag_name, path))
  checkpoint = newest_checkpoint(path)
  if checkpoint is None:
    raise UserError('{} {}: no checkpoint in this folder (model.ckpt-*.index)'
                    .format(flag_name, path))
  return checkpoint


def newest_checkpoint(folder):
  """Prefix of the newest checkpoint in `folder`, or None.

  By the folder's `checkpoint` file. Where that is missing, or names the
  folder in which somebody else trained (as in the official archives), by the
  number of steps.
  """
  named = _named_checkpoint(folder)
  if named is not None:
    here = os.path.join(folder, os.path.basename(named))
    if tf.gfile.Exists(here + '.index'):
      return here
  prefixes = [os.path.join(folder, name[:-len('.index')])
              for name in (tf.gfile.ListDirectory(folder)
                           if tf.gfile.IsDirectory(folder) else [])
              if name.endswith('.index')]
  return max(prefixes, key=_steps) if prefixes else None


def _named_checkpoint(folder):
  """What the `checkpoint` file of a folder names, or None."""
  try:
    state = tf.train.get_checkpoint_state(folder)
  except ValueError:  # An empty file, perhaps of a full disk.
    return None
  return state and state.model_checkpoint_path


def _steps(prefix):
  match = re.search(r'-(\d+)$', prefix)
  return int(match.group(1)) if match else -1


def checkpoint_step(checkpoint):
  """The global step saved in a checkpoint."""
  return int(tf.train.load_variable(checkpoint, tf.GraphKeys.GLOBAL_STEP))


def check_variables(checkpoint, shapes, remedy):
  """Checks that a checkpoint has what a graph wants.

  Args:
    checkpoint: a prefix.
    shapes: a dict from variable name to shape (a list).
    remedy: what to do, for the message.

  Raises:
    UserError: the checkpoint cannot be read, or lacks a variable, or has one
      of another shape; names them.
  """
  saved = saved_shapes(checkpoint, remedy)
  missing = sorted(set(shapes) - set(saved))
  if missing:
    raise UserError('{}: lacks {}; {}'.format(
        checkpoint, _shortened(missing), remedy))
  misshapen = sorted(name for name in shapes
                     if list(shapes[name]) != list(saved[name]))
  if misshapen:
    raise UserError('{}: another shape than this network\'s: {}; {}'.format(
        checkpoint, _shortened([
            '{} is {}, needed {}'.format(
                name, list(saved[name]), list(shapes[name]))
            for name in misshapen]), remedy))
  # So far only the index was read. The data may be missing or truncated.
  with _explain_unreadable(checkpoint, remedy):
    reader = tf.train.load_checkpoint(checkpoint)
    for name in shapes:
      reader.get_tensor(name)


def saved_shapes(checkpoint, remedy):
  """Shapes by name of what a checkpoint holds, a dict.

  Args:
    checkpoint: a prefix.
    remedy: what to do if it cannot be read, for the message.

  Raises:
    UserError: it cannot be read.
  """
  with _explain_unreadable(checkpoint, remedy):
    return tf.train.load_checkpoint(checkpoint).get_variable_to_shape_map()


@contextlib.contextmanager
def _explain_unreadable(checkpoint, remedy):
  try:
    yield
  except (tf.errors.OpError, ValueError, IndexError, RuntimeError) as error:
    # The last two are TensorFlow 2.15's, from C++.
    raise UserError('{}: cannot be read as a checkpoint ({}); {}'.format(
        checkpoint, str(error).split('\n')[0], remedy))


def _shortened(names):
  shown = ', '.join(names[:_MOST_NAMES_IN_A_MESSAGE])
  num_more = len(names) - _MOST_NAMES_IN_A_MESSAGE
  return shown + (' and {} more'.format(num_more) if num_more > 0 else '')


def initialize_from(checkpoint, variables):
  """Makes `variables` start from the values of the same name in a checkpoint.

  Moving averages included: every variable is named, trainable or not (the
  published code's WarmStartSettings with a regular expression restores the
  trainable ones only, so that batch normalization runs with mean 0 and
  variance 1). Works in the replicas of a MirroredStrategy too.
  """
  assert variables
  tf.train.init_from_checkpoint(
      checkpoint, {saved_name(variable): variable for variable in variables})


def saved_name(variable):
  """The name of a variable in a checkpoint, the same in every replica."""
  return variable.name.split(':')[0]  # Its op's name tells the replica.
