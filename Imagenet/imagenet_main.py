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
import math
import os
import sys

from absl import app as absl_app
from absl import flags

from tf_compat import configure_logging, num_local_gpus, tf

import devices as devices_lib
import distributed
import dump_names
import dump_pass
import imagenet_input
import imagenet_preprocessing
import resnet_cost
import resnet_flags
import resnet_model
import resnet_run_loop
from imagenet_errors import explain_read_error
from imagenet_input import NUM_CHANNELS, input_fn, parse_record
from imagenet_shards import IMAGENET_NUM_CLASSES as NUM_CLASSES
from imagenet_shards import IMAGENET_NUM_IMAGES as NUM_IMAGES
from imagenet_shards import DatasetInfo, count_split, read_dataset_info
from resnet_checkpoint import CheckpointPaths
from user_error import UserError

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
    """
    Args:
      resnet_size: 18, 34, 50, 101, 152 or 200.
      data_format: 'channels_first', 'channels_last' or None.
      num_classes: outputs, background class included.
      resnet_version: 1 or 2.
      dtype: of the computation.
      batch_norm_decay: of BN's moving averages.

    Raises:
      ValueError: there is no such network.
    """
    if resnet_size not in resnet_model.BLOCK_SIZES:
      raise ValueError(f'resnet_size must be one of '
                       f'{sorted(resnet_model.BLOCK_SIZES)}, not '
                       f'{resnet_size!r}')
    super().__init__(
        resnet_size=resnet_size,
        bottleneck=resnet_size >= resnet_model.SMALLEST_BOTTLENECK_SIZE,
        num_classes=num_classes,
        num_filters=resnet_model.NUM_FILTERS,
        kernel_size=resnet_model.FIRST_KERNEL_SIZE,
        conv_stride=resnet_model.FIRST_CONV_STRIDE,
        first_pool_size=3,
        first_pool_stride=resnet_model.FIRST_POOL_STRIDE,
        block_sizes=resnet_model.BLOCK_SIZES[resnet_size],
        block_strides=resnet_model.BLOCK_STRIDES,
        resnet_version=resnet_version,
        data_format=data_format,
        dtype=dtype,
        batch_norm_decay=batch_norm_decay)


def get_synth_input_fn(dtype):
  """An input function of random ImageNet-like batches; see imagenet_input."""
  return imagenet_input.get_synth_input_fn(
      DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE, NUM_CHANNELS, NUM_CLASSES, dtype)


def imagenet_model_fn(features, labels, mode, params):
  """The Estimator's model function, with ImageNet's schedule.

  Args:
    features: images, or a dict of 'image' and 'label'.
    labels: int [batch], or None.
    mode: a `tf.estimator.ModeKeys`.
    params: the official code's dict: 'resnet_size', 'data_format',
      'batch_size', 'resnet_version', 'loss_scale', 'dtype', 'fine_tune'. All
      others may be missing, and it is the plain network on ImageNet:
      'num_classes', 'num_train_images', 'batch_norm_decay', 'classifier_ids',
      'trunk_batch_norm', 'initial_checkpoint', 'base_lr'.

  Returns:
    An EstimatorSpec; see `resnet_run_loop.resnet_model_fn`.
  """
  schedule = dict(
      _FINE_TUNE_SCHEDULE if params['fine_tune'] else _TRAIN_SCHEDULE)
  if params.get('base_lr') is not None:
    schedule['base_lr'] = params['base_lr']
  learning_rate_fn = resnet_run_loop.learning_rate_with_decay(
      batch_size=params['batch_size'], batch_denom=_BATCH_DENOMINATOR,
      num_images=params.get('num_train_images', NUM_IMAGES['train']),
      decay_rates=_DECAY_RATES, **schedule)
  model_class = functools.partial(
      ImagenetModel, num_classes=params.get('num_classes', NUM_CLASSES),
      batch_norm_decay=params.get(
          'batch_norm_decay', resnet_model.BATCH_NORM_DECAY))
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
  resnet_flags.define_resnet_flags(
      resnet_size_choices=[
          str(size) for size in sorted(resnet_model.BLOCK_SIZES)])
  flags.adopt_module_key_flags(resnet_flags)
  flags.DEFINE_float(
      'base_lr', None, lower_bound=0,
      help=f'Learning rate for a batch of {_BATCH_DENOMINATOR}; it scales '
      f'with the batch. Default: {_FINE_TUNE_SCHEDULE["base_lr"]} with '
      f'--fine_tune, else {_TRAIN_SCHEDULE["base_lr"]}.')


def run_imagenet(flags_obj):
  """Runs what the flags ask for.

  Returns:
    The results of `resnet_run_loop.resnet_main`.

  Raises:
    UserError: the flags, the data or the checkpoints do not fit; before any
      work where it can be known.
  """
  cluster = distributed.take_cluster(os.environ)
  classifier_ids = _classifier_ids(flags_obj)
  shard = dump_names.parse_shard(flags_obj.dump_shard)
  _check_flags(flags_obj)
  dataset, splits = _examine_data(flags_obj)
  devices = _devices(flags_obj)
  if cluster.num_workers > 1:
    _check_cluster(flags_obj, cluster.num_workers * len(devices.replicas))
  dtype = DTYPES[flags_obj.dtype]
  model = ImagenetModel(
      int(flags_obj.resnet_size), devices.data_format, dataset.num_classes,
      int(flags_obj.resnet_version), dtype, flags_obj.batch_norm_decay)
  dump_job = None
  if _is_dumping(flags_obj) and cluster.is_chief:
    dump_job = dump_pass.DumpJob(
        flags_obj.softmax_dir, classifier_ids, splits,
        resnet_cost.describe(model, flags_obj.image_size)._replace(
            class_names=dataset.class_names), shard,
        flags_obj.batch_size, flags_obj.image_size, devices.input_threads,
        flags_obj.datasets_num_parallel_batches or 1)
    dump_pass.prepare(dump_job)
  shards = {split.name: split.paths for split in splits}
  with explain_read_error(shards, flags_obj.image_size):
    return resnet_run_loop.resnet_main(
        _run_settings(flags_obj, classifier_ids, dataset, devices, cluster),
        imagenet_model_fn,
        _input_function(flags_obj, dataset, devices, dtype), DATASET_NAME,
        _model_params(flags_obj, classifier_ids, dataset, devices, dtype),
        model, dump_job)


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


def _check_flags(flags_obj):
  """Refuses values and combinations that cannot work."""
  if flags_obj.head_model_dirs and not flags_obj.eval_only:
    raise UserError('--head_model_dirs: is for --eval_only; --fine_tune trains '
                    'the heads of --model_dir')
  for name in ('head_model_dirs', 'dump_shard'):
    if flags_obj[name].value and not _is_dumping(flags_obj):
      raise UserError(
          f'--{name}: is for dumps, and with --nodump_softmaxes, '
          '--nois_cascaded or --use_synthetic_data there are none')
  if flags_obj.dump_shard and not flags_obj.eval_only:
    raise UserError('--dump_shard: is for --eval_only; the shards of one dump '
                    'have the same weights, so train first')
  check_image_size(flags_obj.image_size)
  if flags_obj.eval_only and flags_obj.fine_tune:
    raise UserError('--eval_only and --fine_tune exclude each other')
  if flags_obj.clean and not _is_training(flags_obj):
    raise UserError('--clean: excludes --eval_only and --train_epochs 0; there '
                    'would be nothing left to evaluate')
  if flags_obj.clean and '://' in flags_obj.model_dir:
    raise UserError(f'--clean: --model_dir {flags_obj.model_dir} is not on '
                    'this machine; remove it by hand, or name another')


def check_image_size(image_size):
  """Refuses a size that the network cannot halve five times."""
  divisor = resnet_model.IMAGE_SIZE_DIVISOR
  if image_size <= 0 or image_size % divisor:
    raise UserError(f'--image_size {image_size}: must be a multiple of '
                    f'{divisor}')


def _check_cluster(flags_obj, num_replicas):
  """Refuses what several machines cannot do; `num_replicas` of all of them."""
  if not _is_training(flags_obj):
    raise UserError('TF_CONFIG: several machines can train, but one evaluates '
                    'and dumps; unset the variable')
  for name in ('cpu_replicas', 'turn_off_distribution_strategy'):
    if flags_obj[name].value:
      raise UserError(f'--{name}: not with TF_CONFIG, where each machine '
                      'trains on its GPUs, or on one CPU replica')
  if flags_obj.clean:
    # A machine that looks before the chief has removed them would take the old
    # checkpoints for its own.
    raise UserError('--clean: not with TF_CONFIG; remove the model folder '
                    'first, or name another --model_dir')
  if flags_obj.batch_size % num_replicas:
    larger = math.ceil(flags_obj.batch_size / num_replicas) * num_replicas
    raise UserError(
        f'--batch_size {flags_obj.batch_size}: not divisible by the '
        f'{num_replicas} replicas of all machines; try {larger}')


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
  dataset = read_dataset_info(flags_obj.data_dir)
  names = dump_names.SPLITS
  if flags_obj.eval_only and not _is_dumping(flags_obj):
    names = ['validation']
  splits = [dump_pass.Split(name, *count_split(
      flags_obj.data_dir, name, dataset)) for name in names]
  num_images = dict(dataset.num_images)
  num_images.update((split.name, sum(split.counts)) for split in splits)
  return dataset._replace(num_images=num_images), splits


def _devices(flags_obj):
  num_available_gpus = num_local_gpus()
  devices = devices_lib.resolve(
      num_available_gpus, flags_obj.batch_size, flags_obj.num_gpus,
      flags_obj.cpu_replicas, flags_obj.data_format,
      not flags_obj.turn_off_distribution_strategy, flags_obj.all_reduce_alg,
      flags_obj.tf_gpu_thread_mode, flags_obj.inter_op_parallelism_threads,
      flags_obj.intra_op_parallelism_threads,
      flags_obj.datasets_num_private_threads)
  os.environ.update(devices_lib.gpu_environment(
      flags_obj.tf_gpu_thread_mode, devices.num_gpus))
  return devices


def _run_settings(flags_obj, classifier_ids, dataset, devices, cluster):
  train = export = None
  mode = 'eval_only'
  if _is_training(flags_obj):
    mode = 'fine_tune' if flags_obj.fine_tune else 'train'
    train = resnet_run_loop.TrainSettings(
        flags_obj.train_epochs, flags_obj.epochs_between_evals,
        flags_obj.max_train_steps, flags_obj.stop_threshold, flags_obj.hooks)
  if flags_obj.export_dir:
    export = resnet_run_loop.ExportSettings(
        flags_obj.export_dir, flags_obj.image_bytes_as_serving_input)
  return resnet_run_loop.RunSettings(
      mode=mode,
      classifier_ids=classifier_ids,
      checkpoints=CheckpointPaths(
          flags_obj.model_dir, flags_obj.pretrained_model_checkpoint_path,
          flags_obj.head_model_dirs, flags_obj.clean,
          averages_drift=flags_obj.trunk_batch_norm == 'update'),
      devices=devices,
      cluster=cluster,
      batch_size=flags_obj.batch_size,
      num_images=dataset.num_images,
      image_shape=[flags_obj.image_size, flags_obj.image_size, NUM_CHANNELS],
      is_synthetic=flags_obj.use_synthetic_data,
      random_seed=flags_obj.random_seed,
      log_dir=flags_obj.benchmark_log_dir,
      flag_values=flag_values(flags_obj),
      train=train,
      export=export)


def flag_values(flags_obj):
  """A dict from name to value; not absl's own flags, nor TensorFlow's."""
  return {
      flag.name: flag.value
      for module, module_flags in flags_obj.flags_by_module_dict().items()
      if not module.startswith(('absl', 'tensorflow'))
      for flag in module_flags}


def _model_params(flags_obj, classifier_ids, dataset, devices, dtype):
  """What `imagenet_model_fn` reads."""
  loss_scale = flags_obj.loss_scale
  if loss_scale is None:
    loss_scale = _DEFAULT_LOSS_SCALES[flags_obj.dtype]
  return {
      'resnet_size': int(flags_obj.resnet_size),
      'data_format': devices.data_format,
      'batch_size': flags_obj.batch_size,
      'resnet_version': int(flags_obj.resnet_version),
      'loss_scale': loss_scale,
      'dtype': dtype,
      'fine_tune': flags_obj.fine_tune,
      'num_classes': dataset.num_classes,
      'num_train_images': dataset.num_images['train'],
      'batch_norm_decay': flags_obj.batch_norm_decay,
      'classifier_ids': classifier_ids,
      'trunk_batch_norm': flags_obj.trunk_batch_norm,
      'base_lr': flags_obj.base_lr,
  }


def _input_function(flags_obj, dataset, devices, dtype):
  """`input_fn` with all that the run does not vary."""
  image_size = flags_obj.image_size
  if flags_obj.use_synthetic_data:
    return functools.partial(imagenet_input.get_synth_input_fn(
        image_size, image_size, NUM_CHANNELS, NUM_CLASSES, dtype),
                             data_dir=None)
  return functools.partial(
      input_fn, data_dir=flags_obj.data_dir, dtype=dtype,
      datasets_num_private_threads=devices.input_threads,
      num_parallel_batches=flags_obj.datasets_num_parallel_batches or 1,
      image_size=image_size, num_classes=dataset.num_classes)


def main(argv):
  """Runs; what concerns the user ends in one line and exit status 1."""
  if len(argv) > 1:
    sys.exit(f'imagenet_main.py: unexpected argument {argv[1]!r}; flags begin '
             'with a dash')
  try:
    run_imagenet(flags.FLAGS)
  except UserError as error:
    # One line, even if a flag's value has several.
    sys.exit('imagenet_main.py: ' + ' '.join(str(error).split()))
  except KeyboardInterrupt:
    sys.stdout.flush()
    sys.stderr.write('imagenet_main.py: interrupted; the same command resumes '
                     'from the last checkpoint (without --clean) or the last '
                     'rows dumped\n')
    os._exit(130)  # TensorFlow's threads may still be at work.


def _parse_flags(argv):
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    sys.exit(f'imagenet_main.py: {" ".join(str(error).split())}; see --help')


def start():
  """Defines and parses the flags of the command line, and runs."""
  configure_logging()
  define_imagenet_flags()
  absl_app.run(main, flags_parser=_parse_flags)


if __name__ == '__main__':
  start()
