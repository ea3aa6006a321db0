"""Tests of generation use the pairs of tests/parity and the small tokenizers of tests/processing."""

import sys
from pathlib import Path

import pytest
import torch

for folder in ("parity", "processing"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
