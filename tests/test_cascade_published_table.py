"""What docs/table3.md says about the paper's Table 3, worked out again.

The accuracies and speedups in the columns "published" are the paper's. All
others follow from them, from the 80 rows that were never filled, and from both
counts of MACs.
"""

import itertools
import os
import re

import numpy as np
import pytest

from cascade import macs

PAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                    'docs', 'table3.md')
NUM_ROWS, NUM_UNFILLED = 50000, 80
PUBLISHED = np.cumsum(macs.PUBLISHED_MACS_FROM_EXIT_TO_EXIT)

# Metric, epsilon, accuracy and speedup of Table 3, and what follows from them.
ROW = re.compile(
    r'\| (top-[15]) \| (\d) % \| (0\.\d{4}) \| (0\.\d{4}) \| (\d\.\d{3}) \| '
    r'(\d\.\d{3}) \| (\d\.\d{3}) to (\d\.\d{3}) \|')


@pytest.fixture
def page():
  with open(PAGE, encoding='utf-8') as stream:
    return stream.read()


@pytest.fixture
def exact(tmp_path):
  return macs.network_cost('exact', str(tmp_path), [0, 1, 2], 1001)


def mean_macs(speedup):
  """Mean MACs of the images that exist, from a speedup of Table 3."""
  total = NUM_ROWS * macs.PUBLISHED_PLAIN_MACS / speedup
  return (total - NUM_UNFILLED * PUBLISHED[-1]) / (NUM_ROWS - NUM_UNFILLED)


def speedup_bounds(exact, speedup):
  """By trying shares of all exits, and the rounding of the published one."""
  found = []
  for rounded_off in (-.0005, 0, .0005):
    mean = mean_macs(speedup + rounded_off)
    first = np.linspace(0, 1, 4001)  # Share of exit 0.
    # The share of exit 1 follows from the mean.
    second = (PUBLISHED[2] - mean - first * (PUBLISHED[2] - PUBLISHED[0])) / (
        PUBLISHED[2] - PUBLISHED[1])
    shares = np.stack([first, second, 1 - first - second])
    shares = shares[:, (shares >= 0).all(axis=0)]
    found.append(exact.plain_macs / np.dot(exact.exit_macs, shares))
  found = np.concatenate(found)
  return found.min(), found.max()


def test_every_row_of_the_table(page, exact):
  rows = [ROW.fullmatch(line.rstrip()).groups() for line in page.splitlines()
          if re.match(r'\| top-[15] \|', line)]
  metrics, epsilons, accuracies, _, speedups, *_ = zip(*rows)
  assert list(zip(metrics, epsilons)) == list(itertools.product(
      ('top-1', 'top-5'), '012567'))
  assert ' '.join(accuracies) == (
      '0.7651 0.7651 0.7650 0.7590 0.7556 0.7519 '
      '0.9321 0.9284 0.9202 0.8854 0.8730 0.8613')
  assert ' '.join(speedups) == (
      '0.999 1.033 1.074 1.158 1.178 1.198 '
      '0.999 1.118 1.211 1.397 1.449 1.499')
  for _, _, *numbers in rows:
    accuracy, without, speedup, speedup_without, low, high = map(float, numbers)
    assert round((accuracy * NUM_ROWS - NUM_UNFILLED) /
                 (NUM_ROWS - NUM_UNFILLED), 4) == without
    assert round(macs.PUBLISHED_PLAIN_MACS / mean_macs(speedup),
                 3) == speedup_without
    # The bounds are rounded outwards.
    lowest, highest = speedup_bounds(exact, speedup)
    assert lowest - .0011 <= low <= lowest + 1e-3
    assert highest - 1e-3 <= high <= highest + .0011


def test_both_counts(page, exact):
  for published, counted in [
      (PUBLISHED[0], exact.exit_macs[0]),
      (PUBLISHED[1] - PUBLISHED[0], exact.exit_macs[1] - exact.exit_macs[0]),
      (PUBLISHED[2] - PUBLISHED[1], exact.exit_macs[2] - exact.exit_macs[1]),
      (PUBLISHED[2], exact.exit_macs[2]),
      (macs.PUBLISHED_PLAIN_MACS, exact.plain_macs)]:
    assert f'| {published:,} | {counted:,} |' in page
  assert (f'| {macs.PUBLISHED_PLAIN_MACS / PUBLISHED[2]:.4f} | '
          f'{exact.plain_macs / exact.exit_macs[2]:.4f} |') in page
