"""cascade/analysis.py and cascade/evaluation.py: splits, points, areas."""

import numpy as np
import pytest

from cascade import analysis, evaluation
from cascade.answers import ClassifierAnswers
from cascade.macs import NetworkCost
from user_error import UserError

COST = NetworkCost('Tiny', 'a test', [10**9, 3 * 10**9], 2 * 10**9, False)


def unfilled(*rows):
  """Two classifiers' answers over six images; the first lacks `rows`."""
  is_unfilled = np.isin(np.arange(6), rows)
  return [ClassifierAnswers(None, None, None, is_unfilled),
          ClassifierAnswers(None, None, None, np.zeros(6, bool))]


def rows_of(division):
  images = np.arange(6)
  return (images[division.fit_rows].tolist(),
          images[division.judge_rows].tolist())


def test_the_papers_division():
  division = analysis.divide(
      {'train': unfilled(1, 5), 'validation': unfilled(0)}, 'train', False)
  assert (division.fit_split, division.judge_split) == ('train', 'validation')
  assert rows_of(division) == ([0, 2, 3, 4], [1, 2, 3, 4, 5])
  assert (division.num_fit, division.num_judged) == (4, 5)


@pytest.mark.parametrize('count,rows', [(False, [0, 1, 3, 4, 5]),
                                        (True, [0, 1, 2, 3, 4, 5])])
def test_halves_of_the_filled_validation_rows(count, rows):
  division = analysis.divide({'validation': unfilled(2)}, 'validation', count)
  fit, judge = rows_of(division)
  assert sorted(fit + judge) == rows
  assert fit == sorted(fit) and judge == sorted(judge)
  assert len(fit) == division.num_fit == len(rows) // 2
  assert len(judge) == division.num_judged
  assert rows_of(analysis.divide(
      {'validation': unfilled(2)}, 'validation', count)) == (fit, judge)


def test_too_few_rows():
  with pytest.raises(UserError, match='train: 0 rows were filled'):
    analysis.divide({'train': unfilled(*range(6)), 'validation': unfilled()},
                    'train', False)
  with pytest.raises(UserError, match='validation: 1 rows were filled'):
    analysis.divide({'validation': unfilled(0, 1, 2, 3, 4)}, 'validation',
                    False)


def point(gmacs, accuracy):
  return evaluation.Point('top1', 'cst', 0., (.5,), accuracy, accuracy,
                          accuracy, gmacs, 1., (.5, .5))


@pytest.mark.parametrize('points,area', [
    ([], .65),  # Straight from one classifier to the other.
    ([(2, .65)], .65),
    ([(2, .8)], (.65 + .8) / 2),
    ([(2.5, .8), (1.5, .6)], (.275 + .7 + .4) / 2),  # In any order.
    ([(1, .5), (3, .8)], .65),
])
def test_area_under_accuracy_against_macs(points, area):
  assert evaluation.area_under_curve(
      [point(*one) for one in points], [.5, .8], COST) == pytest.approx(area)
