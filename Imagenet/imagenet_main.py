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
import sys

from absl import app as absl_app
from absl import flags

from tf_compat import configure_logging, tf

import cascade_record
import dump_names
import dump_run
import gfile_system
import imagenet_input
import imagenet_preprocessing
import input_profile
import network_cost
import resnet_flags
import resnet_model
import resnet_run_loop
import resnet_tables
import softmax_dump
from cluster import take_from_environment
from imagenet_input import NUM_CHANNELS, input_fn, parse_record
from imagenet_shards import IMAGENET_NUM_CLASSES as NUM_CLASSES
from imagenet_shards import IMAGENET_NUM_IMAGES as NUM_IMAGES
from imagenet_shards import DatasetInfo, count_split, read_dataset_info
from read_errors import explain_read_error
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
    if resnet_size not in resnet_tables.BLOCK_SIZES:
      raise ValueError('resnet_size must be one of {}, not {!r}'.format(
          sorted(resnet_tables.BLOCK_SIZES), resnet_size))
    super(ImagenetModel, self).__init__(
        resnet_size=resnet_size,
        bottleneck=resnet_size >= resnet_tables.SMALLEST_BOTTLENECK_SIZE,
        num_classes=num_classes,
        num_filters=resnet_tables.NUM_FILTERS,
        kernel_size=resnet_tables.FIRST_KERNEL_SIZE,
        conv_stride=resnet_tables.FIRST_CONV_STRIDE,
        first_pool_size=3,
        first_pool_stride=resnet_tables.FIRST_POOL_STRIDE,
        block_sizes=resnet_tables.BLOCK_SIZES[resnet_size],
        block_strides=resnet_tables.BLOCK_STRIDES,
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
          str(size) for size in sorted(resnet_tables.BLOCK_SIZES)])
  flags.adopt_module_key_flags(resnet_flags)
  flags.DEFINE_float(
      'base_lr', None, lower_bound=0,
      help='Learning rate for a batch of {}; it scales with the batch. '
      'Default: {} with --fine_tune, else {}.'.format(
          _BATCH_DENOMINATOR, _FINE_TUNE_SCHEDULE['base_lr'],
          _TRAIN_SCHEDULE['base_lr']))


def run_imagenet(flags_obj):
  """Runs what the flags ask for.

  Returns:
    The results of `resnet_run_loop.resnet_main`.

  Raises:
    UserError: the flags, the data or the checkpoints do not fit; before any
      work where it can be known.
  """
  cluster = take_from_environment(os.environ)
  _check_flags(flags_obj)
  image_size = flags_obj.image_size
  classifier_ids = [resnet_model.FINAL_CLASSIFIER_ID]
  if flags_obj.is_cascaded:
    classifier_ids = resnet_flags.parsed_classifier_ids(flags_obj)
  dataset, splits = DatasetInfo(NUM_CLASSES, NUM_IMAGES), []
  if not flags_obj.use_synthetic_data:
    dataset, splits = _examine_data(flags_obj)
  shards = {split.name: list(split.paths) for split in splits}
  if flags_obj.profile_input:
    with explain_read_error(shards, image_size):
      _profile_input(flags_obj, shards, dataset)
    return {}
  dump_job = None
  if _is_dumping(flags_obj) and cluster.is_chief:
    dump_job = _prepare_dumps(flags_obj, classifier_ids, dataset, splits)

  if flags_obj.use_synthetic_data:
    input_function = imagenet_input.get_synth_input_fn(
        image_size, image_size, NUM_CHANNELS, NUM_CLASSES,
        resnet_flags.parsed_dtype(flags_obj))
  else:
    input_function = functools.partial(
        input_fn, image_size=image_size, num_classes=dataset.num_classes)
  with explain_read_error(shards, image_size):
    return resnet_run_loop.resnet_main(
        flags_obj, imagenet_model_fn, input_function, DATASET_NAME,
        shape=[image_size, image_size, NUM_CHANNELS],
        num_images=dataset.num_images,
        model_params={
            'num_classes': dataset.num_classes,
            'num_train_images': dataset.num_images['train'],
            'batch_norm_decay': flags_obj.batch_norm_decay,
            'classifier_ids': classifier_ids,
            'trunk_batch_norm': flags_obj.trunk_batch_norm,
            'base_lr': flags_obj.base_lr,
        },
        dump_job=dump_job,
        cluster=cluster)


def _check_flags(flags_obj):
  """Refuses values and combinations that cannot work."""
  if flags_obj.head_model_dirs and not flags_obj.eval_only:
    raise UserError('--head_model_dirs: is for --eval_only; --fine_tune trains '
                    'the heads of --model_dir')
  for name in ('head_model_dirs', 'dump_shard'):
    if flags_obj[name].value and not _is_dumping(flags_obj):
      raise UserError('--{}: is for dumps, and with --nodump_softmaxes, '
                      '--nois_cascaded or --use_synthetic_data there are none'
                      .format(name))
  if flags_obj.dump_shard and not flags_obj.eval_only:
    raise UserError('--dump_shard: is for --eval_only; the shards of one dump '
                    'have the same weights, so train first')
  if flags_obj.image_size <= 0 or (
      flags_obj.image_size % resnet_tables.IMAGE_SIZE_DIVISOR):
    raise UserError('--image_size {}: must be a multiple of {}'.format(
        flags_obj.image_size, resnet_tables.IMAGE_SIZE_DIVISOR))
  if flags_obj.profile_input and flags_obj.use_synthetic_data:
    raise UserError('--profile_input: excludes --use_synthetic_data, for which '
                    'nothing is read')
  if flags_obj.eval_only and flags_obj.fine_tune:
    raise UserError('--eval_only and --fine_tune exclude each other')
  if flags_obj.clean and (flags_obj.eval_only or not flags_obj.train_epochs):
    raise UserError('--clean: excludes --eval_only and --train_epochs 0; there '
                    'would be nothing left to evaluate')
  if flags_obj.clean and '://' in flags_obj.model_dir:
    raise UserError('--clean: --model_dir {} is not on this machine; remove it '
                    'by hand, or name another'.format(flags_obj.model_dir))


def _profile_input(flags_obj, shards, dataset):
  input_profile.profile(
      shards, flags_obj.batch_size, flags_obj.image_size, dataset.num_classes,
      flags_obj.profile_images, resnet_flags.parsed_dtype(flags_obj),
      flags_obj.datasets_num_private_threads,
      flags_obj.datasets_num_parallel_batches or 1,
      flags_obj.inter_op_parallelism_threads,
      flags_obj.intra_op_parallelism_threads)


def _is_dumping(flags_obj):
  return (flags_obj.is_cascaded and flags_obj.dump_softmaxes and
          not flags_obj.use_synthetic_data)


def _examine_data(flags_obj):
  """Counts classes and images and finds the shards of each split needed.

  Returns:
    `DatasetInfo` with the images that are there; list of `dump_run.Split`.
  """
  dataset = read_dataset_info(flags_obj.data_dir)
  only_evaluates = flags_obj.eval_only and not _is_dumping(flags_obj)
  splits = [
      dump_run.Split(name, *count_split(flags_obj.data_dir, name, dataset))
      for name in (['validation'] if only_evaluates else dump_names.SPLITS)]
  num_images = dict(dataset.num_images)
  num_images.update((split.name, sum(split.counts)) for split in splits)
  return dataset._replace(num_images=num_images), splits


def _prepare_dumps(flags_obj, classifier_ids, dataset, splits):
  """Makes and checks the folder of the dumps; a `dump_run.DumpJob`."""
  make_model = functools.partial(
      ImagenetModel, int(flags_obj.resnet_size),
      num_classes=dataset.num_classes,
      resnet_version=int(flags_obj.resnet_version))
  network = network_cost.describe(
      make_model(data_format='channels_last'),
      [flags_obj.image_size, flags_obj.image_size, NUM_CHANNELS])
  folder = flags_obj.softmax_dir
  file_system = gfile_system.of_folder(folder)
  shard = dump_names.parse_shard(flags_obj.dump_shard)
  softmax_dump.prepare_folder(
      folder, dataset.num_images, dataset.num_classes, classifier_ids, shard,
      flags_obj.batch_size, file_system)
  cascade_record.check_folder(folder, network, file_system)

  def make_dataset():
    placeholders = {
        'shards': tf.placeholder(tf.string, [None]),
        'num_skipped': tf.placeholder(tf.int64, [None]),
        'num_records': tf.placeholder(tf.int64, []),
    }
    return imagenet_input.evaluation_dataset(
        batch_size=flags_obj.batch_size,
        dtype=resnet_flags.parsed_dtype(flags_obj),
        image_size=flags_obj.image_size, num_classes=dataset.num_classes,
        datasets_num_private_threads=flags_obj.datasets_num_private_threads,
        num_parallel_batches=flags_obj.datasets_num_parallel_batches or 1,
        **placeholders), placeholders

  return dump_run.DumpJob(
      make_model, classifier_ids, make_dataset, splits, network, folder,
      file_system, shard)


def main(argv):
  """Runs; what concerns the user ends in one line and exit status 1."""
  if len(argv) > 1:
    sys.exit('imagenet_main.py: unexpected argument {!r}; flags begin with '
             'a dash'.format(argv[1]))
  try:
    run_imagenet(flags.FLAGS)
  except UserError as error:
    sys.exit('imagenet_main.py: {}'.format(error))
  except KeyboardInterrupt:
    sys.stdout.flush()
    sys.stderr.write('imagenet_main.py: interrupted; the same command goes on '
                     'from the last checkpoint (without --clean), or where the '
                     'dump was left\n')
    os._exit(130)  # TensorFlow's threads may still be at work.


def _parse_flags(argv):
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    sys.exit('imagenet_main.py: {}; see --help'.format(
        ' '.join(str(error).split())))


def start():
  """Defines and parses the flags of the command line, and runs."""
  configure_logging()
  define_imagenet_flags()
  absl_app.run(main, flags_parser=_parse_flags)


if __name__ == '__main__':
  start()
