"""cascade/figures.py: what is drawn, that it can be read, and the files."""

import collections
import itertools
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest

from cascade import figures
from cascade.analysis import MetricResults
from cascade.evaluation import Oracle, Point, confidence_curve
from cascade.macs import NetworkCost, TimeCost
from cascade.thresholds import METHODS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAPER_NUMBERS = os.path.join(ROOT, 'tests', 'data', 'paper_numbers.json')

# What matplotlib and NumPy have to say about data, not about other packages.
pytestmark = [pytest.mark.filterwarnings('error::UserWarning'),
              pytest.mark.filterwarnings('error::RuntimeWarning')]

COST = NetworkCost('ResNet-v2-50', 'exact count',
                   [1816683520, 3284142080, 4095430656], 4089186304, True)
ACCURACIES = {'top1': [.467, .628, .765], 'top5': [.702, .843, .932]}
EPSILONS = list(range(21))
SETTINGS = {'cst': EPSILONS, 'ccst': EPSILONS, 'risk': EPSILONS,
            'global': np.linspace(0, 1, 1000),
            'budgeted': np.arange(1, 40) / 20.,
            'pareto': np.linspace(1.82, 4.09, 700)}

# One per figure of `write`, in its order.
STEMS = ['accuracy_vs_macs_top1', 'accuracy_vs_macs_top5', 'confidence_clf',
         'exit_shares']


def make_points(metric, method, settings, accuracies, cost):
  """Points on a curve like the paper's, from cheap to dear or back."""
  gmacs = np.array(cost.exit_macs) / 1e9
  points = []
  for progress, setting in zip(np.linspace(0, 1, len(settings)), settings):
    if method in ('cst', 'ccst', 'risk'):  # A high epsilon is cheap.
      progress = .3 + .7 * (1 - progress) ** 2
    # Shares move from the first classifier to the last.
    shares = np.interp(np.arange(len(gmacs)) / (len(gmacs) - 1.),
                       [0, 1], [1 - progress, progress]) + 1e-3
    shares /= shares.sum()
    time = {}
    if cost.time:
      time['ms_per_image'] = np.dot(shares, cost.time.exit_nanoseconds) / 1e6
    accuracy = accuracies[0] + (accuracies[-1] - accuracies[0]) * (
        1 - (1 - progress) ** 2.5) - .002 * list(METHODS).index(method)
    cost_per_image = gmacs[0] + (gmacs[-1] - gmacs[0]) * progress
    points.append(Point(
        metric, method, float(setting), (.5,) * (len(gmacs) - 1), accuracy,
        accuracy - .01, accuracy + .01, cost_per_image, 1.,
        tuple(shares.tolist()), 0., 0., 0., cost_per_image, cost_per_image,
        **time))
  return points


def make_curves(metrics, classifier_ids, num_images=2000):
  rng = np.random.RandomState(0)
  curves = collections.OrderedDict()
  for metric in metrics:
    curves[metric] = collections.OrderedDict()
    for k in classifier_ids:
      confidences = 1 - rng.rand(num_images) ** (2 + k)
      curves[metric][k] = confidence_curve(
          confidences, rng.rand(num_images) < confidences)
  return curves


def make_input(metrics=('top1', 'top5'), methods=METHODS, settings=SETTINGS,
               accuracies=ACCURACIES, classifier_ids=(0, 1, 2), cost=COST):
  """`(results, curves, classifier_ids, cost)`, as `write_figures` takes."""
  results = collections.OrderedDict(
      (metric, MetricResults(
          collections.OrderedDict(
              (method, make_points(metric, method, settings[method],
                                   accuracies[metric], cost))
              for method in methods),
          None, accuracies[metric],
          Oracle(min(accuracies[metric][-1] + .03, 1.), (.8,) + (
              .2 / (len(cost.exit_macs) - 1),) * (len(cost.exit_macs) - 1))))
      for metric in metrics)
  return results, make_curves(metrics, classifier_ids), classifier_ids, cost


def two_classifiers(exit_macs=(10**9, 2 * 10**9), plain_macs=19 * 10**8,
                    accuracies=(.6, .8), classifier_ids=(0, 1), **options):
  """`make_input` of somebody's own network."""
  return make_input(
      accuracies={metric: list(accuracies) for metric in ('top1', 'top5')},
      classifier_ids=classifier_ids, cost=NetworkCost(
          'mine', 'mine.json', list(exit_macs), plain_macs, False), **options)


def measured_time(exit_nanoseconds=(12000000, 21000000, 25000000), **options):
  """`make_input` with the time of the paper's network."""
  return make_input(cost=COST._replace(time=TimeCost(
      list(exit_nanoseconds), 24000000, 'time.json', 'CPU', 32)), **options)


def no_images():
  results, _, classifier_ids, cost = two_classifiers(metrics=['top1'])
  curve = confidence_curve(np.zeros(0), np.zeros(0, bool))
  return results, {metric: {k: curve for k in classifier_ids}
                   for metric in results}, classifier_ids, cost


INPUTS = collections.OrderedDict([
    ('paper', make_input),
    # Also: clf1 is just above the lower edge, without room for its name.
    ('epsilons of the paper', lambda: make_input(
        metrics=['top1'], methods=['cst'], settings={
            'cst': [0, 1, 1.6, 1.7, 1.8, 1.9, 2, 2.5, 2.6, 2.7, 2.8, 3, 4, 5.1,
                    5.2, 5.3, 5.4, 6, 7]},
        accuracies={'top1': [.5, .718, .9]})),
    ('classifiers beyond the third', lambda: two_classifiers(
        metrics=['top1'], methods=['ccst'], classifier_ids=(2, 7))),
    ('one setting', lambda: two_classifiers(
        methods=['cst', 'pareto'], settings={'cst': [5], 'pareto': [1.5]})),
    ('all wrong', lambda: two_classifiers(
        metrics=['top1'], accuracies=(0., 0.), methods=['ccst'],
        settings={'ccst': [0]})),
    ('nearly equal', lambda: two_classifiers(
        metrics=['top1'], accuracies=(.76543, .7654301), methods=['cst'],
        exit_macs=(4000000000, 4000000001), plain_macs=4000000000)),
    ('tiny network', lambda: two_classifiers(
        metrics=['top1'], exit_macs=(12345, 23456), plain_macs=23000)),
    ('time', measured_time),
    ('a later exit takes less time', lambda: measured_time(
        (25000000, 21000000, 24100000), metrics=['top1'], methods=['cst'])),
    ('no images', no_images),
])


def drawn(results, curves, classifier_ids, cost, monkeypatch):
  """The figures of `write_figures` by name, without writing them."""
  kept = collections.OrderedDict()

  def keep(folder, stem, figure):
    kept[stem] = figure
    return [stem + '.png', stem + '.pdf']

  with monkeypatch.context() as context:
    context.setattr(figures, 'save', keep)
    figures.write_figures('', results, curves, classifier_ids, cost)
  return kept


@pytest.fixture(scope='module')
def paper_figures():
  with pytest.MonkeyPatch.context() as monkeypatch:
    return drawn(*make_input(), monkeypatch=monkeypatch)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A folder of figures, and what `write_figures` said it wrote."""
  folder = str(tmp_path_factory.mktemp('figures'))
  return folder, write(folder)


def write(folder):
  return figures.write_figures(folder, *make_input())


def read(folder, name):
  with open(os.path.join(folder, name), 'rb') as stream:
    return stream.read()


def legend_texts(figure):
  legend, = figure.legends
  return [text.get_text() for text in legend.get_texts()]


def line_of(axes, label):
  line, = [line for line in axes.lines if line.get_label() == label]
  return line


def luminance(color):
  """From 0 to 1, as print makes it grey (ITU-R BT.601)."""
  from matplotlib import colors
  return np.dot(colors.to_rgb(color), [.299, .587, .114])


def test_files(written):
  folder, names = written
  assert names == [stem + suffix for stem in STEMS
                   for suffix in ('.png', '.pdf')]
  assert sorted(names) == sorted(os.listdir(folder))
  for stem in STEMS:
    png, pdf = read(folder, stem + '.png'), read(folder, stem + '.pdf')
    assert png.startswith(b'\x89PNG\r\n\x1a\n')
    assert struct.unpack('>I', png[16:20]) == (1500,)  # 5 inches at 300 dpi.
    assert pdf.startswith(b'%PDF-') and pdf.rstrip().endswith(b'%%EOF')
    assert b'/FontFile2' in pdf and b'/Type3' not in pdf  # TrueType, embedded.
    assert b'/Subtype /Image' not in pdf  # Lines, not pixels.


def test_same_bytes_whatever_the_users_style(written, tmp_path):
  """In another process, with other hashes, after another style."""
  folder, names = written
  matplotlibrc = tmp_path / 'matplotlibrc'
  matplotlibrc.write_text('lines.linewidth: 9\nfont.size: 30\n'
                          'savefig.bbox: tight\npdf.fonttype: 3\n')
  script = (
      'import sys\n'
      'sys.path[:0] = {!r}\n'
      'from cascade import figures\n'
      'assert "matplotlib" not in sys.modules\n'
      'import matplotlib\n'
      'import test_cascade_figures\n'
      # To ask rcParams for the backend imports pyplot.
      'state = lambda: dict(dict.items(matplotlib.rcParams))\n'
      'before = state()\n'
      'assert before["font.size"] == 30\n'
      'test_cascade_figures.write({!r})\n'
      'assert state() == before\n'
      'assert "matplotlib.pyplot" not in sys.modules\n')
  again = tmp_path / 'again'
  again.mkdir()
  subprocess.check_call(
      [sys.executable, '-c', script.format(
          [ROOT, os.path.join(ROOT, 'Imagenet'), os.path.join(ROOT, 'tests')],
          str(again))],
      env=dict(os.environ, PYTHONHASHSEED='1', MATPLOTLIBRC=str(matplotlibrc)))
  for name in names:
    assert read(str(again), name) == read(folder, name), name


@pytest.mark.parametrize('metric', ['top1', 'top5'])
def test_accuracy_vs_macs(paper_figures, metric):
  figure = paper_figures['accuracy_vs_macs_' + metric]
  axes, = figure.axes
  assert axes.get_xlabel() == 'Cost (GMACs per image)'
  assert axes.get_ylabel() == f'Top-{metric[-1]} accuracy of the cascade (%)'
  labels = collections.OrderedDict(zip(METHODS, legend_texts(figure)))
  assert legend_texts(figure)[len(METHODS):] == (
      ['Bolukbasi et al. 2017'] if metric == 'top5' else []) + [
          'plain network', 'oracle', 'all at one classifier']
  for method, label in labels.items():
    assert label.startswith(method)
    points = make_points(
        metric, method, SETTINGS[method], ACCURACIES[metric], COST)
    line = line_of(axes, label)
    np.testing.assert_array_equal(
        line.get_xdata(), [point.gmacs_per_image for point in points])
    np.testing.assert_allclose(
        line.get_ydata(), [100 * point.test_accuracy for point in points])
    has_markers = line.get_marker() not in (None, 'None', '')
    assert has_markers == (method not in ('global', 'pareto'))
  plain = line_of(axes, 'plain network')
  np.testing.assert_allclose(
      plain.get_xydata(), [[4.089186304, 100 * ACCURACIES[metric][-1]]])
  np.testing.assert_allclose(
      line_of(axes, 'oracle').get_xydata(),
      [[.8 * 1.81668352 + .1 * 3.28414208 + .1 * 4.095430656,
        100 * ACCURACIES[metric][-1] + 3]])
  alone = line_of(axes, 'all at one classifier')
  np.testing.assert_allclose(alone.get_xydata(), np.transpose(
      [[1.81668352, 3.28414208, 4.095430656],
       100 * np.array(ACCURACIES[metric])]))
  for line in axes.lines:  # All of this is to be seen.
    low, high = np.transpose([axes.get_xlim(), axes.get_ylim()])
    assert ((line.get_xydata() > low) & (line.get_xydata() < high)).all()
  texts = [text.get_text() for text in axes.texts]
  assert texts[:3] == ['clf0', 'clf1', 'clf2']
  assert {'ε = 0 %', 'ε = 5 %', 'ε = 10 %'} <= set(texts[3:])


def test_bolukbasi_of_the_paper_at_top5_alone(paper_figures, monkeypatch):
  label = 'Bolukbasi et al. 2017'
  axes, = paper_figures['accuracy_vs_macs_top5'].axes
  np.testing.assert_allclose(line_of(axes, label).get_xydata(), [
      [4.089186304, 93.21], [3.786283614, 92.21], [3.465412121, 91.21],
      [3.351792052, 88.21]])
  assert label not in legend_texts(paper_figures['accuracy_vs_macs_top1'])
  other_network = drawn(*two_classifiers(metrics=['top5']),
                        monkeypatch=monkeypatch)
  assert label not in legend_texts(other_network['accuracy_vs_macs_top5'])


def test_accuracy_vs_ms(monkeypatch):
  """The same beside it, but for Bolukbasi's speedups, which are in MACs."""
  of_time = drawn(*measured_time(methods=['cst', 'pareto']),
                  monkeypatch=monkeypatch)
  assert list(of_time) == [
      'accuracy_vs_macs_top1', 'accuracy_vs_macs_top5', 'accuracy_vs_ms_top1',
      'accuracy_vs_ms_top5', 'confidence_clf', 'exit_shares']
  figure = of_time['accuracy_vs_ms_top5']
  axes, = figure.axes
  assert axes.get_xlabel() == 'Cost (ms per image)'
  assert [text.split(',')[0] for text in legend_texts(figure)] == [
      'cst', 'pareto', 'plain network', 'oracle', 'all at one classifier']
  points = make_points('top5', 'cst', EPSILONS, ACCURACIES['top5'],
                       measured_time()[-1])
  np.testing.assert_array_equal(
      axes.lines[0].get_xdata(), [point.ms_per_image for point in points])
  assert line_of(axes, 'plain network').get_xdata().tolist() == [24]
  assert line_of(axes, 'all at one classifier').get_xdata().tolist() == [
      12, 21, 25]
  assert 'ε = 5 %' in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize('make, unit', [
    (make_input, 'GMACs'), (measured_time, 'ms')])
def test_exit_shares_of_pareto_alone(make, unit, monkeypatch):
  panel = drawn(*make(metrics=['top1'], methods=['pareto']),
                monkeypatch=monkeypatch)['exit_shares'].axes[0]
  assert panel.get_xlabel() == f'Cost where fitted ({unit} per image)'


def test_bolukbasi_as_published():
  with open(PAPER_NUMBERS) as stream:
    published = json.load(stream)['bolukbasi_2017_resnet50_top5']
  assert list(figures.BOLUKBASI_TOP5_ACCURACY) == published['accuracy']
  assert list(figures.BOLUKBASI_SPEEDUP) == published['speedup']


def test_confidence_clf(paper_figures):
  figure = paper_figures['confidence_clf']
  curves = make_curves(('top1', 'top5'), (0, 1, 2))
  assert legend_texts(figure) == ['clf0', 'clf1', 'clf2']
  panels = np.reshape(figure.axes, [4, 2])
  assert [panel.get_title() for panel in panels[0]] == ['Top-1', 'Top-5']
  assert [panel.get_xlabel() for panel in panels[-1]] == [
      'Confidence (largest softmax)', 'Confidence (sum of top-5 softmaxes)']
  assert panels[0, 0].get_ylabel().endswith('α (%)')
  assert [panel.get_ylabel() for panel in panels[1:, 0]] == [
      'clf0', 'clf1', 'clf2']
  assert [text.get_text() for text in figure.texts] == ['Images per bin (%)']
  edges = np.arange(201) / 200.
  for (lines, *bars), of_metric in zip(panels.T, curves.values()):
    assert lines.get_xlim() == (0, 1)
    assert len(bars) == len(lines.lines) == len(of_metric)
    for panel, line, curve in zip(bars, lines.lines, of_metric.values()):
      np.testing.assert_array_equal(line.get_xdata(), edges[:-1])
      np.testing.assert_allclose(line.get_ydata(), 100 * curve.alpha_smoothed)
      outline, = panel.collections
      corners = {tuple(corner) for path in outline.get_paths()
                 for corner in path.vertices.round(9)}
      for low, high, share in zip(edges[:-1], edges[1:], curve.share):
        assert {(round(low, 9), round(100 * share, 9)),
                (round(high, 9), round(100 * share, 9))} <= corners


def stack_tops(axes):
  """Of each area the height of its upper end, by x."""
  tops = []
  for area in axes.collections:
    path, = area.get_paths()
    top = {}
    for x, y in path.vertices:
      top[x] = max(y, top.get(x, 0))
    tops.append([top[x] for x in sorted(top)])
  return np.array(tops)


def test_exit_shares(paper_figures):
  figure = paper_figures['exit_shares']
  assert legend_texts(figure) == [
      'leaving at clf0', 'leaving at clf1', 'leaving at clf2']
  assert [axes.get_title() for axes in figure.axes] == ['Top-1', 'Top-5']
  assert figure.axes[0].get_ylabel() == 'Images (%)'
  for axes, metric in zip(figure.axes, ('top1', 'top5')):
    assert axes.get_xlabel() == 'Accuracy given up, ε (%)'
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 20), (0, 100))
    shares = [point.exit_shares for point in make_points(
        metric, 'cst', EPSILONS, ACCURACIES[metric], COST)]
    np.testing.assert_allclose(
        stack_tops(axes), 100 * np.cumsum(shares, axis=1).T)


def test_readable_in_greyscale(paper_figures):
  axes, = paper_figures['accuracy_vs_macs_top5'].axes
  methods = axes.lines[:len(METHODS)]
  assert len({(line.get_marker(), line.get_linestyle())
              for line in methods}) == len(methods)
  classifiers = paper_figures['confidence_clf'].axes[0].lines
  assert len({line.get_linestyle() for line in classifiers}) == 3
  for lines, least in ((methods, .07), (classifiers, .2)):
    greys = [luminance(line.get_color()) for line in lines]
    assert max(greys) < .75  # On white.
    for one, other in itertools.combinations(greys, 2):
      assert abs(one - other) > least
  areas = paper_figures['exit_shares'].axes[0].collections
  assert [luminance(area.get_facecolor()[0]) for area in areas] == (
      [luminance(line.get_color()) for line in classifiers])


@pytest.mark.parametrize('case', list(INPUTS))
def test_nothing_is_clipped_or_hidden(case, monkeypatch):
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  for figure in drawn(*INPUTS[case](), monkeypatch=monkeypatch).values():
    with figures._style():
      canvas = FigureCanvasAgg(figure)
      canvas.draw()
      renderer = canvas.get_renderer()
      # Without what is written beside points: see below.
      boxes = [axes.get_tightbbox(renderer, bbox_extra_artists=[])
               for axes in figure.axes]
    boxes += [artist.get_window_extent(renderer)
              for artist in figure.legends + figure.texts]
    for box in boxes:
      assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
      assert box.y0 >= 0 and box.y1 <= figure.bbox.y1
    # Panels with their labels, the legend and the text keep apart.
    for one, other in itertools.combinations(boxes, 2):
      assert not one.overlaps(other)
    pixels = np.asarray(canvas.buffer_rgba())
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
      assert (edge == 255).all()
    for axes in figure.axes:  # What is written beside points.
      # matplotlib leaves out what belongs to a point outside.
      texts = [text.get_window_extent(renderer) for text in axes.texts
               if axes.bbox.contains(*axes.transData.transform(text.xy))]
      for box in texts:
        assert box.x0 >= axes.bbox.x0 and box.x1 <= axes.bbox.x1
        assert box.y0 >= axes.bbox.y0 and box.y1 <= axes.bbox.y1
