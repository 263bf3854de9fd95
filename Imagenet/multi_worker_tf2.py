"""TensorFlow 2.15's strategy for several machines; for `tf_compat.py` alone."""

from tensorflow.compat import v1 as tf
from tensorflow.python.distribute import collective_util
from tensorflow.python.distribute.collective_all_reduce_strategy import (
    CollectiveAllReduceExtended)


class MultiWorkerStrategy(tf.distribute.Strategy):
  """1.x's `MultiWorkerMirroredStrategy`, with other moving averages."""

  # What the class named above has, of which `_Extended` asks it.
  _collective_key_base = 0

  def __init__(self, cluster, num_gpus, all_reduce_alg):
    """
    Args:
      cluster: a `cluster.Cluster` of several workers.
      num_gpus: replicas on this machine; 0 for one on the CPU.
      all_reduce_alg: 'nccl'; anything else is TensorFlow's own choice.
    """
    implementation = collective_util.CommunicationImplementation
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.jobs), task_type=cluster.task_type,
        task_id=cluster.task_index, rpc_layer='grpc',
        num_accelerators={'GPU': num_gpus})
    super().__init__(_Extended(self, resolver, collective_util.Options(
        implementation=implementation.NCCL if all_reduce_alg == 'nccl'
        else implementation.AUTO)))


class _Extended(CollectiveAllReduceExtended):

  def _create_variable(self, next_creator, **kwargs):
    """Has moving averages take the mean of all replicas' changes, at once.

    In 2.15 each replica has its own, and to save their mean is a collective
    operation, in which the chief would wait for ever: the other workers do
    not save. The mean of the changes gives the same averages.
    """
    if kwargs.get('synchronization') == tf.VariableSynchronization.ON_READ:
      kwargs['synchronization'] = tf.VariableSynchronization.ON_WRITE
    return super()._create_variable(next_creator, **kwargs)
