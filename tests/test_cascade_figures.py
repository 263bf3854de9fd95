"""cascade/figures.py: what is drawn, that it can be read, and the files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from analysed_dumps import analysed
from cascade import figures, page
from cascade.thresholds import METHODS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAPER_NUMBERS = os.path.join(ROOT, 'tests', 'data', 'paper_numbers.json')

# What matplotlib and NumPy have to say about data, not about other packages.
pytestmark = [pytest.mark.filterwarnings('error::UserWarning'),
              pytest.mark.filterwarnings('error::RuntimeWarning')]

STEMS = ['accuracy_vs_macs_top1', 'accuracy_vs_macs_top5', 'confidence_clf',
         'exit_shares']


def figures_input(folder, **changes):
  """What `write_figures` takes, of dumps that are analysed in a new folder."""
  kept = []
  folder.mkdir(exist_ok=True)
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setattr(
        page, 'write', lambda path, folder, summary, results, curves, qualities,
        *others: kept.append((results, curves) + others))
    analysed(folder, **changes)
  return kept[0]


def drawn(results, curves, classifier_ids, cost):
  """The figures of `write_figures` by name, without writing them."""
  kept = {}
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setattr(
        figures, 'save', lambda folder, *figure: kept.update([figure]))
    figures.write_figures('', results, curves, classifier_ids, cost)
  return kept


@pytest.fixture(scope='module')
def plain_input(tmp_path_factory):
  """Of dumps as if they were from the paper's network."""
  results, curves, classifier_ids, cost = figures_input(
      tmp_path_factory.mktemp('figures'))
  return results, curves, classifier_ids, cost._replace(
      is_paper_network=True, plain_macs=4200000000)


@pytest.fixture(scope='module')
def plain_figures(plain_input):
  return drawn(*plain_input)


def line_of(axes, label):
  line, = [line for line in axes.lines if line.get_label().startswith(label)]
  return line


def test_files(tmp_path):
  """The same bytes by the command, with other hashes and another style.

  In a notebook matplotlib's backend is, to the newest one, a name as good as
  any.
  """
  inputs = figures_input(tmp_path)
  here, there = tmp_path / 'here', tmp_path / 'there'
  here.mkdir()
  figures.write_figures(str(here), *inputs)
  names = [stem + suffix for stem in STEMS for suffix in ('.png', '.pdf')]
  assert sorted(os.listdir(str(here))) == sorted(names)
  (tmp_path / 'matplotlibrc').write_text(
      'lines.linewidth: 9\nfont.size: 30\nsavefig.bbox: tight\n')
  environment = dict(os.environ, PYTHONHASHSEED='1', MPLBACKEND='absent',
                     MATPLOTLIBRC=str(tmp_path / 'matplotlibrc'))
  environment.pop('DISPLAY', None)
  finished = subprocess.run(
      [sys.executable, '-W', 'error::RuntimeWarning',
       os.path.join(ROOT, 'analyze_imagenet_labels.py'), '-softmax_path',
       str(tmp_path / 'output_softmax'), '-output_dir', str(there)],
      env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  assert (finished.returncode, finished.stderr) == (0, b'')
  for name in names:
    content = (here / name).read_bytes()
    assert content == (there / name).read_bytes(), name


@pytest.mark.parametrize('metric', ['top1', 'top5'])
def test_accuracy_vs_macs(plain_input, plain_figures, metric):
  results, _, _, cost = plain_input
  axes, = plain_figures['accuracy_vs_macs_' + metric].axes
  for method in METHODS:
    points = results[metric].points[method]
    line = line_of(axes, method)
    np.testing.assert_array_equal(
        line.get_xdata(), [point.gmacs_per_image for point in points])
    accuracies = np.array([point.test_accuracy for point in points])
    if method == 'risk':  # Other images judge it: its drop is drawn.
      by_drop = results[metric].classifier_accuracies[-1] - np.array(
          [point.accuracy_drop for point in points])
      assert metric == 'top5' or not np.allclose(accuracies, by_drop)
      accuracies = by_drop
    np.testing.assert_allclose(line.get_ydata(), 100 * accuracies)
  accuracies = 100 * np.array(results[metric].classifier_accuracies)
  oracle = results[metric].oracle
  gmacs = np.array(cost.exit_macs) / 1e9
  for label, expected in (
      ('plain network', [[4.2, accuracies[-1]]]),
      # The last one is the plain network's.
      ('all at one', list(zip(gmacs, accuracies))[:-1]),
      ('oracle', [[np.dot(oracle.exit_shares, gmacs), 100 * oracle.accuracy]])):
    np.testing.assert_allclose(line_of(axes, label).get_xydata(), expected)
  for line in axes.lines:  # All of this is to be seen.
    low, high = np.transpose([axes.get_xlim(), axes.get_ylim()])
    assert ((line.get_xydata() > low) & (line.get_xydata() < high)).all()


def test_bolukbasi_of_the_paper_at_top5_alone(plain_input, plain_figures):
  with open(PAPER_NUMBERS) as stream:
    published = json.load(stream)['bolukbasi_2017_resnet50_top5']
  axes, = plain_figures['accuracy_vs_macs_top5'].axes
  np.testing.assert_allclose(line_of(axes, 'Bolukbasi').get_xydata(), np.stack(
      [4.2 / np.array(published['speedup']),
       100 * np.array(published['accuracy'])], axis=1))
  *inputs, cost = plain_input
  other_network = drawn(*inputs, cost._replace(is_paper_network=False))
  for others in (plain_figures['accuracy_vs_macs_top1'],
                 other_network['accuracy_vs_macs_top5']):
    assert not any(line.get_label().startswith('Bolukbasi')
                   for line in others.axes[0].lines)


def test_accuracy_vs_ms(tmp_path):
  """The same beside it, but for Bolukbasi's speedups, which are in MACs."""
  results, *others, cost = figures_input(tmp_path, is_timed=True)
  of_time = drawn(results, *others, cost._replace(is_paper_network=True))
  assert list(of_time) == STEMS[:2] + [
      'accuracy_vs_ms_top1', 'accuracy_vs_ms_top5'] + STEMS[2:]
  axes, = of_time['accuracy_vs_ms_top5'].axes
  for label, costs in (
      ('cst', [point.ms_per_image for point in results['top5'].points['cst']]),
      ('all at one', [20, 30, 40])):
    np.testing.assert_array_equal(line_of(axes, label).get_xdata(), costs)
  assert not any(line.get_label().startswith('Bolukbasi')
                 for line in axes.lines)
