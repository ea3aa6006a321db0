"""A folder with a picture, to put data beside."""

from pathlib import Path

import pytest
from data_files import picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds cow.png, a.png and b.png."""
    for seed, name in enumerate(("cow.png", "a.png", "b.png")):
        picture(tmp_path / name, seed)
    return tmp_path
