# /// script
# requires-python = ">=3.6,<3.14"
# dependencies = [  # As requirements-analysis.txt has them.
#   'numpy==1.19.5; python_version < "3.9"',
#   'numpy==1.26.4; python_version >= "3.9" and python_version < "3.13"',
#   'numpy==2.1.3; python_version >= "3.13"',
#   'matplotlib==3.3.4; python_version < "3.9"',
#   'matplotlib==3.8.4; python_version >= "3.9" and python_version < "3.13"',
#   'matplotlib==3.9.4; python_version >= "3.13"',
#   'pyparsing==3.1.4',
# ]
# ///
"""Accuracies, thresholds and cascades from dumped softmaxes: steps 4 to 7.

  python analyze_imagenet_labels.py -dataset_path $IMAGENET_HOME \\
      -softmax_dir_to_validate_against <...>/output_softmax -output_dir OUT

The options are the published ones, with one dash; two dashes work too. Without
-output_dir, only the accuracies of step 4 are printed. Results go to stdout and
to OUT, everything else to stderr.
"""

import argparse
import os
import sys

import numpy as np

from cascade import (
    analysis, dumps, evaluation, figures, macs, predictions, report,
    thresholds, top5)
from cascade.shared import (
    UserError, shared_cascade_json, shared_dumps, shared_terminal)

# More would take minutes and gigabytes: all of them go into pareto's search.
MOST_EPSILONS = 1000

# As the published script names the splits, in its order.
SPLIT_TITLES = {'train': 'Train', 'validation': 'Test'}


class _Parser(argparse.ArgumentParser):
  """The standard parser, with errors of one line."""

  def error(self, message):
    self.exit(2, f'{self.prog}: {" ".join(message.split())}; see --help\n')


# The shell leaves the ~ of -output_dir=~/results as it is.
_path = os.path.expanduser


def parse_arguments(argv):
  parser = _Parser(
      description='Prints the top-1 and top-5 accuracy of each classifier '
      'whose softmaxes were dumped (step 4 of the README). With -output_dir it '
      'also fits confidence thresholds, and writes cascade accuracy against '
      'multiply-accumulates as tables and figures (steps 5 to 7).')

  def add(name, *aliases, **options):
    parser.add_argument(
        *[dashes + alias for alias in (name,) + aliases
          for dashes in ('-', '--')], dest=options.pop('dest', name),
        **options)

  add('softmax_dir_to_validate_against', 'softmax_path', dest='softmax_dir',
      type=_path, metavar='FOLDER', required=True,
      help='the output_softmax folder that step 3 wrote')
  add('dataset_path', type=_path, metavar='FOLDER',
      help='folder of the label files, usually $IMAGENET_HOME; where one is '
      'missing, the labels beside the dumps are used')
  add('output_dir', type=_path, metavar='OUT',
      help='turns on steps 5 to 7 and names the folder of their results')
  add('metric', type=_choices(predictions.METRICS),
      metavar='top1,top5', help='which accuracies, separated by commas (both)')
  add('method', type=_choices(thresholds.METHODS),
      metavar=','.join(thresholds.METHODS),
      help='how thresholds are found (all; docs/analysis.md): cst is the '
      'paper\'s way, risk gives a guarantee')
  add('epsilons', type=_percents, metavar='0,1,1.8',
      help='accuracy that may be given up, in percent; in place of the three '
      'below')
  add('epsilon_low', type=float, default=0., metavar='PERCENT',
      help='the lowest epsilon (0)')
  add('epsilon_high', type=float, default=20., metavar='PERCENT',
      help='the highest epsilon (20)')
  add('num_epsilons', type=int, default=21, metavar='N',
      help='evenly spaced values from the lowest to the highest (21)')
  add('fit_on', choices=('train', 'validation'), default='train',
      help='where thresholds are fitted: train (as in the paper), or one half '
      'of the validation split, of which the other half judges')
  add('risk_delta', type=float, default=.1, metavar='FRACTION',
      help='how often the guarantee of risk may be broken (0.1)')
  add('risk_loss', choices=tuple(evaluation.LOSSES), default='wrong',
      help='what risk promises of at most epsilon of the images: that the '
      'cascade is wrong where the plain network is right, or that it names '
      'another class')
  add('macs', default='exact', type=_path,
      metavar='exact|published|FILE.json',
      help='cost of each exit: exact (default), from cascade.json beside the '
      'dumps or else ResNet-v2-50\'s; published, the spreadsheet of the paper; '
      'or a file like cascade.json')
  add('cost', type=_path, metavar='FILE',
      help='a stage_seconds.json of run_cascade.py --profile_stages: adds '
      'milliseconds per image and speedup by time, for its largest batch, and '
      'fits pareto to them')
  add('count_unfilled_rows', action='store_true',
      help='count rows that were never filled as answers of class 0, as the '
      'published figures do, in place of leaving them out')
  add('check_all_rows', action='store_true',
      help='read all softmaxes even where the top-5 files suffice, '
      'and compare every row with them (a sample is compared otherwise)')
  add('cache', action='store_true',
      help='write the top-5 files that are missing beside the softmaxes, so '
      'that the next run need not read these')
  arguments = parser.parse_args(argv)
  ends = arguments.epsilons or [arguments.epsilon_low, arguments.epsilon_high]
  if not all(0 <= epsilon <= 100 for epsilon in ends):
    parser.error('epsilons are percent, from 0 to 100')
  if not 0 <= arguments.risk_delta < 1:
    parser.error('-risk_delta: from 0 to below 1')
  num_epsilons = len(arguments.epsilons or ()) or arguments.num_epsilons
  if not 1 <= num_epsilons <= MOST_EPSILONS:
    parser.error(f'-num_epsilons or -epsilons: 1 to {MOST_EPSILONS:,} of them')
  arguments.epsilons = sorted(set(
      arguments.epsilons or np.linspace(*ends, num=num_epsilons).tolist()))
  return arguments


def _choices(known):
  def parse(text):
    chosen = set(text.replace(',', ' ').split())
    if not chosen or not chosen <= set(known):
      raise argparse.ArgumentTypeError(
          f'{text!r}: choose from {", ".join(known)}')
    return tuple(name for name in known if name in chosen)
  return parse


def _percents(text):
  try:
    return [float(part) for part in text.split(',')]
  except ValueError:
    raise argparse.ArgumentTypeError(
        f'{text!r}: numbers separated by commas, such as 0,1,1.8')


def open_dumps(softmax_dir, dataset_path, splits):
  """Opens and checks all files before any is read through.

  Returns a dict from split to a list of `(ClassifierDump, labels)`, labels int
  [images]; and the number of classes, None if not known.
  """
  classifier_ids = dumps.find_classifiers(softmax_dir)
  opened = {split: [] for split in splits}
  for split in splits:
    labels = dumps.read_labels(dataset_path, softmax_dir, split)
    for k in classifier_ids:
      dump = dumps.ClassifierDump(softmax_dir, k, split)
      dump.check_labels(labels)
      opened[split].append((dump, labels.classes))
  return opened, dumps.num_classes_of(
      [dump for split in splits for dump, _ in opened[split]])


def read_predictions(opened, need_confidences, use_cache, check_all_rows):
  """Reads what the classifiers predict.

  Returns two dicts from split: to a list of
  `predictions.ClassifierPredictions`, and to a dict from classifier to
  `predictions.DumpAccuracy`.
  """
  classifiers = {split: [] for split in opened}
  measured = {split: {} for split in opened}
  for split, dumps_and_labels in opened.items():
    for dump, labels in dumps_and_labels:
      predicted = predictions.classifier_predictions(top5.read_top5(
          dump, need_confidences, use_cache, check_all_rows), labels)
      classifiers[split].append(predicted)
      measured[split][dump.classifier_id] = predictions.dump_accuracy(
          dump, predicted)
  return classifiers, measured


def result_lines(measured, count_unfilled_rows):
  """The lines of step 4, in the published form."""
  lines = []
  for k in measured['validation']:
    lines.append(f'Classifier {k}:')
    for split, title in SPLIT_TITLES.items():
      if split in measured:
        top1, top5_accuracy = measured[split][k].top1_and_top5(
            count_unfilled_rows)
        lines.append(f' {title} top-1:{top1:.4}')
        lines.append(f' {title} top-5:{top5_accuracy:.4}')
  return lines


def unfilled_rows_note(split, accuracies, count_unfilled_rows):
  """A line on the rows that were never filled; empty if there are none."""
  effects = [
      f'classifier {k}: {measured.num_unfilled:,} of '
      f'{measured.num_images:,} rows, ' + ', '.join(
          f'{title} {accuracy:.4} instead of {other:.4}'
          for title, accuracy, other in zip(
              predictions.METRIC_TITLES.values(),
              measured.top1_and_top5(count_unfilled_rows),
              measured.top1_and_top5(not count_unfilled_rows)))
      for k, measured in accuracies.items() if measured.num_unfilled]
  treatment = (
      'counted as answers of class 0, as published' if count_unfilled_rows
      else 'left out (-count_unfilled_rows counts them, as published)')
  return effects and (f'{split}: rows that were never filled are {treatment}: '
                      + '; '.join(effects))


def label_notes(split, labels, classifiers, num_classes):
  """Lines on labels that look wrong; `num_classes` is None if not known.

  `labels` are int [images], `classifiers` `predictions.ClassifierPredictions`.
  """
  filled = ~predictions.unfilled_rows(classifiers)
  labels = labels[filled]
  notes = []
  num_zeros = np.count_nonzero(labels == 0)
  if num_zeros and all(classifier.predicted[filled].all()
                       for classifier in classifiers):
    notes.append(
        f'{split}: {num_zeros:,} images have label 0, a class that no '
        'classifier ever says. Labels of these networks start at 1 (0 is the '
        'background class): are they one too low?')
  if num_classes and split == 'validation':
    absent = np.setdiff1d(np.arange(num_zeros == 0, num_classes), labels)
    if len(absent):
      listed = ', '.join(map(str, absent[:5])) + ', ...' * (len(absent) > 5)
      notes.append(f'{split}: {len(absent):,} classes have no images: {listed}')
  return notes


def run(arguments):
  """Does what the command line asks for; returns the lines for stdout."""
  splits = list(SPLIT_TITLES)
  if arguments.fit_on == 'validation' and not dumps.holds_split(
      arguments.softmax_dir, 'train'):
    splits.remove('train')
  opened, num_classes = open_dumps(
      arguments.softmax_dir, arguments.dataset_path, splits)
  cost = None
  if arguments.output_dir is not None:
    classifier_ids = [dump.classifier_id for dump, _ in opened['validation']]
    recorded = shared_cascade_json.network_and_weights(
        arguments.softmax_dir, classifier_ids)
    num_classes = num_classes or recorded.get('num_classes')
    choose_analyses(arguments, len(classifier_ids), num_classes)
    cost = check_output(arguments, classifier_ids, num_classes, recorded)
  classifiers, measured = read_predictions(
      opened, bool(cost), arguments.cache, arguments.check_all_rows)
  for split, accuracies in measured.items():
    _note(unfilled_rows_note(split, accuracies, arguments.count_unfilled_rows))
  lines = result_lines(measured, arguments.count_unfilled_rows)
  if cost:
    for split, dumps_and_labels in opened.items():
      _note(*label_notes(split, dumps_and_labels[0][1], classifiers[split],
                         num_classes))
    lines += write_cascade(
        arguments, classifiers, measured, cost, recorded, num_classes)
  return lines


def _note(*lines):
  for line in filter(None, lines):
    print(line, file=sys.stderr)


def choose_analyses(arguments, num_classifiers, num_classes):
  """Leaves out, where they were not asked for, what these dumps cannot have."""
  methods = arguments.method or tuple(thresholds.METHODS)
  if num_classifiers > thresholds.MOST_SEARCHED_CLASSIFIERS and (
      'pareto' in methods or 'risk' in methods):
    words = (f'{num_classifiers} classifiers: without pareto and risk, which '
             'search the thresholds of three at most')
    if arguments.method:
      raise UserError(f'-method {",".join(methods)}: {words}')
    _note(words)
    methods = tuple(
        method for method in methods if method not in ('pareto', 'risk'))
  arguments.method = methods
  if arguments.metric is None:
    arguments.metric = predictions.METRICS
    if num_classes and num_classes <= shared_dumps.NUM_TOP:
      arguments.metric = ('top1',)
      _note(f'{num_classes} classes: without top-5, which is always right')


def check_output(arguments, classifier_ids, num_classes, recorded):
  """Checks what steps 5 to 7 need, before the work; `macs.NetworkCost`.

  `recorded` is `shared_cascade_json.network_and_weights`.
  """
  report.make_output_dir(arguments.output_dir)
  # Figures are files; the backend of a notebook may not be installed here.
  os.environ['MPLBACKEND'] = 'agg'
  figures.check_matplotlib()
  if len(classifier_ids) < 2:
    raise UserError(
        f'-softmax_dir_to_validate_against {arguments.softmax_dir}: holds '
        f'classifier {classifier_ids[0]} alone; a cascade takes two or more: '
        'dump the others (step 3)')
  cost = macs.network_cost(
      arguments.macs, arguments.softmax_dir, classifier_ids, num_classes)
  if arguments.cost:
    cost = cost._replace(
        time=macs.time_cost(arguments.cost, recorded, classifier_ids))
  return cost


def write_cascade(
    arguments, classifiers, measured, cost, recorded, num_classes):
  """Fits, judges and writes (steps 5 to 7); returns the lines for stdout."""
  # Where it is not known, as many as are predicted.
  num_classes = num_classes or 1 + max(
      int(of_one.predicted.max())
      for of_split in classifiers.values() for of_one in of_split)

  def analyse(count_unfilled_rows):
    division = analysis.divide(
        classifiers, arguments.fit_on, count_unfilled_rows)
    return division, analysis.analyse(
        classifiers, division, arguments.metric, arguments.method,
        arguments.epsilons, arguments.risk_delta, arguments.risk_loss,
        num_classes, cost)

  division, results = analyse(arguments.count_unfilled_rows)
  other_results = None
  if any(accuracy.num_unfilled for of_split in measured.values()
         for accuracy in of_split.values()):
    _, other_results = analyse(not arguments.count_unfilled_rows)
  options = {name: value for name, value in vars(arguments).items()
             if name not in ('output_dir', 'epsilon_low', 'epsilon_high',
                             'num_epsilons')}
  for name in ('softmax_dir', 'dataset_path', 'cost'):
    options[name] = options[name] and os.path.abspath(options[name])
  return report.write_results(
      arguments.output_dir, options, classifiers, measured, division, results,
      other_results, cost, recorded)


def main(argv=None):
  for line in run(parse_arguments(argv)):
    shared_terminal.print_line(line)


if __name__ == '__main__':
  sys.exit(shared_terminal.run_main(main))
