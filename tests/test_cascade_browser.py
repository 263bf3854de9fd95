"""`report.html` in a real browser, where there is a Chromium."""

import numpy as np
import pytest

import chromium
from analysed_dumps import RUNS, analysed, read_csv

pytestmark = pytest.mark.skipif(
    not chromium.EXECUTABLE, reason='there is no Chromium here')


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
  with chromium.Chromium(str(tmp_path_factory.mktemp('profile'))) as browser:
    yield browser


@pytest.fixture
def opened(browser, tmp_path):
  """A function that makes a page, opens it and returns its `cascade.csv`.

  At the end nothing was asked for but the page, and nothing complained.
  """
  def open_page(*options, **changes):
    results = analysed(tmp_path, *options, **changes)
    del browser.events[:]
    browser.open(str(results / 'report.html'))
    return read_csv(results / 'cascade.csv')

  yield open_page
  assert [event['request']['url'] for event in browser.events_of(
      'Network.requestWillBeSent')] == [
          (tmp_path / 'results' / 'report.html').as_uri()]
  assert browser.events_of('Log.entryAdded', 'Runtime.consoleAPICalled',
                           'Runtime.exceptionThrown') == []


def choose(browser, metric, method, index):
  """As a user does: the buttons, the list, the slider."""
  browser.evaluate(f'''
      document.querySelector("[name=metric][value={metric}]").click();
      method = document.getElementById("method");
      method.value = "{method}";
      method.dispatchEvent(new Event("change"));
      slider = document.getElementById("setting");
      slider.value = {index};
      slider.dispatchEvent(new Event("input"))''')


def text(browser, element):
  return browser.evaluate(f'document.getElementById("{element}").innerText')


def count(browser, selector, condition):
  """How many elements there are for which a condition on `part` holds."""
  return browser.evaluate(
      f'[...document.querySelectorAll("{selector}")].filter('
      f'part => {condition}).length')


def check_shown(browser, row):
  """The page shows this row of `cascade.csv`."""
  def percent(column):
    return f'{100 * round(float(row[column]), 4) + 0.:.2f}'

  for element, column in (('accuracy', 'test_accuracy'),
                          ('drop', 'accuracy_drop')):
    assert text(browser, element).split()[0] == percent(column)
    assert text(browser, element + '-interval').startswith(
        f"{percent(column + '_low')} to {percent(column + '_high')}")
  cost = [f"{float(row['gmacs_per_image']):#.5g} GMACs"]
  speedup = [f"{float(row['speedup']):.3f} by MACs"]
  if 'ms_per_image' in row:
    cost.append(f"{float(row['ms_per_image']):#.5g} ms")
    speedup.append(f"{float(row['speedup_by_time']):.3f} by time")
  assert text(browser, 'cost') == f"{', '.join(cost)} per image"
  assert text(browser, 'speedup') == ', '.join(speedup)
  shares = {column[-4:]: percent(column) for column in row
            if column.startswith('exit_share')}
  assert text(browser, 'shares').split('\n') == [
      f'{name} {share} %' + (
          f" ({percent('exit_accuracy_' + name)} % right)"
          if row['exit_accuracy_' + name] else '')
      for name, share in shares.items()]
  for name, shown in zip(shares, text(browser, 'thresholds').split('; ')):
    threshold = row['threshold_' + name]
    assert shown.split()[:2] == [name, {'': 'one', 'inf': 'inf'}.get(
        threshold) or f'{float(threshold):.4f}']


@pytest.mark.parametrize('run', ['three exits', 'four exits', 'measured time'])
def test_slider_shows_the_rows_of_the_csv_file(browser, opened, run):
  rows = opened(**RUNS[run])
  of_method = {}
  for row in rows:
    of_method.setdefault((row['metric'], row['method']), []).append(row)
  for (metric, method), expected in of_method.items():
    for index in {0, len(expected) // 3, len(expected) - 1}:
      choose(browser, metric, method, index)
      check_shown(browser, expected[index])
      assert f'--metric {metric} --choose {method}:' in text(browser, 'command')
    for shown, number in ((metric, 3), ('top1', 3 * (metric == 'top1'))):
      assert count(browser, f'[data-metric={shown}]',
                   'part.offsetHeight') == number


@pytest.mark.parametrize('method, cost', [
    ('budgeted', 'ms_per_image'), ('risk', 'gmacs_per_image')])
def test_the_point_is_where_its_setting_is_drawn(browser, opened, method, cost):
  opened('-method', method, is_timed=True)
  browser.evaluate(f'document.querySelector("[value={cost}]").click()')
  for index in (0, 9, 20):
    choose(browser, 'top1', method, index)
    x, y, *markers = np.array(browser.evaluate(f'''(() => {{
        const svg = document.querySelector("#figure div:not([hidden]) svg");
        const circle = svg.querySelector(".chosen circle");
        return [circle.cx, circle.cy, ...[...svg.querySelectorAll(
            ".line-{method} use")].flatMap(use => [use.x, use.y])].map(
                length => length.baseVal.value); }})()'''))
    distances = np.hypot(*(np.reshape(markers, [-1, 2]) - [x, y]).T)
    assert distances.min() < .1
  assert browser.evaluate('document.querySelector('
                          '"#figure div:not([hidden])").dataset.cost') == cost


def test_without_weights(browser, opened):
  rows = opened('-method', 'cst,ccst', knows_weights=False)
  choose(browser, 'top1', 'cst', 2)
  command = text(browser, 'command')
  assert '--results' not in command
  given = command.split('--thresholds ')[1].split()[0].split(',')
  assert [float(value) for value in given] == pytest.approx(
      [float(rows[2][f'threshold_clf{m}']) for m in range(2)], rel=1e-8)
  choose(browser, 'top1', 'ccst', 2)
  assert '--thresholds THRESHOLDS' in text(browser, 'command')


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_on_a_phone(browser, opened, scheme):
  browser.send('Emulation.setDeviceMetricsOverride', width=360, height=740,
               deviceScaleFactor=1, mobile=True)
  browser.send('Emulation.setEmulatedMedia', features=[
      {'name': 'prefers-color-scheme', 'value': scheme}])
  try:
    opened('-method', 'cst')
    assert browser.evaluate('document.documentElement.scrollWidth') == 360
    # No text of a figure is cut.
    box = 'getBoundingClientRect()'
    assert count(browser, 'svg text', ' || '.join(
        f'part.{box}.{side} {sign} part.closest("svg").{box}.{side}'
        for side, sign in zip(('left', 'top', 'right', 'bottom'), '<<>>'))) == 0
    back = browser.evaluate(
        'getComputedStyle(document.body).backgroundColor.match(/\\d+/g)')
  finally:
    browser.send('Emulation.clearDeviceMetricsOverride')
    browser.send('Emulation.setEmulatedMedia', features=[])
  assert (np.array(back, float).mean() < 128) == (scheme == 'dark')
