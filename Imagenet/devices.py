"""Which devices a run uses, and how TensorFlow is told of them."""

import contextlib
import math
import multiprocessing
import platform
import re
import typing

import numpy as np

from tf_compat import gpu_name, log, mirrored_strategy, tf

from shared_terminal import UserError


class Devices(typing.NamedTuple):
  """The devices of one process and how they are used."""
  num_gpus: int
  replicas: typing.List[str]  # Device names, a replica of the model on each.
  data_format: str            # 'channels_first' or 'channels_last'.
  inter_op_threads: int       # 0 for as many as there are cores.
  intra_op_threads: int
  input_threads: typing.Optional[int]   # None to share TensorFlow's.
  all_reduce_alg: typing.Optional[str]  # None for TensorFlow's choice.


def resolve(num_available_gpus, batch_size, num_gpus=None, cpu_replicas=0,
            data_format=None, uses_strategy=True, all_reduce_alg=None,
            gpu_thread_mode=None, inter_op_threads=0, intra_op_threads=0,
            input_threads=None, num_machines=1):
  """What the flags ask for, made definite: `Devices`.

  Args:
    num_available_gpus: that TensorFlow can use on this machine.
    batch_size: images in a step, over all replicas of all machines.
    num_gpus: None for one if there is one, -1 for all.
    cpu_replicas: replicas on the CPU instead of GPUs.
    data_format: None for what suits the devices.
    uses_strategy: False with --turn_off_distribution_strategy.
    num_machines: that train together.

  Raises:
    UserError: the devices are not there, or the batch does not divide.
  """
  if cpu_replicas and num_gpus:
    raise UserError(f'--cpu_replicas {cpu_replicas} and --num_gpus {num_gpus} '
                    'exclude each other')
  if cpu_replicas:
    num_gpus = 0
  elif num_gpus is None:
    num_gpus = min(num_available_gpus, 1)
  elif num_gpus == -1:
    num_gpus = num_available_gpus
  if num_gpus > num_available_gpus:
    raise UserError(
        f'--num_gpus {num_gpus}: GPUs of this machine that TensorFlow '
        f'{tf.VERSION} can use: {num_available_gpus or "none"}; pass '
        f'--num_gpus {num_available_gpus}')
  replicas = ([f'/gpu:{i}' for i in range(num_gpus)] or
              [f'/cpu:{i}' for i in range(cpu_replicas or 1)])
  if len(replicas) > 1 and not uses_strategy:
    raise UserError(f'--turn_off_distribution_strategy: {len(replicas)} '
                    'replicas need the strategy; ask for one')
  num_replicas = len(replicas) * num_machines
  if batch_size % num_replicas:
    raise UserError(
        f'--batch_size {batch_size}: not divisible by {num_replicas} replicas; '
        f'try {math.ceil(batch_size / num_replicas) * num_replicas}')
  if all_reduce_alg and not num_gpus:
    log.warning('--all_reduce_alg %s is for GPUs; running without',
                all_reduce_alg)
  if data_format == 'channels_first' and not num_gpus:
    log.warning('--data_format channels_first does not exist on a CPU; '
                'using channels_last, which gives the same')
    data_format = 'channels_last'
  if gpu_thread_mode == 'gpu_private' and num_gpus:
    # As the official code has it: one thread per GPU launches its kernels and
    # two watch them. On 16 cores with 4 GPUs that leaves 12 threads for other
    # operations and 4 for the input.
    num_cores = multiprocessing.cpu_count()
    inter_op_threads = inter_op_threads or max(num_cores - num_gpus, 1)
    input_threads = input_threads or max(num_cores - 3 * num_gpus, 1)
  return Devices(
      num_gpus, replicas,
      data_format or ('channels_first' if num_gpus else 'channels_last'),
      inter_op_threads, intra_op_threads, input_threads, all_reduce_alg)


def gpu_environment(gpu_thread_mode, num_gpus):
  """Environment variables to set before the first session, a dict."""
  # Faster 3x3 convolutions of half-precision and float maps on GPUs.
  environment = {'TF_ENABLE_WINOGRAD_NONFUSED': '1'}
  if gpu_thread_mode:
    environment['TF_GPU_THREAD_MODE'] = gpu_thread_mode
  if gpu_thread_mode == 'gpu_private' and num_gpus:
    environment['TF_GPU_THREAD_COUNT'] = '1'
  return environment


# To set before the first session where images leave: else cuDNN times its
# algorithms anew for every number of images left (tensorflow issue 5048).
CASCADE_ENVIRONMENT = {'TF_CUDNN_USE_AUTOTUNE': '0'}


def describe(devices):
  """What the computation runs on, for people: 'CPU, 2 cores, AMD EPYC ...'."""
  if devices.num_gpus:
    return f'{devices.num_gpus} GPU: {gpu_name()}'
  names = []
  with contextlib.suppress(OSError), open('/proc/cpuinfo') as stream:
    names = re.findall(r'^model name\s*: (.*)', stream.read(), re.M)
  return ', '.join(
      ['CPU', f'{multiprocessing.cpu_count()} cores'] + names[:1])


def versions():
  """What numbers and times depend on besides the device: a dict for JSON."""
  return {'python': platform.python_version(), 'tensorflow': tf.VERSION,
          'numpy': np.__version__}


def session_config(devices):
  """The `tf.ConfigProto` of every session."""
  return tf.ConfigProto(
      inter_op_parallelism_threads=devices.inter_op_threads,
      intra_op_parallelism_threads=devices.intra_op_threads,
      allow_soft_placement=True,
      device_count={'GPU': devices.num_gpus, 'CPU': len(devices.replicas)})


def strategy(devices):
  """The strategy over the replicas of this process; None for one replica."""
  if len(devices.replicas) == 1:
    return None
  return mirrored_strategy(devices.replicas, devices.all_reduce_alg)


def run_config(devices, random_seed, distribution, save_steps=None):
  """The Estimator's RunConfig.

  Args:
    devices: `Devices`.
    random_seed: of the graph; None for none.
    distribution: a strategy, or None for one replica.
    save_steps: from checkpoint to checkpoint; None for every ten minutes.
  """
  return tf.estimator.RunConfig(
      train_distribute=distribution, eval_distribute=distribution,
      session_config=session_config(devices), tf_random_seed=random_seed,
      save_checkpoints_steps=save_steps,
      save_checkpoints_secs=None if save_steps else 600)
