"""Imagenet/tf_compat.py: what both versions of TensorFlow do alike."""

import os
import subprocess
import sys

import tf_compat

PROGRAM = '''
import resource
from tf_compat import tf

size = tf.placeholder(tf.int32)
sums = tf.reduce_sum(tf.cos(tf.fill([size, 1 << 20], 1.) + 1.))
with tf.Session() as session:
  def run():
    session.run(sums, {size: 16})  # Each of its tensors takes 64 MB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(3):
    before = run()
  print(run() - before)
'''


def test_the_memory_of_large_tensors_is_used_again():
  """Otherwise the system gives a new page for every 4 KB of each of them."""
  faults = int(subprocess.check_output(
      [sys.executable, '-c', PROGRAM],
      cwd=os.path.dirname(tf_compat.__file__), universal_newlines=True))
  assert faults < (64 << 20) / 4096 / 10
