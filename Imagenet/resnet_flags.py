"""The flags of the official ResNet and those of the cascade.

Names, short names and defaults are those of the official models of October
2018 and of the paper's repository; what this project adds comes last. They are
read in `imagenet_main.py` and `run_cascade.py` and nowhere else, and never
written to.
"""

import logging
import os
import sys

from absl import app
from absl import flags

import resnet_model
from shared_results import CONFIDENCE_TERMS
from shared_terminal import run_main
from tf_compat import configure_logging
from training_hooks import HOOK_NAMES


def run_command_line(define_flags, run, log_level=logging.INFO):
  """Defines and parses the flags, runs, and ends the process.

  Args:
    run: a function from the parsed flags and the list of the arguments that
      are no flags to the exit status, or None; see `shared_terminal.run_main`.
    log_level: of our own log lines.
  """
  def parse(argv):
    try:
      return flags.FLAGS(argv)
    except flags.Error as error:
      sys.exit(f'{os.path.basename(argv[0])}: {" ".join(str(error).split())}; '
               'see --help')

  def main(argv):
    status = run_main(lambda: run(flags.FLAGS, argv[1:]))
    if status == 130:
      sys.stdout.flush()
      os._exit(status)  # TensorFlow's threads may still be at work.
    sys.exit(status)

  configure_logging(log_level)
  define_flags()
  app.run(main, flags_parser=parse)


class _PathParser(flags.ArgumentParser):
  """A path. Shells leave `~` alone in --flag=~/folder."""
  syntactic_help = 'a path'

  def parse(self, argument):
    return os.path.expanduser(argument)


class _PathListParser(flags.ListParser):

  def parse(self, argument):
    return [os.path.expanduser(path) for path in super().parse(argument)]


def _define_path(name, default, **kwargs):
  flags.DEFINE(_PathParser(), name, default,
               serializer=flags.ArgumentSerializer(), **kwargs)


def define_run_cascade_flags():
  """Defines the flags of `run_cascade.py`, some of which are shared."""
  _define_network_flags()
  _define_path(
      'data_dir', None, short_name='dd',
      help='Folder of the TFRecords, or of their dataset.json for the names of '
      'the classes.')
  flags.DEFINE_list(
      'classifier_id', [str(k) for k in resnet_model.CLASSIFIER_IDS],
      help='The exits: the last one and at least one before it, such as 0,2.')
  flags.DEFINE_list(
      'thresholds', None,
      help='The confidence at which an image leaves, for each exit but the '
      'last, such as 0.9,0.8; inf: no image leaves.')
  _define_path(
      'results', None,
      help='The -output_dir of analyze_imagenet_labels.py, for --choose.')
  flags.DEFINE_string(
      'choose', None,
      help='The thresholds of a row of cascade.csv: METHOD:SETTING, such as '
      'cst:2; "accuracy_drop<=X", the cheapest row that loses at most so many '
      'percentage points against the plain network; or "speedup>=X" or '
      '"gmacs<=X", the row that loses least.')
  flags.DEFINE_enum(
      'metric', 'top1', list(CONFIDENCE_TERMS),
      help='Confidence is the largest softmax (top1) or the sum of the five '
      'largest (top5).')
  flags.DEFINE_enum(
      'split', None, ['validation', 'train'],
      help='Run this split of the records in --data_dir.')
  flags.DEFINE_boolean(
      'compare', True,
      help='With --split, also run the plain network, in turns, and time both.')
  _define_path(
      'output_dir', None, short_name='od',
      help='Folder for predictions.csv, run.json and stage_seconds.json.')
  _define_path(
      'export_dir', None, short_name='ed',
      help='Export the cascade as a SavedModel into this folder.')
  flags.DEFINE_string(
      'export_onnx', None,
      help='Export the cascade into this folder for run_onnx_cascade.py, which '
      'needs ONNX Runtime and no TensorFlow.')
  flags.DEFINE_boolean(
      'profile_stages', False,
      help='Measure the seconds per image of every exit, for batches of 1, 2, '
      '4 ... --batch_size images, into stage_seconds.json in --output_dir.')


def _define_network_flags(resnet_size_choices=None):
  """The flags of both command lines: network, weights, and devices."""
  flags.DEFINE_enum(
      'resnet_version', '1', ['1', '2'], short_name='rv',
      help='1: BN and ReLU after each convolution; 2: before.')
  flags.DEFINE_enum(
      'resnet_size', '50', resnet_size_choices or [
          str(size) for size in sorted(resnet_model.BLOCK_SIZES)],
      short_name='rs', help='Depth of the network.')
  flags.DEFINE_integer(
      'image_size', 224,
      help='Height and width of the images, a multiple of 32.')
  flags.DEFINE_enum(
      'dtype', 'fp32', ['fp16', 'fp32'], short_name='dt',
      help='Precision of the computation; variables are float32 always.')
  _define_path(
      'model_dir', '/tmp', short_name='md',
      help='Folder of checkpoints and summaries. A training resumes from the '
      'newest checkpoint found here.')
  _define_path(
      'pretrained_model_checkpoint_path', None, short_name='pmcp',
      help='Checkpoint, or folder of one, with the pretrained trunk. If '
      '--model_dir already holds a checkpoint of these classifiers, that one '
      'is used, and its trunk must be this one.')
  flags.DEFINE(
      _PathListParser(), 'head_model_dirs', [],
      serializer=flags.ListSerializer(','),
      help='Without training: folders of checkpoints to take the heads from, '
      'separated by commas; the trunk is that of '
      '--pretrained_model_checkpoint_path, else of --model_dir. Default: '
      '--model_dir.')
  flags.DEFINE_integer(
      'batch_size', 32, short_name='bs', lower_bound=1,
      help='Images in a step, over all replicas.')
  flags.DEFINE_integer(
      'num_gpus', None, short_name='ng', lower_bound=-1,
      help='GPUs to use: one replica on each. -1 for all there are, 0 for '
      'none. Default: one if there is one.')
  flags.DEFINE_enum(
      'data_format', None, ['channels_first', 'channels_last'],
      short_name='df',
      help='Layout of the maps. channels_first is faster on GPUs and does not '
      'exist on CPUs. Default: what suits the devices.')
  flags.DEFINE_integer(
      'inter_op_parallelism_threads', 0, short_name='inter', lower_bound=0,
      help='Threads for independent operations; 0 for as many as cores.')
  flags.DEFINE_integer(
      'intra_op_parallelism_threads', 0, short_name='intra', lower_bound=0,
      help='Threads within an operation; 0 for as many as cores.')
  flags.DEFINE_integer(
      'datasets_num_private_threads', None, lower_bound=1,
      help='Threads for the input pipeline alone.')
  flags.DEFINE_integer(
      'datasets_num_parallel_batches', None, lower_bound=1,
      help='Batches decoded at the same time. Default: 1.')
  flags.DEFINE_boolean(
      'image_bytes_as_serving_input', False,
      help='--export_dir: the SavedModel takes JPEG bytes, not image tensors.')


def define_resnet_flags(resnet_size_choices=None):
  """Defines every flag of training, evaluation and dumps.

  `resnet_size_choices` are strings; None for the sizes of `BLOCK_SIZES`.
  """
  _define_network_flags(resnet_size_choices)
  _define_path(
      'data_dir', '/tmp', short_name='dd',
      help='Folder of the TFRecords.')
  flags.DEFINE_boolean(
      'clean', False,
      help='Remove what an earlier run left in --model_dir first.')
  flags.DEFINE_integer(
      'train_epochs', 90, short_name='te', lower_bound=0,
      help='Passes over the training images; 0 to evaluate only.')
  flags.DEFINE_integer(
      'epochs_between_evals', 1, short_name='ebe', lower_bound=1,
      help='Training epochs from one evaluation to the next.')
  flags.DEFINE_float(
      'stop_threshold', None, short_name='st',
      help='Stop training at this top-1 validation accuracy (a fraction).')
  flags.DEFINE_list(
      'hooks', 'LoggingTensorHook', short_name='hk',
      help='Hooks during training, separated by commas, in any letter case: '
      f'{", ".join(HOOK_NAMES)}.')
  flags.register_validator(
      'hooks',
      lambda names: all(name.lower() in [hook.lower() for hook in HOOK_NAMES]
                        for name in names),
      f'hooks are {", ".join(HOOK_NAMES)}')
  _define_path(
      'export_dir', None, short_name='ed',
      help='Export the classifier as a SavedModel into this folder at the '
      'end.')
  _define_path(
      'benchmark_log_dir', None, short_name='bld',
      help='Folder for metric.log and benchmark_run.log.')
  flags.DEFINE_boolean(
      'use_synthetic_data', False, short_name='synth',
      help='Random images instead of --data_dir, to time the model alone. '
      'Nothing is dumped.')
  flags.DEFINE_integer(
      'max_train_steps', None, short_name='mts', lower_bound=1,
      help='Stop training at this step.')
  flags.DEFINE_integer(
      'loss_scale', None, short_name='ls', lower_bound=1,
      help='Factor of the loss while gradients are computed. Default: 1, and '
      '128 with fp16.')
  flags.DEFINE_enum(
      'all_reduce_alg', None, ['nccl', 'hierarchical_copy'], short_name='ara',
      help='How replicas add up their gradients. Default: TensorFlow\'s '
      'choice.')
  flags.DEFINE_enum(
      'tf_gpu_thread_mode', None, ['global', 'gpu_private', 'gpu_shared'],
      short_name='gt_mode',
      help='Whether a GPU\'s operations have threads of their own.')
  flags.DEFINE_boolean(
      'turn_off_distribution_strategy', False,
      help='No MirroredStrategy; at most one GPU then.')
  flags.DEFINE_boolean(
      'fine_tune', False, short_name='ft',
      help='Train classifiers only: with --is_cascaded those of '
      '--classifier_id, else the last layer, anew.')
  flags.DEFINE_boolean(
      'eval_only', False,
      help='No training: evaluate and dump. What --model_dir lacks comes from '
      '--pretrained_model_checkpoint_path.')
  flags.DEFINE_boolean(
      'is_cascaded', True,
      help='Early exits: train and dump the classifiers of --classifier_id. '
      'With --nois_cascaded it is the plain network.')
  flags.DEFINE_list(
      'classifier_id', [str(resnet_model.FINAL_CLASSIFIER_ID)],
      help='0 and 1: the classifiers after block layers 2 and 3; 2: the '
      'network\'s own. Several, such as 0,1, are trained in one run and '
      'dumped in one pass.')

  # What this project adds.
  flags.DEFINE_boolean(
      'dump_softmaxes', True,
      help='With --is_cascaded: end with the dumps. --nodump_softmaxes trains '
      'and evaluates only.')
  flags.DEFINE_string(
      'dump_shard', None,
      help='--eval_only: dump this part of the rows only, such as 2/4: the '
      'second of four. The parts are put together when they are read.')
  _define_path(
      'softmax_dir', 'output_softmax',
      help='Folder of the softmax dumps, on this machine.')
  flags.DEFINE_float(
      'batch_norm_decay', resnet_model.BATCH_NORM_DECAY,
      lower_bound=0, upper_bound=1,
      help='Decay of BN\'s moving averages; short trainings need less.')
  flags.DEFINE_enum(
      'trunk_batch_norm', 'frozen', ['frozen', 'update'],
      help='BN of the trunk while a head is fine-tuned. frozen: moving '
      'averages, unchanged; update: the batch\'s statistics, and the averages '
      'follow (the published code does so).')
  flags.DEFINE_integer(
      'cpu_replicas', 0, lower_bound=0,
      help='Replicas on the CPU instead of GPUs, to try a multi-GPU command '
      'on a machine without.')
  flags.DEFINE_integer(
      'random_seed', None,
      help='Seed of initial weights and of the order of the images. The '
      'distortions, drawn by several threads, differ from run to run.')
