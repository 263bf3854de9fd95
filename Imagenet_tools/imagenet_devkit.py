"""The development kit of ILSVRC2012: synsets of the validation images, words.

ILSVRC2012_devkit_t12.tar.gz has data/ILSVRC2012_validation_ground_truth.txt,
the number of a synset for each validation image, and data/meta.mat, a MATLAB
table of the synsets' numbers, WordNet ids and words.
"""

import collections
import gzip
import io
import tarfile
import zlib

import mat_file
from tools_command_line import InputError

# What the kit tells.
#   validation_synsets: list of str, one per validation image in order of the
#     file names.
#   words: a dict from synset to the words for it, such as 'tench, Tinca tinca'.
Devkit = collections.namedtuple('Devkit', ['validation_synsets', 'words'])

_GZIP_MAGIC = b'\x1f\x8b'
_GROUND_TRUTH = 'ILSVRC2012_validation_ground_truth.txt'
_META = 'meta.mat'

_MAX_BYTES = 2**26  # Uncompressed; the true one has a few million.
_MAX_LINE_BYTES = 80  # Of the numbers; Python refuses very long ones.


def is_devkit(path):
  """Whether a file is compressed by gzip, as the kit is and no text."""
  with open(path, 'rb') as devkit_file:
    return devkit_file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC


def read_devkit(path):
  """Reads the archive of the development kit.

  Args:
    path: such as ILSVRC2012_devkit_t12.tar.gz.

  Returns:
    A `Devkit`.

  Raises:
    InputError: it is damaged, or another archive.
    OSError: it cannot be read.
  """
  files = _read_files(path, (_GROUND_TRUTH, _META))
  numbers = []
  for line_number, line in enumerate(
      files[_GROUND_TRUTH].rstrip().split(b'\n'), 1):
    if not line.strip().isdigit() or len(line) > _MAX_LINE_BYTES:
      raise InputError('{}/{} line {:,}: not a number of a synset; get the '
                       'archive again'.format(path, _GROUND_TRUTH, line_number))
    numbers.append(int(line))
  try:
    synsets = mat_file.read_struct_array(
        files[_META], 'synsets', ('ILSVRC2012_ID', 'WNID', 'words'))
    synset_of, words = _synset_table(synsets)
  except ValueError as error:
    raise InputError('{}/{}: {}; get the archive again'.format(
        path, _META, error))
  for line_number, number in enumerate(numbers, 1):
    if number not in synset_of:
      raise InputError(
          '{}/{} line {:,}: no synset has the number {}; get the archive again'
          .format(path, _GROUND_TRUTH, line_number, number))
  return Devkit([synset_of[number] for number in numbers], words)


def _synset_table(synsets):
  """Dicts from number to synset and from synset to words.

  Raises:
    ValueError: a value is of another type than it should be, or a number or a
      synset occurs twice.
  """
  synset_of, words = {}, {}
  for row, (number, synset, synset_words) in enumerate(synsets, 1):
    if not (isinstance(number, float) and isinstance(synset, str)
            and isinstance(synset_words, str) and synset):
      raise ValueError('row {:,} of the synsets is not a number, a WordNet id '
                       'and words'.format(row))
    if number in synset_of or synset in words:
      raise ValueError('row {:,} repeats an earlier one ({:g}, {})'.format(
          row, number, synset))
    synset_of[number] = synset
    words[synset] = synset_words
  return synset_of, words


def _read_files(path, names):
  """The files of these names in a tar.gz, as a dict from name to bytes."""
  contents = {}
  try:
    with gzip.open(path) as devkit_file:
      # All at once, and so checked, before anything is made of it.
      data = devkit_file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
      raise InputError('{}: more than {:,} bytes, so not the development kit; '
                       'name ILSVRC2012_devkit_t12.tar.gz'.format(
                           path, _MAX_BYTES))
    with tarfile.open(fileobj=io.BytesIO(data), mode='r:') as tar:
      for member in tar:
        # A sparse file may claim any size, and a negative one has no end.
        if not 0 <= member.size <= _MAX_BYTES:
          raise tarfile.ReadError('a file of {:,} bytes'.format(member.size))
        name = member.name.rpartition('/')[-1]
        if name in names and member.isreg():
          contents[name] = tar.extractfile(member).read()
  except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError,
          RecursionError) as error:  # Of many headers that extend another.
    raise InputError('{}: not a tar.gz, or a damaged one ({}); get it again'
                     .format(path, error))
  for name in names:
    if name not in contents:
      raise InputError('{}: has no {}; name ILSVRC2012_devkit_t12.tar.gz'
                       .format(path, name))
  return contents
