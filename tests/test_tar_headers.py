"""Tar headers: what tarfile reads, and a line where it would be wrong."""

import contextlib
import io
import os
import shutil
import subprocess
import tarfile

import numpy as np
import pytest

import tar_headers
from tiny_archives import tar_bytes
from tools_command_line import InputError

FORMATS = {'ustar': tarfile.USTAR_FORMAT, 'gnu': tarfile.GNU_FORMAT,
           'pax': tarfile.PAX_FORMAT}
LARGE = 1000000


@contextlib.contextmanager
def opened(path):
  descriptor = os.open(str(path), os.O_RDONLY)
  try:
    yield descriptor
  finally:
    os.close(descriptor)


def list_bytes(folder, content, max_file_bytes=LARGE):
  """Lists a tar that is amid a file, in which more zeros than fit follow."""
  path = folder / 'some.tar'
  path.write_bytes(b'before' + content + b'behind')
  with opened(path) as descriptor:
    return [(name, offset - 6, size) for name, offset, size in
            tar_headers.list_files(descriptor, 6, 6 + len(content),
                                   'some.tar', max_file_bytes)]


def by_tarfile(content):
  with tarfile.open(fileobj=io.BytesIO(content), mode='r:') as tar:
    return sorted((member.name.encode('utf-8', 'surrogateescape'),
                   member.offset_data, member.size)
                  for member in tar if member.isreg())


def check_refused(folder, content, *words):
  with pytest.raises(InputError) as refusal:
    list_bytes(folder, content)
  message = str(refusal.value)
  assert '\n' not in message
  for word in ('some.tar',) + words:
    assert word in message, message


def member(name, **fields):
  info = tarfile.TarInfo(name)
  for field, value in fields.items():
    setattr(info, field, value)
  return name, info


# What can be read.


@pytest.mark.parametrize('tar_format', sorted(FORMATS))
def test_what_tarfile_writes(tmp_path, tar_format):
  names = ['b.JPEG', 'a.JPEG', 'folder/c.JPEG', '.hidden', 'x' * 100,
           'x' * 99 + 'y', 'd' * 60 + '/' + 'e' * 60, 'd' * 150 + '/' + 'f']
  if tar_format != 'ustar':
    names += ['n' * 101, 'long/' * 60 + 'end', u'p\xe4rchen/\u72ac.JPEG',
              'undecodable \udcff.JPEG']
  target = io.BytesIO()
  with tarfile.open(fileobj=target, mode='w', format=FORMATS[tar_format],
                    encoding='utf-8', errors='surrogateescape') as tar:
    tar.addfile(member('folder', type=tarfile.DIRTYPE)[1])
    for i, name in enumerate(names):
      # About the borders of blocks.
      data = bytes([i]) * (0, 1, 511, 512, 513, 5000)[i % 6]
      tar.addfile(member(name, size=len(data), mtime=12.5)[1],
                  io.BytesIO(data))
  files = list_bytes(tmp_path, target.getvalue())
  assert len(files) == len(names)
  assert files == by_tarfile(target.getvalue())


@pytest.mark.skipif(not shutil.which('tar'), reason='there is no tar program')
@pytest.mark.parametrize('tar_format', ['v7', 'oldgnu', 'gnu', 'ustar', 'pax'])
def test_what_tar_writes(tmp_path, tar_format):
  source = tmp_path / 'source'
  (source / ('deep' * 20)).mkdir(parents=True)
  for i, name in enumerate(['one', 'two.JPEG', 'deep' * 20 + '/three']):
    (source / name).write_bytes(b'.' * 300 * i)
  if tar_format not in ('v7', 'ustar'):
    (source / ('deep' * 20) / ('long' * 40)).write_bytes(b'four')
  run = subprocess.run(
      ['tar', '--format=' + tar_format, '-cf', str(tmp_path / 'tar'), '.'],
      cwd=str(source), stderr=subprocess.DEVNULL)
  if run.returncode:
    pytest.skip('this tar program does not write ' + tar_format)
  content = (tmp_path / 'tar').read_bytes()
  files = list_bytes(tmp_path, content)
  assert len(files) == (3 if tar_format in ('v7', 'ustar') else 4)
  assert files == [(name[2:], offset, size)  # Without './'.
                   for name, offset, size in by_tarfile(content)]


@pytest.mark.parametrize('tar_format', ['gnu', 'pax'])
def test_more_than_eight_gigabytes(tmp_path, tar_format):
  size = 9 * 10**9 + 1
  path = tmp_path / 'large.tar'
  with open(str(path), 'wb') as large:  # Mostly holes.
    large.write(member('large', size=size)[1].tobuf(FORMATS[tar_format]))
    offset = large.tell()
    large.seek(-(-size // 512) * 512, os.SEEK_CUR)
    large.write(member('small', size=3)[1].tobuf(tarfile.USTAR_FORMAT))
    large.write(b'abc'.ljust(512 + 1024, b'\0'))
    end = large.tell()
  with opened(path) as descriptor:
    files = tar_headers.list_files(descriptor, 0, end, 'tar', float('inf'))
    assert [name for name, _, _ in files] == [b'large', b'small']
    assert files[0] == (b'large', offset, size)
    assert os.pread(descriptor, files[1][2], files[1][1]) == b'abc'
    with pytest.raises(InputError) as refusal:
      tar_headers.list_files(descriptor, 0, end, 'tar', 10**9)
  assert 'tar/large: has 9,000,000,001 bytes' in str(refusal.value)


def test_names_are_sorted_and_normal(tmp_path):
  content = tar_bytes([('./b', b'1'), ('a//c', b'2'), ('././a/b', b'3'),
                       ('...', b'4'), ('..b', b'5')])
  assert [name for name, _, _ in list_bytes(tmp_path, content)] == [
      b'...', b'..b', b'a/b', b'a/c', b'b']


def test_signed_checksum(tmp_path):
  info = member(u'\xe4', size=4)[1]
  content = bytearray(info.tobuf(tarfile.USTAR_FORMAT, 'utf-8'))
  header = content[:148] + b' ' * 8 + content[156:512]
  signed = sum(byte - 256 * (byte > 127) for byte in header)
  assert signed != sum(header)
  content[148:156] = b'%06o\0 ' % signed
  content += b'data'.ljust(1024, b'\0')
  assert list_bytes(tmp_path, bytes(content)) == [
      (u'\xe4'.encode(), 512, 4)]


def test_empty_tar(tmp_path):
  assert list_bytes(tmp_path, tar_bytes([])) == []
  assert list_bytes(tmp_path, bytes(512)) == []


def test_what_fills_the_last_record_is_not_read(tmp_path):
  content = tar_bytes([('a', b'1')])
  assert len(content) == 10240
  assert list_bytes(
      tmp_path, content[:2048] + b'old' * 2730 + b'..') == [(b'a', 512, 1)]
  # Records may be larger.
  assert list_bytes(tmp_path, content + bytes(30000)) == [(b'a', 512, 1)]


# What is refused.


@pytest.mark.parametrize('name', [
    '/etc/passwd', '../a', 'a/../../b', 'a/..', '..', './/../x'])
def test_names_that_point_outside(tmp_path, name):
  check_refused(tmp_path, tar_bytes([('a', b''), (name, b'data')]),
                'some.tar/' + name + ': points out of the archive')
  check_refused(tmp_path, tar_bytes([member(name, type=tarfile.DIRTYPE)]),
                'points out of the archive')


@pytest.mark.parametrize('kind, word', [
    (tarfile.SYMTYPE, 'a symbolic link'), (tarfile.LNKTYPE, 'a hard link'),
    (tarfile.CHRTYPE, 'a device'), (tarfile.BLKTYPE, 'a device'),
    (tarfile.FIFOTYPE, 'a pipe'), (tarfile.GNUTYPE_SPARSE, 'a sparse file'),
    (b'V', "type b'V'")])
@pytest.mark.parametrize('linkname', ['a', 'a' * 200])
def test_members_that_are_no_plain_files(tmp_path, kind, word, linkname):
  check_refused(
      tmp_path, tar_bytes([('a', b''), member('b', type=kind,
                                              linkname=linkname)]),
      'some.tar/b: not a plain file', word)


def with_properties(kind, records, data=b'data'):
  """A tar whose one file has a PAX header of `records`, bytes."""
  header = member('x', type=kind, size=len(records))[1].tobuf(
      tarfile.USTAR_FORMAT)
  return header + records + bytes(-len(records) % 512) + tar_bytes(
      [('a', data)])


def pax_record(content):
  """A property with its own length before it, which counts itself."""
  length = next(length for length in range(len(content), 10**5)
                if len(b'%d %s\n' % (length, content)) == length)
  return b'%d %s\n' % (length, content)


@pytest.mark.parametrize('records', [
    pax_record(b'GNU.sparse.major=1'), pax_record(b'path=a\0'),
    pax_record(b'path='), pax_record(b'size=-1'), pax_record(b'size='),
    pax_record(b'size=' + b'9' * 5000), pax_record(b'pathisa'),
    b'30 path=a\n', b'0 path=a\n', b'x path=a\n', b'8 path=a\n',
    b'-9 path=a\n', b'path=a\n', b'\n', b' '])
def test_properties_that_make_no_sense(tmp_path, records):
  check_refused(tmp_path, with_properties(b'x', records), 'make no sense')


def test_properties_are_those_of_the_next_file(tmp_path):
  records = (pax_record(b'path=b') + pax_record(b'size=3')
             + pax_record(b'comment=' + b'c' * 300))
  assert list_bytes(tmp_path, with_properties(b'x', records)) == [
      (b'b', 1536, 3)]
  records = pax_record(b'comment=of the tar')
  assert list_bytes(tmp_path, with_properties(b'g', records)) == [
      (b'a', 1536, 4)]
  check_refused(tmp_path, with_properties(b'g', pax_record(b'path=b')),
                'make no sense')


@pytest.mark.parametrize('names', [('a', 'a'), ('a', './a'), ('b//a', 'b/a')])
def test_names_that_occur_twice(tmp_path, names):
  check_refused(tmp_path, tar_bytes([(name, b'') for name in names]),
                'occurs twice')


def test_files_without_a_name(tmp_path):
  check_refused(tmp_path, tar_bytes([('', b'data')]), 'without a name')
  check_refused(tmp_path, tar_bytes([('.', b'data')]), 'without a name')


def test_files_that_are_too_large(tmp_path):
  content = tar_bytes([('a', bytes(3000))])
  assert list_bytes(tmp_path, content, 3000) == [(b'a', 512, 3000)]
  with pytest.raises(InputError) as refusal:
    list_bytes(tmp_path, content, 2999)
  assert 'some.tar/a: has 3,000 bytes, more than the 2,999' in str(
      refusal.value)


def test_size_beyond_the_tar(tmp_path):
  huge = member('huge', size=10**12)[1].tobuf(tarfile.GNU_FORMAT)
  check_refused(tmp_path, huge + bytes(4096), 'some.tar/huge: has 1,000,000,')
  name = member('x', type=b'L', size=2**30)[1].tobuf(tarfile.USTAR_FORMAT)
  check_refused(tmp_path, name + bytes(4096), 'damaged at byte')


@pytest.mark.parametrize('content', [
    b'', b'a', b'<html>not found</html>' * 99, b'\xff' * 512])
def test_files_that_are_no_tar(tmp_path, content):
  check_refused(tmp_path, content, 'not an uncompressed tar')
  (tmp_path / 'no.tar').write_bytes(content)
  with opened(tmp_path / 'no.tar') as descriptor:
    with pytest.raises(InputError):
      tar_headers.check_begins_well(descriptor, 'no.tar')


SOME_FILES = [('image_{}.JPEG'.format(i), bytes([65 + i]) * 700 * i)
              for i in range(7)]


def test_every_truncation_is_noticed(tmp_path):
  content = tar_bytes(SOME_FILES)
  files = list_bytes(tmp_path, content)
  # One block of zeros is enough to tell the end.
  end = files[-1][1] + -(-files[-1][2] // 512) * 512 + 512
  for length in list(range(0, end, 256)) + [end - 1]:
    with pytest.raises(InputError):
      list_bytes(tmp_path, content[:length])
  assert list_bytes(tmp_path, content[:end]) == files


def test_missing_parts_of_a_download_are_no_end(tmp_path):
  content = tar_bytes(SOME_FILES)
  third = list_bytes(tmp_path, content)[2][1] - 512
  check_refused(tmp_path, content[:third] + bytes(512) + content[third + 512:],
                'end mark is at byte {:,} of'.format(third))
  check_refused(tmp_path, content[:third] + bytes(2 * 10**6),
                'end mark is at byte {:,} of'.format(third))


def test_a_second_tar_behind_the_first(tmp_path):
  content = tar_bytes(SOME_FILES)
  check_refused(tmp_path, content + content, 'end mark')


@pytest.mark.parametrize('seed', range(200))
def test_damage_gives_the_same_list_or_a_line(tmp_path, seed):
  random = np.random.RandomState(seed)
  content = bytearray(tar_bytes(SOME_FILES))
  files = list_bytes(tmp_path, bytes(content))
  headers = [offset - 512 for _, offset, _ in files]
  for _ in range(random.randint(1, 4)):
    # Half of the changes in headers, of which there are few.
    position = (headers[random.randint(len(headers))] + random.randint(512)
                if random.randint(2) else random.randint(len(content) - 9000))
    content[position] = random.randint(256)
  try:
    assert list_bytes(tmp_path, bytes(content)) == files
  except InputError as refusal:
    assert '\n' not in str(refusal)
