"""Who leaves where: `cascade_graph.py` against the analysis, row by row."""

import json

import analyze_imagenet_labels
import numpy as np
import pytest

import cascade_graph
import resnet_model
import shared_dumps
import shared_results
from cascade import analysis
from tf_compat import tf

NUM_CLASSES = 21
SPLITS = {'train': 700, 'validation': 500}  # In this order.


class Model:
  """A network whose images are the softmaxes of its exits."""
  dtype = tf.float32

  def scope(self):
    return tf.variable_scope('model')

  def stage(self, inputs, classifier_id, training):
    del classifier_id, training
    return inputs  # [batch, 3, classes]

  def head(self, feature_map, classifier_id, training):
    del training
    return feature_map[:, classifier_id]


def exit_output(probabilities):
  """As `resnet_model.exit_output`, but for the softmax.

  That of a batch of another size may differ in the last bit, which is not what
  is tested here.
  """
  top5_probabilities, top5_classes = tf.nn.top_k(probabilities, 5)
  return resnet_model.ExitOutput(
      None, probabilities, top5_classes, top5_probabilities)


@pytest.fixture(scope='module')
def sharp(tmp_path_factory):
  """The analysis of early classifiers that are nearly sure of everything.

  Their confidences lie closer to 1 than float32 can tell apart.
  """
  folder = tmp_path_factory.mktemp('sharp')
  random = np.random.RandomState(3)
  for split, num_images in SPLITS.items():
    labels = random.randint(1, NUM_CLASSES, num_images).astype(np.int32)
    logits = random.normal(size=[num_images, 3, NUM_CLASSES])
    logits[np.arange(num_images), :, labels] += [1, 1.5, 2]
    odds = np.exp(logits * [[[6], [6], [1]]])
    softmaxes = (odds / odds.sum(axis=2, keepdims=True)).astype(np.float32)
    np.save(str(folder / shared_dumps.labels_file_name(split)), labels)
    for k in range(3):
      first, *others = shared_dumps.probabilities_file_names(k, split)
      np.save(str(folder / first), softmaxes[:, k])
      for name in others:
        np.save(str(folder / name), softmaxes[:0, k])
  (folder / 'macs.json').write_text(json.dumps({
      'exits': [{'classifier_id': k, 'trunk_macs': macs, 'head_macs': 1}
                for k, macs in enumerate([10, 20, 30])],
      'plain_network_macs': 31}))
  analyze_imagenet_labels.main([
      '-softmax_dir_to_validate_against', str(folder), '-dataset_path',
      str(folder), '-output_dir', str(folder / 'results'), '-macs',
      str(folder / 'macs.json'), '-epsilons', '0,1,5,20'])
  return shared_results.load(str(folder / 'results')), softmaxes, labels


@pytest.mark.parametrize('is_per_class', [False, True])
@pytest.mark.parametrize('metric', ['top1', 'top5'])
def test_decisions_equal_the_analysis(sharp, metric, is_per_class, monkeypatch):
  results, softmaxes, labels = sharp
  monkeypatch.setattr(resnet_model, 'exit_output', exit_output)
  rows = [row for row in results.rows if row['metric'] == metric and
          (row['method'] == 'ccst') == is_per_class]
  assert {row['method'] for row in rows} == (
      {'ccst'} if is_per_class else
      {'cst', 'global', 'budgeted', 'pareto', 'risk'})
  # The first half calibrates `risk`, the second one judges it.
  second_half = np.sort(np.random.RandomState(
      analysis.HALVES_SEED).permutation(len(labels))[len(labels) // 2:])
  with tf.Graph().as_default(), tf.Session() as session:
    fed = tf.placeholder(tf.float32, [None, None])
    built = cascade_graph.build(
        Model(), tf.constant(softmaxes), [0, 1, 2], fed, metric,
        is_per_class)
    for row in rows:
      thresholds = shared_results.choose(
          results, f'{row["method"]}:{row["setting"]!r}', metric).thresholds
      if not is_per_class:
        thresholds = np.tile(thresholds, (len(labels), 1))
      output = session.run(built, {fed: thresholds})
      judging = second_half if row['method'] == 'risk' else slice(None)
      shares = [np.mean(output.exits[judging] == k) for k in range(3)]
      assert shares == pytest.approx(
          [row[f'exit_share_clf{k}'] for k in range(3)], abs=1e-9), row
      hits = (output.top5_classes == labels[:, np.newaxis])[
          judging, :shared_results.CONFIDENCE_TERMS[metric]]
      assert hits.any(axis=1).mean() == pytest.approx(row['test_accuracy'])
