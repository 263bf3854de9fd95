"""The count in the graph, against two others; `cascade.json` of real runs."""

import collections
import json
import os

import numpy as np
import pytest

import command_line
import dump_names
import dump_run
import network_cost
import rule_weights
import tiny_checkpoints
import tiny_records
from cascade import macs
from imagenet_main import ImagenetModel
from tf_compat import tf
from user_error import UserError

SHARED_VARIABLES = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), '..', '..', 'shared',
    'official_resnet50_v2_variables.json')


def build(size, version, image_size, num_classes,
          data_format='channels_last', batch=None):
  """Builds all exits in the default graph; their logits."""
  model = ImagenetModel(size, data_format, num_classes, version)
  return model.exit_logits(
      tf.placeholder(tf.float32, [batch, image_size, image_size, 3]),
      [0, 1, 2], False, False)


def counted_in_order_of_creation(graph):
  """Costs from shapes alone, since a head is built right after its trunk.

  Returns:
    A list of `[classifier, trunk MACs, head MACs, trunk parameters, head
    parameters]`.
  """
  def is_run(convolution):
    """Not if another, with the BN that follows folded in, stands for it."""
    return not all(
        consumer.type.startswith('FusedBatchNorm') and
        not any(output.consumers() for output in consumer.outputs)
        for consumer in convolution.outputs[0].consumers())

  macs_of_ops = []
  for op in graph.get_operations():
    if op.type == 'Conv2D' and is_run(op):
      _, rows, columns, _ = op.outputs[0].shape.as_list()
      height, width, channels_in, channels_out = op.inputs[1].shape.as_list()
      macs_of_ops.append((op.name, rows * columns * height * width *
                          channels_in * channels_out))
    elif op.type == 'MatMul':
      channels_in, channels_out = op.inputs[1].shape.as_list()
      macs_of_ops.append((op.name, channels_in * channels_out))
  parameters = [
      (variable.op.name, int(np.prod(variable.shape.as_list())))
      for variable in graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)
      if 'moving_' not in variable.op.name]
  costs = {k: [k] for k in (0, 1, 2)}
  for named_costs in (macs_of_ops, parameters):
    trunk, trunks, heads = 0, {}, collections.Counter()
    for name, cost in named_costs:
      layer = name.split('/')[1]
      k = {'cascaded0': 0, 'cascaded1': 1, 'dense': 2}.get(layer.split('_')[0])
      if k is None:
        trunk += cost
      else:
        trunks.setdefault(k, trunk)
        heads[k] += cost
    for k in costs:
      costs[k] += [trunks[k], heads[k]]
  return [costs[k] for k in sorted(costs)]


@pytest.mark.parametrize('size, version, image_size, num_classes', [
    (size, version, 224, 1001)
    for size in (18, 34, 50, 101, 152, 200) for version in (1, 2)] + [
        (size, version, 64, 11) for size in (18, 50) for version in (1, 2)])
def test_three_counts_agree(size, version, image_size, num_classes):
  with tf.Graph().as_default() as graph:
    logits = build(size, version, image_size, num_classes)
  counted = network_cost.exit_costs(logits)
  assert [list(cost) for cost in counted] == counted_in_order_of_creation(graph)
  exits = macs.resnet_macs(size, image_size, num_classes)
  assert [(cost.classifier_id, (cost.trunk_macs, cost.head_macs))
          for cost in counted] == list(exits.items())
  # The plain network and what the exits add to it, as the rule lists them.
  by_rule = [sum(int(np.prod(shape)) for name, shape in variables.items()
                 if 'moving_' not in name and name != 'global_step')
             for variables in (
                 rule_weights.resnet_variables(size, version, num_classes),
                 rule_weights.cascade_variables(size, version, num_classes))]
  plain = counted[2].trunk_parameters + counted[2].head_parameters
  assert [plain, plain + counted[0].head_parameters +
          counted[1].head_parameters] == by_rule


def test_plain_network_is_counted_alike():
  """Whether it is built with its exits or, as by the official code, alone."""
  with tf.Graph().as_default():
    with_exits = network_cost.exit_costs(build(18, 2, 64, 11))
  with tf.Graph().as_default():
    logits = ImagenetModel(18, 'channels_last', 11)(
        tf.placeholder(tf.float32, [None, 64, 64, 3]), False)
    alone = network_cost.exit_costs({2: logits})
  assert alone == with_exits[2:]


def test_network_of_the_paper():
  """To the last digit; parameters, of the official checkpoint's variables."""
  before = tf.get_default_graph().get_operations()
  network = network_cost.describe(
      ImagenetModel(50, 'channels_last'), [224, 224, 3])
  assert tf.get_default_graph().get_operations() == before
  assert network[:4] == (2, 50, 224, 1001)
  assert [tuple(cost) for cost in network.exits] == [
      (0, 1813561344, 3122176, 1442368, 3127273),
      (1, 3277897728, 3122176, 8537664, 3128297),
      (2, 4087136256, 2050048, 23500352, 2051049)]
  assert all(type(number) is int for cost in network.exits for number in cost)


@pytest.mark.skipif(not os.path.exists(SHARED_VARIABLES),
                    reason='the list of the official checkpoint is not here')
def test_parameters_of_the_official_checkpoint():
  with open(SHARED_VARIABLES) as variables_file:
    official = json.load(variables_file)
  assert sum(int(np.prod(shape)) for name, shape in official.items()
             if 'moving_' not in name and name != 'global_step') == (
                 23500352 + 2051049)


def test_data_format_and_type_do_not_matter():
  described = [
      network_cost.describe(
          ImagenetModel(18, data_format, 11, 1, dtype), [32, 32, 3])
      for data_format, dtype in (('channels_last', tf.float32),
                                 ('channels_first', tf.float32),
                                 ('channels_last', tf.float16))]
  assert described[1:] == described[:1] * 2
  assert described[0][:4] == (1, 18, 32, 11)


def test_a_convolution_and_a_product_by_hand():
  """Neither square, strided, in both formats, under the names of head 0."""
  for data_format, shape in (('channels_last', [None, 10, 14, 3]),
                             ('channels_first', [None, 3, 10, 14])):
    with tf.Graph().as_default():
      images = tf.placeholder(tf.float32, shape)
      outputs = tf.layers.conv2d(
          images, filters=5, kernel_size=[3, 2], strides=[2, 3],
          padding='VALID', use_bias=True, data_format=data_format)
      with tf.variable_scope('resnet_model'):
        logits = tf.layers.dense(
            tf.layers.flatten(outputs), 7, name='cascaded0_fc0')
      # [10, 14] gives [4, 5] places.
      assert network_cost.exit_costs({0: logits}) == [(
          0, 4 * 5 * 3 * 2 * 3 * 5, 4 * 5 * 5 * 7, 3 * 2 * 3 * 5 + 5,
          4 * 5 * 5 * 7 + 7)]


# ---- Runs -------------------------------------------------------------------

NUM_CLASSES = 11
SPLIT_SHARDS = {'train': [5], 'validation': [3]}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A working folder of records and a pretrained trunk."""
  path = tmp_path_factory.mktemp('runs')
  tiny_records.make_data_set(
      str(path / 'tf_records'), SPLIT_SHARDS, NUM_CLASSES)
  tiny_checkpoints.write_checkpoint(
      path / 'trunk', rule_weights.rule_variables(
          rule_weights.resnet_variables(18, 2, NUM_CLASSES)), 225207)
  return path


def dump(classifier_id, *more):
  """Step 3 for one classifier of ResNet-18 at 32 pixels."""
  mode = ['--eval_only'] if classifier_id == 2 else [
      '--fine_tune', '--te', 1, '-mts', 1]
  command_line.run(*mode + [
      '--classifier_id', classifier_id, '-rv', 2, '-rs', 18, '--image_size',
      32, '-bs', 4, '-md', 'checkpoints/clf{}'.format(classifier_id), '-pmcp',
      'trunk', '--data_dir', 'tf_records'] + list(more))


def read_record():
  with open('output_softmax/cascade.json') as stream:
    return json.load(stream)


def test_published_runs(folder, monkeypatch):
  """One classifier per command; the later ones add to the record."""
  monkeypatch.chdir(str(folder))
  exits = macs.resnet_macs(18, 32, NUM_CLASSES)
  (trunk0, head0), (trunk2, head2) = exits[0], exits[2]
  dump(2)
  record = read_record()
  assert {key: record[key] for key in (
      'format_version', 'network', 'resnet_version', 'resnet_size',
      'image_size', 'num_classes')} == {
          'format_version': 1, 'network': 'ResNet-v2-18', 'resnet_version': 2,
          'resnet_size': 18, 'image_size': 32, 'num_classes': NUM_CLASSES}
  origin = record['exits'][0]['origin']
  assert origin['versions']['tensorflow'] == tf.VERSION
  assert origin['flags']['resnet_size'] == '18'
  assert record['plain_network_macs'] == trunk2 + head2
  # 512 x 11 weights and 11 biases.
  assert record['exits'][0]['head_parameters'] == 5643
  assert [(entry['classifier_id'], entry['cumulative_macs'],
           entry['origin']['trunk_checkpoint'],
           entry['origin']['head_checkpoint'])
          for entry in record['exits']] == [
              (2, trunk2 + head2, 'trunk/model.ckpt-225207',
               'trunk/model.ckpt-225207')]

  dump(0)
  merged = read_record()
  assert merged['plain_network_macs'] == trunk2 + head2
  assert merged['plain_network_parameters'] == (
      record['plain_network_parameters'])
  assert [(entry['classifier_id'], entry['trunk_macs'], entry['head_macs'],
           entry['cumulative_macs'], entry['origin']['head_checkpoint'])
          for entry in merged['exits']] == [
              (0, trunk0, head0, trunk0 + head0,
               'checkpoints/clf0/model.ckpt-1'),
              (2, trunk2, head2, trunk2 + head0 + head2,
               'trunk/model.ckpt-225207')]
  assert not [name for name in os.listdir('output_softmax')
              if 'unfinished' in name]

  cost = macs.network_cost(None, 'output_softmax', [0, 2], NUM_CLASSES)
  assert cost == macs.NetworkCost(
      'ResNet-v2-18', 'cascade.json in output_softmax',
      [trunk0 + head0, trunk2 + head0 + head2], trunk2 + head2, False)

  # Another network into the same folder: refused, and before the training.
  with pytest.raises(UserError) as error:
    dump(1, '-rv', 1)
  assert str(error.value).startswith('--softmax_dir output_softmax: ')
  assert 'resnet_version 2, here 1' in str(error.value)
  assert not os.path.exists('checkpoints/clf1')
  assert read_record() == merged


def test_dump_that_fails_is_not_recorded(folder, monkeypatch):
  monkeypatch.chdir(str(folder))
  splits = []
  dump_split = dump_run._dump_split

  def fail_at_the_second_split(job, split, *args):
    splits.append(split.name)
    if len(splits) == 2:
      raise KeyboardInterrupt
    return dump_split(job, split, *args)

  monkeypatch.setattr(dump_run, '_dump_split', fail_at_the_second_split)
  with pytest.raises(KeyboardInterrupt):
    dump(2, '--softmax_dir', 'failed')
  assert splits == list(dump_names.SPLITS)
  # The split that is done stays, and what tells that it is; no `cascade.json`.
  names = {name for name in os.listdir('failed')
           if dump_names.UNFINISHED_SUFFIX not in name}
  assert names == {dump_names.labels_file_name('validation')}.union(
      dump_names.classifier_file_names(2, 'validation'))
