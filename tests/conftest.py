"""Puts the project's rooms on the path, as their command lines see them."""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
for room in ('Imagenet', 'Imagenet_tools', ''):
  sys.path.insert(0, os.path.join(ROOT, room))

# These take a minute or so each. They start first, so that in the end all
# processes are at work: a file's tests stay in one. (The pytest-xdist of tf2
# begins with the files of most tests; there the first two run side by side in
# the end.)
LONG_FILES = ('test_run_tiny_imagenet', 'test_run_demo', 'test_whole_runs',
              'test_softmaxes', 'test_run_cascade', 'test_imagenet_main')


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.fspath.purebasename not in LONG_FILES)
