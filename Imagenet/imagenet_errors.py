"""From TensorFlow's errors to one line that says what to do.

TensorFlow reports a position or an operation, not the file.
"""

import contextlib
import os
import re

from tf_compat import tf

from imagenet_input import LABEL_OUT_OF_RANGE, NOT_A_JPEG, PARSER_SCOPES
from shared_terminal import UserError


@contextlib.contextmanager
def explain_read_error(shards):
  """Turns errors of reading `shards` into `UserError`s.

  Among them a full disk, and a loss that is not a number. Any other exception
  passes as it is.

  Args:
    shards: a dict from split to paths.
  """
  try:
    yield
  except tf.errors.OpError as error:
    explained = _explain(error, shards)
    if explained is None:
      raise
    raise UserError(explained)
  except tf.train.NanLossDuringTrainingError:
    raise UserError('the loss is not a number any more; try a smaller learning '
                    'rate (--base_lr)')


def _explain(error, shards):
  """What to say instead of a TensorFlow error; None if that is not known."""
  message, reason = error.message, _reason(error.message)
  if (isinstance(error, tf.errors.DataLossError) and
      re.search('(corrupted|truncated) record at', message)):
    return _damaged(shards, ' and '.join(sorted(shards)), 'record',
                    f'is corrupt ({reason})')
  if 'No space left' in message or 'quota exceeded' in message:
    return f'the disk is full: {reason}'
  match = re.search(
      rf'\[{LABEL_OUT_OF_RANGE}\] \[(-?\d+)\] \[(\d+)\] \[(.*)\]$', message,
      re.M)
  if match:
    label, num_classes, name = match.groups()
    remedy = 'does dataset.json belong to these records?'
    if label == num_classes:
      remedy = (f'num_classes {num_classes} counts the background class, 0, so '
                f'for labels from 1 to {label} it must be {int(label) + 1}')
    label = '-1 (or none)' if label == '-1' else label
    return (f'image {name or "without a name"}: label {label} is out of range; '
            f'{remedy}')
  match = re.search(rf'\[{NOT_A_JPEG}\] \[(.*)\]$', message, re.M)
  if match:
    return (f'image {match.group(1) or "without a name"}: not a JPEG; build '
            'the records with build_imagenet_tfrecords.py, which makes it one')
  for is_training, scope in enumerate(PARSER_SCOPES):
    if scope + '/' in message:
      split = ('train' if is_training or 'validation' not in shards else
               'validation')
      return _damaged(shards, split, 'image', f'cannot be decoded ({reason})')
  if reason.startswith(tuple(
      path + ';' for paths in shards.values() for path in paths)):
    return reason  # It cannot be read.
  return None


def _reason(message):
  """The line of a TensorFlow message that says what went wrong.

  In 1.12 it is the first one; in 2.15 a trace of the graph's origin stands
  before it. In both, the names of the operations follow, in double brackets.
  """
  match = re.search(r'^(?: *\(\d+\) [A-Z_]+: )?(.*)\n\t \[\[', message, re.M)
  return match.group(1) if match else message.split('\n')[0]


def _damaged(shards, split, what, problem):
  """TensorFlow does not say in which shard; the other tool does."""
  folder = os.path.dirname(next(iter(shards.values()))[0])
  data_dir = re.sub('/(train|validation)$', '', folder)
  return (f'{data_dir}: a {split} {what} {problem}; to find it, run python3 '
          f'verify_records.py {data_dir} --verify full')
