"""Training by several machines; the work is TensorFlow's.

Every machine runs the same command. TF_CONFIG, TensorFlow's own variable, says
which machines train together and which of them this one is:

    {"cluster": {"worker": ["host1:2222", "host2:2222"]},
     "task": {"type": "worker", "index": 0}}

The first worker is the chief, unless the cluster has a "chief". Each machine
has all variables and applies the mean gradient of all replicas. The chief
writes the checkpoints and all machines resume from them, so they need the same
model folder, on a file system that they share.
"""

import json
import os
import socket
import typing

from tf_compat import multi_worker_strategy, tf

from user_error import UserError

VARIABLE = 'TF_CONFIG'

# For the RunConfig. On tf2 all machines take part when the chief saves, since
# each has moving averages of its own, so they must save at the same step.
STEPS_BETWEEN_CHECKPOINTS = 1000


class Cluster(typing.NamedTuple):
  """The machines that train together, and the place of this one."""
  num_workers: int
  index: int  # 0 is the chief.
  port: int  # Of this machine's TensorFlow server.
  config: dict  # What TF_CONFIG holds.

  @property
  def is_chief(self):
    return self.index == 0


ONE_MACHINE = Cluster(1, 0, 0, {})


class InputContext(typing.NamedTuple):
  """Which part of the training records to read, in TensorFlow's names."""
  num_input_pipelines: int
  input_pipeline_id: int


def take_cluster(environ):
  """Removes TF_CONFIG from `environ` and returns what it says.

  If it stayed, every RunConfig would read it, and the chief could not
  evaluate, dump and export on its own.

  Returns:
    A `Cluster`; `ONE_MACHINE` if there are no others.

  Raises:
    UserError: TF_CONFIG is malformed.
  """
  try:
    config = json.loads(environ.pop(VARIABLE, '').strip() or '{}')
    jobs = tf.train.ClusterSpec(config.get('cluster', {})).as_dict()
    tasks = [(job, index) for job in ('chief', 'worker')
             for index in range(len(jobs.get(job, [])))]
    if len(tasks) < 2:
      return ONE_MACHINE
    task = config.get('task', {})
    job, index = task.get('type'), int(task.get('index', -1))
    if (job, index) not in tasks:
      raise ValueError('"task" must be one of "cluster"')
    port = int(jobs[job][index].rpartition(':')[2])
    return Cluster(len(tasks), tasks.index((job, index)), port, config)
  except (AttributeError, TypeError, ValueError) as error:
    raise UserError(
        f'{VARIABLE}: {error}; it must look like {{"cluster": {{"worker": '
        '["host1:2222", "host2:2222"]}, "task": {"type": "worker", '
        '"index": 0}}')


def train(cluster, make_estimator, num_gpus, all_reduce_alg, input_fn, hooks,
          max_steps):
  """Trains with the other machines, in one stretch, to step `max_steps`.

  Call it once: TensorFlow's server has its port until the process ends. If a
  machine is lost, the others may wait for it for ever.

  Args:
    cluster: a `Cluster` of several machines.
    make_estimator: from the strategy for its RunConfig to an Estimator, which
      must save every `STEPS_BETWEEN_CHECKPOINTS`.
    num_gpus: replicas on this machine; 0 for one on the CPU.
    all_reduce_alg: see `tf_compat.multi_worker_strategy`.
    input_fn: from the keyword `input_context`, an `InputContext`, to a dataset
      of batches for one replica.
    hooks: of this machine; only the chief's may write into the model folder.
    max_steps: the global step at which training ends.

  Raises:
    UserError: another process has the port.
  """
  _check_port(cluster.port)
  context = InputContext(cluster.num_workers, cluster.index)
  job, index = cluster.config['task']['type'], int(
      cluster.config['task']['index'])
  os.environ[VARIABLE] = json.dumps(cluster.config)
  try:
    estimator = make_estimator(multi_worker_strategy(
        cluster.config['cluster'], job, index, num_gpus, all_reduce_alg))
    # Unlike `Estimator.train`, this starts TensorFlow's server. In spite of
    # its name it does not evaluate when several workers train.
    tf.estimator.train_and_evaluate(
        estimator,
        tf.estimator.TrainSpec(
            lambda: input_fn(input_context=context), max_steps, hooks),
        tf.estimator.EvalSpec(input_fn))
  finally:
    del os.environ[VARIABLE]
  # Where tf2 has saved what this machine had to compute with the chief.
  copies = os.path.join(estimator.model_dir, f'tmp_{job}_{index}')
  if not cluster.is_chief and tf.gfile.Exists(copies):
    tf.gfile.DeleteRecursively(copies)


def _check_port(port):
  """Raises UserError if another process listens on a port of this machine.

  TensorFlow's server would share it without a word, for instance with an
  earlier run that still waits for a lost machine.
  """
  with socket.socket() as probe:
    # Connections of an earlier run that are still closing do no harm.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind(('', port))
    except OSError as error:
      raise UserError(f'{VARIABLE}: port {port}: {error.strerror}; is an '
                      'earlier run still waiting on this machine?')
