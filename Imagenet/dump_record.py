"""`cascade.json`: which network the dumps of a folder are of, and its cost.

It lies beside the dumps and tells the analysis the cost and the weights of each
exit, and what the classes are called. A run may dump only some of the
classifiers, so runs share the file: each writes its own entries and keeps the
others'. No TensorFlow.
"""

import contextlib
import json
import os
import typing

import dump_names
from dump_names import CASCADE_FILE_NAME
from files import check_regular, explain_error, locked, write_atomically
from user_error import UserError

FORMAT_VERSION = 1


class ExitCost(typing.NamedTuple):
  """What it takes to compute one classifier alone."""
  classifier_id: int
  trunk_macs: int         # Multiply-accumulates per image, image to exit.
  head_macs: int          # Of its own head, per image.
  trunk_parameters: int
  head_parameters: int


class Network(typing.NamedTuple):
  """A network with all its exits, whichever of them are dumped."""
  resnet_version: int
  resnet_size: int
  image_size: int         # Height and width in pixels.
  num_classes: int        # Background class included.
  exits: list             # An `ExitCost` for each classifier; its own is last.
  # Entry i is class i + 1; None if they are not known.
  class_names: typing.Optional[typing.List[str]] = None


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
  """The cost of leaving at each classifier of a cascade.

  An image that leaves at a classifier has passed the trunk up to there and the
  heads of all classifiers so far: trunks [100, 250] and heads [3, 5] give
  [103, 258].

  Args:
    trunk_costs: for each classifier in order, from the image on.
    head_costs: for each classifier in order.

  Returns:
    A list with one cost per classifier.
  """
  return [trunk_cost + sum(head_costs[:index + 1])
          for index, trunk_cost in enumerate(trunk_costs)]


def load(path, remedy):
  """Reads a JSON object of this format's version: a dict, otherwise unchecked.

  Raises:
    UserError: the file cannot be read, or is something else; ends in `remedy`,
      which says what to do about it.
  """
  check_regular(path)
  try:
    with open(path, 'rb') as stream:
      record = json.loads(stream.read().decode('utf-8'))
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror}); {remedy}')
  except (ValueError, RecursionError) as error:
    raise UserError(f'{path}: not JSON ({error}); {remedy}')
  if not isinstance(record, dict):
    raise UserError(f'{path}: not a JSON object; {remedy}')
  version = record.get('format_version', FORMAT_VERSION)
  if version != FORMAT_VERSION:
    raise UserError(f'{path}: format_version {version!r}, where this program '
                    f'knows {FORMAT_VERSION}; {remedy}')
  return record


def check_class_names(class_names, num_classes):
  """Checks the names of all classes but the background class, 0.

  Raises:
    ValueError: they are not a list of so many strings.
  """
  if not (isinstance(class_names, list) and
          all(isinstance(name, str) for name in class_names) and
          len(class_names) == num_classes - 1):
    raise ValueError(f'class_names is not a list of {num_classes - 1:,} names')


def network_and_weights(folder, classifier_ids):
  """What the record says of these dumps, as far as it is known.

  Args:
    folder: of the dumps.
    classifier_ids: of the cascade.

  Returns:
    A dict for JSON: `SHARED_FIELDS`; 'exits', a dict from str(classifier) to
    its checkpoints and digests; and 'class_names'. Dumps without a record,
    such as the published ones, give none of them.

  Raises:
    UserError: the file is not a record, or its names do not fit.
  """
  path = os.path.join(folder, CASCADE_FILE_NAME)
  if not os.path.exists(path):
    return {}
  remedy = 'correct it, or dump the classifiers again (step 3)'
  record = load(path, remedy)
  known = {field: record[field] for field in SHARED_FIELDS if field in record}
  try:
    origins = {entry['classifier_id']: entry.get('origin', {})
               for entry in record['exits']}
    known['exits'] = {
        str(k): {field: origins[k][field]
                 for field in CHECKPOINT_FIELDS + WEIGHT_FIELDS
                 if field in origins[k]}
        for k in classifier_ids if k in origins}
    if 'class_names' in record:
      check_class_names(record['class_names'], record['num_classes'])
      known['class_names'] = record['class_names']
  except KeyError as error:
    raise UserError(f'{path}: {error.args[0]} is missing; {remedy}')
  except (TypeError, AttributeError, ValueError) as error:
    raise UserError(f'{path}: {error}; {remedy}')
  return known


def recorded_origins(folder, network):
  """Where the dumps in a folder come from, as its record says.

  An entry whose dumps were removed counts for nothing.

  Args:
    folder: of the dumps.
    network: the `Network` that is going to be dumped.

  Returns:
    A dict from classifier to its origin: checkpoints, flags, versions.

  Raises:
    UserError: the dumps are of another network, or the file is not a record.
  """
  path = os.path.join(folder, CASCADE_FILE_NAME)
  if not os.path.exists(path):
    return {}
  remedy = 'move it or name another --softmax_dir'
  record = load(path, remedy)
  try:
    # The first records had only the path of the checkpoint.
    origins = {
        entry['classifier_id']: dict(entry['origin']) if 'origin' in entry else
                                {'head_checkpoint': entry['checkpoint']}
        for entry in record['exits']}
    shared = {field: record[field] for field in SHARED_FIELDS}
  except (KeyError, TypeError, ValueError):
    raise UserError(f'{path}: not written by this program; {remedy}')
  origins = {k: origins[k] for k in dump_names.dumped_classifiers(folder)
             if k in origins}
  for field, value in shared.items():
    if origins and value != getattr(network, field):
      raise UserError(
          f'--softmax_dir {folder}: holds dumps of another network ({field} '
          f'{value}, here {getattr(network, field)}); classifiers of one '
          'cascade are dumped from the same network: remove the old dumps or '
          'name another folder')
  return origins


def check_shards(folder, network, origins, shard):
  """Checks that other shards in the folder have the weights of this one.

  Args:
    folder: of the dumps.
    network: the `Network` that is being dumped.
    origins: a dict from each classifier of the run to its origin, for JSON.
    shard: the `dump_names.DumpShard` of the run; None if its dumps are whole.

  Raises:
    UserError: a shard has other weights; or see `recorded_origins`.
  """
  if shard is None:
    return
  for k in _of_other_weights(recorded_origins(folder, network), origins):
    names = [name for split in dump_names.SPLITS
             for name in dump_names.classifier_file_names(k, split)]
    for name in dump_names.names_in(folder):
      whole_name, other = dump_names.split_shard_name(name)
      if whole_name in names and other != shard:
        raise UserError(
            f'{os.path.join(folder, name)}: a shard of other weights than '
            f'--dump_shard {shard.number}/{shard.total} would have (see '
            f'{CASCADE_FILE_NAME}); remove it and what belongs to it, or name '
            'another folder')


@contextlib.contextmanager
def recording(folder, network, origins, shard=None):
  """Records dumps that get their names within this context.

  Holds the folder's lock. Entries of dumps that are replaced by others are
  removed first: a run that is killed here leaves new files beside old ones, and
  no record may vouch for those.

  Args, errors: as for `check_shards`; also if the record cannot be written.
  """
  with explain_error(folder, 'run the same command again'), locked(folder):
    check_shards(folder, network, origins, shard)
    recorded = recorded_origins(folder, network)
    replaced = _of_other_weights(recorded, origins)
    if replaced:
      _write(folder, network, {
          k: origin for k, origin in recorded.items() if k not in replaced})
    yield
    write(folder, network, origins)


def write(folder, network, origins):
  """Adds the entries of complete dumps; the caller holds the folder's lock.

  Args, errors: as for `recording`.
  """
  _write(folder, network, {**recorded_origins(folder, network), **origins})


def _of_other_weights(recorded, origins):
  """Classifiers in both whose weights are not known to be the same."""
  return [k for k in sorted(origins) if k in recorded and any(
      recorded[k].get(field) != origins[k][field] for field in WEIGHT_FIELDS)]


def _write(folder, network, origins):
  path = os.path.join(folder, CASCADE_FILE_NAME)
  if network.class_names is None:
    network = network._replace(class_names=_recorded_names(folder, network))
  content = json.dumps(_record(network, origins), indent=2) + '\n'
  with explain_error(path, 'free some space and run the same command again'):
    write_atomically(path, content.encode())


def _recorded_names(folder, network):
  """The names of the classes of earlier dumps that are kept; or None."""
  if not recorded_origins(folder, network):
    return None
  return load(os.path.join(folder, CASCADE_FILE_NAME), '').get('class_names')


def _record(network, origins):
  """The content of the file, in the order in which people read it."""
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
