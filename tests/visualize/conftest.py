"""Tests here also use the small tokenizers of tests/processing."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "processing"))
