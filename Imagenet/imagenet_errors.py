"""From TensorFlow's input errors to the file and image that caused them.

TensorFlow reports a position or a size, not the file. These errors stop a run
anyway, so there is time to look for the culprit.
"""

import contextlib
import errno
import re

from tf_compat import tf

from imagenet_input import LABEL_OUT_OF_RANGE, PARSER_SCOPES, record_parser
from imagenet_shards import FRAME_HEADER_BYTES, corrupt_record_error
from imagenet_shards import map_shards, record_features, record_frames
from user_error import UserError

# Errors of the machine. Others, such as a path that is not there, are ours.
_MACHINE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES,
                   errno.EPERM, errno.EIO)


@contextlib.contextmanager
def explain_read_error(shards, image_size):
  """Turns errors of reading `shards` into `UserError`s that name the culprit.

  Any other exception passes as it is.

  Args:
    shards: a dict from split to paths.
    image_size: of the images, to parse the records as the run did.

  Raises:
    UserError: instead of a corrupt record, a record or an image that cannot be
      decoded, a label out of range, a shard that cannot be read any more, a
      full or read-only disk, or a loss that is not a number.
  """
  try:
    yield
  except tf.errors.OpError as error:
    explained = _explain(error, shards, image_size)
    if explained is None:
      raise
    raise explained
  except tf.train.NanLossDuringTrainingError:
    raise UserError('the loss is not a number any more; try a smaller learning '
                    'rate (--base_lr)')
  except OSError as error:
    if error.errno not in _MACHINE_ERRNOS:
      raise
    name = error.filename or 'a file cannot be read or written'
    raise UserError(f'{name}: {error.strerror}')


def _explain(error, shards, image_size):
  """The `UserError` to raise instead of a TensorFlow error, or None."""
  message = error.message
  if isinstance(error, tf.errors.DataLossError):
    return _corrupt_record(sum(shards.values(), []), message)
  if 'No space left' in message or 'quota exceeded' in message:
    return UserError(f'the disk is full: {_reason(message)}')
  if LABEL_OUT_OF_RANGE in message:
    return _label_out_of_range(message)
  for is_training, scope in enumerate(PARSER_SCOPES):
    if scope + '/' in message:
      return _undecodable_image(shards, is_training, image_size)
  reason = _reason(message)
  if any(reason.startswith(path + ';')
         for paths in shards.values() for path in paths):
    return UserError(reason)
  return None


def _reason(message):
  """The line of a TensorFlow message that says what went wrong.

  In 1.12 it is the first one; in 2.15 a trace of the graph's origin stands
  before it. In both, the names of the operations follow, in double brackets.
  """
  match = re.search(r'^(?: *\(\d+\) [A-Z_]+: )?(.*)\n\t \[\[', message, re.M)
  return match.group(1) if match else message.split('\n')[0]


def _label_out_of_range(message):
  match = re.search(
      rf'\[{LABEL_OUT_OF_RANGE}\] \[(-?\d+)\] \[(.*)\]$', message, re.M)
  if not match:
    return None
  label, name = match.groups()
  label = '-1 (or none)' if label == '-1' else label
  return UserError(f'image {name or "without a name"}: label {label} is out of '
                   'range; does dataset.json belong to these records?')


def _corrupt_record(paths, message):
  """Names the shard: the one that has a record where the message says."""
  match = re.search(r'(?:corrupted|truncated) record at (\d+)', message)
  if not match:
    return None
  position = int(match.group(1))  # Of the header or of the data behind it.
  for path in paths:
    for offset, _ in record_frames(path):
      if offset in (position, position - FRAME_HEADER_BYTES):
        error = corrupt_record_error(path, last_offset=offset)
        if error:
          return error
      if offset >= position:
        break
  return None


def _undecodable_image(shards, is_training, image_size):
  """Parses record after record until one fails, and names it; None if none."""
  # Training reads its own split, dumps read both: the smaller one comes first.
  splits = ['train'] if is_training else ['validation', 'train']
  paths = sum((shards.get(split, []) for split in splits), [])
  with tf.Graph().as_default(), tf.Session() as session:
    record = tf.placeholder(tf.string, [])
    parse = record_parser(image_size, num_classes=tf.int32.max)
    # As the run did; then, where that is a random crop, which may miss what is
    # cut off, the whole image as well. One by one: the first error counts.
    images = [parse(record, training, tf.float32)[0]
              for training in ([True, False] if is_training else [False])]

    def first_error(path):
      number, data = 0, b''
      try:
        for number, data in enumerate(tf.python_io.tf_record_iterator(path)):
          for image in images:
            session.run(image.op, {record: data})
      except tf.errors.DataLossError:
        return corrupt_record_error(path)
      except tf.errors.InvalidArgumentError as error:
        return UserError(
            f'{path}: record {number:,}, {_image_name(data)}: cannot be '
            f'decoded ({_reason(error.message)})')
      return None

    errors = map_shards(
        first_error, paths, 'looking for the image that cannot be decoded')
    return next(filter(None, errors), None)


def _image_name(record):
  features = record_features(record)
  if features is None:
    return 'not a tf.train.Example'
  names = features['image/filename'].bytes_list.value
  name = names[0].decode('utf-8', 'replace') if names else 'without a name'
  return f'image {name}'
