"""The small checkpoints of tests/pipelines, each made once."""

import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("processing", "models", "pipelines"))
import small_checkpoints

import gemlens


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Any]]:
    """A model and its processor or tokenizer, by the name in `small_checkpoints.MAKERS`."""

    @lru_cache
    def pair(name: str) -> tuple[Any, Any]:
        folder = small_checkpoints.MAKERS[name](tmp_path_factory.mktemp(name))
        if name == "gemma3-text":
            return gemlens.AutoModelForCausalLM.from_pretrained(folder), gemlens.AutoTokenizer.from_pretrained(folder)
        model = gemlens.AutoModelForImageTextToText.from_pretrained(folder)
        return model, gemlens.AutoProcessor.from_pretrained(folder)

    return pair
