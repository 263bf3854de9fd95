"""The record of a run in its model folder, and what --clean removes."""

import json
import multiprocessing
import os
import platform

import numpy as np
import pytest

import command_line
import devices
import imagenet_main
import run_record
from dump_names import DumpShard
from tf_compat import tf
from user_error import UserError


def read(path):
  return json.loads(path.read_text())


def test_description():
  flags_obj = command_line.parse('-bs', 64, '--hooks', 'profilerhook')
  values = imagenet_main.flag_values(flags_obj)
  run = run_record.describe_run(
      'some data', values, devices.resolve(0, 32, cpu_replicas=2))
  assert run == json.loads(json.dumps(run))
  assert run['dataset'] == 'some data'
  assert run['versions'] == {
      'python': platform.python_version(), 'tensorflow': tf.VERSION,
      'numpy': np.__version__}
  assert run['replicas'] == ['/cpu:0', '/cpu:1']
  assert run['flags']['batch_size'] == 64
  assert run['flags']['train_epochs'] == 90  # Defaults too.
  # Our flags and no others.
  assert not set(values) & {'help', 'verbosity', 'logtostderr', 'flagfile'}


def test_entries_by_run_and_classifiers(tmp_path):
  """Evaluating clf1 used to erase clf0's results, and so did starting a run."""
  folder = str(tmp_path / 'made' / 'by_it')
  clf0 = run_record.entry_name('eval_only', [0])
  clf1 = run_record.entry_name('eval_only', [1])
  for name, top1 in ((clf0, 0.5), (clf1, 0.75)):
    run_record.start(folder, name, {'flags': {'seed': 1}})
    run_record.finish(folder, name, {'flags': {'seed': 1}}, {'top1': top1})
  run_record.start(folder, clf0, {'flags': {'seed': 2}})
  assert read(tmp_path / 'made' / 'by_it' / 'results.json') == {
      'eval_only clf0': {'flags': {'seed': 1}, 'results': {'top1': 0.5},
                         'unfinished': {'flags': {'seed': 2}}},
      'eval_only clf1': {'flags': {'seed': 1}, 'results': {'top1': 0.75}}}
  assert run_record.entry_name('eval_only', [0, 2], DumpShard(1, 4)) == (
      'eval_only clf0,clf2 shard 1/4')
  assert os.listdir(folder) == ['results.json']


def _update_many(folder, worker):
  for number in range(20):
    run_record.finish(folder, f'{worker} {number}', {}, {})


def test_several_processes_at_once(tmp_path):
  """All used one unfinished file, and what others had written was lost."""
  # Spawned: TensorFlow's threads do not survive a fork.
  workers = [multiprocessing.get_context('spawn').Process(
      target=_update_many, args=(str(tmp_path), worker)) for worker in range(2)]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
  assert [worker.exitcode for worker in workers] == [0] * 2
  assert len(read(tmp_path / 'results.json')) == 40


@pytest.mark.parametrize('content', [
    '', 'not JSON', '[1, 2]', '{"train": 3}', '[' * 10**5], ids=range(5))
def test_another_file_of_this_name(tmp_path, content):
  """Somebody else's results.json is not ours to change."""
  path = tmp_path / 'results.json'
  path.write_text(content)
  with pytest.raises(UserError) as error:
    run_record.start(str(tmp_path), 'train clf2', {})
  assert str(path) in str(error.value) and '\n' not in str(error.value)
  assert path.read_text() == content


def test_a_folder_that_tensorflow_finds(tmp_path, monkeypatch):
  """--model_dir may have a scheme, such as gs://."""
  monkeypatch.chdir(str(tmp_path))
  folder = f'file://{tmp_path / "runs"}'
  run_record.write_benchmark_run(folder, {'a': 1})
  run_record.finish(folder, 'train clf2', {}, {})
  assert read(tmp_path / 'runs' / 'benchmark_run.log') == {'a': 1}
  assert read(tmp_path / 'runs' / 'results.json') == {
      'train clf2': {'results': {}}}
  assert os.listdir(str(tmp_path)) == ['runs']  # None is called `file:`.


def test_folder_that_is_a_file(tmp_path):
  path = tmp_path / 'file'
  path.write_text('mine')
  with pytest.raises(UserError) as error:
    run_record.start(str(path), 'train clf2', {})
  assert f'--model_dir {path}: cannot be written (' in str(error.value)
  with pytest.raises(UserError) as error:
    run_record.write_benchmark_run(str(path), {})
  assert f'--benchmark_log_dir {path}: cannot be wr' in str(error.value)
  assert path.read_text() == 'mine'


OF_A_RUN = [
    'checkpoint', 'graph.pbtxt', 'metric.log', 'results.json',
    'results.json.0a1b.unfinished', 'timeline-1000.json',
    'model.ckpt-0.index', 'model.ckpt-12.data-00000-of-00001',
    'model.ckpt-20_temp_0a1b/part-00000-of-00001.data-00000-of-00001',
    'tmp_worker_1/checkpoint', 'events.out.tfevents.1540000000.host',
    'eval/events.out.tfevents.1540000000.host',
]
OF_OTHERS = [
    'notes.txt', 'my_model.ckpt-12.index', 'timeline.json', 'metric.log.old',
    'eval/notes.txt', 'more/model.ckpt-0.index', 'model.ckpt-notes/keep.txt',
]


def make_files(folder, names):
  for name in names:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(name)


def files_in(folder):
  return {str(path.relative_to(folder)) for path in folder.rglob('*')
          if path.is_file()}


def test_clean_removes_a_run_and_nothing_else(tmp_path):
  folder = tmp_path / 'run [1]'
  folder.mkdir()
  make_files(folder, OF_A_RUN)
  run_record.remove_earlier_run(str(folder))
  assert os.listdir(str(folder)) == []
  make_files(folder, OF_A_RUN + OF_OTHERS)
  run_record.remove_earlier_run(str(folder))
  assert files_in(folder) == set(OF_OTHERS)
  run_record.remove_earlier_run(str(tmp_path / 'none'))


def test_clean_spares_what_the_run_starts_from(tmp_path):
  folder = tmp_path / 'run'
  folder.mkdir()
  make_files(folder, OF_A_RUN)
  (tmp_path / 'link').symlink_to(folder)
  for name in ('run', 'link'):
    with pytest.raises(UserError) as error:
      run_record.remove_earlier_run(
          str(folder), str(tmp_path / name / 'model.ckpt-12'))
    assert '--clean' in str(error.value)
  assert files_in(folder) == set(OF_A_RUN)
  run_record.remove_earlier_run(
      str(folder), str(tmp_path / 'other' / 'model.ckpt-12'))
  assert not files_in(folder)
