"""Writes a dump in a thread of its own, while the next batch is computed."""

import contextlib
import queue
import threading

_SECONDS_BETWEEN_TRIES = 0.1


class BackgroundWriter(object):
  """Takes the batches of a `softmax_dump.SplitDump` and returns at once.

  Use as a context manager inside that of the dump:

    with SplitDump(...) as dump, BackgroundWriter(dump) as writer:
      writer.append(labels, outputs)

  Left normally, all batches are written when it is left. Left by an exception
  (Ctrl-C), the batch that is being written is brought to its end, so that the
  dump is as after any batch, and those behind it are dropped.
  """

  def __init__(self, dump, num_batches=4):
    """
    Args:
      dump: whose `append` is called, by the thread alone.
      num_batches: that may wait; `append` waits while there are as many.
    """
    self._dump = dump
    self._batches = queue.Queue(num_batches)
    self._error = None
    self._is_dropping = False
    # A process that is stopped in another way does not wait for it.
    self._thread = threading.Thread(target=self._write, daemon=True)

  def append(self, labels, outputs):
    """Hands over the next rows, which must not be changed afterwards.

    Args:
      labels, outputs: as for `SplitDump.append`.

    Raises:
      Whatever writing an earlier batch has raised.
    """
    self._raise_error()
    self._batches.put((labels, outputs))

  def __enter__(self):
    self._thread.start()
    return self

  def __exit__(self, exception_type, exception, traceback):
    if exception_type is not None:
      self._is_dropping = True
    try:
      self._batches.put(None)
      self._thread.join()
    except BaseException:  # Ctrl-C while the last batches are written.
      self._is_dropping = True
      self._finish()
      raise
    if exception_type is None:
      self._raise_error()

  def _finish(self):
    """Ends the thread, however often Ctrl-C is pressed: the dump must not be
    closed under it. One batch is all that is waited for."""
    while self._thread.is_alive():
      with contextlib.suppress(queue.Full, KeyboardInterrupt):
        self._batches.put_nowait(None)
      with contextlib.suppress(KeyboardInterrupt):
        self._thread.join(_SECONDS_BETWEEN_TRIES)

  def _raise_error(self):
    if self._error is not None:
      raise self._error

  def _write(self):
    # It goes on taking batches after an error, so that nobody waits forever.
    for labels, outputs in iter(self._batches.get, None):
      if self._error is None and not self._is_dropping:
        try:
          self._dump.append(labels, outputs)
        except BaseException as error:  # pylint: disable=broad-except
          self._error = error
