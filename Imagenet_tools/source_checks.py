"""Whether what is to be packed is the whole of ILSVRC2012, as published."""

import hashlib
import os

import numpy as np

from tools_command_line import InputError

# As the organizers state them beside the downloads.
_MD5_BY_FILE_NAME = {
    'ILSVRC2012_img_train.tar': '1d675b47d978889d74fa0da5fadfb00e',
    'ILSVRC2012_img_val.tar': '29b22e2961454d5413ddabcf34fc5622',
    'ILSVRC2012_devkit_t12.tar.gz': 'fa75699e90414af021442c21a62c3abf',
}

# Of the 1000 synsets in sorted order, each followed by a line feed.
_SYNSETS_SHA256 = (
    '70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15')

# Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV
# 115(3), 2015, table 2: images in all, fewest and most in a class.
_COUNTS = {'train': (1281167, 732, 1300), 'validation': (50000, 50, 50)}

_CHUNK_BYTES = 2**20


def check_md5(paths, make_progress):
  """Compares the archives of ILSVRC2012 with their published checksums.

  Args:
    paths: of the archives; their file names are the published ones.
    make_progress: a function of `(total, noun)` that returns a context manager
      with a method `step(count)`.

  Raises:
    InputError: one differs, is a folder, or has no published checksum.
    OSError: one cannot be read.
  """
  for path in paths:
    if os.path.isdir(path):
      raise InputError('--check_md5: {} is a folder, and the checksums are of '
                       'the archives; leave the flag out'.format(path))
    if os.path.basename(path) not in _MD5_BY_FILE_NAME:
      raise InputError('--check_md5: no checksum is known for {}, only for {}; '
                       'leave the flag out'.format(
                           path, ', '.join(sorted(_MD5_BY_FILE_NAME))))
  num_chunks = sum(-(-os.path.getsize(path) // _CHUNK_BYTES) for path in paths)
  with make_progress(num_chunks, 'MB checked') as progress:
    for path in paths:
      digest = hashlib.md5()
      with open(path, 'rb') as archive:
        for chunk in iter(lambda: archive.read(_CHUNK_BYTES), b''):
          digest.update(chunk)
          progress.step(1)
      expected = _MD5_BY_FILE_NAME[os.path.basename(path)]
      if digest.hexdigest() != expected:
        raise InputError('{}: its MD5 is {}, and {} as published; get it again'
                         .format(path, digest.hexdigest(), expected))


def check_counts(images):
  """Compares the number of images with ILSVRC2012's, if it has its synsets.

  Args:
    images: a dict from split to `ImageIndex`.

  Raises:
    InputError: images are missing or too many.
  """
  classes = images['train'].classes
  synsets = ''.join(synset + '\n' for synset in classes)
  if hashlib.sha256(synsets.encode()).hexdigest() != _SYNSETS_SHA256:
    return
  for split, (total, fewest, most) in _COUNTS.items():
    counts = images[split].class_counts()
    wrong = np.flatnonzero((counts < fewest) | (counts > most))
    if counts.sum() == total and not len(wrong):
      continue
    an_example = '; {} has {:,} where {} are right'.format(
        classes[wrong[0]], counts[wrong[0]],
        '{:,} to {:,}'.format(fewest, most) if fewest < most else fewest,
        ) if len(wrong) else ''
    raise InputError(
        'the 1,000 synsets are those of ILSVRC2012, which has {:,} {} images, '
        'but here are {:,}{}; complete them, or add --any_counts if it is '
        'meant so'.format(total, split, counts.sum(), an_example))
