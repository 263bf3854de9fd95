"""Which devices a run gets, on machines with any number of GPUs."""

import multiprocessing

import pytest

import devices
from refusals import refused
from tf_compat import log

CPU = ['/cpu:0']


@pytest.fixture
def warnings(monkeypatch):
  logged = []
  monkeypatch.setattr(log, 'warning',
                      lambda message, *values: logged.append(message))
  return logged


@pytest.mark.parametrize('num_available, arguments, num_gpus, replicas', [
    # Without --num_gpus: one GPU if there is one.
    (0, {}, 0, CPU),
    (4, {}, 1, ['/gpu:0']),
    (2, dict(num_gpus=-1), 2, ['/gpu:0', '/gpu:1']),
    (2, dict(num_gpus=0), 0, CPU),
    # Replicas on the CPU, whatever GPUs there are.
    (4, dict(cpu_replicas=2), 0, ['/cpu:0', '/cpu:1']),
    # One replica needs no strategy.
    (4, dict(uses_strategy=False), 1, ['/gpu:0']),
])
def test_replicas(num_available, arguments, num_gpus, replicas):
  resolved = devices.resolve(num_available, 32, **arguments)
  assert (resolved.num_gpus, resolved.replicas) == (num_gpus, replicas)


@pytest.mark.parametrize('batch_size, arguments, words', [
    (32, dict(num_gpus=5), ['--num_gpus 5', 'pass --num_gpus 4']),
    (6, dict(num_gpus=2, num_machines=2), ['--batch_size 6', 'try 8']),
])
def test_what_four_gpus_cannot_do(batch_size, arguments, words):
  message = refused(devices.resolve, 4, batch_size, **arguments)
  assert all(word in message for word in words)


@pytest.mark.parametrize('num_available, arguments, data_format', [
    (0, {}, 'channels_last'),
    (1, {}, 'channels_first'),
    (1, dict(data_format='channels_last'), 'channels_last'),
    (0, dict(data_format='channels_first'), 'channels_last'),
])
def test_data_format(warnings, num_available, arguments, data_format):
  resolved = devices.resolve(num_available, 32, **arguments)
  assert resolved.data_format == data_format
  assert len(warnings) == (
      arguments.get('data_format', data_format) != data_format)


@pytest.mark.parametrize('arguments, inter, private', [
    ({}, 0, None),
    # Of 16 cores one launches for each GPU, and two more watch it.
    (dict(gpu_thread_mode='gpu_private'), 14, 10),
    (dict(gpu_thread_mode='gpu_private', inter_op_threads=3, input_threads=5),
     3, 5),
    (dict(gpu_thread_mode='gpu_shared'), 0, None),
])
def test_threads(monkeypatch, arguments, inter, private):
  monkeypatch.setattr(multiprocessing, 'cpu_count', lambda: 16)
  resolved = devices.resolve(2, 32, **{'num_gpus': 2, **arguments})
  assert (resolved.inter_op_threads, resolved.input_threads) == (
      inter, private)
