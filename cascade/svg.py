"""Figures 4.d, 4.e and 5.d as SVG, for `report.html`.

A method's line has the class `line-<method>`, so that the page can hide it, and
a figure has the limits of its axes in `data-` attributes, so that the page's
script can place a point.
"""

import math

import numpy as np

from cascade.evaluation import bin_edges
from cascade.figures import (
    CLASSIFIER_COLORS, CLASSIFIER_LINES, CONFIDENCE_LABELS, METHOD_LINES,
    classifier_name, cost_axes, limits, of_classifier, reference_points)
from cascade.predictions import METRIC_TITLES

# The size of a figure and where its panel lies, in the units of the SVG.
_WIDTH, _HEIGHT = 480, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 468, 12, 282

# Points of a line nearer than this to the last one drawn are left out.
_LEAST_STEP = .4

# Of lines.
_LEAST_WIDTH = 1.3
_DASHES = {'-': '', '--': '6 3', ':': '2 2', '-.': '7 2 2 2'}


class _Figure:
  """One panel of accuracies, fractions, over something. The y-axis is in %."""

  def __init__(self, x_label, y_label, x_limits, y_limits):
    from matplotlib.ticker import MaxNLocator
    self._labels = (x_label, y_label)
    self._x_limits, self._y_limits = x_limits, y_limits
    self.parts = []
    for axis, (low, high) in enumerate((x_limits, y_limits)):
      ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
      for tick in ticks[(ticks >= low) & (ticks <= high)]:
        self._add_tick(axis, tick)

  def _add_tick(self, axis, tick):
    x, y = self._place(tick, tick)
    if axis == 0:
      line = f'x1="{x}" x2="{x}" y1="{_TOP}" y2="{_BOTTOM}"'
      self.text(f'{tick:g}', x, _BOTTOM + 17, 'middle')
    else:
      line = f'x1="{_LEFT}" x2="{_RIGHT}" y1="{y}" y2="{y}"'
      self.text(f'{tick:g}', _LEFT - 6, y + 4, 'end')
    self.parts.append(f'<line class="grid" {line}/>')

  def _place(self, x, percent):
    """In the units of the SVG, to a tenth."""
    (x_low, x_high), (y_low, y_high) = self._x_limits, self._y_limits
    return (round(_LEFT + (x - x_low) / (x_high - x_low) * (_RIGHT - _LEFT), 1),
            round(_BOTTOM - (percent - y_low) / (y_high - y_low) *
                  (_BOTTOM - _TOP), 1))

  def text(self, text, x, y, anchor):
    """Text at a place in the units of the SVG."""
    self.parts.append(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>')

  def line(self, points, color, dashes, width, css_class='line'):
    """A line through points (x, accuracy); a single one is a dot."""
    places = []
    for x, accuracy in points:
      place = self._place(x, 100 * accuracy)
      if not places or math.hypot(
          place[0] - places[-1][0], place[1] - places[-1][1]) >= _LEAST_STEP:
        places.append(place)
    d = 'L'.join(f'{x:g} {y:g}' for x, y in places)
    self.parts.append(
        f'<path class="{css_class}" d="M{d}h0" stroke="{color}" '
        f'stroke-width="{width}" stroke-dasharray="{dashes}"/>')

  def mark(self, x, accuracy, shape, name=''):
    """A sign at a point: a path around (0, 0), with a name below it."""
    x, y = self._place(x, 100 * accuracy)
    self.parts.append(f'<path class="mark" d="{shape}" '
                       f'transform="translate({x} {y})"/>')
    if name:
      self.text(name, x, y + 18, 'middle')

  def svg(self, title):
    """The whole element; `title` is for those who do not see it."""
    middle = (_TOP + _BOTTOM) / 2
    x_label, y_label = self._labels
    axes = ' '.join(
        f'data-{name}="{value:.9g}"' for name, value in zip(
            ('left', 'right', 'bottom', 'top', 'x-low', 'x-high', 'y-low',
             'y-high'),
            (_LEFT, _RIGHT, _BOTTOM, _TOP) + self._x_limits + self._y_limits))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}"'
        f' {axes}>' + ''.join(self.parts) +
        f'<path class="axes" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>'
        f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 10}" '
        f'text-anchor="middle">{x_label}</text>'
        f'<text transform="translate(15 {middle}) rotate(-90)" '
        f'text-anchor="middle">{y_label}</text></svg>')


def accuracy_vs_macs(metric, of_metric, classifier_ids, cost):
  """Accuracy of the cascade against its cost: figures 4.d and 4.e.

  Args:
    metric: 'top1' or 'top5'.
    of_metric: `analysis.MetricResults`.
    classifier_ids: ints, ascending.
    cost: `macs.NetworkCost`.
  """
  axis = cost_axes(cost)['accuracy_vs_macs']
  lines = {method: [(getattr(point, axis.field), point.test_accuracy)
                    for point in points]
           for method, points in of_metric.points.items()}
  alone, plain, bound = reference_points(of_metric, cost, axis)
  costs, accuracies = np.concatenate(
      list(lines.values()) + [alone, plain + bound]).T
  title = METRIC_TITLES[metric].capitalize()
  figure = _Figure(axis.label, f'{title} accuracy (%)',
                   limits(costs, .08, .01 * costs.max()),
                   limits(100 * accuracies, .08, 1))
  for method, points in sorted(
      lines.items(), key=lambda line: METHOD_LINES[line[0]]['zorder']):
    style = METHOD_LINES[method]
    figure.line(points, style['color'],
                _DASHES[style.get('linestyle', '-')],
                max(style['linewidth'], _LEAST_WIDTH),
                f'line line-{method}')
  for k, point in zip(classifier_ids, alone):
    figure.mark(*point, 'M-4-4L4 4M-4 4L4-4', classifier_name(k))
  for point in plain:
    figure.mark(*point, 'M0-5L5 0L0 5L-5 0Z')
  for point in bound:
    figure.mark(*point, 'M-6 0H6M0-6V6')
  # The script moves it to the point chosen: its accuracy's interval, and it.
  figure.parts.append(
      '<g class="chosen" visibility="hidden"><path/><circle r="5"/></g>')
  return figure.svg(f'{title} accuracy of the cascade against its cost')


def alpha(metric, curves):
  """Accuracy of the images of at least a confidence: figure 5.d.

  Args:
    metric: 'top1' or 'top5'.
    curves: a dict from classifier to `evaluation.ConfidenceCurve`.
  """
  lines = {}
  for k, curve in curves.items():
    filled = ~np.isnan(curve.alpha_smoothed)
    if filled.any():
      lines[k] = np.stack(
          [bin_edges()[:-1], curve.alpha_smoothed], axis=1)[filled]
  lowest = min([.9] + [points[:, 1].min() for points in lines.values()])
  figure = _Figure(
      CONFIDENCE_LABELS[metric], 'Accuracy at this confidence or above, α (%)',
      (0., 1.), (10. * (10 * lowest // 1), 101.))
  for k, points in lines.items():
    figure.line(points, of_classifier(k, CLASSIFIER_COLORS),
                _DASHES[of_classifier(k, CLASSIFIER_LINES)], 2)
  return figure.svg(f'{METRIC_TITLES[metric].capitalize()} accuracy of the '
                    'images of at least a confidence')
