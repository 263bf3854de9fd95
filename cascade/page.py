"""Writes `report.html`: the results on one page, with a slider.

What it shows without script is made here. The script in `report_template.html`
marks a point in the figures and shows one row of `cascade.csv`. The page loads
nothing from anywhere.
"""

import html
import json
import math
import os
import re
import shlex

from cascade import figures
from cascade.figures import METHOD_LINES, classifier_color, classifier_name
from cascade.predictions import METRIC_TITLES
from cascade.thresholds import main_method, setting_label
from cascade.shared import shared_cascade_json, shared_results

_TEMPLATE = os.path.join(os.path.dirname(__file__), 'report_template.html')

# Fractions in `cascade.csv`, percent on the page.
_PERCENT_COLUMNS = (
    'test_accuracy', 'test_accuracy_low', 'test_accuracy_high',
    'accuracy_drop', 'accuracy_drop_low', 'accuracy_drop_high')

# The tables stand in for the slider, on paper and without script.
_MOST_TABLE_ROWS = 25

# For who has not read the paper; the README says it exactly.
_METHOD_TEXTS = {
    'cst': "the paper's: at each classifier the smallest threshold above which "
           'its answers are right almost as often as they can be, but for ε.',
    'global': 'one threshold for all classifiers.',
    'ccst': 'the rule of cst, for each class that a classifier predicts.',
    'budgeted': 'the shares of images that leave at the classifiers are given, '
                'each q times the one before (MSDNet, Huang et al. 2018).',
    'pareto': 'for each cost the most accurate of all combinations of '
              'thresholds.',
    'risk': 'the cheapest thresholds of pareto that lose at most ε, as a '
            'statistical test says on images of its own.',
}

# Of the summary, what is said under 'Where this comes from'.
_ORIGIN_FIELDS = (
    'network', *shared_cascade_json.SHARED_FIELDS, 'exits', 'macs_source',
    'ms_source', 'num_images', 'num_unfilled_rows', 'fitted_on', 'judged_on',
    'risk', 'options', 'versions')


def write(path, results_folder, summary, results, curves, qualities,
          classifier_ids, cost):
  """Writes the page, from what `report.write_results` has.

  `results_folder` is that of `cascade.csv`, for the command on the page.
  """
  axes = figures.cost_axes(cost).values()
  methods = list(next(iter(results.values())).points)
  labels = {method: METHOD_LINES[method]['label'] for method in methods}
  data = {
      'classifiers': [classifier_name(k) for k in classifier_ids],
      'settings': {method: setting_label(method, bool(cost.time))
                   for method in methods},
      'plain': {metric: _percent(result.classifier_accuracies[-1])
                for metric, result in results.items()},
      'rows': {metric: {method: _columns(points, classifier_ids)
                        for method, points in result.points.items()}
               for metric, result in results.items()},
      **_command(summary, classifier_ids, results_folder),
  }
  parts = {
      'title': html.escape(f'Cascaded inference: {summary["network"]}'),
      'lead': html.escape(_lead(summary)),
      'metrics': _inputs('Accuracy', 'radio', 'metric', {
          metric: METRIC_TITLES[metric] for metric in results}),
      'costs': _inputs('Cost', 'radio', 'cost', {
          axis.field: axis.unit for axis in axes}) if cost.time else '',
      'methods': ''.join(f'<option value={method}>{labels[method]}</option>'
                         for method in methods),
      'shown': _inputs('Methods', 'checkbox', 'shown', {
          method: _swatch(METHOD_LINES[method]['color']) + labels[method]
          for method in methods}),
      'words': ''.join(f'<dt>{method}</dt><dd>{_METHOD_TEXTS[method]}</dd>'
                       for method in methods),
      'figures': ''.join(
          _part(figures.accuracy_vs_cost(metric, result, classifier_ids,
                                         cost, axis),
                f'{METRIC_TITLES[metric].capitalize()} accuracy of the cascade '
                f'against its cost in {axis.unit}', metric, axis.field)
          for axis in axes for metric, result in results.items()),
      'classifiers': ''.join(
          f'<li>{_swatch(classifier_color(k))}{classifier_name(k)} '
          '<span></span></li>' for k in classifier_ids),
      'bar': ''.join(_swatch(classifier_color(k)) for k in classifier_ids),
      'tables': ''.join(
          f'<div data-metric={metric}>' + _points_table(
              metric, result.points, classifier_ids, cost) + '</div>'
          for metric, result in results.items()),
      'confidence': ''.join(
          _part(figures.confidence_clf({metric: by_classifier}),
                f'{METRIC_TITLES[metric].capitalize()} accuracy of the images '
                'of at least a confidence', metric)
          for metric, by_classifier in curves.items()),
      'quality': _quality_table(qualities),
      'origin': ''.join(
          f'<dt>{field}</dt>'
          f'<dd>{html.escape(_listed(summary[field]))}</dd>'
          for field in _ORIGIN_FIELDS if field in summary),
      # Nothing within may end the script element.
      'data': json.dumps(data).replace('<', '\\u003c'),
  }
  with open(_TEMPLATE, encoding='utf-8') as stream:
    template = stream.read()
  # Names of files may be no UTF-8.
  with open(path, 'w', encoding='utf-8', errors='surrogateescape') as stream:
    stream.write(re.sub(r'<!--(\w+)-->', lambda match: parts[match.group(1)],
                        template))


# ---- Rows of cascade.csv ----------------------------------------------------


def _percent(fraction):
  # Rounded as a fraction: 0.78875 is 0.7887 in the terminal, so 78.87 here.
  return f'{100 * round(fraction, 4) + 0.:.2f}'  # No -0.00.


def _texts(point, classifier_ids):
  """A row of `cascade.csv` as the page shows it: column -> text.

  Fractions are in percent, 'nan' where they are not defined. A setting of ten
  decimal places is found by --choose, and nine digits are all of a float32.
  """
  row = {'setting': f'{round(point.setting, 10):.12g}'}
  for k, threshold in zip(classifier_ids[:-1], point.thresholds):
    row[shared_results.THRESHOLD_COLUMN.format(k)] = f'{threshold:.9g}'
  for column in _PERCENT_COLUMNS:
    row[column] = _percent(getattr(point, column))
  for k, share in zip(classifier_ids, point.exit_shares):
    row[shared_results.EXIT_SHARE_COLUMN.format(k)] = _percent(share)
  for k, accuracy in zip(classifier_ids, point.exit_accuracies):
    row[shared_results.EXIT_ACCURACY_COLUMN.format(k)] = _percent(accuracy)
  row['gmacs_per_image'] = f'{point.gmacs_per_image:#.5g}'
  row['speedup'] = f'{point.speedup:.3f}'
  if point.ms_per_image is not None:
    row['ms_per_image'] = f'{point.ms_per_image:#.5g}'
    row['speedup_by_time'] = f'{point.speedup_by_time:.3f}'
  return row


def _columns(points, classifier_ids):
  """`_texts` of many points; a column is a text with blanks between."""
  rows = [_texts(point, classifier_ids) for point in points]
  return {column: ' '.join(row[column] for row in rows) for column in rows[0]}


def _points_table(metric, points, classifier_ids, cost):
  method = main_method(points)
  points = points[method][::math.ceil(len(points[method]) / _MOST_TABLE_ROWS)]
  columns = {'setting': setting_label(method, bool(cost.time)),
             'test_accuracy': 'Accuracy (%)', 'accuracy_drop': 'Drop (points)',
             'gmacs_per_image': 'GMACs', 'speedup': 'Speed-up'}
  if cost.time:
    columns.update(ms_per_image='ms', speedup_by_time='Speed-up by time')
  for k in classifier_ids:
    columns[shared_results.EXIT_SHARE_COLUMN.format(k)] = (
        f'% at {classifier_name(k)} (right)')
  rows = []
  for point in points:
    texts = _texts(point, classifier_ids)
    texts['setting'] = f'{point.setting:.6g}'
    for column in ('test_accuracy', 'accuracy_drop'):
      texts[column] += (
          f' ({texts[column + "_low"]} to {texts[column + "_high"]})')
    for k in classifier_ids:
      right = texts[shared_results.EXIT_ACCURACY_COLUMN.format(k)]
      if right != 'nan':
        texts[shared_results.EXIT_SHARE_COLUMN.format(k)] += f' ({right})'
    rows.append([texts[column] for column in columns])
  return _table(f'{METRIC_TITLES[metric]}, {METHOD_LINES[method]["label"]}',
                columns.values(), rows)


def _command(summary, classifier_ids, results_folder):
  """How to run the cascade, as far as the dumps say where they come from.

  Returns a dict: 'command', and 'by_choice': whether --choose can be trusted to
  find the same weights; thresholds have to be given otherwise.
  """
  exits = [summary.get('exits', {}).get(str(k), {}) for k in classifier_ids]
  words = ['python3', 'run_cascade.py']
  known = all(field in of_exit for of_exit in exits
              for field in shared_cascade_json.WEIGHT_FIELDS)
  if known:
    trunk = exits[-1]['trunk_checkpoint']
    heads = dict.fromkeys(of_exit['head_checkpoint'] for of_exit in exits)
    heads.pop(trunk, None)
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


# ---- Texts and tables -------------------------------------------------------


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
        f'{1 - risk["delta"]:g}, ' + (
            "its true accuracy is at most ε below the plain network's"
            if risk['loss'] == 'wrong' else
            "its class is not the plain network's in at most ε of all images"
        ) +
        ', for one ε chosen beforehand.')
    if others_than_risk and risk['num_judged'] != judged['num_images']:
      text += (' As half of the images judge it, compare its drop with those '
               'of other methods, not its accuracy; the figure shows it at the '
               "plain network's accuracy minus its drop.")
  unfilled = [f'{count:,} {split}' for split, count in
              summary['num_unfilled_rows'].items() if count]
  if unfilled:
    treatment = ('counted as answers of class 0'
                 if summary['options']['count_unfilled_rows'] else 'left out')
    text += (f' Rows that were never filled ({", ".join(unfilled)}) are '
             f'{treatment}.')
  return text


def _inputs(legend, kind, name, labels):
  """Radio buttons, the first one chosen, or checkboxes, all chosen."""
  inputs = ''
  for value, label in labels.items():
    checked = 'checked' if kind == 'checkbox' or not inputs else ''
    inputs += (f'<label><input type={kind} name={name} value={value} '
               f'class=script hidden {checked}>{label}</label>')
  return f'<fieldset><legend>{legend}</legend>{inputs}</fieldset>'


def _swatch(color):
  return f'<i class=swatch style="background:{figures.css_color(color)}"></i>'


def _part(figure, title, metric, cost_field=None):
  """A figure that the page shows when this metric and cost are chosen."""
  cost = f' data-cost={cost_field}' if cost_field else ''
  return f'<div data-metric={metric}{cost}>{figures.svg(figure, title)}</div>'


def _quality_table(qualities):
  """`exit_quality.csv`, to four places; what is not defined is empty."""
  return _table('', ['Classifier', 'Images', 'Accuracy', 'AUROC', 'AURC',
                     'Excess AURC', 'ECE', 'Lost'], [
      [f'{METRIC_TITLES[metric]}, {classifier_name(k)}', f'{num_images:,}'] +
      ['' if math.isnan(value) else f'{value:.4f}' for value in fractions]
      for metric, by_classifier in qualities.items()
      for k, (num_images, *fractions) in by_classifier.items()])


def _table(caption, titles, rows):
  caption = caption and f'<caption>{caption}</caption>'
  head = ''.join(f'<th scope=col>{title}</th>' for title in titles)
  body = ''.join(
      f'<tr><th scope=row>{first}</th>' +
      ''.join(f'<td>{text}</td>' for text in others) + '</tr>'
      for first, *others in rows)
  return (f'<div class=scrolls><table>{caption}<thead><tr>{head}</tr></thead>'
          f'<tbody>{body}</tbody></table></div>')


def _listed(value):
  """A field of the summary as a text."""
  if isinstance(value, dict):
    return ', '.join(f'{name.replace("_", " ")} {_listed(field)}'
                     for name, field in value.items()
                     if field is not None and field is not False)
  if isinstance(value, (list, tuple)):
    if len(value) > 10:  # Epsilons.
      return f'{len(value):,} from {value[0]:g} to {value[-1]:g}'
    return '/'.join(map(_listed, value))
  return f'{value:g}' if isinstance(value, float) else str(value)
