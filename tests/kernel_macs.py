"""MACs of a cascade, counted kernel by kernel: an oracle for all other counts.
"""

import collections

import rule_weights


def product(shape):
  total = 1
  for length in shape:
    total *= length
  return total


def macs_of_kernels(size, version, image_size, num_classes):
  """Sums kernel elements times output positions over all kernels.

  Returns:
    A dict from classifier to (trunk MACs, head MACs).
  """
  variables = rule_weights.resnet_variables(size, version, num_classes)
  kernels = collections.deque(
      shape for name, shape in variables.items()
      if name.endswith('/kernel') and '/conv2d' in name)
  trunk = product(kernels.popleft()) * (image_size // 2)**2
  side, exits = image_size // 4, {}
  for stage, num_blocks in enumerate(rule_weights.BLOCK_SIZES[size]):
    for block in range(num_blocks):
      side_in = side
      if block == 0:
        if stage > 0:
          side //= 2
        trunk += product(kernels.popleft()) * side**2  # The projection.
      sides = [side_in, side, side] if size >= 50 else [side, side]
      for side_out in sides:
        trunk += product(kernels.popleft()) * side_out**2
    if stage in (1, 2):
      k = stage - 1
      head = rule_weights.head_variables(
          k, rule_weights.exit_channels(k, size), num_classes)
      exits[k] = trunk, sum(product(shape) for name, shape in head.items()
                            if name.endswith('/kernel'))
  assert not kernels
  exits[2] = trunk, product(variables['resnet_model/dense/kernel'])
  return exits
