"""The flags: names, short names, defaults and values, as published."""

import pytest
from absl import flags

import command_line

# Name, short name, default, another value as typed, and as parsed.
WITH_VALUE = [
    ('data_dir', 'dd', '/tmp', '/some/where', '/some/where'),
    ('model_dir', 'md', '/tmp', '/some/where', '/some/where'),
    ('train_epochs', 'te', 90, '20', 20),
    ('epochs_between_evals', 'ebe', 1, '5', 5),
    ('stop_threshold', 'st', None, '0.75', 0.75),
    ('batch_size', 'bs', 32, '256', 256),
    ('num_gpus', 'ng', None, '4', 4),
    ('hooks', 'hk', ['LoggingTensorHook'], 'ProfilerHook,LoggingMetricHook',
     ['ProfilerHook', 'LoggingMetricHook']),
    ('export_dir', 'ed', None, '/some/where', '/some/where'),
    ('inter_op_parallelism_threads', 'inter', 0, '3', 3),
    ('intra_op_parallelism_threads', 'intra', 0, '3', 3),
    ('max_train_steps', 'mts', None, '17', 17),
    ('dtype', 'dt', 'fp32', 'fp16', 'fp16'),
    ('loss_scale', 'ls', None, '8', 8),
    ('all_reduce_alg', 'ara', None, 'nccl', 'nccl'),
    ('tf_gpu_thread_mode', 'gt_mode', None, 'gpu_private', 'gpu_private'),
    ('datasets_num_private_threads', None, None, '3', 3),
    ('datasets_num_parallel_batches', None, None, '3', 3),
    ('data_format', 'df', None, 'channels_first', 'channels_first'),
    ('benchmark_log_dir', 'bld', None, '/some/where', '/some/where'),
    ('resnet_version', 'rv', '1', '2', '2'),
    ('resnet_size', 'rs', '50', '18', '18'),
    ('pretrained_model_checkpoint_path', 'pmcp', None, 'a/b', 'a/b'),
    ('classifier_id', None, ['2'], '0,1', ['0', '1']),
    # Of this project.
    ('head_model_dirs', None, [], 'a/b,c', ['a/b', 'c']),
    ('dump_shard', None, None, '2/4', '2/4'),
    ('softmax_dir', None, 'output_softmax', 'a/b', 'a/b'),
    ('image_size', None, 224, '64', 64),
    ('batch_norm_decay', None, 0.997, '0.9', 0.9),
    ('trunk_batch_norm', None, 'frozen', 'update', 'update'),
    ('cpu_replicas', None, 0, '2', 2),
    ('random_seed', None, None, '7', 7),
]

# Name, short name, default.
BOOLEANS = [
    ('clean', None, False),
    ('use_synthetic_data', 'synth', False),
    ('fine_tune', 'ft', False),
    ('eval_only', None, False),
    ('image_bytes_as_serving_input', None, False),
    ('turn_off_distribution_strategy', None, False),
    ('is_cascaded', None, True),
    # Of this project.
    ('dump_softmaxes', None, True),
]

NAMES = [row[0] for row in WITH_VALUE]
BOOLEAN_NAMES = [row[0] for row in BOOLEANS]


def value_of(name, *args):
  return command_line.parse(*args)[name].value


@pytest.mark.parametrize('row', WITH_VALUE, ids=NAMES)
def test_flag_with_a_value(row):
  name, short_name, default, typed, parsed = row
  assert value_of(name) == default
  assert value_of(name, '--' + (short_name or name), typed) == parsed
  assert flags.FLAGS[name].short_name == short_name
  assert flags.FLAGS[name].help


@pytest.mark.parametrize('row', BOOLEANS, ids=BOOLEAN_NAMES)
def test_boolean_flag(row):
  name, short_name, default = row
  assert value_of(name) is default
  assert value_of(name, '-' + (short_name or name)) is True
  assert value_of(name, '--no' + name) is False
  assert flags.FLAGS[name].short_name == short_name
  assert flags.FLAGS[name].help


def test_every_flag_is_in_these_tables():
  command_line.parse()
  defined = {
      flag.name for module, own_flags in
      flags.FLAGS.flags_by_module_dict().items()
      if module in ('resnet_flags', 'imagenet_main') for flag in own_flags}
  assert defined - {'base_lr'} == set(NAMES + BOOLEAN_NAMES)


def test_help_shows_them():
  command_line.parse()
  shown = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(
      'imagenet_main')}
  assert shown == set(NAMES + BOOLEAN_NAMES + ['base_lr'])


def test_published_command_parses():
  parsed = command_line.parse(*(
      '--fine_tune --te 20 --is_cascaded --classifier_id 0 --data_format '
      'channels_first -rv 2 -rs 50 -md checkpoints/clf0 -pmcp checkpoints/'
      'resnet_imagenet_v2_fp32_20181001 --data_dir /data/tf_records '
      '--num_gpus 4').split())
  assert parsed.fine_tune and not parsed.eval_only
  assert (parsed.train_epochs, parsed.classifier_id) == (20, ['0'])
  assert (parsed.resnet_version, parsed.resnet_size) == ('2', '50')
  assert (parsed.model_dir, parsed.num_gpus) == ('checkpoints/clf0', 4)
  assert parsed.pretrained_model_checkpoint_path == (
      'checkpoints/resnet_imagenet_v2_fp32_20181001')


@pytest.mark.parametrize('args', [
    ['--train_epochs', '-1'], ['--epochs_between_evals', '0'],
    ['--batch_size', '0'], ['--num_gpus', '-2'], ['--max_train_steps', '0'],
    ['--loss_scale', '0'], ['--datasets_num_private_threads', '0'],
    ['--dtype', 'fp64'], ['--resnet_size', '51'],
    ['--batch_norm_decay', '1.5'], ['--hooks', 'LoggingTensorHook,NoSuchHook'],
    ['--profile_input'],
])
def test_wrong_values_are_refused(args):
  with pytest.raises(flags.Error) as error:
    command_line.parse(*args)
  assert args[0].lstrip('-') in str(error.value)


@pytest.mark.parametrize('typed, hooks', [
    ('LOGGINGTENSORHOOK, profilerhook', ['LOGGINGTENSORHOOK', 'profilerhook']),
    ('', []),
])
def test_hooks_in_any_letter_case(typed, hooks):
  assert command_line.parse('--hooks', typed).hooks == hooks
