"""The cascade as a SavedModel, for TensorFlow Serving and others.

Two signatures, because TensorFlow 1.12 has no default values in one:
`serving_default` with the thresholds chosen, and `with_thresholds`, which takes
those of each image as a further input. All inputs and outputs have the batch
as their first dimension, so that a server may put requests together.
"""

import json
import os
import tempfile
import time

from tf_compat import tf

import cascade_graph
import imagenet_preprocessing
from imagenet_input import NUM_CHANNELS

# Beside the graph, in TensorFlow's folder for what is not part of it.
RECORD_PATH = os.path.join('assets.extra', 'export.json')


def write(export_dir, cascade, takes_image_bytes, record):
  """Writes the SavedModel into a new, dated folder of `export_dir`.

  Args:
    export_dir: made if it is not there.
    cascade: a `cascade_graph.Cascade`.
    takes_image_bytes: whether the input is encoded images, strings [batch], and
      not float32 [batch, height, width, 3].
    record: for `RECORD_PATH`, a dict for JSON.

  Returns:
    The new folder.

  Raises:
    OSError: it cannot be written; nothing is left behind.
  """
  thresholds, num_classes = cascade.thresholds, cascade.model.num_classes

  def build_tensors():
    image_input, images = _images(
        cascade.network.image_size, takes_image_bytes)
    num_images = tf.shape(images)[0]
    given = tf.placeholder(
        tf.float32, [None, len(cascade.classifier_ids) - 1], 'thresholds')
    # At once, and not only where an image stays.
    with tf.control_dependencies([tf.assert_equal(
        tf.shape(given)[0], num_images,
        message='thresholds must have a row for each image')]):
      checked = tf.identity(given)
    chosen = tf.constant(thresholds)
    is_per_class = thresholds.ndim == 2
    if not is_per_class:
      chosen = tf.tile(chosen[tf.newaxis], [num_images, 1])

    def answer(thresholds, is_per_class):
      # Not all kernels take an empty batch.
      return tf.cond(
          num_images > 0,
          lambda: list(cascade_graph.build(
              cascade.model, images, cascade.classifier_ids, thresholds,
              cascade.metric, is_per_class)),
          lambda: [tf.zeros([0, min(5, num_classes)], tf.int32),
                   tf.zeros([0]), tf.zeros([0], tf.int32),
                   tf.zeros([0, num_classes])])

    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
      return [image_input, given, *answer(chosen, is_per_class),
              *answer(checked, False)]

  graph, (image_input, given, *outputs) = cascade_graph.freeze(
      build_tensors, cascade.weights.checkpoint_of)
  inputs = {image_input.op.name: image_input}
  num_outputs = len(cascade_graph.CascadeOutput._fields)
  signatures = {
      'serving_default': _signature(inputs, outputs[:num_outputs]),
      'with_thresholds': _signature(
          dict(inputs, thresholds=given), outputs[num_outputs:])}
  with tf.Session(graph=graph) as session:
    return _write(session, export_dir, signatures, record)


def describe_input(image_size, takes_image_bytes):
  """What the images must be, and how classes are counted: a dict for JSON."""
  pixels = ('red, green and blue from 0 to 255, less '
            f'{imagenet_preprocessing.CHANNEL_MEANS} and divided by nothing')
  if takes_image_bytes:
    images = f'image_bytes: JPEGs, string [batch]; made into {pixels}'
  else:
    images = (f'images: float32 [batch, {image_size}, {image_size}, 3], '
              f'{pixels}')
  return {'images': images, 'class_names_first_label': 1}


def _images(image_size, takes_image_bytes):
  """The input, named as in the signatures, and the images preprocessed."""
  if takes_image_bytes:
    image_bytes = tf.placeholder(tf.string, [None], 'image_bytes')
    return image_bytes, imagenet_preprocessing.preprocess_images(
        image_bytes, image_size, image_size, NUM_CHANNELS)
  images = tf.placeholder(
      tf.float32, [None, image_size, image_size, NUM_CHANNELS], 'images')
  return images, images


def _signature(inputs, outputs):
  output = cascade_graph.CascadeOutput(*outputs)
  return tf.saved_model.signature_def_utils.predict_signature_def(inputs, {
      'classes': output.top5_classes[:, 0],    # int32 [batch]
      'probabilities': output.probabilities,   # float32 [batch, classes]
      'confidences': output.confidences,       # float32 [batch]
      'exits': output.exits,                   # int32 [batch]
  })


def _write(session, export_dir, signatures, record):
  """Writes under a hidden name first; returns the final one."""
  os.makedirs(export_dir, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.unfinished-', dir=export_dir) as (
      temporary):
    folder = os.path.join(temporary, 'model')
    builder = tf.saved_model.builder.SavedModelBuilder(folder)
    builder.add_meta_graph_and_variables(
        session, [tf.saved_model.tag_constants.SERVING], signatures,
        strip_default_attrs=True)
    builder.save()
    record_path = os.path.join(folder, RECORD_PATH)
    os.makedirs(os.path.dirname(record_path))
    with open(record_path, 'w') as stream:
      json.dump(record, stream, indent=2)
      stream.write('\n')
    # TensorFlow Serving takes the largest number for the newest version.
    version = int(time.time())
    while os.path.exists(os.path.join(export_dir, str(version))):
      version += 1
    final = os.path.join(export_dir, str(version))
    os.rename(folder, final)
  return final
