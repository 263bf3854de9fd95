"""The paper's figures, and the shares of the exits, as PNG and PDF.

Functions that draw return a `matplotlib.figure.Figure`, `save` writes one, and
`write_figures` lists all. They need no display. Nothing in matplotlib's state
or in the user's matplotlibrc changes what is drawn, and the same input gives
the same bytes.

Whatever differs in colour also differs in line, marker or lightness, for print
in grey.

matplotlib is imported where it is used: importing it takes longer than all of
step 4, which draws nothing.
"""

import contextlib
import importlib.util
import math
import os
import threading
import typing

import numpy as np

from cascade import UserError
from cascade.evaluation import bin_edges
from cascade.predictions import METRIC_TITLES
from cascade.thresholds import METHODS, main_method, setting_label

PNG_DPI = 300

# Inches. The width is that of the text on a one-column page. The legend lies
# above the panels, where it hides no point.
_WIDTH = 5.
_RIGHT_MARGIN = .22
_BOTTOM_MARGIN = .42
_TEXT_ROW = .18
_LEGEND_COLUMNS = 3

# Sizes are in points. STIX, a Times, comes with matplotlib; type 42 embeds it
# as TrueType, which publishers accept.
_STYLE = {
    'font.family': 'STIXGeneral',
    'font.size': 9,
    'legend.fontsize': 8.5,
    'axes.labelsize': 9,
    'axes.titlesize': 9,
    'xtick.labelsize': 8.5,
    'ytick.labelsize': 8.5,
    'axes.linewidth': .6,
    'axes.axisbelow': True,
    'axes.grid': True,
    'axes.formatter.useoffset': False,
    'grid.color': '.9',
    'grid.linewidth': .5,
    'legend.frameon': False,
    'legend.handlelength': 2.6,
    'pdf.fonttype': 42,
}
_ANNOTATION_SIZE = 7.5

# Inches, for the text beside points, distance included: the height of a
# classifier's name, the width of an epsilon, and the least distance of two
# points with an epsilon.
_NAME_HEIGHT = .2
_EPSILON_WIDTH = .6
_EPSILON_SPACING = .45

# How the points of each method are drawn; the paper's are the most prominent.
# A method of about 1000 points is a line without markers.
METHOD_LINES = {
    'cst': dict(label='cst, per classifier', color='#0b2d5c', linewidth=2.,
                marker='o', markersize=4.8, zorder=4),
    'global': dict(label='global, one for all', color='#aaaaaa', linewidth=3.,
                   zorder=3),
    'ccst': dict(label='ccst, per class', color='#e08214', linewidth=.8,
                 linestyle='-.', marker='s', markersize=2.4, zorder=5),
    'budgeted': dict(label='budgeted (MSDNet)', color='#22927c', linewidth=.8,
                     linestyle=':', marker='^', markersize=2.8, zorder=5),
    'pareto': dict(label='pareto, by search', color='#b2182b',
                   linewidth=.9, linestyle='--', zorder=6),
    'risk': dict(label='risk, with a guarantee', color='#7042aa',
                 linewidth=.8, marker='v', markersize=3.2, zorder=5),
}

# A classifier has the same colour and line in all figures, by its number; from
# the fourth on they repeat.
CLASSIFIER_COLORS = ('#f0a848', '#c1503f', '#2b2f63')
CLASSIFIER_LINES = (':', '--', '-')

# Top-5 accuracy and speedup of ResNet-50 with adaptive early exits, which the
# paper compares with: Bolukbasi, Wang, Dekel & Saligrama, "Adaptive Neural
# Networks for Efficient Inference", ICML 2017.
BOLUKBASI_TOP5_ACCURACY = (.9321, .9221, .9121, .8821)
BOLUKBASI_SPEEDUP = (1., 1.08, 1.18, 1.22)

# The lowest share of images that figure 5.d shows, in percent.
_LEAST_SHARE = .001

CONFIDENCE_LABELS = {
    'top1': 'Confidence (largest softmax)',
    'top5': 'Confidence (sum of top-5 softmaxes)'}


def check_is_there():
  """Raises a `UserError` if matplotlib is not installed."""
  if importlib.util.find_spec('matplotlib') is None:
    raise UserError('-output_dir: the figures need matplotlib, and this '
                    'Python does not have it; install it, or use the '
                    'environment that ./setup_env.sh analysis makes')


def load_in_background():
  """Starts importing matplotlib: half a second, while the dumps are read.

  Whoever needs it sooner waits for it.
  """
  def load():
    try:
      import matplotlib.backends.backend_agg
      import matplotlib.backends.backend_pdf
      import matplotlib.figure
    except ImportError:  # `check_is_there` says so.
      pass

  threading.Thread(target=load).start()


def write_figures(folder, results, curves, classifier_ids, cost):
  """Draws and writes all figures; returns the names of the files.

  `accuracy_vs_macs_<metric>` are figures 4.d and 4.e of the paper, with -cost
  `accuracy_vs_ms_<metric>` beside them, `confidence_clf` is 5.d, and
  `exit_shares` shows where images leave. A new figure is a function that draws
  it and a line here.

  Args:
    folder: an existing folder.
    results: a dict from metric to `analysis.MetricResults`.
    curves: a dict from metric to a dict from classifier to
      `evaluation.ConfidenceCurve`.
    classifier_ids: ints, ascending.
    cost: `macs.NetworkCost`.
  """
  figures = {}
  for stem, axis in cost_axes(cost).items():
    for metric, of_metric in results.items():
      figures[f'{stem}_{metric}'] = accuracy_vs_cost(
          metric, of_metric, classifier_ids, cost, axis)
  figures['confidence_clf'] = confidence_clf(curves)
  figures['exit_shares'] = exit_shares(
      {metric: of_metric.points for metric, of_metric in results.items()},
      classifier_ids, cost)
  return [name for stem, figure in figures.items()
          for name in save(folder, stem, figure)]


@contextlib.contextmanager
def _style():
  """Draws in this file's style, whatever the user's is, and restores that."""
  from matplotlib import style
  with style.context(['default', _STYLE]):
    yield


@_style()
def save(folder, stem, figure):
  """Writes a figure as PNG and as PDF; returns both file names."""
  names = [stem + '.png', stem + '.pdf']
  # Level 3 takes two thirds of the time and a fifth more space.
  figure.savefig(os.path.join(folder, names[0]), dpi=PNG_DPI,
                 pil_kwargs={'compress_level': 3})
  # With a date, each run's file would differ.
  figure.savefig(os.path.join(folder, names[1]),
                 metadata={'CreationDate': None})
  return names


class CostAxis(typing.NamedTuple):
  """What accuracy is drawn against, in the unit of the axis."""
  label: str
  field: str           # Of `evaluation.Point`.
  exit_costs: list     # Of leaving at each classifier.
  plain_cost: float
  is_comparable: bool  # With Bolukbasi et al. 2017.


def cost_axes(cost):
  """A dict from the begin of a figure's name to its `CostAxis`."""
  axes = {'accuracy_vs_macs': CostAxis(
      'Cost (GMACs per image)', 'gmacs_per_image',
      [macs / 1e9 for macs in cost.exit_macs], cost.plain_macs / 1e9,
      cost.is_paper_network)}
  if cost.time:
    axes['accuracy_vs_ms'] = CostAxis(
        'Cost (ms per image)', 'ms_per_image',
        [nanoseconds / 1e6 for nanoseconds in cost.time.exit_nanoseconds],
        cost.time.plain_nanoseconds / 1e6, False)
  return axes


@_style()
def accuracy_vs_cost(metric, of_metric, classifier_ids, cost, axis):
  """Accuracy of the cascade against its cost: figures 4.d and 4.e.

  A line connects the points of a method in their order.
  """
  alone, plain, bound = reference_points(of_metric, cost, axis)
  comparison = []
  if metric == 'top5' and axis.is_comparable:
    comparison = [(axis.plain_cost / speedup, accuracy) for speedup, accuracy
                  in zip(BOLUKBASI_SPEEDUP, BOLUKBASI_TOP5_ACCURACY)]
  series = [
      ([(getattr(point, axis.field), point.test_accuracy)
        for point in of_metric.points[method]], METHOD_LINES[method])
      for method in METHODS if method in of_metric.points]
  for marks, label, marker, size, zorder in (
      (comparison, 'Bolukbasi et al. 2017', 'D', 4, 7),
      (plain, 'plain network', '*', 10, 8),
      (bound, 'oracle', 'P', 6, 7),
      (alone, 'all at one classifier', 'x', 4.5, 7)):
    if marks:
      series.append((marks, dict(
          label=label, marker=marker, markersize=size, color='k',
          markerfacecolor='w', linestyle='', zorder=zorder)))
  figure, [[axes]] = _figure(
      [2.5], 1, num_text_rows=math.ceil(len(series) / _LEGEND_COLUMNS))
  for marks, style in series:
    costs, accuracies = np.array(marks).T
    axes.plot(costs, 100 * accuracies, **style)
  # A classifier alone may be far from what the methods achieve with all.
  costs, accuracies = np.concatenate([marks for marks, _ in series[:-1]]).T
  axes.set_xlim(limits(costs, margin=.06, least_span=.01 * costs.max()))
  axes.set_ylim(limits(100 * accuracies, margin=.12, least_span=1))
  axes.set_xlabel(axis.label)
  axes.set_ylabel(
      f'{METRIC_TITLES[metric].capitalize()} accuracy of the cascade (%)')
  for k, (exit_cost, accuracy) in zip(classifier_ids, alone):
    if _inches_from_corner(axes, exit_cost, accuracy)[1] > _NAME_HEIGHT:
      axes.annotate(classifier_name(k), (exit_cost, 100 * accuracy), (0, -5),
                    textcoords='offset points', ha='center', va='top',
                    size=_ANNOTATION_SIZE)
  _annotate_epsilons(axes, of_metric.points.get('cst', []), axis.field)
  figure.legend(loc='upper center', ncol=_LEGEND_COLUMNS)
  return figure


def reference_points(of_metric, cost, axis):
  """What the methods are compared with, on a `CostAxis`.

  Returns lists of (cost, accuracy): all images at one classifier, for each of
  them; the plain network, empty if it is not known; the oracle.
  """
  alone = list(zip(axis.exit_costs, of_metric.classifier_accuracies))
  plain = []
  # The last classifier is the plain network's, unless that one costs more.
  if cost.exit_macs[-1] >= cost.plain_macs:
    plain = [(axis.plain_cost, alone[-1][1])]
  return alone, plain, [(np.dot(of_metric.oracle.exit_shares, axis.exit_costs),
                         of_metric.oracle.accuracy)]


def limits(values, margin, least_span):
  """Limits of an axis with room for annotations and for the tick labels.

  `margin` is relative to the span of the values; a span below `least_span`
  would need longer tick labels.
  """
  low, high = values.min(), values.max()
  spare = max(margin * (high - low), (least_span - (high - low)) / 2)
  return low - spare, high + spare


def _inches_from_corner(axes, cost, accuracy):
  """A point's position from the lower left corner of `axes`; float64 [2]."""
  pixels = axes.transData.transform((cost, 100 * accuracy))
  return (pixels - axes.bbox.p0) / axes.figure.dpi


def _annotate_epsilons(axes, points, cost_field):
  """Writes epsilon beside points, round values first, none too close."""
  annotated = []
  for point in sorted(points, key=lambda point: (
      point.setting % 5 != 0, point.setting % 1 != 0, point.setting)):
    cost = getattr(point, cost_field)
    place = _inches_from_corner(axes, cost, point.test_accuracy)
    if place[0] < _EPSILON_WIDTH or any(
        np.hypot(*(place - other)) < _EPSILON_SPACING for other in annotated):
      continue
    annotated.append(place)
    axes.annotate(  # Up and to the left of the curve, which rises.
        f'ε = {point.setting:g} %',
        (cost, 100 * point.test_accuracy), (-7, 9),
        textcoords='offset points', ha='right', va='bottom',
        size=_ANNOTATION_SIZE, zorder=9,
        bbox=dict(facecolor='w', edgecolor='none', alpha=.8, pad=.4),
        arrowprops=dict(
            arrowstyle='-', linewidth=.5, shrinkA=0, shrinkB=0,
            relpos=(1, 0)))


@_style()
def confidence_clf(curves):
  """Softmax as a confidence measure: figure 5.d.

  A column of panels for each metric: alpha of all classifiers, and for each
  classifier the histogram of confidences.
  """
  classifier_ids = list(next(iter(curves.values())))
  edges = bin_edges()
  figure, panels = _figure(
      [1.5] + [.45] * len(classifier_ids), len(curves), num_text_rows=2,
      left_margin=.82)
  for column, (metric, of_metric) in zip(panels.T, curves.items()):
    column[0].set_title(METRIC_TITLES[metric].capitalize())
    column[0].set_xlim(0, 1)
    column[-1].set_xlabel(CONFIDENCE_LABELS[metric])
    for panel, (k, curve) in zip(column[1:], of_metric.items()):
      color = of_classifier(k, CLASSIFIER_COLORS)
      column[0].plot(edges[:-1], 100 * curve.alpha_smoothed, color=color,
                     linestyle=of_classifier(k, CLASSIFIER_LINES),
                     linewidth=1.4)
      # The outline of all bars: a patch for each would take a second.
      share = 100 * np.append(curve.share, curve.share[-1])
      panel.fill_between(edges, share, _LEAST_SHARE, color=color,
                         linewidth=0, step='post')
  for panel, k in zip(panels[1:, 0], classifier_ids):
    panel.set_ylabel(classifier_name(k))
    panel.set_yscale('log')
    panel.set_ylim(_LEAST_SHARE, 100)
    panel.set_yticks([.01, 1, 100])
    panel.set_yticklabels(['0.01', '1', '100'])
    panel.minorticks_off()
  lowest = min(np.fmin.reduce(curve.alpha_smoothed, initial=.9)
               for of_metric in curves.values()
               for curve in of_metric.values())
  panels[0, 0].set_ylim(10 * math.floor(10 * lowest), 101)
  panels[0, 0].set_ylabel('Accuracy at this\nconfidence or above, α (%)')
  middle = (panels[1, 0].get_position().y1 +
            panels[-1, 0].get_position().y0) / 2
  figure.text(.15 / _WIDTH, middle, 'Images per bin (%)', rotation=90,
              ha='center', va='center')
  figure.legend(panels[0, 0].lines,
                [classifier_name(k) for k in classifier_ids],
                loc='upper center', ncol=_LEGEND_COLUMNS)
  return figure


@_style()
def exit_shares(points, classifier_ids, cost):
  """Shares of the images that leave at each classifier, against the setting.

  Shows the main method.
  """
  figure, panels = _figure([1.5], len(points), num_text_rows=2)
  for panel, (metric, of_metric) in zip(panels[0], points.items()):
    method = main_method(of_metric)
    settings = [point.setting for point in of_metric[method]]
    shares = [point.exit_shares for point in of_metric[method]]
    if len(settings) == 1:  # A band: an area would have no width.
      panel.set_xticks(settings)
      settings = [settings[0] - .5, settings[0] + .5]
      shares = 2 * shares
    areas = panel.stackplot(
        settings, 100 * np.array(shares).T, edgecolor='w', linewidth=.6,
        colors=[of_classifier(k, CLASSIFIER_COLORS) for k in classifier_ids])
    panel.set_title(METRIC_TITLES[metric].capitalize())
    panel.set_xlabel(setting_label(method, bool(cost.time)))
    panel.set_xlim(settings[0], settings[-1])
  panels[0, 0].set_ylim(0, 100)
  panels[0, 0].set_ylabel('Images (%)')
  figure.legend(areas, ['leaving at ' + classifier_name(k)
                        for k in classifier_ids],
                loc='upper center', ncol=_LEGEND_COLUMNS)
  return figure


def _figure(panel_heights, num_columns, num_text_rows, left_margin=.62):
  """An empty figure and its `Axes` [rows, columns].

  Columns share the x-axis, rows the y-axis. `panel_heights` and `left_margin`
  are in inches; `num_text_rows` are those of legend and title above the panels.
  """
  from matplotlib.figure import Figure
  gap = .15
  panels_height = sum(panel_heights) + gap * (len(panel_heights) - 1)
  top_margin = .16 + _TEXT_ROW * num_text_rows
  height = _BOTTOM_MARGIN + panels_height + top_margin
  figure = Figure((_WIDTH, height))
  panels = figure.subplots(
      len(panel_heights), num_columns, sharex='col', sharey='row',
      squeeze=False, gridspec_kw=dict(
          left=left_margin / _WIDTH, right=1 - _RIGHT_MARGIN / _WIDTH,
          bottom=_BOTTOM_MARGIN / height, top=1 - top_margin / height,
          hspace=gap / np.mean(panel_heights), height_ratios=panel_heights))
  return figure, panels


def classifier_name(classifier_id):
  """The name that the paper's repository uses."""
  return f'clf{classifier_id}'


def of_classifier(classifier_id, styles):
  return styles[classifier_id % len(styles)]
