"""Runs the cascade: confident images leave early (README, step 8).

Images and folders of images, a line each:

  python3 run_cascade.py ... --thresholds 0.9,0.8 photo.jpg folder/

A split of the records, with accuracy and speed beside the plain network's:

  python3 run_cascade.py ... --results RESULTS --choose cst:2 --split validation

With --export_dir it writes a SavedModel, with --profile_stages it measures what
it takes to get to each exit. Each may be asked for alone, or together.
"""

import csv
import io
import json
import os
import platform
import sys
import typing

from absl import app as absl_app
from absl import flags

import numpy as np

from tf_compat import configure_logging, num_local_gpus, tf

import cascade_export
import cascade_pass
import cascade_results
import devices as devices_lib
import dump_pass
import dump_record
import imagenet_photos
import resnet_checkpoint
import resnet_cost
import resnet_flags
import resnet_model
import resnet_run_loop
import stage_seconds
from cascade_session import CascadeSession, profile_stages
from files import explain_error, write_atomically
from imagenet_errors import explain_read_error
from imagenet_input import NUM_CHANNELS
from imagenet_main import DTYPES, ImagenetModel, check_image_size
from imagenet_shards import IMAGENET_NUM_CLASSES, count_split
from imagenet_shards import read_dataset_info
from user_error import UserError

PREDICTIONS_CSV = 'predictions.csv'
RUN_JSON = 'run.json'


class Cascade(typing.NamedTuple):
  """A network with its exits, and when images leave."""
  model: ImagenetModel
  network: dump_record.Network
  classifier_ids: typing.List[int]   # Ascending, the network's own last.
  weights: resnet_checkpoint.ExitWeights
  class_names: typing.Optional[typing.List[str]]  # Entry i has label i + 1.
  metric: str
  thresholds: np.ndarray             # float32 [T], or [T, classes].
  # The row of the analysis that they are from; None for --thresholds.
  choice: typing.Optional[cascade_results.Choice]

  def class_name(self, label):
    """The name of a class; its number if it has none."""
    if self.class_names and label > 0:
      return self.class_names[label - 1]
    return str(label)


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
  photos = imagenet_photos.find_photos(paths)
  dataset = split = None
  if flags_obj.data_dir:
    dataset = read_dataset_info(flags_obj.data_dir)
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
    sys.stderr.write(f'run_cascade.py: {_choice_line(flags_obj, cascade)}\n')
  if flags_obj.output_dir:
    with explain_error(flags_obj.output_dir, 'name another --output_dir'):
      os.makedirs(flags_obj.output_dir, exist_ok=True)

  status = 0
  if photos or split or flags_obj.profile_stages:
    with CascadeSession(
        cascade.model, cascade.classifier_ids, cascade.weights, cascade.metric,
        cascade.thresholds, flags_obj.image_size, devices,
        devices_lib.session_config(devices)) as session:
      if flags_obj.profile_stages:
        _profile(flags_obj, cascade, session, devices)
      if photos:
        status = _run_photos(flags_obj, cascade, session, devices, photos)
      if split:
        with explain_read_error({split.name: split.paths},
                                flags_obj.image_size):
          _run_records(flags_obj, cascade, session, devices, split)
  if flags_obj.export_dir:
    _export(flags_obj, cascade)
  return status


def _check_flags(flags_obj, paths):
  """Refuses values and combinations that cannot work."""
  check_image_size(flags_obj.image_size)
  if flags_obj.num_gpus not in (None, 0, 1):
    raise UserError(f'--num_gpus {flags_obj.num_gpus}: the cascade runs on one '
                    'device; give 0 or 1')
  if not (paths or flags_obj.split or flags_obj.export_dir or
          flags_obj.profile_stages):
    raise UserError('nothing to do; name images or folders, or give --split, '
                    '--export_dir or --profile_stages')
  if paths and flags_obj.split:
    raise UserError(f'--split {flags_obj.split}: and images by name ({paths[0]}'
                    '); run them one after the other')
  if flags_obj.split and not flags_obj.data_dir:
    raise UserError(f'--split {flags_obj.split}: needs --data_dir, the folder '
                    'of the records')
  if flags_obj.profile_stages and not flags_obj.output_dir:
    raise UserError('--profile_stages: needs --output_dir, for '
                    f'{stage_seconds.FILE_NAME}')
  if flags_obj.choose and flags_obj.thresholds:
    raise UserError('--thresholds and --choose exclude each other')
  if flags_obj.choose and not flags_obj.results:
    raise UserError(f'--choose {flags_obj.choose}: needs --results, the '
                    '-output_dir of analyze_imagenet_labels.py')
  if (paths or flags_obj.split or flags_obj.export_dir) and not (
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


def _thresholds(flags_obj, num_thresholds):
  """float32 [T] of --thresholds."""
  named = ','.join(flags_obj.thresholds)
  try:
    thresholds = np.array([float(text) for text in flags_obj.thresholds],
                          np.float32)
  except ValueError:
    raise UserError(f'--thresholds {named}: not numbers; give such as 0.9,0.8')
  if np.isnan(thresholds).any():
    raise UserError(f'--thresholds {named}: nan is no threshold; at inf no '
                    'image leaves')
  # Sums of rounded softmaxes may be slightly above 1.
  if ((thresholds < 0) | ((thresholds > 1.001) & (thresholds < np.inf))).any():
    raise UserError(f'--thresholds {named}: thresholds are from 0 to 1, or inf '
                    'for an exit at which no image leaves')
  if len(thresholds) != num_thresholds:
    raise UserError(
        f'--thresholds {named}: {len(thresholds)} of them, and '
        f'{num_thresholds} exits before the last; give one for each')
  return thresholds


def _cascade(flags_obj, dataset, devices):
  """Loads and checks what the flags name; a `Cascade`."""
  classifier_ids = _classifier_ids(flags_obj)
  results = flags_obj.results and cascade_results.load(flags_obj.results)
  checkpoints = resnet_checkpoint.CheckpointPaths(
      flags_obj.model_dir, flags_obj.pretrained_model_checkpoint_path,
      flags_obj.head_model_dirs)
  if dataset:
    num_classes, class_names = dataset.num_classes, dataset.class_names
  else:
    num_classes = (resnet_checkpoint.saved_num_classes(checkpoints) or
                   IMAGENET_NUM_CLASSES)
    class_names = results and results.summary.get('class_names')
    if class_names and len(class_names) != num_classes - 1:
      class_names = None  # Of another network.
  choice = None
  if flags_obj.choose:
    choice = cascade_results.choose(
        results, flags_obj.choose, flags_obj.metric)
    thresholds = choice.thresholds
  elif flags_obj.thresholds:
    thresholds = _thresholds(flags_obj, len(classifier_ids) - 1)
  else:
    thresholds = np.full(len(classifier_ids) - 1, np.inf, np.float32)
  model = ImagenetModel(
      int(flags_obj.resnet_size), devices.data_format, num_classes,
      int(flags_obj.resnet_version), DTYPES[flags_obj.dtype])
  image_shape = [flags_obj.image_size, flags_obj.image_size, NUM_CHANNELS]
  weights = resnet_checkpoint.to_evaluate(
      checkpoints,
      {k: resnet_run_loop.exit_variable_shapes(model, k, image_shape)
       for k in classifier_ids})
  network = resnet_cost.describe(model, flags_obj.image_size)
  if choice:
    cascade_results.check_weights(
        results, classifier_ids, dump_record.shared_fields(network),
        weights.sources)
  return Cascade(model, network, classifier_ids, weights, class_names,
                 flags_obj.metric, thresholds, choice)


def _choice_line(flags_obj, cascade):
  """Which row --choose has chosen, and what the analysis says of it."""
  row = cascade.choice.row
  return (f'--choose {flags_obj.choose}: {cascade_results.row_name(row)}, '
          f'{cascade.metric} {row["test_accuracy"]:.4f}, drop '
          f'{100 * row["accuracy_drop"]:.2f} points, speedup '
          f'{row["speedup"]:.3f} by MACs')


# ---- What can be done -------------------------------------------------------

def _run_photos(flags_obj, cascade, session, devices, paths):
  """A line for each image; returns the exit status."""
  names, outputs, status = [], [], 0
  for batch in imagenet_photos.read_photos(
      paths, flags_obj.batch_size, flags_obj.image_size):
    for problem in batch.problems:
      sys.stderr.write(f'run_cascade.py: {problem}\n')
      status = 1
    if not batch.paths:
      continue
    output = session.run(batch.images)
    for path, (best, *_), confidence, k in zip(
        batch.paths, output.top5_classes, output.confidences, output.exits):
      print(f'{path}: {cascade.class_name(best)}, {confidence:.4f}, clf{k}')
    names.extend(batch.paths)
    outputs.append(output)
  if outputs and flags_obj.output_dir:
    output = type(outputs[0])(*map(np.concatenate, zip(*outputs)))
    _write_predictions(flags_obj.output_dir, cascade, names, None, output)
    _write_json(flags_obj.output_dir, RUN_JSON, _run_record(
        flags_obj, cascade, devices, output))
  return status


def _run_records(flags_obj, cascade, session, devices, split):
  """Runs a split, and prints and writes accuracy and speed."""
  session.warm_up(flags_obj.batch_size)
  results = cascade_pass.run(
      session, lambda: cascade_pass.read_records(
          split.paths, flags_obj.batch_size, flags_obj.image_size,
          cascade.model.num_classes, devices.input_threads,
          flags_obj.datasets_num_parallel_batches or 1),
      sum(split.counts), flags_obj.compare)
  profile = None
  if flags_obj.compare:
    profile = profile_stages(
        session, cascade.network, cascade.classifier_ids, flags_obj.batch_size,
        devices, _versions())
  record = _run_record(
      flags_obj, cascade, devices, results.output, results, profile)
  for line in _summary_lines(record, cascade.classifier_ids):
    print(line)
  if flags_obj.output_dir:
    _write_predictions(flags_obj.output_dir, cascade, results.names,
                       results.labels, results.output)
    _write_json(flags_obj.output_dir, RUN_JSON, record)


def _profile(flags_obj, cascade, session, devices):
  profile = profile_stages(
      session, cascade.network, cascade.classifier_ids, flags_obj.batch_size,
      devices, _versions())
  path = os.path.join(flags_obj.output_dir, stage_seconds.FILE_NAME)
  with explain_error(path, 'name another --output_dir'):
    stage_seconds.write(path, profile)
  print(f'ms per image, by batch size ({profile.device})')
  print('exit ' + ''.join(f'{size:10}' for size in profile.batch_sizes))
  for name, seconds in [
      *((f'clf{k}', seconds)
        for k, seconds in profile.seconds_per_image.items()),
      ('plain', profile.plain_seconds_per_image)]:
    print(f'{name:5}' + ''.join(f'{1000 * value:10.3f}' for value in seconds))
  print(f'written to {path}')


def _export(flags_obj, cascade):
  with explain_error(flags_obj.export_dir, 'name another --export_dir'):
    folder = cascade_export.write(
        flags_obj.export_dir, cascade.model, cascade.classifier_ids,
        cascade.weights, cascade.metric, cascade.thresholds,
        flags_obj.image_size, flags_obj.image_bytes_as_serving_input, {
            **_origin(cascade),
            **dump_record.shared_fields(cascade.network),
            'weights': {f'clf{k}': source._asdict()
                        for k, source in cascade.weights.sources.items()},
            'class_names': cascade.class_names})
  print(f'exported {folder}')


# ---- Records ----------------------------------------------------------------

def _origin(cascade):
  """Thresholds, and what the analysis expects of them."""
  choice = cascade.choice
  return {
      'classifiers': cascade.classifier_ids,
      'metric': cascade.metric,
      'thresholds': _for_json(cascade.thresholds.tolist()),
      'choice': choice and f'{choice.method}:{choice.setting!r}',
      'expected': choice and {
          column: _for_json(value) for column, value in choice.row.items()},
  }


def _for_json(value):
  """A value, or a list of them, without the numbers that JSON does not have.

  NaN is null, and infinity "inf".
  """
  if isinstance(value, list):
    return [_for_json(item) for item in value]
  if value != value:
    return None
  return 'inf' if value == float('inf') else value


def _run_record(flags_obj, cascade, devices, output, results=None,
                profile=None):
  """The content of `RUN_JSON`; what was not measured is None."""
  shares = [float(np.mean(output.exits == k)) for k in cascade.classifier_ids]
  costs = {cost.classifier_id: cost for cost in cascade.network.exits}
  macs = dump_record.cumulative_costs(
      [costs[k].trunk_macs for k in cascade.classifier_ids],
      [costs[k].head_macs for k in cascade.classifier_ids])
  final = cascade.network.exits[-1]
  mean_macs = float(np.dot(shares, macs))
  record = dict.fromkeys([
      'num_images', 'top1', 'top5', 'plain_top1', 'plain_top5', 'exit_shares',
      'thresholds', 'metric', 'batch_size', 'gmacs_per_image',
      'speedup_by_macs', 'speedup_by_stage_times', 'speedup_measured',
      'speedup_end_to_end', 'images_per_second', 'plain_images_per_second',
      'images_per_second_end_to_end', 'plain_images_per_second_end_to_end'])
  record.update(
      _origin(cascade), num_images=len(output.exits), exit_shares=shares,
      batch_size=flags_obj.batch_size, gmacs_per_image=mean_macs / 1e9,
      speedup_by_macs=(final.trunk_macs + final.head_macs) / mean_macs,
      device=devices_lib.describe(devices), versions=_versions())
  if results:
    record['top1'], record['top5'] = _accuracies(
        output.top5_classes, results.labels)
  if profile:
    num_images = len(output.exits)
    record['plain_top1'], record['plain_top5'] = _accuracies(
        results.plain_top5_classes, results.labels)
    seconds, plain = results.seconds, results.plain_seconds
    record.update(
        speedup_by_stage_times=stage_seconds.promised_speedup(
            profile, shares, flags_obj.batch_size),
        speedup_measured=plain.from_memory / seconds.from_memory,
        speedup_end_to_end=plain.with_input / seconds.with_input,
        images_per_second=num_images / seconds.from_memory,
        plain_images_per_second=num_images / plain.from_memory,
        images_per_second_end_to_end=num_images / seconds.with_input,
        plain_images_per_second_end_to_end=num_images / plain.with_input)
  return record


def _accuracies(top5_classes, labels):
  """Top-1 and top-5, fractions, of int [images, 5] and [images]."""
  is_label = top5_classes == labels[:, np.newaxis]
  return float(is_label[:, 0].mean()), float(is_label.any(axis=1).mean())


def _summary_lines(record, classifier_ids):
  """What a person wants to know of a pass over records."""
  lines = [
      '{:,} images, left at {}'.format(record['num_images'], ', '.join(
          f'clf{k} {100 * share:.1f} %'
          for k, share in zip(classifier_ids, record['exit_shares']))),
      f'cascade: top-1 {record["top1"]:.4f}, top-5 {record["top5"]:.4f}']
  if record['plain_top1'] is None:
    return lines + [f'speedup by MACs: {record["speedup_by_macs"]:.3f}']
  lines += [
      f'plain network: top-1 {record["plain_top1"]:.4f}, top-5 '
      f'{record["plain_top5"]:.4f}',
      f'speedup: measured {record["speedup_measured"]:.3f} '
      f'({record["images_per_second"]:.4g} against '
      f'{record["plain_images_per_second"]:.4g} images/s), promised by stage '
      f'times {record["speedup_by_stage_times"]:.3f}, by MACs '
      f'{record["speedup_by_macs"]:.3f}',
      'with reading and decoding: '
      f'{record["speedup_end_to_end"]:.3f} '
      f'({record["images_per_second_end_to_end"]:.4g} against '
      f'{record["plain_images_per_second_end_to_end"]:.4g} images/s)']
  return lines


def _versions():
  return {'python': platform.python_version(), 'tensorflow': tf.VERSION,
          'numpy': np.__version__}


def _write_predictions(folder, cascade, names, labels, output):
  """Writes `PREDICTIONS_CSV`: a row per image, in the order of the input."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['image', 'label', 'class', 'name', 'confidence', 'exit'])
  if labels is None:
    labels = [''] * len(names)
  for name, label, (best, *_), confidence, k in zip(
      names, labels, output.top5_classes, output.confidences, output.exits):
    writer.writerow([name, label, best, cascade.class_name(best),
                     repr(float(confidence)), k])
  path = os.path.join(folder, PREDICTIONS_CSV)
  with explain_error(path, 'name another --output_dir'):
    write_atomically(path, text.getvalue().encode('utf-8', 'surrogateescape'))


def _write_json(folder, name, content):
  path = os.path.join(folder, name)
  with explain_error(path, 'name another --output_dir'):
    write_atomically(path, (json.dumps(content, indent=2) + '\n').encode())


def main(argv):
  """Runs; what concerns the user ends in one line and exit status 1."""
  try:
    sys.exit(run_cascade(flags.FLAGS, argv[1:]))
  except UserError as error:
    sys.exit('run_cascade.py: ' + ' '.join(str(error).split()))
  except KeyboardInterrupt:
    sys.stdout.flush()
    sys.stderr.write('run_cascade.py: interrupted\n')
    os._exit(130)  # TensorFlow's threads may still be at work.


def _parse_flags(argv):
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    sys.exit(f'run_cascade.py: {" ".join(str(error).split())}; see --help')


def start():
  """Defines and parses the flags of the command line, and runs."""
  configure_logging()
  tf.logging.set_verbosity(tf.logging.WARN)  # Lines of results are enough.
  define_flags()
  absl_app.run(main, flags_parser=_parse_flags)


def define_flags():
  """Defines all flags of this command line."""
  resnet_flags.define_run_cascade_flags(
      [str(size) for size in sorted(resnet_model.BLOCK_SIZES)])
  flags.adopt_module_key_flags(resnet_flags)


if __name__ == '__main__':
  start()
