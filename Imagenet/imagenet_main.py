"""Trains and evaluates ResNet and its early exits on ImageNet.

Evaluates the network's own classifier and dumps its softmaxes (README, step 3):

  python3 imagenet_main.py --eval_only --is_cascaded --classifier_id 2 ...

Fine-tunes an early classifier on the pretrained trunk, then dumps:

  python3 imagenet_main.py --fine_tune --te 20 --is_cascaded --classifier_id 0 ...

Both in one run each, for the same result: fine-tunes the two early classifiers,
and dumps all three.

  python3 imagenet_main.py --fine_tune --te 20 --is_cascaded --classifier_id 0,1 ...
  python3 imagenet_main.py --eval_only --is_cascaded --classifier_id 0,1,2 ...
"""

import functools
import os

from absl import flags

from tf_compat import num_local_gpus, tf

import devices as devices_lib
import distributed
import dump_pass
import imagenet_input
import imagenet_preprocessing
import resnet_cost
import resnet_flags
import resnet_model
import resnet_run_loop
import shared_dumps
from imagenet_data import count_split
from imagenet_errors import explain_read_error
from imagenet_input import NUM_CHANNELS, input_fn, parse_record
from resnet_checkpoint import CheckpointPaths
from shared_dataset import DatasetInfo, read_dataset
from shared_dataset import IMAGENET_NUM_CLASSES as NUM_CLASSES
from shared_dataset import IMAGENET_NUM_IMAGES as NUM_IMAGES
from shared_terminal import UserError

DEFAULT_IMAGE_SIZE = imagenet_preprocessing.DEFAULT_IMAGE_SIZE
DATASET_NAME = 'ImageNet'

# A fine-tuned classifier starts from a trunk that is good already, so it
# learns slowly and without warm-up (paper, section 5; official code).
_FINE_TUNE_SCHEDULE = dict(
    base_lr=0.01, boundary_epochs=[10, 20, 30, 40], warmup=False)
_TRAIN_SCHEDULE = dict(
    base_lr=0.128, boundary_epochs=[30, 60, 80, 90], warmup=True)
_DECAY_RATES = [1, 0.1, 0.01, 0.001, 1e-4]
_BATCH_DENOMINATOR = 256
_MOMENTUM = 0.9
_WEIGHT_DECAY = 1e-4
DTYPES = {'fp32': tf.float32, 'fp16': tf.float16}
_DEFAULT_LOSS_SCALES = {'fp32': 1, 'fp16': 128}


class ImagenetModel(resnet_model.Model):
  """A ResNet with ImageNet's first layers: 7x7/2, max pool, 64 filters."""

  def __init__(self, resnet_size, data_format=None, num_classes=NUM_CLASSES,
               resnet_version=resnet_model.DEFAULT_VERSION,
               dtype=resnet_model.DEFAULT_DTYPE,
               batch_norm_decay=resnet_model.BATCH_NORM_DECAY):
    """Arguments as for `resnet_model.Model`; sizes are in `BLOCK_SIZES`."""
    super().__init__(
        resnet_size=resnet_size,
        bottleneck=resnet_size >= 50,
        num_classes=num_classes,
        num_filters=64,
        kernel_size=7,
        conv_stride=2,
        first_pool_size=3,
        first_pool_stride=2,
        block_sizes=resnet_model.BLOCK_SIZES[resnet_size],
        block_strides=[1, 2, 2, 2],
        resnet_version=resnet_version,
        data_format=data_format,
        dtype=dtype,
        batch_norm_decay=batch_norm_decay)


def get_synth_input_fn(dtype):
  """An input function of random ImageNet-like batches; see imagenet_input."""
  return imagenet_input.get_synth_input_fn(
      DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE, NUM_CHANNELS, NUM_CLASSES, dtype)


def imagenet_model_fn(features, labels, mode, params):
  """`resnet_run_loop.resnet_model_fn` with ImageNet's schedule.

  `params` is the official code's dict, or `resnet_run_loop.model_params`.
  Without what the latter adds it is the plain network on ImageNet.
  """
  schedule = dict(
      _FINE_TUNE_SCHEDULE if params['fine_tune'] else _TRAIN_SCHEDULE)
  if params.get('base_lr') is not None:
    schedule['base_lr'] = params['base_lr']
  learning_rate_fn = resnet_run_loop.learning_rate_with_decay(
      batch_size=params['batch_size'], batch_denom=_BATCH_DENOMINATOR,
      num_images=params.get('num_train_images', NUM_IMAGES['train']),
      decay_rates=_DECAY_RATES, **schedule)

  def model_class(*args, **kwargs):
    return params.get('model') or ImagenetModel(*args, **kwargs)

  return resnet_run_loop.resnet_model_fn(
      features=features,
      labels=labels,
      mode=mode,
      model_class=model_class,
      resnet_size=params['resnet_size'],
      weight_decay=_WEIGHT_DECAY,
      learning_rate_fn=learning_rate_fn,
      momentum=_MOMENTUM,
      data_format=params['data_format'],
      resnet_version=params['resnet_version'],
      loss_scale=params['loss_scale'],
      loss_filter_fn=None,
      dtype=params['dtype'],
      fine_tune=params['fine_tune'],
      classifier_ids=params.get(
          'classifier_ids', [resnet_model.FINAL_CLASSIFIER_ID]),
      trunk_batch_norm=params.get('trunk_batch_norm', 'frozen'),
      initial_checkpoint=params.get('initial_checkpoint'))


def define_imagenet_flags():
  """Defines all flags of this command line."""
  resnet_flags.define_resnet_flags()
  flags.adopt_module_key_flags(resnet_flags)
  flags.DEFINE_float(
      'base_lr', None, lower_bound=0,
      help=f'Learning rate for a batch of {_BATCH_DENOMINATOR}; it scales '
      f'with the batch. Default: {_FINE_TUNE_SCHEDULE["base_lr"]} with '
      f'--fine_tune, else {_TRAIN_SCHEDULE["base_lr"]}.')
  flags.DEFINE_float(
      'min_crop_area', imagenet_preprocessing.MIN_CROP_AREA,
      lower_bound=0.01, upper_bound=1,
      help='Least share of an image that a random crop keeps in training; '
      'small images and short trainings need more.')


def run_imagenet(flags_obj):
  """Runs what the flags ask for.

  Returns:
    The results of `resnet_run_loop.resnet_main`.

  Raises:
    UserError: the flags, the data or the checkpoints do not fit; before any
      work where it can be known.
  """
  cluster = distributed.take_cluster(os.environ)
  _check_flags(flags_obj, cluster)
  dataset, splits = _examine_data(flags_obj)
  run = _run_settings(flags_obj, cluster, dataset, splits)
  if run.dump:
    dump_pass.prepare(run.dump)
  with explain_read_error({split.name: split.paths for split in splits}):
    return resnet_run_loop.resnet_main(
        run, imagenet_model_fn, _input_function(flags_obj, run), DATASET_NAME)


def _classifier_ids(flags_obj):
  """The classifiers of a run, in the order of the network."""
  known = [str(k) for k in resnet_model.CLASSIFIER_IDS]
  named = flags_obj.classifier_id
  if not named or not set(named) <= set(known) or len(set(named)) < len(named):
    raise UserError(
        f'--classifier_id {",".join(named)}: the classifiers are '
        f'{", ".join(known)}; give one, or several such as 0,1')
  if not flags_obj.is_cascaded:
    return [resnet_model.FINAL_CLASSIFIER_ID]
  return sorted(int(k) for k in named)


def _check_flags(flags_obj, cluster):
  """Refuses combinations that cannot work."""
  check_image_size(flags_obj.image_size)
  for name in ('head_model_dirs', 'dump_shard'):
    if flags_obj[name].value and not (
        flags_obj.eval_only and _is_dumping(flags_obj)):
      raise UserError(
          f'--{name}: requires --eval_only and dumps; there are none with '
          '--nodump_softmaxes, --nois_cascaded or --use_synthetic_data')
  if flags_obj.eval_only and flags_obj.fine_tune:
    raise UserError('--eval_only and --fine_tune exclude each other')
  if flags_obj.clean and not _is_training(flags_obj):
    raise UserError('--clean: excludes --eval_only and --train_epochs 0; there '
                    'would be nothing left to evaluate')
  if flags_obj.clean and '://' in flags_obj.model_dir:
    raise UserError(f'--clean: --model_dir {flags_obj.model_dir} is not on '
                    'this machine; remove it by hand, or name another')
  if cluster.num_workers > 1:
    # With --clean, a machine that looks before the chief has removed them
    # would take the old checkpoints for its own.
    for name in ('clean', 'eval_only', 'cpu_replicas',
                 'turn_off_distribution_strategy'):
      if flags_obj[name].value:
        raise UserError(f'--{name}: not with TF_CONFIG, the machines that '
                        'train together; leave one of them out')


def check_image_size(image_size):
  """Refuses a size that the network cannot halve five times."""
  divisor = resnet_model.IMAGE_SIZE_DIVISOR
  if image_size <= 0 or image_size % divisor:
    raise UserError(f'--image_size {image_size}: must be a multiple of '
                    f'{divisor}')


def _is_training(flags_obj):
  # No epochs to train: as the official code has it, evaluation alone.
  return not flags_obj.eval_only and flags_obj.train_epochs > 0


def _is_dumping(flags_obj):
  return (flags_obj.is_cascaded and flags_obj.dump_softmaxes and
          not flags_obj.use_synthetic_data)


def _examine_data(flags_obj):
  """Counts classes and images and finds the shards of each split needed.

  Returns:
    `DatasetInfo` with the images that are there; list of `dump_pass.Split`.
  """
  if flags_obj.use_synthetic_data:
    return DatasetInfo(NUM_CLASSES, NUM_IMAGES), []
  dataset = read_dataset(flags_obj.data_dir)
  names = shared_dumps.SPLITS
  if flags_obj.eval_only and not _is_dumping(flags_obj):
    names = ['validation']
  splits = [dump_pass.Split(name, *count_split(
      flags_obj.data_dir, name, dataset)) for name in names]
  num_images = dict(dataset.num_images)
  num_images.update((split.name, sum(split.counts)) for split in splits)
  return dataset._replace(num_images=num_images), splits


def _run_settings(flags_obj, cluster, dataset, splits):
  """The run that the flags describe; everything else takes it from here."""
  classifier_ids = _classifier_ids(flags_obj)
  devices = devices_lib.resolve(
      num_local_gpus(), flags_obj.batch_size, flags_obj.num_gpus,
      flags_obj.cpu_replicas, flags_obj.data_format,
      not flags_obj.turn_off_distribution_strategy, flags_obj.all_reduce_alg,
      flags_obj.tf_gpu_thread_mode, flags_obj.inter_op_parallelism_threads,
      flags_obj.intra_op_parallelism_threads,
      flags_obj.datasets_num_private_threads, cluster.num_workers)
  os.environ.update(devices_lib.gpu_environment(
      flags_obj.tf_gpu_thread_mode, devices.num_gpus))
  model = ImagenetModel(
      int(flags_obj.resnet_size), devices.data_format, dataset.num_classes,
      int(flags_obj.resnet_version), DTYPES[flags_obj.dtype],
      flags_obj.batch_norm_decay)
  mode, train, dump = 'eval_only', None, None
  if _is_training(flags_obj):
    mode = 'fine_tune' if flags_obj.fine_tune else 'train'
    train = resnet_run_loop.TrainSettings(
        flags_obj.train_epochs, flags_obj.epochs_between_evals,
        flags_obj.max_train_steps, flags_obj.stop_threshold, flags_obj.hooks,
        flags_obj.base_lr,
        flags_obj.loss_scale or _DEFAULT_LOSS_SCALES[flags_obj.dtype],
        flags_obj.trunk_batch_norm)
  if _is_dumping(flags_obj) and cluster.is_chief:
    dump = dump_pass.DumpJob(
        flags_obj.softmax_dir, classifier_ids, splits,
        resnet_cost.describe(model, flags_obj.image_size)._replace(
            class_names=dataset.class_names),
        shared_dumps.parse_shard(flags_obj.dump_shard), flags_obj.batch_size,
        flags_obj.image_size, devices.input_threads,
        flags_obj.datasets_num_parallel_batches or 1)
  return resnet_run_loop.RunSettings(
      mode=mode,
      classifier_ids=classifier_ids,
      model=model,
      image_shape=[flags_obj.image_size, flags_obj.image_size, NUM_CHANNELS],
      batch_size=flags_obj.batch_size,
      num_images=dataset.num_images,
      class_names=dataset.class_names,
      checkpoints=CheckpointPaths(
          flags_obj.model_dir, flags_obj.pretrained_model_checkpoint_path,
          flags_obj.head_model_dirs, flags_obj.clean,
          averages_drift=flags_obj.trunk_batch_norm == 'update'),
      devices=devices,
      cluster=cluster,
      is_synthetic=flags_obj.use_synthetic_data,
      random_seed=flags_obj.random_seed,
      log_dir=flags_obj.benchmark_log_dir,
      flag_values=flag_values(flags_obj),
      train=train,
      dump=dump,
      export_dir=flags_obj.export_dir,
      exports_image_bytes=flags_obj.image_bytes_as_serving_input)


def flag_values(flags_obj):
  """A dict from name to value; not absl's own flags, nor TensorFlow's."""
  return {
      flag.name: flag.value
      for module, module_flags in flags_obj.flags_by_module_dict().items()
      if not module.startswith(('absl', 'tensorflow'))
      for flag in module_flags}


def _input_function(flags_obj, run):
  """`input_fn` with all that the run does not vary."""
  if run.is_synthetic:
    return functools.partial(
        imagenet_input.get_synth_input_fn(
            *run.image_shape, run.model.num_classes, run.model.dtype),
        data_dir=None)
  return functools.partial(
      input_fn, data_dir=flags_obj.data_dir, dtype=run.model.dtype,
      datasets_num_private_threads=run.devices.input_threads,
      num_parallel_batches=flags_obj.datasets_num_parallel_batches or 1,
      image_size=flags_obj.image_size, num_classes=run.model.num_classes,
      min_crop_area=flags_obj.min_crop_area)


def _run(flags_obj, arguments):
  if arguments:
    raise UserError(f'unexpected argument {arguments[0]!r}; flags begin with a '
                    'dash')
  run_imagenet(flags_obj)


def main():
  """The command line."""
  resnet_flags.run_command_line(define_imagenet_flags, _run)


if __name__ == '__main__':
  main()
