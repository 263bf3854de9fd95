"""TensorFlow 1.12 and 2.15 under one API, that of 1.12.

The only file that knows of another version. `tf` is the 1.12 API everywhere;
what the two releases do differently is a function here.
"""

import ctypes
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

# Options of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def _keep_freed_memory():
  """Lets TensorFlow use the memory of its large tensors again, on CPUs.

  Without oneDNN, which has an allocator of its own, it takes them from malloc,
  and glibc gives blocks of 32 MB and more back to the system as soon as they
  are freed. So ResNet-50 had 3 GB of pages zeroed for each batch of 32; without
  that 1.12 is 1.4 times as fast on two cores, and takes no more memory.

  Only the main arena can grow to such blocks, so all threads share it and its
  lock. On a GPU machine that might cost more than it saves, and the GPU has an
  allocator of its own. Call it before any thread allocates: a thread keeps its
  arena.
  """
  libc = ctypes.CDLL(None)
  if hasattr(libc, 'mallopt'):
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, -1)
    libc.mallopt(_TOP_PAD, 1 << 28)
    libc.mallopt(_ARENA_MAX, 1)


def _has_onednn():
  """Whether oneDNN is in use: never in 1.12, in 2.15 on newer processors."""
  if IS_TF1:
    return False
  from tensorflow.python.util import _pywrap_util_port
  return _pywrap_util_port.IsMklEnabled()


if IS_TF1:
  tf = tensorflow
else:
  from tensorflow.compat import v1 as tf
  tf.disable_v2_behavior()
if not (tf.test.is_built_with_cuda() or _has_onednn()):
  _keep_freed_memory()


log = logging.getLogger('cascade')  # Ours, apart from TensorFlow's.


def configure_logging(level=logging.INFO):
  """Sends our own log from `level` on, and TensorFlow's warnings, to stderr."""
  for logger, lowest in ((log, level),
                         (logging.getLogger('tensorflow'), logging.WARNING)):
    logger.setLevel(lowest)
    logger.propagate = False  # Else absl prints every line a second time.
    logger.handlers = [logging.StreamHandler()]


def num_local_gpus():
  """GPUs that this TensorFlow can use."""
  if IS_TF1:
    from tensorflow.python.client import device_lib
    return sum(device.device_type == 'GPU'
               for device in device_lib.list_local_devices())
  return len(tensorflow.config.list_physical_devices('GPU'))


def gpu_name():
  """What the first GPU calls itself, such as 'name: Tesla V100 ...'."""
  from tensorflow.python.client import device_lib
  return next(device.physical_device_desc
              for device in device_lib.list_local_devices()
              if device.device_type == 'GPU')


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
  reduction = 'ReductionToOneDevice' if on_cpus else {
      'nccl': 'NcclAllReduce',
      'hierarchical_copy': 'HierarchicalCopyAllReduce'}.get(all_reduce_alg)
  return tf.distribute.MirroredStrategy(
      devices, reduction and getattr(tf.distribute, reduction)())


def multi_worker_strategy(jobs, task_type, task_index, num_gpus,
                          all_reduce_alg=None):
  """The strategy of synchronous training on several machines, of 2.15 only.

  Args:
    jobs: the cluster, a dict from task type to a list of 'host:port'.
    task_type, task_index: of this machine, such as 'worker' and 0.
    num_gpus: replicas on this machine; 0 for one on the CPU.
    all_reduce_alg: 'nccl', or None for TensorFlow's choice.
  """
  distribute = tf.distribute
  communication = distribute.experimental.CommunicationImplementation
  # Unlike the default resolver this one does not take all GPUs there are.
  resolver = distribute.cluster_resolver.SimpleClusterResolver(
      tf.train.ClusterSpec(jobs), task_type=task_type, task_id=task_index,
      num_accelerators={'GPU': num_gpus}, rpc_layer='grpc')
  return distribute.experimental.MultiWorkerMirroredStrategy(
      communication.NCCL if all_reduce_alg == 'nccl' else communication.AUTO,
      resolver)


def private_threadpool(dataset, num_threads):
  """Runs the parallel parts of `dataset` on `num_threads` threads of its own."""
  if IS_TF1:
    from tensorflow.contrib.data.python.ops import threadpool
    return threadpool.override_threadpool(dataset, threadpool.PrivateThreadPool(
        num_threads, display_name='input_pipeline_thread_pool'))
  options = tf.data.Options()
  options.threading.private_threadpool_size = num_threads
  return dataset.with_options(options)
