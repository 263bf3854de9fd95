"""Which checkpoint each weight of a dump comes from, and their digests.

The exits of a cascade have one trunk. Its weights and those of the heads may
lie in different checkpoints: heads that were trained in runs of their own, on
the trunk of the pretrained network.
"""

import collections
import hashlib

import numpy as np

from tf_compat import tf

import resnet_checkpoint
import resnet_model
from user_error import UserError

# Where one classifier's weights come from: checkpoints, and the SHA-256 of the
# weights of the trunk as far as this classifier, and of its head.
ExitSource = collections.namedtuple(
    'ExitSource', 'trunk_checkpoint trunk_sha256 head_checkpoint head_sha256')


class ExitWeights(object):
  """Of each variable of the exits the checkpoint that has its value.

  Attributes:
    checkpoint_of: an ordered dict from variable name to checkpoint prefix.
    sources: an ordered dict from classifier to `ExitSource`.
  """

  def __init__(self, checkpoint_of, exit_shapes):
    """
    Args:
      checkpoint_of: see above.
      exit_shapes: an ordered dict from classifier to the shapes by name of the
        variables that it needs.
    """
    self.checkpoint_of = checkpoint_of
    self.sources = collections.OrderedDict()
    readers = {checkpoint: tf.train.load_checkpoint(checkpoint)
               for checkpoint in set(checkpoint_of.values())}
    for k, shapes in exit_shapes.items():
      trunk, head = _split(shapes, k)
      checkpoints, digests = [], []
      for names in (trunk, head):
        digest = hashlib.sha256()
        for name in sorted(names):
          value = readers[checkpoint_of[name]].get_tensor(name)
          digest.update('{} {} {}\n'.format(
              name, value.dtype, list(value.shape)).encode())
          digest.update(np.ascontiguousarray(value))
        checkpoints.append(checkpoint_of[names[0]])
        digests.append(digest.hexdigest())
      self.sources[k] = ExitSource(
          checkpoints[0], digests[0], checkpoints[1], digests[1])


def _split(names, classifier_id):
  """Names of the trunk's and of the head's variables."""
  prefix = resnet_model.head_prefix(classifier_id)
  return ([name for name in names if not name.startswith(prefix)],
          [name for name in names if name.startswith(prefix)])


def of_one_checkpoint(checkpoint, exit_shapes):
  """`ExitWeights` of a checkpoint that has all of them."""
  return ExitWeights(collections.OrderedDict(
      (name, checkpoint) for shapes in exit_shapes.values()
      for name in shapes), exit_shapes)


def to_dump(flags_obj, exit_shapes):
  """Finds and checks the weights of an evaluation pass.

  One classifier whose --model_dir holds all that it needs comes from there.
  Otherwise the trunk comes from --pretrained_model_checkpoint_path (if it is
  given, else from --model_dir), and each head from that one of
  --head_model_dirs (default: --model_dir) that has it, else from the trunk's.

  Args:
    flags_obj: the parsed flags.
    exit_shapes: as for `ExitWeights`.

  Returns:
    `ExitWeights`.

  Raises:
    UserError: something is missing or has another shape; or a head was trained
      on a trunk with other weights.
  """
  in_model_dir = resnet_checkpoint.earlier_checkpoint(flags_obj)
  pretrained = flags_obj.pretrained_model_checkpoint_path
  if pretrained:
    pretrained = resnet_checkpoint.find_checkpoint(pretrained, '-pmcp')
  if flags_obj.head_model_dirs:
    candidates = [resnet_checkpoint.find_checkpoint(folder, '--head_model_dirs')
                  for folder in flags_obj.head_model_dirs]
  else:
    candidates = [in_model_dir] if in_model_dir else []
    if candidates and len(exit_shapes) == 1:
      (shapes,) = exit_shapes.values()
      if not pretrained or set(shapes) <= _names_in(in_model_dir):
        return _whole(in_model_dir, exit_shapes, (
            'is --model_dir of this classifier and this network?'))
  trunk_checkpoint = pretrained or in_model_dir
  if not trunk_checkpoint:
    raise UserError(
        '--eval_only: --model_dir {} holds no checkpoint and '
        '--pretrained_model_checkpoint_path (-pmcp) is not given'.format(
            flags_obj.model_dir))
  if not candidates:
    return _whole(trunk_checkpoint, exit_shapes, (
        '-pmcp must be of this network; a head comes from --model_dir, after '
        '--fine_tune, or from --head_model_dirs'))

  checkpoint_of = collections.OrderedDict()
  for k, shapes in exit_shapes.items():
    trunk, head = _split(shapes, k)
    head_checkpoint = _head_checkpoint(k, head, candidates, trunk_checkpoint)
    for names, checkpoint in ((trunk, trunk_checkpoint),
                              (head, head_checkpoint)):
      resnet_checkpoint.check_variables(
          checkpoint, {name: shapes[name] for name in names},
          'all checkpoints must be of this network')
      checkpoint_of.update((name, checkpoint) for name in names)
    if head_checkpoint != trunk_checkpoint:
      _check_same_trunk(k, trunk, head_checkpoint, trunk_checkpoint)
  return _told(ExitWeights(checkpoint_of, exit_shapes))


def _whole(checkpoint, exit_shapes, remedy):
  """Everything from one checkpoint, checked."""
  for shapes in exit_shapes.values():
    resnet_checkpoint.check_variables(checkpoint, shapes, remedy)
  return _told(of_one_checkpoint(checkpoint, exit_shapes))


def _told(weights):
  for k, source in weights.sources.items():
    tf.logging.info('clf%d: head of %s, trunk of %s', k,
                    source.head_checkpoint, source.trunk_checkpoint)
  return weights


def _names_in(checkpoint):
  return set(resnet_checkpoint.saved_shapes(
      checkpoint, 'copy it again or name another folder'))


def _head_checkpoint(classifier_id, names, candidates, trunk_checkpoint):
  """The one checkpoint of `candidates` with this head, else the trunk's."""
  found = [checkpoint for checkpoint in candidates
           if set(names) & _names_in(checkpoint)]
  if len(found) > 1:
    raise UserError('--head_model_dirs: clf{} is in {} and in {}; name one of '
                    'them'.format(classifier_id, found[0], found[1]))
  if found:
    return found[0]
  if not set(names) & _names_in(trunk_checkpoint):
    remedy = ('train it with --fine_tune, and name its folder in '
              '--head_model_dirs')
    if classifier_id == resnet_model.FINAL_CLASSIFIER_ID:
      remedy = ('it is part of the pretrained network, '
                '--pretrained_model_checkpoint_path (-pmcp)')
    raise UserError('clf{}: its head is neither in {} nor in {}; {}'.format(
        classifier_id, ', '.join(candidates), trunk_checkpoint, remedy))
  return trunk_checkpoint


def _check_same_trunk(classifier_id, names, head_checkpoint, trunk_checkpoint):
  """Refuses a head that was trained on another trunk than it would get."""
  of_head = tf.train.load_checkpoint(head_checkpoint)
  of_trunk = tf.train.load_checkpoint(trunk_checkpoint)
  different = [
      name for name in names if not of_head.has_tensor(name) or
      not np.array_equal(of_head.get_tensor(name), of_trunk.get_tensor(name))]
  if different:
    raise UserError(
        'clf{}: the trunk that it was trained on, in {}, is not that of {} '
        '({} of {} variables differ, such as {}), perhaps for '
        '--trunk_batch_norm=update; dump it alone, with its own trunk: '
        '--classifier_id {} and its folder as --model_dir'.format(
            classifier_id, head_checkpoint, trunk_checkpoint, len(different),
            len(names), different[0], classifier_id))
