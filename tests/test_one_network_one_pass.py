"""The arithmetic of the benchmark of step 3, on costs that are given."""

import os
import sys

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, 'benchmarks'))

import one_network_one_pass
from one_network_one_pass import Cost


def _costs():
  """Seconds per image: published 4 and 2, 1 a pass; short 2 and 1.5."""
  costs = {'short: training clf0 and clf1': [Cost(2, 3, 20), Cost(2.5, 3, 10)],
           'short: dumping clf0, clf1 and clf2': [Cost(1.5, 1, 1)],
           'bare: computing clf0, clf1 and clf2': [Cost(1.2, .9, 1)]}
  for k, seconds in ((0, 4), (1, 2)):
    costs['published: training clf{}'.format(k)] = [
        Cost(seconds, 6, 10), Cost(seconds + 1, 7, 30)]
  for k in (0, 1, 2):
    for verb in ('predicting', 'evaluating'):
      costs['published: {} clf{}'.format(verb, k)] = [Cost(1, 2, 5)]
  return costs


def test_hours_of_step_3():
  hours = one_network_one_pass.step3_hours(_costs())
  images, validation, both = 1281167, 50000, 1331167
  for title, published, short in (
      ('training, 20 epochs', [20 * images * 6, 20 * images * 12],
       [20 * images * 2, 20 * images * 3]),
      ('evaluation after each', [20 * validation * 2, 20 * validation * 4],
       [20 * validation * 1.5, 20 * validation * 1]),
      ('dumps of both splits', [both * 6, both * 12], [both * 1.5, both])):
    np.testing.assert_allclose(
        hours.pop(title), np.array([published, short]) / 3600)
  assert not hours


def test_doing_things_in_turn_adds_times_and_not_memory():
  assert one_network_one_pass.in_turn([
      [Cost(1, 2, 30), Cost(4, 5, 10)], [Cost(7, 8, 20), Cost(1, 1, 40)]
  ]) == [Cost(8, 10, 30), Cost(5, 6, 40)]


@pytest.mark.parametrize('title, best, median', [
    ('published: training both', 1 / 6, 1 / 7),
    ('short: training clf0 and clf1', 1 / 2, 1 / 2.25)])
def test_a_row_has_the_best_and_the_median_rate(title, best, median):
  line, = [line for line in one_network_one_pass.table_lines(_costs())
           if line.startswith(title)]
  assert line[len(title):].split()[:2] == [
      '{:.2f}'.format(best), '{:.2f}'.format(median)]


def test_ratios_are_of_seconds_and_of_cpu_seconds():
  ratios = [line.split()[-4:] for line in
            one_network_one_pass.table_lines(_costs())
            if line.startswith(('  times as fast', '  rate of'))]
  # Of the ways to train, the ways to dump, and of the dump to the bare loop.
  assert ratios == [
      ['3.00', '3.11', '4.00', '4.33'], ['4.00', '4.00', '12.00', '12.00'],
      ['80.0%', '80.0%', '90.0%', '90.0%']]
