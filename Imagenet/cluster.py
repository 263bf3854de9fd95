"""TF_CONFIG: which machines train together, and which of them this one is.

TensorFlow's own variable, a JSON object such as

    {"cluster": {"worker": ["host1:2222", "host2:2222"]},
     "task": {"type": "worker", "index": 0}}

or with one "chief" and the others as "worker". The cluster is the same text on
every machine and the task differs. One process runs on each machine.
"""

import collections
import json

from user_error import UserError

VARIABLE = 'TF_CONFIG'

_TASK_TYPES = ('chief', 'worker')

# `addresses`: 'host:port' of every worker, the chief's first; `index`: of this
# one among them; `jobs`: the cluster as TF_CONFIG has it.
Cluster = collections.namedtuple(
    'Cluster', 'num_workers index is_chief addresses jobs task_type task_index')

ONE_MACHINE = Cluster(1, 0, True, (), {}, None, 0)


def take_from_environment(environment):
  """The cluster that TF_CONFIG describes; `ONE_MACHINE` where it is not set.

  Takes the variable out: the Estimator would read it as well, in each of its
  RunConfigs, and evaluate, dump and export as a part of the cluster, which
  the chief does alone.

  Args:
    environment: `os.environ`.

  Returns:
    A `Cluster`.

  Raises:
    UserError: TF_CONFIG is not what it should be.
  """
  text = environment.pop(VARIABLE, '').strip()
  return parse(text) if text else ONE_MACHINE


def parse(text):
  """The cluster that the text of TF_CONFIG describes.

  Raises:
    UserError: it is not what it should be; says where.
  """
  try:
    config = json.loads(text)
  except ValueError as error:
    raise UserError('{}: not JSON ({})'.format(VARIABLE, error))
  if not isinstance(config, dict):
    raise UserError('{}: must be a JSON object with "cluster" and "task"'
                    .format(VARIABLE))
  jobs = _parse_jobs(config.get('cluster', {}))
  if not jobs:
    return ONE_MACHINE  # As TensorFlow has it: a task alone is no cluster.
  task_type, task_index = _parse_task(config.get('task'), jobs)
  addresses = tuple(jobs.get('chief', []) + jobs.get('worker', []))
  index = task_index
  if task_type == 'worker':
    index += len(jobs.get('chief', []))
  if len(addresses) == 1:
    return ONE_MACHINE
  return Cluster(len(addresses), index, index == 0, addresses, jobs, task_type,
                 task_index)


def _parse_jobs(jobs):
  """A dict from task type to addresses, checked."""
  if not isinstance(jobs, dict):
    raise UserError('{}: "cluster" must be an object such as '
                    '{{"worker": ["host1:2222", "host2:2222"]}}'.format(
                        VARIABLE))
  seen = set()
  for task_type in sorted(jobs):
    if task_type not in _TASK_TYPES:
      raise UserError(
          '{}: "cluster" has the task type {}; the machines are "worker", and '
          'one of them may be "chief"'.format(VARIABLE, json.dumps(task_type)))
    addresses = jobs[task_type]
    if not isinstance(addresses, list):
      raise UserError('{}: "{}" must be a list of "host:port"'.format(
          VARIABLE, task_type))
    for address in addresses:
      if not _is_address(address):
        raise UserError('{}: {} in "{}" must be "host:port"'.format(
            VARIABLE, json.dumps(address), task_type))
      if address in seen:
        raise UserError('{}: {} comes twice; each worker has its own'.format(
            VARIABLE, address))
      seen.add(address)
  if len(jobs.get('chief', [])) > 1:
    raise UserError('{}: there can be one "chief" only, not {}'.format(
        VARIABLE, len(jobs['chief'])))
  return {task_type: jobs[task_type] for task_type in jobs if jobs[task_type]}


def _is_address(address):
  if not isinstance(address, str):
    return False
  host, _, port = address.rpartition(':')
  return bool(host) and port.isdigit() and 0 < int(port) < 65536


def _parse_task(task, jobs):
  """(task type, index), checked."""
  if not isinstance(task, dict) or not {'type', 'index'} <= set(task):
    raise UserError('{}: lacks "task", such as {{"type": "worker", "index": 0}}'
                    ', which says which machine this is'.format(VARIABLE))
  task_type, index = task['type'], task['index']
  if task_type not in list(jobs):  # It may be of any type, hashable or not.
    raise UserError('{}: "task" has the type {}; "cluster" has {}'.format(
        VARIABLE, json.dumps(task_type),
        ', '.join('"{}"'.format(job) for job in sorted(jobs))))
  if isinstance(index, str) and index.isdigit():
    index = int(index)  # As some job schedulers write it.
  num_tasks = len(jobs[task_type])
  if type(index) is not int or not 0 <= index < num_tasks:  # pylint: disable=unidiomatic-typecheck
    raise UserError('{}: "task" has the index {}; "{}" of "cluster" has {} '
                    '(0 to {})'.format(VARIABLE, json.dumps(task['index']),
                                       task_type, num_tasks, num_tasks - 1))
  return task_type, index


def check_flags(cluster, flags_obj, num_local_replicas):
  """Refuses flags that do not fit several machines.

  Args:
    cluster: a `Cluster`.
    flags_obj: the parsed flags.
    num_local_replicas: of this machine; every machine has as many.

  Raises:
    UserError: names the flag.
  """
  if cluster.num_workers == 1:
    return
  if flags_obj.eval_only or not flags_obj.train_epochs:
    raise UserError('{}: several machines can train, and one evaluates and '
                    'dumps; unset the variable'.format(VARIABLE))
  if flags_obj.cpu_replicas > 1:
    raise UserError('--cpu_replicas {}: not with {}, where each machine has '
                    'its GPUs or one CPU'.format(
                        flags_obj.cpu_replicas, VARIABLE))
  if flags_obj.turn_off_distribution_strategy:
    raise UserError('--turn_off_distribution_strategy: not with {}; several '
                    'machines need the strategy'.format(VARIABLE))
  num_replicas = cluster.num_workers * num_local_replicas
  if flags_obj.batch_size % num_replicas:
    raise UserError(
        '--batch_size {}: not divisible by {} replicas ({} machines of {} with '
        '{} each); try {}'.format(
            flags_obj.batch_size, num_replicas, cluster.num_workers, VARIABLE,
            num_local_replicas,
            -(-flags_obj.batch_size // num_replicas) * num_replicas))


def records_of_worker(shards, cluster):
  """Which records a worker trains on, of those of all shards.

  Args:
    shards: paths, the same on every machine.
    cluster: a `Cluster`.

  Returns:
    (paths of the shards to read, whether to take every `num_workers`-th
    record of them alone, from `index` on: there are fewer shards than workers)
  """
  if len(shards) < cluster.num_workers:
    return shards, True
  return shards[cluster.index::cluster.num_workers], False
