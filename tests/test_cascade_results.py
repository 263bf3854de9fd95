"""Imagenet/cascade_results.py: choosing a row, and what is refused."""

import json
import typing

import numpy as np
import pytest

import cascade_results
from cascade_results import check_weights, choose, load
from user_error import UserError

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


def refused(function, *args):
  with pytest.raises(UserError) as error:
    function(*args)
  assert '\n' not in str(error.value)
  return str(error.value)


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
    ('global:0.1000000001', ('global', .1)),  # As near as makes no difference.
    ('cst:1e0', ('cst', 1)),
    ('risk:2', ('risk', 2)),
    ('speedup>=1.2', ('cst', 1)),  # As good and as dear: the first.
    ('speedup>=1.6', ('global', .1)),  # As good, cheaper.
    ('speedup >= 2.5', ('pareto', 1.9)),
    ('speedup>=0', ('cst', 0)),
    ('gmacs<=3.2', ('cst', 1)),
    ('gmacs<=3', ('global', .1)),
    ('accuracy_drop<=1', ('cst', 1)),
    ('accuracy_drop<=3', ('global', .1)),  # 100 * (.75 - .72) is above 3.
    # Of equal accuracy, but on images that are harder for the plain network.
    ('speedup>=2.05', ('risk', 2)), ('accuracy_drop<=4', ('risk', 2)),
    ('accuracy_drop<=99', ('pareto', 1.9)),
    ('accuracy_drop<=0', ('cst', 0))])
def test_choices(folder, choice, row):
  assert chosen(folder, choice) == row


@pytest.mark.parametrize('choice, words', [
    ('speedup>=9', ['top1', 'cascade.csv', 'pareto:1.9 with speedup 2.5']),
    ('gmacs<=1', ['pareto:1.9 with gmacs 1.6']),
    ('accuracy_drop<=-1', ['cst:0 with accuracy_drop 0']),
    ('best:1', ['no such method', 'cst, global, pareto, ccst, risk']),
    ('cst:1.6', ['no such setting', 'cst:2, cst:1']),
    ('global:7', ['global:0.2, global:0.1']),
    ('speedup>=fast', ['fast is not a number', 'METHOD:SETTING']),
    ('cst:nan', ['nan is not a number']),
    ('speedup<=2', ['METHOD:SETTING', 'speedup>=X']),
    ('cst', ['METHOD:SETTING']), ('', ['METHOD:SETTING']),
    ('cst:', ['METHOD:SETTING'])])
def test_choices_that_cannot_be(folder, choice, words):
  message = refused(chosen, folder, choice)
  assert message.startswith(f'--choose {choice}: ')
  for word in words:
    assert word in message


def test_a_metric_that_was_not_analysed(folder):
  text = (folder / 'cascade.csv').read_text()
  (folder / 'cascade.csv').write_text(
      '\n'.join(line for line in text.splitlines() if 'top5' not in line))
  assert 'analyse again with -metric top5' in refused(
      chosen, folder, 'cst:2', 'top5')


@pytest.mark.parametrize('name, content, words', [
    ('cascade.csv', None, 'holds no cascade.csv'),
    ('summary.json', None, 'holds no summary.json'),
    ('cascade.csv', b'', 'analyse again'),
    ('cascade.csv', b'metric,method\ntop1,cst\n', 'analyse again'),
    ('cascade.csv', 'of an earlier version', 'analyse again'),
    ('cascade.csv', b'\xff\xfe\x00', 'analyse again'),
    ('cascade.csv', 'cut', 'analyse again'),
    ('summary.json', b'{"judged', 'analyse again'),
    ('summary.json', b'[]', 'analyse again'),
    ('ccst_thresholds.npz', None, 'analyse again with -method ccst'),
    ('ccst_thresholds.npz', b'PK\x03\x04', 'analyse again'),
    ('ccst_thresholds.npz', 'cut', 'analyse again')])
def test_damaged_results(folder, name, content, words):
  path = folder / name
  if content is None:
    path.unlink()
  elif content == 'of an earlier version':
    path.write_text(path.read_text().replace('accuracy_drop,', 'drop,'))
  else:
    path.write_bytes(path.read_bytes()[:-40] if content == 'cut' else content)
  message = refused(chosen, folder, 'ccst:1.5')
  assert name in message and words in message


def test_no_such_folder(tmp_path):
  assert 'no such folder' in refused(load, str(tmp_path / 'absent'))


# ---- Weights -----------------------------------------------------------------


def check(folder, classifier_ids=(0, 1, 2), network=None, sources=None,
          **summary):
  (folder / cascade_results.SUMMARY_JSON).write_text(
      json.dumps({**SUMMARY, **summary}))
  check_weights(load(str(folder)), list(classifier_ids),
                {**SHARED, **(network or {})}, {**SOURCES, **(sources or {})})


def test_results_of_these_weights(folder):
  check(folder)
  # The same weights under another name.
  check(folder, sources={1: Source(head_checkpoint='copy.ckpt')})


@pytest.mark.parametrize('arguments, words', [
    (dict(classifier_ids=(0, 2)), ['classifiers 0,1,2', 'of 0,2']),
    (dict(network={'resnet_size': 50}), ['resnet_size 18, here 50']),
    (dict(sources={1: Source(head_sha256='0c', head_checkpoint='new.ckpt')}),
     ['the head of clf1', 'head.ckpt', 'new.ckpt']),
    (dict(sources={0: Source(trunk_sha256='0c', trunk_checkpoint='new.ckpt')}),
     ['the trunk of clf0', 'trunk.ckpt', 'new.ckpt']),
    (dict(exits={}), ['which weights of clf0', '--thresholds']),
    (dict(exits={'0': {}}), ['which weights of clf0', '--thresholds'])])
def test_results_of_others(folder, arguments, words):
  message = refused(lambda: check(folder, **arguments))
  assert message.startswith(f'--results {folder}: ')
  for word in words:
    assert word in message
