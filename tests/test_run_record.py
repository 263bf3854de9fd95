"""The record of a run in its model folder, and what `--clean` removes."""

import json
import os
import platform

import numpy as np
import pytest

import command_line
import run_record
from devices import Devices
from tf_compat import tf
from user_error import UserError

DEVICES = Devices(0, ['/cpu:0', '/cpu:1'], 'channels_last')


def describe(*args):
  return run_record.describe_run(
      command_line.parse(*args), 'some data', DEVICES)


def test_description():
  run = describe('-bs', 64, '--hooks', 'profilerhook', '--image_size', 96)
  assert run == json.loads(json.dumps(run))
  assert run['dataset'] == 'some data'
  assert run['versions'] == {
      'python': platform.python_version(), 'tensorflow': tf.VERSION,
      'numpy': np.__version__}
  assert run['replicas'] == ['/cpu:0', '/cpu:1']
  assert run['data_format'] == 'channels_last'
  assert run['flags']['batch_size'] == 64
  assert run['flags']['hooks'] == ['profilerhook']
  assert run['flags']['image_size'] == 96
  assert run['flags']['train_epochs'] == 90  # Defaults too.


def test_description_has_our_flags_and_no_others():
  names = set(describe()['flags'])
  assert {'data_dir', 'is_cascaded', 'softmax_dir'} <= names
  assert not names & {'help', 'helpfull', 'verbosity', 'logtostderr',
                      'run_with_pdb', 'only_check_args', 'flagfile'}


def read(path):
  with open(str(path)) as stream:
    return json.load(stream)


def test_modes_have_an_entry_each(tmp_path):
  folder = tmp_path / 'made' / 'by_it'
  run = describe()
  run_record.write_results(str(folder), 'fine_tune', run, {})
  run_record.write_results(str(folder), 'eval_only', run,
                           {'validation': (0.5, 0.75)})
  run_record.write_results(str(folder), 'fine_tune', run, {'global_step': 7})
  entries = read(folder / 'results.json')
  assert set(entries) == {'fine_tune', 'eval_only'}
  assert entries['fine_tune']['results'] == {'global_step': 7}
  assert entries['eval_only']['results'] == {'validation': [0.5, 0.75]}
  assert entries['eval_only']['flags'] == run['flags']
  assert os.listdir(str(folder)) == ['results.json']


def test_results_of_numpy(tmp_path):
  run_record.write_results(str(tmp_path), 'train', {}, {
      'validation': tuple(np.array([1, 2]) / 4.), 'global_step': 3})
  assert read(tmp_path / 'results.json')['train']['results'] == {
      'validation': [0.25, 0.5], 'global_step': 3}


@pytest.mark.parametrize('content', ['', 'not JSON', '[1, 2]'])
def test_another_file_of_this_name(tmp_path, content):
  """Somebody else's results.json is not ours to change."""
  (tmp_path / 'results.json').write_text(content)
  with pytest.raises(UserError) as error:
    run_record.write_results(str(tmp_path), 'train', {}, {})
  assert str(tmp_path / 'results.json') in str(error.value)
  assert '\n' not in str(error.value)
  assert (tmp_path / 'results.json').read_text() == content


def test_benchmark_run(tmp_path):
  run_record.write_benchmark_run(str(tmp_path / 'new' / 'folder'), {'a': 1})
  assert read(tmp_path / 'new' / 'folder' / 'benchmark_run.log') == {'a': 1}


def test_benchmark_run_on_another_file_system(tmp_path, monkeypatch):
  monkeypatch.chdir(str(tmp_path))
  run_record.write_benchmark_run(
      'file://{}'.format(tmp_path / 'runs'), {'a': 1})
  assert read(tmp_path / 'runs' / 'benchmark_run.log') == {'a': 1}
  assert os.listdir(str(tmp_path)) == ['runs']  # None is called `file:`.


@pytest.mark.parametrize('function, words', [
    (lambda folder: run_record.write_results(folder, 'train', {}, {}),
     '--model_dir {}: cannot be written (File exists)'),
    (lambda folder: run_record.write_benchmark_run(folder, {}),
     '--benchmark_log_dir {}: cannot be written (File exists)'),
])
def test_folder_that_is_a_file(tmp_path, function, words):
  path = tmp_path / 'file'
  path.write_text('mine')
  with pytest.raises(UserError) as error:
    function(str(path))
  assert words.format(path) in str(error.value)
  assert path.read_text() == 'mine'


OF_A_RUN = [
    'checkpoint', 'graph.pbtxt', 'metric.log', 'results.json',
    'results.json.unfinished', 'timeline-1000.json',
    'model.ckpt-0.index', 'model.ckpt-12.data-00000-of-00001',
    'model.ckpt-12.index', 'model.ckpt-12.meta',
    'model.ckpt-20_temp_0a1b/part-00000-of-00001.data-00000-of-00001',
    'events.out.tfevents.1540000000.host',
    'eval/events.out.tfevents.1540000000.host',
]
OF_OTHERS = [
    'notes.txt', 'my_model.ckpt-12.index', 'timeline.json', 'metric.log.old',
    'eval/notes.txt', 'graph.png', 'more/checkpoint',
    'more/model.ckpt-0.index', 'model.ckpt-notes/keep.txt',
]


def make_files(folder, names):
  for name in names:
    path = folder / name
    if not path.parent.exists():
      path.parent.mkdir()
    path.write_text(name)


def files_in(folder):
  return {str(path.relative_to(folder)) for path in folder.rglob('*')
          if path.is_file()}


def test_clean_removes_a_run_and_nothing_else(tmp_path):
  folder = tmp_path / 'run [1]'
  folder.mkdir()
  make_files(folder, OF_A_RUN + OF_OTHERS)
  run_record.remove_earlier_run(str(folder))
  assert files_in(folder) == set(OF_OTHERS)
  assert not (folder / 'model.ckpt-20_temp_0a1b').exists()


def test_clean_leaves_an_empty_folder_of_a_run(tmp_path):
  make_files(tmp_path, OF_A_RUN)
  run_record.remove_earlier_run(str(tmp_path))
  assert os.listdir(str(tmp_path)) == []


def test_clean_of_a_folder_that_is_not_there(tmp_path):
  run_record.remove_earlier_run(str(tmp_path / 'none'))
  assert not (tmp_path / 'none').exists()


def test_clean_spares_what_the_run_starts_from(tmp_path):
  folder, other = tmp_path / 'run', tmp_path / 'other'
  folder.mkdir()
  other.mkdir()
  make_files(folder, OF_A_RUN)
  (tmp_path / 'link').symlink_to(folder)
  for name in ('run', 'link', 'other/../run'):
    with pytest.raises(UserError) as error:
      run_record.remove_earlier_run(
          str(folder), {str(other / 'model.ckpt-3'),
                        str(tmp_path / name / 'model.ckpt-12')})
    assert '--clean' in str(error.value)
  assert files_in(folder) == set(OF_A_RUN)
  run_record.remove_earlier_run(str(folder), {str(other / 'model.ckpt-12')})
  assert not files_in(folder)
