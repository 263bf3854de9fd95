"""cascade/page.py: what is in `report.html`. What it does is in
test_cascade_browser.py.
"""

import html
import json
import math
import os
import re
import shlex

import numpy as np
import pytest

import cascade_results
from cascade.figures import METHOD_LINES
from analysed_dumps import RUNS, analysed, read_csv


def read_page(results):
  return (results / 'report.html').read_text(encoding='utf-8')


def data_of(page):
  text, = re.findall('id="data">(.*?)</script>', page, re.DOTALL)
  return json.loads(text)


def decoded(steps):
  total, values = 0, []
  for step in steps:
    total += step or 0
    values.append(math.inf if step is None else total)
  return values


def texts_of(row):
  """The cells of a row of an HTML table."""
  return [html.unescape(text)
          for text in re.findall('<t[hd][^>]*>([^<]*)</t[hd]>', row)]


def rows_of(page, caption):
  """The cells of the table whose head begins with, or is captioned, so."""
  body, = re.findall(f'{re.escape(caption)}<.*?<tbody>(.*?)</tbody>', page)
  return [texts_of(row) for row in body.split('</tr>')[:-1]]


INTERVALS = [column + end for column in ('test_accuracy', 'accuracy_drop')
             for end in ('', '_low', '_high')]


@pytest.mark.parametrize('run', RUNS)
def test_numbers_are_those_of_the_csv_files(tmp_path, monkeypatch, run):
  results = analysed(tmp_path, monkeypatch, **RUNS[run])
  page = read_page(results)
  data = data_of(page)
  rows = read_csv(results / 'cascade.csv')
  percent = [column for column in rows[0] if column.startswith(
      ('test_accuracy', 'accuracy_drop', 'exit_share'))]
  others = ['setting', 'gmacs_per_image', 'speedup'] + (
      ['ms_per_image', 'speedup_by_time'] if RUNS[run].get('is_timed') else [])
  thresholds = [column for column in rows[0] if column.startswith('threshold')]
  assert set(data['places']) == set(percent + others + thresholds)
  of_method = {}
  for row in rows:
    of_method.setdefault((row['metric'], row['method']), []).append(row)
  assert list(of_method) == [
      (metric, method) for metric, methods in data['rows'].items()
      for method in methods]
  for (metric, method), expected in of_method.items():
    columns = data['rows'][metric][method]
    for column in percent + others + thresholds:
      if method == 'ccst' and column in thresholds:
        assert column not in columns
        continue
      unit = 10.**-data['places'][column]
      scale = 100 if column in percent else 1
      assert np.array(decoded(columns[column])) * unit == pytest.approx(
          [scale * float(row[column]) for row in expected],
          abs=(.5 + 1e-6) * unit), column
  for (metric, method), expected in of_method.items():
    if method == next(iter(data['settings'])):
      title = METHOD_LINES[method]['label']
      shown = rows_of(page, f'top-{metric[3]}, {title}')
      assert 0 < len(shown) <= 25
      for cells in shown:
        row, = [row for row in expected
                if float(f"{float(row['setting']):.6g}") == float(cells[0])]
        for text, column in zip(
            re.findall(r'-?[\d.]+', ' '.join(cells[1:3])), INTERVALS):
          assert float(text) == pytest.approx(
              100 * float(row[column]), abs=.00501)


def test_quality_table(tmp_path, monkeypatch):
  results = analysed(tmp_path, monkeypatch, '-method', 'cst')
  rows = read_csv(results / 'exit_quality.csv')
  shown = rows_of(read_page(results), '<tr><th scope=col>Classifier')
  assert len(shown) == len(rows) == 6
  for cells, row in zip(shown, rows):
    assert cells[0] == f"top-{row['metric'][3]}, clf{row['classifier']}"
    assert cells[1] == row['num_images']
    for text, column in zip(cells[2:], list(row)[3:]):
      assert (text == '') == (row[column] == '')
      if text:
        assert float(text) == pytest.approx(float(row[column]), abs=.0000501)


def test_thresholds_per_class(tmp_path, monkeypatch):
  results = analysed(tmp_path, monkeypatch, '-method', 'cst,ccst',
                     num_images=15)  # Some classes are never predicted.
  data = data_of(read_page(results))
  with np.load(str(results / 'ccst_thresholds.npz')) as arrays:
    for metric in ('top1', 'top5'):
      columns = data['rows'][metric]['ccst']
      for m in range(2):
        of_classes = arrays[metric][:, m]
        finite = np.where(np.isinf(of_classes), np.nan, of_classes)
        for name, expected in (('low', np.nanmin(finite, axis=1)),
                               ('high', np.nanmax(finite, axis=1))):
          assert np.array(decoded(columns[f'threshold_clf{m}_{name}'])) / (
              1e10) == pytest.approx(expected, abs=1e-10)
        never = np.isinf(of_classes).sum(axis=1).tolist()
        assert max(never) > 0
        assert decoded(columns[f'threshold_clf{m}_never']) == never


@pytest.mark.parametrize('classifier_ids', [(0, 1, 2), (0, 2), (1, 2)])
def test_command_finds_its_row_and_weights(
    tmp_path, monkeypatch, classifier_ids):
  folder = tmp_path / "it's <b> & more"
  folder.mkdir()
  results = analysed(folder, monkeypatch, '-epsilons', '0,0.7,1.8',
                     classifier_ids=classifier_ids)
  data = data_of(read_page(results))
  assert data['by_choice']
  words = shlex.split(data['command'])
  assert words[:2] == ['python3', 'run_cascade.py']
  flags = dict(zip(words[2::2], words[3::2]))
  assert flags == {
      '-rv': '2', '-rs': '50', '--image_size': '224',
      '-pmcp': 'official/model.ckpt-7',
      '--head_model_dirs': ','.join(
          f'my heads/clf{k}/model.ckpt-9' for k in classifier_ids[:-1]),
      '--results': str(results),
      '--classifier_id': ','.join(map(str, classifier_ids))}
  loaded = cascade_results.load(flags['--results'])
  rows = iter(loaded.rows)
  for metric, methods in data['rows'].items():
    for method, columns in methods.items():
      for setting in decoded(columns['setting']):
        row = next(rows)
        if method != 'global' or 100 * row['setting'] % 7 < .1:
          assert cascade_results.choose(
              loaded, f'{method}:{setting / 1e10!r}', metric).row is row


def test_without_weights_thresholds_are_given(tmp_path, monkeypatch):
  data = data_of(read_page(analysed(
      tmp_path, monkeypatch, '-method', 'cst', knows_weights=False)))
  assert not data['by_choice']
  assert '--results' not in data['command']


def test_nothing_is_loaded_and_nothing_escapes(tmp_path, monkeypatch):
  results = analysed(
      tmp_path, monkeypatch, '-method', 'cst',
      network='</script><img src=x onerror=alert(1)>')
  page = read_page(results)
  assert page.count('</script') == page.count('<script') == 2
  assert '<img' not in page
  assert '&lt;img src=x' in page
  assert "default-src 'none'" in page
  for pattern in (r'https?:', r'url\(', '@import', r'\bfetch\(', '<link',
                  r'<[^>]*\s(src|href|on\w+)\s*='):
    assert not re.search(pattern, page), pattern


def test_a_path_that_is_not_utf_8(tmp_path, monkeypatch):
  folder = tmp_path / os.fsdecode(b'd\xff')
  folder.mkdir()
  results = analysed(folder, monkeypatch, '-method', 'cst')
  page = (results / 'report.html').read_bytes()
  assert os.fsencode(str(folder / 'output_softmax')) in page


@pytest.mark.parametrize('methods', ['risk', 'pareto,risk'])
def test_what_is_said_of_risk(tmp_path, monkeypatch, methods, capsys):
  page = read_page(analysed(
      tmp_path, monkeypatch, '-method', methods, '-risk_delta', '0.2'))
  assert 'calibrated on 100 validation images and judged on 100 others' in page
  assert 'With a probability of at least 0.8, its true accuracy is at most ε' in page
  assert ('judged on 200 validation images' in page) == (methods != 'risk')
  assert ('compare its drop' in page) == (methods != 'risk')
  assert 'judged on 100 validation images' in capsys.readouterr().out


def test_unfilled_rows_are_told(tmp_path, monkeypatch):
  page = read_page(analysed(tmp_path, monkeypatch, '-method', 'cst',
                            num_unfilled=9))
  assert 'never filled (9 train, 9 validation) are left out.' in page.replace(
      '9 validation, 9 train', '9 train, 9 validation')


def test_where_it_comes_from(tmp_path, monkeypatch):
  page = read_page(analysed(tmp_path, monkeypatch, '-method', 'cst'))
  for text in ('trunk checkpoint official/model.ckpt-7',
               'head checkpoint my heads/clf1/model.ckpt-9',
               'head sha256 head_sha256 of clf1', 'resnet size 50',
               'epsilons 21 from 0 to 20 %', 'metric top1/top5',
               'train 0, validation 0', f'numpy {np.__version__}'):
    assert text in page


def test_a_thousand_settings_stay_below_a_megabyte(tmp_path, monkeypatch):
  results = analysed(tmp_path, monkeypatch, '-num_epsilons', '1000',
                     num_images=5000, is_timed=True)
  assert (results / 'report.html').stat().st_size < 1e6
  data = data_of(read_page(results))
  assert len(data['rows']['top1']['ccst']['setting']) == 1000
