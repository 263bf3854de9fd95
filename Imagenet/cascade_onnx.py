"""The cascade for ONNX Runtime: a file per stage, and what to do with them.

`run_onnx_cascade.py` runs it, and needs no TensorFlow. Each stage takes the
images, or the map of the stage before, and gives its classifier's softmax and,
but for the last, the map that the next one goes on with:

  images -> stage0.onnx -> map -> stage1.onnx -> map -> stage2.onnx
                 |                     |                     |
              softmax               softmax               softmax

The packages that this needs (requirements-onnx.txt) are for TensorFlow 2.
"""

import copy
import json
import logging
import os

from tf_compat import IS_TF1, tf

import cascade_graph
import resnet_model
from imagenet_input import NUM_CHANNELS
from shared_files import write_atomically
from shared_terminal import UserError

RECORD_NAME = 'cascade.json'
STAGE_NAME = 'stage{}.onnx'

# Of 2021; ONNX Runtime from 1.10 on knows it.
_OPSET = 15


def import_converter():
  """The converter's module, imported only where it is asked for.

  Raises:
    UserError: it is not installed.
  """
  if IS_TF1:
    raise UserError('--export_onnx: the converter is for TensorFlow 2; run the '
                    'same command in .venv-tf2 (./setup_env.sh tf2)')
  try:
    import tf2onnx.convert
  except ImportError as error:
    raise UserError(f'--export_onnx: {error}; pip install -r '
                    'requirements-onnx.txt')
  logging.getLogger('tf2onnx').setLevel(logging.WARNING)
  return tf2onnx.convert


def write(folder, cascade, record):
  """Writes the stages and their record; `cascade.json` comes last.

  Args:
    folder: made if it is not there.
    cascade: a `cascade_graph.Cascade`.
    record: for `RECORD_NAME`, a dict for JSON.

  Raises:
    UserError: the converter is not installed.
    OSError: a file cannot be written.
  """
  converter = import_converter()
  # ONNX has channels first. TensorFlow need not run this graph on a CPU.
  model = copy.copy(cascade.model)
  model.data_format = 'channels_first'

  def build_tensors():
    image_size = cascade.network.image_size
    tensors, shape = [], [None, image_size, image_size, NUM_CHANNELS]
    first_stage = 0
    with model.scope():
      for k in cascade.classifier_ids:
        inputs = feature_map = tf.placeholder(tf.float32, shape)
        for stage in range(first_stage, k + 1):
          feature_map = model.stage(feature_map, stage, training=False)
        logits = model.head(feature_map, k, training=False)
        softmax = resnet_model.exit_output(logits).probabilities
        tensors.append([inputs, softmax, feature_map])
        shape, first_stage = feature_map.shape.as_list(), k + 1
    return sum(tensors, [])

  graph, tensors = cascade_graph.freeze(
      build_tensors, cascade.weights.checkpoint_of)
  os.makedirs(folder, exist_ok=True)
  for number, k in enumerate(cascade.classifier_ids):
    inputs, *outputs = tensors[3 * number:3 * number + 3]
    if k == cascade.classifier_ids[-1]:
      outputs.pop()
    stage, _ = converter.from_graph_def(
        tf.graph_util.extract_sub_graph(
            graph.as_graph_def(), [of.op.name for of in outputs]),
        name=f'stage{number}', opset=_OPSET,
        input_names=[inputs.name], output_names=[of.name for of in outputs],
        tensors_to_rename=dict(zip(
            [inputs.name] + [of.name for of in outputs],
            ['inputs', 'softmax', 'map'])))
    write_atomically(os.path.join(folder, STAGE_NAME.format(number)),
                     stage.SerializeToString())
  write_atomically(os.path.join(folder, RECORD_NAME),
                   (json.dumps(record, indent=2) + '\n').encode())
