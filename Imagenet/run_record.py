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
import shutil

from tf_compat import tf

import devices
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


def start(run, dataset_name, initial_checkpoint=None):
  """Notes in `results.json` that a run has begun; earlier results stay.

  With --clean it first removes what an earlier run left.

  Args:
    run: `resnet_run_loop.RunSettings`.
    initial_checkpoint: a prefix that --clean must not remove, or None.

  Returns:
    (the name of its entry, what it is: a dict ready for JSON)
  """
  model_dir = run.checkpoints.model_dir
  if run.checkpoints.clean:
    remove_earlier_run(model_dir, initial_checkpoint)
  if run.train:
    record_class_names(model_dir, run.class_names)
  entry = f'{run.mode} {",".join(f"clf{k}" for k in run.classifier_ids)}'
  if run.dump and run.dump.shard:
    entry += f' shard {run.dump.shard.number}/{run.dump.shard.total}'
  record = {
      'dataset': dataset_name,
      'flags': run.flag_values,
      'replicas': list(run.devices.replicas),
      'data_format': run.devices.data_format,
      'versions': devices.versions(),
  }
  _update(model_dir, entry, lambda earlier: dict(earlier, unfinished=record))
  if run.log_dir:  # --benchmark_log_dir
    _write_json(run.log_dir, BENCHMARK_RUN_FILE_NAME, record)
  return entry, record


def finish(model_dir, entry, record, results):
  """Sets the entry of a run that is done, with results ready for JSON."""
  _update(model_dir, entry, lambda earlier: dict(record, results=results))


def record_class_names(model_dir, class_names):
  """Writes the names of the classes that a training is for; None: nothing."""
  if class_names:
    _write_json(model_dir, CLASS_NAMES_FILE_NAME, class_names)


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


def _update(model_dir, entry, change):
  path = os.path.join(model_dir, RESULTS_FILE_NAME)
  # Shards of a dump may end at the same moment, in the same folder.
  with _writing_into(model_dir), contextlib.ExitStack() as stack:
    if '://' not in model_dir:
      stack.enter_context(locked(model_dir))
    entries = {}
    if tf.gfile.Exists(path):
      with explain_content(path, 'move it or name another --model_dir'):
        with tf.gfile.GFile(path) as results_file:
          entries = {name: dict(found) for name, found in
                     json.loads(results_file.read()).items()}
    entries[entry] = change(entries.get(entry, {}))
    _write_json(model_dir, RESULTS_FILE_NAME, entries)


def _write_json(folder, name, content):
  path = os.path.join(folder, name)
  text = json.dumps(content, indent=2, sort_keys=True) + '\n'
  with _writing_into(folder):
    if '://' not in path:
      write_atomically(path, text.encode())
      return
    with tf.gfile.GFile(path, 'w') as json_file:  # Not of this machine.
      json_file.write(text)


@contextlib.contextmanager
def _writing_into(folder):
  """Makes a folder; explains errors of this and of what follows."""
  try:
    with explain_error(folder, 'name another folder'):
      tf.gfile.MakeDirs(folder)
      yield
  except tf.errors.OpError as error:
    raise UserError(f'{folder}: cannot be written ({error.message}); '
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
  with contextlib.suppress(OSError):  # None, or not empty.
    os.rmdir(os.path.join(model_dir, 'eval'))
