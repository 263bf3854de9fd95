"""The one door between the rooms: what this one takes from `Imagenet/`.

The analysis reads what `Imagenet/` writes, so names and formats of files are
defined there, in the modules called `shared_*`. These import each other as flat
siblings, because they also run from copies of that folder; hence the path.
"""

import os
import sys

# Before the site's packages, which may contain a module of the same name.
sys.path.insert(1, os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'Imagenet'))

# pylint: disable=unused-import,wrong-import-position
import shared_cascade_json
import shared_dumps
import shared_files
import shared_results
import shared_stage_seconds
import shared_terminal
from shared_terminal import Progress, UserError
