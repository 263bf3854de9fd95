"""Tests of Imagenet/input_profile.py; its times are not tested."""

import pytest

from tf_compat import tf

import imagenet_input
import imagenet_preprocessing
import input_profile
import tiny_records
from imagenet_shards import find_shards
from input_profile import Measured
from read_errors import explain_read_error
from user_error import UserError

LAYOUT = {'train': [5, 4], 'validation': [3, 0, 4]}
NUM_CLASSES = 11


def shards_of(folder):
  tiny_records.make_data_set(str(folder), LAYOUT, NUM_CLASSES)
  return {split: find_shards(str(folder), split) for split in LAYOUT}


def rows_of(milliseconds):
  """A `Measured` for each stage, of 100 images."""
  return [Measured(stage, 100, total * 0.1, total * 0.2)
          for stage, total in zip(input_profile.STAGES, milliseconds)]


@pytest.mark.parametrize('num_images, counted', [
    (100, {'train': 9, 'validation': 7}), (6, {'train': 6, 'validation': 6})])
def test_every_stage_sees_every_image(tmpdir, capsys, num_images, counted):
  measured = input_profile.profile(
      shards_of(tmpdir), 4, 32, NUM_CLASSES, num_images,
      datasets_num_private_threads=1, num_parallel_batches=2,
      inter_op_threads=2, intra_op_threads=1)
  for split, rows in measured.items():
    assert [row.stage for row in rows] == list(input_profile.STAGES)
    assert {row.num_images for row in rows} == {counted[split]}
    assert all(row.seconds > 0 for row in rows)
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 2 * (2 + len(input_profile.STAGES) + 1)
  assert lines[0] == 'evaluation: {} images'.format(counted['validation'])
  assert lines[8] == 'training: {} images'.format(counted['train'])
  assert max(map(len, lines)) < 160


def test_what_a_stage_computes(tmpdir):
  """Each stage runs its own part of the parser, and the last one all of it."""
  record = next(tf.python_io.tf_record_iterator(
      shards_of(tmpdir)['validation'][0]))
  kinds = []
  for _, function in input_profile._stage_functions(32, NUM_CLASSES):
    for is_training in (False, True):
      with tf.Graph().as_default() as graph, tf.Session() as session:
        session.run(function(tf.constant(record), is_training, tf.float16))
        kinds.append({op.type for op in graph.get_operations()
                      if op.type.startswith(('Parse', 'Decode', 'Resize'))})
  parse = kinds[2]  # The two releases have operations of their own.
  assert len(parse) == 1 and list(parse)[0].startswith('Parse')
  decode, crop = parse | {'DecodeJpeg'}, parse | {'DecodeAndCropJpeg'}
  resize = {'ResizeBilinear'}
  assert kinds == [set(), set(), parse, parse, decode, crop,
                   decode | resize, crop | resize,
                   decode | resize, crop | resize]


def test_one_image_decodes_to_the_value_of_the_last_pixel(tmpdir):
  record = next(tf.python_io.tf_record_iterator(
      shards_of(tmpdir)['validation'][0]))
  functions = dict(input_profile._stage_functions(32, NUM_CLASSES))
  with tf.Graph().as_default(), tf.Session() as session:
    value, _ = functions['+ resize and crop'](
        tf.constant(record), False, tf.float32)
    image, _ = imagenet_input.record_parser(32, NUM_CLASSES)(
        tf.constant(record), False, tf.float32)
    value, image = session.run([value, image])
  assert value == pytest.approx(
      image[-1, -1, -1] + imagenet_preprocessing.CHANNEL_MEANS[2], abs=1e-3)


def test_damaged_images_are_named(tmpdir):
  shards = shards_of(tmpdir)
  paths = tiny_records.write_shards(
      str(tmpdir.join('validation')), 'validation',
      [tiny_records.make_record(b'garbage', 1, 'broken.JPEG')], [1])
  shards = {'validation': paths}
  with pytest.raises(UserError) as raised:
    with explain_read_error(shards, 32):
      input_profile.profile(shards, 4, 32, NUM_CLASSES, 10)
  assert 'image broken.JPEG: cannot be decoded' in str(raised.value)


def test_the_table():
  lines = input_profile.table_lines('evaluation', rows_of([1, 2, 8, 9, 10]))
  assert lines[0] == 'evaluation: 100 images'
  assert [line.split()[-4:] for line in lines[2:-1]] == [
      ['1,000', '1.00', '1.00', '2.00'], ['500', '2.00', '1.00', '4.00'],
      ['125', '8.00', '6.00', '16.00'], ['111', '9.00', '1.00', '18.00'],
      ['100', '10.00', '1.00', '20.00']]
  assert lines[-1] == 'slowest: decode (6.00 of 10.00 ms per image): ' + (
      input_profile.STAGES['+ decode'])


@pytest.mark.parametrize('number', range(len(input_profile.STAGES)))
def test_the_slowest_stage_is_the_one_that_adds_most(number):
  totals = [1 + i + (5 if i >= number else 0)
            for i in range(len(input_profile.STAGES))]
  stage = list(input_profile.STAGES)[number]
  assert input_profile.table_lines('training', rows_of(totals))[-1].startswith(
      'slowest: {} ({}.00 of'.format(stage.replace('+ ', ''), 6))


def test_a_split_without_images():
  rows = [row._replace(num_images=0) for row in rows_of([1, 2, 3, 4, 5])]
  assert input_profile.table_lines('training', rows) == ['training: no images']
