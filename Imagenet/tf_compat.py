"""TensorFlow 1.12 and 2.15 under one API, that of 1.12.

The only file that knows of another version, with `multi_worker_tf1.py` and
`multi_worker_tf2.py` that it imports. `tf` is the 1.12 API everywhere; what the
two releases do differently is a function here.
"""

import logging
import os
import warnings

# Read when TensorFlow is loaded: no lines about CPU features and missing CUDA.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import tensorflow  # pylint: disable=wrong-import-position

IS_TF1 = tensorflow.__version__.startswith('1.')

# No warning for each 1.x name used; this project uses them on purpose.
from tensorflow.python.util import deprecation  # pylint: disable=wrong-import-position
deprecation._PRINT_DEPRECATION_WARNINGS = False  # pylint: disable=protected-access
warnings.filterwarnings('ignore', '`tf.layers', UserWarning)
warnings.filterwarnings('ignore', 'To make it possible to preserve tf.data',
                        UserWarning)

if IS_TF1:
  tf = tensorflow
else:
  from tensorflow.compat import v1 as tf
  tf.disable_v2_behavior()


# Lines of the Estimator that say nothing about this run.
_UNINFORMATIVE = (
    'Using config', 'Calling model_fn', 'Done calling model_fn', 'Graph was ',
    'Running local_init_op', 'Done running local_init_op', 'Create Checkpoint',
    'Calling checkpoint listeners', 'Inference Time', 'Saving dict for',
    "Saving 'checkpoint_path'", 'Starting evaluation', 'Finished evaluation',
    'Initialize variable', 'No assets', 'Assets added', 'Signatures ',
    'SavedModel written', 'Restoring parameters', 'Initializing RunConfig',
    'Not using Distribute', 'Configured nccl', 'batch_all_reduce', 'Using Mirr',
    'Reduce to /', 'Error reported to Coordinator', 'Loss for final step',
    'Device is available but', 'Finalize system', 'Creating chief session',
    'all_hooks', 'Collective ', 'CollectiveAllReduce', 'Check health',
    'Multi-worker Coll', 'MultiWorkerMirrored', 'An error was raised. This',
    # `training_hooks.TrainingProgressHook` tells these, less often.
    'loss = ', 'global_step/sec',
)


def configure_logging():
  """TensorFlow's log on stderr, one line per message, and only what matters."""
  tf.logging.set_verbosity(tf.logging.INFO)
  logger = logging.getLogger('tensorflow')
  logger.propagate = False  # Else absl prints every line a second time.
  logger.handlers = [logging.StreamHandler()]
  logger.addFilter(
      lambda record: not record.getMessage().startswith(_UNINFORMATIVE))


def num_local_gpus():
  """GPUs that this TensorFlow can use."""
  if IS_TF1:
    from tensorflow.python.client import device_lib
    return sum(device.device_type == 'GPU'
               for device in device_lib.list_local_devices())
  return len(tensorflow.config.list_physical_devices('GPU'))


def mirrored_strategy(devices, all_reduce_alg=None):
  """MirroredStrategy over `devices`, such as ['/gpu:0', '/gpu:1'].

  Args:
    devices: one replica on each; all GPUs or all CPUs.
    all_reduce_alg: 'nccl', 'hierarchical_copy' (the two that 1.12 has), or
      None for the strategy's own choice. On CPUs there is only one way, and
      naming it spares warnings that devices are missing, which they are not.
  """
  on_cpus = devices[0].startswith('/cpu')
  if IS_TF1:
    distribute = tf.contrib.distribute
    if on_cpus:
      reduction = distribute.ReductionToOneDeviceCrossTowerOps()
    else:
      reduction = all_reduce_alg and distribute.AllReduceCrossTowerOps(
          all_reduce_alg, num_packs=len(devices))
    return distribute.MirroredStrategy(
        devices=devices, cross_tower_ops=reduction)
  distribute = tf.distribute
  if on_cpus:
    reduction = distribute.ReductionToOneDevice()
  else:
    reduction = {
        None: lambda: None,
        'nccl': distribute.NcclAllReduce,
        'hierarchical_copy': distribute.HierarchicalCopyAllReduce,
    }[all_reduce_alg]()
  return distribute.MirroredStrategy(devices, reduction)


def multi_worker_strategy(cluster, num_gpus, all_reduce_alg=None):
  """The strategy of synchronous training on several machines.

  Args:
    cluster: a `cluster.Cluster` of several workers.
    num_gpus: replicas on this machine; 0 for one on the CPU.
    all_reduce_alg: as for `mirrored_strategy`. Between machines 1.12 has one
      way only, and 2.15 NCCL or its own choice.
  """
  if IS_TF1:
    import multi_worker_tf1
    return multi_worker_tf1.MultiWorkerStrategy(cluster, num_gpus)
  import multi_worker_tf2
  return multi_worker_tf2.MultiWorkerStrategy(
      cluster, num_gpus, all_reduce_alg)


def as_worker(strategy, cluster, session_config):
  """A context in which `Estimator.train` trains as a part of the cluster.

  It is the one that `train_and_evaluate` makes for `train`. That function will
  not do: with several workers it trains once and does not evaluate.

  Args:
    strategy: of `multi_worker_strategy`, also the RunConfig's.
    cluster: a `cluster.Cluster`.
    session_config: a ConfigProto that the strategy has configured.
  """
  from tensorflow.python.distribute import distribute_coordinator

  class Worker(distribute_coordinator._WorkerContext):  # pylint: disable=protected-access

    @property
    def should_save_summary(self):
      return self.is_chief  # In 2.15 all workers would, into the same folder.

  return Worker(strategy, tf.train.ClusterSpec(cluster.jobs),
                cluster.task_type, cluster.task_index,
                session_config=session_config)


def private_threadpool(dataset, num_threads):
  """Runs the parallel parts of `dataset` on `num_threads` threads of its own."""
  if IS_TF1:
    from tensorflow.contrib.data.python.ops import threadpool
    return threadpool.override_threadpool(dataset, threadpool.PrivateThreadPool(
        num_threads, display_name='input_pipeline_thread_pool'))
  options = tf.data.Options()
  options.threading.private_threadpool_size = num_threads
  return dataset.with_options(options)
