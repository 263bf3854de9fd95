"""cascade/accuracy.py against loops that follow the definition."""

import numpy as np
import pytest

from cascade import accuracy, dumps, extraction
from cascade.answers import classifier_answers
from dump_folders import best_classes, random_softmaxes
import dump_names
from user_error import UserError


def slow_best(row):
  """The classes of one softmax, best first, the lower class on a tie."""
  return sorted(range(len(row)), key=lambda c: (-float(row[c]), c))


def slow_hits(probabilities, labels):
  top1, top5 = [], []
  for row, label in zip(probabilities, labels):
    best = slow_best(row)
    top1.append(best[0] == label)
    top5.append(label in best[:5])
  return top1, top5


def opened(folder, probabilities=None, top5_classes=None):
  """A validation dump of classifier 0 with the files that are given."""
  if probabilities is not None:
    name, = dump_names.probabilities_file_names(0, 'validation')
    np.save(str(folder / name), probabilities)
  if top5_classes is not None:
    np.save(str(folder / dump_names.top5_classes_file_name(0, 'validation')),
            top5_classes)
  return dumps.ClassifierDump(str(folder), 0, 'validation')


def measure(dump, labels):
  if dump.top5_classes is None:
    top5 = extraction.read_top5(dump)
  else:
    top5 = extraction.Top5(dump.top5_classes, None)
  return accuracy.dump_accuracy(
      dump, classifier_answers(*top5, labels=labels))


def test_top5_file_and_probabilities_give_the_accuracy_of_a_slow_loop(
    tmp_path):
  probabilities = random_softmaxes(1, 60, 9)
  labels = np.random.RandomState(2).randint(0, 9, 60)
  top1, top5 = slow_hits(probabilities, labels)
  assert 0 < sum(top1) < sum(top5) < 60
  expected = (60, 0) + 2 * (sum(top1) / 60., sum(top5) / 60.)
  assert measure(
      opened(tmp_path, probabilities), labels) == pytest.approx(expected)
  assert measure(
      opened(tmp_path, probabilities, best_classes(probabilities)),
      labels) == pytest.approx(expected)


@pytest.mark.parametrize('source', ['probabilities', 'top5'])
def test_unfilled_rows_are_told_apart(tmp_path, source):
  probabilities = random_softmaxes(3, 10, 8)
  labels = best_classes(probabilities)[:, 2].astype(np.int64)
  labels[:3] = best_classes(probabilities)[:3, 0]
  # 3 of the 7 filled rows are right in top-1, 7 in top-5. Of the rows never
  # filled two have lost their labels too, and one has kept label 3: the
  # script's answer, class 0 five times, is right for two of them.
  probabilities[7:] = 0
  labels[7:] = [0, 3, 0]
  top5_classes = best_classes(probabilities)
  top5_classes[7:] = 0
  if source == 'top5':
    dump = opened(tmp_path, top5_classes=top5_classes)
  else:
    dump = opened(tmp_path, probabilities)
  assert measure(dump, labels) == pytest.approx(
      (10, 3, 3 / 7., 1.0, 5 / 10., 9 / 10.))


def test_label_0_alone_is_not_an_unfilled_row(tmp_path):
  probabilities = np.array([[.6, .4], [.3, .7]], np.float32)
  measured = measure(
      opened(tmp_path, probabilities), np.array([0, 0]))
  assert measured.num_unfilled == 0
  assert measured.top1 == 0.5


@pytest.mark.parametrize('published,without', [(0.7651, 0.7647),
                                               (0.6284, 0.6278),
                                               (0.4668, 0.4659)])
def test_published_accuracies_with_and_without_the_80_lost_rows(
    tmp_path, published, without):
  """The README's test top-1, and what the network has of 49,920 images."""
  labels = np.full(50000, 17)
  num_right = int(round(published * 50000)) - 80
  top5_classes = np.tile(np.array([5, 4, 3, 2, 1], np.int32), (50000, 1))
  top5_classes[:num_right, 0] = 17
  labels[-80:] = 0
  top5_classes[-80:] = 0
  measured = measure(
      opened(tmp_path, top5_classes=top5_classes), labels)
  assert measured.num_unfilled == 80
  assert round(measured.top1_with_unfilled, 4) == published
  assert round(measured.top1, 4) == without


def test_a_dump_without_one_filled_row_is_an_error(tmp_path):
  dump = opened(tmp_path, np.zeros((4, 3), np.float32))
  with pytest.raises(UserError, match='none of its 4 rows was filled'):
    measure(dump, np.zeros(4, int))


def test_a_dump_without_rows_is_an_error(tmp_path):
  dump = opened(tmp_path, np.zeros((0, 3), np.float32))
  with pytest.raises(UserError, match='none of its 0 rows'):
    measure(dump, np.zeros(0, int))
