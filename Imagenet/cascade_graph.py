"""The network with images that leave: the cascade in one graph.

After each early exit the confident images leave, and the rest of the network
runs on the others alone:

  images -> stage 0 -> head 0: is the confidence at least the threshold?
              |          yes: the image leaves at clf0
              |
              +- maps of the others -> stage 1 -> head 1 ... -> clf2

Where nobody is left, nothing more is computed. Stages, heads and variables are
those of `resnet_model.py`.
"""

import typing

import numpy as np

from tf_compat import tf

import resnet_checkpoint
import resnet_model
import shared_results
from shared_cascade_json import Network


class Cascade(typing.NamedTuple):
  """A network with its exits, and when images leave."""
  model: resnet_model.Model
  network: Network                   # With the names of the classes.
  classifier_ids: typing.List[int]   # Ascending; the last accepts everything.
  weights: resnet_checkpoint.ExitWeights
  metric: str                        # Of `shared_results.CONFIDENCE_TERMS`.
  thresholds: np.ndarray             # float32 [T], or [T, classes].
  # The row of the analysis that they are from; None if from nowhere.
  choice: typing.Optional[shared_results.Choice] = None

  def class_name(self, label):
    """The name of a class; its number if it has none."""
    if self.network.class_names and label > 0:
      return self.network.class_names[label - 1]
    return str(label)


class CascadeOutput(typing.NamedTuple):
  """What each image's exit answers, in the order of the images."""
  top5_classes: typing.Any   # int32 [batch, 5], best first
  confidences: typing.Any    # float32 [batch]
  exits: typing.Any          # int32 [batch], the classifier that it left at
  # float32 [batch, classes], the softmax; None where nobody asked for it.
  probabilities: typing.Any


def build(model, images, classifier_ids, thresholds, metric,
          is_per_class=False):
  """Builds the cascade.

  Args:
    model: a `resnet_model.Model`.
    images: float [batch, height, width, 3], preprocessed.
    classifier_ids: of the cascade, ascending; the last one accepts everything.
    thresholds: of all classifiers but the last, float32 [batch, T], for each
      image its own. At infinity it does not leave.
    metric: of `shared_results.CONFIDENCE_TERMS`.
    is_per_class: thresholds are [T, classes] instead, and each image has those
      of the class that the classifier predicts.

  Returns:
    `CascadeOutput` of tensors.
  """
  def run_from(exit_index, feature_map, thresholds):
    """The output of images that get as far as an exit.

    Args:
      exit_index: of `classifier_ids`.
      feature_map: where the exit before is, or the images.
      thresholds: of these images.
    """
    k = classifier_ids[exit_index]
    first_stage = classifier_ids[exit_index - 1] + 1 if exit_index else 0
    for stage in range(first_stage, k + 1):
      feature_map = model.stage(feature_map, stage, training=False)
    answer = _answer(model.head(feature_map, k, training=False), k, metric)
    if exit_index == len(classifier_ids) - 1:
      return answer
    if is_per_class:
      threshold = tf.gather(thresholds[exit_index], answer.top5_classes[:, 0])
    else:
      threshold = thresholds[:, exit_index]  # [batch]
    leaves = answer.confidences >= threshold  # A NaN does not.
    leaving = _row_numbers(leaves)
    staying = _row_numbers(tf.logical_not(leaves))
    rest = tf.cond(
        tf.size(staying) > 0,
        lambda: run_from(
            exit_index + 1, tf.gather(feature_map, staying),
            thresholds if is_per_class else tf.gather(thresholds, staying)),
        lambda: CascadeOutput(*[value[:0] for value in answer]))
    return CascadeOutput(*[
        tf.dynamic_stitch(
            [leaving, staying], [tf.gather(value, leaving), of_rest])
        for value, of_rest in zip(answer, rest)])

  with model.scope():
    return run_from(0, tf.cast(images, model.dtype), thresholds)


def _answer(logits, classifier_id, metric):
  """`CascadeOutput` of one classifier.

  The confidence is added up in double precision and rounded once to float32,
  exactly as the analysis does it before it fits thresholds.
  """
  output = resnet_model.exit_output(logits)
  terms = output.top5_probabilities[
      :, :shared_results.CONFIDENCE_TERMS[metric]]
  confidences = tf.to_float(tf.reduce_sum(tf.to_double(terms), axis=1))
  return CascadeOutput(
      output.top5_classes, confidences,
      tf.fill(tf.shape(confidences), classifier_id), output.probabilities)


def _row_numbers(is_chosen):
  """int32 [chosen], from bool [batch]."""
  return tf.to_int32(tf.where(is_chosen)[:, 0])


def freeze(build_tensors, checkpoint_of):
  """Builds a graph, and then the same one with its weights as constants.

  TensorFlow prepares constants once (it folds batch normalization into them),
  variables at every step.

  Args:
    build_tensors: a function without arguments that returns the tensors that
      will be fed or fetched, a list.
    checkpoint_of: from `resnet_checkpoint.ExitWeights`.

  Returns:
    (the frozen graph, its tensors in the order of `build_tensors`).
  """
  with tf.Graph().as_default() as graph:
    tensors = build_tensors()
    with tf.Session(config=tf.ConfigProto(
        allow_soft_placement=True, device_count={'GPU': 0})) as session:
      for saver, checkpoint in resnet_checkpoint.savers(checkpoint_of):
        saver.restore(session, checkpoint)
      constants = tf.graph_util.convert_variables_to_constants(
          session, graph.as_graph_def(), [value.op.name for value in tensors])
  _read_constants_directly(constants)
  with tf.Graph().as_default() as graph:
    return graph, tf.import_graph_def(
        constants, return_elements=[value.name for value in tensors], name='')


def _read_constants_directly(graph_def):
  """Lets operations within a `tf.cond` read weights without its switches.

  TensorFlow folds and prepares only what it sees to be a constant. Whether an
  operation runs is decided by its other inputs as well.
  """
  nodes = {node.name: node for node in graph_def.node}

  def constant_of(name):
    """(name of the constant that comes out as it is, or None; by a switch)."""
    node, is_switched = nodes[name.split(':')[0]], False
    while node.op in ('Identity', 'Switch') and node.input:
      is_switched |= node.op == 'Switch'
      node = nodes[node.input[0].split(':')[0]]
    return node.name if node.op == 'Const' and is_switched else None

  for node in graph_def.node:
    if node.op not in ('Identity', 'Switch', 'Merge'):
      # One switched input must be left.
      constants = [None if name.startswith('^') else constant_of(name)
                   for name in node.input]
      if None in constants:
        for i, constant in enumerate(constants):
          if constant:
            node.input[i] = constant
