"""Top-1 and top-5 accuracy of one classifier over a split."""

import collections

from user_error import UserError

# Accuracies are fractions. `top1` and `top5` are those of the filled rows,
# `..._with_unfilled` those of all rows, counted as the published script did.
DumpAccuracy = collections.namedtuple(
    'DumpAccuracy', 'num_images num_unfilled top1 top5 '
    'top1_with_unfilled top5_with_unfilled')


def dump_accuracy(dump, answers):
  """Accuracy of one classifier over one split.

  Args:
    dump: `dumps.ClassifierDump`, for messages.
    answers: its `answers.ClassifierAnswers`.

  Returns:
    `DumpAccuracy`.

  Raises:
    UserError: no row was filled.
  """
  top1, top5 = answers.correct['top1'], answers.correct['top5']
  filled = ~answers.unfilled
  if not filled.any():
    raise UserError('{}: none of its {:,} rows was filled ({}); dump this '
                    'classifier again (step 3)'.format(
                        dump.name, dump.num_images, dump.path))
  return DumpAccuracy(
      dump.num_images, int(answers.unfilled.sum()),
      float(top1[filled].mean()), float(top5[filled].mean()),
      float(top1.mean()), float(top5.mean()))
