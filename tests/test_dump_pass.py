"""Imagenet/dump_pass.py: all exits in one pass, interrupted, shared, locked."""

import functools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import shared_dumps
import dump_pass
import dump_writer
import imagenet_data
import numpy_resnet
import rule_weights
import shared_dataset
import tiny_records
from shared_dumps import DumpShard
from dump_pass import DumpJob, ExitSession, Split
from shared_cascade_json import ExitCost, Network
from imagenet_main import ImagenetModel
from resnet_checkpoint import ExitSource, ExitWeights
from small_network import IMAGE_SIZE, NUM_CLASSES
from tf_compat import tf
from tiny_checkpoints import write_checkpoint
from shared_terminal import UserError

SPLIT_SHARDS = {'train': [6, 5, 4, 0, 3], 'validation': [4, 6, 1]}
BATCH_SIZE = 4  # Five batches of train, three of validation.
CLASSIFIERS = [0, 2]
NETWORK = Network(2, 18, IMAGE_SIZE, NUM_CLASSES, [
    ExitCost(k, 100 * k + 100, 10, 5, 1) for k in (0, 1, 2)])
VALUES = rule_weights.rule_variables(
    rule_weights.cascade_variables(18, 2, NUM_CLASSES))
RUN = {'flags': {'batch_size': BATCH_SIZE}, 'versions': {'numpy': '1'}}


def weights_of(checkpoint):
  return ExitWeights(dict.fromkeys(VALUES, checkpoint), {
      k: ExitSource(checkpoint, 'trunk of ' + checkpoint, checkpoint,
                    'head of ' + checkpoint) for k in CLASSIFIERS})


def make_model():
  return ImagenetModel(18, 'channels_last', NUM_CLASSES, 2)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A folder with records, and two checkpoints of different weights."""
  folder = tmp_path_factory.mktemp('trained')
  tiny_records.make_data_set(
      str(folder / 'tf_records'), SPLIT_SHARDS, NUM_CLASSES)
  write_checkpoint(folder / 'first', VALUES)
  write_checkpoint(folder / 'second', {
      name: -value if name.endswith('/bias') else value
      for name, value in VALUES.items()})
  return folder


def make_job(trained, folder, shard=None):
  data_dir = str(trained / 'tf_records')
  info = shared_dataset.read_dataset(data_dir)
  splits = [Split(name, *imagenet_data.count_split(data_dir, name, info))
            for name in shared_dumps.SPLITS]
  return DumpJob(
      folder=str(folder), classifier_ids=CLASSIFIERS, splits=splits,
      network=NETWORK, shard=shard, batch_size=BATCH_SIZE,
      image_size=IMAGE_SIZE, num_private_threads=None, num_parallel_batches=1)


def dump(trained, folder, shard=None, checkpoint='first'):
  job = make_job(trained, folder, shard)
  dump_pass.prepare(job)
  return dump_pass.run(
      job, make_model(), weights_of(str(trained / checkpoint / 'model.ckpt')),
      ['/cpu:0'], tf.ConfigProto(), RUN)


def contents(folder):
  """All dumps and what else is there, but for the record and locks."""
  return {path.name: path.read_bytes() for path in folder.iterdir()
          if path.name != 'cascade.json' and '.lock' not in path.name}


def recorded(folder):
  """Checkpoints of the record by classifier."""
  exits = json.loads((folder / 'cascade.json').read_text())['exits']
  return {entry['classifier_id']: entry['origin']['head_checkpoint']
          for entry in exits}


@pytest.fixture(scope='module')
def whole(trained):
  """The folder of an undisturbed pass."""
  dump(trained, trained / 'whole')
  return trained / 'whole'


# ---- Interrupted -------------------------------------------------------------

def run_until_killed(trained, folder):
  """For a process of its own: ends with SIGKILL in the middle of train."""
  dump_writer.open = functools.partial(open, buffering=2)  # Or none is there.
  append = dump_writer.DumpWriter.append

  def killed_append(self, split, *batch):
    if split == 'train' and self.num_written[split] == 2 * BATCH_SIZE:
      os.kill(os.getpid(), signal.SIGKILL)
    append(self, split, *batch)

  dump_writer.DumpWriter.append = killed_append
  dump(trained, folder)


def test_a_pass_that_is_killed(trained, whole, tmp_path, monkeypatch, capsys):
  code = ('import conftest, pathlib, test_dump_pass\n'
          'test_dump_pass.run_until_killed(pathlib.Path({!r}), {!r})'.format(
              str(trained), str(tmp_path)))
  finished = subprocess.run(
      [sys.executable, '-c', code], stderr=subprocess.PIPE,
      cwd=os.path.dirname(os.path.abspath(__file__)))
  assert finished.returncode == -signal.SIGKILL, finished.stderr
  appended = []
  append = dump_writer.DumpWriter.append

  def noted_append(self, split, labels, outputs):
    appended.append((split, len(labels)))
    append(self, split, labels, outputs)

  monkeypatch.setattr(dump_writer.DumpWriter, 'append', noted_append)
  dump(trained, tmp_path)
  # Not validation again, which was finished.
  assert appended == [('train', 4), ('train', 4), ('train', 2)]
  assert contents(tmp_path) == contents(whole)
  assert 'clf2 validation: top-1' in capsys.readouterr().out


def test_shards_are_the_whole_pass(trained, whole, tmp_path):
  """The same batches, and so the same bytes."""
  shards = [DumpShard(1, 2), DumpShard(2, 2)]
  for shard in reversed(shards):
    dump(trained, tmp_path, shard)
  assert len(contents(tmp_path)) == 2 * len(contents(whole))
  for name in contents(whole):
    joined = np.concatenate([
        np.load(str(tmp_path / shared_dumps.shard_file_name(name, shard)))
        for shard in shards])
    assert (joined == np.load(str(whole / name))).all()
  assert set(recorded(tmp_path)) == set(CLASSIFIERS)
  with pytest.raises(UserError, match='a shard of other weights than --dump_s'):
    dump(trained, tmp_path, shards[0], 'second')


def test_weights_that_are_not_numbers(trained, tmp_path):
  """Softmaxes of NaN were dumped, and recorded."""
  write_checkpoint(trained / 'diverged', {
      name: value * np.float32('nan') if 'cascaded0' in name else value
      for name, value in VALUES.items()})
  with pytest.raises(UserError, match=f'{trained}/diverged.*: clf0 .*--clean'):
    dump(trained, tmp_path, checkpoint='diverged')
  assert not (tmp_path / 'cascade.json').exists()


# ---- The session -------------------------------------------------------------

IMAGES = (rule_weights.rule_images(7, IMAGE_SIZE, IMAGE_SIZE) -
          np.array(numpy_resnet.CHANNEL_MEANS)).astype(np.float32)
LABELS = np.array([3, 0, 10, 7, 1, 1, 2], np.int32)


@pytest.fixture(scope='module')
def expected():
  return numpy_resnet.softmaxes(VALUES, IMAGES, 18, 2)


def open_session(trained, num_replicas, batch_size):
  return ExitSession(
      make_model(), [0, 1, 2], lambda: {
          'all': tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(
              batch_size)}, weights_of(str(trained / 'first' / 'model.ckpt')),
      [f'/cpu:{i}' for i in range(num_replicas)],
      tf.ConfigProto(device_count={'CPU': num_replicas}))


def rows_of(session):
  """Sizes of the batches, labels, and outputs by classifier of all rows."""
  batches = list(session.run('all'))
  return ([len(labels) for labels, _ in batches],
          np.concatenate([labels for labels, _ in batches]),
          {k: [np.concatenate([outputs[k][i] for _, outputs in batches])
               for i in range(3)] for k in batches[0][1]})


@pytest.mark.parametrize('num_replicas, batch_size, sizes', [
    (1, 7, [7]),
    (2, 5, [5, 2]),   # A batch does not divide.
    (3, 6, [6, 1])])  # The last batch has fewer images than replicas.
def test_any_number_of_replicas_gives_the_same_rows(
    trained, expected, num_replicas, batch_size, sizes):
  with open_session(trained, num_replicas, batch_size) as session:
    found_sizes, labels, outputs = rows_of(session)
    graph = session._session.graph
    convolutions = {(op.name.split('/')[0], op.device[-5:])
                    for op in graph.get_operations() if op.type == 'Conv2D'}
    shared = {op.device[-5:] for op in graph.get_operations()
              if op.type in ('Split', 'ConcatV2') and
              not op.name.startswith('replica_')}
  assert found_sizes == sizes
  assert labels.tolist() == LABELS.tolist()
  for k, (probabilities, top5_classes, top5_probabilities) in outputs.items():
    assert probabilities.dtype == top5_probabilities.dtype == np.float32
    assert top5_classes.dtype == np.int32
    np.testing.assert_allclose(probabilities, expected[k], atol=1e-5)
    best = np.argsort(-probabilities, axis=1, kind='mergesort')[:, :5]
    assert (top5_classes == best).all()
    assert (top5_probabilities == np.take_along_axis(
        probabilities, best, 1)).all()
  # Rows worth comparing: any two are unlike.
  distances = np.abs(expected[2][:, None] - expected[2]).max(axis=2)
  assert (distances + np.eye(len(LABELS))).min() > 1e-3
  assert convolutions == {
      (f'replica_{i}', f'CPU:{i}') for i in range(num_replicas)}
  assert shared <= {'CPU:0'}
