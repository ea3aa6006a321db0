"""Processors <-> files: processor_config.json and chat templates, beside those of the tokenizer and image processor.

Origin -> StoredProcessor (settings, chat template); a folder or repository id -> (image processor, tokenizer)
"""

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemlens.checkpoints.hub import Origin, read_json
from gemlens.checkpoints.save import write_json
from gemlens.errors import CheckpointError, InputError
from gemlens.processing.chat.template_sandbox import LONGEST_TEMPLATE

CONFIG, IMAGES, TOKENIZER, MODEL = (
    "processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "config.json",
)  # fmt: skip
TEMPLATE, OLD_TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
_BY_MODEL = {"paligemma": "PaliGemmaProcessor", "gemma3": "Gemma3Processor"}


@dataclass(frozen=True)
class StoredProcessor:
    """What a checkpoint's files say about its processor."""

    settings: Mapping[str, Any]
    chat_template: str | dict[str, str] | None


def read(origin: Origin, class_name: str) -> StoredProcessor:
    """The settings and chat template of a checkpoint's processor.

    Raises:
        CheckpointError: a file is damaged, or the processor is of another class.
    """
    path = origin.find(CONFIG)
    settings = read_json(path) if path else {}
    named = settings.get("processor_class", class_name)
    if named != class_name:
        raise CheckpointError(f"{origin} holds a {str(named)[:100]}, not a {class_name}; use AutoProcessor.")
    return StoredProcessor(settings, _read_template(origin) or settings.get("chat_template"))


def class_of(origin: Origin) -> str | None:
    """The name of the processor's class that a checkpoint's files give; None where they only have a tokenizer.

    Raises:
        CheckpointError: none of the files says it, or one of them is damaged.
    """
    for name in (CONFIG, IMAGES, TOKENIZER):
        path = origin.find(name)
        if path and (named := read_json(path).get("processor_class")):
            return str(named)
    path = origin.find(MODEL)
    kind = read_json(path).get("model_type") if path else None
    if kind in _BY_MODEL:
        return _BY_MODEL[kind]
    if origin.find(TOKENIZER):
        return None
    raise CheckpointError(
        f"No file in {origin} names a processor; use PaliGemmaProcessor.from_pretrained or "
        "Gemma3Processor.from_pretrained."
    )


def read_parts(
    place: str | os.PathLike[str], where: Mapping[str, Any], use_fast: bool | None, settings: Mapping[str, Any]
) -> tuple[Any, Any]:
    """The image processor and the tokenizer of a checkpoint, with `settings` given to the one that has them.

    Raises:
        InputError: neither has a setting of that name.
        CheckpointError: files are missing or damaged.
    """
    from gemlens.processing.pictures.auto_image_processor import AutoImageProcessor
    from gemlens.processing.text.tokenizer import GemmaTokenizerFast

    auto: Any = AutoImageProcessor  # its constructor never returns, which mypy takes for the class itself
    images = auto.from_pretrained(place, use_fast=use_fast, **where)
    for_images = {name: value for name, value in settings.items() if hasattr(images, name)}
    if for_images:
        images = auto.from_pretrained(place, use_fast=use_fast, **where, **for_images)
    for_text = {name: value for name, value in settings.items() if name not in for_images}
    return images, GemmaTokenizerFast.from_pretrained(place, **where, **for_text)


def write(
    folder: str | os.PathLike[str], settings: Mapping[str, Any], template: str | Mapping[str, str] | None
) -> list[str]:
    """Writes processor_config.json and the chat templates; gives their paths.

    Raises:
        CheckpointError: the folder cannot be written to.
        InputError: a template's name is no name of a file.
    """
    place = Path(folder)
    write_json(place / CONFIG, dict(settings))
    written = [place / CONFIG]
    templates = {"default": template} if isinstance(template, str) else dict(template or {})
    try:
        if templates:
            (place / OLD_TEMPLATE).unlink(missing_ok=True)  # it would contradict what is saved now
        for name, text in templates.items():
            if not name.replace("_", "").replace("-", "").isalnum():
                raise InputError(f"{name!r} is no name for a chat template; use letters, digits, '_' and '-'.")
            path = place / TEMPLATE if name == "default" else place / MORE_TEMPLATES / f"{name}.jinja"
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_text(path, text)
            written.append(path)
    except OSError as error:
        raise CheckpointError(f"'{folder}' cannot be written to ({error.strerror}); choose another folder.") from error
    return [str(path) for path in written]


def _write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_template(origin: Origin) -> str | dict[str, str] | None:
    """The templates that belong to the processor: one, or by name, or none."""
    found: dict[str, str] = {}
    if origin.folder is not None and (origin.folder / MORE_TEMPLATES).is_dir():
        found = {path.stem: _text(path) for path in sorted((origin.folder / MORE_TEMPLATES).glob("*.jinja"))}
    if path := origin.find(TEMPLATE):
        found["default"] = _text(path)
    elif path := origin.find(OLD_TEMPLATE):
        template = read_json(path).get("chat_template")
        if not isinstance(template, str):
            raise CheckpointError(f"'{path}' has no text under 'chat_template'; download it again.")
        found["default"] = template
    return found["default"] if found.keys() == {"default"} else found or None


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > 4 * LONGEST_TEMPLATE:
            raise CheckpointError(
                f"'{path}' is too large for a chat template, which has up to {LONGEST_TEMPLATE} letters."
            )
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"'{path}' is no text in UTF-8; download it again.") from error
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"'{path}' cannot be read ({error.strerror}).") from error
