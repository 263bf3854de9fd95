"""What a run leaves in its model folder: its record, as JSON, and the rest."""

import glob
import json
import os
import platform
import shutil

import numpy as np

from tf_compat import tf

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
              RESULTS_FILE_NAME + _UNFINISHED)
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
    UserError: the file is there and not of this function.
  """
  if not os.path.isdir(model_dir):
    os.makedirs(model_dir)
  path = os.path.join(model_dir, RESULTS_FILE_NAME)
  entries = {}
  if os.path.exists(path):
    with open(path) as results_file:
      try:
        entries = dict(json.load(results_file))
      except (ValueError, TypeError):
        raise UserError('{}: not the record of a run; move it or name another '
                        '--model_dir'.format(path))
  entries[mode] = dict(run, results=results)
  with open(path + _UNFINISHED, 'w') as results_file:
    json.dump(entries, results_file, indent=2, sort_keys=True)
    results_file.write('\n')
  os.replace(path + _UNFINISHED, path)


def write_benchmark_run(log_dir, run):
  """Writes the run's description for --benchmark_log_dir."""
  if not os.path.isdir(log_dir):
    os.makedirs(log_dir)
  with open(os.path.join(log_dir, BENCHMARK_RUN_FILE_NAME), 'w') as run_file:
    json.dump(run, run_file, indent=2, sort_keys=True)
    run_file.write('\n')


def remove_earlier_run(model_dir, needed_checkpoint=None):
  """Removes what a run leaves in its model folder, and nothing else.

  Args:
    model_dir: the folder; it need not exist.
    needed_checkpoint: a prefix, or None.

  Raises:
    UserError: the needed checkpoint is in this folder.
  """
  if needed_checkpoint and (
      os.path.realpath(os.path.dirname(needed_checkpoint)) ==
      os.path.realpath(model_dir)):
    raise UserError('--clean: would remove {}, which this run needs; name '
                    'another --model_dir'.format(needed_checkpoint))
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
