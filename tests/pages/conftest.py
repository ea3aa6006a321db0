"""The small checkpoints of tests/pipelines."""

import sys
from pathlib import Path

for folder in ("processing", "pipelines"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
