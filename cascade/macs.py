"""The cost of leaving at each classifier, in multiply-accumulates (MACs).

It comes from one of three sources: `cascade.json`, written with the dumps or by
hand for a network of one's own; the exact count of the paper's network; or the
spreadsheet published with the paper. The first two count convolutions and dense
layers, without biases, batch normalization and pooling.

In addition there may be the time that it takes, as measured.
"""

import itertools
import json
import os
import typing

import dump_record
import stage_seconds
from cascade import UserError
from dump_names import CASCADE_FILE_NAME

# The paper's network, ResNet-50 v2 at 224 pixels, with the keys of
# cascade.json; `num_classes` includes the background class.
_PAPER_NETWORK = {'network': 'ResNet-v2-50', 'image_size': 224,
                  'num_classes': 1001}

# Its MACs per image, exactly: of the trunk up to each classifier, and of each
# head. The test suite derives them from the network's tables.
_EXACT_TRUNK_MACS = {0: 1813561344, 1: 3277897728, 2: 4087136256}
_EXACT_HEAD_MACS = {0: 3122176, 1: 3122176, 2: 2050048}
_EXACT_PLAIN_MACS = 4089186304

# MAC_count_calculations.xlsx of the published repository: to classifier 0, from
# there to 1, from there to 2, and the plain network. It differs from the exact
# count: it adds one per output channel, counts the inputs of poolings, and
# gives the last block layer's second and third block 1024 input channels where
# they have 2048.
PUBLISHED_MACS_FROM_EXIT_TO_EXIT = (1817092009, 1467571177, 759970793)
PUBLISHED_PLAIN_MACS = 4037883817
_PUBLISHED_CLASSIFIER_IDS = [0, 1, 2]

# Costs are added up over all images, in 64 bits: two million images fit.
_MOST_MACS = 4 * 10**12


class TimeCost(typing.NamedTuple):
  """What a cascade costs per image in a batch that nobody leaves."""
  exit_nanoseconds: list   # Ints, as `NetworkCost.exit_macs`.
  plain_nanoseconds: int
  file: str                # The -cost option.
  device: str              # For people.
  batch_size: int          # The largest that was measured.


class NetworkCost(typing.NamedTuple):
  """What a cascade costs per image."""
  network: str            # Its name, for people.
  source: str             # Where the numbers come from, for people.
  exit_macs: list         # Ints, cumulative MACs of leaving at each classifier.
  plain_macs: int         # MACs of the network without exits.
  is_paper_network: bool  # Comparable with Bolukbasi et al. 2017.
  time: typing.Optional[TimeCost] = None  # If it was measured (-cost).


class _Exit(typing.NamedTuple):
  """An entry of `exits`; what the file lacks is None."""
  key: str  # Its place in the file, for messages.
  trunk_macs: int
  head_macs: int
  cumulative_macs: int


def network_cost(macs_option, dump_folder, classifier_ids, num_classes):
  """The cost of the network whose dumps a folder holds.

  Args:
    macs_option: None or 'exact': from the folder's `cascade.json`; for dumps
      without one, that of the paper's network, if they may be from it.
      'published': the paper's spreadsheet. Otherwise the path of a file in the
      format of `cascade.json`: it needs `plain_network_macs`, and in each entry
      of `exits` a `classifier_id` with `trunk_macs` and `head_macs`, or with
      `cumulative_macs`.
    dump_folder: an existing folder.
    classifier_ids: the classifiers of the cascade, ascending, at least two.
      The heads of others are not counted.
    num_classes: columns of the softmaxes; None if not known.

  Returns:
    `NetworkCost`.

  Raises:
    UserError: a file is missing or wrong, or the cost is not known.
  """
  record_path = os.path.join(dump_folder, CASCADE_FILE_NAME)
  if macs_option == 'published':
    return _published_cost(record_path, classifier_ids, num_classes)
  if macs_option not in (None, 'exact'):
    if not os.path.exists(macs_option):
      raise UserError(
          f"-macs {macs_option}: no such file; it is 'exact', 'published', or "
          f'a file like the {CASCADE_FILE_NAME} that step 3 writes')
    return _CostFile(
        macs_option, f'correct it after the model of the {CASCADE_FILE_NAME} '
        'that step 3 writes').cost(macs_option, classifier_ids, num_classes)
  if os.path.exists(record_path):
    return _CostFile(
        record_path, 'dump the classifiers again (step 3) or name a -macs '
        'FILE.json').cost(f'{CASCADE_FILE_NAME} in {dump_folder}',
                          classifier_ids, num_classes)
  return _exact_cost(record_path, classifier_ids, num_classes)


def _exact_cost(record_path, classifier_ids, num_classes):
  """The paper's network, for dumps that may be from it."""
  paper_classes = _PAPER_NETWORK['num_classes']
  difference = None
  if num_classes not in (None, paper_classes):
    difference = (f'softmaxes of {num_classes:,} classes are not from the '
                  f'network of the paper ({paper_classes:,})')
  elif not set(classifier_ids) <= set(_EXACT_TRUNK_MACS):
    difference = (f'classifiers {_listed(classifier_ids)} are not those of the '
                  f'network of the paper ({_listed(_EXACT_TRUNK_MACS)})')
  if difference:
    raise UserError(f'{record_path}: no such file, and {difference}, so their '
                    'cost is not known; dump again (step 3) or name a -macs '
                    'FILE.json')
  network, image_size = _PAPER_NETWORK['network'], _PAPER_NETWORK['image_size']
  return NetworkCost(
      network, f'exact count of {network} at {image_size} pixels',
      dump_record.cumulative_costs(
          [_EXACT_TRUNK_MACS[k] for k in classifier_ids],
          [_EXACT_HEAD_MACS[k] for k in classifier_ids]),
      _EXACT_PLAIN_MACS, True)


def _published_cost(record_path, classifier_ids, num_classes):
  """The spreadsheet's numbers, if the dumps may be of its cascade."""
  if list(classifier_ids) != _PUBLISHED_CLASSIFIER_IDS:
    raise UserError(
        f'-macs published: is for classifiers '
        f'{_listed(_PUBLISHED_CLASSIFIER_IDS)}, and the dumps are of '
        f'{_listed(classifier_ids)}; use -macs exact')
  record = {}
  if os.path.exists(record_path):
    record = dump_record.load(
        record_path, 'remove it if the dumps are the published ones')
  for key, paper_value in _PAPER_NETWORK.items():
    value = record.get(key, paper_value)
    if value != paper_value:
      raise UserError(
          f'-macs published: is for {key} {paper_value}, and {record_path} has '
          f'{_shown(value)}; use -macs exact')
  if num_classes not in (None, _PAPER_NETWORK['num_classes']):
    raise UserError(
        f'-macs published: is for {_PAPER_NETWORK["num_classes"]:,} classes, '
        f'and the softmaxes have {num_classes:,}; use -macs exact')
  return NetworkCost(
      _PAPER_NETWORK['network'], 'published spreadsheet',
      list(itertools.accumulate(PUBLISHED_MACS_FROM_EXIT_TO_EXIT)),
      PUBLISHED_PLAIN_MACS, True)


def time_cost(path, recorded, classifier_ids):
  """The time that the cascade of some dumps takes.

  Args:
    path: the -cost option, a `stage_seconds.json`.
    recorded: `dump_record.network_and_weights` of the dumps.
    classifier_ids: of the cascade, ascending.

  Returns:
    `TimeCost`.

  Raises:
    UserError: the file is none, or of another network or cascade.
  """
  measured = stage_seconds.load(path)
  for field, value in measured.network.items():
    if recorded.get(field, value) != value:
      raise UserError(f'-cost {path}: is of another network ({field} {value}, '
                      f'and the dumps have {recorded[field]})')
  if list(measured.seconds_per_image) != list(classifier_ids):
    # The times of the last exits include the heads of all others.
    raise UserError(
        f'-cost {path}: is of classifiers {_listed(measured.seconds_per_image)}'
        f', and the dumps are of {_listed(classifier_ids)}; measure these '
        '(run_cascade.py --profile_stages --classifier_id)')

  def nanoseconds(seconds):
    return int(round(seconds[-1] * 1e9))

  return TimeCost(
      [nanoseconds(seconds) for seconds in measured.seconds_per_image.values()],
      nanoseconds(measured.plain_seconds_per_image), path, measured.device,
      measured.batch_sizes[-1])


class _CostFile:
  """A file in the format of `cascade.json`; its errors name file and key.

  `remedy` says what to do if it is wrong.
  """

  def __init__(self, path, remedy):
    self._path, self._remedy = path, remedy
    self._record = dump_record.load(path, remedy)
    self._exits = self._read_exits()

  def cost(self, source, classifier_ids, num_classes):
    network = self._record.get(
        'network', f'network of {os.path.basename(self._path)}')
    if not (isinstance(network, str) and network and network.isprintable()):
      raise self._error('network', f'is {_shown(network)}, not a name')
    file_classes = self._whole_number(self._record, 'num_classes', least=1)
    if None not in (file_classes, num_classes) and file_classes != num_classes:
      raise self._error('num_classes', f'is {file_classes:,}, and the '
                        f'softmaxes have {num_classes:,}')
    missing = [k for k in classifier_ids if k not in self._exits]
    if missing:
      raise self._error('exits', f'lacks classifier {_listed(missing)}, of '
                        'which there are dumps')
    plain_macs = self._whole_number(
        self._record, 'plain_network_macs', least=1)
    if plain_macs is None:
      raise self._error('plain_network_macs', 'is missing')
    return NetworkCost(
        network, source, self._exit_macs(classifier_ids), plain_macs,
        all(self._record.get(key) == value
            for key, value in _PAPER_NETWORK.items()))

  def _read_exits(self):
    """A dict from classifier, ascending, to its `_Exit`."""
    if 'exits' not in self._record:
      raise self._error('exits', 'is missing')
    entries = self._record['exits']
    if not isinstance(entries, list) or not (
        entries and all(isinstance(entry, dict) for entry in entries)):
      raise self._error('exits', f'is {_shown(entries)}, not a list with an '
                        'object for each classifier')
    exits = {}
    for index, entry in enumerate(entries):
      key = f'exits[{index}].'
      k = self._whole_number(entry, 'classifier_id', 0, key)
      if k is None:
        raise self._error(key + 'classifier_id', 'is missing')
      if k in exits:
        raise self._error(key + 'classifier_id', f'is {k} again')
      exits[k] = one = _Exit(
          key, self._whole_number(entry, 'trunk_macs', 1, key),
          self._whole_number(entry, 'head_macs', 0, key),
          self._whole_number(entry, 'cumulative_macs', 1, key))
      for name in ('trunk_macs', 'head_macs'):
        if one.cumulative_macs is None and getattr(one, name) is None:
          raise self._error(key + name, 'is missing; trunk_macs and head_macs '
                            'are needed, or cumulative_macs')
    return dict(sorted(exits.items()))

  def _exit_macs(self, classifier_ids):
    """Cumulative MACs of `classifier_ids`, all of which the file has."""
    if all(None not in (one.trunk_macs, one.head_macs)
           for one in self._exits.values()):
      exit_macs = self._counted_macs(classifier_ids)
    else:
      exit_macs = self._given_macs(classifier_ids)
    for k, macs, macs_before in zip(
        classifier_ids[1:], exit_macs[1:], exit_macs):
      if macs <= macs_before:
        raise self._error(
            self._exits[k].key + 'cumulative_macs', f'comes to {macs:,}, not '
            f'above the {macs_before:,} of the classifier before')
    return exit_macs

  def _counted_macs(self, classifier_ids):
    """From `trunk_macs` and `head_macs`; `cumulative_macs` must agree."""
    def count(exits):
      return dump_record.cumulative_costs(
          [one.trunk_macs for one in exits], [one.head_macs for one in exits])

    all_exits = list(self._exits.values())
    for one, macs in zip(all_exits, count(all_exits)):
      if one.cumulative_macs not in (None, macs):
        raise self._error(
            one.key + 'cumulative_macs', f'is {one.cumulative_macs:,}, but '
            f'trunk_macs and the head_macs so far make {macs:,}')
    return count([self._exits[k] for k in classifier_ids])

  def _given_macs(self, classifier_ids):
    """From `cumulative_macs` alone, which includes every head of the file."""
    for k, one in self._exits.items():
      if one.cumulative_macs is None:
        raise self._error(
            one.key + 'cumulative_macs', 'is missing; every classifier needs '
            'it unless all of them have trunk_macs and head_macs')
      if k not in classifier_ids and k < classifier_ids[-1]:
        raise self._error(
            one.key + 'classifier_id', f'is {k}, of which there are no dumps, '
            'and its head is part of the costs after it; leave it out of the '
            'file and of them, or give trunk_macs and head_macs')
    return [self._exits[k].cumulative_macs for k in classifier_ids]

  def _whole_number(self, fields, name, least, key=''):
    """fields[name] as an int, None if there is none; 4.1e9 is one too."""
    if name not in fields:
      return None
    value = fields[name]
    if isinstance(value, float) and value.is_integer():
      value = int(value)
    # `type`: to isinstance, true and false are numbers.
    if type(value) is not int or not least <= value <= _MOST_MACS:
      raise self._error(
          key + name, f'is {_shown(fields[name])}, not a whole number from '
          f'{least} to {_MOST_MACS:,}')
    return value

  def _error(self, key, what):
    return UserError(f'{self._path}: {key} {what}; {self._remedy}')


def _listed(classifier_ids):
  return ', '.join(str(k) for k in classifier_ids)


def _shown(value):
  """A value as the file has it, short and on one line."""
  return json.dumps(value)[:40]
