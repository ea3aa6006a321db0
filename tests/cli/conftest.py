"""The small checkpoints of tests/pipelines, variants of them, and the app called in this process."""

import json
import shutil
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("processing", "checkpoints", "pipelines"))
import small_checkpoints
from processor_pairs import picture

from gemlens.cli.main import app


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a small checkpoint: a name of `small_checkpoints.MAKERS`, or one of the variants below."""

    @lru_cache
    def folder(name: str) -> str:
        place = tmp_path_factory.mktemp(name)
        if name not in VARIANTS:
            return str(small_checkpoints.MAKERS[name](place))
        original, change = VARIANTS[name]
        shutil.copytree(folder(original), place, dirs_exist_ok=True)
        change(place)
        return str(place)

    return folder


def _edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def _base(folder: Path) -> None:
    """Without a chat template, as base models are."""
    (folder / "chat_template.jinja").unlink()


def _endless(folder: Path) -> None:
    """An answer never ends by itself."""
    config = json.loads((folder / "config.json").read_text())
    many = {"max_position_embeddings": 1_000_000}
    inner = {"text_config": {**config["text_config"], **many}} if "text_config" in config else many
    _edit(folder / "config.json", **inner)
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    _edit(folder / "generation_config.json", suppress_tokens=ends)


def _escapes(folder: Path) -> None:
    """Says nothing but ESC and T, in any order."""
    pieces = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    said = {pieces["<0x1B>"], pieces["T"]}
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    _edit(folder / "generation_config.json", suppress_tokens=sorted(set(range(vocabulary)) - said))


VARIANTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "base": ("gemma3-text", _base),
    "base-pictures": ("gemma3-pictures", _base),
    "endless": ("gemma3-text", _endless),
    "endless-pictures": ("gemma3-pictures", _endless),
    "escapes": ("gemma3-text", _escapes),
}


@pytest.fixture(scope="session")
def cow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a picture."""
    path = tmp_path_factory.mktemp("pictures") / "cow.png"
    picture(1).save(path)
    return str(path)


@pytest.fixture
def gemlens() -> Callable[..., Result]:
    """Calls the app: gemlens("run", folder, "text", stdin="")."""

    def call(*arguments: object, stdin: str | bytes = "") -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], stdin)

    return call
