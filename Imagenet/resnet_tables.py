"""The networks and their exits, as tables; no TensorFlow.

What `resnet_model.py` and `imagenet_main.py` build, and what the analysis
counts the multiply-accumulates of (`cascade/macs.py`). The trunk is the
official ResNet (TensorFlow models, October 2018), the heads are those of
Berestizshevsky & Even, "Cascaded Inference Based on Softmax Confidence", 2019,
section 4.
"""

import collections

# Blocks in each block layer; from 50 on they are bottlenecks.
BLOCK_SIZES = {
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
    200: [3, 24, 36, 3],
}
SMALLEST_BOTTLENECK_SIZE = 50

# ImageNet's first layers: a 7x7 convolution and a max pool, each of which
# halves the image. The filters are also those of the first block layer; they
# double with each block layer.
NUM_FILTERS = 64
FIRST_KERNEL_SIZE = 7
FIRST_CONV_STRIDE = 2
FIRST_POOL_STRIDE = 2

# Of the first block of each block layer.
BLOCK_STRIDES = [1, 2, 2, 2]

# The last block layer halves the image for the fifth time.
IMAGE_SIZE_DIVISOR = 32

# An early exit reads the output of block layer `block_layer`, pooled to a grid
# of `grid` (rows, columns). The other fields name its layers in the published
# checkpoints: BN of the map, dense, BN, dense to classes.
EarlyExit = collections.namedtuple(
    'EarlyExit', 'block_layer grid map_norm hidden hidden_norm classifier')
EARLY_EXITS = collections.OrderedDict([
    (0, EarlyExit(2, (2, 2), 'cascaded0_bn0', 'cascaded0_fc0',
                  'cascaded0_bn00', 'cascaded0_fc00')),
    (1, EarlyExit(3, (1, 2), 'cascaded1_bn1', 'cascaded1_fc1',
                  'cascaded1_bn11', 'cascaded1_fc11')),
])
HEAD_HIDDEN_UNITS = 1024

# The network's own classifier comes after the last block layer.
FINAL_CLASSIFIER_ID = 2
CLASSIFIER_IDS = tuple(EARLY_EXITS) + (FINAL_CLASSIFIER_ID,)


def network_name(resnet_version, resnet_size):
  """The network's name for people, such as 'ResNet-v2-50'."""
  return 'ResNet-v{}-{}'.format(resnet_version, resnet_size)
