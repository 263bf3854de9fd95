"""cascade/macs.py: the count by formula, the published figures, the files."""

import collections
import copy
import json
import os

import pytest

import cascade_record
import resnet_tables
import rule_weights
from cascade import macs
from user_error import UserError

SHARED_NUMBERS = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), '..', '..', 'shared',
    'paper_numbers.json')

# ResNet-50 v2 at 224 pixels: to each exit, and the plain network.
EXACT_MACS = [1816683520, 1816683520 + 1467458560,
              1816683520 + 1467458560 + 811288576]
EXACT_PLAIN_MACS = 4089186304
PUBLISHED_MACS = [1817092009, 1817092009 + 1467571177,
                  1817092009 + 1467571177 + 759970793]
PUBLISHED_PLAIN_MACS = 4037883817


# ---- By formula -------------------------------------------------------------

def product(shape):
  total = 1
  for length in shape:
    total *= length
  return total


def macs_of_kernels(size, version, image_size, num_classes):
  """Walks the kernels, as listed by another, with the side of each's output.

  Returns:
    A dict from classifier to (trunk MACs, head MACs).
  """
  variables = rule_weights.resnet_variables(size, version, num_classes)
  kernels = collections.deque(
      shape for name, shape in variables.items()
      if name.endswith('/kernel') and '/conv2d' in name)
  trunk = product(kernels.popleft()) * (image_size // 2)**2
  side, exits = image_size // 4, {}
  for stage, num_blocks in enumerate(rule_weights.BLOCK_SIZES[size]):
    for block in range(num_blocks):
      side_in = side
      if block == 0:
        if stage > 0:
          side //= 2
        trunk += product(kernels.popleft()) * side**2  # The projection.
      sides = [side_in, side, side] if size >= 50 else [side, side]
      for side_out in sides:
        trunk += product(kernels.popleft()) * side_out**2
    if stage in (1, 2):
      k = stage - 1
      head = rule_weights.head_variables(
          k, rule_weights.exit_channels(k, size), num_classes)
      exits[k] = trunk, sum(product(shape) for name, shape in head.items()
                            if name.endswith('/kernel'))
  assert not kernels
  exits[2] = trunk, product(variables['resnet_model/dense/kernel'])
  return exits


@pytest.mark.parametrize('image_size, num_classes', [
    (32, 11), (64, 2), (96, 101), (224, 1001), (352, 1001)])
@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('size', [18, 34, 50, 101, 152, 200])
def test_formula_equals_a_walk_over_the_kernels(
    size, version, image_size, num_classes):
  exits = macs.resnet_macs(size, image_size, num_classes)
  expected = macs_of_kernels(size, version, image_size, num_classes)
  assert list(exits) == [0, 1, 2]
  assert dict(exits) == expected
  assert macs.plain_macs(exits) == sum(expected[2])


def test_known_networks():
  """Without their exits, to the digits that others give for them too."""
  plain = {size: macs.plain_macs(macs.resnet_macs(size, 224, 1001))
           for size in (18, 34, 50, 101, 152, 200)}
  assert plain[50] == EXACT_PLAIN_MACS
  assert {size: round(count / 1e9, 1) for size, count in plain.items()} == {
      18: 1.8, 34: 3.7, 50: 4.1, 101: 7.8, 152: 11.5, 200: 15.0}


@pytest.mark.parametrize('image_size', [0, -32, 48, 225])
def test_image_sizes_that_do_not_exist(image_size):
  with pytest.raises(AssertionError):
    macs.resnet_macs(50, image_size, 1001)


# ---- Without files ----------------------------------------------------------

def test_exact_count_of_the_paper_network(tmp_path):
  """What dumps without cascade.json, such as the published ones, get."""
  for option in (None, 'exact'):
    for num_classes in (None, 1001):
      cost = macs.network_cost(option, str(tmp_path), [0, 1, 2], num_classes)
      assert cost == macs.NetworkCost(
          'ResNet-v2-50', 'exact count of ResNet-v2-50 at 224 pixels',
          EXACT_MACS, EXACT_PLAIN_MACS, True)
      assert isinstance(cost.exit_macs, list)


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


@pytest.mark.skipif(not os.path.exists(SHARED_NUMBERS),
                    reason='the list of published numbers is not here')
def test_figures_of_the_paper():
  with open(SHARED_NUMBERS) as numbers_file:
    numbers = json.load(numbers_file)
  for name, exit_macs, plain in (
      ('macs_exact', EXACT_MACS, EXACT_PLAIN_MACS),
      ('macs_published', PUBLISHED_MACS, PUBLISHED_PLAIN_MACS)):
    assert numbers[name] == {
        'clf0': exit_macs[0], 'clf1_increment': exit_macs[1] - exit_macs[0],
        'clf2_increment': exit_macs[2] - exit_macs[1],
        'plain_network': plain, 'cascade_total': exit_macs[2]}


def refused(*args):
  with pytest.raises(UserError) as error:
    macs.network_cost(*args)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_unknown_cost(tmp_path):
  message = refused(None, str(tmp_path), [0, 1, 2], 11)
  assert message.startswith('{}: no such file'.format(
      tmp_path / 'cascade.json'))
  assert '11 classes' in message and '-macs FILE.json' in message


@pytest.mark.parametrize('classifier_ids, num_classes, words', [
    ([0, 2], 1001, 'classifiers 0, 1, 2, and the dumps are of 0, 2'),
    ([0, 1, 2], 1000, '1,001 classes, and the softmaxes have 1,000'),
])
def test_published_figures_of_other_dumps(
    tmp_path, classifier_ids, num_classes, words):
  message = refused('published', str(tmp_path), classifier_ids, num_classes)
  assert message.startswith('-macs published: ') and words in message
  assert 'use -macs exact' in message


# ---- cascade.json -----------------------------------------------------------

def write_record(folder, size=50, image_size=224, num_classes=1001,
                 classifier_ids=(0, 1, 2), version=2):
  """cascade.json as runs write it, one classifier each."""
  network = cascade_record.Network(version, size, image_size, num_classes, [
      cascade_record.ExitCost(k, trunk_macs, head_macs, 10 * k + 10, 5)
      for k, (trunk_macs, head_macs) in macs.resnet_macs(
          size, image_size, num_classes).items()])
  for k in classifier_ids:
    (folder / 'clf{}_all_probabilities.npy'.format(k)).touch()
    cascade_record.write(str(folder), network, {k: {}})
  return folder / 'cascade.json'


def test_record_of_the_paper_network(tmp_path):
  write_record(tmp_path)
  assert macs.network_cost(None, str(tmp_path), [0, 1, 2], 1001) == (
      macs.NetworkCost(
          'ResNet-v2-50', 'cascade.json in {}'.format(tmp_path), EXACT_MACS,
          EXACT_PLAIN_MACS, True))
  assert macs.network_cost('published', str(tmp_path), [0, 1, 2], 1001)[2] == (
      PUBLISHED_MACS)


@pytest.mark.parametrize('arguments, words', [
    (dict(size=101), 'network ResNet-v2-50, and {} has "ResNet-v2-101"'),
    (dict(version=1), 'network ResNet-v2-50, and {} has "ResNet-v1-50"'),
    (dict(image_size=256), 'image_size 224, and {} has 256'),
    (dict(num_classes=11), 'num_classes 1001, and {} has 11'),
])
def test_record_of_another_network(tmp_path, arguments, words):
  path = write_record(tmp_path, **arguments)
  cost = macs.network_cost('exact', str(tmp_path), [0, 1, 2], None)
  exits = macs.resnet_macs(
      arguments.get('size', 50), arguments.get('image_size', 224),
      arguments.get('num_classes', 1001))
  assert cost.network == 'ResNet-v{}-{}'.format(
      arguments.get('version', 2), arguments.get('size', 50))
  assert not cost.is_paper_network
  assert cost.exit_macs == [
      exits[0][0] + exits[0][1], exits[1][0] + exits[0][1] + exits[1][1],
      exits[2][0] + exits[0][1] + exits[1][1] + exits[2][1]]
  message = refused('published', str(tmp_path), [0, 1, 2], None)
  assert words.format(path) in message and 'use -macs exact' in message


def test_record_of_more_classifiers_than_are_there(tmp_path):
  """Dumps of classifier 1 were removed since: its head is not counted."""
  write_record(tmp_path)
  cost = macs.network_cost(None, str(tmp_path), [0, 2], 1001)
  assert cost.exit_macs == [EXACT_MACS[0], EXACT_MACS[2] - 3122176]


def test_record_of_fewer_classifiers_than_are_there(tmp_path):
  """Dumped anew into a folder of old dumps."""
  path = write_record(tmp_path, classifier_ids=[2])
  message = refused(None, str(tmp_path), [0, 1, 2], 1001)
  assert message.startswith('{}: exits lacks classifier 0, 1'.format(path))
  assert 'step 3' in message and '-macs FILE.json' in message


def test_record_of_other_classes_than_the_softmaxes(tmp_path):
  path = write_record(tmp_path)
  assert '{}: num_classes is 1,001, and the softmaxes have 11'.format(
      path) in refused(None, str(tmp_path), [0, 1, 2], 11)


def test_record_that_is_damaged(tmp_path):
  path = write_record(tmp_path)
  path.write_text(path.read_text()[:-20])
  for option, remedy in ((None, 'dump the classifiers again (step 3)'),
                         ('published', 'remove it if the dumps are')):
    message = refused(option, str(tmp_path), [0, 1, 2], 1001)
    assert message.startswith('{}: not JSON'.format(path))
    assert remedy in message


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
    (changed(BY_CUMULATIVE_MACS, 'exits', 0, 'head_macs', value=3), [0, 1],
     [100, 250]),
    (changed(BY_PARTS, 'exits', 1, 'cumulative_macs', value=250), [0, 2],
     [100, 580]),
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


def test_file_by_hand_comes_before_the_record(tmp_path):
  write_record(tmp_path)
  path = write_file(tmp_path, changed(BY_PARTS, 'network', value='MyNet'))
  cost = macs.network_cost(path, str(tmp_path), [0, 1, 2], 1001)
  assert (cost.network, cost.exit_macs) == ('MyNet', [100, 250, 600])
  assert not cost.is_paper_network


def test_a_copied_record_is_of_the_paper_network(tmp_path):
  path = tmp_path / 'copied.json'
  write_record(tmp_path).rename(path)
  assert macs.network_cost(
      str(path), str(tmp_path), [0, 1, 2], 1001).is_paper_network


@pytest.mark.parametrize('record, words', [
    # No such format.
    ('', 'not JSON'),
    ('{"exits": ', 'not JSON'),
    ('[]', 'not a JSON object'),
    ('5', 'not a JSON object'),
    (changed(BY_PARTS, 'format_version', value=3), 'format_version 3'),
    ('{}', 'exits is missing'),
    (changed(BY_PARTS, 'exits', value={}), 'exits is {}, not a list'),
    (changed(BY_PARTS, 'exits', value=[]), 'exits is [], not a list'),
    (changed(BY_PARTS, 'exits', value=None), 'exits is null, not a list'),
    (changed(BY_PARTS, 'exits', value=[1, 2, 3]), 'exits is [1, 2, 3], not'),
    (changed(BY_PARTS, 'exits', 1, value='x' * 999), 'exits is [{'),
    # Missing.
    (changed(BY_PARTS, 'plain_network_macs'), 'plain_network_macs is missing'),
    (changed(BY_PARTS, 'exits', 1), 'exits lacks classifier 1, of which'),
    (changed(BY_PARTS, 'exits', 1, 'classifier_id'),
     'exits[1].classifier_id is missing'),
    (changed(BY_PARTS, 'exits', 1, 'head_macs'),
     'exits[1].head_macs is missing'),
    (changed(BY_PARTS, 'exits', 1, 'trunk_macs'),
     'exits[1].trunk_macs is missing'),
    (changed(BY_CUMULATIVE_MACS, 'exits', 2, 'cumulative_macs'),
     'exits[2].trunk_macs is missing'),
    (changed(BY_PARTS, 'exits', 1, value=BY_CUMULATIVE_MACS['exits'][1]),
     'exits[0].cumulative_macs is missing'),
    # Not numbers, or not such numbers.
    (changed(BY_PARTS, 'plain_network_macs', value='570'),
     'plain_network_macs is "570", not a whole number from 1'),
    (changed(BY_PARTS, 'plain_network_macs', value=0),
     'plain_network_macs is 0'),
    (changed(BY_PARTS, 'plain_network_macs', value=float('inf')),
     'plain_network_macs is Infinity'),
    (changed(BY_PARTS, 'plain_network_macs', value=None),
     'plain_network_macs is null'),
    (changed(BY_PARTS, 'exits', 1, 'trunk_macs', value=-220),
     'exits[1].trunk_macs is -220, not a whole number from 1'),
    (changed(BY_PARTS, 'exits', 1, 'trunk_macs', value=0),
     'exits[1].trunk_macs is 0'),
    (changed(BY_PARTS, 'exits', 1, 'head_macs', value=-1),
     'exits[1].head_macs is -1, not a whole number from 0'),
    (changed(BY_PARTS, 'exits', 1, 'head_macs', value=0.5),
     'exits[1].head_macs is 0.5'),
    (changed(BY_PARTS, 'exits', 2, 'head_macs', value=True),
     'exits[2].head_macs is true'),
    (changed(BY_CUMULATIVE_MACS, 'exits', 0, 'cumulative_macs',
             value=float('nan')), 'exits[0].cumulative_macs is NaN'),
    (changed(BY_CUMULATIVE_MACS, 'exits', 2, 'cumulative_macs',
             value=4 * 10**12 + 1),
     'exits[2].cumulative_macs is 4000000000001'),
    (changed(BY_CUMULATIVE_MACS, 'exits', 2, 'cumulative_macs', value=1e300),
     'exits[2].cumulative_macs is 1e+300'),
    (changed(BY_CUMULATIVE_MACS, 'exits', 2, 'cumulative_macs', value=[600]),
     'exits[2].cumulative_macs is [600]'),
    (changed(BY_PARTS, 'exits', 0, 'classifier_id', value='0'),
     'exits[0].classifier_id is "0"'),
    (changed(BY_PARTS, 'exits', 0, 'classifier_id', value=False),
     'exits[0].classifier_id is false'),
    (changed(BY_PARTS, 'exits', 2, 'classifier_id', value=1),
     'exits[2].classifier_id is 1 again'),
    # Numbers that disagree.
    (changed(BY_CUMULATIVE_MACS, 'exits', 1, 'cumulative_macs', value=100),
     'exits[1].cumulative_macs comes to 100, not above the 100 of'),
    (changed(BY_CUMULATIVE_MACS, 'exits', 2, 'cumulative_macs', value=240),
     'exits[2].cumulative_macs comes to 240, not above the 250 of'),
    (changed(BY_PARTS, 'exits', 2, 'trunk_macs', value=150),
     'exits[2].cumulative_macs comes to 210, not above the 250 of'),
    (changed(BY_PARTS, 'exits', 1, 'cumulative_macs', value=240),
     'exits[1].cumulative_macs is 240, where trunk_macs and the head_macs so '
     'far make 250'),
    (changed(BY_PARTS, 'num_classes', value=12),
     'num_classes is 12, and the softmaxes have 11'),
    (changed(BY_PARTS, 'num_classes', value='11'), 'num_classes is "11"'),
    # No name.
    (changed(BY_PARTS, 'network', value=50), 'network is 50, not a name'),
    (changed(BY_PARTS, 'network', value=''), 'network is "", not a name'),
    (changed(BY_PARTS, 'network', value='a\nb'), 'network is "a\\nb"'),
])
def test_malformed_file(tmp_path, record, words):
  path = write_file(tmp_path, record)
  message = refused(path, str(tmp_path), [0, 1, 2], 11)
  assert message.startswith('{}: '.format(path)), message
  assert words in message
  assert 'the cascade.json that step 3 writes' in message
  assert len(message) < len(path) + 260


def test_costs_that_hold_the_head_of_an_absent_classifier(tmp_path):
  path = write_file(tmp_path, BY_CUMULATIVE_MACS)
  message = refused(path, str(tmp_path), [0, 2], None)
  assert '{}: exits[1].classifier_id is 1, of which there are no dumps'.format(
      path) in message
  assert 'trunk_macs and head_macs' in message


@pytest.mark.parametrize('name', ['none.json', 'Exact', '', 'nowhere/a.json'])
def test_file_that_is_not_there(tmp_path, name, monkeypatch):
  monkeypatch.chdir(str(tmp_path))
  message = refused(name, str(tmp_path), [0, 1, 2], 1001)
  assert message.startswith('-macs {}: no such file'.format(name))
  assert "'exact', 'published'" in message


def test_file_that_is_a_folder(tmp_path):
  assert '{}: cannot be read (Is a directory)'.format(tmp_path) in refused(
      str(tmp_path), str(tmp_path), [0, 1, 2], 1001)


def test_tables_agree():
  """The network's constants, each of which has one owner, with one another."""
  strides = resnet_tables.FIRST_CONV_STRIDE * resnet_tables.FIRST_POOL_STRIDE
  for stride in resnet_tables.BLOCK_STRIDES:
    strides *= stride
  assert resnet_tables.IMAGE_SIZE_DIVISOR == strides
  assert len(resnet_tables.BLOCK_STRIDES) == 4
  assert resnet_tables.CLASSIFIER_IDS == (0, 1, 2)
  assert resnet_tables.BLOCK_SIZES == rule_weights.BLOCK_SIZES
  assert {k: early_exit.grid for k, early_exit in
          resnet_tables.EARLY_EXITS.items()} == rule_weights.HEAD_GRIDS
