"""Accuracies, thresholds and cascades from dumped softmaxes: steps 4 to 7.

  python analyze_imagenet_labels.py -dataset_path $IMAGENET_HOME \\
      -softmax_dir_to_validate_against <...>/output_softmax -output_dir OUT

The options are the published ones, with one dash; two dashes work too. Without
-output_dir, only the accuracies of step 4 are printed. Results go to stdout and
to OUT, everything else to stderr.
"""

import argparse
import os
import signal
import sys

import numpy as np

from cascade import (
    UserError, analysis, dumps, figures, macs, predictions, report, thresholds,
    top5)
import dump_record

# More would take minutes and gigabytes: all of them go into pareto's search.
MOST_EPSILONS = 1000

# As the published script names the splits, in its order.
SPLIT_TITLES = {'train': 'Train', 'validation': 'Test'}


def _one_line(text):
  """`text` with line breaks, such as those of a file name, as escapes."""
  return ''.join(character if character.isprintable() else
                 repr(character)[1:-1] for character in str(text))


class _Parser(argparse.ArgumentParser):
  """The standard parser, with errors of one line and no abbreviations."""

  def parse_known_args(self, args=None, namespace=None):
    for argument in args:
      name = argument.split('=')[0]
      # argparse would still accept abbreviations with one dash.
      if name.lstrip('-')[:1].isalpha() and name.startswith('-') and (
          name not in self._option_string_actions):
        self.error(f'{name}: no such option')
    return super().parse_known_args(args, namespace)

  def error(self, message):
    self.exit(2, f'{self.prog}: {_one_line(message)}; see --help\n')


def parse_arguments(argv):
  """Parses the command line, without the program's name."""
  parser = _Parser(
      description='Prints the top-1 and top-5 accuracy of each classifier '
      'whose softmaxes were dumped (step 4 of the README). With -output_dir it '
      'also fits confidence thresholds, and writes cascade accuracy against '
      'multiply-accumulates as tables and figures (steps 5 to 7).',
      allow_abbrev=False)

  def add(name, *aliases, **options):
    parser.add_argument(
        *[dashes + alias for alias in (name,) + aliases
          for dashes in ('-', '--')], dest=options.pop('dest', name),
        **options)

  add('softmax_dir_to_validate_against', 'softmax_path', dest='softmax_dir',
      metavar='FOLDER', required=True,
      help='the output_softmax folder that step 3 wrote')
  add('dataset_path', metavar='FOLDER',
      help='the folder of validation_non_onehot.npy and train_non_onehot.npy, '
      'usually $IMAGENET_HOME; where a file is not there, the labels beside '
      'the dumps are used')
  add('output_dir', metavar='OUT',
      help='turns on steps 5 to 7 and names the folder of their results')
  add('metric', type=_choices(predictions.METRICS), default=predictions.METRICS,
      metavar='top1,top5', help='which accuracies, separated by commas (both)')
  methods = tuple(thresholds.METHODS)
  add('method', type=_choices(methods), default=methods,
      metavar=','.join(methods),
      help='how thresholds are found (all): cst, per classifier, as in the '
      'paper; global, one for all; ccst, per classifier and predicted class; '
      'budgeted, from given exit shares, as in MSDNet; pareto, the best for '
      'each cost; risk, the cheapest of pareto that are guaranteed to lose no '
      'more than epsilon')
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
      help='where thresholds are fitted: train (as in the paper; the '
      'validation split judges), or one half of the validation split, chosen '
      'at random with a fixed seed (the other half judges)')
  add('risk_delta', type=float, default=.1, metavar='FRACTION',
      help='how often the guarantee of risk may be broken (0.1)')
  add('macs', default='exact', metavar='exact|published|FILE.json',
      help='cost of each exit: exact (default), from cascade.json beside the '
      'dumps or else ResNet-v2-50\'s; published, the spreadsheet of the paper; '
      'or a file like cascade.json')
  add('cost', metavar='FILE',
      help='a stage_seconds.json of run_cascade.py --profile_stages: adds '
      'milliseconds per image and speedup by time, for its largest batch, and '
      'fits pareto to them')
  add('count_unfilled_rows', action='store_true',
      help='count rows that were never filled as answers of class 0; this '
      'gives the published figures from the published files, where the last '
      '80 validation and 143 training rows are such; without it they are left '
      'out')
  add('check_all_rows', action='store_true',
      help='read all softmaxes even where the top-5 files suffice, '
      'and compare every row with them (a sample is compared otherwise)')
  add('cache', action='store_true',
      help='keep what is read from softmaxes without top-5 files in '
      f'{top5.CACHE_FOLDER} beside them, so that the next run need not read '
      'them')
  arguments = parser.parse_args(argv)
  if arguments.output_dir == '':
    parser.error('-output_dir: names no folder')
  ends = arguments.epsilons or [arguments.epsilon_low, arguments.epsilon_high]
  if not all(0 <= epsilon <= 100 for epsilon in ends):
    parser.error('epsilons are percent, from 0 to 100')
  if not 0 <= arguments.risk_delta < 1:
    parser.error('-risk_delta: from 0 to below 1')
  if arguments.epsilons is None:
    if not 1 <= arguments.num_epsilons <= MOST_EPSILONS:
      parser.error(f'-num_epsilons: from 1 to {MOST_EPSILONS:,}')
    arguments.epsilons = np.linspace(*ends, num=arguments.num_epsilons).tolist()
  arguments.epsilons = sorted(set(arguments.epsilons))
  if len(arguments.epsilons) > MOST_EPSILONS:
    parser.error(f'-epsilons: at most {MOST_EPSILONS:,}')
  return arguments


def _choices(known):
  def parse(text):
    chosen = text.replace(',', ' ').split()
    unknown = sorted(set(chosen) - set(known))
    if unknown or not chosen:
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

  Empties `opened`, so that no file stays mapped. Returns two dicts from split
  to a dict from classifier: its `predictions.ClassifierPredictions`, and its
  `predictions.DumpAccuracy`.
  """
  read = {split: {} for split in opened}
  measured = {split: {} for split in opened}
  for split, of_split in opened.items():
    while of_split:
      dump, labels = of_split.pop(0)
      if need_confidences or check_all_rows or dump.top5_classes is None:
        best = top5.read_top5(dump, use_cache, check_all_rows)
      else:
        best = top5.Top5(dump.top5_classes, None)
      predicted = predictions.classifier_predictions(best, labels)
      read[split][dump.classifier_id] = predicted
      measured[split][dump.classifier_id] = predictions.dump_accuracy(
          dump, predicted)
  return read, measured


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
  """One line on the rows that were never filled; None if there are none."""
  effects = []
  for k, measured in accuracies.items():
    if measured.num_unfilled:
      now = measured.top1_and_top5(count_unfilled_rows)
      otherwise = measured.top1_and_top5(not count_unfilled_rows)
      effects.append(
          f'classifier {k}: {measured.num_unfilled:,} of '
          f'{measured.num_images:,} rows, ' + ', '.join(
              f'{title} {accuracy:.4} instead of {other:.4}'
              for title, accuracy, other in zip(
                  predictions.METRIC_TITLES.values(), now, otherwise)))
  if not effects:
    return None
  treatment = (
      'counted as answers of class 0, as published' if count_unfilled_rows
      else 'left out (-count_unfilled_rows counts them, as published)')
  return (f'{split}: rows that were never filled are {treatment}: ' +
          '; '.join(effects))


def run(arguments):
  """Does what the command line asks for; returns the lines for stdout."""
  splits = list(SPLIT_TITLES)
  if arguments.fit_on == 'validation' and not dumps.holds_split(
      arguments.softmax_dir, 'train'):
    splits.remove('train')
  opened, num_classes = open_dumps(
      arguments.softmax_dir, arguments.dataset_path, splits)
  cost = None
  if arguments.output_dir:
    classifier_ids = [dump.classifier_id for dump, _ in opened['validation']]
    cost, recorded = check_output(arguments, classifier_ids, num_classes)
    figures.load_in_background()
  read, measured = read_predictions(
      opened, bool(cost), arguments.cache, arguments.check_all_rows)
  for split, accuracies in measured.items():
    note = unfilled_rows_note(
        split, accuracies, arguments.count_unfilled_rows)
    if note:
      print(note, file=sys.stderr)
  lines = result_lines(measured, arguments.count_unfilled_rows)
  if cost:
    lines += write_cascade(
        arguments, read, measured, cost, recorded, num_classes)
  return lines


def check_output(arguments, classifier_ids, num_classes):
  """Checks what steps 5 to 7 need, before the work.

  Returns `macs.NetworkCost`, and `dump_record.network_and_weights`.
  """
  report.check_output_dir(arguments.output_dir)
  figures.check_is_there()
  if len(classifier_ids) < 2:
    raise UserError(
        f'-softmax_dir_to_validate_against {arguments.softmax_dir}: holds '
        f'classifier {classifier_ids[0]} alone; a cascade takes two or more: '
        'dump the others (step 3)')
  thresholds.check_methods(arguments.method, len(classifier_ids))
  cost = macs.network_cost(
      arguments.macs, arguments.softmax_dir, classifier_ids, num_classes)
  recorded = dump_record.network_and_weights(
      arguments.softmax_dir, classifier_ids)
  if arguments.cost:
    cost = cost._replace(
        time=macs.time_cost(arguments.cost, recorded, classifier_ids))
  return cost, recorded


def write_cascade(arguments, read, measured, cost, recorded, num_classes):
  """Fits, judges and writes (steps 5 to 7); returns the lines for stdout."""
  of_split = {split: list(classifiers.values())
              for split, classifiers in read.items()}
  if num_classes is None:  # No class above the predicted ones is looked up.
    num_classes = 1 + max(int(one.predicted.max())
                          for ones in of_split.values() for one in ones)

  def analyse(count_unfilled_rows):
    division = analysis.divide(
        of_split, arguments.fit_on, count_unfilled_rows)
    return division, analysis.analyse(
        of_split, division, arguments.metric, arguments.method,
        arguments.epsilons, arguments.risk_delta, num_classes, cost)

  division, results = analyse(arguments.count_unfilled_rows)
  other_results = None
  if any(one.num_unfilled for accuracies in measured.values()
         for one in accuracies.values()):
    _, other_results = analyse(not arguments.count_unfilled_rows)
  options = {name: value for name, value in vars(arguments).items()
             if name not in ('output_dir', 'epsilon_low', 'epsilon_high',
                             'num_epsilons')}
  for name in ('softmax_dir', 'dataset_path', 'cost'):
    options[name] = options[name] and os.path.abspath(options[name])
  return report.write_results(
      arguments.output_dir, options, of_split, measured, division, results,
      other_results, cost, recorded)


def _print(lines):
  text = ''.join(line + '\n' for line in lines)
  # A folder's name may contain what the terminal cannot show.
  encoding = sys.stdout.encoding or 'utf-8'
  try:
    sys.stdout.write(text.encode(encoding, 'backslashreplace').decode(encoding))
    sys.stdout.flush()
  except OSError as error:
    # Otherwise Python tries again at exit, and prints many lines.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise UserError(f'standard output: cannot be written ({error.strerror})')


def main(argv=None):
  try:
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    _print(run(arguments))
  except UserError as error:
    sys.exit(f'analyze_imagenet_labels.py: {_one_line(error)}')
  except KeyboardInterrupt:
    print('analyze_imagenet_labels.py: interrupted', file=sys.stderr)
    sys.exit(130)


if __name__ == '__main__':
  # Batch schedulers send it; unfinished files are removed, as with Ctrl-C.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  main()
