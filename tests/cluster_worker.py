"""A process that trains head 0 of a small network; a worker, by TF_CONFIG.

    python cluster_worker.py MODEL_DIR TRUNK STEP...

trains to each STEP in turn, from what is then in MODEL_DIR. Without TF_CONFIG
two replicas in this one process take the batches of two workers. Every worker
writes its own variables at the end of each training into MODEL_DIR.
"""

import os
import sys

import conftest  # pylint: disable=unused-import
import numpy as np

import imagenet_main
from cluster import take_from_environment
from small_network import IMAGE_SIZE, NUM_CLASSES
from tf_compat import mirrored_strategy, tf
from training_cluster import TrainingCluster

NUM_WORKERS = 2
BATCH_SIZE = 8  # Of each worker.
_NUM_BATCHES = 20  # Of each worker.


def batches(index):
  """Batches of a worker: images [batches, batch, ...], labels."""
  rng = np.random.RandomState(index)
  images = rng.normal(
      0, 60, [_NUM_BATCHES, BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3])
  labels = rng.randint(1, NUM_CLASSES, [_NUM_BATCHES, BATCH_SIZE])
  # The workers' images differ in kind, so that their statistics do.
  return (images + 20 * index).astype(np.float32), labels.astype(np.int32)


def dataset_of(indices):
  """Batches of the workers `indices` in turn."""
  images, labels = zip(*[batches(index) for index in indices])
  images, labels = np.stack(images, 1), np.stack(labels, 1)
  return tf.data.Dataset.from_tensor_slices((
      images.reshape((-1,) + images.shape[2:]),
      labels.reshape((-1,) + labels.shape[2:])))


class _Variables(tf.train.SessionRunHook):
  """Writes the variables of a worker at the end."""

  def __init__(self, folder, index):
    self._path = os.path.join(folder, 'worker{}.npz'.format(index))

  def end(self, session):
    values = session.run({
        op.name: session.graph.get_tensor_by_name(
            op.name + '/Read/ReadVariableOp:0')
        for op in session.graph.get_operations()
        if op.type == 'VarHandleOp' and op.name.startswith('resnet_model/') and
        'replica_' not in op.name})
    np.savez(self._path, **values)


def main(model_dir, trunk, *steps):
  cluster = take_from_environment(os.environ)
  alone = cluster.num_workers == 1
  if alone:
    devices = ['/cpu:{}'.format(i) for i in range(NUM_WORKERS)]
    strategy = mirrored_strategy(devices)
    # Else 1.12 gives the next batch to whichever replica asks first.
    strategy._prefetch_on_device = False  # pylint: disable=protected-access
    session_config = tf.ConfigProto(device_count={'CPU': NUM_WORKERS})
  else:
    workers = TrainingCluster(
        cluster, model_dir, num_gpus=0, all_reduce_alg=None,
        session_config=tf.ConfigProto())
    strategy, session_config = workers.strategy, workers.session_config
  config = tf.estimator.RunConfig(
      train_distribute=strategy, session_config=session_config,
      tf_random_seed=1, save_checkpoints_secs=600)
  estimator = tf.estimator.Estimator(
      imagenet_main.imagenet_model_fn, model_dir, config, params={
          'resnet_size': 18, 'resnet_version': 2, 'loss_scale': 1,
          'data_format': 'channels_last', 'dtype': tf.float32,
          'batch_size': NUM_WORKERS * BATCH_SIZE, 'fine_tune': True,
          'classifier_ids': [0], 'num_classes': NUM_CLASSES, 'base_lr': 1.,
          'initial_checkpoint': trunk, 'batch_norm_decay': 0.9})
  hooks = [_Variables(model_dir, cluster.index)]
  read = lambda: dataset_of(
      range(NUM_WORKERS) if alone else [cluster.index])
  if not cluster.is_chief:
    workers.follow(estimator, read, hooks)
    return
  for step in steps:
    if alone:
      estimator.train(read, hooks, max_steps=int(step))
    else:
      workers.train(estimator, read, hooks, int(step))
  if not alone:
    workers.dismiss()


if __name__ == '__main__':
  main(*sys.argv[1:])
