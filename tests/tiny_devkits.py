"""Small development kits like ILSVRC2012's for tests, and their MATLAB file."""

import gzip
import io
import struct
import zlib

from tiny_archives import tar_bytes

GROUND_TRUTH = 'kit/data/ILSVRC2012_validation_ground_truth.txt'
META = 'kit/data/meta.mat'


class MatWriter(object):
  """Builds a MATLAB file of level 5, in either order of bytes."""

  def __init__(self, order='<'):
    self._order = order

  def _pack(self, code, *values):
    return struct.pack(self._order + code, *values)

  def element(self, kind, content, may_be_small=True):
    if may_be_small and 0 < len(content) <= 4:
      return (self._pack('I', len(content) << 16 | kind)
              + content.ljust(4, b'\0'))
    return (self._pack('II', kind, len(content)) + content
            + bytes(-len(content) % 8))

  def array(self, number_of_class, shape, *content, **kwargs):
    """An array whose data elements are `content`."""
    return self.element(14, b''.join((
        self.element(6, self._pack(
            'II', number_of_class | kwargs.get('flags', 0), 0)),
        self.element(5, self._pack('{}i'.format(len(shape)), *shape)),
        self.element(1, kwargs.get('name', '').encode())) + content))

  def number(self, value, kind=9, code='d'):
    return self.array(6, (1, 1), self.element(kind, self._pack(code, value)))

  def text(self, text, kind=4):
    encoding = {2: 'latin-1', 4: 'utf-16', 16: 'utf-8'}[kind]
    if encoding == 'utf-16':
      encoding += '-le' if self._order == '<' else '-be'
    return self.array(4, (1, len(text)) if text else (0, 0),
                      self.element(kind, text.encode(encoding)))

  def structs(self, fields, rows, name='synsets'):
    """A column of structs; `rows` are lists of arrays."""
    length = 32
    return self.array(
        2, (len(rows), 1), self.element(5, self._pack('i', length)),
        self.element(1, b''.join(
            field.encode().ljust(length, b'\0') for field in fields)),
        *(value for row in rows for value in row), name=name)

  def compressed(self, element, level=-1):
    content = zlib.compress(element, level)
    return self._pack('II', 15, len(content)) + content

  def file(self, *elements):
    header = b'MATLAB 5.0 MAT-file, made by a test'.ljust(124)
    return (header + self._pack('HH', 0x100, 0x4d49) + b''.join(elements))


def meta_file(rows, order='<', compress=True):
  """A table of synsets; `rows` are tuples of number, synset and words."""
  mat = MatWriter(order)
  table = mat.structs(
      ['ILSVRC2012_ID', 'WNID', 'words', 'children'],
      [[mat.number(number, 4, 'H') if number % 2 else mat.number(number),
        mat.text(synset), mat.text(words, 16 if number % 2 else 4),
        mat.array(6, (1, 2), mat.element(9, bytes(16)))]
       for number, synset, words in rows])
  return mat.file(mat.compressed(table) if compress else table)


def devkit_bytes(rows, numbers, **kwargs):
  """An archive; `numbers` are those of the validation images' synsets."""
  return gzip_bytes(tar_bytes([
      ('kit/readme.txt', b'the kit'),
      (GROUND_TRUTH, ''.join('{}\n'.format(i) for i in numbers).encode()),
      (META, meta_file(rows, **kwargs))]))


def gzip_bytes(data):
  target = io.BytesIO()
  with gzip.GzipFile(fileobj=target, mode='wb', mtime=0) as compressed:
    compressed.write(data)
  return target.getvalue()
