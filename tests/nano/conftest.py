"""Let the tests import the modules of `nano/`, which is a folder of scripts beside the package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "nano"))
