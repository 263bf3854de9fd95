"""What the workers of a cluster tell each other: a few numbers.

They are variables on the TensorFlow server of the chief, which every worker
can reach already. Reading is repeatable and waits for nothing, so that a
worker that waits for news can be interrupted, and loses none.
"""

import collections

from tf_compat import tf

# What the chief wants done. `serial`: 1, 2, ...; `token`: a number of this run;
# `start_step`: of the checkpoint to start from, `NO_CHECKPOINT` for none;
# `end_step`: to train to, `ALL_DONE` when there is nothing more to do.
Notice = collections.namedtuple('Notice', 'serial token start_step end_step')
NO_CHECKPOINT = -1
ALL_DONE = -1

# Instead of the serial of the notice that it acts on, from a worker that ended.
FAILED = -1


class NoticeBoard(object):
  """The chief's notice, and the answer of each worker."""

  def __init__(self, cluster):
    """Connects to the chief's server; waits for it if it is not there.

    Args:
      cluster: a `cluster.Cluster`.
    """
    chief_job = 'chief' if 'chief' in cluster.jobs else 'worker'
    chief_device = '/job:{}/task:0'.format(chief_job)
    self._index = cluster.index
    with tf.Graph().as_default() as graph, tf.device(chief_device + '/cpu:0'):
      self._notice = _numbers('notice', len(Notice._fields))
      self._answers = _numbers('answers', cluster.num_workers)
      self._input = tf.placeholder(tf.int64)
      self._set_notice = self._notice.assign(self._input)
      self._set_answer = tf.scatter_update(
          self._answers, self._index, self._input)
      self._initialize = tf.group(
          self._notice.initializer, self._answers.initializer)
    # Of the cluster, the chief's server alone: others may not be there yet.
    self._session = tf.Session(
        'grpc://' + cluster.addresses[0], graph,
        tf.ConfigProto(device_filters=[chief_device]))

  def clear(self):
    """Makes the board; the chief's first act."""
    self._session.run(self._initialize)

  def post(self, notice):
    """Replaces the notice."""
    self._session.run(self._set_notice.op, {self._input: notice})

  def read(self):
    """The notice; None while there is none."""
    try:
      notice = Notice(*map(int, self._session.run(self._notice)))
    except tf.errors.FailedPreconditionError:  # The board is not made yet.
      return None
    return notice if notice.serial else None

  def answer(self, value):
    """Sets this worker's answer: the serial of a notice, or `FAILED`."""
    self._session.run(self._set_answer.op, {self._input: value})

  def answers(self):
    """int64 [workers]; 0 of a worker that has not answered yet."""
    return self._session.run(self._answers)


def _numbers(name, size):
  """A variable that every session on the same server finds by its name."""
  return tf.get_variable(
      'notice_board/' + name, [size], tf.int64, tf.zeros_initializer(),
      trainable=False, use_resource=False)
