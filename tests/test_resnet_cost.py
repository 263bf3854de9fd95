"""What each classifier costs: the graph's count against the kernels'."""

import numpy as np
import pytest

import kernel_macs
import resnet_cost
import rule_weights
from imagenet_main import ImagenetModel
from shared_cascade_json import ExitCost, Network
from tf_compat import tf


def build(size, version, image_size, num_classes):
  """Builds all exits in the default graph; their logits."""
  return ImagenetModel(size, 'channels_last', num_classes, version).exit_logits(
      tf.placeholder(tf.float32, [None, image_size, image_size, 3]),
      [0, 1, 2], False, False)


@pytest.mark.parametrize('size, version, image_size, num_classes', [
    (18, 1, 64, 11), (34, 2, 64, 11), (50, 1, 224, 1001)])
def test_the_graph_against_a_count_by_kernels(size, version, image_size,
                                              num_classes):
  with tf.Graph().as_default():
    counted = resnet_cost.exit_costs(
        build(size, version, image_size, num_classes))
  assert {cost.classifier_id: (cost.trunk_macs, cost.head_macs)
          for cost in counted} == kernel_macs.macs_of_kernels(
              size, version, image_size, num_classes)
  # The plain network and what the exits add to it, as the rule lists them.
  by_rule = [sum(int(np.prod(shape)) for name, shape in variables.items()
                 if 'moving_' not in name and name != 'global_step')
             for variables in (
                 rule_weights.resnet_variables(size, version, num_classes),
                 rule_weights.cascade_variables(size, version, num_classes))]
  plain = counted[2].trunk_parameters + counted[2].head_parameters
  assert [plain, plain + counted[0].head_parameters +
          counted[1].head_parameters] == by_rule


def test_the_network_of_the_paper():
  """To the last digit: 1,816,683,520 MACs to exit 0, and so on."""
  network = resnet_cost.describe(ImagenetModel(50, 'channels_last'), 224)
  assert network == Network(
      resnet_version=2, resnet_size=50, image_size=224, num_classes=1001,
      exits=[
          ExitCost(0, 1813561344, 3122176, 1442368, 3127273),
          ExitCost(1, 3277897728, 3122176, 8537664, 3128297),
          ExitCost(2, 4087136256, 2050048, 23500352, 2051049)])
  assert all(type(number) is int for cost in network.exits for number in cost)
