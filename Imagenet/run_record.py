"""What a run leaves in its model folder: its record, as JSON, and the rest."""

import glob
import json
import os
import platform
import shutil

import numpy as np

from tf_compat import tf

import gfile_system
from file_system import explain_error, replace_content
from training_cluster import TOKEN_FILE_NAME
from training_hooks import METRIC_LOG_NAME
from user_error import UserError

RESULTS_FILE_NAME = 'results.json'
BENCHMARK_RUN_FILE_NAME = 'benchmark_run.log'
_UNFINISHED = '.unfinished'  # Until a file is whole, its name ends so.

# What `--clean` removes: files, and folders of checkpoints that were being
# written when the run was killed.
_RUN_FILES = ('checkpoint', 'model.ckpt-*', 'graph.pbtxt',
              'events.out.tfevents.*', 'eval/events.out.tfevents.*',
              'timeline-*.json', METRIC_LOG_NAME, RESULTS_FILE_NAME,
              RESULTS_FILE_NAME + _UNFINISHED, TOKEN_FILE_NAME)
_RUN_FOLDERS = 'model.ckpt-*_temp_*'


def describe_run(flags_obj, dataset_name, devices):
  """Flags, what was made of them, and versions; a dict ready for JSON.

  Args:
    flags_obj: the parsed flags.
    dataset_name: for the reader.
    devices: of `devices.resolve_devices`.
  """
  # Not absl's own flags, nor TensorFlow's.
  own_flags = [
      flag for module, flags in flags_obj.flags_by_module_dict().items()
      if not module.startswith(('absl', 'tensorflow')) for flag in flags]
  return {
      'dataset': dataset_name,
      'flags': {flag.name: flag.value for flag in own_flags},
      'replicas': list(devices.replicas),
      'data_format': devices.data_format,
      'versions': {'python': platform.python_version(),
                   'tensorflow': tf.VERSION, 'numpy': np.__version__},
  }


def write_results(model_dir, mode, run, results):
  """Sets the entry `mode` of `results.json`; the other modes' entries stay.

  Args:
    model_dir: made if it is not there.
    mode: 'train', 'fine_tune' or 'eval_only'.
    run: of `describe_run`.
    results: a dict of numbers.

  Raises:
    UserError: the file is there and not of this function, or cannot be written.
  """
  file_system = gfile_system.of_folder(model_dir)
  with explain_error('--model_dir ' + model_dir, 'name another folder'):
    file_system.make_folder(model_dir)
  path = os.path.join(model_dir, RESULTS_FILE_NAME)
  entries = {}
  if file_system.exists(path):
    with file_system.open_to_read(path) as results_file:
      try:
        entries = dict(json.loads(results_file.read().decode()))
      except (ValueError, TypeError):
        raise UserError('{}: not the record of a run; move it or name another '
                        '--model_dir'.format(path))
  entries[mode] = dict(run, results=results)
  with explain_error(path, 'free some space or name another --model_dir'):
    _write_json(file_system, path, entries)


def write_benchmark_run(log_dir, run):
  """Writes the run's description for --benchmark_log_dir."""
  file_system = gfile_system.of_folder(log_dir)
  with explain_error('--benchmark_log_dir ' + log_dir, 'name another folder'):
    file_system.make_folder(log_dir)
    _write_json(
        file_system, os.path.join(log_dir, BENCHMARK_RUN_FILE_NAME), run)


def _write_json(file_system, path, content):
  replace_content(file_system, path, path + _UNFINISHED, (
      json.dumps(content, indent=2, sort_keys=True) + '\n').encode())


def remove_earlier_run(model_dir, needed_checkpoints=()):
  """Removes what a run leaves in its model folder, and nothing else.

  Args:
    model_dir: the folder; it need not exist.
    needed_checkpoints: prefixes.

  Raises:
    UserError: a needed checkpoint is in this folder.
  """
  for checkpoint in needed_checkpoints:
    if (os.path.realpath(os.path.dirname(checkpoint)) ==
        os.path.realpath(model_dir)):
      raise UserError('--clean: would remove {}, which this run needs; name '
                      'another --model_dir'.format(checkpoint))
  def matches(pattern):
    return glob.glob(os.path.join(glob.escape(model_dir), pattern))

  for folder in matches(_RUN_FOLDERS):
    shutil.rmtree(folder)
  for pattern in _RUN_FILES:
    for path in matches(pattern):
      if os.path.isfile(path):
        os.remove(path)
  for folder in matches('eval'):
    if os.path.isdir(folder) and not os.listdir(folder):
      os.rmdir(folder)
