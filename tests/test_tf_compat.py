"""Imagenet/tf_compat.py: what both versions of TensorFlow do alike."""

import os
import subprocess
import sys

import tf_compat

PROGRAM = '''
import resource
from tf_compat import tf

size = tf.placeholder(tf.int32)
maps = tf.fill([size, 1 << 20], 1.)  # 64 MB
for _ in range(4):
  maps = tf.reverse(maps, [1])
last = tf.reduce_sum(maps)
with tf.Session() as session:
  for i in range(14):
    if i == 10:
      before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    session.run(last, {size: 16})
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
'''


def test_the_memory_of_large_tensors_is_used_again():
  """Without that, the system gives every page of them anew in each run."""
  num_faults = int(subprocess.check_output(
      [sys.executable, '-c', PROGRAM],
      cwd=os.path.dirname(tf_compat.__file__), universal_newlines=True))
  pages_written = 4 * 5 * (64 << 20) // os.sysconf('SC_PAGE_SIZE')
  assert num_faults < pages_written / 4
