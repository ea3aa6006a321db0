"""What /save writes: a conversation as JSON, in the form that `apply_chat_template` takes, or as Markdown."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemlens.cli.prompts import Message
from gemlens.cli.terminal import plain
from gemlens.errors import CheckpointError, InputError


def write_transcript(file: Path, messages: Sequence[Message]) -> None:
    """Writes the messages; the file's ending says how.

    Raises:
        InputError: another ending than .json and .md.
        CheckpointError: the file cannot be written.
    """
    if file.suffix not in (".json", ".md"):
        raise InputError(f"'{file}' does not say how to write it; name a file that ends in .json or .md.")
    text = _as_json(messages) if file.suffix == ".json" else _as_markdown(messages)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be written ({error.strerror}); choose another name.") from error


def _as_json(messages: Sequence[Message]) -> str:
    written = [{"role": message.role, "content": _content(message)} for message in messages]
    return json.dumps(written, indent=2) + "\n"  # in ASCII, so that no control character is written as it is


def _content(message: Message) -> Any:
    if not message.pictures:
        return message.text
    pictures = [
        {"type": "image", "url" if "://" in picture.source else "path": picture.source} for picture in message.pictures
    ]
    return [*pictures, {"type": "text", "text": message.text}]


def _as_markdown(messages: Sequence[Message]) -> str:
    parts = []
    for message in messages:
        pictures = "".join(f"![picture]({picture.source})\n\n" for picture in message.pictures)
        parts.append(f"## {message.role}\n\n{pictures}{plain(message.text).strip()}\n")
    return "\n".join(parts)
