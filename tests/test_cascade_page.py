"""cascade/page.py: what is in `report.html`. What it does is in
test_cascade_browser.py.
"""

import html
import json
import re
import shlex

import numpy as np
import pytest

import shared_results
from cascade.figures import METHOD_LINES
from analysed_dumps import RUNS, analysed, read_csv


def read_page(results):
  return (results / 'report.html').read_text(encoding='utf-8')


def data_of(page):
  text, = re.findall('id="data">(.*?)</script>', page, re.DOTALL)
  return json.loads(text)


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
# How far a text may be from its number, relatively or in percentage points.
RELATIVE = {'setting': 1e-9, 'gmacs_per_image': 5.1e-5, 'ms_per_image': 5.1e-5,
            'speedup': 6e-4, 'speedup_by_time': 6e-4}  # Three places.


@pytest.mark.parametrize('run', RUNS)
def test_numbers_are_those_of_the_csv_files(tmp_path, run):
  results = analysed(tmp_path, **RUNS[run])
  page = read_page(results)
  assert len(page) < 1.5e6
  data = data_of(page)
  of_method = {}
  for row in read_csv(results / 'cascade.csv'):
    of_method.setdefault((row['metric'], row['method']), []).append(row)
  assert list(of_method) == [
      (metric, method) for metric, methods in data['rows'].items()
      for method in methods]
  for (metric, method), expected in of_method.items():
    columns = {column: np.array(text.split(), float) for column, text
               in data['rows'][metric][method].items()}
    assert set(expected[0]) - set(columns) <= {
        'metric', 'method', 'gmacs_low', 'gmacs_high'}
    for column, shown in columns.items():
      numbers = np.array([row[column] or 'nan' for row in expected], float)
      if column.startswith('threshold'):  # Less than between two float32.
        np.testing.assert_allclose(shown, numbers, 1e-8)
      elif column in RELATIVE:
        np.testing.assert_allclose(shown, numbers, RELATIVE[column], 1e-9)
      else:
        np.testing.assert_allclose(shown, 100 * numbers, 0, .00501)
    if method == next(iter(data['settings'])):
      shown = rows_of(
          page, f"top-{metric[3]}, {METHOD_LINES[method]['label']}")
      assert 0 < len(shown) <= 25
      for cells in shown:
        row, = [row for row in expected
                if float(f"{float(row['setting']):.6g}") == float(cells[0])]
        assert [float(text) for text in re.findall(
            r'-?[\d.]+', ' '.join(cells[1:3]))] == pytest.approx(
                [100 * float(row[column]) for column in INTERVALS], abs=.00501)


def test_quality_table(tmp_path):
  results = analysed(tmp_path, '-method', 'cst')
  rows = read_csv(results / 'exit_quality.csv')
  shown = rows_of(read_page(results), '<tr><th scope=col>Classifier')
  assert len(shown) == len(rows) == 6
  for cells, row in zip(shown, rows):
    assert cells[:2] == [
        f"top-{row['metric'][3]}, clf{row['classifier']}", row['num_images']]
    assert [float(text or 'nan') for text in cells[2:]] == pytest.approx(
        [float(row[column] or 'nan') for column in list(row)[3:]],
        abs=.0000501, nan_ok=True)


@pytest.mark.parametrize('classifier_ids', [(0, 1, 2), (1, 2)])
def test_command_finds_its_row_and_weights(tmp_path, classifier_ids):
  folder = tmp_path / "it's <b> & more"
  folder.mkdir()
  results = analysed(folder, '-epsilons', '0,0.7,1.8',
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
  loaded = shared_results.load(flags['--results'])
  rows = iter(loaded.rows)
  for metric, methods in data['rows'].items():
    for method, columns in methods.items():
      for setting in columns['setting'].split():
        row = next(rows)
        if method != 'global' or 100 * row['setting'] % 7 < .1:
          assert shared_results.choose(
              loaded, f'{method}:{setting}', metric).row is row


def test_nothing_is_loaded_and_nothing_escapes(tmp_path):
  results = analysed(
      tmp_path, '-method', 'cst',
      network='</script><img src=x onerror=alert(1)>')
  page = read_page(results)
  assert page.count('</script') == page.count('<script') == 2
  assert '<img' not in page
  assert '&lt;img src=x' in page
  assert "default-src 'none'" in page
  for pattern in (r'https?:', r'url\((?!#)', '@import', '<link',
                  r'<[^>]*\s(src|href|on\w+)\s*='):
    assert not re.search(pattern, page), pattern
