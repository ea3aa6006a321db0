"""The small tokenizers of tests/processing, and the checkpoints of small_checkpoints.py, each made once."""

import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "processing"))
import small_checkpoints


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a small checkpoint, by its name in `small_checkpoints.MAKERS`."""

    @lru_cache
    def folder(name: str) -> str:
        return str(small_checkpoints.MAKERS[name](tmp_path_factory.mktemp(name)))

    return folder
