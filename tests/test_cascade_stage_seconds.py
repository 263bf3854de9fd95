"""Imagenet/stage_seconds.py: the file, and what its times promise."""

import json
import math

import pytest

import stage_seconds
from stage_seconds import StageSeconds, promised_speedup
from user_error import UserError

MEASURED = StageSeconds(
    network={'resnet_version': 2, 'resnet_size': 18, 'image_size': 32,
             'num_classes': 11},
    device='a CPU', threads={'inter_op': 0, 'intra_op': 2, 'cores': 4},
    versions={'python': '3.6.15'}, batch_sizes=[1, 4],
    seconds_per_image={0: [2., 1.], 2: [4., 2.]},
    plain_seconds_per_image=[4., 2.])


@pytest.fixture
def path(tmp_path):
  stage_seconds.write(str(tmp_path / 'stage_seconds.json'), MEASURED)
  return tmp_path / 'stage_seconds.json'


def test_the_file(path):
  assert stage_seconds.load(str(path)) == MEASURED
  assert json.loads(path.read_text()) == {
      'format_version': 1, 'network': 'ResNet-v2-18', 'resnet_version': 2,
      'resnet_size': 18, 'image_size': 32, 'num_classes': 11,
      'device': 'a CPU',
      'threads': {'inter_op': 0, 'intra_op': 2, 'cores': 4},
      'versions': {'python': '3.6.15'}, 'batch_sizes': [1, 4],
      'exits': [{'classifier_id': 0, 'seconds_per_image': [2., 1.]},
                {'classifier_id': 2, 'seconds_per_image': [4., 2.]}],
      'plain_seconds_per_image': [4., 2.]}


def test_a_later_exit_that_takes_less_is_noise(path):
  noisy = MEASURED._replace(seconds_per_image={0: [2., 2.], 2: [4., 1.9]})
  stage_seconds.write(str(path), noisy)
  assert stage_seconds.load(str(path)) == noisy
  assert promised_speedup(noisy, [.1, .9], 4) > 0


@pytest.mark.parametrize('change, words', [
    ({'device': None, 'exits': None}, 'exits is missing'),
    ({'format_version': 2}, 'format_version 2'),
    ({'batch_sizes': []}, 'batch_sizes is not a list'),
    ({'batch_sizes': [0, 4]}, 'batch_sizes is not a list'),
    ({'batch_sizes': [4, 1]}, 'do not ascend'),
    ({'batch_sizes': [1, 2, 4]}, 'exits[0] has 2 values for 3 batch sizes'),
    ({'exits': []}, 'exits are not'), ({'exits': 5}, ''),
    ({'exits': [{'classifier_id': 0}]}, 'seconds_per_image is missing'),
    ({'exits': [{'classifier_id': k, 'seconds_per_image': [1, 2]}
                for k in (0, 0)]}, 'exits are not'),
    ({'exits': [{'classifier_id': k, 'seconds_per_image': [1, 2]}
                for k in (2, 0)]}, 'exits are not'),
    ({'plain_seconds_per_image': [1., 0]}, 'plain_seconds_per_image has 0,'),
    ({'plain_seconds_per_image': [1., -1]}, 'has -1,'),
    ({'plain_seconds_per_image': [1., math.nan]}, 'has NaN,'),
    ({'plain_seconds_per_image': [1., math.inf]}, 'has Infinity,'),
    ({'plain_seconds_per_image': [1., '2']}, 'has "2",')])
def test_another_file(path, change, words):
  record = {**json.loads(path.read_text()), **change}
  path.write_text(json.dumps({key: value for key, value in record.items()
                              if value is not None}))
  with pytest.raises(UserError) as error:
    stage_seconds.load(str(path))
  message = str(error.value)
  assert message.startswith(f'{path}: ') and '\n' not in message
  assert words in message and 'measure again' in message


def test_no_file(tmp_path):
  with pytest.raises(UserError, match='absent.*cannot be read'):
    stage_seconds.load(str(tmp_path / 'absent'))


# ---- The promise -------------------------------------------------------------


def test_the_worked_example():
  assert promised_speedup(MEASURED, [.5, .5], 4) == pytest.approx(8 / 7.)


@pytest.mark.parametrize('shares, batch_size, speedup', [
    ([0, 1], 4, 1), ([0, 1], 1, 1),  # Nobody leaves.
    ([1, 0], 4, 2), ([1, 0], 1, 2),  # All leave: later stages never run.
    ([1, 0], 64, 2),  # As in the largest batch measured.
    # A quarter of an image is left, at the price of batch 1.
    ([.75, .25], 1, 4 / (2 + .25 * 2)),
    ([.75, .25], 4, 8 / (4 + 1 * 2)),
    # log2(3) lies so far between 1 and 4.
    ([.25, .75], 4, 8 / (4 + 3 * (2 - math.log(3, 4))))])
def test_promises(shares, batch_size, speedup):
  assert promised_speedup(MEASURED, shares, batch_size) == pytest.approx(
      speedup)


def test_times_in_proportion_to_macs_promise_what_macs_do():
  """If an image takes as long in any batch."""
  macs = [1.8, 3.2, 4.]
  measured = MEASURED._replace(
      seconds_per_image={k: [m, m] for k, m in enumerate(macs)},
      plain_seconds_per_image=[3.9, 3.9])
  assert promised_speedup(measured, [.6, .3, .1], 32) == pytest.approx(
      3.9 / (.6 * 1.8 + .3 * 3.2 + .1 * 4.))
