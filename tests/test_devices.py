"""Which devices the flags give, on machines with any number of GPUs."""

import multiprocessing

import pytest

import command_line
import devices
from tf_compat import mirrored_strategy, tf
from user_error import UserError

CPU = ['/cpu:0']


def resolve(num_available_gpus, *args):
  return devices.resolve_devices(command_line.parse(*args), num_available_gpus)


@pytest.mark.parametrize('num_available, args, num_gpus, replicas', [
    # Without --num_gpus: one GPU if there is one.
    (0, [], 0, CPU),
    (1, [], 1, ['/gpu:0']),
    (4, [], 1, ['/gpu:0']),
    # All there are.
    (0, ['--num_gpus', '-1'], 0, CPU),
    (1, ['-ng', '-1'], 1, ['/gpu:0']),
    (3, ['--num_gpus=-1', '-bs', 33], 3, ['/gpu:0', '/gpu:1', '/gpu:2']),
    # None, though there are some.
    (0, ['--num_gpus', 0], 0, CPU),
    (2, ['--num_gpus', 0], 0, CPU),
    (4, ['--num_gpus', 1], 1, ['/gpu:0']),
    (4, ['--num_gpus', 2], 2, ['/gpu:0', '/gpu:1']),
    (4, ['--num_gpus', 4], 4, ['/gpu:0', '/gpu:1', '/gpu:2', '/gpu:3']),
    # Replicas on the CPU, whatever GPUs there are.
    (0, ['--cpu_replicas', 1], 0, CPU),
    (0, ['--cpu_replicas', 2], 0, ['/cpu:0', '/cpu:1']),
    (4, ['--cpu_replicas', 2], 0, ['/cpu:0', '/cpu:1']),
    (4, ['--cpu_replicas', 2, '--num_gpus', 0], 0, ['/cpu:0', '/cpu:1']),
    # One replica needs no strategy.
    (0, ['--turn_off_distribution_strategy'], 0, CPU),
    (4, ['--turn_off_distribution_strategy'], 1, ['/gpu:0']),
    (4, ['--turn_off_distribution_strategy', '--num_gpus', 1], 1, ['/gpu:0']),
])
def test_replicas(num_available, args, num_gpus, replicas):
  resolved = resolve(num_available, *args)
  assert resolved.num_gpus == num_gpus
  assert resolved.replicas == replicas


@pytest.mark.parametrize('num_available, args, names', [
    (0, ['--num_gpus', 4], ['--num_gpus 4', 'none', '--num_gpus 0']),
    (1, ['--num_gpus', 2], ['--num_gpus 2', '1', '--num_gpus 1']),
    (2, ['--num_gpus', 4], ['--num_gpus 4', '2', '--num_gpus 2']),
    (2, ['--num_gpus', 2, '--cpu_replicas', 2],
     ['--cpu_replicas 2', '--num_gpus 2']),
    (2, ['--num_gpus', -1, '--cpu_replicas', 2],
     ['--cpu_replicas 2', '--num_gpus -1']),
    (2, ['--num_gpus', 2, '--turn_off_distribution_strategy'],
     ['--turn_off_distribution_strategy', '2 replicas']),
    (2, ['--num_gpus', -1, '--turn_off_distribution_strategy'],
     ['--turn_off_distribution_strategy', '2 replicas']),
    (0, ['--cpu_replicas', 2, '--turn_off_distribution_strategy'],
     ['--turn_off_distribution_strategy']),
    (4, ['--num_gpus', 3], ['--batch_size 32', '(--num_gpus)', 'try 33']),
    (4, ['--num_gpus', 4, '-bs', 2], ['--batch_size 2', 'try 4']),
    (0, ['--cpu_replicas', 2, '-bs', 5],
     ['--batch_size 5', '(--cpu_replicas)', 'try 6']),
])
def test_what_is_refused(num_available, args, names):
  with pytest.raises(UserError) as error:
    resolve(num_available, *args)
  message = str(error.value)
  assert '\n' not in message
  for name in names:
    assert name in message


@pytest.mark.parametrize('num_available, args, data_format', [
    (0, [], 'channels_last'),
    (1, [], 'channels_first'),
    (1, ['--num_gpus', 0], 'channels_last'),
    (1, ['--cpu_replicas', 2], 'channels_last'),
    (1, ['--data_format', 'channels_last'], 'channels_last'),
    (1, ['-df', 'channels_first'], 'channels_first'),
    (0, ['--data_format', 'channels_last'], 'channels_last'),
    (0, ['--data_format', 'channels_first'], 'channels_last'),
    (1, ['--data_format', 'channels_first', '--num_gpus', 0], 'channels_last'),
    (2, ['--data_format', 'channels_first', '--cpu_replicas', 2],
     'channels_last'),
])
def test_data_format(monkeypatch, num_available, args, data_format):
  warnings = []
  monkeypatch.setattr(tf.logging, 'warning',
                      lambda message, *values: warnings.append(message))
  assert resolve(num_available, *args).data_format == data_format
  told_otherwise = 'channels_first' in args and data_format == 'channels_last'
  assert len(warnings) == told_otherwise
  if told_otherwise:
    assert 'channels_first' in warnings[0]


@pytest.mark.parametrize('num_available, num_warnings', [(0, 1), (2, 0)])
def test_all_reduce_is_for_gpus(monkeypatch, num_available, num_warnings):
  warnings = []
  monkeypatch.setattr(tf.logging, 'warning',
                      lambda message, *values: warnings.append(message))
  resolve(num_available, '--all_reduce_alg', 'nccl')
  assert len(warnings) == num_warnings
  assert all('--all_reduce_alg' in message for message in warnings)


def test_flags_are_not_written_to():
  flags_obj = command_line.parse('-df', 'channels_first', '--num_gpus', -1)
  devices.resolve_devices(flags_obj, 0)
  assert flags_obj.data_format == 'channels_first'
  assert flags_obj.num_gpus == -1


@pytest.mark.parametrize('args, num_gpus, environment, inter, private', [
    ([], 2, {}, 0, None),
    (['-inter', 3, '--datasets_num_private_threads', 5], 2, {}, 3, 5),
    (['--tf_gpu_thread_mode', 'global'], 2,
     {'TF_GPU_THREAD_MODE': 'global'}, 0, None),
    (['-gt_mode', 'gpu_shared'], 2,
     {'TF_GPU_THREAD_MODE': 'gpu_shared'}, 0, None),
    # Of 16 cores one launches for each GPU, and two more watch it.
    (['-gt_mode', 'gpu_private'], 2,
     {'TF_GPU_THREAD_MODE': 'gpu_private', 'TF_GPU_THREAD_COUNT': '1'}, 14, 10),
    (['-gt_mode', 'gpu_private', '-inter', 3,
      '--datasets_num_private_threads', 5], 2,
     {'TF_GPU_THREAD_MODE': 'gpu_private', 'TF_GPU_THREAD_COUNT': '1'}, 3, 5),
    (['-gt_mode', 'gpu_private'], 16,
     {'TF_GPU_THREAD_MODE': 'gpu_private', 'TF_GPU_THREAD_COUNT': '1'}, 1, 1),
    (['-gt_mode', 'gpu_private'], 0,
     {'TF_GPU_THREAD_MODE': 'gpu_private'}, 0, None),
])
def test_gpu_thread_settings(monkeypatch, args, num_gpus, environment, inter,
                             private):
  monkeypatch.setattr(multiprocessing, 'cpu_count', lambda: 16)
  settings = devices.gpu_thread_settings(command_line.parse(*args), num_gpus)
  assert settings == (dict(environment, TF_ENABLE_WINOGRAD_NONFUSED='1'),
                      inter, private)


def test_run_config_of_one_replica():
  flags_obj = command_line.parse('-intra', 3, '--random_seed', 7)
  config = devices.run_config(
      flags_obj, devices.Devices(1, ['/gpu:0'], 'channels_first'), 5,
      distributed=True)
  assert config.train_distribute is None and config.eval_distribute is None
  assert config.tf_random_seed == 7
  assert config.session_config.inter_op_parallelism_threads == 5
  assert config.session_config.intra_op_parallelism_threads == 3
  assert config.session_config.allow_soft_placement
  assert config.session_config.device_count == {'GPU': 1, 'CPU': 1}


@pytest.mark.parametrize('distributed', [True, False])
def test_run_config_of_cpu_replicas(distributed):
  flags_obj = command_line.parse('--cpu_replicas', 3)
  config = devices.run_config(
      flags_obj, devices.resolve_devices(
          command_line.parse('--cpu_replicas', 3, '-bs', 3), 0), 0,
      distributed=distributed)
  assert (config.train_distribute is not None) == distributed
  assert (config.eval_distribute is not None) == distributed
  assert config.session_config.device_count == {'GPU': 0, 'CPU': 3}


def test_all_reduce_algorithm_reaches_the_strategy(monkeypatch):
  asked = []
  monkeypatch.setattr(devices, 'mirrored_strategy',
                      lambda *args: asked.append(args))
  devices.run_config(
      command_line.parse('-ara', 'hierarchical_copy'),
      devices.Devices(2, ['/gpu:0', '/gpu:1'], 'channels_first'), 0, True)
  assert asked == [(['/gpu:0', '/gpu:1'], 'hierarchical_copy')]


@pytest.mark.parametrize('all_reduce_alg', [None, 'nccl', 'hierarchical_copy'])
def test_strategy_over_cpus_can_reduce(all_reduce_alg):
  """NCCL has no kernel for CPUs, where the flag is to do no harm."""
  strategy = mirrored_strategy(['/cpu:0', '/cpu:1'], all_reduce_alg)
  operations = getattr(strategy, '_cross_tower_ops', None) or (
      strategy.extended._cross_device_ops)
  assert type(operations).__name__.startswith('ReductionToOneDevice')
