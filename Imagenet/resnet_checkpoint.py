"""Checkpoints: which one each variable comes from, checked and restored.

The variables of a network fall into groups: the trunk, and the head of each
classifier. Where a group comes from is decided here and nowhere else, before
any work, and logged group by group.

To train (`to_train`):
  1. The newest checkpoint in --model_dir, if there is one and --clean is not
     given: training resumes from it, with all groups.
  2. --pretrained_model_checkpoint_path (-pmcp): the trunk comes from it, and
     the heads to be trained start anew.
  3. Neither: everything starts anew; --fine_tune refuses that, but for
     synthetic images.

To evaluate and dump (`to_evaluate`):
  1. The trunk: from --model_dir, if that has all variables of the one
     classifier asked for; else from -pmcp, else from --model_dir.
  2. Each head: from the one of --head_model_dirs (default: --model_dir) that
     has it, else from the trunk's checkpoint.

For example `--eval_only --classifier_id 0,2 -md heads -pmcp official`, with a
clf0 that was fine-tuned in `heads`: the trunk and clf2's head come from
`official`, clf0's head from `heads`.

All exits of a cascade share one trunk. Where -pmcp, or the trunk chosen, is
not the trunk that a head was trained on, the run is refused.
"""

import collections
import contextlib
import hashlib
import os
import re
import typing

import numpy as np

from tf_compat import log, tf

import resnet_model
from shared_terminal import UserError

# The end of the names of MomentumOptimizer's own variables.
_OPTIMIZER_SLOT = '/Momentum'
_AVERAGES = ('/moving_mean', '/moving_variance')


class CheckpointPaths(typing.NamedTuple):
  """Where checkpoints may come from, as the flags say."""
  model_dir: str                              # It need not exist.
  pretrained: typing.Optional[str] = None     # -pmcp: a folder or a prefix.
  head_model_dirs: typing.Sequence[str] = ()  # Empty for model_dir.
  clean: bool = False  # A checkpoint in model_dir does not count.
  # --trunk_batch_norm=update: training moved the trunk's moving averages away
  # from the pretrained ones, so these may differ.
  averages_drift: bool = False


class ExitSource(typing.NamedTuple):
  """Where the weights of one classifier come from."""
  trunk_checkpoint: str  # A prefix.
  trunk_sha256: str      # Of the trunk's weights as far as this exit.
  head_checkpoint: str
  head_sha256: str


class ExitWeights(typing.NamedTuple):
  """Where all weights of an evaluation pass come from."""
  checkpoint_of: typing.Dict[str, str]   # From variable name to prefix.
  sources: typing.Dict[int, ExitSource]  # In the order of the network.


def to_train(paths, shapes, classifier_ids, fine_tune, may_start_anew):
  """Decides what training starts from; rules above.

  Args:
    shapes: `shapes_of_variables` of the training graph.
    classifier_ids: the classifiers that are trained.
    fine_tune: whether their heads alone are trained.
    may_start_anew: whether rule 3 applies.

  Returns:
    The pretrained checkpoint that the trunk is initialized from, or None.

  Raises:
    UserError: there is nothing to fine-tune; a checkpoint does not fit; it is
      of another trunk than -pmcp; or resuming would drop a head.
  """
  trunk = [name for name in shapes if is_pretrained(name, classifier_ids)]
  pretrained, resumed = _find(paths)
  _log_group('training', [
      name for name in shapes if name + _OPTIMIZER_SLOT in shapes])
  # 1.
  if resumed:
    check_variables(resumed, shapes, 'it is of another run: name another '
                    '--model_dir, or pass --clean')
    if fine_tune:
      _check_keeps_heads(resumed, shapes, classifier_ids)
      if pretrained:
        _check_resumed_trunk(paths, trunk, resumed, pretrained)
    # The Estimator goes by the `checkpoint` file. It may be missing, or name
    # the folder that this one was copied from.
    if _named_checkpoint(paths.model_dir) != resumed:
      tf.train.update_checkpoint_state(paths.model_dir, resumed)
    _log_group(f'resuming from {resumed}', list(shapes))
    return None
  # 2.
  if pretrained:
    check_variables(pretrained, {name: shapes[name] for name in trunk},
                    '-pmcp must be of this network')
    _log_group(f'trunk from {pretrained}', trunk)
    _log_group('new', [name for name in shapes if name not in trunk])
    return pretrained
  # 3.
  if not may_start_anew:
    raise UserError('--fine_tune: requires a pretrained network, '
                    '--pretrained_model_checkpoint_path (-pmcp)')
  _log_group('new', list(shapes))
  return None


def to_evaluate(paths, shapes_of_exits):
  """Decides where the weights of an evaluation come from; rules above.

  Args:
    shapes_of_exits: from `exit_shapes`.

  Returns:
    `ExitWeights`.

  Raises:
    UserError: something is missing or has another shape, or a head was trained
      on another trunk than it would get.
  """
  pretrained, in_model_dir = _find(paths)
  # 1.
  trunk_checkpoint = pretrained or in_model_dir
  if not trunk_checkpoint:
    raise UserError(
        f'--eval_only: --model_dir {paths.model_dir} holds no checkpoint and '
        '--pretrained_model_checkpoint_path (-pmcp) is not given')
  if pretrained and in_model_dir and not paths.head_model_dirs and len(
      shapes_of_exits) == 1:
    (k, shapes), = shapes_of_exits.items()
    if set(shapes) <= set(_saved_shapes(in_model_dir)):
      trunk, _ = _split(shapes, k)
      _check_resumed_trunk(paths, trunk, in_model_dir, pretrained)
      trunk_checkpoint = in_model_dir
  # 2.
  head_candidates = [find_checkpoint(folder, '--head_model_dirs')
                     for folder in paths.head_model_dirs]
  if in_model_dir and not head_candidates:
    head_candidates = [in_model_dir]
  checkpoint_of = collections.OrderedDict()
  for k, shapes in shapes_of_exits.items():
    trunk, head = _split(shapes, k)
    head_checkpoint = _find_head(k, head, head_candidates, trunk_checkpoint)
    for names, checkpoint in ((trunk, trunk_checkpoint),
                              (head, head_checkpoint)):
      check_variables(checkpoint, {name: shapes[name] for name in names},
                      'all checkpoints must be of this network')
      checkpoint_of.update((name, checkpoint) for name in names)
    if head_checkpoint != trunk_checkpoint:
      _check_same_trunk(
          f'clf{k}', trunk, head_checkpoint, trunk_checkpoint,
          'perhaps for --trunk_batch_norm=update; dump it alone, with its own '
          f'trunk: --classifier_id {k} and its folder as --model_dir, without '
          '-pmcp')
  return _with_sources(checkpoint_of, shapes_of_exits)


def exit_shapes(model, classifier_ids, image_shape):
  """An ordered dict from classifier to the shapes of what it alone needs.

  Args:
    model: a `resnet_model.Model`.
    image_shape: [height, width, channels].
  """
  with tf.Graph().as_default():
    model.exit_logits(tf.placeholder(model.dtype, [None] + image_shape),
                      classifier_ids, trunk_training=False, head_training=False)
    shapes = shapes_of_variables()
  shapes_of_exits, trunk = collections.OrderedDict(), []
  # In the order of the network: a head comes behind its part of the trunk.
  for name, shape in shapes.items():
    k = next((k for k in classifier_ids
              if name.startswith(resnet_model.head_prefix(k))), None)
    if k is None:
      trunk.append(name)
    else:
      shapes_of_exits.setdefault(k, collections.OrderedDict(
          (name, shapes[name]) for name in trunk))[name] = shape
  return shapes_of_exits


def shapes_of_variables():
  """An ordered dict from name to shape (a list), of the default graph."""
  return collections.OrderedDict(
      (variable.op.name, variable.shape.as_list())
      for variable in tf.global_variables())


def saved_num_classes(paths):
  """Outputs of the network's own classifier in `paths`; None if not there."""
  pretrained, in_model_dir = _find(paths)
  checkpoint = pretrained or in_model_dir
  shape = checkpoint and _saved_shapes(checkpoint).get(resnet_model.head_prefix(
      resnet_model.FINAL_CLASSIFIER_ID) + 'bias')
  return shape and shape[0]


# ---- The rules' parts -------------------------------------------------------

def _find(paths):
  """The checkpoints of -pmcp and of --model_dir; None where there is none."""
  return (paths.pretrained and find_checkpoint(paths.pretrained, '-pmcp'),
          None if paths.clean else newest_checkpoint(paths.model_dir))


def _find_head(classifier_id, names, candidates, trunk_checkpoint):
  """The one checkpoint of `candidates` with this head, else the trunk's."""
  def with_head(checkpoints):
    return [checkpoint for checkpoint in checkpoints
            if set(names) & set(_saved_shapes(checkpoint))]

  found = with_head(candidates) or with_head([trunk_checkpoint])
  if not found:
    places = ' nor in '.join(candidates + [trunk_checkpoint])
    raise UserError(
        f'clf{classifier_id}: its head is not in {places}; train it with '
        '--fine_tune and name its folder in --model_dir or --head_model_dirs '
        '(that of the network itself is in the pretrained one, -pmcp)')
  if len(found) > 1:
    raise UserError(
        f'--head_model_dirs: clf{classifier_id} is in {found[0]} and in '
        f'{found[1]}; name one of them')
  return found[0]


def _split(names, classifier_id):
  """The trunk's names and the head's."""
  prefix = resnet_model.head_prefix(classifier_id)
  return ([name for name in names if not name.startswith(prefix)],
          [name for name in names if name.startswith(prefix)])


def _with_sources(checkpoint_of, shapes_of_exits):
  """Adds the digests of each exit, and logs where each group comes from."""
  readers = {checkpoint: tf.train.load_checkpoint(checkpoint)
             for checkpoint in set(checkpoint_of.values())}

  def sha256(names):
    digest = hashlib.sha256()
    for name in sorted(names):
      value = readers[checkpoint_of[name]].get_tensor(name)
      digest.update(f'{name} {value.dtype} {list(value.shape)}\n'.encode())
      digest.update(np.ascontiguousarray(value))
    return digest.hexdigest()

  sources = collections.OrderedDict()
  for k, shapes in shapes_of_exits.items():
    trunk, head = _split(shapes, k)
    sources[k] = ExitSource(checkpoint_of[trunk[0]], sha256(trunk),
                            checkpoint_of[head[0]], sha256(head))
    _log_group(f'clf{k}: trunk from {sources[k].trunk_checkpoint}', trunk)
    _log_group(f'clf{k}: head from {sources[k].head_checkpoint}', head)
  return ExitWeights(checkpoint_of, sources)


def _log_group(title, names):
  log.info('%s: %d variables, %s to %s', title, len(names), names[0],
           names[-1])


def is_pretrained(variable_name, classifier_ids):
  """Whether training takes a variable from the pretrained checkpoint.

  That is the trunk, without the heads that are trained.
  """
  heads = tuple(resnet_model.head_prefix(k) for k in classifier_ids)
  return (variable_name.startswith(resnet_model.MODEL_SCOPE + '/') and
          not variable_name.startswith(heads) and
          not variable_name.endswith(_OPTIMIZER_SLOT))


# ---- Checks -----------------------------------------------------------------

def _check_same_trunk(what, trunk, checkpoint, other, remedy,
                      averages_drift=False):
  """Refuses weights (`what`, for the message) of another trunk than `other`."""
  with _explain_unreadable(other, '-pmcp must be of this network'):
    first, second = [tf.train.load_checkpoint(prefix)
                     for prefix in (checkpoint, other)]
    differing = [name for name in trunk if not (
        first.has_tensor(name) and second.has_tensor(name) and
        np.array_equal(first.get_tensor(name), second.get_tensor(name)))]
  if averages_drift:
    differing = [name for name in differing if not name.endswith(_AVERAGES)]
  if differing:
    raise UserError(
        f'{what}: the trunk of {checkpoint} is not that of {other} '
        f'({len(differing)} of {len(trunk)} variables differ, such as '
        f'{differing[0]}); {remedy}')


def _check_resumed_trunk(paths, trunk, resumed, pretrained):
  """Refuses a --model_dir that was trained on another trunk than -pmcp."""
  _check_same_trunk(
      '--model_dir', trunk, resumed, pretrained,
      'name another --model_dir, leave out -pmcp to use the trunk of '
      '--model_dir, or pass --trunk_batch_norm=update if it was trained so',
      paths.averages_drift)


def _check_keeps_heads(resumed, shapes, classifier_ids):
  """Refuses to resume without a head that the checkpoint has.

  The next checkpoint would lack it, and the old ones are deleted in time.
  """
  others = set(_saved_shapes(resumed)) - set(shapes)
  dropped = [k for k in resnet_model.CLASSIFIER_IDS if any(
      name.startswith(resnet_model.head_prefix(k)) for name in others)]
  if dropped:
    together = ','.join(map(str, sorted(dropped + list(classifier_ids))))
    raise UserError(
        f'--model_dir: {resumed} also holds clf{dropped[0]}, which this '
        f'training would drop; pass --classifier_id {together}, or name '
        'another --model_dir')


def check_variables(checkpoint, shapes, remedy):
  """Checks that a checkpoint has what a graph wants, and finite values in it.

  Args:
    checkpoint: a prefix.
    shapes: as of `shapes_of_variables`.

  Raises:
    UserError: the checkpoint cannot be read, or lacks a variable, or has one
      of another shape; ends in `remedy`. Or its training diverged.
  """
  saved = _saved_shapes(checkpoint, remedy)
  wrong = [
      f'{name} is {saved[name]}, needed {list(shapes[name])}'
      if name in saved else f'lacks {name}'
      for name in sorted(shapes)
      if name not in saved or list(saved[name]) != list(shapes[name])]
  if wrong:
    raise UserError(f'{checkpoint}: {len(wrong)} variables do not fit this '
                    f'network, such as: {wrong[0]}; {remedy}')
  # So far only the index was read. The data may be missing or truncated.
  with _explain_unreadable(checkpoint, remedy):
    reader = tf.train.load_checkpoint(checkpoint)
    for name in shapes:
      if not np.isfinite(reader.get_tensor(name)).all():
        raise UserError(f'{checkpoint}: {name} is not finite, so its training '
                        'diverged; train again with --clean and a smaller rate '
                        '(--base_lr)')


def _saved_shapes(checkpoint, remedy='copy it again or name another folder'):
  """A dict from variable name to shape."""
  with _explain_unreadable(checkpoint, remedy):
    return tf.train.load_checkpoint(checkpoint).get_variable_to_shape_map()


@contextlib.contextmanager
def _explain_unreadable(checkpoint, remedy):
  try:
    yield
  except (tf.errors.OpError, ValueError, IndexError, RuntimeError) as error:
    # The last two are TensorFlow 2.15's, from C++.
    reason = str(error).split('\n')[0]
    raise UserError(f'{checkpoint}: cannot be read as a checkpoint '
                    f'({reason}); {remedy}')


# ---- Finding and restoring --------------------------------------------------

def find_checkpoint(path, flag_name):
  """The checkpoint prefix that a path stands for.

  Args:
    path: a folder with checkpoints (its newest is taken), or a prefix such as
      'folder/model.ckpt-225207', or one of its files, as a shell completes it.
    flag_name: for the message.

  Raises:
    UserError: nothing there.
  """
  prefix = re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', path)
  try:
    if tf.gfile.Exists(prefix + '.index'):
      return prefix
    checkpoint = newest_checkpoint(prefix)
  except tf.errors.OpError as error:  # No such scheme, no permission.
    raise UserError(f'{flag_name} {path}: cannot be read ({error.message}); '
                    'name another folder or checkpoint')
  if checkpoint is None:
    raise UserError(f'{flag_name} {path}: no checkpoint there '
                    '(model.ckpt-*.index)')
  return checkpoint


def newest_checkpoint(folder):
  """Prefix of the newest checkpoint in `folder`, or None.

  By the folder's `checkpoint` file. Where that is missing, or names the
  folder in which somebody else trained (as in the official archives), by the
  number of steps.
  """
  if not tf.gfile.IsDirectory(folder):
    return None
  named = _named_checkpoint(folder)
  here = named and os.path.join(folder, os.path.basename(named))
  if here and tf.gfile.Exists(here + '.index'):
    return here
  prefixes = [os.path.join(folder, name[:-len('.index')])
              for name in tf.gfile.ListDirectory(folder)
              if name.endswith('.index')]
  return max(prefixes, key=_steps, default=None)


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
  """The global step saved in a checkpoint; None where there is none."""
  reader = tf.train.load_checkpoint(checkpoint)
  if not reader.has_tensor(tf.GraphKeys.GLOBAL_STEP):
    return None
  return int(reader.get_tensor(tf.GraphKeys.GLOBAL_STEP))


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


def savers(checkpoint_of, scope=''):
  """(saver, checkpoint) pairs that restore all variables of a graph.

  Args:
    checkpoint_of: from `ExitWeights`.
    scope: what the names of the variables begin with here and not in the
      checkpoint, such as 'replica_0/'; others are left alone.
  """
  by_checkpoint = {}
  for variable in tf.global_variables(scope):
    name = variable.op.name[len(scope):]
    by_checkpoint.setdefault(checkpoint_of[name], {})[name] = variable
  return [(tf.train.Saver(variables), checkpoint)
          for checkpoint, variables in by_checkpoint.items()]
