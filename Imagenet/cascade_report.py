"""What a run of the cascade says of itself: run.json and lines to read."""

import json
import os

import numpy as np

import devices as devices_lib
import shared_cascade_json
from shared_files import explain_error, write_atomically

RUN_JSON = 'run.json'


def origin(cascade):
  """Thresholds, and what the analysis expects of them."""
  choice = cascade.choice
  return {
      'classifiers': cascade.classifier_ids,
      'metric': cascade.metric,
      'thresholds': _for_json(cascade.thresholds.tolist()),
      'choice': choice and f'{choice.method}:{choice.setting!r}',
      'expected': choice and {
          column: _for_json(value) for column, value in choice.row.items()},
  }


def _for_json(value):
  """A value, or a list of them, without the numbers that JSON does not have.

  NaN is null, and infinity "inf".
  """
  if isinstance(value, list):
    return [_for_json(item) for item in value]
  if value != value:
    return None
  return 'inf' if value == float('inf') else value


def run_record(cascade, predictions, batch_size, devices):
  """What a run is and measured, a dict for `write`; None is not measured.

  Args:
    cascade: a `cascade_graph.Cascade`.
    predictions: `cascade_pass.Predictions`.
    batch_size: images.
    devices: `devices.Devices`.
  """
  num_images = predictions.num_images
  record = dict.fromkeys([
      'num_images', 'top1', 'top5', 'plain_top1', 'plain_top5', 'exit_shares',
      'thresholds', 'metric', 'batch_size', 'gmacs_per_image',
      'speedup_by_macs', 'speedup_by_stage_times', 'speedup_measured',
      'images_per_second', 'plain_images_per_second',
      'images_per_second_reading'])
  record.update(
      origin(cascade), num_images=num_images, batch_size=batch_size,
      device=devices_lib.describe(devices), versions=devices_lib.versions())
  if num_images:
    shares = [predictions.exits[k] / num_images for k in cascade.classifier_ids]
    costs = [cost for cost in cascade.network.exits
             if cost.classifier_id in cascade.classifier_ids]
    mean_macs = np.dot(shares, shared_cascade_json.cumulative_costs(
        [cost.trunk_macs for cost in costs],
        [cost.head_macs for cost in costs]))
    record.update(
        exit_shares=shares, gmacs_per_image=mean_macs / 1e9,
        speedup_by_macs=(
            costs[-1].trunk_macs + costs[-1].head_macs) / mean_macs)
  return record


def summary_lines(record, classifier_ids):
  """What a person wants to know of a pass over records."""
  lines = [
      '{:,} images, left at {}'.format(record['num_images'], ', '.join(
          f'clf{k} {100 * share:.1f} %'
          for k, share in zip(classifier_ids, record['exit_shares']))),
      f'cascade: top-1 {record["top1"]:.4f}, top-5 {record["top5"]:.4f}']
  if record['plain_top1'] is None:
    return lines + [f'speedup by MACs: {record["speedup_by_macs"]:.3f}']
  lines += [
      f'plain network: top-1 {record["plain_top1"]:.4f}, top-5 '
      f'{record["plain_top5"]:.4f}',
      f'speedup: measured {record["speedup_measured"]:.3f} '
      f'({record["images_per_second"]:.4g} against '
      f'{record["plain_images_per_second"]:.4g} images/s), promised by stage '
      f'times {record["speedup_by_stage_times"]:.3f}, by MACs '
      f'{record["speedup_by_macs"]:.3f}',
      'reading and decoding alone: '
      f'{record["images_per_second_reading"]:.4g} images/s']
  return lines


def write(output_dir, record):
  """Writes run.json; without a folder, nothing."""
  if output_dir:
    path = os.path.join(output_dir, RUN_JSON)
    with explain_error(path, 'name another --output_dir'):
      write_atomically(path, (json.dumps(record, indent=2) + '\n').encode())
