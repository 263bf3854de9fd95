"""Top-1 and top-5 accuracy of a classifier's dump."""

import collections

import numpy as np

from cascade import dumps
from user_error import UserError

# Accuracies are fractions. `top1` and `top5` are those of the filled rows,
# `..._with_unfilled` those of all rows, counted as the published script did.
DumpAccuracy = collections.namedtuple(
    'DumpAccuracy', 'num_images num_unfilled top1 top5 '
    'top1_with_unfilled top5_with_unfilled')


def label_ranks(probabilities, labels):
  """Places of the labels among the classes, by falling softmax.

  Among equal softmaxes the lower class comes first, as in `tf.nn.top_k` and
  `numpy.argmax`.

  Args:
    probabilities: float [rows, classes].
    labels: int [rows], each below `classes`.

  Returns:
    int64 [rows]; 0 where the label is the top-1 class, below 5 where it is
    among the top-5.
  """
  num_rows, num_classes = probabilities.shape
  labels = labels[:, np.newaxis]  # [rows, 1]
  of_label = probabilities[np.arange(num_rows)[:, np.newaxis], labels]
  is_before = probabilities > of_label  # [rows, classes]
  is_before |= (probabilities == of_label) & (np.arange(num_classes) < labels)
  return np.count_nonzero(is_before, axis=1)


def hits_from_probabilities(probabilities, labels):
  """Which rows are right in top-1 and in top-5.

  Args:
    probabilities: float [rows, classes].
    labels: int [rows], each below `classes`.

  Returns:
    Two of bool [rows].
  """
  ranks = label_ranks(probabilities, labels)
  return ranks == 0, ranks < 5


def hits_from_top5_classes(top5_classes, labels):
  """Which rows are right in top-1 and in top-5.

  Args:
    top5_classes: int [rows, 1 to 5], best first.
    labels: int [rows].

  Returns:
    Two of bool [rows].
  """
  is_label = top5_classes == labels[:, np.newaxis]  # [rows, 1 to 5]
  return is_label[:, 0], is_label.any(axis=1)


def dump_accuracy(dump, labels):
  """Accuracy of one classifier over one split.

  It comes from the top-5 file where there is one, and otherwise from the
  softmaxes, in blocks.

  Rows that were never filled are told apart. The published script took them
  for an answer of class 0, so that they are right where the label is 0, as it
  is wherever the record was lost for the labels too.

  Args:
    dump: `dumps.ClassifierDump`.
    labels: int64 [images], which `dump.check_labels` has accepted.

  Returns:
    `DumpAccuracy`.

  Raises:
    UserError: no row was filled, or the softmaxes hold NaN.
  """
  if dump.top5_classes is not None:
    top1, top5 = hits_from_top5_classes(dump.top5_classes, labels)
    unfilled = dumps.unfilled_top5(dump.top5_classes)
  else:
    top1, top5, unfilled = np.zeros((3, dump.num_images), bool)
    for rows, probabilities in dump.blocks():
      top1[rows], top5[rows] = hits_from_probabilities(
          probabilities, labels[rows])
      unfilled[rows] = dumps.unfilled_softmaxes(probabilities)
    # Five equal softmaxes name classes 0 to 4; the script named class 0.
    top5[unfilled] = top1[unfilled]
  filled = ~unfilled
  if not filled.any():
    raise UserError('{}: none of its {:,} rows was filled ({}); dump this '
                    'classifier again (step 3)'.format(
                        dump.name, dump.num_images, dump.path))
  return DumpAccuracy(
      dump.num_images, int(unfilled.sum()),
      float(top1[filled].mean()), float(top5[filled].mean()),
      float(top1.mean()), float(top5.mean()))
