"""How far a dump has come that was left unfinished: what resuming starts from.

The journal lies beside the unfinished files. It is written when the rows that
it speaks of are on the disk, so that it never promises too much.
"""

import collections
import json

from file_system import replace_content

FILE_SUFFIX = '.json'

# Of the journal's own content; a part of every identity.
_FORMAT_VERSION = 1

# `num_rows` written so far; `hits` is a dict from classifier to two counts: the
# label is its best class, and among its five best. `stamps`, of a dump that is
# complete: a dict from the names of files to what tells them from others.
Written = collections.namedtuple('Written', 'num_rows hits stamps')


class Journal(object):
  """The journal of one run's dump of a split.

  Attributes:
    path: of the file.
  """

  def __init__(self, path, identity, file_system):
    """
    Args:
      path: of the file.
      identity: a dict ready for JSON. Rows are taken over from a run of the
        same identity and from no other.
      file_system: one like `file_system.LOCAL`.
    """
    self.path = path
    self._identity = json.loads(json.dumps(
        dict(identity, journal_version=_FORMAT_VERSION)))
    self._file_system = file_system

  def read(self):
    """What an earlier run has left.

    Returns:
      `(written, reason)`: `Written` and None; or None and why it is of no
      use, for people; or None and None where there is no journal.

    Raises:
      OSError: it cannot be read.
    """
    if not self._file_system.exists(self.path):
      return None, None
    with self._file_system.open_to_read(self.path) as stream:
      content = stream.read()
    try:
      content = json.loads(content.decode())
      identity = dict(content['identity'])
      written = Written(int(content['num_rows']), {
          int(k): [int(top1), int(top5)]
          for k, (top1, top5) in content['hits'].items()},
                        dict(content['stamps']))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
      return None, '{} is damaged'.format(self.path)
    different = [name for name in sorted(set(identity) | set(self._identity))
                 if identity.get(name) != self._identity.get(name)]
    if different:
      return None, 'what was interrupted differs in {}'.format(
          ', '.join(different))
    return written, None

  def write(self, written):
    """Replaces the journal.

    Args:
      written: `Written`; its rows are on the disk.

    Raises:
      OSError: it cannot be written; the old one stays.
    """
    content = {'identity': self._identity, 'num_rows': written.num_rows,
               'hits': {str(k): [int(count) for count in counts]
                        for k, counts in written.hits.items()},
               'stamps': written.stamps}
    replace_content(
        self._file_system, self.path, self.path + '.new',
        (json.dumps(content, indent=1, sort_keys=True) + '\n').encode())

  def remove(self):
    if self._file_system.exists(self.path):
      self._file_system.remove(self.path)
