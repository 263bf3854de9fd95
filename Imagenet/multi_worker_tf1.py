"""TensorFlow 1.12's strategy for several machines; for `tf_compat.py` alone."""

from tensorflow.contrib.distribute import CollectiveAllReduceStrategy
from tensorflow.contrib.distribute import get_tower_context
from tensorflow.contrib.distribute.python import values
from tensorflow.python.ops.variable_scope import VariableAggregation


class MultiWorkerStrategy(CollectiveAllReduceStrategy):
  """Trains as MirroredStrategy would with all replicas on one machine.

  Where 1.12 itself does not, it is told of below.
  """

  def __init__(self, cluster, num_gpus):
    """
    Args:
      cluster: a `cluster.Cluster` of several workers.
      num_gpus: replicas on this machine; 0 for one on the CPU.
    """
    super(MultiWorkerStrategy, self).__init__(num_gpus)
    self.configure(None, cluster.jobs, cluster.task_type, cluster.task_index)

  @property
  def num_towers(self):
    """Replicas of all machines: the loss is divided by their number.

    1.12 divides by those of this machine, and then adds up the gradients of
    all (`Optimizer.compute_gradients`).
    """
    return len(self._devices) * self._num_workers

  def configure(self, session_config=None, *args, **kwargs):
    super(MultiWorkerStrategy, self).configure(session_config, *args, **kwargs)
    if session_config:
      # It packs gradients into one buffer, and fails ("Lower bound check fail
      # for input") where a gradient passes through a Reshape, as BN's of a
      # dense layer do.
      session_config.graph_options.rewrite_options.ClearField(
          'scoped_allocator_optimization')

  def _create_variable(self, *args, **kwargs):
    variable = super(MultiWorkerStrategy, self)._create_variable(
        *args, **kwargs)
    if isinstance(variable, values.TowerLocalVariable):
      variable.__class__ = _AveragedVariable
    return variable


class _AveragedVariable(values.TowerLocalVariable):
  """A moving average that changes by the mean of all replicas' changes.

  In 1.12 each replica has its own, and the mean of the chief's is saved. By
  way of the changes it is the mean of all.
  """

  def assign_sub(self, delta, *args, **kwargs):
    def mean(strategy, delta):
      if not isinstance(delta, values.DistributedValues):
        # Of a single replica, which 1.12 takes for the same on all machines.
        delta = values.PerDevice({strategy.worker_devices[0]: delta})
      return strategy.reduce(VariableAggregation.MEAN, delta, self)
    delta = get_tower_context().merge_call(mean, delta)
    return super(_AveragedVariable, self).assign_sub(delta, *args, **kwargs)
