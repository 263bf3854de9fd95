"""Gradients of a head on a fixed map against those through the whole of BN."""

import numpy as np
import pytest

from tf_compat import tf

import resnet_model
from resnet_tables import EARLY_EXITS


def _values_and_gradients(classifier_id, map_is_fixed):
  """Logits, gradients by variable, moving averages, and that of the map."""
  rng = np.random.RandomState(0)
  early_exit = EARLY_EXITS[classifier_id]
  with tf.Graph().as_default(), tf.Session() as session:
    feature_map = tf.constant(
        rng.normal(3, 2, [5, 4, 6, 8]).astype(np.float32))
    logits = resnet_model.exit_head(
        feature_map, early_exit, 7, True, 'channels_last',
        map_is_fixed=map_is_fixed)
    # The bias before a BN has no influence: its gradient is noise around 0.
    variables = [variable for variable in tf.trainable_variables()
                 if variable.op.name != early_exit.hidden + '/bias']
    loss = tf.losses.sparse_softmax_cross_entropy([0, 1, 2, 3, 6], logits)
    gradients = tf.gradients(loss, variables)
    to_map, = tf.gradients(loss, [feature_map])
    for variable in tf.global_variables():
      # Negative gammas and betas too, and one gamma of 0.
      value = rng.normal(0, 1, variable.shape.as_list())
      if variable.op.name == early_exit.map_norm + '/gamma':
        value[3] = 0
      variable.load(value.astype(np.float32), session)
    values = session.run((logits, gradients))
    session.run(tf.get_collection(tf.GraphKeys.UPDATE_OPS))
    averages = session.run([
        variable for variable in tf.global_variables()
        if 'moving' in variable.name])
  return values[0], values[1], averages, to_map


@pytest.mark.parametrize('classifier_id', sorted(EARLY_EXITS))
def test_a_fixed_map_changes_no_gradient_of_the_head(classifier_id):
  fixed = _values_and_gradients(classifier_id, True)
  whole = _values_and_gradients(classifier_id, False)
  for of_fixed, of_whole in zip(fixed[:3], whole[:3]):
    for a, b in zip(of_fixed, of_whole):
      assert np.abs(b).max() > 0
      np.testing.assert_allclose(
          a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max())
  assert fixed[3] is None and whole[3] is not None
