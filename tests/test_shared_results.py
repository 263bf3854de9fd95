"""Imagenet/shared_results.py: choosing a row, and what is refused."""

import json
import typing

import numpy as np
import pytest

import shared_results
from refusals import refused
from shared_results import check_weights, choose, load

# metric, method, setting, thresholds, accuracy, GMACs, speedup. `risk` is
# judged on other images, of which the plain network has one percent less right.
PLAIN_ACCURACY = {'top1': .75, 'top5': .9}
ROWS = [
    ('top1', 'cst', 0., .9, .95, .75, 4.0, 1.0),
    ('top1', 'cst', 1., .8, .9, .74, 3.2, 1.25),
    ('top1', 'cst', 2., .7, .85, .72, 2.5, 1.6),
    ('top1', 'global', .1, .1, .1, .72, 2.0, 2.0),  # As good and cheaper.
    ('top1', 'global', .2, .2, .2, .74, 3.2, 1.25),  # The same as cst:1.
    ('top1', 'pareto', 1.9, np.inf, .5, .70, 1.6, 2.5),
    ('top1', 'ccst', 1.5, np.nan, np.nan, .71, 3.9, 1.02),
    ('top1', 'risk', 2., .6, .6, .70, 1.9, 2.1),
    ('top5', 'cst', 2., .3, .4, .9, 2.0, 2.0)]
SHARED = {'resnet_version': 2, 'resnet_size': 18, 'image_size': 32,
          'num_classes': 5}
CCST = np.arange(20).reshape(2, 2, 5) / 40.


class Source(typing.NamedTuple):
  """Stands for `resnet_checkpoint.ExitSource`."""
  trunk_checkpoint: str = 'trunk.ckpt'
  trunk_sha256: str = '0a'
  head_checkpoint: str = 'head.ckpt'
  head_sha256: str = '0b'


SOURCES = {0: Source(), 1: Source(), 2: Source()}
SUMMARY = {
    **SHARED, 'exits': {str(k): Source()._asdict() for k in SOURCES}}


@pytest.fixture
def folder(tmp_path):
  """What the analysis leaves, as far as it is read."""
  lines = ['metric,method,setting,threshold_clf0,threshold_clf1,test_accuracy,'
           'test_accuracy_low,test_accuracy_high,gmacs_per_image,speedup,'
           'exit_share_clf0,exit_share_clf1,exit_share_clf2,accuracy_drop,'
           'accuracy_drop_low,accuracy_drop_high,gmacs_low,gmacs_high,'
           'added_later']
  for *key, accuracy, gmacs, speedup in ROWS:
    drop = PLAIN_ACCURACY[key[0]] - accuracy - .01 * (key[1] == 'risk')
    cells = key + [accuracy, accuracy, accuracy, gmacs, speedup, .5, .25, .25,
                   drop, drop, drop, gmacs, gmacs]
    lines.append(','.join('' if cell != cell else str(cell)
                          for cell in cells) + ',7')
  (tmp_path / 'cascade.csv').write_text('\n'.join(lines) + '\n')
  (tmp_path / 'summary.json').write_text(json.dumps(SUMMARY))
  np.savez(str(tmp_path / 'ccst_thresholds.npz'), epsilon_percent=[0., 1.5],
           classifiers=[0, 1], top1=CCST)
  return tmp_path


def chosen(folder, choice, metric='top1'):
  found = choose(load(str(folder)), choice, metric)
  return found.method, found.setting


def test_a_row(folder):
  results = load(str(folder))
  assert results.classifier_ids == [0, 1, 2]
  choice = choose(results, 'cst:2', 'top1')
  assert choice[:3] == ('top1', 'cst', 2)
  assert choice.thresholds.dtype == np.float32
  assert choice.thresholds.tolist() == np.float32([.7, .85]).tolist()
  assert choice.row['test_accuracy'] == .72
  assert choice.row['exit_share_clf1'] == .25
  assert choice.row['added_later'] == 7
  assert choose(results, 'cst:2', 'top5').thresholds.tolist() == (
      np.float32([.3, .4]).tolist())
  assert choose(results, 'pareto:1.9', 'top1').thresholds[0] == np.inf


def test_thresholds_per_class(folder):
  choice = choose(load(str(folder)), 'ccst:1.5', 'top1')
  assert np.isnan(choice.row['threshold_clf0'])
  np.testing.assert_array_equal(choice.thresholds, CCST[1].astype(np.float32))


@pytest.mark.parametrize('choice, row', [
    ('risk:2', ('risk', 2)),
    # Between two settings, or beyond the last by no more than one step.
    ('global:0.16', ('global', .2)), ('global:0.29', ('global', .2)),
    ('speedup>=1.2', ('cst', 1)),  # As good and as dear: the first.
    ('speedup>=1.6', ('global', .1)),  # As good, cheaper.
    ('speedup >= 2.5', ('pareto', 1.9)),
    ('gmacs<=3.2', ('cst', 1)),
    ('accuracy_drop<=1', ('cst', 1)),
    ('accuracy_drop<=3', ('global', .1)),  # 100 * (.75 - .72) is above 3.
    # Of equal accuracy, but on images that are harder for the plain network.
    ('speedup>=2.05', ('risk', 2)), ('accuracy_drop<=4', ('risk', 2)),
    ('accuracy_drop<=0', ('cst', 0))])
def test_choices(folder, choice, row):
  assert chosen(folder, choice) == row


def test_the_words_for_a_choice(folder):
  """The best of many rows is better on these images than on others."""
  results = load(str(folder))
  words = shared_results.describe(choose(results, 'global:.16', 'top1'))
  assert words.startswith('global:0.2, top1 0.7400, drop 1.00 points')
  words = shared_results.describe(choose(results, 'speedup>=1.2', 'top1'))
  assert 'chosen on these images' in words and 'risk' in words
  assert 'of 8 rows' in words


@pytest.mark.parametrize('choice, words', [
    ('speedup>=9', 'pareto:1.9'), ('best:1', 'cst, global'),
    ('cst:3.1', 'cst:2'), ('speedup<=2', 'METHOD:SETTING')])
def test_choices_that_cannot_be(folder, choice, words):
  message = refused(chosen, folder, choice)
  assert message.startswith(f'--choose {choice}: ')
  assert words in message


@pytest.mark.parametrize('name, old, new', [
    ('cascade.csv', 'cst,1.0,0.8', 'cst,1.0,'),   # No threshold,
    ('cascade.csv', 'cst,1.0,0.8', 'cst,1.0,90'),  # or none that is one.
    ('cascade.csv', 'speedup', ''),
    ('summary.json', '{', '['),
    # Thresholds for other classes than the network has.
    ('summary.json', '"num_classes": 5', '"num_classes": 6'),
    ('ccst_thresholds.npz', None, None)])
def test_damaged_results(folder, name, old, new):
  path = folder / name
  if old:
    path.write_text(path.read_text().replace(old, new))
  else:
    path.write_bytes(path.read_bytes()[:-40])
  message = refused(chosen, folder, 'ccst:1.5')
  assert str(folder) in message and 'analyse again' in message


@pytest.mark.parametrize('value', [-5, 1.01, np.nan])
def test_what_is_no_threshold(value):
  with pytest.raises(ValueError, match='from 0 to 1'):
    shared_results.checked_thresholds([.5, value])


# ---- Weights -----------------------------------------------------------------


def check(folder, classifier_ids=(0, 1, 2), network=None, sources=None,
          **summary):
  (folder / shared_results.SUMMARY_JSON).write_text(
      json.dumps({**SUMMARY, **summary}))
  check_weights(load(str(folder)), list(classifier_ids),
                {**SHARED, **(network or {})}, {**SOURCES, **(sources or {})})


def test_results_of_these_weights(folder):
  check(folder)
  # The same weights under another name.
  check(folder, sources={1: Source(head_checkpoint='copy.ckpt')})


@pytest.mark.parametrize('arguments, words', [
    (dict(classifier_ids=(0, 2)), 'of 0,2'),
    (dict(network={'resnet_size': 50}), 'resnet_size 18'),
    (dict(sources={1: Source(head_sha256='0c')}), 'the head of clf1'),
    (dict(exits={}), 'the trunk of clf0')])
def test_results_of_others(folder, arguments, words):
  message = refused(lambda: check(folder, **arguments))
  assert message.startswith(f'--results {folder}: ')
  assert words in message
