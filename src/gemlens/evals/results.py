"""A folder of results, which an interrupted run is continued in.

settings.json   what was asked: written first; a run of other settings is refused
items.jsonl     a line per item, appended as it comes; in the end written anew, in order and with scores
summary.json    the report without its items

A line that was cut off in the middle, as by `kill -9` or a full disk, is dropped; its item is asked again.
"""

import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from gemlens.errors import InputError
from gemlens.evals.run import Report
from gemlens.evals.score import Item

SETTINGS, ITEMS, SUMMARY = "settings.json", "items.jsonl", "summary.json"
Settings = Mapping[str, str | int | None]


class Results:
    """The folder of a run.

    Args:
        folder: made if it does not exist.
        settings: all that answers depend on; metrics are not among it, so answers can be scored again.
        anew: whether results of other settings may be thrown away.

    Attributes:
        items: those that an earlier run of these settings has left.

    Raises:
        InputError: the folder holds results of other settings, other files or a damaged line.
        OSError: the folder cannot be read or written to.
    """

    def __init__(self, folder: Path, settings: Settings, anew: bool = False) -> None:
        self.folder, self.items = folder, list[Item]()
        if _is_continued(folder, settings, anew):
            self.items = _read(folder / ITEMS)
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ITEMS).unlink(missing_ok=True)
        write_whole(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")

    def append(self, item: Item) -> None:
        """Writes an item, which is then safe from the end of this process."""
        with (self.folder / ITEMS).open("ab") as file:
            file.write(_line(item))

    def finish(self, report: Report, settings: Settings) -> None:
        """Writes the items with their scores, and the summary."""
        write_whole(self.folder / ITEMS, b"".join(map(_line, report.items)).decode())
        write_whole(self.folder / SUMMARY, json.dumps(summary(report, settings), indent=2) + "\n")


def summary(report: Report, settings: Settings) -> dict[str, Any]:
    """The report without its items, for JSON; infinite values are null."""
    return {
        "values": {name: value if isfinite(value) else None for name, value in report.values.items()},
        "items": len(report.items),
        "errors": report.errors,
        "kinds": dict(report.counts),
        "seconds": round(report.seconds, 3),
        "settings": dict(settings),
    }


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())  # the renaming must not reach the disk before the content does
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_continued(folder: Path, settings: Settings, anew: bool) -> bool:
    """Whether the folder has a run of these settings."""
    path = folder / SETTINGS
    if folder.exists() and not folder.is_dir():
        raise InputError(f"'{folder}' is a file; name a folder, which is made if it does not exist.")
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"'{folder}' holds files but no results; name another folder.")
        return False
    try:
        held = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"'{path}' is damaged ({error}); name another folder.") from error
    if held == dict(settings):
        return True
    if anew:
        return False
    earlier = held if isinstance(held, dict) else {}
    other = [name for name in {**earlier, **settings} if earlier.get(name) != settings.get(name)]
    changes = ", ".join(f"{name} {earlier.get(name)!r} instead of {settings.get(name)!r}" for name in other)
    raise InputError(
        f"'{folder}' holds results of other settings ({changes}); name another folder, or begin anew with --force."
    )


def _read(path: Path) -> list[Item]:
    """The items of a file, the last of each number; what follows the last line break is cut off from the file."""
    if not path.exists():
        return []
    with path.open("r+b") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)
    found: dict[int, Item] = {}
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            item = _item(json.loads(line))
        except ValueError as error:
            raise InputError(
                f"{path}:{number} is damaged ({error}); delete the line, and it is asked again."
            ) from error
        found[item.index] = item
    return list(found.values())


def _line(item: Item) -> bytes:
    return json.dumps(asdict(item)).encode() + b"\n"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _list_of(kind: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(kind, value)) and length in (None, len(value))


def _or_none(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or kind(value)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "index": _is_count,
    "id": _is_text,
    "prefix": _is_text,
    "answer": _is_text,
    "references": _list_of(_is_text),
    "size": _or_none(_list_of(_is_count, 2)),
    "error": _or_none(_is_text),
    "tokens": _is_count,
    "likelihood": _is_number,
    "locations": _list_of(_is_number),
    "score": _or_none(_is_number),
}


def _item(row: Any) -> Item:
    """The item of a line.

    Raises:
        ValueError: the line says something else.
    """
    if not isinstance(row, dict) or row.keys() != _FIELDS.keys():
        raise ValueError("it is no item")
    for name, is_right in _FIELDS.items():
        if not is_right(row[name]):
            raise ValueError(f"{name} is of another type")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Item(**values)
