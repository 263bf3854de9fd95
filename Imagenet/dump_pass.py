"""Dumps the softmaxes of all exits: one network, one pass over each split.

`Estimator.predict` would run on one device, restore from one checkpoint and
return classifier after classifier, so there is a session of our own.
"""

import os
import typing

import numpy as np

from tf_compat import tf

import shared_cascade_json
import dump_writer
import imagenet_input
import resnet_checkpoint
import resnet_model
from imagenet_errors import explain_read_error
from shared_dumps import DumpShard
from shared_terminal import Progress, UserError

_SMALLEST = np.finfo(np.float32).tiny  # A probability of 0 has no logarithm.


class Split(typing.NamedTuple):
  """The TFRecords of one split."""
  name: str     # 'validation' or 'train'.
  paths: list   # Of its shards, in name order.
  counts: list  # Records in each of them.


class DumpJob(typing.NamedTuple):
  """What to dump, and how its images are read."""
  folder: str                          # --softmax_dir
  classifier_ids: list                 # Ascending.
  splits: list                         # `Split`s, in the order of the passes.
  network: shared_cascade_json.Network
  shard: typing.Optional[DumpShard]    # Which rows; None for all.
  batch_size: int                      # Over all replicas.
  image_size: int                      # Height and width in pixels.
  num_private_threads: typing.Optional[int]  # Of the input; None to share.
  num_parallel_batches: int            # Decoded at the same time.


def prepare(job):
  """Makes and checks the dump folder, before any work.

  Raises:
    UserError: it is not a local folder, cannot be written or is too full; or
      it holds dumps of another network or of other records.
  """
  if '://' in job.folder:
    raise UserError(f'--softmax_dir {job.folder}: dumps are written to local '
                    'files; name a folder of this machine')
  _make_writer(job).check_folder()
  shared_cascade_json.recorded_origins(job.folder, job.network)


def run(job, model, weights, replicas, session_config, run):
  """Dumps every split, and records the dump in `cascade.json`.

  Continues an interrupted run of the same command. Waits for other runs that
  dump any of the classifiers.

  Args:
    weights: a `resnet_checkpoint.ExitWeights` of the job's classifiers.
    replicas: device names, such as ['/gpu:0', '/gpu:1'].
    run: a dict with the run's 'flags' and 'versions', for the record.

  Returns:
    A dict from split to a dict from classifier, such as 'clf0', to (top-1
    accuracy, top-5 accuracy) of the rows dumped, fractions.

  Raises:
    UserError: see `prepare`; or the data changed during the run, the disk is
      full, or another shard in the folder has other weights.
  """
  origins = {k: {**source._asdict(), 'flags': run['flags'],
                 'versions': run['versions']}
             for k, source in weights.sources.items()}
  # What decides about the bytes of the dumps.
  identity = {
      'network': shared_cascade_json.shared_fields(job.network),
      'weights': {k: [source.trunk_sha256, source.head_sha256]
                  for k, source in weights.sources.items()},
      'dtype': model.dtype.name,
      'data_format': model.data_format,
      'replicas': list(replicas),
      'batch_size': job.batch_size,
      # Names, sizes and counts tell one set of shards from another.
      'records': {
          split.name: [(os.path.basename(path), os.path.getsize(path), count)
                       for path, count in zip(split.paths, split.counts)]
          for split in job.splits},
      'versions': run['versions'],
  }
  accuracies = {}
  with dump_writer.locked_classifiers(
      job.folder, job.classifier_ids, job.shard):
    writer = _make_writer(job, identity)
    writer.check_folder()  # Again: training and waiting may have taken days.
    shared_cascade_json.check_shards(
        job.folder, job.network, origins, job.shard)
    with writer:
      with ExitSession(
          model, job.classifier_ids, lambda: _datasets(job, model, writer),
          weights, replicas, session_config) as session:
        for split in job.splits:
          accuracies[split.name] = _dump_split(
              job, split, session, writer, weights)
      with shared_cascade_json.recording(
          job.folder, job.network, origins, job.shard):
        writer.give_names()
  return accuracies


def _make_writer(job, identity=None):
  return dump_writer.DumpWriter(
      job.folder, {split.name: sum(split.counts) for split in job.splits},
      job.network.num_classes, job.classifier_ids, identity, job.shard,
      job.batch_size)


def _dump_split(job, split, session, writer, weights):
  """Runs the exits over the rows of a split that are still missing.

  Returns:
    A dict from classifier, such as 'clf0', to its top-1 and top-5 accuracy.
  """
  num_rows = len(writer.rows[split.name])
  num_before = writer.num_written[split.name]
  title = ' '.join(f'clf{k}' for k in job.classifier_ids) + ' ' + split.name
  if job.shard:
    title += f' (shard {job.shard.number} of {job.shard.total})'
  progress = Progress(title, num_rows, 'images', done=num_before)
  # Loss, top-1 and top-5, summed over the rows of this run.
  sums = {k: np.zeros(3) for k in job.classifier_ids}

  def describe():
    num_new = writer.num_written[split.name] - num_before
    return '; '.join(
        'clf{} loss {:.4f}, top-1 {:.4f}, top-5 {:.4f}'.format(
            k, *sums[k] / num_new) for k in job.classifier_ids)

  if num_before < num_rows:
    with explain_read_error({split.name: split.paths}):
      for labels, outputs in session.run(split.name):
        for k, (probabilities, top5_classes, _) in outputs.items():
          of_labels = probabilities[np.arange(len(labels)), labels]
          is_label = top5_classes == labels[:, np.newaxis]  # [batch, 5]
          sums[k] += (-np.log(np.maximum(of_labels, _SMALLEST)).sum(),
                      is_label[:, 0].sum(), is_label.sum())
          if np.isnan(sums[k][0]):
            raise UserError(
                f'{weights.sources[k].head_checkpoint}: clf{k} gives softmaxes '
                'that are not numbers; train it again with --clean and a '
                'smaller --base_lr, and look for --dtype fp16')
        writer.append(split.name, labels, outputs)
        progress.update(writer.num_written[split.name], describe)
  accuracies = writer.finish_split(split.name)
  progress.finish()
  if num_rows:  # A shard may have none.
    for k, (top1, top5) in accuracies.items():
      print(f'clf{k} {split.name}: top-1 {top1:.4f}, top-5 {top5:.4f} of '
            f'{num_rows:,} images')
  return {f'clf{k}': accuracies[k] for k in job.classifier_ids}


def _datasets(job, model, writer):
  """The missing rows of each split, for `ExitSession`."""
  return {
      split.name: imagenet_input.evaluation_dataset(
          split.paths, job.batch_size, model.dtype, job.image_size,
          job.network.num_classes, job.num_private_threads,
          job.num_parallel_batches, writer.next_row(split.name),
          # A whole dump reads to the end, to find out if there are more than
          # counted.
          writer.rows[split.name].stop - writer.next_row(split.name)
          if job.shard else None)
      for split in job.splits}


class ExitSession:
  """Runs all exits over a dataset, with one replica of the network per device.

  A context manager. Each batch is split among the replicas and joined again in
  its order.
  """

  def __init__(self, model, classifier_ids, make_datasets, weights, replicas,
               session_config):
    """
    Args:
      make_datasets: a function that returns a dict from a name to a dataset of
        (images [batch, height, width, 3], labels int [batch]), all alike.
      Others as for `run`.
    """
    with tf.Graph().as_default() as graph:
      # The input, splitting and joining are on the CPU, or every batch would
      # go through the memory of the first GPU.
      with tf.device('/cpu:0'):
        datasets = make_datasets()
        any_dataset = next(iter(datasets.values()))
        iterator = tf.data.Iterator.from_structure(
            any_dataset.output_types, any_dataset.output_shapes)
        self._starts = {name: iterator.make_initializer(dataset)
                        for name, dataset in datasets.items()}
        images, self._labels = iterator.get_next()
        parts = _split_batch(images, len(replicas))
      outputs, savers = [], []
      for index, (device, part) in enumerate(zip(replicas, parts)):
        scope = f'replica_{index}'
        with tf.device(device), tf.variable_scope(scope):
          logits = model.exit_logits(
              tf.cast(part, model.dtype), classifier_ids, trunk_training=False,
              head_training=False)
          # All but the logits.
          outputs.append({k: resnet_model.exit_output(logits[k])[1:]
                          for k in classifier_ids})
        savers += resnet_checkpoint.savers(weights.checkpoint_of, scope + '/')
      with tf.device('/cpu:0'):
        self._outputs = {
            k: tuple(
                tf.concat(values, axis=0)[:tf.shape(images)[0]]  # [batch, ...]
                for values in zip(*[output[k] for output in outputs]))
            for k in classifier_ids}
      self._session = tf.Session(graph=graph, config=session_config)
      graph.finalize()
    for saver, checkpoint in savers:
      saver.restore(self._session, checkpoint)

  def run(self, name):
    """Yields the outputs of each batch of the dataset of this name.

    Yields:
      (labels int [batch], a dict from classifier to (probabilities float32
      [batch, classes], top-5 classes int32 [batch, 5], top-5 probabilities
      float32 [batch, 5])), best first.
    """
    self._session.run(self._starts[name])
    while True:
      try:
        batch = self._session.run((self._labels, self._outputs))
      except tf.errors.OutOfRangeError:
        return
      yield batch

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._session.close()


def _split_batch(images, num_parts):
  """Parts of equal size; black images fill the last one up."""
  if num_parts == 1:
    return [images]
  missing = -tf.shape(images)[0] % num_parts
  filled = tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]])
  parts = tf.split(filled, num_parts)  # [ceil(batch / parts), height, width, 3]
  for part in parts:
    part.set_shape([None] + images.shape.as_list()[1:])
  return parts
