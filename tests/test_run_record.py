"""The record of a run in its model folder, and what --clean removes."""

import concurrent.futures
import json
import os
import types

import devices
import run_record
from resnet_checkpoint import CheckpointPaths
from shared_dumps import DumpShard


def read(path):
  return json.loads(path.read_text())


def make_run(folder, classifier_ids, shard=None, **flags):
  """Of `RunSettings`, what the record is made of."""
  return types.SimpleNamespace(
      mode='eval_only', classifier_ids=classifier_ids, train=None,
      dump=types.SimpleNamespace(shard=shard),
      checkpoints=CheckpointPaths(str(folder)), devices=devices.resolve(0, 4),
      flag_values=flags, log_dir=None)


def test_entries_by_run_and_classifiers(tmp_path):
  """Evaluating clf1 used to erase clf0's results, and so did starting a run."""
  folder = tmp_path / 'made' / 'by_it'
  for k, top1 in ((0, 0.5), (1, 0.75)):
    entry, record = run_record.start(make_run(folder, [k], seed=1), 'ImageNet')
    run_record.finish(str(folder), entry, record, {'top1': top1})
  run_record.start(make_run(folder, [0], seed=2), 'ImageNet')
  entries = read(folder / 'results.json')
  assert set(entries) == {'eval_only clf0', 'eval_only clf1'}
  assert entries['eval_only clf0']['flags'] == {'seed': 1}
  assert entries['eval_only clf0']['results'] == {'top1': 0.5}
  assert entries['eval_only clf0']['unfinished']['flags'] == {'seed': 2}
  assert entries['eval_only clf1']['results'] == {'top1': 0.75}
  assert 'unfinished' not in entries['eval_only clf1']
  assert run_record.start(
      make_run(folder, [0, 2], DumpShard(1, 4)), 'ImageNet')[0] == (
          'eval_only clf0,clf2 shard 1/4')
  assert os.listdir(str(folder)) == ['results.json']


def test_several_runs_at_once(tmp_path):
  """All used one unfinished file, and what others had written was lost."""
  def update_many(run):
    for number in range(20):
      run_record.finish(str(tmp_path), f'{run} {number}', {}, {})

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    assert list(pool.map(update_many, range(2))) == [None, None]
  assert len(read(tmp_path / 'results.json')) == 40


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
