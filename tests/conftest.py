"""Puts the project's rooms on the path, as their command lines see them."""

import os
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
for room in ('Imagenet', 'Imagenet_tools', ''):
  sys.path.insert(0, os.path.join(ROOT, room))


@pytest.fixture(params=['compiled', 'NumPy'])
def each_crc(request, monkeypatch):
  """Runs a test with each of the two ways of taking CRCs."""
  import crc32c
  if request.param == 'NumPy':
    monkeypatch.setattr(crc32c, '_extend', None)
  elif not crc32c.is_compiled():
    pytest.skip('google-crc32c is not installed')
