"""cascade/macs.py: the paper's network, the published numbers, the files."""

import json
import os

import pytest

import shared_cascade_json
from cascade import macs
from kernel_macs import macs_of_kernels
from refusals import refused

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data',
                       'paper_numbers.json')) as numbers_file:
  NUMBERS = json.load(numbers_file)
# ResNet-50 v2 at 224 pixels: to each exit, and the plain network.
EXACT_MACS, PUBLISHED_MACS = [
    [numbers['clf0'], numbers['clf0'] + numbers['clf1_increment'],
     numbers['cascade_total']]
    for numbers in (NUMBERS['macs_exact'], NUMBERS['macs_published'])]
EXACT_PLAIN_MACS = NUMBERS['macs_exact']['plain_network']
PUBLISHED_PLAIN_MACS = NUMBERS['macs_published']['plain_network']


def test_the_papers_network_by_a_walk_over_its_kernels(tmp_path):
  counted = macs_of_kernels(50, 2, 224, 1001)
  trunk_macs, head_macs = zip(*(counted[k] for k in (0, 1, 2)))
  cost = macs.network_cost('exact', str(tmp_path), [0, 1, 2], 1001)
  assert cost == macs.NetworkCost(
      'ResNet-v2-50', 'exact count of ResNet-v2-50 at 224 pixels', EXACT_MACS,
      EXACT_PLAIN_MACS, True)
  assert cost.exit_macs == shared_cascade_json.cumulative_costs(
      trunk_macs, head_macs)
  assert cost.plain_macs == sum(counted[2])


def test_published_figures(tmp_path):
  for num_classes in (None, 1001):
    assert macs.network_cost(
        'published', str(tmp_path), [0, 1, 2], num_classes) == (
            macs.NetworkCost('ResNet-v2-50', 'published spreadsheet',
                             PUBLISHED_MACS, PUBLISHED_PLAIN_MACS, True))
  assert PUBLISHED_MACS[-1] == 4044633979


@pytest.mark.parametrize('option, classifier_ids, num_classes, words', [
    ('exact', [0, 1, 2], 11, 'cascade.json'),
    ('published', [0, 2], 1001, '-macs published'),
    ('published', [0, 1, 2], 1000, '-macs published'),
    ('none.json', [0, 1], 1001, 'none.json')])
def test_costs_that_are_not_known(
    tmp_path, option, classifier_ids, num_classes, words):
  assert words in refused(
      macs.network_cost, option, str(tmp_path), classifier_ids, num_classes)


# ---- cascade.json -----------------------------------------------------------

def write_record(folder, size=50, image_size=224, num_classes=1001):
  """cascade.json as runs write it, one classifier each."""
  exits = [shared_cascade_json.ExitCost(k, *exit_macs, 10 * k + 10, 5)
           for k, exit_macs in sorted(macs_of_kernels(
               size, 2, image_size, num_classes).items())]
  network = shared_cascade_json.Network(
      2, size, image_size, num_classes, exits)
  for k in (0, 1, 2):
    (folder / f'clf{k}_all_probabilities.npy').touch()
    with shared_cascade_json.recording(str(folder), network, {k: {}}):
      pass


def test_record_of_the_paper_network(tmp_path):
  write_record(tmp_path)
  assert macs.network_cost('exact', str(tmp_path), [0, 1, 2], 1001) == (
      macs.NetworkCost(
          'ResNet-v2-50', f'cascade.json in {tmp_path}', EXACT_MACS,
          EXACT_PLAIN_MACS, True))
  for option, classifier_ids, exit_macs in (
      ('published', [0, 1, 2], PUBLISHED_MACS),
      # Without classifier 1, its head is not counted.
      ('exact', [0, 2], [EXACT_MACS[0], EXACT_MACS[2] - 3122176])):
    assert macs.network_cost(
        option, str(tmp_path), classifier_ids, 1001).exit_macs == exit_macs


@pytest.mark.parametrize('size, image_size, num_classes', [
    (101, 224, 1001), (50, 256, 1001), (50, 224, 11)])
def test_record_of_another_network(tmp_path, size, image_size, num_classes):
  write_record(tmp_path, size, image_size, num_classes)
  cost = macs.network_cost('exact', str(tmp_path), [0, 1, 2], None)
  exits = macs_of_kernels(size, 2, image_size, num_classes)
  assert not cost.is_paper_network
  assert cost.exit_macs == [
      exits[0][0] + exits[0][1], exits[1][0] + exits[0][1] + exits[1][1],
      exits[2][0] + exits[0][1] + exits[1][1] + exits[2][1]]
  assert '-macs published' in refused(
      macs.network_cost, 'published', str(tmp_path), [0, 1, 2], None)


# ---- A file of one's own ----------------------------------------------------

MINE = {
    'exits': [{'classifier_id': 0, 'trunk_macs': 90, 'head_macs': 10},
              {'classifier_id': 1, 'trunk_macs': 220, 'head_macs': 20},
              {'classifier_id': 2, 'trunk_macs': 540, 'head_macs': 30}],
    'plain_network_macs': 570}


@pytest.mark.parametrize('record, classifier_ids, exit_macs', [
    (MINE, [0, 2], [100, 580]),
    # In any order.
    ({**MINE, 'exits': MINE['exits'][::-1]}, [0, 1, 2], [100, 250, 600])])
def test_file_by_hand(tmp_path, record, classifier_ids, exit_macs):
  path = tmp_path / 'mine.json'
  path.write_text(json.dumps(record))
  assert macs.network_cost(
      str(path), str(tmp_path), classifier_ids, 11) == macs.NetworkCost(
          'network of mine.json', str(path), exit_macs, 570, False)
