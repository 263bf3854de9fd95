"""Dumps in, numbers and figures out. NumPy and matplotlib only.

The room reads what `Imagenet/` writes and takes file names and formats from
there. The files of `Imagenet/` import each other as flat siblings, because
they also run from copies of that folder; hence the path.
"""

import os
import sys

# Before the site's packages, which may contain a module of the same name.
sys.path.insert(1, os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'Imagenet'))

from user_error import UserError  # pylint: disable=unused-import
