"""Dumps in, numbers and figures out. NumPy and matplotlib only.

Data flows one way: this room reads what `Imagenet/` writes and takes the file
names from there. The files of `Imagenet/` import each other as flat siblings
(they are run from copies of that folder), hence the path.
"""

import os
import sys

# Before the site's packages, one of which might bear a name of ours.
sys.path.insert(1, os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'Imagenet'))
