"""Runs the cascade: confident images leave early (README, step 8).

Images and folders of images, a line each:

  python3 run_cascade.py ... --thresholds 0.9,0.8 photo.jpg folder/

A split of the records, with accuracy and speed beside the plain network's:

  python3 run_cascade.py ... --results RESULTS --choose cst:2 --split validation

With --export_dir it writes a SavedModel, with --export_onnx what
`run_onnx_cascade.py` runs, and with --profile_stages it measures what it takes
to get to each exit. Each may be asked for alone, or together.
"""

import contextlib
import functools
import logging
import os

from absl import flags

import numpy as np

from tf_compat import num_local_gpus, tf

import cascade_export
import cascade_onnx
import cascade_pass
import cascade_report
import devices as devices_lib
import dump_pass
import resnet_checkpoint
import resnet_cost
import resnet_flags
import resnet_model
import run_record
import shared_cascade_json
import shared_results
import shared_stage_seconds
from cascade_graph import Cascade
from cascade_session import CascadeSession, profile_stages
from imagenet_data import count_split
from imagenet_errors import explain_read_error
from imagenet_input import NUM_CHANNELS
from imagenet_main import DTYPES, ImagenetModel, check_image_size
from photo_files import find_photos
from shared_dataset import (
    IMAGENET_NUM_CLASSES, check_same_classes, read_dataset)
from shared_files import explain_error, locked
from shared_terminal import UserError, print_line, say

# Of thresholds. float32 has steps of 6e-8 there, and softmaxes differ by a few
# of them from one batch size to another.
_UNSURE_NEAR_1 = 1e-6


def run_cascade(flags_obj, paths):
  """Does what the flags ask for.

  Args:
    flags_obj: the flags.
    paths: images and folders, of the command line.

  Returns:
    The exit status: 1 if a file was no image.

  Raises:
    UserError: something does not fit; before any work where it can be known.
  """
  _check_flags(flags_obj, paths)
  photos = find_photos(paths)
  dataset = split = None
  if flags_obj.data_dir:
    dataset = read_dataset(flags_obj.data_dir)
    if flags_obj.split:
      split = dump_pass.Split(flags_obj.split, *count_split(
          flags_obj.data_dir, flags_obj.split, dataset))
  devices = devices_lib.resolve(
      num_local_gpus(), flags_obj.batch_size, flags_obj.num_gpus,
      data_format=flags_obj.data_format,
      inter_op_threads=flags_obj.inter_op_parallelism_threads,
      intra_op_threads=flags_obj.intra_op_parallelism_threads,
      input_threads=flags_obj.datasets_num_private_threads)
  os.environ.update(devices_lib.gpu_environment(None, devices.num_gpus))
  os.environ.update(devices_lib.CASCADE_ENVIRONMENT)
  cascade = _cascade(flags_obj, dataset, devices)
  if cascade.choice:
    say(f'--choose {flags_obj.choose}: '
        f'{shared_results.describe(cascade.choice)}')
  if (abs(cascade.thresholds - 1) <= _UNSURE_NEAR_1).any():
    say(f'a threshold is within {_UNSURE_NEAR_1} of 1, where rounding decides: '
        'another batch size or machine may let other images leave')
  with _output_dir(flags_obj.output_dir):
    status = _run(flags_obj, cascade, devices, photos, split)
  _export(flags_obj, cascade)
  return status


@contextlib.contextmanager
def _output_dir(folder):
  """Makes the folder, and keeps other runs out of it."""
  def refuse():
    raise UserError(f'--output_dir {folder}: another run is writing here')

  with contextlib.ExitStack() as stack:
    if folder:
      with explain_error(folder, 'name another --output_dir'):
        os.makedirs(folder, exist_ok=True)
        stack.enter_context(locked(folder, refuse))
    yield


def _run(flags_obj, cascade, devices, photos, split):
  """Everything that needs a session; returns the exit status."""
  status = 0
  if photos or split or flags_obj.profile_stages:
    with CascadeSession(cascade, devices) as session:
      if flags_obj.profile_stages:
        _profile(flags_obj, cascade, session, devices)
      if photos:
        status = _run_photos(flags_obj, cascade, session, devices, photos)
      if split:
        _run_records(flags_obj, cascade, session, devices, split)
  return status


def _check_flags(flags_obj, paths):
  """Refuses values and combinations that cannot work."""
  check_image_size(flags_obj.image_size)
  if flags_obj.num_gpus not in (None, 0, 1):
    raise UserError(f'--num_gpus {flags_obj.num_gpus}: the cascade runs on one '
                    'device; give 0 or 1')
  is_exporting = flags_obj.export_dir or flags_obj.export_onnx
  if not (paths or flags_obj.split or is_exporting or
          flags_obj.profile_stages):
    raise UserError('nothing to do; name images or folders, or give --split, '
                    '--profile_stages, --export_dir or --export_onnx')
  if flags_obj.export_onnx:
    cascade_onnx.import_converter()
  if paths and flags_obj.split:
    raise UserError(f'--split {flags_obj.split} and images by name '
                    f'({paths[0]}) exclude each other')
  for flag, needed in (('split', 'data_dir'), ('profile_stages', 'output_dir'),
                       ('choose', 'results')):
    if getattr(flags_obj, flag) and not getattr(flags_obj, needed):
      raise UserError(f'--{flag} requires --{needed}; see --help')
  if flags_obj.choose and flags_obj.thresholds:
    raise UserError('--thresholds and --choose exclude each other')
  if (paths or flags_obj.split or is_exporting) and not (
      flags_obj.choose or flags_obj.thresholds):
    raise UserError('when do images leave? give --thresholds, such as 0.9,0.8, '
                    'or --results and --choose')


def _classifier_ids(flags_obj):
  """The classifiers of the cascade, in the order of the network."""
  named = flags_obj.classifier_id
  ids = [k for k in resnet_model.CLASSIFIER_IDS if str(k) in named]
  if len(ids) != len(named) or len(ids) < 2 or (
      resnet_model.FINAL_CLASSIFIER_ID not in ids):
    raise UserError(
        f'--classifier_id {",".join(named)}: a cascade ends with classifier '
        f'{resnet_model.FINAL_CLASSIFIER_ID} and has others before it; give '
        '0,1,2, or 0,2, or 1,2')
  return ids


def _cascade(flags_obj, dataset, devices):
  """Loads and checks what the flags name; a `Cascade`."""
  classifier_ids = _classifier_ids(flags_obj)
  results = flags_obj.results and shared_results.load(flags_obj.results)
  checkpoints = resnet_checkpoint.CheckpointPaths(
      flags_obj.model_dir, flags_obj.pretrained_model_checkpoint_path,
      flags_obj.head_model_dirs)
  num_classes = dataset.num_classes if dataset else (
      resnet_checkpoint.saved_num_classes(checkpoints) or IMAGENET_NUM_CLASSES)
  choice = None
  if flags_obj.choose:
    choice = shared_results.choose(
        results, flags_obj.choose, flags_obj.metric)
    thresholds = choice.thresholds
  elif flags_obj.thresholds:
    thresholds = shared_results.thresholds_of_flag(
        flags_obj.thresholds, len(classifier_ids) - 1)
  else:
    thresholds = np.full(len(classifier_ids) - 1, np.inf, np.float32)
  model = ImagenetModel(
      int(flags_obj.resnet_size), devices.data_format, num_classes,
      int(flags_obj.resnet_version), DTYPES[flags_obj.dtype])
  image_shape = [flags_obj.image_size, flags_obj.image_size, NUM_CHANNELS]
  weights = resnet_checkpoint.to_evaluate(
      checkpoints,
      resnet_checkpoint.exit_shapes(model, classifier_ids, image_shape))
  class_names = _class_names(num_classes, {
      f'--data_dir {flags_obj.data_dir}': dataset and dataset.class_names,
      f'--results {flags_obj.results}': (
          results and results.summary.get('class_names')),
      **{folder: run_record.class_names(folder) for folder in sorted(
          set(map(os.path.dirname, weights.checkpoint_of.values())))}})
  network = resnet_cost.describe(model, flags_obj.image_size)._replace(
      class_names=class_names)
  if choice or (results and 'class_names' in results.summary):
    shared_results.check_weights(
        results, classifier_ids, shared_cascade_json.shared_fields(network),
        weights.sources)
  return Cascade(model, network, classifier_ids, weights, flags_obj.metric,
                 thresholds, choice)


def _class_names(num_classes, names_of):
  """The names of classes 1, 2, ...; None if nobody knows them.

  Args:
    num_classes: with the background class.
    names_of: from who knows them to a list, or to None.

  Raises:
    UserError: two lists differ, or one has another length.
  """
  known = [(where, names) for where, names in names_of.items() if names]
  for where, names in known:
    if len(names) != num_classes - 1:
      raise UserError(f'{where}: names {len(names):,} classes, and the network '
                      f'has {num_classes - 1:,}; it is of another network')
    check_same_classes(names, where, known[0][1], known[0][0])
  return known[0][1] if known else None


# ---- What can be done -------------------------------------------------------

def _run_photos(flags_obj, cascade, session, devices, paths):
  """A line for each image; the exit status, 1 if a file was none."""
  predictions = cascade_pass.Predictions(
      flags_obj.output_dir, cascade.class_name)
  for read_paths, images in cascade_pass.read_photos(
      paths, flags_obj.batch_size, flags_obj.image_size):
    output = session.run(images)
    predictions.add(read_paths, None, output)
    for path, (best, *_), confidence, k in zip(
        read_paths, output.top5_classes, output.confidences, output.exits):
      print_line(f'{path}: {cascade.class_name(best)}, {confidence:.4f}, '
                 f'clf{k}')
  predictions.finish()
  cascade_report.write(flags_obj.output_dir, cascade_report.run_record(
      cascade, predictions, flags_obj.batch_size, devices))
  return int(predictions.num_images < len(paths))


def _run_records(flags_obj, cascade, session, devices, split):
  """Runs a split, and prints and writes accuracy and speed."""
  read = functools.partial(
      cascade_pass.read_records, split.paths, flags_obj.batch_size,
      flags_obj.image_size, cascade.model.num_classes, devices.input_threads,
      flags_obj.datasets_num_parallel_batches or 1)
  predictions = cascade_pass.Predictions(
      flags_obj.output_dir, cascade.class_name)
  with explain_read_error({split.name: split.paths}):
    plain_hits, kept = cascade_pass.run(
        session, read(), sum(split.counts), predictions, flags_obj.compare)
  record = cascade_report.run_record(
      cascade, predictions, flags_obj.batch_size, devices)
  record.update(top1=predictions.hits[0] / predictions.num_images,
                top5=predictions.hits[1] / predictions.num_images)
  if flags_obj.compare:
    rate, plain_rate = cascade_pass.time_networks(
        [session.run, session.run_plain], kept)
    profile = profile_stages(
        session, cascade, devices, flags_obj.batch_size)
    record.update(
        plain_top1=plain_hits[0] / predictions.num_images,
        plain_top5=plain_hits[1] / predictions.num_images,
        speedup_by_stage_times=shared_stage_seconds.promised_speedup(
            profile, record['exit_shares'], flags_obj.batch_size),
        speedup_measured=rate / plain_rate,
        images_per_second=rate,
        plain_images_per_second=plain_rate,
        images_per_second_reading=cascade_pass.reading_rate(read()))
  predictions.finish()
  cascade_report.write(flags_obj.output_dir, record)
  for line in cascade_report.summary_lines(record, cascade.classifier_ids):
    print_line(line)


def _profile(flags_obj, cascade, session, devices):
  profile = profile_stages(session, cascade, devices, flags_obj.batch_size)
  path = os.path.join(flags_obj.output_dir, shared_stage_seconds.FILE_NAME)
  with explain_error(path, 'name another --output_dir'):
    shared_stage_seconds.write(path, profile)
  print_line(f'ms per image, by batch size ({profile.device})')
  print_line('exit ' + ''.join(f'{size:10}' for size in profile.batch_sizes))
  for name, seconds in [
      *((f'clf{k}', seconds)
        for k, seconds in profile.seconds_per_image.items()),
      ('plain', profile.plain_seconds_per_image)]:
    print_line(f'{name:5}' + ''.join(
        f'{1000 * value:10.3f}' for value in seconds))
  print_line(f'written to {path}')


def _export(flags_obj, cascade):
  record = {
      **cascade_report.origin(cascade),
      **shared_cascade_json.shared_fields(cascade.network),
      'weights': {f'clf{k}': source._asdict()
                  for k, source in cascade.weights.sources.items()},
      'class_names': cascade.network.class_names}
  for flag in ('export_dir', 'export_onnx'):
    folder = getattr(flags_obj, flag)
    takes_bytes = (flag == 'export_dir' and
                   flags_obj.image_bytes_as_serving_input)
    record.update(cascade_export.describe_input(
        flags_obj.image_size, takes_bytes))
    if not folder:
      continue
    try:
      with explain_error(folder, f'name another --{flag}'):
        if flag == 'export_onnx':
          cascade_onnx.write(folder, cascade, record)
        else:
          folder = cascade_export.write(folder, cascade, takes_bytes, record)
    except tf.errors.OpError as error:  # As of a full disk.
      raise UserError(f'{folder}: cannot be written ({error.message}); name '
                      f'another --{flag}')
    print_line(f'exported {folder}')


def define_flags():
  """Defines all flags of this command line."""
  resnet_flags.define_run_cascade_flags()
  flags.adopt_module_key_flags(resnet_flags)


if __name__ == '__main__':
  # Lines of results are enough.
  resnet_flags.run_command_line(define_flags, run_cascade, logging.WARNING)
