"""Puts the project's rooms on the path, as their command lines see them."""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
for room in ('Imagenet', 'Imagenet_tools', ''):
  sys.path.insert(0, os.path.join(ROOT, room))
