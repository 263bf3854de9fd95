"""A run that holds a lock, for tests of locks."""

import threading


class Holder(threading.Thread):
  """Holds a lock in a thread until `release`; the file is its own."""

  def __init__(self, context):
    super().__init__()
    self.is_held, self.may_end = threading.Event(), threading.Event()
    self._context = context
    self.start()

  def run(self):
    with self._context:
      self.is_held.set()
      self.may_end.wait(60)

  def release(self):
    self.may_end.set()
    self.join()
