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
import resnet_checkpoint
from imagenet_input import NUM_CHANNELS

# Beside the graph, in TensorFlow's folder for what is not part of it.
RECORD_PATH = os.path.join('assets.extra', 'cascade.json')


def write(export_dir, model, classifier_ids, weights, metric, thresholds,
          image_size, takes_image_bytes, record):
  """Writes the SavedModel into a new, dated folder of `export_dir`.

  Args:
    export_dir: made if it is not there.
    model: a `resnet_model.Model`.
    classifier_ids: of the cascade, ascending.
    weights: a `resnet_checkpoint.ExitWeights` of these.
    metric: of `cascade_results.CONFIDENCE_TERMS`.
    thresholds: float32 [T], or [T, classes] by predicted class.
    image_size: height and width in pixels.
    takes_image_bytes: whether the input is encoded images, strings [batch], and
      not float32 [batch, height, width, 3].
    record: for `RECORD_PATH`, a dict for JSON.

  Returns:
    The new folder.

  Raises:
    OSError: it cannot be written; nothing is left behind.
  """
  with tf.Graph().as_default():
    inputs, images = _images(image_size, takes_image_bytes)
    given = tf.placeholder(
        tf.float32, [None, len(classifier_ids) - 1], 'thresholds')
    chosen = tf.constant(thresholds)
    is_per_class = thresholds.ndim == 2
    if not is_per_class:
      chosen = tf.tile(chosen[tf.newaxis], [tf.shape(images)[0], 1])
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
      signatures = {
          name: _signature(signature_inputs, cascade_graph.build(
              model, images, classifier_ids, values, metric, per_class))
          for name, signature_inputs, values, per_class in (
              ('serving_default', inputs, chosen, is_per_class),
              ('with_thresholds', dict(inputs, thresholds=given), given,
               False))}
    with tf.Session(config=tf.ConfigProto(device_count={'GPU': 0})) as session:
      for saver, checkpoint in resnet_checkpoint.savers(weights.checkpoint_of):
        saver.restore(session, checkpoint)
      return _write(session, export_dir, signatures, record)


def _images(image_size, takes_image_bytes):
  """The signatures' inputs by name, and the images preprocessed."""
  if takes_image_bytes:
    image_bytes = tf.placeholder(tf.string, [None], 'image_bytes')
    return {'image_bytes': image_bytes}, (
        imagenet_preprocessing.preprocess_images(
            image_bytes, image_size, image_size, NUM_CHANNELS))
  images = tf.placeholder(
      tf.float32, [None, image_size, image_size, NUM_CHANNELS], 'images')
  return {'images': images}, images


def _signature(inputs, output):
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
