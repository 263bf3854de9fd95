"""What a build has done so far, kept so that any stop can be gone on from.

A file of one JSON object per line: first what is being built, then one line
for each shard that has got its final name, written durably. Its lock is held
as long as a process of the build is alive.
"""

import errno
import fcntl
import json
import os
import time

from tools_command_line import InputError

JOURNAL_FILE_NAME = '.build_journal.jsonl'

# The workers of a build that was killed end within this time.
_LOCK_SECONDS = 10.
_LOCK_RETRY_SECONDS = 0.05


class BuildJournal(object):
  """The journal of one output folder, locked; a context manager.

  Attributes:
    build: the dict that `begin` was given, by this run or an earlier one; None
      if there was none.
    entries: a dict from the file names of shards to what `add` was given.
  """

  def __init__(self, output_dir):
    """
    Args:
      output_dir: an existing folder.

    Raises:
      InputError: another run is at work in this folder, or the file system
        has no locks.
      OSError: the journal cannot be read or written.
    """
    self.build = None
    self.entries = {}
    self._path = os.path.join(output_dir, JOURNAL_FILE_NAME)
    self._file = None
    self._output_dir = output_dir

  def __enter__(self):
    self._file = self._opened_and_locked()
    self._read()
    return self

  def __exit__(self, exception_type, exception, traceback):
    if self.build is None:  # Nothing came of it.
      os.remove(self._path)
    self._file.close()

  def _opened_and_locked(self):
    give_up_at = time.monotonic() + _LOCK_SECONDS
    while True:
      journal = open(self._path, 'a+b')
      try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A run that came to nothing may have removed it before the lock.
        if os.path.exists(self._path) and os.path.samestat(
            os.fstat(journal.fileno()), os.stat(self._path)):
          return journal
      except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
          journal.close()
          raise InputError(
              '{}: cannot be locked ({}); name an --output_dir on another disk'
              .format(self._path, error.strerror))
      journal.close()
      if time.monotonic() > give_up_at:
        raise InputError(
            '{}: another run is at work here; wait for its end, or name '
            'another --output_dir'.format(self._output_dir))
      time.sleep(_LOCK_RETRY_SECONDS)

  def _read(self):
    self._file.seek(0)
    whole = 0
    for line in self._file:
      try:
        content = json.loads(line.decode())
      except ValueError:
        break
      if not line.endswith(b'\n'):
        break
      if self.build is None:
        self.build = content
      else:
        self.entries[content['shard']] = content
      whole += len(line)
    if whole < os.fstat(self._file.fileno()).st_size:
      # A line that a crash cut short, and what follows it, never was.
      self._file.truncate(whole)

  def check(self, build):
    """Compares with what an earlier run has stated, if there was one.

    Args:
      build: a dict of what JSON can express: all that `begin` will be given, or
        as much of it as is known.

    Raises:
      InputError: the folder holds another build.
    """
    for key in sorted(build) if self.build is not None else []:
      here, there = build[key], self.build.get(key)
      if here != there:
        difference = '{} {} there, {} here'.format(key, there, here)
        if isinstance(here, dict) or len(difference) > 80:
          difference = 'other {}'.format(key)
        raise InputError(
            '{}: holds records of another build ({}); remove that folder or '
            'name another --output_dir'.format(
                self._output_dir, difference.replace('_', ' ')))

  def begin(self, build):
    """States what is being built; if an earlier run has, see `check`."""
    self.check(build)
    if self.build is None:
      self._append(build)
      self.build = build

  def add(self, entry):
    """Notes a finished shard, durably.

    Args:
      entry: a dict of what JSON can express, with the file name as 'shard'.
    """
    self._append(entry)
    self.entries[entry['shard']] = entry

  def _append(self, content):
    line = json.dumps(content, sort_keys=True) + '\n'
    self._file.seek(0, os.SEEK_END)
    self._file.write(line.encode())
    self._file.flush()
    os.fsync(self._file.fileno())

