"""`stage_seconds.json`: what it takes to get to each exit, measured.

`run_cascade.py --profile_stages` writes it and the analysis reads it (-cost),
as a MAC of the first layers takes longer than one of the last. No TensorFlow.
"""

import json
import math
import typing

import numpy as np

import shared_cascade_json
from shared_files import explain_content, write_atomically

FILE_NAME = 'stage_seconds.json'

# The analysis counts whole nanoseconds, and adds up those of all images.
_LEAST_SECONDS, _MOST_SECONDS = 1e-9, 1e3


class StageSeconds(typing.NamedTuple):
  """Seconds per image, for each exit and size of the batch.

  Those of an exit are of all that an image has passed that leaves there: the
  trunk and the heads as far as this exit.
  """
  network: dict      # `shared_cascade_json.shared_fields` of the network.
  device: str        # A name to print.
  threads: dict      # 'inter_op' and 'intra_op', 0 for as many as 'cores'.
  versions: dict     # Of Python and its packages.
  batch_sizes: list  # Ascending.
  # From classifier, ascending, to a list with one value per batch size.
  seconds_per_image: typing.Dict[int, typing.List[float]]
  plain_seconds_per_image: list  # The same of the network without exits.


def write(path, stage_seconds):
  """Writes the file.

  Raises:
    OSError: it cannot be written.
  """
  network = stage_seconds.network
  content = json.dumps({
      'format_version': shared_cascade_json.FORMAT_VERSION,
      'network': shared_cascade_json.network_name(
          network['resnet_version'], network['resnet_size']),
      **network,
      'device': stage_seconds.device,
      'threads': stage_seconds.threads,
      'versions': stage_seconds.versions,
      'batch_sizes': stage_seconds.batch_sizes,
      'exits': [{'classifier_id': k, 'seconds_per_image': seconds}
                for k, seconds in stage_seconds.seconds_per_image.items()],
      'plain_seconds_per_image': stage_seconds.plain_seconds_per_image,
  }, indent=2) + '\n'
  write_atomically(path, content.encode())


def load(path):
  """Reads the file; `StageSeconds`.

  A later exit may have taken less time than an earlier one: that is noise.

  Raises:
    UserError: it cannot be read or is something else.
  """
  remedy = 'measure again (run_cascade.py --profile_stages)'
  with explain_content(path, remedy):
    with open(path, encoding='utf-8') as stream:
      record = json.load(stream)
    network = {field: record[field]
               for field in shared_cascade_json.SHARED_FIELDS}
    measured = StageSeconds(
        network, str(record['device']), record['threads'], record['versions'],
        record['batch_sizes'],
        {int(entry['classifier_id']): entry['seconds_per_image']
         for entry in record['exits']},
        record['plain_seconds_per_image'])
    seconds = np.array([*measured.seconds_per_image.values(),
                        measured.plain_seconds_per_image], np.float64)
    if seconds.shape[1:] != np.shape(measured.batch_sizes) or not all(
        _LEAST_SECONDS <= second <= _MOST_SECONDS for second in seconds.flat):
      raise ValueError('not so many seconds per image as batch sizes')
  return measured


def promised_speedup(stage_seconds, exit_shares, batch_size):
  """The speed-up over the plain network that the measured times promise.

  Each stage runs on those images of a batch that are left, and small batches
  take longer per image. For example, with seconds per image

    batch size   exit 0   exit 1   plain
    1                 2        4       4
    4                 1        2       2

  half of the images of a batch of 4 leave at exit 0. Stage 0 takes 4 * 1
  seconds. Stage 1 runs on 2 images: by linear interpolation in log2(batch size)
  the exits take 1.5 and 3 seconds per image, so it takes 2 * 1.5. The plain
  network takes 4 * 2 seconds, and the speed-up is 8 / (4 + 3).

  Args:
    stage_seconds: `StageSeconds`.
    exit_shares: fractions of the images that leave at each of its exits.
    batch_size: images; of a batch that is larger than those measured, as of one
      that is expected to have less than one image left, an image takes as long
      as in the nearest size measured.
  """
  def seconds(per_image, size):
    return np.interp(math.log2(max(size, 1)),
                     np.log2(stage_seconds.batch_sizes), per_image)

  total, num_left = 0., float(batch_size)
  before = [0.] * len(stage_seconds.batch_sizes)
  for share, of_exit in zip(
      exit_shares, stage_seconds.seconds_per_image.values()):
    # Where noise makes a later exit faster, its stage takes no time.
    total += num_left * max(
        0., seconds(of_exit, num_left) - seconds(before, num_left))
    before = of_exit
    num_left -= batch_size * share
  return batch_size * seconds(
      stage_seconds.plain_seconds_per_image, batch_size) / total
