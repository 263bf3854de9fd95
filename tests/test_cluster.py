"""TF_CONFIG: what is read from it, and what is refused."""

import json

import pytest

import cluster
import command_line
from user_error import UserError

WORKERS = ['a:1', 'b:2', 'c:3']


def config(jobs, task_type='worker', index=0):
  return json.dumps({
      'cluster': jobs, 'task': {'type': task_type, 'index': index}})


@pytest.mark.parametrize('jobs, task_type, index, addresses, place', [
    ({'worker': WORKERS}, 'worker', 0, WORKERS, 0),
    ({'worker': WORKERS}, 'worker', 2, WORKERS, 2),
    ({'worker': WORKERS}, 'worker', '1', WORKERS, 1),  # Of a job scheduler.
    ({'chief': ['z:9'], 'worker': WORKERS}, 'chief', 0, ['z:9'] + WORKERS, 0),
    ({'chief': ['z:9'], 'worker': WORKERS}, 'worker', 0, ['z:9'] + WORKERS, 1),
    ({'worker': ['[::1]:1', 'b:2'], 'chief': []}, 'worker', 1,
     ['[::1]:1', 'b:2'], 1),
])
def test_workers_and_their_chief(jobs, task_type, index, addresses, place):
  parsed = cluster.parse(config(jobs, task_type, index))
  assert parsed.addresses == tuple(addresses)
  assert parsed.num_workers == len(addresses)
  assert parsed.index == place
  assert parsed.is_chief == (place == 0)
  assert (parsed.task_type, parsed.task_index) == (task_type, int(index))
  assert set(parsed.jobs) == {job for job in jobs if jobs[job]}


@pytest.mark.parametrize('text', [
    '', ' ', '{}', '{"task": {"type": "worker", "index": 0}}',
    config({'worker': ['a:1']}), config({'chief': ['a:1']}, 'chief')])
def test_one_machine(text):
  assert cluster.take_from_environment(
      {'TF_CONFIG': text}) == cluster.ONE_MACHINE
  assert cluster.take_from_environment({}) == cluster.ONE_MACHINE


def test_nothing_is_left_for_the_estimator():
  environment = {'TF_CONFIG': config({'worker': WORKERS}), 'HOME': '/'}
  assert cluster.take_from_environment(environment).num_workers == 3
  assert environment == {'HOME': '/'}


@pytest.mark.parametrize('text, words', [
    ('{"cluster"', ['not JSON']),
    ('[]', ['JSON object']),
    ('{"cluster": ["a:1"]}', ['"cluster"', 'object']),
    (json.dumps({'cluster': {'worker': WORKERS}}), ['lacks "task"']),
    (json.dumps({'cluster': {'worker': WORKERS}, 'task': 0}),
     ['lacks "task"']),
    (json.dumps({'cluster': {'worker': WORKERS}, 'task': {'type': 'worker'}}),
     ['lacks "task"']),
    (config({'worker': WORKERS}, index=3), ['index 3', '0 to 2']),
    (config({'worker': WORKERS}, index=-1), ['index -1']),
    (config({'worker': WORKERS}, index=True), ['index true']),
    (config({'worker': WORKERS}, index=None), ['index null']),
    (config({'worker': WORKERS}, 'chief'), ['type "chief"', '"worker"']),
    (config({'worker': WORKERS}, ['worker']), ['type ["worker"]']),
    (config({'worker': WORKERS, 'ps': ['p:1']}), ['task type "ps"']),
    (config({'worker': WORKERS, 'evaluator': ['p:1']}), ['"evaluator"']),
    (config({'worker': 'a:1'}), ['"worker" must be a list']),
    (config({'worker': ['a:1', 'b']}), ['"b"', '"host:port"']),
    (config({'worker': ['a:1', ':2']}), ['":2"']),
    (config({'worker': ['a:1', 'b:0']}), ['"b:0"']),
    (config({'worker': ['a:1', 5]}), ['5 in "worker"']),
    (config({'worker': ['a:1', 'a:1']}), ['a:1 comes twice']),
    (config({'chief': ['y:1', 'z:1'], 'worker': WORKERS}), ['"chief"', '2']),
])
def test_what_is_refused(text, words):
  with pytest.raises(UserError) as error:
    cluster.parse(text)
  message = str(error.value)
  assert message.startswith('TF_CONFIG: ') and '\n' not in message
  for word in words:
    assert word in message


TWO = cluster.parse(config({'worker': ['a:1', 'b:2']}, index=1))


@pytest.mark.parametrize('args, num_local_replicas, words', [
    (['--eval_only'], 1, ['TF_CONFIG', 'unset']),
    (['--train_epochs', 0], 1, ['TF_CONFIG', 'unset']),
    (['--cpu_replicas', 2], 2, ['--cpu_replicas 2']),
    (['--turn_off_distribution_strategy'], 1, ['--turn_off_distribution']),
    (['-bs', 33], 1, ['--batch_size 33', '2 replicas', 'try 34']),
    (['-bs', 6], 2, ['--batch_size 6', '4 replicas', '2 machines', 'try 8']),
])
def test_flags_that_do_not_fit(args, num_local_replicas, words):
  with pytest.raises(UserError) as error:
    cluster.check_flags(TWO, command_line.parse(*args), num_local_replicas)
  message = str(error.value)
  assert '\n' not in message
  for word in words:
    assert word in message


def test_flags_that_fit():
  cluster.check_flags(TWO, command_line.parse('-bs', 6), 1)
  cluster.check_flags(TWO, command_line.parse('-bs', 8), 4)
  # One machine: whatever it was, it is no business of TF_CONFIG's.
  cluster.check_flags(
      cluster.ONE_MACHINE, command_line.parse('-bs', 33, '--eval_only'), 2)


@pytest.mark.parametrize('num_shards', [3, 4, 10])
def test_every_shard_has_one_worker(num_shards):
  shards = ['shard{}'.format(i) for i in range(num_shards)]
  shares = [cluster.records_of_worker(shards, cluster.parse(
      config({'worker': WORKERS}, index=i))) for i in range(3)]
  assert sorted(sum((list(share) for share, _ in shares), [])) == sorted(shards)
  assert {alternate for _, alternate in shares} == {False}
  lengths = [len(share) for share, _ in shares]
  assert max(lengths) - min(lengths) <= 1


def test_fewer_shards_than_workers_are_shared():
  for index in range(3):
    assert cluster.records_of_worker(['x', 'y'], cluster.parse(
        config({'worker': WORKERS}, index=index))) == (['x', 'y'], True)
