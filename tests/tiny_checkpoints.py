"""Checkpoints for tests: any names and values, in one call, and back."""

import os

import numpy as np

from tf_compat import tf


def write_checkpoint(folder, values, step=None):
  """Writes a checkpoint as a `tf.train.Saver` does, with a `checkpoint` file.

  Args:
    folder: made if it is not there.
    values: a dict from variable name to array.
    step: for the file name, `model.ckpt-STEP`; None for none.

  Returns:
    The checkpoint's prefix.
  """
  folder = str(folder)
  os.makedirs(folder, exist_ok=True)
  values = {name: np.asarray(value) for name, value in values.items()}
  with tf.Graph().as_default(), tf.Session() as session:
    variables = {
        name: tf.get_variable(name, value.shape, value.dtype,
                              tf.zeros_initializer())
        for name, value in values.items()}
    session.run([variable.initializer for variable in variables.values()], {
        variables[name].initial_value: values[name] for name in values})
    return tf.train.Saver(variables).save(
        session, os.path.join(folder, 'model.ckpt'), step,
        write_meta_graph=False)


def read_checkpoint(prefix):
  """A dict from name to array."""
  reader = tf.train.load_checkpoint(str(prefix))
  return {name: reader.get_tensor(name)
          for name in reader.get_variable_to_shape_map()}
