"""Imagenet/imagenet_errors.py: what the user is told, on both stacks."""

import io
import os

import pytest
from PIL import Image

from tf_compat import tf

import imagenet_input
import tiny_records
from imagenet_data import record_frames
from imagenet_errors import explain_read_error
from shared_terminal import UserError

IMAGE_SIZE = 32
LAYOUT = {'train': [4, 3, 5], 'validation': [3, 0, 4]}


def record(split, number, encoded=None, label=1, more=None):
  return tiny_records.make_record(
      tiny_records.draw_jpeg(number) if encoded is None else encoded, label,
      '{}_{}.JPEG'.format(split, number), more)


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

  def read(self, is_training=False):
    """Reads a split to its end: the run that errors are explained in."""
    with tf.Graph().as_default(), tf.Session() as session:
      iterator = imagenet_input.input_fn(
          is_training, self.folder, 4, image_size=IMAGE_SIZE,
          num_classes=11).make_initializable_iterator()
      batch = iterator.get_next()
      session.run(iterator.initializer)
      while True:
        try:
          session.run(batch)
        except tf.errors.OutOfRangeError:
          return

  def message(self, is_training=False):
    """What the user is told of an error in reading: one line."""
    with pytest.raises(UserError) as raised:
      with explain_read_error(self.shards):
        self.read(is_training)
    message = str(raised.value)
    assert '\n' not in message and len(message) < 400
    return message


@pytest.fixture
def data(tmpdir):
  return Data(str(tmpdir))


# ---- Corrupt records ---------------------------------------------------------

def test_a_corrupt_byte_is_named(data):
  path = data.shards['validation'][2]
  offset, length = list(record_frames(path))[3]
  with open(path, 'r+b') as stream:
    stream.seek(offset + 12 + length // 2)
    byte = stream.read(1)
    stream.seek(-1, os.SEEK_CUR)
    stream.write(bytes([ord(byte) ^ 4]))
  message = data.message()
  assert 'validation record is corrupt' in message
  assert f'verify_records.py {data.folder}' in message


# ---- Images that cannot be decoded -------------------------------------------

def test_an_image_that_cannot_be_decoded(data):
  data.write('validation', {
      3: record('validation', 3, tiny_records.draw_jpeg(0)[:-2])})
  message = data.message()
  assert 'image cannot be decoded (' in message
  assert f'verify_records.py {data.folder} --verify full' in message


@pytest.mark.parametrize('is_training', [True, False])
def test_an_image_that_is_not_a_jpeg_is_named(data, is_training):
  """Evaluation read some of these, and training did not."""
  png = io.BytesIO()
  Image.new('RGB', (40, 30)).save(png, 'PNG')
  split = 'train' if is_training else 'validation'
  data.write(split, {5: record(split, 5, png.getvalue())})
  message = data.message(is_training)
  assert f'image {split}_5.JPEG' in message and 'not a JPEG' in message


# ---- Labels ------------------------------------------------------------------

@pytest.mark.parametrize('label, shown', [
    (2**40, str(2**40)), (None, '-1 (or none)')])
@pytest.mark.parametrize('is_training', [True, False])
def test_a_label_out_of_range_is_named(
    data, label, shown, is_training):
  split = 'train' if is_training else 'validation'
  data.write(split, {5: record(split, 5, more={'image/class/label': label})})
  message = data.message(is_training)
  assert f'image {split}_5.JPEG' in message and f'label {shown} ' in message


def test_labels_up_to_the_number_of_classes(data):
  """Where the background class was forgotten in dataset.json."""
  data.write('train', {5: record('train', 5, label=11)})
  assert 'for labels from 1 to 11 it must be 12' in data.message(True)


@pytest.mark.parametrize('is_training', [True, False])
def test_labels_from_zero_on_are_said_once(
    data, monkeypatch, capfd, is_training):
  monkeypatch.setattr(imagenet_input, '_said_label_zero', [])
  split = 'train' if is_training else 'validation'
  data.read(is_training)
  assert capfd.readouterr().err == ''
  data.write(split, {i: record(split, i, label=0) for i in (2, 5)})
  data.read(is_training)
  said, = capfd.readouterr().err.splitlines()
  assert f'image {split}_' in said and 'label 0' in said


# ---- The disk ----------------------------------------------------------------

def test_a_full_disk_as_tensorflow_tells_it(data):
  with tf.Graph().as_default(), tf.Session() as session:
    write = tf.write_file('/dev/full', 'text')
    with pytest.raises(UserError, match='the disk is full: /dev/full'):
      with explain_read_error(data.shards):
        session.run(write)


# ---- What is passed on -------------------------------------------------------

@pytest.mark.parametrize('error', [
    KeyboardInterrupt(), UserError('said already'),
    tf.errors.InvalidArgumentError(None, None, 'Incompatible shapes: [4] [5]')],
                         ids=lambda error: type(error).__name__)
def test_other_errors_pass_unchanged(error):
  with pytest.raises(type(error)) as raised:
    with explain_read_error({'train': ['/data/train-00000-of-00001']}):
      raise error
  assert raised.value is error


def test_a_loss_that_is_not_a_number():
  with pytest.raises(UserError, match='--base_lr'):
    with explain_read_error({}):
      raise tf.train.NanLossDuringTrainingError()
