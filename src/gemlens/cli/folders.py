"""Folders that commands write: never over somebody's files, and complete: config, weights, what reads prompts."""

from pathlib import Path
from typing import TYPE_CHECKING

from gemlens.errors import InputError

if TYPE_CHECKING:
    from gemlens.models.configs.pretrained import PretrainedConfig
    from gemlens.processing.gemma3 import Gemma3Processor
    from gemlens.processing.paligemma import PaliGemmaProcessor
    from gemlens.processing.text.tokenizer import GemmaTokenizerFast


def check_free(folder: Path, force: bool) -> None:
    """Whether a folder may be written to, before anything long begins.

    Raises:
        InputError: it is a file, or it holds something and nobody said --force.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"'{folder}' is a file; name a folder, which is made if it does not exist.")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise InputError(f"'{folder}' is not empty; name another folder, or pass --force to write into this one.")


def save_description(
    folder: Path, config: "PretrainedConfig", reader: "PaliGemmaProcessor | Gemma3Processor | GemmaTokenizerFast"
) -> None:
    """Writes all but the weights: config, tokenizer, and the image processor where there is one."""
    config.save_pretrained(folder)
    reader.save_pretrained(folder)


def folder_size(folder: Path) -> int:
    """Bytes of its files."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
