"""Imagenet/shared_stage_seconds.py: the file, and what its times promise."""

import json
import math

import pytest

import shared_stage_seconds
from shared_stage_seconds import StageSeconds, promised_speedup

MEASURED = StageSeconds(
    network={'resnet_version': 2, 'resnet_size': 18, 'image_size': 32,
             'num_classes': 11},
    device='a CPU', threads={'inter_op': 0, 'intra_op': 2, 'cores': 4},
    versions={'python': '3.6.15'}, batch_sizes=[1, 4],
    seconds_per_image={0: [2., 1.], 2: [4., 2.]},
    plain_seconds_per_image=[4., 2.])


@pytest.fixture
def path(tmp_path):
  shared_stage_seconds.write(str(tmp_path / 'stage_seconds.json'), MEASURED)
  return tmp_path / 'stage_seconds.json'


def test_the_file(path):
  assert shared_stage_seconds.load(str(path)) == MEASURED
  assert json.loads(path.read_text()) == {
      'format_version': 1, 'network': 'ResNet-v2-18', 'resnet_version': 2,
      'resnet_size': 18, 'image_size': 32, 'num_classes': 11,
      'device': 'a CPU',
      'threads': {'inter_op': 0, 'intra_op': 2, 'cores': 4},
      'versions': {'python': '3.6.15'}, 'batch_sizes': [1, 4],
      'exits': [{'classifier_id': 0, 'seconds_per_image': [2., 1.]},
                {'classifier_id': 2, 'seconds_per_image': [4., 2.]}],
      'plain_seconds_per_image': [4., 2.]}


# ---- The promise -------------------------------------------------------------


def test_the_worked_example():
  assert promised_speedup(MEASURED, [.5, .5], 4) == pytest.approx(8 / 7.)


@pytest.mark.parametrize('shares, batch_size, speedup', [
    ([0, 1], 4, 1),  # Nobody leaves.
    ([1, 0], 1, 2),  # All leave: later stages never run.
    ([1, 0], 64, 2),  # As in the largest batch measured.
    # A quarter of an image is left, at the price of batch 1.
    ([.75, .25], 1, 4 / (2 + .25 * 2)),
    ([.75, .25], 4, 8 / (4 + 1 * 2)),
    # log2(3) lies so far between 1 and 4.
    ([.25, .75], 4, 8 / (4 + 3 * (2 - math.log(3, 4))))])
def test_promises(shares, batch_size, speedup):
  assert promised_speedup(MEASURED, shares, batch_size) == pytest.approx(
      speedup)
