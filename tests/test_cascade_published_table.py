"""What the README says of the paper's Table 3, worked out again.

The accuracies and speedups in the columns "published" are the paper's; all
others follow from them, from the 80 rows that were never filled, and from both
counts of MACs.
"""

import itertools
import os
import re

import numpy as np
import pytest

from cascade import macs

README = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'README.md')
NUM_ROWS, NUM_UNFILLED = 50000, 80
PUBLISHED = np.cumsum(macs.PUBLISHED_MACS_FROM_EXIT_TO_EXIT)

# Metric, epsilon, accuracy and speedup of Table 3 and the README's other
# columns.
ROW = re.compile(
    r'\| (top-[15]) \| (\d) % \| (0\.\d{4}) \| (0\.\d{4}) \| (\d\.\d{3}) \| '
    r'(\d\.\d{3}) \| (\d\.\d{3}) to (\d\.\d{3}) \|')


def table_rows():
  with open(README, encoding='utf-8') as readme:
    return [ROW.fullmatch(line.rstrip()).groups() for line in readme
            if re.match(r'\| top-[15] \|', line)]


def exact_cost(tmp_path):
  return macs.network_cost('exact', str(tmp_path), [0, 1, 2], 1001)


def mean_macs(speedup):
  """Mean MACs of the images that exist, from a speedup of Table 3."""
  total = NUM_ROWS * macs.PUBLISHED_PLAIN_MACS / speedup
  return (total - NUM_UNFILLED * PUBLISHED[-1]) / (NUM_ROWS - NUM_UNFILLED)


def test_all_rows_of_the_table_are_there():
  rows = table_rows()
  assert [row[:2] for row in rows] == list(itertools.product(
      ('top-1', 'top-5'), '012567'))
  assert [row[2] for row in rows] == [
      '0.7651', '0.7651', '0.7650', '0.7590', '0.7556', '0.7519',
      '0.9321', '0.9284', '0.9202', '0.8854', '0.8730', '0.8613']
  assert [row[4] for row in rows] == [
      '0.999', '1.033', '1.074', '1.158', '1.178', '1.198',
      '0.999', '1.118', '1.211', '1.397', '1.449', '1.499']


@pytest.mark.parametrize('row', table_rows(), ids='{0[0]}-{0[1]}'.format)
def test_columns_without_the_80_rows(row):
  accuracy, without, speedup, speedup_without = map(float, row[2:6])
  assert round((accuracy * NUM_ROWS - NUM_UNFILLED) /
               (NUM_ROWS - NUM_UNFILLED), 4) == without
  assert round(macs.PUBLISHED_PLAIN_MACS / mean_macs(speedup),
               3) == speedup_without


@pytest.mark.parametrize('row', table_rows(), ids='{0[0]}-{0[1]}'.format)
def test_bounds_of_the_exact_speedup(row, tmp_path):
  """By trying shares of all exits, and the rounding of the published one."""
  exact = exact_cost(tmp_path)
  speedup = float(row[4])
  found = []
  for rounded_off in (-.0005, 0, .0005):
    mean = mean_macs(speedup + rounded_off)
    first = np.linspace(0, 1, 4001)  # share of exit 0
    # The share of exit 1 follows from the mean.
    second = (PUBLISHED[2] - mean - first * (PUBLISHED[2] - PUBLISHED[0])) / (
        PUBLISHED[2] - PUBLISHED[1])
    last = 1 - first - second
    possible = (second >= 0) & (last >= 0)
    shares = np.stack([first, second, last])[:, possible]
    found.append(exact.plain_macs / np.dot(exact.exit_macs, shares))
  found = np.concatenate(found)
  assert float(row[6]) == pytest.approx(found.min(), abs=.0011)
  assert float(row[7]) == pytest.approx(found.max(), abs=.0011)
  assert float(row[6]) <= found.min() + 1e-3
  assert found.max() - 1e-3 <= float(row[7])


def test_readme_has_both_counts(tmp_path):
  exact = exact_cost(tmp_path)
  with open(README, encoding='utf-8') as readme:
    text = readme.read()
  for published, counted in [
      (PUBLISHED[0], exact.exit_macs[0]),
      (PUBLISHED[1] - PUBLISHED[0], exact.exit_macs[1] - exact.exit_macs[0]),
      (PUBLISHED[2] - PUBLISHED[1], exact.exit_macs[2] - exact.exit_macs[1]),
      (PUBLISHED[2], exact.exit_macs[2]),
      (macs.PUBLISHED_PLAIN_MACS, exact.plain_macs)]:
    assert '| {:,} | {:,} |'.format(published, counted) in text
  assert '| {:.4f} | {:.4f} |'.format(
      macs.PUBLISHED_PLAIN_MACS / PUBLISHED[2],
      exact.plain_macs / exact.exit_macs[2]) in text
