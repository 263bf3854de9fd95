"""`cascade.json`: which network the dumps of a folder are of, and its cost.

It lies beside the dumps and tells the analysis the cost and the weights of each
exit, and what the classes are called. A run may dump only some of the
classifiers, so runs share the file: each writes its own entries and keeps the
others'. No TensorFlow.
"""

import contextlib
import json
import operator
import os
import typing

import shared_dumps
from shared_dumps import CASCADE_FILE_NAME
from shared_files import (
    explain_content, explain_error, locked, write_atomically)
from shared_dataset import check_class_names, check_same_classes
from shared_terminal import UserError

FORMAT_VERSION = 1


class ExitCost(typing.NamedTuple):
  """What it takes to compute one classifier alone."""
  classifier_id: int
  trunk_macs: int         # Multiply-accumulates per image, image to exit.
  head_macs: int          # Of its own head, per image.
  # None only in files written by hand.
  trunk_parameters: typing.Optional[int] = None
  head_parameters: typing.Optional[int] = None


class Network(typing.NamedTuple):
  """A network with all its exits, whichever of them are dumped."""
  # None only in files written by hand, as are the two after it.
  resnet_version: typing.Optional[int]
  resnet_size: typing.Optional[int]
  image_size: typing.Optional[int]   # Height and width in pixels.
  num_classes: typing.Optional[int]  # Background class included; or None.
  exits: list             # An `ExitCost` for each classifier; its own is last.
  # Entry i is class i + 1; None if they are not known.
  class_names: typing.Optional[typing.List[str]] = None


class CascadeRecord(typing.NamedTuple):
  """What a cascade.json says, as far as it is read."""
  network: Network  # Its exits are those of the file, by ascending classifier.
  origins: dict     # Classifier to checkpoints, digests, flags, versions.
  network_name: typing.Optional[str]  # Such as 'ResNet-v2-50'; or None.
  plain_macs: int   # Of the network without early exits, per image.


# What the classifiers of one cascade have in common.
SHARED_FIELDS = ('resnet_version', 'resnet_size', 'image_size', 'num_classes')

# Dumps whose origins agree in these have the same weights.
WEIGHT_FIELDS = ('trunk_sha256', 'head_sha256')
CHECKPOINT_FIELDS = ('trunk_checkpoint', 'head_checkpoint')


def network_name(resnet_version, resnet_size):
  """Such as 'ResNet-v2-50'."""
  return f'ResNet-v{resnet_version}-{resnet_size}'


def shared_fields(network):
  """A dict of what all classifiers of one cascade have in common."""
  return {field: getattr(network, field) for field in SHARED_FIELDS}


def cumulative_costs(trunk_costs, head_costs):
  """The cost of leaving at each classifier of a cascade, in order.

  An image that leaves at a classifier has passed the trunk up to there and the
  heads of all classifiers so far: trunks [100, 250] and heads [3, 5] give
  [103, 258].
  """
  return [trunk_cost + sum(head_costs[:index + 1])
          for index, trunk_cost in enumerate(trunk_costs)]


def read(path, remedy):
  """Reads a cascade.json: that of a dump, or one written by hand for `-macs`.

  In the latter, `exits` with the MACs of each classifier and
  `plain_network_macs` are enough.

  Returns:
    A `CascadeRecord`.

  Raises:
    UserError: the file is something else; ends in `remedy`.
  """
  whole = operator.index  # Not int(), which would cut off a fraction.
  with explain_content(path, remedy):
    with open(path, encoding='utf-8') as stream:
      content = json.load(stream)
    entries = {whole(entry['classifier_id']): entry
               for entry in content['exits']}
    if len(entries) < len(content['exits']):
      raise ValueError('a classifier comes twice')
    exits = [
        ExitCost(k, whole(entry['trunk_macs']), whole(entry['head_macs']),
                 entry.get('trunk_parameters'), entry.get('head_parameters'))
        for k, entry in sorted(entries.items())]
    names = content.get('class_names')
    if names is not None:
      check_class_names(names, content['num_classes'])
    return CascadeRecord(
        Network(*map(content.get, SHARED_FIELDS), exits, names),
        {k: dict(entry.get('origin', {})) for k, entry in entries.items()},
        content.get('network'), whole(content['plain_network_macs']))


def network_and_weights(folder, classifier_ids):
  """What the record says of these dumps, as far as it is known.

  Returns:
    A dict for JSON: `SHARED_FIELDS`; 'exits', a dict from str(classifier) to
    its checkpoints and digests; and 'class_names'. Dumps without a record,
    such as the published ones, give none of them.
  """
  path = os.path.join(folder, CASCADE_FILE_NAME)
  if not os.path.exists(path):
    return {}
  record = read(path, 'correct it, or dump the classifiers again (step 3)')
  known = {**shared_fields(record.network),
           'class_names': record.network.class_names,
           'exits': {
               str(k): {field: record.origins[k][field]
                        for field in CHECKPOINT_FIELDS + WEIGHT_FIELDS
                        if field in record.origins[k]}
               for k in classifier_ids if k in record.origins}}
  return {name: value for name, value in known.items() if value is not None}


def recorded_origins(folder, network):
  """Where the dumps in a folder come from, by classifier, as recorded.

  An entry whose dumps were removed counts for nothing, and is left out.

  Raises:
    UserError: the dumps are not of `network`, which is going to be dumped, or
      the file is not a record.
  """
  path = os.path.join(folder, CASCADE_FILE_NAME)
  if not os.path.exists(path):
    return {}
  record = read(path, 'move it or name another --softmax_dir')
  dumped = shared_dumps.dumped_classifiers(folder)
  origins = {k: origin for k, origin in record.origins.items() if k in dumped}
  if not origins:
    return {}
  for field, value in shared_fields(record.network).items():
    if value != getattr(network, field):
      raise UserError(
          f'--softmax_dir {folder}: holds dumps of another network ({field} '
          f'{value}, here {getattr(network, field)}); remove the old dumps or '
          'name another folder')
  check_same_classes(network.class_names, '--data_dir',
                     record.network.class_names, path)
  return origins


def check_shards(folder, network, origins, shard):
  """Checks that other shards in the folder have the weights of this one.

  Args:
    folder: of the dumps.
    network: the `Network` that is being dumped.
    origins: a dict from each classifier of the run to its origin, for JSON.
    shard: the `shared_dumps.DumpShard` of the run; None if its dumps are whole.

  Returns:
    The recorded origins, less those that are replaced by other weights.

  Raises:
    UserError: a shard has other weights; or see `recorded_origins`.
  """
  recorded = recorded_origins(folder, network)
  replaced = [k for k in recorded if k in origins and any(
      recorded[k].get(field) != origins[k][field] for field in WEIGHT_FIELDS)]
  for name in shared_dumps.names_in(folder):
    _, other = shared_dumps.split_shard_name(name)
    if shard and other not in (None, shard) and name.startswith(
        tuple(f'clf{k}_' for k in replaced)):
      raise UserError(
          f'{os.path.join(folder, name)}: a shard of other weights than '
          f'--dump_shard {shard.number}/{shard.total} would have; remove it '
          'and what belongs to it, or name another folder')
  return {k: recorded[k] for k in recorded if k not in replaced}


@contextlib.contextmanager
def recording(folder, network, origins, shard=None):
  """Records dumps that get their names within this context.

  Holds the folder's lock. Entries of dumps that are replaced by others are
  removed first: a run that is killed here leaves new files beside old ones, and
  no record may vouch for those. Arguments and errors as for `check_shards`.
  """
  path = os.path.join(folder, CASCADE_FILE_NAME)

  def write(recorded):
    content = json.dumps(_content(network, recorded), indent=2) + '\n'
    write_atomically(path, content.encode())

  with explain_error(path, 'free some space and run the same command again'):
    with locked(folder):
      kept = check_shards(folder, network, origins, shard)
      if os.path.exists(path):
        write(kept)
      yield
      write({**kept, **origins})


def _content(network, origins):
  """The content of the file, in the order in which people read it.

  The cumulative costs are for them, and are not read again.
  """
  dumped = [cost for cost in network.exits if cost.classifier_id in origins]
  cumulative_macs = cumulative_costs(
      [cost.trunk_macs for cost in dumped], [cost.head_macs for cost in dumped])
  cumulative_parameters = cumulative_costs(
      [cost.trunk_parameters for cost in dumped],
      [cost.head_parameters for cost in dumped])
  final = network.exits[-1]
  return {
      'format_version': FORMAT_VERSION,
      'network': network_name(network.resnet_version, network.resnet_size),
      **shared_fields(network),
      'exits': [{
          'classifier_id': cost.classifier_id,
          'trunk_macs': cost.trunk_macs,
          'head_macs': cost.head_macs,
          'cumulative_macs': macs,
          'trunk_parameters': cost.trunk_parameters,
          'head_parameters': cost.head_parameters,
          'cumulative_parameters': parameters,
          'origin': origins[cost.classifier_id],
      } for cost, macs, parameters in zip(
          dumped, cumulative_macs, cumulative_parameters)],
      'plain_network_macs': final.trunk_macs + final.head_macs,
      'plain_network_parameters': (
          final.trunk_parameters + final.head_parameters),
      **({'class_names': network.class_names} if network.class_names else {}),
  }
