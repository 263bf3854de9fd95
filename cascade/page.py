"""Writes `report.html`: the results on one page, with a slider.

What it shows without script is made here, figures included; the script in
`report_template.html` moves a point in them and shows the numbers of one row of
`cascade.csv`. The page loads nothing from anywhere.
"""

import html
import json
import math
import os
import re
import shlex

import numpy as np

from cascade import svg
from cascade.figures import (
    CLASSIFIER_COLORS, METHOD_LINES, classifier_name, of_classifier)
from cascade.predictions import METRIC_TITLES
from cascade.thresholds import main_method, setting_label
from cascade_results import EXIT_SHARE_COLUMN, THRESHOLD_COLUMN, TIME_COLUMNS
from dump_record import CHECKPOINT_FIELDS, SHARED_FIELDS, WEIGHT_FIELDS

_TEMPLATE = os.path.join(os.path.dirname(__file__), 'report_template.html')

# Fractions in `cascade.csv`, percent on the page.
_PERCENT_COLUMNS = (
    'test_accuracy', 'test_accuracy_low', 'test_accuracy_high',
    'accuracy_drop', 'accuracy_drop_low', 'accuracy_drop_high')

# Decimal places. A setting of so many is found by --choose.
_SETTING_PLACES = 10
_THRESHOLD_PLACES = 10
_PERCENT_PLACES = 2
_SPEEDUP_PLACES = 3
# Of costs, whose size differs from network to network.
_COST_DIGITS = 5

# The tables stand in for the slider, on paper and without script.
_MOST_TABLE_ROWS = 25


def write(path, results_folder, summary, results, curves, qualities,
          classifier_ids, cost):
  """Writes the page.

  Args:
    path: of the file.
    results_folder: of `cascade.csv`, for the command that the page shows.
    summary: the content of `SUMMARY_JSON`.
    results: a dict from metric to `analysis.MetricResults`.
    curves, qualities: dicts from metric to a dict from classifier to
      `evaluation.ConfidenceCurve` and `quality.ExitQuality`.
    classifier_ids: ints, ascending.
    cost: `macs.NetworkCost`.
  """
  columns = _columns(classifier_ids, cost)
  methods = list(next(iter(results.values())).points)
  rows = {}
  for metric, of_metric in results.items():
    rows[metric] = {method: _encoded(columns, points)
                    for method, points in of_metric.points.items()}
    if 'ccst' in methods:
      rows[metric]['ccst'].update(
          _encoded_classes(of_metric.ccst_thresholds, classifier_ids))
  data = {
      'classifiers': [classifier_name(k) for k in classifier_ids],
      'settings': {method: setting_label(method, bool(cost.time))
                   for method in methods},
      'places': {column: places for column, places, _ in columns},
      'rows': rows,
      **_command(summary, classifier_ids, results_folder),
  }
  parts = {
      'title': html.escape(f'Cascaded inference: {summary["network"]}'),
      'lead': html.escape(_lead(summary)),
      'metrics': _inputs('radio', 'metric', METRIC_TITLES, results),
      'methods': ''.join(
          f'<option value={method}>{METHOD_LINES[method]["label"]}</option>'
          for method in methods),
      'shown': _inputs('checkbox', 'shown', {
          method: _swatch(METHOD_LINES[method]['color']) +
                  METHOD_LINES[method]['label']
          for method in methods}, methods),
      'figures': _by_metric(results, lambda metric, of_metric: (
          svg.accuracy_vs_macs(metric, of_metric, classifier_ids, cost))),
      'bar': ''.join(
          f'<span style="background:{of_classifier(k, CLASSIFIER_COLORS)}">'
          '</span>' for k in classifier_ids),
      'shares': ''.join(
          f'<li>{_swatch(of_classifier(k, CLASSIFIER_COLORS))}'
          f'{classifier_name(k)} <span></span></li>'
          for k in classifier_ids),
      'tables': _by_metric(results, lambda metric, of_metric: _points_table(
          metric, of_metric.points, classifier_ids, cost, columns)),
      'confidence': _by_metric(curves, svg.alpha),
      'classifiers': ''.join(
          f'<li>{_swatch(of_classifier(k, CLASSIFIER_COLORS))}'
          f'{classifier_name(k)}</li>' for k in classifier_ids),
      'quality': _quality_table(qualities),
      'origin': ''.join(
          f'<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>'
          for term, text in _origin(summary)),
      # Nothing within may end the script element.
      'data': json.dumps(data, separators=(',', ':'), allow_nan=False).replace(
          '<', '\\u003c'),
  }
  with open(_TEMPLATE, encoding='utf-8') as stream:
    template = stream.read()
  # Names of files may be no UTF-8.
  with open(path, 'w', encoding='utf-8', errors='surrogateescape') as stream:
    stream.write(re.sub(r'<!--(\w+)-->', lambda match: parts[match.group(1)],
                        template))


# ---- Data of the script -----------------------------------------------------


def _columns(classifier_ids, cost):
  """The columns shown: name, decimal places, and `Point` -> value."""
  def percent(fraction):
    # Rounded as a fraction: 0.78875 is 0.7887 in the terminal, so 78.87 here.
    return 100 * round(fraction, _PERCENT_PLACES + 2)

  def of_field(field, places):
    return field, places, lambda point: getattr(point, field)

  columns = [of_field('setting', _SETTING_PLACES)]
  columns += [
      (THRESHOLD_COLUMN.format(k), _THRESHOLD_PLACES,
       lambda point, m=m: point.thresholds[m])
      for m, k in enumerate(classifier_ids[:-1])]
  columns += [
      (field, _PERCENT_PLACES,
       lambda point, field=field: percent(getattr(point, field)))
      for field in _PERCENT_COLUMNS]
  columns += [
      (EXIT_SHARE_COLUMN.format(k), _PERCENT_PLACES,
       lambda point, m=m: percent(point.exit_shares[m]))
      for m, k in enumerate(classifier_ids)]
  columns += [
      of_field('gmacs_per_image', _cost_places(cost.exit_macs[-1] / 1e9)),
      of_field('speedup', _SPEEDUP_PLACES)]
  if cost.time:
    ms, speedup = TIME_COLUMNS
    columns += [
        of_field(ms, _cost_places(cost.time.exit_nanoseconds[-1] / 1e6)),
        of_field(speedup, _SPEEDUP_PLACES)]
  return columns


def _cost_places(largest):
  return max(0, _COST_DIGITS - math.ceil(math.log10(largest)))


def _encoded(columns, points):
  """The columns of one method, short enough for 1,000 settings.

  Of each column the first value and then the steps from one to the next, in
  units of the last decimal place: .9, .95 and .9 to two places are [90, 5, -5].
  An infinite value is None and no step. Thresholds per class are left out.
  """
  encoded = {}
  for column, places, value_of in columns:
    values = [value_of(point) for point in points]
    if not any(map(math.isnan, values)):
      encoded[column] = _steps(values, places)
  return encoded


def _encoded_classes(thresholds, classifier_ids):
  """What the page shows of thresholds [E, T, classes], as by `_encoded`.

  The least and the largest finite one, and how many classes never leave.
  """
  encoded = {}
  for m, k in enumerate(classifier_ids[:-1]):
    column, of_classes = THRESHOLD_COLUMN.format(k), thresholds[:, m]
    never = np.isinf(of_classes)
    encoded.update({
        f'{column}_low': _steps(of_classes.min(axis=1), _THRESHOLD_PLACES),
        f'{column}_high': _steps(
            np.where(never, of_classes.min(axis=1, keepdims=True), of_classes)
            .max(axis=1), _THRESHOLD_PLACES),
        f'{column}_never': _steps(never.sum(axis=1), 0)})
  return encoded


def _steps(values, places):
  steps, last = [], 0
  for value in values:
    if math.isinf(value):
      steps.append(None)
    else:
      scaled = round(float(value) * 10**places)
      steps.append(scaled - last)
      last = scaled
  return steps


def _command(summary, classifier_ids, results_folder):
  """How to run the cascade, as far as the dumps say where they come from.

  Returns a dict: 'command', and 'by_choice': whether --choose can be trusted to
  find the same weights; thresholds have to be given otherwise.
  """
  exits = summary.get('exits', {})
  known = all(field in summary for field in SHARED_FIELDS) and all(
      field in exits.get(str(k), {}) for k in classifier_ids
      for field in CHECKPOINT_FIELDS + WEIGHT_FIELDS)
  words = ['python3', 'run_cascade.py']
  if known:
    trunk = exits[str(classifier_ids[-1])]['trunk_checkpoint']
    heads = [exits[str(k)]['head_checkpoint'] for k in classifier_ids]
    heads = [head for head in dict.fromkeys(heads) if head != trunk]
    words += ['-rv', summary['resnet_version'], '-rs', summary['resnet_size'],
              '--image_size', summary['image_size'], '-pmcp', trunk]
    if heads:
      words += ['--head_model_dirs', ','.join(heads)]
    words += ['--results', os.path.abspath(results_folder)]
  else:
    words += ['-rv', 'VERSION', '-rs', 'SIZE', '--image_size', 'PIXELS',
              '-pmcp', 'TRUNK', '--head_model_dirs', 'HEADS']
  words += ['--classifier_id', ','.join(map(str, classifier_ids))]
  return {'command': ' '.join(shlex.quote(str(word)) for word in words),
          'by_choice': known}


# ---- What needs no script ---------------------------------------------------


def _lead(summary):
  """What was fitted and judged on what, in sentences."""
  fitted, judged = summary['fitted_on'], summary['judged_on']
  text = ('An image leaves at the first classifier whose confidence reaches '
          'its threshold.')
  others_than_risk = set(summary['options']['method']) - {'risk'}
  if others_than_risk:
    text += (f' Thresholds were fitted on {fitted["num_images"]:,} '
             f'{fitted["split"]} images, and the cascade judged on '
             f'{judged["num_images"]:,} ' + (
                 'others.' if fitted['split'] == judged['split']
                 else f'{judged["split"]} images.'))
  risk = summary.get('risk')
  if risk:
    text += (
        ' The method risk was calibrated on '
        f'{risk["num_calibrating"]:,} validation images and judged on '
        f'{risk["num_judged"]:,} others. With a probability of at least '
        f'{1 - risk["delta"]:g}, its true accuracy is at most ε below the '
        "plain network's, for one ε chosen beforehand.")
    if others_than_risk and risk['num_judged'] != judged['num_images']:
      text += (' As half of the images judge it, compare its drop with those '
               'of other methods, not its accuracy.')
  unfilled = [f'{count:,} {split}' for split, count in
              summary['num_unfilled_rows'].items() if count]
  if unfilled:
    treatment = ('counted as answers of class 0'
                 if summary['options']['count_unfilled_rows'] else 'left out')
    text += (f' Rows that were never filled ({", ".join(unfilled)}) are '
             f'{treatment}.')
  return text


def _inputs(kind, name, labels, values):
  """Radio buttons, the first one chosen, or checkboxes, all chosen."""
  return ''.join(
      f'<label><input type={kind} name={name} value={value} class=script hidden'
      f'{" checked" if kind == "checkbox" or not i else ""}>'
      f'{labels[value]}</label>' for i, value in enumerate(values))


def _swatch(color):
  return f'<i class=swatch style="background:{color}"></i>'


def _by_metric(of_metrics, draw):
  """What `draw` makes of each metric; the page shows one of them."""
  return ''.join(f'<div data-metric={metric}>{draw(metric, of_metric)}</div>'
                 for metric, of_metric in of_metrics.items())


def _points_table(metric, points, classifier_ids, cost, columns):
  """Some points of the main method."""
  method = main_method(points)
  of_method = points[method]
  of_method = of_method[::math.ceil(len(of_method) / _MOST_TABLE_ROWS)]
  text_of = {
      column: lambda point, places=places, value_of=value_of:
      f'{round(value_of(point), places) + 0.:.{places}f}'  # No -0.00.
      for column, places, value_of in columns}

  def interval(column):
    return lambda point: (
        f'{text_of[column](point)} ({text_of[column + "_low"](point)} to '
        f'{text_of[column + "_high"](point)})')

  shown = [(setting_label(method, bool(cost.time)),
            lambda point: f'{point.setting:.6g}'),
           ('Accuracy (%)', interval('test_accuracy')),
           ('Drop (points)', interval('accuracy_drop')),
           ('GMACs', text_of['gmacs_per_image']),
           ('Speed-up', text_of['speedup'])]
  if cost.time:
    ms, speedup = TIME_COLUMNS
    shown += [('ms', text_of[ms]), ('Speed-up by time', text_of[speedup])]
  shown += [(f'{classifier_name(k)} (%)', text_of[EXIT_SHARE_COLUMN.format(k)])
            for k in classifier_ids]
  return _table(
      f'{METRIC_TITLES[metric]}, {METHOD_LINES[method]["label"]}',
      [title for title, _ in shown],
      [[text(point) for _, text in shown] for point in of_method])


def _quality_table(qualities):
  """`exit_quality.csv`, to four places; what is not defined is empty."""
  rows = []
  for metric, of_metric in qualities.items():
    for k, quality in of_metric.items():
      num_images, *fractions = quality
      title = f'{METRIC_TITLES[metric]}, {classifier_name(k)}'
      rows.append(
          [title, f'{num_images:,}'] +
          ['' if math.isnan(value) else f'{value:.4f}' for value in fractions])
  return _table('', ['Classifier', 'Images', 'Accuracy', 'AUROC', 'AURC',
                     'Excess AURC', 'ECE', 'Lost'], rows)


def _table(caption, titles, rows):
  caption = caption and f'<caption>{caption}</caption>'
  head = ''.join(f'<th scope=col>{title}</th>' for title in titles)
  body = ''.join(
      f'<tr><th scope=row>{first}</th>' +
      ''.join(f'<td>{text}</td>' for text in others) + '</tr>'
      for first, *others in rows)
  return (f'<div class=scrolls><table>{caption}<thead><tr>{head}</tr></thead>'
          f'<tbody>{body}</tbody></table></div>')


def _origin(summary):
  """Where all comes from: pairs of a term and a text."""
  def listed(fields):
    return ', '.join(
        f'{name.replace("_", " ")} ' +
        ('/'.join(value) if isinstance(value, tuple) else str(value))
        for name, value in fields.items()
        if value is not None and value is not False)

  yield 'Network', listed({'name': summary['network'], **{
      field: summary[field] for field in SHARED_FIELDS if field in summary}})
  for k, source in summary.get('exits', {}).items():
    yield classifier_name(k), listed(source)
  yield 'MACs', summary['macs_source']
  if 'ms_source' in summary:
    yield 'Time', listed(summary['ms_source'])
  yield 'Images', listed(summary['num_images'])
  yield 'Never filled', listed(summary['num_unfilled_rows'])
  yield 'Fitted on', listed(summary['fitted_on'])
  yield 'Judged on', listed(summary['judged_on'])
  if 'risk' in summary:
    yield 'risk', listed(summary['risk'])
  epsilons = summary['options']['epsilons']
  yield 'Options', listed({**summary['options'], 'epsilons': (
      f'{len(epsilons):,} from {epsilons[0]:g} to {epsilons[-1]:g} %')})
  yield 'Versions', listed(summary['versions'])
