"""Counts what each classifier of a network costs, in the graph itself.

Cost is multiply-accumulates (MACs): those of the convolutions and of the dense
layers, without biases, batch normalization and pooling, which is how networks
are compared in the literature and in the paper.
"""

from tf_compat import tf

from shared_cascade_json import ExitCost, Network
from resnet_model import CLASSIFIER_IDS, head_prefix


def describe(model, image_size):
  """The network of a model, with the cost of all its classifiers.

  Builds them in a graph of its own, for one image of so many pixels in height
  and width; nothing is run.

  Returns:
    A `shared_cascade_json.Network`.
  """
  with tf.Graph().as_default():
    images = tf.placeholder(model.dtype, [1, image_size, image_size, 3])
    exits = exit_costs(model.exit_logits(
        images, CLASSIFIER_IDS, trunk_training=False, head_training=False))
  return Network(model.resnet_version, model.resnet_size, image_size,
                 model.num_classes, exits)


def exit_costs(logits):
  """MACs per image and parameters of each classifier of a graph.

  An operation belongs to a classifier's head by its name, and to its trunk if
  the classifier needs it and it is not the head's. Parameters are what
  training changes: kernels, biases, and BN's gamma and beta; BN's moving
  averages are statistics of the data and are not counted.

  Args:
    logits: a dict from classifier to logits, as `Model.exit_logits` returns
      it; the shapes of the graph are static but for the batch.

  Returns:
    A list of `shared_cascade_json.ExitCost`, in the order of the network.
  """
  costs = []
  for k in sorted(logits):
    needed = _ancestors(logits[k].op)
    head = {op for op in needed if op.name.startswith(head_prefix(k))}
    trunk = needed - head
    variables = logits[k].graph.get_collection(
        tf.GraphKeys.TRAINABLE_VARIABLES)
    trunk_parameters, head_parameters = (
        sum(variable.shape.num_elements() for variable in variables
            if variable.op in part) for part in (trunk, head))
    costs.append(ExitCost(
        k, _macs(trunk), _macs(head), trunk_parameters, head_parameters))
  return costs


def _ancestors(op):
  """The set of all operations that an operation needs, itself among them."""
  found, waiting = set(), [op]
  while waiting:
    op = waiting.pop()
    if op not in found:
      found.add(op)
      waiting.extend(tensor.op for tensor in op.inputs)
  return found


def _macs(ops):
  """MACs of the convolutions and matrix products among `ops`, per image."""
  total = 0
  for op in ops:
    if op.type == 'Conv2D':
      # [batch, rows, columns, channels], or channels first.
      output = op.outputs[0].shape.as_list()
      rows, columns = (
          output[2:] if op.get_attr('data_format') == b'NCHW' else output[1:3])
      # The kernel: [height, width, channels in, channels out].
      total += rows * columns * op.inputs[1].shape.num_elements()
    elif op.type == 'MatMul':
      total += op.inputs[1].shape.num_elements()  # The kernel, [in, out].
  return total
