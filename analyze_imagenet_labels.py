"""Accuracy of each classifier of the cascade, from its dumped softmaxes.

  python analyze_imagenet_labels.py -dataset_path $IMAGENET_HOME \\
      -softmax_dir_to_validate_against <...>/output_softmax

The options are the published ones, with one dash; two dashes work too. The
results are written to stdout, all else to stderr.
"""

import argparse
import sys

from cascade import accuracy, dumps
from user_error import UserError

# In the order and under the names in which the published script prints them.
SPLIT_TITLES = (('train', 'Train'), ('validation', 'Test'))


def parse_arguments(argv):
  """Parses the command line, without the program's name."""
  parser = argparse.ArgumentParser(
      description='Prints the top-1 and top-5 accuracy of each classifier '
      'whose softmaxes were dumped (step 4 of the README).',
      allow_abbrev=False)
  parser.add_argument(
      '-softmax_dir_to_validate_against', '--softmax_dir_to_validate_against',
      '-softmax_path', '--softmax_path', dest='softmax_dir', metavar='FOLDER',
      required=True, help='the output_softmax folder that step 3 wrote')
  parser.add_argument(
      '-dataset_path', '--dataset_path', metavar='FOLDER',
      help='the folder of validation_non_onehot.npy and train_non_onehot.npy, '
      'usually $IMAGENET_HOME; where a file is not there, the labels beside '
      'the dumps are used')
  parser.add_argument(
      '-count_unfilled_rows', '--count_unfilled_rows', action='store_true',
      help='count rows that were never filled as answers of class 0; this '
      'gives the published figures from the published files, where the last '
      '80 validation and 143 training rows are such; without it they are left '
      'out')
  return parser.parse_args(argv)


def measure(softmax_dir, dataset_path):
  """Accuracy of every classifier in the folder over both splits.

  All files are opened and checked before the first is read through.

  Args:
    softmax_dir: the folder of the dumps.
    dataset_path: the folder of the labels, or None.

  Returns:
    A dict from split to a dict from classifier to `accuracy.DumpAccuracy`,
    both in the order of printing.

  Raises:
    UserError: a folder or file is missing or wrong.
  """
  classifier_ids = dumps.find_classifiers(softmax_dir)
  opened = []
  for split, _ in SPLIT_TITLES:
    labels = dumps.read_labels(dataset_path, softmax_dir, split)
    for k in classifier_ids:
      dump = dumps.ClassifierDump(softmax_dir, k, split)
      dump.check_labels(labels)
      opened.append((split, k, dump, labels.classes))
  measured = {split: {} for split, _ in SPLIT_TITLES}
  for split, k, dump, classes in opened:
    measured[split][k] = accuracy.dump_accuracy(dump, classes)
  return measured


def result_lines(measured, count_unfilled_rows):
  """The lines of stdout, in the published form.

  Args:
    measured: as `measure` returns it.
    count_unfilled_rows: whether rows never filled are counted.

  Returns:
    A list of str.
  """
  lines = []
  for k in measured['train']:
    lines.append('Classifier {}:'.format(k))
    for split, title in SPLIT_TITLES:
      top1, top5 = _chosen(measured[split][k], count_unfilled_rows)
      lines.append(' {} top-1:{:.4}'.format(title, top1))
      lines.append(' {} top-5:{:.4}'.format(title, top5))
  return lines


def unfilled_rows_note(split, accuracies, count_unfilled_rows):
  """One line on the rows of `split` that were never filled.

  Args:
    split: 'validation' or 'train'.
    accuracies: a dict from classifier to `accuracy.DumpAccuracy`.
    count_unfilled_rows: whether such rows are counted.

  Returns:
    str, or None where all rows of all classifiers were filled.
  """
  effects = []
  for k, measured in accuracies.items():
    if measured.num_unfilled:
      top1, top5 = _chosen(measured, count_unfilled_rows)
      other_top1, other_top5 = _chosen(measured, not count_unfilled_rows)
      effects.append(
          'classifier {}: {:,} of {:,} rows, top-1 {:.4} instead of {:.4}, '
          'top-5 {:.4} instead of {:.4}'.format(
              k, measured.num_unfilled, measured.num_images,
              top1, other_top1, top5, other_top5))
  if not effects:
    return None
  treatment = (
      'counted as answers of class 0, as published' if count_unfilled_rows
      else 'left out (-count_unfilled_rows counts them, as published)')
  return '{}: rows that were never filled are {}: {}'.format(
      split, treatment, '; '.join(effects))


def _chosen(measured, count_unfilled_rows):
  if count_unfilled_rows:
    return measured.top1_with_unfilled, measured.top5_with_unfilled
  return measured.top1, measured.top5


def main(argv=None):
  arguments = parse_arguments(argv)
  try:
    measured = measure(arguments.softmax_dir, arguments.dataset_path)
  except UserError as error:
    sys.exit('analyze_imagenet_labels.py: {}'.format(error))
  for split, accuracies in measured.items():
    note = unfilled_rows_note(
        split, accuracies, arguments.count_unfilled_rows)
    if note:
      print(note, file=sys.stderr)
  print('\n'.join(result_lines(measured, arguments.count_unfilled_rows)))


if __name__ == '__main__':
  main()
