"""`report.html` in a real browser, where there is a Chromium."""

import pytest

import chromium
from analysed_dumps import RUNS, analysed, read_csv

pytestmark = pytest.mark.skipif(
    not chromium.EXECUTABLE, reason='there is no Chromium here')

TITLES = {'top1': 'top-1', 'top5': 'top-5'}


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
  with chromium.Chromium(str(tmp_path_factory.mktemp('profile'))) as browser:
    yield browser


@pytest.fixture
def opened(browser, tmp_path, monkeypatch):
  """A function that makes a page, opens it and returns its `cascade.csv`.

  At the end nothing was asked for but the page, and nothing complained.
  """
  def open_page(*options, **changes):
    results = analysed(tmp_path, monkeypatch, *options, **changes)
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


def percent(row, column):
  return f'{100 * round(float(row[column]), 4) + 0.:.2f}'


def check_shown(browser, row):
  """The page shows this row of `cascade.csv`."""
  accuracy = [percent(row, 'test_accuracy' + end)
              for end in ('', '_low', '_high')]
  drop = [percent(row, 'accuracy_drop' + end) for end in ('', '_low', '_high')]
  assert text(browser, 'accuracy') == f'{accuracy[0]} %'
  assert text(browser, 'accuracy-interval') == (
      f'{accuracy[1]} to {accuracy[2]} %')
  assert text(browser, 'drop') == f'{drop[0]} points'
  low, high = (float(row['accuracy_drop' + end]) for end in ('_low', '_high'))
  assert text(browser, 'drop-interval') == f'{drop[1]} to {drop[2]}: ' + (
      'worse than the plain network' if low > 0 else
      'better than the plain network' if high < 0 else
      'no clear difference from the plain network')
  cost, speedup = f"{float(row['gmacs_per_image']):.4f} GMACs", (
      f"{float(row['speedup']):.3f} by MACs")
  if 'ms_per_image' in row:
    cost += f", {float(row['ms_per_image']):.3f} ms"
    speedup += f", {float(row['speedup_by_time']):.3f} by time"
  assert text(browser, 'cost') == f'{cost} per image'
  assert text(browser, 'speedup') == speedup
  names = [column.replace('exit_share_', '') for column in row
           if column.startswith('exit_share')]
  shares = [percent(row, 'exit_share_' + name) for name in names]
  assert text(browser, 'shares').split('\n') == [
      f'{name} {share} %' for name, share in zip(names, shares)]
  widths = browser.evaluate(
      '[...document.getElementById("bar").children].map('
      'part => 100 * part.clientWidth / part.parentElement.clientWidth)')
  assert widths == pytest.approx([float(share) for share in shares], abs=.5)
  shown = text(browser, 'thresholds')
  if row['method'] != 'ccst':
    assert shown == '; '.join(
        name + ' ' + ('inf (no image leaves)' if value == 'inf'
                      else f'{float(value):.4f}')
        for name, value in ((name, row['threshold_' + name])
                            for name in names[:-1]))
  else:
    assert shown.count(' by class') == len(names) - 1
  setting = float(row['setting'])
  if setting.is_integer():
    assert text(browser, 'chosen') == f"{row['method']}:{setting:.0f}"


@pytest.mark.parametrize('run', RUNS)
def test_slider_shows_the_rows_of_the_csv_file(browser, opened, run):
  rows = opened(**RUNS[run])
  of_method = {}
  for row in rows:
    of_method.setdefault((row['metric'], row['method']), []).append(row)
  for (metric, method), expected in of_method.items():
    for index in {0, len(expected) // 3, len(expected) - 1}:
      choose(browser, metric, method, index)
      check_shown(browser, expected[index])
      if RUNS[run].get('knows_weights', True):
        command = text(browser, 'command')
        assert f'--metric {metric} --choose {method}:' in command
  assert browser.evaluate(
      '[...document.querySelectorAll("[data-metric]")].filter('
      'part => part.offsetHeight).map(part => part.dataset.metric)') == (
          3 * [metric])


def test_it_opens_at_a_drop_of_one_point(browser, opened):
  rows = [row for row in opened('-method', 'cst') if row['metric'] == 'top1']
  drops = [float(row['accuracy_drop']) for row in rows]
  limit = max(.01, min(drops))
  check_shown(browser, min(
      (row for row, drop in zip(rows, drops) if drop <= limit + 1e-9),
      key=lambda row: float(row['gmacs_per_image'])))


def test_the_point_is_on_its_line(browser, opened):
  opened('-method', 'cst')
  for index in (0, 9, 20):
    choose(browser, 'top1', 'cst', index)
    distance = browser.evaluate('''(() => {
        const svg = document.querySelector("[data-metric=top1] svg");
        const line = svg.querySelector(".line-cst");
        const circle = svg.querySelector(".chosen circle");
        let least = Infinity;
        for (let at = 0; at <= line.getTotalLength(); at += .1) {
          const {x, y} = line.getPointAtLength(at);
          least = Math.min(least, Math.hypot(
              x - circle.cx.baseVal.value, y - circle.cy.baseVal.value));
        }
        return least; })()''')
    assert distance < .6


def test_keyboard(browser, opened):
  rows = [row for row in opened('-method', 'cst') if row['metric'] == 'top1']
  choose(browser, 'top1', 'cst', 4)
  browser.evaluate('document.getElementById("setting").focus()')
  for kind in ('keyDown', 'keyUp'):
    browser.send('Input.dispatchKeyEvent', type=kind, key='ArrowRight',
                 code='ArrowRight', windowsVirtualKeyCode=39)
  check_shown(browser, rows[5])
  assert browser.evaluate(
      'document.getElementById("setting").getAttribute("aria-valuetext")'
      ).startswith('5: accuracy ')
  assert browser.evaluate(
      '[...document.querySelectorAll("input, select")].filter('
      'input => !input.labels.length).length') == 0


def test_methods_can_be_hidden(browser, opened):
  opened('-method', 'cst,global')
  shown = ('[...document.querySelectorAll("#figure [data-metric=top1] .line")]'
           '.map(line => getComputedStyle(line).display !== "none")')
  assert browser.evaluate(shown) == [True, True]
  browser.evaluate(
      'document.querySelector("[name=shown][value=global]").click()')
  assert sorted(browser.evaluate(shown)) == [False, True]


def test_command_is_copied(browser, opened):
  opened('-method', 'cst')
  x, y = browser.evaluate('''(() => {
      const button = document.getElementById("copy");
      button.scrollIntoView();
      const {x, y} = button.getBoundingClientRect();
      return [x + 5, y + 5]; })()''')
  for kind in ('mousePressed', 'mouseReleased'):  # A script may not copy.
    browser.send('Input.dispatchMouseEvent', type=kind, x=x, y=y,
                 button='left', clickCount=1)
  assert text(browser, 'copy') == 'Copied'
  assert browser.evaluate('getSelection().toString()') == text(
      browser, 'command')


def test_without_weights(browser, opened):
  rows = opened('-method', 'cst,ccst', knows_weights=False)
  choose(browser, 'top1', 'cst', 2)
  command = text(browser, 'command')
  given = command.split('--thresholds ')[1].split()[0].split(',')
  assert [float(value) for value in given] == pytest.approx(
      [float(rows[2][f'threshold_clf{m}']) for m in range(2)], abs=1e-10)
  choose(browser, 'top1', 'ccst', 2)
  assert '--thresholds THRESHOLDS' in text(browser, 'command')
  assert 'need dumps' in text(browser, 'command-note')


def test_without_script(browser, opened):
  browser.send('Emulation.setScriptExecutionDisabled', value=True)
  try:
    opened()
    shown = browser.evaluate('''[...document.querySelectorAll(
        "svg, table, select, [type=range], [type=checkbox]")].filter(
        part => part.getClientRects().length).map(part => part.tagName)''')
  finally:
    browser.send('Emulation.setScriptExecutionDisabled', value=False)
  assert shown == 2 * ['svg'] + 2 * ['TABLE'] + 2 * ['svg'] + ['TABLE']


@pytest.mark.parametrize('scheme,back', [
    ('light', 'rgb(255, 255, 255)'), ('dark', 'rgb(22, 24, 27)')])
def test_on_a_phone(browser, opened, scheme, back):
  browser.send('Emulation.setDeviceMetricsOverride', width=360, height=740,
               deviceScaleFactor=1, mobile=True)
  browser.send('Emulation.setEmulatedMedia', features=[
      {'name': 'prefers-color-scheme', 'value': scheme}])
  try:
    opened()
    assert browser.evaluate('document.documentElement.scrollWidth') == 360
    assert browser.evaluate(
        'getComputedStyle(document.body).backgroundColor') == back
  finally:
    browser.send('Emulation.clearDeviceMetricsOverride')
    browser.send('Emulation.setEmulatedMedia', features=[])


def test_in_print(browser, opened):
  opened()
  browser.send('Emulation.setEmulatedMedia', media='print', features=[
      {'name': 'prefers-color-scheme', 'value': 'dark'}])
  try:
    assert browser.evaluate(
        '[...document.querySelectorAll("input, select, button")].filter('
        'control => control.getClientRects().length).length') == 0
    assert browser.evaluate(
        'getComputedStyle(document.body).backgroundColor') == (
            'rgb(255, 255, 255)')
    assert text(browser, 'accuracy').endswith(' %')
  finally:
    browser.send('Emulation.setEmulatedMedia', media='', features=[])
