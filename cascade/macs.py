"""The cost of leaving at each classifier, in multiply-accumulates (MACs).

It comes from one of three sources: `cascade.json`, written with the dumps or by
hand for a network of one's own; the exact count of the paper's network; or the
spreadsheet published with the paper. The first two count convolutions and dense
layers, without biases, batch normalization and pooling.

In addition there may be the time that it takes, as measured.
"""

import itertools
import os
import typing

from cascade.shared import (
    UserError, shared_cascade_json, shared_dumps, shared_stage_seconds)


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

# Costs are added up over all images, in 64 bits: two million images fit.
_MOST_MACS = 4 * 10**12


class TimeCost(typing.NamedTuple):
  """What a cascade costs per image in a batch that nobody leaves."""
  exit_nanoseconds: list   # Ints, as `NetworkCost.exit_macs`.
  plain_nanoseconds: int
  file: str                # The -cost option.
  device: str              # As the file names it.
  batch_size: int          # The largest that was measured.


class NetworkCost(typing.NamedTuple):
  """What a cascade costs per image."""
  network: str            # Its name.
  source: str             # Where the numbers come from, in a line's words.
  exit_macs: list         # Ints, cumulative MACs of leaving at each classifier.
  plain_macs: int         # MACs of the network without exits.
  is_paper_network: bool  # Comparable with Bolukbasi et al. 2017.
  time: typing.Optional[TimeCost] = None  # If it was measured (-cost).


def network_cost(macs_option, dump_folder, classifier_ids, num_classes):
  """The cost of the network whose dumps a folder holds; `NetworkCost`.

  Args:
    macs_option: 'exact': from the folder's `cascade.json`; for dumps without
      one, that of the paper's network, if they may be from it. 'published': the
      paper's spreadsheet. Otherwise the path of a file in the format of
      `cascade.json`.
    dump_folder: str.
    classifier_ids: the classifiers of the cascade, ascending, at least two.
      The heads of others are not counted.
    num_classes: columns of the softmaxes; None if not known.
  """
  path = os.path.join(dump_folder, shared_dumps.CASCADE_FILE_NAME)
  if macs_option == 'published':
    return _published_cost(path, classifier_ids, num_classes)
  source = f'{shared_dumps.CASCADE_FILE_NAME} in {dump_folder}'
  remedy = 'dump the classifiers again (step 3) or name a -macs FILE.json'
  if macs_option != 'exact':
    path = source = macs_option
    remedy = ("-macs takes 'exact', 'published' or such a file as "
              'docs/file_formats.md has it')
  elif not os.path.exists(path):
    return _exact_cost(path, classifier_ids, num_classes)
  record = shared_cascade_json.read(path, remedy)
  costs = {cost.classifier_id: cost for cost in record.network.exits}
  missing = [k for k in classifier_ids if k not in costs]
  if missing:
    raise UserError(f'{path}: lacks classifier {_listed(missing)}, of which '
                    f'there are dumps; {remedy}')
  if num_classes and record.network.num_classes not in (None, num_classes):
    raise UserError(f'{path}: num_classes is {record.network.num_classes}, '
                    f'and the softmaxes have {num_classes}; {remedy}')
  exit_macs = shared_cascade_json.cumulative_costs(
      [costs[k].trunk_macs for k in classifier_ids],
      [costs[k].head_macs for k in classifier_ids])
  if sorted(set(exit_macs)) != exit_macs or not (
      0 < exit_macs[0] <= exit_macs[-1] <= _MOST_MACS) or not (
          0 < record.plain_macs <= _MOST_MACS):
    raise UserError(f'{path}: the MACs of leaving come to {_listed(exit_macs)}'
                    f', which do not rise from 1 to {_MOST_MACS:,}; {remedy}')
  return NetworkCost(
      record.network_name or f'network of {os.path.basename(path)}', source,
      exit_macs, record.plain_macs, _identity(record) == _PAPER_NETWORK)


def _exact_cost(record_path, classifier_ids, num_classes):
  """The paper's network, for dumps that may be from it."""
  if num_classes not in (None, _PAPER_NETWORK['num_classes']) or not (
      set(classifier_ids) <= set(_EXACT_TRUNK_MACS)):
    raise UserError(
        f'{record_path}: no such file, and these are not the classifiers of '
        'the paper, so their cost is not known; dump again (step 3) or name a '
        '-macs FILE.json')
  return NetworkCost(
      _PAPER_NETWORK['network'], 'exact count of ResNet-v2-50 at 224 pixels',
      shared_cascade_json.cumulative_costs(
          [_EXACT_TRUNK_MACS[k] for k in classifier_ids],
          [_EXACT_HEAD_MACS[k] for k in classifier_ids]),
      _EXACT_PLAIN_MACS, True)


def _published_cost(record_path, classifier_ids, num_classes):
  """The spreadsheet's numbers, if the dumps may be of its cascade."""
  known = [('num_classes', num_classes)]
  if os.path.exists(record_path):
    known += _identity(shared_cascade_json.read(
        record_path, 'remove it if the dumps are the published ones')).items()
  if list(classifier_ids) != list(_EXACT_TRUNK_MACS) or any(
      value not in (None, _PAPER_NETWORK[key]) for key, value in known):
    raise UserError(
        '-macs published: is of classifiers 0, 1, 2 of ResNet-v2-50 at 224 '
        'pixels with 1,001 classes, and these dumps are of others; use -macs '
        'exact')
  return NetworkCost(
      _PAPER_NETWORK['network'], 'published spreadsheet',
      list(itertools.accumulate(PUBLISHED_MACS_FROM_EXIT_TO_EXIT)),
      PUBLISHED_PLAIN_MACS, True)


def _identity(record):
  """What `_PAPER_NETWORK` has, of a `CascadeRecord`."""
  return {'network': record.network_name,
          'image_size': record.network.image_size,
          'num_classes': record.network.num_classes}


def time_cost(path, recorded, classifier_ids):
  """The time that the cascade of some dumps takes; `TimeCost`.

  `path` is the -cost option, a `stage_seconds.json`, and `recorded` the
  `shared_cascade_json.network_and_weights` of the dumps, whose classifiers are
  `classifier_ids`, ascending.
  """
  measured = shared_stage_seconds.load(path)
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

  *exits, plain = [
      int(round(seconds[-1] * 1e9))
      for seconds in (*measured.seconds_per_image.values(),
                      measured.plain_seconds_per_image)]
  return TimeCost(exits, plain, path, measured.device, measured.batch_sizes[-1])


def _listed(classifier_ids):
  return ', '.join(str(k) for k in classifier_ids)
