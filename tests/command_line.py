"""Runs `Imagenet/imagenet_main.py` from tests: in process, or as a command."""

import os
import subprocess
import sys

from absl import flags

import imagenet_main

assert 'data_dir' not in flags.FLAGS  # Importing does nothing.
SCRIPT = os.path.abspath(imagenet_main.__file__)


def parse(*args):
  """The flags of imagenet_main, as these arguments set them and no earlier."""
  if 'classifier_id' not in flags.FLAGS:
    imagenet_main.define_imagenet_flags()
  flags.FLAGS.unparse_flags()
  unread = flags.FLAGS(['imagenet_main.py'] + [str(arg) for arg in args])
  assert unread == ['imagenet_main.py'], unread
  return flags.FLAGS


def run(*args):
  """Runs in this process; the results of `imagenet_main.run_imagenet`."""
  return imagenet_main.run_imagenet(parse(*args))


def command(*args, **kwargs):
  """Runs `python imagenet_main.py ARGS` and waits for its end.

  Args:
    *args: of the command; anything `str` takes.
    **kwargs: `cwd`: the folder to run in; `script`: a copy of the script.

  Returns:
    A `subprocess.CompletedProcess` with `returncode`, `stdout` and `stderr`.
  """
  script = kwargs.pop('script', SCRIPT)
  return subprocess.run(
      [sys.executable, script] + [str(arg) for arg in args],
      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      universal_newlines=True, **kwargs)
