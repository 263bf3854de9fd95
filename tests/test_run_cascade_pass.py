"""A pass over records and the speeds measured after it, with stand-ins."""

import time

import numpy as np
import pytest

import cascade_pass
from cascade_graph import CascadeOutput
from shared_terminal import UserError


class Session:
  """Classifies all images as 1, with 2 to 5 next, at clf0."""

  def run(self, images):
    top5 = np.tile(np.arange(1, 6, dtype=np.int32), (len(images), 1))
    return CascadeOutput(top5, np.ones(len(images), np.float32),
                         np.zeros(len(images), np.int32), None)

  def run_plain(self, images):
    return self.run(images).top5_classes + 1


def batches(num_batches, closed):
  """Batches of four images, whose pixels are the batch's number."""
  try:
    for number in range(num_batches):
      yield cascade_pass.RecordBatch(
          np.full([4, 8, 8, 3], number, np.float32),
          np.array([1, 2, 6, 9], np.int32), ['x'] * 4)
  finally:
    closed.append(True)


def test_pass(monkeypatch):
  monkeypatch.setattr(cascade_pass, '_KEPT_BYTES', 3 * 4 * 8 * 8 * 3 * 4)
  closed = []
  predictions = cascade_pass.Predictions(None, str)
  plain_hits, kept = cascade_pass.run(
      Session(), batches(9, closed), 28, predictions, compares=True)
  assert closed  # Before anything is timed.
  assert predictions.num_images == 28 and predictions.exits == {0: 28}
  assert list(predictions.hits) == [7, 14] and list(plain_hits) == [7, 14]
  assert [images[0, 0, 0, 0] for images in kept] == [0, 3, 6]


def test_fewer_records_than_counted():
  with pytest.raises(UserError, match='8 records where there were 28'):
    cascade_pass.run(Session(), batches(2, []), 28,
                     cascade_pass.Predictions(None, str), compares=False)


def test_rates():
  """Each network's own time, whatever a reader does meanwhile."""
  rates = cascade_pass.time_networks(
      [lambda images: time.sleep(.01), lambda images: time.sleep(.03)],
      [np.zeros([4, 1]), np.zeros([2, 1])])
  assert rates[0] == pytest.approx(300, rel=.3)
  assert rates[1] == pytest.approx(100, rel=.3)
  assert cascade_pass.reading_rate(batches(5, [])) > 0
