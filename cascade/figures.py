"""The paper's figures, and the shares of the exits, as PNG and PDF.

Functions that draw return a `matplotlib.figure.Figure`, `save` writes one, and
`write_figures` does all. They need no display. Nothing in matplotlib's state
or in the user's matplotlibrc changes what is drawn, and the same input gives
the same bytes.

What colour tells apart, so do lines, markers and lightness, for grey print.

matplotlib is imported where it is used: that takes longer than all of step 4,
which draws nothing.
"""

import collections
import contextlib
import importlib.util
import math
import os
import threading

import numpy as np

from cascade.analysis import EPSILON_METHODS, METHODS
from cascade.answers import METRIC_TITLES
from cascade.confidence import bin_edges
from user_error import UserError

PNG_DPI = 300

# Inches. The width is that of the text of a one-column page. The legend lies
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

# Inches, of what is written beside points with its distance from them: the
# height of a classifier's name, the width of an epsilon, and how far points
# with an epsilon are apart.
_NAME_HEIGHT = .2
_EPSILON_WIDTH = .6
_EPSILON_SPACING = .45

# How the points of each method are drawn; the paper's are the most prominent.
# A method of about 1000 points is a line without markers.
_METHOD_LINES = {
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
}

# A classifier has the same colour and line in all figures, by its number.
_CLASSIFIER_COLORS = ('#f0a848', '#c1503f', '#2b2f63')
_CLASSIFIER_LINES = (':', '--', '-')

# Top-5 accuracy and speedup of ResNet-50 with adaptive early exits, which the
# paper compares with: Bolukbasi, Wang, Dekel & Saligrama, "Adaptive Neural
# Networks for Efficient Inference", ICML 2017.
BOLUKBASI_TOP5_ACCURACY = (.9321, .9221, .9121, .8821)
BOLUKBASI_SPEEDUP = (1., 1.08, 1.18, 1.22)

# The lowest share of images that figure 5.d shows, in percent.
_LEAST_SHARE = .001

_CONFIDENCE_LABELS = {
    'top1': 'Confidence (largest softmax)',
    'top5': 'Confidence (sum of top-5 softmaxes)'}
_EPSILON_LABEL = 'Accuracy given up, ε (%)'
_SETTING_LABELS = {
    'cst': _EPSILON_LABEL,
    'ccst': _EPSILON_LABEL,
    'global': 'Threshold of all classifiers',
    'budgeted': 'Ratio of exit shares, q',
    'pareto': 'Cost where fitted (GMACs per image)',
}


def matplotlib_version():
  """The version that draws, a str."""
  import matplotlib
  return matplotlib.__version__


def check_is_there():
  """Raises `UserError` if matplotlib is not installed."""
  if importlib.util.find_spec('matplotlib') is None:
    raise UserError('-output_dir: the figures need matplotlib, which this '
                    'Python has not; install it, or use the environment that '
                    './setup_env.sh analysis makes')


def load_in_background():
  """Begins to import matplotlib, half a second that may pass while one reads.

  Whoever needs it sooner waits for it.
  """
  def load():
    try:
      import matplotlib.backends.backend_agg
      import matplotlib.backends.backend_pdf
      import matplotlib.figure
    except ImportError:  # Said by `check_is_there`.
      pass

  threading.Thread(target=load).start()


def write_figures(folder, results, curves, classifier_ids, cost):
  """Draws and writes all figures.

  `accuracy_vs_macs_<metric>` are figures 4.d and 4.e of the paper,
  `confidence_clf` is 5.d, and `exit_shares` shows where images leave.

  Args:
    folder: an existing folder.
    results: a dict from metric to `analysis.MetricResults`.
    curves: a dict from metric to a dict from classifier to
      `confidence.ConfidenceCurve`.
    classifier_ids: ints, ascending.
    cost: `macs.NetworkCost`.

  Returns:
    The names of the files, a list of str.
  """
  exit_gmacs = [macs / 1e9 for macs in cost.exit_macs]
  plain_gmacs = cost.plain_macs / 1e9
  names = []
  for metric, of_metric in results.items():
    accuracies = of_metric.classifier_accuracies
    # The last classifier is the plain network's, unless that takes more.
    plain = None
    if exit_gmacs[-1] >= plain_gmacs:
      plain = plain_gmacs, accuracies[-1]
    comparison = []
    if metric == 'top5' and cost.is_paper_network:
      comparison = [(plain_gmacs / speedup, accuracy) for speedup, accuracy
                    in zip(BOLUKBASI_SPEEDUP, BOLUKBASI_TOP5_ACCURACY)]
    classifiers = collections.OrderedDict(
        zip(classifier_ids, zip(exit_gmacs, accuracies)))
    names += save(folder, 'accuracy_vs_macs_' + metric, accuracy_vs_macs(
        metric, of_metric.points, classifiers, plain, comparison))
  names += save(folder, 'confidence_clf', confidence_clf(curves))
  names += save(folder, 'exit_shares', exit_shares(
      {metric: of_metric.points for metric, of_metric in results.items()},
      classifier_ids))
  return names


@contextlib.contextmanager
def _style():
  """Draws in this file's style, whatever the user's is, and restores that."""
  from matplotlib import style
  with style.context(['default', _STYLE]):
    yield


@_style()
def save(folder, stem, figure):
  """Writes a figure as PNG and as PDF.

  Args:
    folder: an existing folder.
    stem: of the file names.
    figure: `matplotlib.figure.Figure`.

  Returns:
    Both file names.
  """
  names = [stem + '.png', stem + '.pdf']
  # Saves a third of the time and costs a fifth of space.
  figure.savefig(os.path.join(folder, names[0]), dpi=PNG_DPI,
                 pil_kwargs={'compress_level': 3})
  # A date would make each run's file another.
  figure.savefig(os.path.join(folder, names[1]),
                 metadata={'CreationDate': None})
  return names


@_style()
def accuracy_vs_macs(metric, points, classifiers, plain, comparison):
  """Accuracy of the cascade against its cost: figures 4.d and 4.e.

  Args:
    metric: 'top1' or 'top5'.
    points: a dict from method to its list of `evaluation.Point`, in the order
      in which a line connects them.
    classifiers: a dict from classifier to (GMACs per image, accuracy) where
      all images leave there.
    plain: (GMACs per image, accuracy) of the plain network, or None.
    comparison: (GMACs per image, accuracy) of Bolukbasi et al.; may be empty.

  Returns:
    A `matplotlib.figure.Figure`.
  """
  series = [
      ([(point.gmacs_per_image, point.test_accuracy)
        for point in points[method]], _METHOD_LINES[method])
      for method in METHODS if method in points]
  for marks, label, marker, size, zorder in (
      (comparison, 'Bolukbasi et al. 2017', 'D', 4, 7),
      ([plain] if plain else [], 'plain network', '*', 10, 8),
      (list(classifiers.values()), 'all at one classifier', 'x', 4.5, 7)):
    if marks:
      series.append((marks, dict(
          label=label, marker=marker, markersize=size, color='k',
          markerfacecolor='w', linestyle='', zorder=zorder)))
  figure, [[axes]] = _figure(
      [2.5], 1, num_text_rows=math.ceil(len(series) / _LEGEND_COLUMNS))
  for marks, style in series:
    gmacs, accuracies = np.array(marks).T
    axes.plot(gmacs, 100 * accuracies, **style)
  # One classifier alone may be far from what the methods make of all.
  gmacs, accuracies = np.concatenate([marks for marks, _ in series[:-1]]).T
  axes.set_xlim(_limits(gmacs, margin=.06, least_span=.01 * gmacs.max()))
  axes.set_ylim(_limits(100 * accuracies, margin=.12, least_span=1))
  axes.set_xlabel('Cost (GMACs per image)')
  axes.set_ylabel('{} accuracy of the cascade (%)'.format(
      METRIC_TITLES[metric].capitalize()))
  for k, (gmacs, accuracy) in classifiers.items():
    if _inches_from_corner(axes, gmacs, accuracy)[1] > _NAME_HEIGHT:
      axes.annotate(_classifier_name(k), (gmacs, 100 * accuracy), (0, -5),
                    textcoords='offset points', ha='center', va='top',
                    size=_ANNOTATION_SIZE)
  _annotate_epsilons(axes, points.get('cst', []))
  figure.legend(loc='upper center', ncol=_LEGEND_COLUMNS)
  return figure


def _limits(values, margin, least_span):
  """Limits of an axis with room for annotations and for the tick labels.

  Args:
    values: float [values], what is to be seen.
    margin: on both sides, relative to the span of `values`.
    least_span: of the limits; a smaller range takes longer tick labels.
  """
  low, high = values.min(), values.max()
  spare = max(margin * (high - low), (least_span - (high - low)) / 2)
  return low - spare, high + spare


def _inches_from_corner(axes, gmacs, accuracy):
  """Where a point is, from the lower left corner of `axes`; float64 [2]."""
  pixels = axes.transData.transform((gmacs, 100 * accuracy))
  return (pixels - axes.bbox.p0) / axes.figure.dpi


def _annotate_epsilons(axes, points):
  """Writes epsilon beside points: round ones first, none too close."""
  annotated = []
  for point in sorted(points, key=lambda point: (
      point.setting % 5 != 0, point.setting % 1 != 0, point.setting)):
    place = _inches_from_corner(
        axes, point.gmacs_per_image, point.test_accuracy)
    if place[0] < _EPSILON_WIDTH or any(
        np.hypot(*(place - other)) < _EPSILON_SPACING for other in annotated):
      continue
    annotated.append(place)
    axes.annotate(  # Up and to the left of the curve, which rises.
        'ε = {:g} %'.format(point.setting),
        (point.gmacs_per_image, 100 * point.test_accuracy), (-7, 9),
        textcoords='offset points', ha='right', va='bottom',
        size=_ANNOTATION_SIZE, zorder=9,
        bbox=dict(facecolor='w', edgecolor='none', alpha=.8, pad=.4),
        arrowprops=dict(
            arrowstyle='-', linewidth=.5, shrinkA=0, shrinkB=0,
            relpos=(1, 0)))


@_style()
def confidence_clf(curves):
  """Softmax as a confidence measure: figure 5.d.

  Args:
    curves: a dict from metric to a dict from classifier to
      `confidence.ConfidenceCurve`.

  Returns:
    A `matplotlib.figure.Figure` with a column of panels for each metric: alpha
    of all classifiers, and how many images of each have which confidence.
  """
  classifier_ids = list(next(iter(curves.values())))
  edges = bin_edges()
  figure, panels = _figure(
      [1.5] + [.45] * len(classifier_ids), len(curves), num_text_rows=2,
      left_margin=.82)
  for column, (metric, of_metric) in zip(panels.T, curves.items()):
    column[0].set_title(METRIC_TITLES[metric].capitalize())
    column[0].set_xlim(0, 1)
    column[-1].set_xlabel(_CONFIDENCE_LABELS[metric])
    for panel, (k, curve) in zip(column[1:], of_metric.items()):
      color = _CLASSIFIER_COLORS[k]
      column[0].plot(edges[:-1], 100 * curve.alpha_smoothed, color=color,
                     linestyle=_CLASSIFIER_LINES[k], linewidth=1.4)
      # The outline of all bars: as many patches would take a second.
      share = 100 * np.append(curve.share, curve.share[-1])
      panel.fill_between(edges, share, _LEAST_SHARE, color=color,
                         linewidth=0, step='post')
  for panel, k in zip(panels[1:, 0], classifier_ids):
    panel.set_ylabel(_classifier_name(k))
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
                [_classifier_name(k) for k in classifier_ids],
                loc='upper center', ncol=_LEGEND_COLUMNS)
  return figure


@_style()
def exit_shares(points, classifier_ids):
  """Shares of the images that leave at each classifier, against the setting.

  Drawn is the paper's method, or else another with epsilon, or else any.

  Args:
    points: a dict from metric to a dict from method to its `evaluation.Point`s.
    classifier_ids: ints, ascending.

  Returns:
    A `matplotlib.figure.Figure`, a panel for each metric.
  """
  figure, panels = _figure([1.5], len(points), num_text_rows=2)
  for panel, (metric, of_metric) in zip(panels[0], points.items()):
    method = next(method for method in EPSILON_METHODS + METHODS
                  if method in of_metric)
    settings = [point.setting for point in of_metric[method]]
    shares = [point.exit_shares for point in of_metric[method]]
    if len(settings) == 1:  # A band, where an area would have no width.
      panel.set_xticks(settings)
      settings = [settings[0] - .5, settings[0] + .5]
      shares = 2 * shares
    areas = panel.stackplot(
        settings, 100 * np.array(shares).T, edgecolor='w', linewidth=.6,
        colors=[_CLASSIFIER_COLORS[k] for k in classifier_ids])
    panel.set_title(METRIC_TITLES[metric].capitalize())
    panel.set_xlabel(_SETTING_LABELS[method])
    panel.set_xlim(settings[0], settings[-1])
  panels[0, 0].set_ylim(0, 100)
  panels[0, 0].set_ylabel('Images (%)')
  figure.legend(areas, ['leaving at ' + _classifier_name(k)
                        for k in classifier_ids],
                loc='upper center', ncol=_LEGEND_COLUMNS)
  return figure


def _figure(panel_heights, num_columns, num_text_rows, left_margin=.62):
  """An empty figure.

  Args:
    panel_heights: of each row of panels, in inches.
    num_columns: of panels.
    num_text_rows: rows of the legend and the title above the panels.
    left_margin: in inches.

  Returns:
    `(figure, panels)`: a `Figure` and its `Axes` [rows, columns]; those of a
    column have the x-axis in common, those of a row the y-axis.
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


def _classifier_name(classifier_id):
  """The name that the paper's repository uses."""
  return 'clf{}'.format(classifier_id)
