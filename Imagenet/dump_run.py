"""Dumps the exits of a network: one pass over each split, all exits at once."""

import collections
import functools
import hashlib
import json
import os

import numpy as np

import cascade_record
from background_writer import BackgroundWriter
from exit_session import ExitSession
from imagenet_input import INTERLEAVED_SHARDS
from progress import Progress
from reading_order import shards_from_row
from softmax_dump import SplitDump

# What to dump. `make_model` makes the `resnet_model.Model` of a data format and
# a dtype; `dataset` is that of `ExitSession`, with the placeholders 'shards',
# 'num_skipped' and 'num_records'; `splits` are `Split`s; `network` is a
# `cascade_record.Network`; `folder` exists and `file_system` is that of it;
# `shard` is a `dump_names.DumpShard`, or None for all rows.
DumpJob = collections.namedtuple(
    'DumpJob', 'make_model classifier_ids dataset splits network folder '
    'file_system shard')

# A split: paths of its TFRecord shards, and how many records each has.
Split = collections.namedtuple('Split', 'name paths counts')


# A probability that is 0 in float32 has no logarithm.
_TINY = np.finfo(np.float32).tiny


def run(job, model, weights, replicas, session_config, batch_size, record):
  """Dumps every split; goes on where an interrupted run of the same left off.

  Args:
    job: a `DumpJob`.
    model: the `resnet_model.Model`.
    weights: `exit_weights.ExitWeights` of its classifiers.
    replicas: device names.
    session_config: a `tf.ConfigProto`.
    batch_size: of the job's dataset.
    record: of the run, a dict of 'flags' and 'versions'.

  Returns:
    An ordered dict from split to an ordered dict from classifier, such as
    'clf0', to its top-1 and top-5 accuracy of the rows dumped.

  Raises:
    UserError: the data changed, the disk is full, another run is at it.
  """
  origins = {
      k: dict(source._asdict(), flags=record['flags'],
              versions=record['versions'])
      for k, source in weights.sources.items()}
  cascade_record.check_shards(
      job.folder, job.network, origins, job.shard, job.file_system)
  results, dumps = collections.OrderedDict(), []
  with ExitSession(model, job.classifier_ids, job.dataset, weights, replicas,
                   session_config) as session:
    for split in job.splits:
      dump = _dump_split(
          job, split, session, batch_size, origins, {
              'network': list(job.network[:4]),
              'weights': {k: [source.trunk_sha256, source.head_sha256]
                          for k, source in weights.sources.items()},
              'dtype': model.dtype.name,
              'data_format': model.data_format,
              'replicas': list(replicas),
              'batch_size': batch_size,
              'records': _records_sha256(split),
              'versions': record['versions'],
          })
      dumps.append(dump)
      results[split.name] = collections.OrderedDict(
          ('clf{}'.format(k), dump.accuracy(k)) for k in job.classifier_ids)
  cascade_record.write(job.folder, job.network, origins, job.file_system)
  for dump in dumps:  # A pass killed before went on with the split it was at.
    dump.forget()
  return results


def _records_sha256(split):
  """Tells apart the records of two splits, without reading them."""
  return hashlib.sha256(json.dumps([
      (os.path.basename(path), os.path.getsize(path), count)
      for path, count in zip(split.paths, split.counts)]).encode()).hexdigest()


def _dump_split(job, split, session, batch_size, origins, identity):
  title = ' '.join('clf{}'.format(k) for k in job.classifier_ids)
  title += ' ' + split.name
  if job.shard:
    title += ' (shard {} of {})'.format(*job.shard)
  with SplitDump(job.folder, split.name, sum(split.counts),
                 job.network.num_classes, job.classifier_ids,
                 identity=identity, shard=job.shard, batch_size=batch_size,
                 keeps_journal=True, file_system=job.file_system) as dump:
    progress = Progress(title, dump.num_rows, 'images', done=dump.num_written)
    num_records = dump.num_rows - dump.num_written
    if num_records:
      paths, num_skipped = zip(*shards_from_row(
          split.paths, split.counts, dump.next_row, INTERLEAVED_SHARDS))
      if not job.shard:
        num_records = -1  # All, to find out if it is more than were counted.
      losses = _MeanLosses()
      with BackgroundWriter(dump) as writer:
        for labels, outputs in session.run(
            shards=paths, num_skipped=num_skipped, num_records=num_records):
          writer.append(labels, outputs)
          losses.add(labels, outputs)
          progress.update(dump.num_written, functools.partial(
              _description, dump, job.classifier_ids, losses))
    cascade_record.retract(
        job.folder, job.network, origins, job.shard, job.file_system)
  progress.finish()
  for k in job.classifier_ids:
    top1, top5 = dump.accuracy(k)
    if dump.num_rows:  # A shard may have none.
      print('clf{} {}: top-1 {:.4f}, top-5 {:.4f} of {:,} images'.format(
          k, split.name, top1, top5, dump.num_rows))
  return dump


class _MeanLosses(object):
  """Mean cross-entropy of each classifier over the rows of this process."""

  def __init__(self):
    self._sums, self._num_rows = collections.Counter(), 0

  def add(self, labels, outputs):
    """Takes a batch, as `SplitDump.append` does."""
    self._num_rows += len(labels)
    for k, (probabilities, _, _) in outputs.items():
      of_labels = probabilities[np.arange(len(labels)), labels]
      self._sums[k] -= np.log(np.maximum(of_labels, _TINY)).sum()

  def mean(self, classifier_id):
    return self._sums[classifier_id] / self._num_rows


def _description(dump, classifier_ids, losses):
  """Loss so far and accuracies of the rows written, for people."""
  return '; '.join('clf{} loss {:.4f}, top-1 {:.4f}, top-5 {:.4f}'.format(
      k, losses.mean(k), *dump.accuracy(k)) for k in classifier_ids)
