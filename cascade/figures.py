"""The paper's figures, and the shares of the exits, as PNG, PDF and SVG.

Functions that draw return a `matplotlib.figure.Figure`, `save` writes one,
`svg` makes it a part of a web page, and `write_figures` lists all. They need no
display. Nothing in matplotlib's state or in the user's matplotlibrc changes
what is drawn, and the same input gives the same bytes.

Whatever differs in colour also differs in line, marker or lightness, for print
in grey.

matplotlib is imported where it is used: importing it takes longer than all of
step 4, which draws nothing.
"""

import contextlib
import importlib.util
import io
import math
import os
import re
import typing

import numpy as np

from cascade.evaluation import bin_edges
from cascade.predictions import METRIC_TITLES
from cascade.thresholds import METHODS, main_method, setting_label
from cascade.shared import UserError

PNG_DPI = 300

# Inches. The width is that of the text on a one-column page. The legend lies
# above the panels, where it hides no point.
_WIDTH = 5.
_LEFT_MARGIN = .72
_RIGHT_MARGIN = .22
_BOTTOM_MARGIN = .42
_TEXT_ROW = .18
_LEGEND_COLUMNS = 3

# Sizes are in points. STIX, a Times, comes with matplotlib; type 42 embeds it
# as TrueType, which publishers accept.
_STYLE = {
    'font.family': 'STIXGeneral',
    'font.size': 9,
    'axes.titlesize': 'medium',
    'legend.fontsize': 8.5,
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
_MOST_MARKERS = 50  # Of a method.

# What differs in `svg`: a font as wide as those of browsers, larger for narrow
# screens, with margins for it, relative to the figure.
_WEB_FONT = 'DejaVu Sans'
_WEB_TEXT_SCALE = 1.2
_WEB_MARGINS = dict(left=.175, right=.95, bottom=.14, top=.93)

# Epsilons stand above points that are so far apart, in widths of the panel.
_EPSILONS_APART = .15

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
                 linestyle='', marker='v', markersize=3.2, zorder=5),
}

# What they are compared with.
_MARK = dict(color='k', markerfacecolor='w', linestyle='', zorder=7)
_MARKS = {
    'oracle': dict(marker='P', markersize=6),
    'plain network': dict(marker='*', markersize=10),
    'Bolukbasi et al. 2017': dict(marker='D', markersize=4),
    'all at one classifier': dict(marker='x', markersize=4.5),
}

# A classifier has the same colour and line in all figures, by its number; from
# the fourth on they repeat.
_CLASSIFIER_LINES = (dict(color='#f0a848', linestyle=':'),
                     dict(color='#c1503f', linestyle='--'),
                     dict(color='#2b2f63', linestyle='-'))

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


def check_matplotlib():
  """Raises a `UserError` if matplotlib is not installed."""
  if importlib.util.find_spec('matplotlib') is None:
    raise UserError('-output_dir: the figures need matplotlib, and this '
                    'Python does not have it; install it, or use the '
                    'environment that ./setup_env.sh analysis makes')


def write_figures(folder, results, curves, classifier_ids, cost):
  """Draws and writes all figures.

  `accuracy_vs_macs_<metric>` are figures 4.d and 4.e of the paper, with -cost
  `accuracy_vs_ms_<metric>` beside them, and `confidence_clf` is 5.d. For
  arguments see `report.write_results`, whose `curves` are [metric][classifier].
  """
  for stem, axis in cost_axes(cost).items():
    for metric, result in results.items():
      save(folder, f'{stem}_{metric}', accuracy_vs_cost(
          metric, result, classifier_ids, cost, axis))
  save(folder, 'confidence_clf', confidence_clf(curves))
  save(folder, 'exit_shares', exit_shares(results, classifier_ids, cost))


@contextlib.contextmanager
def _style():
  """Draws in this file's style, whatever the user's is, and restores that."""
  from matplotlib import style
  with style.context(['default', _STYLE]):
    yield


@_style()
def save(folder, stem, figure):
  """Writes a figure as PNG and as PDF."""
  path = os.path.join(folder, stem)
  # Level 3 takes two thirds of the time and a fifth more space.
  figure.savefig(path + '.png', dpi=PNG_DPI, pil_kwargs={'compress_level': 3})
  # With a date, each run's file would differ.
  figure.savefig(path + '.pdf', metadata={'CreationDate': None})


@_style()
def svg(figure, title):
  """A figure as an SVG element for a web page; `title` is its description.

  Text is text, and the legend is left to the page. The line of a method has the
  class line-METHOD. The area within the axes has the class `panel`, and
  `data-limits` says what is at its left, right, lower and upper side.
  """
  import matplotlib
  from matplotlib.text import Text
  for legend in list(figure.legends):
    legend.remove()
  for text in figure.findobj(Text):
    text.set_fontfamily(_WEB_FONT)
    text.set_fontsize(_WEB_TEXT_SCALE * text.get_fontsize())
  figure.subplots_adjust(**_WEB_MARGINS)
  panel = figure.axes[0]
  panel.patch.set_gid('panel')
  stream = io.StringIO()
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': title}):
    figure.savefig(stream, format='svg')
  box, content = re.search('<svg[^>]*(viewBox="[^"]*")[^>]*>(.*)</svg>',
                           stream.getvalue(), re.DOTALL).groups()
  for pattern, replacement in (
      ('<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->', ''),
      (r' id="[A-Za-z][\w.]*_\d{1,4}"', ''),  # Nothing refers to groups.
      (r' id="(line-\w+|panel)"', r' class="\1"'),
      (': ?(#[0-9a-f]{6})', lambda match: ':' + css_color(match.group(1))),
      (r'(\.\d\d)\d+', r'\1'),
      (r'\s+', ' ')):
    content = re.sub(pattern, replacement, content, flags=re.DOTALL)
  limits_text = ' '.join(
      f'{limit:.9g}' for limit in panel.get_xlim() + panel.get_ylim())
  return (f'<svg {box} role="img" aria-label="{title}" '
          f'data-limits="{limits_text}">{content}</svg>')


def css_color(color):
  """'#0b2d5c' as CSS that a page may replace, by setting --0b2d5c."""
  return f'var(--{color[1:]},{color})'


class CostAxis(typing.NamedTuple):
  """What accuracy is drawn against, in the unit of the axis."""
  unit: str
  field: str           # Of `evaluation.Point`.
  exit_costs: list     # Of leaving at each classifier.
  plain_cost: float
  is_comparable: bool  # With Bolukbasi et al. 2017.


def cost_axes(cost):
  """A dict from the begin of a figure's name to its `CostAxis`."""
  axes = {'accuracy_vs_macs': CostAxis(
      'GMACs', 'gmacs_per_image',
      [macs / 1e9 for macs in cost.exit_macs], cost.plain_macs / 1e9,
      cost.is_paper_network)}
  if cost.time:
    axes['accuracy_vs_ms'] = CostAxis(
        'ms', 'ms_per_image',
        [nanoseconds / 1e6 for nanoseconds in cost.time.exit_nanoseconds],
        cost.time.plain_nanoseconds / 1e6, False)
  return axes


@_style()
def accuracy_vs_cost(metric, result, classifier_ids, cost, axis):
  """Accuracy of the cascade against its cost: figures 4.d and 4.e.

  A line connects the points of a method in their order.
  """
  plain_accuracy = result.classifier_accuracies[-1]
  def place(point):  # Other images may judge `risk`: it is drawn by its drop.
    return getattr(point, axis.field), plain_accuracy - point.accuracy_drop

  series = [
      (list(map(place, result.points[method])),
       dict(METHOD_LINES[method], gid=f'line-{method}', markevery=math.ceil(
           len(result.points[method]) / _MOST_MARKERS)))
      for method in METHODS if method in result.points]
  alone = list(zip(axis.exit_costs, result.classifier_accuracies))
  marks = {'oracle': [(np.dot(result.oracle.exit_shares, axis.exit_costs),
                       result.oracle.accuracy)]}
  # The last classifier is the plain network's, unless that one costs more.
  has_plain = cost.exit_macs[-1] >= cost.plain_macs
  if has_plain:
    marks['plain network'] = [(axis.plain_cost, plain_accuracy)]
  if metric == 'top5' and axis.is_comparable:
    marks['Bolukbasi et al. 2017'] = [
        (axis.plain_cost / speedup, accuracy) for speedup, accuracy
        in zip(BOLUKBASI_SPEEDUP, BOLUKBASI_TOP5_ACCURACY)]
  marks['all at one classifier'] = alone[:-1] if has_plain else alone
  series += [(points, dict(_MARK, label=label, **_MARKS[label]))
             for label, points in marks.items()]
  figure, [[axes]] = _figure(
      [2.5], 1, math.ceil(len(series) / _LEGEND_COLUMNS))
  for points, style in series:
    axes.plot(*np.array(points).T * [[1], [100]], **style)
  # A classifier alone may be far from what the methods achieve with all.
  costs, accuracies = np.concatenate([points for points, _ in series[:-1]]).T
  axes.set_xlim(_limits(costs, .06, .01 * costs.max()))
  axes.set_ylim(_limits(100 * accuracies, .12, 1))
  axes.set_xlabel(f'Cost ({axis.unit} per image)')
  axes.set_ylabel(f'{METRIC_TITLES[metric].capitalize()} accuracy (%)')
  for k, point in zip(classifier_ids, alone):
    is_low = 100 * point[1] < np.mean(axes.get_ylim())
    _write_beside(axes, point, classifier_name(k), (0, 9 if is_low else -9))
  taken, distance = [], _EPSILONS_APART * np.ptp(axes.get_xlim())
  for point in sorted(result.points.get('cst', []), key=lambda point: (
      point.setting % 5 != 0, point.setting % 1 != 0, point.setting)):
    x, _ = place(point)
    if all(abs(x - other) > distance for other in taken):
      taken.append(x)
      _write_beside(
          axes, place(point), f'ε = {point.setting:g} %', (0, 20),
          arrowprops=dict(arrowstyle='-', linewidth=.5, shrinkA=0, shrinkB=0))
  figure.legend(loc='upper center', ncol=_LEGEND_COLUMNS)
  return figure


def _limits(values, margin, least_span):
  """Limits of an axis; a span below `least_span` has too long tick labels."""
  low, high = values.min(), values.max()
  spare = max(margin * (high - low), (least_span - (high - low)) / 2)
  return low - spare, high + spare


def _write_beside(axes, point, text, place, **options):
  """Writes a text whose middle is at `place`, in points from a point."""
  axes.annotate(
      text, np.array(point) * [1, 100], place, textcoords='offset points',
      ha='center', va='center', size=_ANNOTATION_SIZE, zorder=9,
      bbox=dict(facecolor='w', alpha=.7, linewidth=0, pad=.5), **options)


@_style()
def confidence_clf(curves):
  """Softmax as a confidence measure: figure 5.d, a column for each metric."""
  classifier_ids = list(next(iter(curves.values())))
  edges = bin_edges()
  figure, panels = _figure(
      [1.5] + [.45] * len(classifier_ids), len(curves),
      1 + math.ceil(len(classifier_ids) / _LEGEND_COLUMNS))
  for column, (metric, by_classifier) in zip(panels.T, curves.items()):
    column[0].set_title(METRIC_TITLES[metric].capitalize())
    column[0].set_xlim(0, 1)
    column[-1].set_xlabel(CONFIDENCE_LABELS[metric])
    for panel, (k, curve) in zip(column[1:], by_classifier.items()):
      column[0].plot(edges[:-1], 100 * curve.alpha_smoothed, linewidth=1.4,
                     **_CLASSIFIER_LINES[k % len(_CLASSIFIER_LINES)])
      # The outline of all bars: a patch for each would take a second.
      share = 100 * np.append(curve.share, curve.share[-1])
      panel.fill_between(edges, share, _LEAST_SHARE, linewidth=0, step='post',
                         color=classifier_color(k))
  for (panel, *_, last), k in zip(panels[1:, [0, -1]], classifier_ids):
    last.text(1.02, .5, classifier_name(k), transform=last.transAxes,
              rotation=-90, va='center')
    panel.set_yscale('log')
    panel.set_ylim(_LEAST_SHARE, 100)
    panel.set_yticks([.01, 1, 100])
    panel.set_yticklabels(['0.01', '1', '100'])
    panel.minorticks_off()
  lowest = min(np.fmin.reduce(curve.alpha_smoothed, initial=.9)
               for by_classifier in curves.values()
               for curve in by_classifier.values())
  panels[0, 0].set_ylim(10 * math.floor(10 * lowest), 101)
  panels[0, 0].set_ylabel('Accuracy α (%) at this\nconfidence or above')
  panels[1 + len(classifier_ids) // 2, 0].set_ylabel('Images (%)')
  figure.legend(panels[0, 0].lines, map(classifier_name, classifier_ids),
                loc='upper center', ncol=_LEGEND_COLUMNS)
  return figure


@_style()
def exit_shares(results, classifier_ids, cost):
  """Where images leave, against the setting of the main method."""
  figure, panels = _figure(
      [1.5], len(results), 1 + math.ceil(len(classifier_ids) / _LEGEND_COLUMNS))
  for panel, (metric, result) in zip(panels[0], results.items()):
    method = main_method(result.points)
    settings = [point.setting for point in result.points[method]]
    shares = [point.exit_shares for point in result.points[method]]
    if len(settings) == 1:  # A band: an area would have no width.
      panel.set_xticks(settings)
      settings = [settings[0] - .5, settings[0] + .5]
      shares = 2 * shares
    areas = panel.stackplot(
        settings, 100 * np.array(shares).T, edgecolor='w', linewidth=.6,
        colors=list(map(classifier_color, classifier_ids)))
    panel.set_title(METRIC_TITLES[metric].capitalize())
    panel.set_xlabel(setting_label(method, bool(cost.time)))
    panel.set_xlim(settings[0], settings[-1])
  panels[0, 0].set_ylim(0, 100)
  panels[0, 0].set_ylabel('Images (%)')
  figure.legend(
      areas, [f'leaving at {classifier_name(k)}' for k in classifier_ids],
      loc='upper center', ncol=_LEGEND_COLUMNS)
  return figure


def _figure(panel_heights, num_columns, num_text_rows):
  """An empty figure and its `Axes` [rows, columns].

  Columns share the x-axis, rows the y-axis. `panel_heights` are in inches;
  `num_text_rows` are those of legend and title above the panels.
  """
  from matplotlib.figure import Figure
  gap = .15
  panels_height = sum(panel_heights) + gap * (len(panel_heights) - 1)
  top_margin = .16 + _TEXT_ROW * num_text_rows
  height = _BOTTOM_MARGIN + panels_height + top_margin
  figure = Figure((_WIDTH, height))
  figure.subplots_adjust(
      left=_LEFT_MARGIN / _WIDTH, right=1 - _RIGHT_MARGIN / _WIDTH,
      bottom=_BOTTOM_MARGIN / height, top=1 - top_margin / height,
      hspace=gap / np.mean(panel_heights))
  panels = figure.subplots(
      len(panel_heights), num_columns, sharex='col', sharey='row',
      squeeze=False, gridspec_kw=dict(height_ratios=panel_heights))
  return figure, panels


def classifier_name(classifier_id):
  return f'clf{classifier_id}'


def classifier_color(classifier_id):
  return _CLASSIFIER_LINES[classifier_id % len(_CLASSIFIER_LINES)]['color']
