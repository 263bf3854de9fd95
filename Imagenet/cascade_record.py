"""`cascade.json`: which network the dumps of a folder are of, and its cost.

It lies beside the dumps, is written when they are complete, and tells the
analysis what it costs to leave at each classifier. A run may dump some of the
classifiers only, so runs share the file: each puts in its own and keeps the
others.

Nothing here needs TensorFlow, so that the analysis shares the format.
"""

import collections
import contextlib
import json
import os

import dump_names
from file_system import LOCAL, replace_content
from resnet_tables import network_name
from user_error import UserError

FILE_NAME = 'cascade.json'
FORMAT_VERSION = 1

# What one classifier costs: MACs (multiply-accumulates) per image, and
# parameters, of the trunk as far as this classifier and of its own head.
ExitCost = collections.namedtuple(
    'ExitCost', 'classifier_id trunk_macs head_macs '
    'trunk_parameters head_parameters')

# `image_size` in pixels, `num_classes` with the background class; `exits` is a
# list of `ExitCost`, all that the network can have, its own classifier last.
Network = collections.namedtuple(
    'Network', 'resnet_version resnet_size image_size num_classes exits')

# What the classifiers of one cascade have in common.
_SHARED_FIELDS = ('resnet_version', 'resnet_size', 'image_size', 'num_classes')

# Of an origin: dumps in which these agree are of the same weights.
_WEIGHT_FIELDS = ('trunk_sha256', 'head_sha256')

_RUN_REMEDY = 'move it or name another --softmax_dir'


def cumulative_costs(trunk_costs, head_costs):
  """What it costs to leave at each classifier of a cascade.

  An image that leaves at a classifier has been through the trunk as far as
  there, and through the heads of all classifiers so far.

  Args:
    trunk_costs: of each classifier in order, from the image on.
    head_costs: of each classifier in order.

  Returns:
    A list, one cost for each.
  """
  return [trunk_cost + sum(head_costs[:index + 1])
          for index, trunk_cost in enumerate(trunk_costs)]


def load(path, remedy, file_system=LOCAL):
  """Reads a JSON object of this format's version; checks no more than that.

  Args:
    path: of the file.
    remedy: what to do if it is another file, for the message.
    file_system: one like `file_system.LOCAL`.

  Returns:
    A dict.

  Raises:
    UserError: the file cannot be read or is another.
  """
  try:
    with file_system.open_to_read(path) as stream:
      record = json.loads(stream.read().decode('utf-8'))
  except OSError as error:
    raise UserError('{}: cannot be read ({}); {}'.format(
        path, error.strerror, remedy))
  except (ValueError, RecursionError) as error:
    raise UserError('{}: not JSON ({}); {}'.format(path, error, remedy))
  if not isinstance(record, dict):
    raise UserError('{}: not a JSON object; {}'.format(path, remedy))
  version = record.get('format_version', FORMAT_VERSION)
  if version != FORMAT_VERSION:
    raise UserError('{}: format_version {!r}, where this program knows {}; {}'
                    .format(path, version, FORMAT_VERSION, remedy))
  return record


def check_folder(folder, network, file_system=LOCAL):
  """Checks, before any work, that the dumps of a folder are of this network.

  Args:
    folder: an existing folder.
    network: the `Network` that will be dumped.
    file_system: one like `file_system.LOCAL`.

  Raises:
    UserError: they are of another network, or the file is of something else.
  """
  _origins_of_dumps(folder, network, file_system)


def write(folder, network, origins, file_system=LOCAL):
  """Puts classifiers whose dumps are complete into the folder's record.

  Args:
    folder: of the dumps.
    network: the `Network` they are of.
    origins: a dict from each of the classifiers to what tells where its dumps
      are from: checkpoints, flags, versions; a dict ready for JSON.
    file_system: one like `file_system.LOCAL`.

  Raises:
    UserError: as for `check_folder`; or the file cannot be written.
  """
  with _locked(folder, file_system, 'the dumps beside it are complete'):
    all_origins = _origins_of_dumps(folder, network, file_system)
    all_origins.update(origins)
    _replace(folder, network, all_origins, origins, file_system)


def retract(folder, network, origins, shard=None, file_system=LOCAL):
  """Takes out classifiers whose dumps are about to be replaced by others.

  Files get their names split by split: a run that stops in between leaves one
  of the new weights beside one of the old, for which no record stands.

  Args:
    folder, network, file_system: as for `write`.
    origins: as for `write`, of the dumps to come.
    shard: as for `check_shards`.

  Raises:
    UserError: as for `write` and `check_shards`.
  """
  with _locked(folder, file_system, 'the dumps beside it are the old ones'):
    check_shards(folder, network, origins, shard, file_system)
    recorded = _origins_of_dumps(folder, network, file_system)
    others = _of_other_weights(recorded, origins)
    if others:
      _replace(folder, network, {
          k: recorded[k] for k in recorded if k not in others}, origins,
               file_system)


def check_shards(folder, network, origins, shard=None, file_system=LOCAL):
  """Checks that a shard has the weights of those beside it, as far as recorded.

  Args:
    folder, network, file_system: as for `write`.
    origins: as for `write`, of the dumps to come.
    shard: the `dump_names.DumpShard` of them; None where they are whole.

  Raises:
    UserError: as for `check_folder`; or a shard beside it has other weights.
  """
  if shard is None:
    return
  recorded = _origins_of_dumps(folder, network, file_system)
  for k in _of_other_weights(recorded, origins):
    names = sum((dump_names.classifier_file_names(k, split)
                 for split in dump_names.SPLITS), [])
    for name in dump_names.names_in(folder, file_system):
      whole_name, other = dump_names.split_shard_name(name)
      if whole_name in names and other != shard:
        raise UserError(
            '{}: a shard of other weights than --dump_shard {}/{} would have '
            '(see {}); remove it and what belongs to it, or name another '
            'folder'.format(os.path.join(folder, name), shard.number,
                            shard.total, FILE_NAME))


def _of_other_weights(recorded, origins):
  """Classifiers of both whose weights are not known to be the same."""
  return [k for k in sorted(origins) if k in recorded and any(
      recorded[k].get(field) != origins[k][field] for field in _WEIGHT_FIELDS)]


@contextlib.contextmanager
def _locked(folder, file_system, consequence):
  """Keeps runs for other classifiers waiting, which may end at this moment.

  Args:
    folder, file_system: as for `write`.
    consequence: of a file that cannot be written, for the message.
  """
  try:
    with file_system.locked(folder):
      yield
  except OSError as error:
    raise UserError('{}: cannot be written ({}); {}'.format(
        os.path.join(folder, FILE_NAME), error.strerror, consequence))


def _replace(folder, network, all_origins, origins, file_system):
  """Writes the record of `all_origins`; by a run that dumps `origins`."""
  path = os.path.join(folder, FILE_NAME)
  unfinished_path = path + ''.join(
      '.clf{}'.format(k) for k in origins) + dump_names.UNFINISHED_SUFFIX
  content = json.dumps(_record(network, all_origins), indent=2)
  replace_content(file_system, path, unfinished_path,
                  (content + '\n').encode())


def _origins_of_dumps(folder, network, file_system):
  """Classifiers that the folder holds dumps of, as its record has them.

  An entry whose dumps were removed counts for nothing.

  Returns:
    A dict from classifier to the 'origin' that is recorded.
  """
  path = os.path.join(folder, FILE_NAME)
  if not file_system.exists(path):
    return {}
  record = load(path, _RUN_REMEDY, file_system)
  try:
    recorded = {entry['classifier_id']: _origin(entry)
                for entry in record['exits']}
    recorded_fields = [record[field] for field in _SHARED_FIELDS]
  except (KeyError, TypeError):
    raise UserError('{}: not written by this program; {}'.format(
        path, _RUN_REMEDY))
  origins = {
      exit_cost.classifier_id: recorded[exit_cost.classifier_id]
      for exit_cost in network.exits
      if exit_cost.classifier_id in recorded and any(
          dump_names.holds_dump(
              folder, exit_cost.classifier_id, split, file_system)
          for split in dump_names.SPLITS)}
  if origins:
    for field, value in zip(_SHARED_FIELDS, recorded_fields):
      if value != getattr(network, field):
        raise UserError(
            '--softmax_dir {}: holds dumps of another network ({} {}, here '
            '{}); classifiers of one cascade are dumped from the same network: '
            'remove the old dumps or name another folder'.format(
                folder, field, value, getattr(network, field)))
  return origins


def _origin(entry):
  # The first records had the path of the checkpoint only.
  return (entry['origin'] if 'origin' in entry
          else {'head_checkpoint': entry['checkpoint']})


def _record(network, origins):
  """The content of the file, ready for JSON.

  Args:
    network: a `Network`.
    origins: a dict from each classifier dumped to its origin.

  Returns:
    A dict, in the order in which people read it.
  """
  dumped = [exit_cost for exit_cost in network.exits
            if exit_cost.classifier_id in origins]
  cumulative_macs = cumulative_costs(
      [exit_cost.trunk_macs for exit_cost in dumped],
      [exit_cost.head_macs for exit_cost in dumped])
  cumulative_parameters = cumulative_costs(
      [exit_cost.trunk_parameters for exit_cost in dumped],
      [exit_cost.head_parameters for exit_cost in dumped])
  own_classifier = network.exits[-1]
  return collections.OrderedDict([
      ('format_version', FORMAT_VERSION),
      ('network', network_name(network.resnet_version, network.resnet_size))
  ] + [(field, getattr(network, field)) for field in _SHARED_FIELDS] + [
      ('exits', [collections.OrderedDict([
          ('classifier_id', exit_cost.classifier_id),
          ('trunk_macs', exit_cost.trunk_macs),
          ('head_macs', exit_cost.head_macs),
          ('cumulative_macs', macs),
          ('trunk_parameters', exit_cost.trunk_parameters),
          ('head_parameters', exit_cost.head_parameters),
          ('cumulative_parameters', parameters),
          ('origin', origins[exit_cost.classifier_id]),
      ]) for exit_cost, macs, parameters in zip(
          dumped, cumulative_macs, cumulative_parameters)]),
      ('plain_network_macs',
       own_classifier.trunk_macs + own_classifier.head_macs),
      ('plain_network_parameters',
       own_classifier.trunk_parameters + own_classifier.head_parameters),
  ])
