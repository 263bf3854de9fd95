"""Training by several machines: TensorFlow's MultiWorkerMirroredStrategy.

With tf2 only. Every machine runs the same command. TF_CONFIG, TensorFlow's own
variable, says which machines train together and which of them this one is:

    {"cluster": {"worker": ["host1:2222", "host2:2222"]},
     "task": {"type": "worker", "index": 0}}

The first worker is the chief, unless the cluster has a "chief". The chief
writes the checkpoints and all machines resume from them, so they need the same
model folder, on a file system that they share.
"""

import json
import os
import typing

from tf_compat import IS_TF1, multi_worker_strategy, tf

from shared_terminal import UserError

VARIABLE = 'TF_CONFIG'

# For the RunConfig. All machines take part when the chief saves, since each has
# moving averages of its own, so they must save at the same step.
STEPS_BETWEEN_CHECKPOINTS = 1000


class Cluster(typing.NamedTuple):
  """The machines that train together, and the place of this one."""
  num_workers: int
  index: int    # 0 is the chief.
  config: dict  # What TF_CONFIG holds.

  @property
  def is_chief(self):
    return self.index == 0


ONE_MACHINE = Cluster(1, 0, {})


def take_cluster(environ):
  """Removes TF_CONFIG from `environ` and returns what it says.

  If it stayed, every RunConfig would read it, and the chief could not
  evaluate, dump and export on its own.

  Returns:
    A `Cluster`; `ONE_MACHINE` if there are no others.

  Raises:
    UserError: TF_CONFIG is malformed, or this is tf1.
  """
  try:
    config = json.loads(environ.pop(VARIABLE, '').strip() or '{}')
    jobs = config.get('cluster', {})
    tasks = [(job, index) for job in ('chief', 'worker')
             for index in range(len(jobs.get(job, [])))]
    if len(tasks) < 2:
      return ONE_MACHINE
    task = config['task']
    place = tasks.index((task['type'], int(task['index'])))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
        f'{VARIABLE}: {error}; it must look like {{"cluster": {{"worker": '
        '["host1:2222", "host2:2222"]}, "task": {"type": "worker", '
        '"index": 0}}')
  if IS_TF1:
    raise UserError(f'{VARIABLE}: several machines train with tf2 only; unset '
                    'it, or run ./setup_env.sh tf2 on each')
  return Cluster(len(tasks), place, config)


def train(cluster, make_estimator, num_gpus, all_reduce_alg, input_fn, hooks,
          max_steps):
  """Trains with the other machines, in one stretch, to step `max_steps`.

  Call it once: TensorFlow's server has its port until the process ends. If a
  machine is lost, the others may wait for it for ever.

  Args:
    make_estimator: from the strategy for its RunConfig to an Estimator, which
      must save every `STEPS_BETWEEN_CHECKPOINTS`.
    num_gpus, all_reduce_alg: see `tf_compat.multi_worker_strategy`.
    input_fn: to a dataset of batches for one replica; TensorFlow says by its
      `input_context` which part of the records to read.
    hooks: of this machine; only the chief's may write into the model folder.
  """
  task = cluster.config['task']
  os.environ[VARIABLE] = json.dumps(cluster.config)
  try:
    estimator = make_estimator(multi_worker_strategy(
        cluster.config['cluster'], task['type'], int(task['index']), num_gpus,
        all_reduce_alg))
    # Unlike `Estimator.train`, this starts TensorFlow's server. In spite of
    # its name it does not evaluate when several workers train.
    tf.estimator.train_and_evaluate(
        estimator, tf.estimator.TrainSpec(input_fn, max_steps, hooks),
        tf.estimator.EvalSpec(input_fn))
  finally:
    del os.environ[VARIABLE]
  # Where the machines but the chief have saved what they had to compute.
  copies = os.path.join(
      estimator.model_dir, f'tmp_{task["type"]}_{task["index"]}')
  if not cluster.is_chief and tf.gfile.Exists(copies):
    tf.gfile.DeleteRecursively(copies)
