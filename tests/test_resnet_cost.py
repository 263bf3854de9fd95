"""What each classifier costs: the count in the graph against two others."""

import collections

import numpy as np
import pytest

import dump_record
import resnet_cost
import rule_weights
from imagenet_main import ImagenetModel
from tf_compat import tf


def build(size, version, image_size, num_classes):
  """Builds all exits in the default graph; their logits."""
  return ImagenetModel(size, 'channels_last', num_classes, version).exit_logits(
      tf.placeholder(tf.float32, [None, image_size, image_size, 3]),
      [0, 1, 2], False, False)


def counted_by_name(graph):
  """Costs from shapes alone, since a head is built right after its trunk.

  Returns:
    A list of (classifier, trunk MACs, head MACs, trunk parameters, head
    parameters).
  """
  def is_run(convolution):
    """Not if one with BN folded into it replaces it."""
    return not all(
        consumer.type.startswith('FusedBatchNorm') and
        not any(output.consumers() for output in consumer.outputs)
        for consumer in convolution.outputs[0].consumers())

  macs = []
  for op in graph.get_operations():
    if op.type == 'Conv2D' and is_run(op):
      _, rows, columns, _ = op.outputs[0].shape.as_list()
      kernel = op.inputs[1].shape.as_list()
      macs.append((op.name, rows * columns * int(np.prod(kernel))))
    elif op.type == 'MatMul':
      macs.append((op.name, int(np.prod(op.inputs[1].shape.as_list()))))
  parameters = [
      (variable.op.name, int(np.prod(variable.shape.as_list())))
      for variable in graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)
      if 'moving_' not in variable.op.name]
  costs = {k: [k] for k in (0, 1, 2)}
  for named_costs in (macs, parameters):
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
  return [tuple(costs[k]) for k in sorted(costs)]


@pytest.mark.parametrize('size, version, image_size, num_classes', [
    (18, 1, 64, 11), (34, 2, 64, 11), (50, 1, 224, 1001), (101, 2, 32, 11)])
def test_the_graph_against_a_count_by_name(size, version, image_size,
                                           num_classes):
  with tf.Graph().as_default() as graph:
    logits = build(size, version, image_size, num_classes)
  counted = resnet_cost.exit_costs(logits)
  assert [tuple(cost) for cost in counted] == counted_by_name(graph)
  # The plain network and what the exits add to it, as the rule lists them.
  by_rule = [sum(int(np.prod(shape)) for name, shape in variables.items()
                 if 'moving_' not in name and name != 'global_step')
             for variables in (
                 rule_weights.resnet_variables(size, version, num_classes),
                 rule_weights.cascade_variables(size, version, num_classes))]
  plain = counted[2].trunk_parameters + counted[2].head_parameters
  assert [plain, plain + counted[0].head_parameters +
          counted[1].head_parameters] == by_rule


def test_the_plain_network_costs_the_same_alone():
  """Whether it is built with its exits or, as by the official code, alone."""
  with tf.Graph().as_default():
    with_exits = resnet_cost.exit_costs(build(18, 2, 64, 11))
  with tf.Graph().as_default():
    logits = ImagenetModel(18, 'channels_last', 11)(
        tf.placeholder(tf.float32, [None, 64, 64, 3]), False)
    alone = resnet_cost.exit_costs({2: logits})
  assert alone == [with_exits[2]]


def test_the_network_of_the_paper():
  """To the last digit: 1,816,683,520 MACs to exit 0, and so on."""
  network = resnet_cost.describe(ImagenetModel(50, 'channels_last'), 224)
  assert network == dump_record.Network(
      resnet_version=2, resnet_size=50, image_size=224, num_classes=1001,
      exits=[
          dump_record.ExitCost(0, 1813561344, 3122176, 1442368, 3127273),
          dump_record.ExitCost(1, 3277897728, 3122176, 8537664, 3128297),
          dump_record.ExitCost(2, 4087136256, 2050048, 23500352, 2051049)])
  assert all(type(number) is int for cost in network.exits for number in cost)


def test_data_format_and_type_do_not_matter():
  described = [
      resnet_cost.describe(ImagenetModel(18, data_format, 11, 1, dtype), 32)
      for data_format, dtype in (('channels_last', tf.float32),
                                 ('channels_first', tf.float16))]
  assert described[0] == described[1]
