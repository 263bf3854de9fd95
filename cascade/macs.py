"""What it costs to leave at each classifier, in multiply-accumulates (MACs).

Three sources: `cascade.json`, written with the dumps or by hand for a network
of one's own; a count of the official ResNets by formula; and the spreadsheet
published with the paper. The first two count convolutions and dense layers,
without biases, batch normalization and pooling, and agree to the last digit.
"""

import collections
import json
import os

import cascade_record
import resnet_tables
from user_error import UserError

# `network` and `source` are for people. `exit_macs` is a list of int, the
# cumulative MACs per image to leave at each classifier; `plain_macs` is the
# cost of the network without exits. The comparison points of Bolukbasi et al.
# 2017 belong to `is_paper_network`.
NetworkCost = collections.namedtuple(
    'NetworkCost', 'network source exit_macs plain_macs is_paper_network')

# The network of the paper, ResNet-50 v2 at 224 pixels, under the names that
# cascade.json has for it; classes with the background class.
_PAPER_VERSION, _PAPER_SIZE = 2, 50
_PAPER_NETWORK = collections.OrderedDict([
    ('network', resnet_tables.network_name(_PAPER_VERSION, _PAPER_SIZE)),
    ('image_size', 224),
    ('num_classes', 1001),
])

# MAC_count_calculations.xlsx of the published repository: to classifier 0, from
# there to 1, from there to 2, and the plain network. It differs from the exact
# count: it adds one per output channel, counts the inputs of poolings, and
# gives the last block layer's second and third block 1024 input channels where
# they have 2048.
PUBLISHED_MACS_FROM_EXIT_TO_EXIT = (1817092009, 1467571177, 759970793)
PUBLISHED_PLAIN_MACS = 4037883817

# Costs are added up over all images, in 64 bits: two million images have room.
_MOST_MACS = 4 * 10**12

# An entry of `exits`; what it does not have is None. `key` is its place in the
# file, for messages.
_Exit = collections.namedtuple(
    '_Exit', 'key trunk_macs head_macs cumulative_macs')


def network_cost(macs_option, dump_folder, classifier_ids, num_classes):
  """What the network of a dump folder costs.

  Args:
    macs_option: None or 'exact': from the folder's `cascade.json`, and for
      dumps without one ResNet-v2-50 at 224 pixels, if that may be the network.
      'published': the paper's spreadsheet. Else the path of a file in the
      format of `cascade.json`, of which `plain_network_macs` is needed, and of
      each of `exits` its `classifier_id` with `trunk_macs` and `head_macs`, or
      with `cumulative_macs`.
    dump_folder: an existing folder.
    classifier_ids: the classifiers of the cascade, ascending, at least two.
      The heads of others are not counted.
    num_classes: columns of the softmaxes; None if not known.

  Returns:
    A `NetworkCost`.

  Raises:
    UserError: a file is missing or wrong, or the cost is not known.
  """
  assert len(classifier_ids) > 1 and (
      list(classifier_ids) == sorted(set(classifier_ids))), classifier_ids
  record_path = os.path.join(dump_folder, cascade_record.FILE_NAME)
  if macs_option == 'published':
    return _published_cost(record_path, classifier_ids, num_classes)
  if macs_option not in (None, 'exact'):
    if not os.path.exists(macs_option):
      raise UserError("-macs {}: no such file; it is 'exact', 'published', or "
                      'a file like the {} that step 3 writes'.format(
                          macs_option, cascade_record.FILE_NAME))
    return _CostFile(
        macs_option, 'correct it after the model of the {} that step 3 writes'
        .format(cascade_record.FILE_NAME)).cost(
            macs_option, classifier_ids, num_classes)
  if os.path.exists(record_path):
    return _CostFile(
        record_path, 'dump the classifiers again (step 3) or name a -macs '
        'FILE.json').cost(
            '{} in {}'.format(cascade_record.FILE_NAME, dump_folder),
            classifier_ids, num_classes)
  if num_classes not in (None, _PAPER_NETWORK['num_classes']):
    raise UserError(
        '{}: no such file, and softmaxes of {:,} classes are not from the '
        'network of the paper ({:,}), so that their cost is not known; dump '
        'again (step 3) or name a -macs FILE.json'.format(
            record_path, num_classes, _PAPER_NETWORK['num_classes']))
  exits = resnet_macs(
      _PAPER_SIZE, _PAPER_NETWORK['image_size'], _PAPER_NETWORK['num_classes'])
  return NetworkCost(
      _PAPER_NETWORK['network'],
      'exact count of {network} at {image_size} pixels'.format(
          **_PAPER_NETWORK),
      _cumulative_macs(exits, classifier_ids), plain_macs(exits), True)


def resnet_macs(resnet_size, image_size, num_classes):
  """Counts the MACs of an official ResNet with its exits, by formula.

  Versions 1 and 2 differ in where batch normalization is, not in this.

  Args:
    resnet_size: 18, 34, 50, 101, 152 or 200.
    image_size: height and width in pixels, a multiple of 32.
    num_classes: outputs of each classifier, background class included.

  Returns:
    An ordered dict from classifier to `(trunk_macs, head_macs)`: per image,
    from the image to the classifier's map, and of the classifier alone.
  """
  assert image_size > 0, image_size
  assert image_size % resnet_tables.IMAGE_SIZE_DIVISOR == 0, image_size
  is_bottleneck = resnet_size >= resnet_tables.SMALLEST_BOTTLENECK_SIZE
  channels = resnet_tables.NUM_FILTERS
  side = image_size // resnet_tables.FIRST_CONV_STRIDE
  trunk_macs = side**2 * resnet_tables.FIRST_KERNEL_SIZE**2 * 3 * channels
  side //= resnet_tables.FIRST_POOL_STRIDE
  exits = collections.OrderedDict()
  for index, num_blocks in enumerate(resnet_tables.BLOCK_SIZES[resnet_size]):
    filters = resnet_tables.NUM_FILTERS * 2**index
    for block in range(num_blocks):
      stride = resnet_tables.BLOCK_STRIDES[index] if block == 0 else 1
      count = _bottleneck_macs if is_bottleneck else _building_block_macs
      macs, channels_out = count(side, stride, channels, filters)
      side //= stride
      if block == 0:  # The projection, 1x1.
        macs += side**2 * channels * channels_out
      trunk_macs, channels = trunk_macs + macs, channels_out
    for k, early_exit in resnet_tables.EARLY_EXITS.items():
      if early_exit.block_layer == index + 1:
        rows, columns = early_exit.grid
        exits[k] = trunk_macs, resnet_tables.HEAD_HIDDEN_UNITS * (
            channels * rows * columns + num_classes)
  exits[resnet_tables.FINAL_CLASSIFIER_ID] = trunk_macs, channels * num_classes
  return exits


def _building_block_macs(side, stride, channels, filters):
  """MACs of a block of two 3x3 convolutions, and its output channels."""
  return (side // stride)**2 * 9 * filters * (channels + filters), filters


def _bottleneck_macs(side, stride, channels, filters):
  """MACs of a block of 1x1, 3x3 (strided) and 1x1, and its output channels."""
  channels_out = 4 * filters
  return side**2 * channels * filters + (side // stride)**2 * filters * (
      9 * filters + channels_out), channels_out


def plain_macs(exits):
  """MACs of the network without early exits; `exits` as of `resnet_macs`."""
  return sum(exits[resnet_tables.FINAL_CLASSIFIER_ID])


def _cumulative_macs(exits, classifier_ids):
  """`exits` as of `resnet_macs`; a list of int, one for each classifier."""
  trunk_macs, head_macs = zip(*(exits[k] for k in classifier_ids))
  return cascade_record.cumulative_costs(trunk_macs, head_macs)


def _published_cost(record_path, classifier_ids, num_classes):
  """The spreadsheet's figures, if the dumps may be of its cascade."""
  if tuple(classifier_ids) != resnet_tables.CLASSIFIER_IDS:
    raise UserError(
        '-macs published: is for classifiers {}, and the dumps are of {}; use '
        '-macs exact'.format(_listed(resnet_tables.CLASSIFIER_IDS),
                             _listed(classifier_ids)))
  record = {}
  if os.path.exists(record_path):
    record = cascade_record.load(
        record_path, 'remove it if the dumps are the published ones')
  for key, paper_value in _PAPER_NETWORK.items():
    value = record.get(key, paper_value)
    if value != paper_value:
      raise UserError(
          '-macs published: is for {} {}, and {} has {}; use -macs exact'
          .format(key, paper_value, record_path, _shown(value)))
  if num_classes not in (None, _PAPER_NETWORK['num_classes']):
    raise UserError(
        '-macs published: is for {:,} classes, and the softmaxes have {:,}; '
        'use -macs exact'.format(_PAPER_NETWORK['num_classes'], num_classes))
  exit_macs = [sum(PUBLISHED_MACS_FROM_EXIT_TO_EXIT[:k + 1])
               for k in classifier_ids]
  return NetworkCost(_PAPER_NETWORK['network'], 'published spreadsheet',
                     exit_macs, PUBLISHED_PLAIN_MACS, True)


class _CostFile(object):
  """A file in the format of `cascade.json`; its errors name file and key."""

  def __init__(self, path, remedy):
    """
    Args:
      path: of the file.
      remedy: what to do if it is wrong, for the message.

    Raises:
      UserError: the file cannot be read, or its `exits` are wrong.
    """
    self._path, self._remedy = path, remedy
    self._record = cascade_record.load(path, remedy)
    self._exits = self._read_exits()

  def cost(self, source, classifier_ids, num_classes):
    """A `NetworkCost`; arguments as for `network_cost`, source for people.

    Raises:
      UserError: the file lacks something, or is of other dumps.
    """
    network = self._record.get(
        'network', 'network of {}'.format(os.path.basename(self._path)))
    if not (isinstance(network, str) and network and network.isprintable()):
      raise self._error('network', 'is {}, not a name'.format(_shown(network)))
    file_classes = self._whole_number(self._record, 'num_classes', least=1)
    if None not in (file_classes, num_classes) and file_classes != num_classes:
      raise self._error('num_classes', 'is {:,}, and the softmaxes have {:,}'
                        .format(file_classes, num_classes))
    missing = [k for k in classifier_ids if k not in self._exits]
    if missing:
      raise self._error('exits', 'lacks classifier {}, of which there are dumps'
                        .format(_listed(missing)))
    plain = self._whole_number(self._record, 'plain_network_macs', least=1)
    if plain is None:
      raise self._error('plain_network_macs', 'is missing')
    return NetworkCost(
        network, source, self._exit_macs(classifier_ids), plain,
        all(self._record.get(key) == value
            for key, value in _PAPER_NETWORK.items()))

  def _read_exits(self):
    """An ordered dict from classifier, ascending, to its `_Exit`."""
    if 'exits' not in self._record:
      raise self._error('exits', 'is missing')
    entries = self._record['exits']
    if not isinstance(entries, list) or not (
        entries and all(isinstance(entry, dict) for entry in entries)):
      raise self._error('exits', 'is {}, not a list with an object for each '
                        'classifier'.format(_shown(entries)))
    exits = {}
    for index, entry in enumerate(entries):
      key = 'exits[{}].'.format(index)
      k = self._whole_number(entry, 'classifier_id', 0, key)
      if k is None:
        raise self._error(key + 'classifier_id', 'is missing')
      if k in exits:
        raise self._error(key + 'classifier_id', 'is {} again'.format(k))
      exits[k] = one = _Exit(
          key, self._whole_number(entry, 'trunk_macs', 1, key),
          self._whole_number(entry, 'head_macs', 0, key),
          self._whole_number(entry, 'cumulative_macs', 1, key))
      for name in ('trunk_macs', 'head_macs'):
        if one.cumulative_macs is None and getattr(one, name) is None:
          raise self._error(key + name, 'is missing; trunk_macs and head_macs '
                            'are needed, or cumulative_macs')
    return collections.OrderedDict(sorted(exits.items()))

  def _exit_macs(self, classifier_ids):
    """Cumulative MACs of `classifier_ids`, all of which the file has."""
    if all(None not in (one.trunk_macs, one.head_macs)
           for one in self._exits.values()):
      exit_macs = self._counted_exit_macs(classifier_ids)
    else:
      exit_macs = self._given_exit_macs(classifier_ids)
    for k, macs, macs_before in zip(
        classifier_ids[1:], exit_macs[1:], exit_macs):
      if macs <= macs_before:
        raise self._error(
            self._exits[k].key + 'cumulative_macs', 'comes to {:,}, not above '
            'the {:,} of the classifier before'.format(macs, macs_before))
    return exit_macs

  def _counted_exit_macs(self, classifier_ids):
    """From `trunk_macs` and `head_macs`; `cumulative_macs` must agree."""
    parts = collections.OrderedDict(
        (k, (one.trunk_macs, one.head_macs)) for k, one in self._exits.items())
    for one, macs in zip(self._exits.values(),
                         _cumulative_macs(parts, list(parts))):
      if one.cumulative_macs not in (None, macs):
        raise self._error(
            one.key + 'cumulative_macs', 'is {:,}, where trunk_macs and the '
            'head_macs so far make {:,}'.format(one.cumulative_macs, macs))
    return _cumulative_macs(parts, classifier_ids)

  def _given_exit_macs(self, classifier_ids):
    """From `cumulative_macs` alone, which holds every head of the file."""
    for k, one in self._exits.items():
      if one.cumulative_macs is None:
        raise self._error(
            one.key + 'cumulative_macs', 'is missing; every classifier needs '
            'it, where not every one has trunk_macs and head_macs')
      if k not in classifier_ids and k < classifier_ids[-1]:
        raise self._error(
            one.key + 'classifier_id', 'is {}, of which there are no dumps, '
            'and its head is part of the costs after it; leave it out of the '
            'file and of them, or give trunk_macs and head_macs'.format(k))
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
          key + name, 'is {}, not a whole number from {} to {:,}'.format(
              _shown(fields[name]), least, _MOST_MACS))
    return value

  def _error(self, key, what):
    return UserError('{}: {} {}; {}'.format(
        self._path, key, what, self._remedy))


def _listed(classifier_ids):
  return ', '.join(str(k) for k in classifier_ids)


def _shown(value):
  """A value of a file as it is there, short and on one line."""
  return json.dumps(value)[:40]
