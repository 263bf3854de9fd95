"""What a run leaves in its model folder: `results.json`, and the rest.

`results.json` has an entry for each kind of run and the classifiers it was
for, such as 'fine_tune clf0' or 'eval_only clf0,clf1,clf2 shard 1/4': flags,
versions, and results once it is done. While a run is under way, or if it was
stopped, the entry keeps the results of the run before and has the new one
under 'unfinished'.
"""

import contextlib
import glob
import json
import os
import platform
import shutil

import numpy as np

from tf_compat import tf

from shared_dataset import check_class_names
from shared_files import (
    UNFINISHED_SUFFIX, explain_content, explain_error, locked, write_atomically)
from training_hooks import METRIC_LOG_NAME
from shared_terminal import UserError

RESULTS_FILE_NAME = 'results.json'
BENCHMARK_RUN_FILE_NAME = 'benchmark_run.log'
CLASS_NAMES_FILE_NAME = 'class_names.json'

# What `--clean` removes: files, and folders of checkpoints that were being
# written when the run was killed (the second, of workers under TF_CONFIG).
_RUN_FILES = ('checkpoint', 'model.ckpt-*', 'graph.pbtxt',
              'events.out.tfevents.*', 'eval/events.out.tfevents.*',
              'timeline-*.json', METRIC_LOG_NAME, RESULTS_FILE_NAME,
              CLASS_NAMES_FILE_NAME,
              RESULTS_FILE_NAME + '*' + UNFINISHED_SUFFIX)
_RUN_FOLDERS = ('model.ckpt-*_temp_*', 'tmp_worker_*')


def describe_run(dataset_name, flag_values, devices):
  """What a run is: a dict ready for JSON; `devices` is a `devices.Devices`."""
  return {
      'dataset': dataset_name,
      'flags': flag_values,
      'replicas': list(devices.replicas),
      'data_format': devices.data_format,
      'versions': {'python': platform.python_version(),
                   'tensorflow': tf.VERSION, 'numpy': np.__version__},
  }


def entry_name(mode, classifier_ids, shard=None):
  """Name of a run's entry in `results.json`, see the file's docstring."""
  name = f'{mode} {",".join(f"clf{k}" for k in classifier_ids)}'
  return name + (f' shard {shard.number}/{shard.total}' if shard else '')


def start(model_dir, name, run):
  """Notes in `results.json` that a run has begun; earlier results stay.

  Args:
    model_dir: made if it is not there.
    name: from `entry_name`.
    run: from `describe_run`.
  """
  _update(model_dir, name, lambda entry: dict(entry, unfinished=run))


def finish(model_dir, name, run, results):
  """Sets the entry of a run that is done, with results ready for JSON."""
  _update(model_dir, name, lambda entry: dict(run, results=results))


def write_benchmark_run(log_dir, run):
  """Writes the run's description for --benchmark_log_dir."""
  with _explain_folder_error('--benchmark_log_dir', log_dir):
    tf.gfile.MakeDirs(log_dir)
    _write_json(os.path.join(log_dir, BENCHMARK_RUN_FILE_NAME), run)


def record_class_names(model_dir, class_names):
  """Writes the names of the classes that a training is for; None: nothing."""
  if class_names:
    with _explain_folder_error('--model_dir', model_dir):
      tf.gfile.MakeDirs(model_dir)
      _write_json(os.path.join(model_dir, CLASS_NAMES_FILE_NAME), class_names)


def class_names(model_dir):
  """The names of a model folder's classes, from label 1 on.

  Returns:
    A list of strings; None if the folder does not say.

  Raises:
    UserError: the file is not what `record_class_names` writes.
  """
  path = os.path.join(model_dir, CLASS_NAMES_FILE_NAME)
  if not tf.gfile.Exists(path):
    return None
  with explain_content(path, 'remove it, or train again with --clean'):
    with tf.gfile.GFile(path) as names_file:
      names = json.loads(names_file.read())
    return check_class_names(names, len(names) + 1)


def _update(model_dir, name, change):
  path = os.path.join(model_dir, RESULTS_FILE_NAME)
  with _explain_folder_error('--model_dir', model_dir):
    tf.gfile.MakeDirs(model_dir)
    # Shards of a dump may end at the same moment, in the same folder.
    with contextlib.ExitStack() as stack:
      if '://' not in model_dir:
        stack.enter_context(locked(model_dir))
      entries = {}
      if tf.gfile.Exists(path):
        with explain_content(path, 'move it or name another --model_dir'):
          with tf.gfile.GFile(path) as results_file:
            entries = {name: dict(entry) for name, entry in
                       json.loads(results_file.read()).items()}
      entries[name] = change(entries.get(name, {}))
      _write_json(path, entries)


def _write_json(path, content):
  text = json.dumps(content, indent=2, sort_keys=True) + '\n'
  if '://' not in path:
    write_atomically(path, text.encode())
    return
  with tf.gfile.GFile(path, 'w') as json_file:  # Not of this machine.
    json_file.write(text)


@contextlib.contextmanager
def _explain_folder_error(flag, folder):
  try:
    with explain_error(f'{flag} {folder}', 'name another folder'):
      yield
  except tf.errors.OpError as error:
    raise UserError(f'{flag} {folder}: cannot be written ({error.message}); '
                    'free some space or name another folder')


def remove_earlier_run(model_dir, needed_checkpoint=None):
  """Removes what a run leaves in its model folder, and nothing else.

  Raises:
    UserError: the needed checkpoint, a prefix or None, is in this folder.
  """
  if needed_checkpoint and os.path.realpath(os.path.dirname(
      needed_checkpoint)) == os.path.realpath(model_dir):
    raise UserError(f'--clean: would remove {needed_checkpoint}, which this '
                    'run needs; name another --model_dir')

  def matches(pattern):
    return glob.glob(os.path.join(glob.escape(model_dir), pattern))

  for pattern in _RUN_FOLDERS:
    for folder in matches(pattern):
      shutil.rmtree(folder)
  for pattern in _RUN_FILES:
    for path in matches(pattern):
      if os.path.isfile(path):
        os.remove(path)
  for folder in matches('eval'):
    if os.path.isdir(folder) and not os.listdir(folder):
      os.rmdir(folder)
