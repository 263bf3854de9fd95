"""Which devices a run uses, and how TensorFlow is told of them."""

import collections
import multiprocessing

from tf_compat import mirrored_strategy, tf

from user_error import UserError

_SECONDS_BETWEEN_CHECKPOINTS = 600

# `replicas`: device names, one replica of the model on each.
Devices = collections.namedtuple('Devices', 'num_gpus replicas data_format')


def resolve_devices(flags_obj, num_available_gpus):
  """The devices and the data format that the flags ask for.

  Raises:
    UserError: they are not there, or the batch does not divide among them.
  """
  num_gpus = flags_obj.num_gpus
  if num_gpus is None:
    num_gpus = min(num_available_gpus, 1)
  elif num_gpus == -1:
    num_gpus = num_available_gpus
  if flags_obj.cpu_replicas and flags_obj.num_gpus:
    raise UserError('--cpu_replicas {} and --num_gpus {} exclude each other'
                    .format(flags_obj.cpu_replicas, flags_obj.num_gpus))
  if num_gpus > num_available_gpus:
    raise UserError(
        '--num_gpus {}: GPUs of this machine that TensorFlow {} can use: {}; '
        'pass --num_gpus {}'.format(
            num_gpus, tf.VERSION, num_available_gpus or 'none',
            num_available_gpus))
  if flags_obj.cpu_replicas:
    num_gpus = 0
    replicas = ['/cpu:{}'.format(i) for i in range(flags_obj.cpu_replicas)]
  else:
    replicas = (['/gpu:{}'.format(i) for i in range(num_gpus)] or ['/cpu:0'])
  if len(replicas) > 1 and flags_obj.turn_off_distribution_strategy:
    raise UserError('--turn_off_distribution_strategy: {} replicas need the '
                    'strategy; ask for one'.format(len(replicas)))
  if flags_obj.batch_size % len(replicas):
    raise UserError(
        '--batch_size {}: not divisible by {} replicas (--{}); try {}'.format(
            flags_obj.batch_size, len(replicas),
            'cpu_replicas' if flags_obj.cpu_replicas else 'num_gpus',
            -(-flags_obj.batch_size // len(replicas)) * len(replicas)))
  if flags_obj.all_reduce_alg and not num_gpus:
    tf.logging.warning('--all_reduce_alg %s is for GPUs; going on without',
                       flags_obj.all_reduce_alg)
  data_format = flags_obj.data_format
  if data_format == 'channels_first' and not num_gpus:
    tf.logging.warning('--data_format channels_first does not exist on a CPU; '
                       'going on with channels_last, which gives the same')
    data_format = 'channels_last'
  if data_format is None:
    data_format = 'channels_first' if num_gpus else 'channels_last'
  return Devices(num_gpus, replicas, data_format)


def gpu_thread_settings(flags_obj, num_gpus):
  """What --tf_gpu_thread_mode implies, as the official code has it.

  Returns:
    (environment variables to set, inter-op threads, private threads of the
    input pipeline or None)
  """
  inter_op_threads = flags_obj.inter_op_parallelism_threads
  private_threads = flags_obj.datasets_num_private_threads
  # Faster 3x3 convolutions of half-precision and float maps on GPUs.
  environment = {'TF_ENABLE_WINOGRAD_NONFUSED': '1'}
  if flags_obj.tf_gpu_thread_mode:
    environment['TF_GPU_THREAD_MODE'] = flags_obj.tf_gpu_thread_mode
  if flags_obj.tf_gpu_thread_mode == 'gpu_private' and num_gpus:
    # One thread per GPU to launch its kernels and two to watch them; the
    # cores that are left do the rest.
    num_cores = multiprocessing.cpu_count()
    environment['TF_GPU_THREAD_COUNT'] = '1'
    inter_op_threads = inter_op_threads or max(num_cores - num_gpus, 1)
    private_threads = private_threads or max(num_cores - 3 * num_gpus, 1)
  return environment, inter_op_threads, private_threads


def run_config(flags_obj, devices, inter_op_threads, distributed,
               training_cluster=None):
  """The Estimator's RunConfig.

  Args:
    flags_obj: the parsed flags.
    devices: of `resolve_devices`.
    inter_op_threads: of `gpu_thread_settings`.
    distributed: whether several replicas share the work.
    training_cluster: a `TrainingCluster` to train with; None for this machine
      alone.
  """
  strategy = None
  if training_cluster is not None:
    strategy = training_cluster.strategy
  elif distributed and len(devices.replicas) > 1:
    strategy = mirrored_strategy(devices.replicas, flags_obj.all_reduce_alg)
  return tf.estimator.RunConfig(
      train_distribute=strategy, eval_distribute=strategy,
      session_config=(
          session_config(flags_obj, devices, inter_op_threads)
          if training_cluster is None else training_cluster.session_config),
      tf_random_seed=flags_obj.random_seed,
      save_checkpoints_secs=_SECONDS_BETWEEN_CHECKPOINTS)


def session_config(flags_obj, devices, inter_op_threads):
  """The `tf.ConfigProto` of every session; arguments as for `run_config`."""
  return tf.ConfigProto(
      inter_op_parallelism_threads=inter_op_threads,
      intra_op_parallelism_threads=flags_obj.intra_op_parallelism_threads,
      allow_soft_placement=True,
      device_count={'GPU': devices.num_gpus,
                    'CPU': max(flags_obj.cpu_replicas, 1)})
