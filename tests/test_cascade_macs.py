"""cascade/macs.py: the paper's network, the published numbers, the files."""

import copy
import json
import os

import pytest

import dump_record
from cascade import UserError, macs
from kernel_macs import macs_of_kernels

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
  cost = macs.network_cost(None, str(tmp_path), [0, 1, 2], 1001)
  assert cost == macs.NetworkCost(
      'ResNet-v2-50', 'exact count of ResNet-v2-50 at 224 pixels', EXACT_MACS,
      EXACT_PLAIN_MACS, True)
  assert cost.exit_macs == dump_record.cumulative_costs(trunk_macs, head_macs)
  assert cost.plain_macs == sum(counted[2])


@pytest.mark.parametrize('classifier_ids, head_of_absent', [
    ([0, 2], {2: 3122176}), ([1, 2], {1: 3122176, 2: 3122176}), ([0, 1], {})])
def test_absent_heads_are_not_counted(
    tmp_path, classifier_ids, head_of_absent):
  cost = macs.network_cost(None, str(tmp_path), classifier_ids, 1001)
  assert cost.exit_macs == [
      EXACT_MACS[k] - head_of_absent.get(k, 0) for k in classifier_ids]
  assert cost.plain_macs == EXACT_PLAIN_MACS


def test_published_figures(tmp_path):
  for num_classes in (None, 1001):
    assert macs.network_cost(
        'published', str(tmp_path), [0, 1, 2], num_classes) == (
            macs.NetworkCost('ResNet-v2-50', 'published spreadsheet',
                             PUBLISHED_MACS, PUBLISHED_PLAIN_MACS, True))
  assert PUBLISHED_MACS[-1] == 4044633979


def refused(*args):
  with pytest.raises(UserError) as error:
    macs.network_cost(*args)
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize('option, classifier_ids, num_classes, words', [
    (None, [0, 1, 2], 11, 'cascade.json: no such file, and softmaxes of 11 '),
    (None, [0, 3], 1001, 'classifiers 0, 3 are not those of the network'),
    ('published', [0, 2], 1001, 'classifiers 0, 1, 2, and the dumps are of 0,'),
    ('published', [0, 1, 2], 1000, '1,001 classes, and the softmaxes have 1'),
    ('none.json', [0, 1], 1001, '-macs none.json: no such file'),
    ('', [0, 1], 1001, '-macs : no such file')])
def test_costs_that_are_not_known(
    tmp_path, option, classifier_ids, num_classes, words):
  assert words in refused(option, str(tmp_path), classifier_ids, num_classes)


# ---- cascade.json -----------------------------------------------------------

def write_record(folder, size=50, image_size=224, num_classes=1001,
                 classifier_ids=(0, 1, 2), version=2):
  """cascade.json as runs write it, one classifier each."""
  network = dump_record.Network(version, size, image_size, num_classes, [
      dump_record.ExitCost(k, *exit_macs, 10 * k + 10, 5)
      for k, exit_macs in sorted(macs_of_kernels(
          size, version, image_size, num_classes).items())])
  for k in classifier_ids:
    (folder / f'clf{k}_all_probabilities.npy').touch()
    dump_record.write(str(folder), network, {k: {}})
  return folder / 'cascade.json'


def test_record_of_the_paper_network(tmp_path):
  write_record(tmp_path)
  assert macs.network_cost(None, str(tmp_path), [0, 1, 2], 1001) == (
      macs.NetworkCost(
          'ResNet-v2-50', f'cascade.json in {tmp_path}', EXACT_MACS,
          EXACT_PLAIN_MACS, True))
  for option, classifier_ids, exit_macs in (
      ('published', [0, 1, 2], PUBLISHED_MACS),
      # Without classifier 1, its head is not counted.
      (None, [0, 2], [EXACT_MACS[0], EXACT_MACS[2] - 3122176])):
    assert macs.network_cost(
        option, str(tmp_path), classifier_ids, 1001).exit_macs == exit_macs


@pytest.mark.parametrize('arguments, words', [
    (dict(size=101), 'network ResNet-v2-50, and PATH has "ResNet-v2-101"'),
    (dict(version=1), 'network ResNet-v2-50, and PATH has "ResNet-v1-50"'),
    (dict(image_size=256), 'image_size 224, and PATH has 256'),
    (dict(num_classes=11), 'num_classes 1001, and PATH has 11'),
])
def test_record_of_another_network(tmp_path, arguments, words):
  path = write_record(tmp_path, **arguments)
  cost = macs.network_cost('exact', str(tmp_path), [0, 1, 2], None)
  exits = macs_of_kernels(
      arguments.get('size', 50), arguments.get('version', 2),
      arguments.get('image_size', 224), arguments.get('num_classes', 1001))
  assert not cost.is_paper_network
  assert cost.exit_macs == [
      exits[0][0] + exits[0][1], exits[1][0] + exits[0][1] + exits[1][1],
      exits[2][0] + exits[0][1] + exits[1][1] + exits[2][1]]
  message = refused('published', str(tmp_path), [0, 1, 2], None)
  assert words.replace('PATH', str(path)) in message
  assert 'use -macs exact' in message


def test_record_of_fewer_classifiers_than_are_there(tmp_path):
  """Dumped anew into a folder of old dumps."""
  path = write_record(tmp_path, classifier_ids=[2])
  message = refused(None, str(tmp_path), [0, 1, 2], 1001)
  assert message.startswith(f'{path}: exits lacks classifier 0, 1')
  assert 'step 3' in message and '-macs FILE.json' in message


# ---- A file of one's own ----------------------------------------------------

BY_CUMULATIVE_MACS = {
    'exits': [{'classifier_id': 0, 'cumulative_macs': 100},
              {'classifier_id': 1, 'cumulative_macs': 250},
              {'classifier_id': 2, 'cumulative_macs': 600}],
    'plain_network_macs': 580}
BY_PARTS = {
    'exits': [{'classifier_id': 0, 'trunk_macs': 90, 'head_macs': 10},
              {'classifier_id': 1, 'trunk_macs': 220, 'head_macs': 20},
              {'classifier_id': 2, 'trunk_macs': 540, 'head_macs': 30}],
    'plain_network_macs': 570}


def write_file(folder, record):
  path = folder / 'mine.json'
  path.write_text(record if isinstance(record, str) else json.dumps(record))
  return str(path)


def changed(record, *keys, **kwargs):
  """A copy with the value at `keys` set to `value`, or without it."""
  record = copy.deepcopy(record)
  fields = record
  for key in keys[:-1]:
    fields = fields[key]
  if 'value' in kwargs:
    fields[keys[-1]] = kwargs['value']
  else:
    del fields[keys[-1]]
  return record


@pytest.mark.parametrize('record, classifier_ids, exit_macs', [
    (BY_CUMULATIVE_MACS, [0, 1, 2], [100, 250, 600]),
    (BY_CUMULATIVE_MACS, [0, 1], [100, 250]),
    (BY_PARTS, [0, 1, 2], [100, 250, 600]),
    (BY_PARTS, [0, 2], [100, 580]),
    (BY_PARTS, [1, 2], [240, 590]),
    (changed(BY_CUMULATIVE_MACS, 'exits', 1), [0, 2], [100, 600]),
    # In any order; whole numbers as JSON may spell them; classifiers without
    # a multiplication of their own; what is not asked for may be there.
    (changed(BY_PARTS, 'exits', value=BY_PARTS['exits'][::-1]), [0, 1, 2],
     [100, 250, 600]),
    (changed(BY_PARTS, 'exits', value=[
        dict(BY_PARTS['exits'][2], cumulative_macs=600)] +
             BY_PARTS['exits'][:2]), [0, 1, 2], [100, 250, 600]),
    (changed(BY_CUMULATIVE_MACS, 'exits', 2, 'cumulative_macs', value=6e2),
     [0, 1, 2], [100, 250, 600]),
    (changed(BY_PARTS, 'exits', 0, 'head_macs', value=0), [0, 1], [90, 240]),
    (changed(BY_PARTS, 'by', value='me'), [0, 1], [100, 250]),
    (changed(BY_PARTS, 'num_classes', value=11), [0, 1], [100, 250]),
])
def test_file_by_hand(tmp_path, record, classifier_ids, exit_macs):
  path = write_file(tmp_path, record)
  for num_classes in (None, 11):
    cost = macs.network_cost(path, str(tmp_path), classifier_ids, num_classes)
    assert cost == macs.NetworkCost(
        'network of mine.json', path, exit_macs, record['plain_network_macs'],
        False)
    assert {type(count) for count in cost.exit_macs} == {int}


@pytest.mark.parametrize('record, words', [
    ('{"exits": ', 'not JSON'),
    (changed(BY_PARTS, 'format_version', value=3), 'format_version 3'),
    ('{}', 'exits is missing'),
    (changed(BY_PARTS, 'exits', value=[]), 'exits is [], not a list'),
    # Missing.
    (changed(BY_PARTS, 'plain_network_macs'), 'plain_network_macs is missing'),
    (changed(BY_PARTS, 'exits', 1), 'exits lacks classifier 1, of which'),
    (changed(BY_PARTS, 'exits', 1, 'classifier_id'),
     'exits[1].classifier_id is missing'),
    (changed(BY_PARTS, 'exits', 1, 'head_macs'),
     'exits[1].head_macs is missing'),
    (changed(BY_CUMULATIVE_MACS, 'exits', 2, 'cumulative_macs'),
     'exits[2].trunk_macs is missing'),
    (changed(BY_PARTS, 'exits', 1, value=BY_CUMULATIVE_MACS['exits'][1]),
     'exits[0].cumulative_macs is missing'),
    # Not numbers, or not such numbers.
    (changed(BY_PARTS, 'plain_network_macs', value='570'),
     'plain_network_macs is "570", not a whole number from 1'),
    (changed(BY_PARTS, 'exits', 1, 'head_macs', value=-1),
     'exits[1].head_macs is -1, not a whole number from 0'),
    (changed(BY_PARTS, 'exits', 2, 'head_macs', value=True),
     'exits[2].head_macs is true'),
    (changed(BY_CUMULATIVE_MACS, 'exits', 0, 'cumulative_macs',
             value=float('nan')), 'exits[0].cumulative_macs is NaN'),
    (changed(BY_CUMULATIVE_MACS, 'exits', 2, 'cumulative_macs',
             value=4 * 10**12 + 1),
     'exits[2].cumulative_macs is 4000000000001'),
    (changed(BY_PARTS, 'exits', 2, 'classifier_id', value=1),
     'exits[2].classifier_id is 1 again'),
    # Numbers that disagree.
    (changed(BY_CUMULATIVE_MACS, 'exits', 1, 'cumulative_macs', value=100),
     'exits[1].cumulative_macs comes to 100, not above the 100 of'),
    (changed(BY_PARTS, 'exits', 2, 'trunk_macs', value=150),
     'exits[2].cumulative_macs comes to 210, not above the 250 of'),
    (changed(BY_PARTS, 'exits', 1, 'cumulative_macs', value=240),
     'exits[1].cumulative_macs is 240, but trunk_macs and the head_macs so '
     'far make 250'),
    (changed(BY_PARTS, 'num_classes', value=12),
     'num_classes is 12, and the softmaxes have 11'),
    # No name.
    (changed(BY_PARTS, 'network', value='a\nb'), 'network is "a\\nb"'),
])
def test_malformed_file(tmp_path, record, words):
  path = write_file(tmp_path, record)
  message = refused(path, str(tmp_path), [0, 1, 2], 11)
  assert message.startswith(f'{path}: '), message
  assert words in message
  assert 'the cascade.json that step 3 writes' in message
  assert len(message) < len(path) + 260
