"""The flags: names, short names, defaults and values, as published."""

from absl import flags

import command_line

# Short names and defaults, as published; no short name: ''.
PUBLISHED = {
    'data_dir': ('dd', '/tmp'), 'model_dir': ('md', '/tmp'),
    'clean': ('', False), 'train_epochs': ('te', 90),
    'epochs_between_evals': ('ebe', 1), 'stop_threshold': ('st', None),
    'batch_size': ('bs', 32), 'num_gpus': ('ng', None),
    'hooks': ('hk', ['LoggingTensorHook']), 'export_dir': ('ed', None),
    'inter_op_parallelism_threads': ('inter', 0),
    'intra_op_parallelism_threads': ('intra', 0),
    'use_synthetic_data': ('synth', False), 'max_train_steps': ('mts', None),
    'dtype': ('dt', 'fp32'), 'loss_scale': ('ls', None),
    'all_reduce_alg': ('ara', None), 'tf_gpu_thread_mode': ('gt_mode', None),
    'datasets_num_private_threads': ('', None),
    'datasets_num_parallel_batches': ('', None), 'data_format': ('df', None),
    'benchmark_log_dir': ('bld', None), 'resnet_version': ('rv', '1'),
    'resnet_size': ('rs', '50'), 'fine_tune': ('ft', False),
    'pretrained_model_checkpoint_path': ('pmcp', None),
    'eval_only': ('', False), 'image_bytes_as_serving_input': ('', False),
    'turn_off_distribution_strategy': ('', False), 'is_cascaded': ('', True),
    'classifier_id': ('', ['2']),
}


def test_published_names_and_defaults():
  command_line.parse()
  for name, expected in PUBLISHED.items():
    flag = flags.FLAGS[name]
    assert (flag.short_name or '', flag.value) == expected, name


def test_home_folder_in_paths(monkeypatch):
  """As shells leave it after `=`."""
  monkeypatch.setenv('HOME', '/at/home')
  parsed = command_line.parse(
      '--softmax_dir=~/x', '--head_model_dirs=~/a,b/~', '--export_dir=~/e')
  assert parsed.softmax_dir == '/at/home/x'
  assert parsed.head_model_dirs == ['/at/home/a', 'b/~']
  assert parsed.export_dir == '/at/home/e'
