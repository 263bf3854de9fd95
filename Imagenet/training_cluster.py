"""Training by several machines in step, one of which, the chief, leads.

TensorFlow's collective operations do the arithmetic: every worker holds all
variables and takes the mean gradient of all replicas. What they leave open is
settled here: where training starts and ends, and what happens when a machine
does not come or is lost, for which the operations would wait for ever. The
chief posts what is to be trained next, and the others follow until it dismisses
them. The checkpoints are the chief's, and every worker starts from them, so
all machines need the same model folder, on a file system they share.
"""

import contextlib
import json
import os
import random
import socket
import sys
import threading
import time

from tf_compat import as_worker, multi_worker_strategy, tf

import resnet_checkpoint
from notice_board import ALL_DONE, FAILED, NO_CHECKPOINT, Notice, NoticeBoard
from user_error import UserError

TOKEN_FILE_NAME = 'cluster.json'

# How long to wait for what should come soon, in seconds.
ARRIVAL_SECONDS = 600  # The last machine, after the first.
FOLDER_SECONDS = 120   # What the chief wrote, through a network file system.
FAREWELL_SECONDS = 60   # The last answer of the others.
_CONNECT_SECONDS = 10
_POLL_SECONDS = 0.5
_WATCH_SECONDS = 5     # From one look at whether the others live to the next.
_MISSED_LOOKS = 3      # In a row, and a machine is given up.

_REMEDY = ('start the same command on every machine again; it goes on from the '
           'last checkpoint')


class TrainingCluster(object):
  """This process among the workers that train together.

  Attributes:
    strategy: for the RunConfig of the Estimator that trains.
    session_config: for the same.
  """

  def __init__(self, cluster, model_dir, num_gpus, all_reduce_alg,
               session_config):
    """Starts this worker's TensorFlow server.

    Args:
      cluster: a `cluster.Cluster` of several workers.
      model_dir: the folder of the checkpoints.
      num_gpus: replicas on this machine; 0 for one on the CPU.
      all_reduce_alg: see `tf_compat.multi_worker_strategy`.
      session_config: a ConfigProto.

    Raises:
      UserError: the port of this worker cannot be had.
    """
    self._cluster = cluster
    self._model_dir = model_dir
    self._serial = 0
    self._board = None
    self.session_config = tf.ConfigProto()
    self.session_config.CopyFrom(session_config)
    self.strategy = multi_worker_strategy(cluster, num_gpus, all_reduce_alg)
    self.strategy.configure(self.session_config)
    server_config = tf.ConfigProto()
    server_config.CopyFrom(self.session_config)
    del server_config.device_filters[:]  # The chief's board is for all.
    address = cluster.addresses[cluster.index]
    _check_port(address)
    try:
      # Serves until the process ends.
      tf.train.Server(tf.train.ClusterSpec(cluster.jobs), cluster.task_type,
                      cluster.task_index, config=server_config)
    except tf.errors.OpError as error:
      raise UserError('TF_CONFIG: no TensorFlow server at {} ({})'.format(
          address, error.message.split('\n')[0]))

  def train(self, estimator, input_fn, hooks, max_steps):
    """The chief's `estimator.train`: every other worker trains as it does.

    Args:
      estimator: made with `strategy` and `session_config`, and `model_dir`.
      input_fn: of this worker's share of the images.
      hooks: of this worker.
      max_steps: the step to train to.

    Raises:
      UserError: a worker does not come, has failed, or is lost.
    """
    self._post(self._checkpoint_step(), max_steps)
    if self._serial == 1:  # The others may be started later than the chief.
      self._wait_for_answers(ARRIVAL_SECONDS)
    with _watched(self._cluster.addresses[1:]):
      self._wait_for_answers(ARRIVAL_SECONDS)
      self._train(estimator, input_fn, hooks, max_steps)

  def dismiss(self):
    """Tells the others, on the chief, that all is done."""
    self._post(NO_CHECKPOINT, ALL_DONE)
    try:
      self._wait_for_answers(FAREWELL_SECONDS)
    except UserError as error:  # What was trained is complete all the same.
      tf.logging.warning('training is done; %s', error)
    tf.gfile.Remove(os.path.join(self._model_dir, TOKEN_FILE_NAME))

  def follow(self, estimator, input_fn, hooks=()):
    """Trains as the chief does, until the chief says that all is done.

    Args:
      estimator: as for `train`.
      input_fn: of this worker's share of the images.
      hooks: of this worker.

    Raises:
      UserError: the chief does not come or is lost, or has another model
        folder.
    """
    chief = self._cluster.addresses[0]
    _wait_for_port(chief, ARRIVAL_SECONDS)
    self._board = NoticeBoard(self._cluster)
    with _watched([chief]):
      notice = self._next_notice()
      try:
        while notice.end_step != ALL_DONE:
          self._check_folder(notice)
          self._board.answer(notice.serial)
          self._train(estimator, input_fn, hooks, notice.end_step)
          notice = self._next_notice()
        self._board.answer(notice.serial)
      except Exception:
        with contextlib.suppress(tf.errors.OpError):
          self._board.answer(FAILED)
        raise

  def _train(self, estimator, input_fn, hooks, max_steps):
    with as_worker(self.strategy, self._cluster, self.session_config):
      estimator.train(input_fn, hooks=list(hooks) + [_SingleSession()],
                      max_steps=max_steps)

  def _checkpoint_step(self):
    checkpoint = resnet_checkpoint.newest_checkpoint(self._model_dir)
    if checkpoint is None:
      return NO_CHECKPOINT
    return resnet_checkpoint.checkpoint_step(checkpoint)

  def _post(self, start_step, end_step):
    if self._board is None:
      self._board = NoticeBoard(self._cluster)
      self._board.clear()
      self._token = random.SystemRandom().getrandbits(62)
      _write_token(self._model_dir, self._token)
    self._serial += 1
    self._board.post(Notice(self._serial, self._token, start_step, end_step))
    self._board.answer(self._serial)

  def _wait_for_answers(self, seconds):
    """Waits until every worker has answered the last notice."""
    deadline = time.monotonic() + seconds
    told = False
    while True:
      answers = self._board.answers()
      waiting = [self._name(worker) for worker, answer in enumerate(answers)
                 if answer != self._serial]
      failed = [self._name(worker) for worker, answer in enumerate(answers)
                if answer == FAILED]
      if failed:
        raise UserError('TF_CONFIG: {} failed and says why; {}'.format(
            ', '.join(failed), _REMEDY))
      if not waiting:
        return
      if time.monotonic() > deadline:
        raise UserError('TF_CONFIG: no sign of {} after {} s; {}'.format(
            ', '.join(waiting), seconds, _REMEDY))
      if self._serial == 1 and not told:
        tf.logging.info('waiting for %s', ', '.join(waiting))
        told = True
      time.sleep(_POLL_SECONDS)

  def _name(self, index):
    return 'worker {} ({})'.format(index, self._cluster.addresses[index])

  def _next_notice(self):
    """Waits for the next notice, as long as the chief lives."""
    while True:
      try:
        notice = self._board.read()
      except tf.errors.OpError:
        raise UserError('TF_CONFIG: the chief, {}, is gone; {}'.format(
            self._cluster.addresses[0], _REMEDY))
      if notice is not None and notice.serial > self._serial:
        if self._serial == 0 and self._board.answers()[self._cluster.index]:
          raise UserError(
              'TF_CONFIG: the chief, {}, is still busy with an earlier run; '
              'stop it and {}'.format(self._cluster.addresses[0], _REMEDY))
        self._serial = notice.serial
        return notice
      time.sleep(_POLL_SECONDS)

  def _check_folder(self, notice):
    """Waits until the model folder shows what the chief has in it."""
    deadline = time.monotonic() + FOLDER_SECONDS
    while True:
      step = self._checkpoint_step()
      token = _read_token(self._model_dir)
      if (token, step) == (notice.token, notice.start_step):
        return
      if time.monotonic() > deadline:
        break
      time.sleep(_POLL_SECONDS)
    problem = 'is not the folder of the chief, {}'.format(
        self._cluster.addresses[0])
    if token == notice.token:
      problem = 'has the checkpoint of step {}, the chief that of {}'.format(
          step, notice.start_step)
    raise UserError('--model_dir {}: {}; all machines need the same one, on a '
                    'file system they share'.format(self._model_dir, problem))


class _SingleSession(tf.train.SessionRunHook):
  """Ends training where TensorFlow would make a second session.

  It does so when another worker is lost, and then waits for it; what the
  others made of the step in between, nobody knows.
  """

  def __init__(self):
    self._has_session = False

  def after_create_session(self, session, coord):
    if self._has_session:
      raise UserError('TF_CONFIG: the connection to another machine was '
                      'lost; ' + _REMEDY)
    self._has_session = True


def _write_token(model_dir, token):
  """Marks the model folder as that of this run."""
  tf.gfile.MakeDirs(model_dir)
  with tf.gfile.GFile(os.path.join(model_dir, TOKEN_FILE_NAME), 'w') as stream:
    stream.write(json.dumps({'token': token}))


def _read_token(model_dir):
  """The token in a folder; None if there is none, or not all of it yet."""
  try:
    with tf.gfile.GFile(os.path.join(model_dir, TOKEN_FILE_NAME)) as stream:
      return json.loads(stream.read())['token']
  except (tf.errors.OpError, ValueError):
    return None


def _check_port(address):
  """Raises UserError if another process listens on a port of this machine.

  TensorFlow's server shares a port with another one without a word.
  """
  port = int(address.rpartition(':')[2])
  with socket.socket() as probe:
    # Not held up by connections of an earlier run that are still closing.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind(('', port))
    except OSError as error:
      raise UserError('TF_CONFIG: port {} of this machine ({}): {}; is an '
                      'earlier run still at work?'.format(
                          port, address, error.strerror))


def _is_listening(address):
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection(
        (host.strip('[]'), int(port)), _CONNECT_SECONDS).close()
  except OSError:
    return False
  return True


def _wait_for_port(address, seconds):
  deadline = time.monotonic() + seconds
  told = False
  while not _is_listening(address):
    if time.monotonic() > deadline:
      raise UserError('TF_CONFIG: the chief, {}, cannot be reached; has the '
                      'same command been started there?'.format(address))
    if not told:
      tf.logging.info('waiting for the chief, %s', address)
      told = True
    time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _watched(addresses):
  """A context that ends the process when one of `addresses` is gone.

  The process, because the thread that trains waits inside of TensorFlow for
  an answer that will not come.
  """
  done = threading.Event()

  def watch():
    missed = {address: 0 for address in addresses}
    while not done.wait(_WATCH_SECONDS):
      for address in addresses:
        missed[address] = 0 if _is_listening(address) else missed[address] + 1
        if missed[address] == _MISSED_LOOKS and not done.is_set():
          sys.stdout.flush()
          sys.stderr.write('{}: TF_CONFIG: {} is gone; {}\n'.format(
              os.path.basename(sys.argv[0]), address, _REMEDY))
          sys.stderr.flush()
          os._exit(1)

  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
