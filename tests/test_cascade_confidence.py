"""cascade/confidence.py against a slow count, image by image."""

import csv
import math

import numpy as np
import pytest

from cascade import confidence

NUM_BINS = 200


def slow_curve(confidences, correct):
  """Columns of a `ConfidenceCurve`, None where there is no image to count."""
  in_bin = [[] for _ in range(NUM_BINS)]
  from_bin_on = [[] for _ in range(NUM_BINS)]
  for c, hit in zip(confidences, correct):
    reached = [i for i in range(NUM_BINS) if c >= i / NUM_BINS]
    in_bin[reached[-1]].append(hit)
    for i in reached:
      from_bin_on[i].append(hit)
  accuracy = [sum(hits) / len(hits) if hits else None for hits in in_bin]
  alpha = [sum(hits) / len(hits) if hits else None for hits in from_bin_on]
  smoothed = []
  for i, value in enumerate(alpha):
    window = [a for a in alpha[max(i - 5, 0):i + 6] if a is not None]
    smoothed.append(None if value is None else sum(window) / len(window))
  return ([len(hits) for hits in in_bin],
          [len(hits) / len(correct) for hits in in_bin],
          accuracy, alpha, smoothed)


def as_array(column):
  return np.array([np.nan if value is None else value for value in column])


def assert_is_slow_curve(confidences, correct):
  curve = confidence.confidence_curve(
      np.array(confidences, np.float64), np.array(correct, bool))
  slow = slow_curve(confidences, correct)
  for name, column, slow_column in zip(curve._fields, curve, slow):
    assert column.shape == (NUM_BINS,)
    if name == 'alpha_smoothed':
      np.testing.assert_allclose(column, as_array(slow_column), rtol=1e-12)
    else:
      np.testing.assert_array_equal(column, as_array(slow_column), name)
  assert curve.num_images.dtype == np.int64
  return curve


@pytest.mark.parametrize('num_images', [1, 2, 17, 400])
@pytest.mark.parametrize('kind', ['continuous', 'on edges', 'saturated', 'low'])
def test_random_answers(kind, num_images):
  rng = np.random.RandomState(num_images)
  confidences = rng.rand(num_images)
  correct = rng.rand(num_images) < confidences
  if kind == 'on edges':
    confidences = np.round(confidences * NUM_BINS) / NUM_BINS
  elif kind == 'saturated':
    confidences = np.minimum(confidences * 2, 1)
  elif kind == 'low':
    confidences /= 4
  curve = assert_is_slow_curve(confidences.tolist(), correct.tolist())
  assert curve.num_images.sum() == num_images


def test_an_edge_belongs_to_the_bin_above_it():
  # 200 * .29 and others are below their whole number.
  edges = [i / NUM_BINS for i in range(NUM_BINS)]
  assert any(math.floor(NUM_BINS * edge) < i for i, edge in enumerate(edges))
  below = np.nextafter(edges[1:], 0).tolist()
  curve = assert_is_slow_curve(edges, [True] * NUM_BINS)
  np.testing.assert_array_equal(curve.num_images, 1)
  curve = assert_is_slow_curve(below, [True] * (NUM_BINS - 1))
  np.testing.assert_array_equal(curve.num_images, [1] * (NUM_BINS - 1) + [0])


def test_1_and_rounding_above_it_belong_to_the_last_bin():
  curve = assert_is_slow_curve([1., 1 + 2**-23, .995], [True, False, True])
  assert curve.num_images[-1] == 3
  assert curve.accuracy_in_bin[-1] == curve.alpha[-1] == 2 / 3


def test_alpha_ends_at_the_largest_confidence():
  curve = assert_is_slow_curve([.1, .5], [False, True])
  # Bin 100 begins at .5.
  for alpha in (curve.alpha, curve.alpha_smoothed):
    assert np.isnan(alpha).tolist() == [False] * 101 + [True] * 99
  assert curve.alpha[0] == .5
  assert curve.alpha[100] == 1
  assert np.isnan(curve.accuracy_in_bin).sum() == 198


def test_alpha_is_averaged_over_11_bins():
  # alpha is 1/2 up to bin 20, which begins at .1, and 1 from there on.
  curve = assert_is_slow_curve([.1025, 1.], [False, True])
  assert curve.alpha[20] == .5 and curve.alpha[21] == 1
  np.testing.assert_allclose(
      curve.alpha_smoothed[14:28],
      [.5, .5] + [(11 + more) / 22 for more in range(1, 11)] + [1, 1])


def test_no_images():
  curve = confidence.confidence_curve(np.zeros(0), np.zeros(0, bool))
  assert not curve.num_images.any()
  for column in curve[1:]:
    assert np.isnan(column).all()


def test_csv(tmp_path):
  rng = np.random.RandomState(0)
  curves = {
      metric: {k: confidence.confidence_curve(rng.rand(50), rng.rand(50) < .7)
               for k in (0, 2)}
      for metric in ('top1', 'top5')}
  path = tmp_path / 'confidence.csv'
  confidence.write_csv(str(path), curves)
  assert b'\r' not in path.read_bytes()
  header, *rows = csv.reader(path.read_text().splitlines())
  assert header == [
      'metric', 'classifier', 'confidence_low', 'confidence_high',
      'num_images', 'share', 'accuracy_in_bin', 'alpha', 'alpha_smoothed']
  assert len(rows) == 2 * 2 * NUM_BINS
  for number, row in enumerate(rows):
    metric = ('top1', 'top5')[number // (2 * NUM_BINS)]
    k = (0, 2)[number // NUM_BINS % 2]
    i = number % NUM_BINS
    assert row[:2] == [metric, str(k)]
    assert [float(edge) for edge in row[2:4]] == [
        i / NUM_BINS, (i + 1) / NUM_BINS]
    assert row[4] == str(curves[metric][k].num_images[i])
    # Full precision, and nothing for NaN.
    for text, column in zip(row[5:], curves[metric][k][1:]):
      assert text == ('' if np.isnan(column[i]) else repr(float(column[i])))
  assert any('' in row for row in rows)
