"""`cascade.json`: which network the dumps of a folder are of, and its cost.

It lies beside the dumps, is written when they are complete, and tells the
analysis what it costs to leave at each classifier. A run dumps one classifier,
as published, so runs share the file: each puts in its own classifier and keeps
the others.

Nothing here needs TensorFlow, so that the analysis shares the format.
"""

import collections
import contextlib
import json
import os

import softmax_dump
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


def load(path, remedy):
  """Reads a JSON object of this format's version; checks no more than that.

  Args:
    path: of the file.
    remedy: what to do if it is another file, for the message.

  Returns:
    A dict.

  Raises:
    UserError: the file cannot be read or is another.
  """
  try:
    with open(path, encoding='utf-8') as stream:
      record = json.load(stream)
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


def check_folder(folder, network):
  """Checks, before any work, that the dumps of a folder are of this network.

  Args:
    folder: an existing folder.
    network: the `Network` that will be dumped.

  Raises:
    UserError: they are of another network, or the file is of something else.
  """
  _dumped_checkpoints(folder, network)


def write(folder, network, classifier_id, checkpoint, versions):
  """Puts a classifier whose dumps are complete into the folder's record.

  Args:
    folder: of the dumps.
    network: the `Network` they are of.
    classifier_id: the classifier.
    checkpoint: its path, for people.
    versions: a dict from software to version, of this run.

  Raises:
    UserError: as for `check_folder`; or the file cannot be written.
  """
  path = os.path.join(folder, FILE_NAME)
  unfinished_path = '{}.clf{}{}'.format(
      path, classifier_id, softmax_dump.UNFINISHED_SUFFIX)
  try:
    with _locked(folder):
      checkpoints = _dumped_checkpoints(folder, network)
      checkpoints[classifier_id] = checkpoint
      with open(unfinished_path, 'w') as stream:
        json.dump(_record(network, checkpoints, versions), stream, indent=2)
        stream.write('\n')
        stream.flush()
        os.fsync(stream.fileno())
      os.replace(unfinished_path, path)
  except OSError as error:
    raise UserError('{}: cannot be written ({}); the dumps beside it are '
                    'complete'.format(path, error.strerror))
  finally:
    if os.path.exists(unfinished_path):
      os.remove(unfinished_path)


@contextlib.contextmanager
def _locked(folder):
  """Keeps a run for another classifier, ending at this moment, waiting."""
  import fcntl  # Not there on Windows, where nothing is dumped.
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
  finally:
    os.close(descriptor)


def _dumped_checkpoints(folder, network):
  """Classifiers that the folder holds dumps of, as its record has them.

  An entry whose dumps were removed counts for nothing.

  Returns:
    A dict from classifier to the path of its checkpoint.
  """
  path = os.path.join(folder, FILE_NAME)
  if not os.path.exists(path):
    return {}
  record = load(path, _RUN_REMEDY)
  try:
    recorded = {entry['classifier_id']: entry['checkpoint']
                for entry in record['exits']}
    recorded_fields = [record[field] for field in _SHARED_FIELDS]
  except (KeyError, TypeError):
    raise UserError('{}: not written by this program; {}'.format(
        path, _RUN_REMEDY))
  checkpoints = {
      exit_cost.classifier_id: recorded[exit_cost.classifier_id]
      for exit_cost in network.exits
      if exit_cost.classifier_id in recorded and any(
          softmax_dump.holds_dump(folder, exit_cost.classifier_id, split)
          for split in softmax_dump.SPLITS)}
  if checkpoints:
    for field, value in zip(_SHARED_FIELDS, recorded_fields):
      if value != getattr(network, field):
        raise UserError(
            '--softmax_dir {}: holds dumps of another network ({} {}, here '
            '{}); classifiers of one cascade are dumped from the same network: '
            'remove the old dumps or name another folder'.format(
                folder, field, value, getattr(network, field)))
  return checkpoints


def _record(network, checkpoints, versions):
  """The content of the file, ready for JSON.

  Args:
    network: a `Network`.
    checkpoints: a dict from each classifier dumped to its checkpoint.
    versions: a dict.

  Returns:
    A dict, in the order in which people read it.
  """
  dumped = [exit_cost for exit_cost in network.exits
            if exit_cost.classifier_id in checkpoints]
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
          ('checkpoint', checkpoints[exit_cost.classifier_id]),
      ]) for exit_cost, macs, parameters in zip(
          dumped, cumulative_macs, cumulative_parameters)]),
      ('plain_network_macs',
       own_classifier.trunk_macs + own_classifier.head_macs),
      ('plain_network_parameters',
       own_classifier.trunk_parameters + own_classifier.head_parameters),
      ('versions', versions),
  ])
