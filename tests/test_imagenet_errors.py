"""Imagenet/imagenet_errors.py: what the user is told, on both stacks."""

import errno
import io
import os
import traceback

import pytest
from PIL import Image

from tf_compat import tf

import imagenet_input
import imagenet_shards
import imagenet_errors
import tiny_records
from imagenet_errors import explain_read_error
from user_error import UserError

IMAGE_SIZE = 32
LAYOUT = {'train': [4, 3, 5], 'validation': [3, 0, 4]}


def record(split, number, encoded=None, label=1, more=None):
  return tiny_records.make_record(
      tiny_records.draw_jpeg(number) if encoded is None else encoded, label,
      '{}_{}.JPEG'.format(split, number), more)


@pytest.fixture
def data(tmpdir):
  return Data(str(tmpdir))


class Data:
  """A data folder; `shards` is a dict from split to paths."""

  def __init__(self, folder):
    self.folder = folder
    self.shards = {}
    for split in LAYOUT:
      self.write(split, {})

  def write(self, split, replaced):
    """Writes a split; `replaced` is a dict from number to record."""
    self.shards[split] = tiny_records.write_shards(
        os.path.join(self.folder, split), split,
        [replaced[i] if i in replaced else record(split, i)
         for i in range(sum(LAYOUT[split]))], LAYOUT[split])

  def read(self, is_training=False, split=None, num_epochs=1):
    """Reads a split to its end: the run that errors are explained in."""
    paths = self.shards[split] if split else None
    with tf.Graph().as_default(), tf.Session() as session:
      if paths:
        dataset = imagenet_input.evaluation_dataset(
            paths, 4, image_size=IMAGE_SIZE, num_classes=11)
      else:
        dataset = imagenet_input.input_fn(
            is_training, self.folder, 4, num_epochs, image_size=IMAGE_SIZE,
            num_classes=11)
      iterator = dataset.make_initializable_iterator()
      batch = iterator.get_next()
      session.run(iterator.initializer)
      while True:
        try:
          session.run(batch)
        except tf.errors.OutOfRangeError:
          return

  def message(self, *args, **kwargs):
    """What the user is told of an error in reading: one line."""
    with pytest.raises(UserError) as raised:
      with explain_read_error(self.shards, IMAGE_SIZE):
        self.read(*args, **kwargs)
    message = str(raised.value)
    assert '\n' not in message and len(message) < 400
    assert 'Graph execution error' not in message
    return message


@pytest.fixture
def no_search(monkeypatch):
  """For errors that must not have anyone read all records again."""
  def fail(*unused_args, **unused_kwargs):
    raise AssertionError('searches the records')
  for name in ('map_shards', 'record_frames', 'corrupt_record_error'):
    monkeypatch.setattr(imagenet_errors, name, fail)


# ---- Corrupt records ---------------------------------------------------------

@pytest.mark.parametrize('shard, number', [(0, 0), (2, 3)])
@pytest.mark.parametrize('part', ['header', 'data'])
def test_a_corrupt_byte_is_named(data, shard, number, part):
  path = data.shards['validation'][shard]
  offset, length = list(imagenet_shards.record_frames(path))[number]
  with open(path, 'r+b') as stream:
    # The length stays; its checksum or the data no longer fit.
    stream.seek(offset + (9 if part == 'header' else 12 + length // 2))
    byte = stream.read(1)
    stream.seek(-1, os.SEEK_CUR)
    stream.write(bytes(bytearray([ord(byte) ^ 4])))
  assert data.message() == (
      '{}: truncated or corrupt at record {} (byte {:,} of {:,}); build or '
      'copy this shard again'.format(
          path, number, offset, os.path.getsize(path)))


def test_a_corrupt_byte_is_named_in_training(data):
  path = data.shards['train'][1]
  offset, _ = list(imagenet_shards.record_frames(path))[2]
  with open(path, 'r+b') as stream:
    stream.seek(offset + 100)
    stream.write(b'\0\1\2')
  message = data.message(is_training=True, num_epochs=None)
  assert message.startswith(
      '{}: truncated or corrupt at record 2 (byte {:,} of'.format(path, offset))


def test_a_shard_that_is_cut_during_the_run(data):
  path = data.shards['validation'][2]
  offset, _ = list(imagenet_shards.record_frames(path))[3]
  with open(path, 'r+b') as stream:
    stream.truncate(offset + 50)
  assert data.message().startswith(
      '{}: truncated or corrupt at record 3 (byte {:,} of'.format(path, offset))


# ---- Images that cannot be decoded -------------------------------------------

JPEG = tiny_records.draw_jpeg(0)


def image_file(kind):
  stream = io.BytesIO()
  Image.new('RGB', (40, 30)).save(stream, kind)
  return stream.getvalue()


@pytest.mark.parametrize('encoded', [
    b'', JPEG[:len(JPEG) // 2], JPEG[:-2], image_file('BMP')],
                         ids=['empty', 'half', 'no end', 'bmp'])
@pytest.mark.parametrize('split, number, shard, row', [
    ('validation', 0, 0, 0), ('train', 11, 2, 4)])
def test_an_image_that_cannot_be_decoded_is_named(
    data, encoded, split, number, shard, row):
  data.write(split, {number: record(split, number, encoded)})
  message = data.message(split=split)
  assert message.startswith(
      '{}: record {}, image {}_{}.JPEG: cannot be decoded ('.format(
          data.shards[split][shard], row, split, number))
  assert message.endswith(')') and not message.endswith('()')


@pytest.mark.parametrize('encoded, reason', [
    (b'garbage', 'Invalid JPEG data, size 7'),
    (JPEG[:len(JPEG) // 3], 'Invalid JPEG data or crop window')],
                         ids=['garbage', 'third'])
def test_an_image_that_training_cannot_decode_is_named(data, encoded, reason):
  data.write('train', {5: record('train', 5, encoded)})
  # A random crop may miss what is cut off, but not every time. The reason is
  # that of training, also where evaluation would have given another.
  message = data.message(is_training=True, num_epochs=None)
  assert message.startswith(
      '{}: record 1, image train_5.JPEG: cannot be decoded ('.format(
          data.shards['train'][1]))
  assert reason in message


def test_an_image_that_evaluation_decodes_is_not_blamed(data):
  """A PNG is read in evaluation; only training wants its JPEG header."""
  data.write('train', {0: record('train', 0, image_file('PNG')),
                       9: record('train', 9, b'garbage')})
  assert data.message(split='train').startswith(
      '{}: record 2, image train_9.JPEG: '.format(data.shards['train'][2]))


def test_a_record_without_an_image(data):
  data.write('validation', {
      4: record('validation', 4, more={'image/encoded': None})})
  assert data.message().startswith(
      '{}: record 1, image validation_4.JPEG: cannot be decoded ('.format(
          data.shards['validation'][2]))


@pytest.mark.filterwarnings('ignore:Unexpected end-group tag')
def test_a_record_of_another_kind(data):
  data.write('validation', {4: b'hello world'})
  message = data.message()
  assert message.startswith(data.shards['validation'][2] + ': record 1, ')
  assert 'Could not parse example' in message


@pytest.mark.parametrize('boxes', [[1.5], [0.1, 0.2]])
def test_boxes_that_are_none(data, boxes):
  """Out of the image; or of two sides, where the others have one."""
  sides = {'image/object/bbox/' + side: [0.2] for side in ('ymin', 'xmin')}
  sides.update({'image/object/bbox/ymax': [0.8],
                'image/object/bbox/xmax': boxes})
  data.write('train', {5: record('train', 5, more=sides)})
  assert data.message(is_training=True).startswith(
      '{}: record 1, image train_5.JPEG: '.format(data.shards['train'][1]))


def test_the_search_survives_a_corrupt_shard(data):
  data.write('train', {9: record('train', 9, b'garbage')})
  with open(data.shards['validation'][0], 'r+b') as stream:
    stream.seek(50)
    stream.write(b'\0\1\2')
  message = data.message(split='train')
  assert message.startswith(
      data.shards['validation'][0] + ': truncated or corrupt at record 0 ')


# ---- Labels ------------------------------------------------------------------

@pytest.mark.parametrize('label, shown', [
    (11, '11'), (2**40, str(2**40)), (None, '-1 (or none)')])
@pytest.mark.parametrize('is_training', [True, False])
def test_a_label_out_of_range_is_named(
    data, no_search, label, shown, is_training):
  split = 'train' if is_training else 'validation'
  data.write(split, {5: record(split, 5, more={'image/class/label': label})})
  assert data.message(is_training) == (
      'image {}_5.JPEG: label {} is out of range; does dataset.json belong to '
      'these records?'.format(split, shown))


# ---- The disk ----------------------------------------------------------------

def test_a_full_disk_as_tensorflow_tells_it(data, no_search):
  with tf.Graph().as_default(), tf.Session() as session:
    write = tf.write_file('/dev/full', 'text')
    with pytest.raises(UserError) as raised:
      with explain_read_error(data.shards, IMAGE_SIZE):
        session.run(write)
  assert str(raised.value) == (
      'the disk is full: /dev/full; No space left on device')


def test_a_full_disk_as_python_tells_it(data, no_search):
  with pytest.raises(UserError) as raised:
    with explain_read_error(data.shards, IMAGE_SIZE):
      with open('/dev/full', 'w') as stream:
        stream.write('text')
  assert str(raised.value) == (
      'a file cannot be read or written: No space left on device')


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EACCES])
def test_a_file_that_cannot_be_written(data, no_search, number):
  with pytest.raises(UserError) as raised:
    with explain_read_error(data.shards, IMAGE_SIZE):
      raise OSError(number, os.strerror(number), 'md/results.json')
  assert str(raised.value) == 'md/results.json: ' + os.strerror(number)


def test_a_shard_that_is_gone(data, no_search):
  path = data.shards['train'][1]
  os.remove(path)
  assert data.message(split='train') == path + '; No such file or directory'


# ---- What is passed on -------------------------------------------------------

def passes(shards, function):
  """The exception of a call, which must come through unchanged."""
  seen = []

  def run():
    try:
      function()
    except BaseException as error:
      seen.append(error)
      raise
  with pytest.raises(BaseException) as raised:
    with explain_read_error(shards, IMAGE_SIZE):
      run()
  assert raised.value is seen[0]
  frames = traceback.extract_tb(raised.value.__traceback__)
  assert 'run' in [frame[2] for frame in frames]
  return raised.value


@pytest.mark.parametrize('error', [
    KeyboardInterrupt(), ValueError('a defect'), UserError('said already'),
    FileNotFoundError(errno.ENOENT, 'No such file or directory', 'a.npy'),
    OSError('no number'),
    tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor'),
    tf.errors.InvalidArgumentError(None, None, 'Incompatible shapes: [4] [5]'),
    tf.errors.DataLossError(None, None, 'Unable to open table file')],
                         ids=lambda error: type(error).__name__)
def test_other_errors_pass_unchanged(data, no_search, error):
  def fail():
    raise error
  assert passes(data.shards, fail) is error


def test_an_error_of_the_model_passes(data, no_search):
  """Its message names the input, as the node that the failed one reads."""
  with tf.Graph().as_default(), tf.Session() as session:
    iterator = imagenet_input.input_fn(
        False, data.folder, 4, image_size=IMAGE_SIZE,
        num_classes=11).make_initializable_iterator()
    images, _ = iterator.get_next()
    session.run(iterator.initializer)
    logits = tf.reduce_mean(images, axis=[1, 2])
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.constant([1, 2, 7]), logits=logits[:3])
    error = passes(data.shards, lambda: session.run(loss))
  assert isinstance(error, tf.errors.InvalidArgumentError)
  assert 'label' in error.message  # 7 is beyond three classes.


def test_a_loss_that_is_not_a_number(data, no_search):
  with pytest.raises(UserError) as raised:
    with explain_read_error(data.shards, IMAGE_SIZE):
      raise tf.train.NanLossDuringTrainingError()
  assert '--base_lr' in str(raised.value)
