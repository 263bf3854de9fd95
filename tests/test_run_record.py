"""The record of a run in its model folder, and what --clean removes."""

import json
import multiprocessing
import os

import pytest

import run_record
from shared_dumps import DumpShard
from shared_terminal import UserError


def read(path):
  return json.loads(path.read_text())


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


@pytest.mark.parametrize('content', ['', '[1, 2]', '{"train": 3}'])
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
