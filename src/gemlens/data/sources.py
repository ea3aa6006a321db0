"""A path or a name -> a Source, whatever the format.

train.jsonl                     a row per line; rows.py says what rows are
train.json                      a list of such rows, or COCO: coco.py
captions.csv, train.parquet     tables of such rows
captions/                       a folder of pictures with texts, folder.py, or with one of the files above
scenes:train                    the drawn world, gemlens.scenes

Choices may stand behind a question mark: "instances.json?tasks=detect,caption&labels=present", "scenes:test?seed=7".
Several names give a mixture, in which each may have a weight: "mine.jsonl?weight=3".
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from gemlens.data.coco import Coco, CocoSettings, is_coco
from gemlens.data.example import Source
from gemlens.data.folder import TABLES, Captioned, Csv, is_picture, names_in
from gemlens.data.jsonl import Jsonl, JsonList, opened, read_json
from gemlens.data.mixture import Mixture
from gemlens.data.parquet import Parquet
from gemlens.data.picture_folder import PictureFolder
from gemlens.data.rows import RowReader
from gemlens.data.where import Where, shown
from gemlens.errors import InputError
from gemlens.tasks.masks import Codec

_SCENES = "scenes:"
_LOOK = 1_000_000  # bytes that are looked at to recognise a format; COCO's own files are gigabytes on one line
_KNOWN = "JSONL, JSON (rows or COCO), CSV, Parquet, or a folder of pictures with texts"


@dataclass(frozen=True)
class _Choices:
    """What was said about a source; None leaves it to the format. See `open_source`."""

    format: str | None = None
    pictures: str | os.PathLike[str] | None = None
    allow_outside: bool | None = None
    prompt: str | None = None
    tasks: tuple[str, ...] | None = None
    labels: str | None = None
    codec: Codec | str | os.PathLike[str] | None = None
    seed: int | None = None
    count: int | None = None
    weight: float | None = None

    def check_for(self, format_name: str, *known: str) -> None:
        """Refuses what means nothing to a format."""
        said = [each.name for each in fields(self) if getattr(self, each.name) is not None]
        if unknown := [name for name in said if name not in (*known, "format", "weight")]:
            raise InputError(f"'{unknown[0]}' means nothing for {format_name}; there are {', '.join(known)}.")

    def given(self, *names: str) -> dict[str, Any]:
        """Those of the choices that were made."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def open_source(
    *places: str | os.PathLike[str],
    format: str | None = None,  # noqa: A002 - what everybody calls it
    pictures: str | os.PathLike[str] | None = None,
    allow_outside: bool | None = None,
    prompt: str | None = None,
    tasks: tuple[str, ...] | None = None,
    labels: str | None = None,
    codec: Codec | str | os.PathLike[str] | None = None,
    seed: int | None = None,
    count: int | None = None,
) -> Source:
    """The source of a path or name; of several, their mixture. What a name says behind its question mark counts more.

    Args:
        places: paths and names, see above.
        format: "jsonl", "json", "coco", "csv", "parquet" or "folder"; None: recognised by the name and the content.
        pictures: the folder where names of pictures begin; None: the folder of the file.
        allow_outside: whether names may lead out of that folder.
        prompt: of captions; None: "caption en".
        tasks: of COCO ("detect", "segment", "caption") and of scenes.
        labels: of COCO, "all" or "present": see `CocoSettings`.
        codec: of COCO and of scenes, to segment; or the path of its file.
        seed: of scenes.
        count: of scenes, how many.

    Raises:
        InputError: no such file, a format that is not recognised, or a choice that means nothing for it.
    """
    if not places:
        raise InputError("No data was named; pass a path, or a name such as 'scenes:train'.")
    choices = _Choices(format, pictures, allow_outside, prompt, tasks, labels, codec, seed, count)
    asked = [_read_name(os.fspath(place), choices) for place in places]
    sources = [_open(name, said) for name, said in asked]
    if len(sources) == 1:
        return sources[0]
    weights = [said.weight for _, said in asked]
    weighted = any(weight is not None for weight in weights)
    return Mixture(sources, [1.0 if weight is None else weight for weight in weights] if weighted else None)


# -- names -------------------------------------------------------------------------------------------------------------


def _read_name(name: str, choices: _Choices) -> tuple[str, _Choices]:
    """The name without what is said behind the question mark, and that."""
    before, mark, query = name.partition("?")
    if not mark or os.path.exists(name):  # noqa: PTH110 - Path.exists raises for names that are too long
        return name, choices
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        raise InputError(f"'{name}' does not read as NAME?choice=value&choice=value.") from None
    said: dict[str, Any] = {}
    for key, value in pairs:
        if key not in _FROM_TEXT or key in said:
            problem = "is said twice" if key in said else f"is unknown; there are {', '.join(_FROM_TEXT)}"
            raise InputError(f"'{key}' in '{name}' {problem}.")
        try:
            said[key] = _FROM_TEXT[key](value)
        except ValueError:
            raise InputError(f"'{key}' in '{name}' is {shown(value)}, which it cannot be.") from None
    return before, replace(choices, **said)


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "format": str,
    "pictures": str,
    "allow_outside": _truth,
    "prompt": str,
    "tasks": lambda text: tuple(text.split(",")),
    "labels": str,
    "codec": str,
    "seed": int,
    "count": int,
    "weight": float,
}


# -- formats -----------------------------------------------------------------------------------------------------------


def _open(name: str, choices: _Choices) -> Source:
    if name.startswith(_SCENES):
        return _open_scenes(name.removeprefix(_SCENES), choices)
    path = Path(name)
    if not os.path.exists(path):  # noqa: PTH110 - see above
        raise InputError(f"{shown(name)} does not exist; check the spelling and the current folder.")
    file = _file_in(path) if path.is_dir() and choices.format != "folder" else path
    kind = choices.format or _recognised(file)
    if kind not in _OPENERS:
        raise InputError(f"There is no format '{kind}'; there are {', '.join(_OPENERS)}.")
    return _OPENERS[kind](file, choices)


def _open_scenes(split: str, choices: _Choices) -> Source:
    choices.check_for("scenes", "tasks", "seed", "count", "codec")
    from gemlens.scenes.source import Scenes

    return Scenes(split, **choices.given("tasks", "seed", "count", "codec"))


def _file_in(folder: Path) -> Path:
    """The file that says what a folder holds; the folder itself where it is Parquet files, or texts beside pictures.

    Raises:
        InputError: there is nothing known, or more than one thing.
    """
    names = names_in(folder)
    files = [name for name in names if name in TABLES or name.endswith((".jsonl", ".coco.json"))]
    if len(files) == 1:
        return folder / files[0]
    if len(files) > 1:
        raise InputError(f"'{folder}' holds {' and '.join(files[:5])}; pass the path of one of them.")
    if any(name.endswith(".parquet") for name in names) or any(
        is_picture(name) and Path(name).with_suffix(".txt").name in names for name in names
    ):
        return folder
    kinds = Counter(Path(name).suffix or "without an ending" for name in names)
    there = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"
    raise InputError(f"'{folder}' holds {there}, which is no data that is known; expected {_KNOWN}.")


def _recognised(path: Path) -> str:
    """The name of the format of a file or folder.

    Raises:
        InputError: it is none that is known.
    """
    if path.is_dir():
        return "parquet" if any(path.glob("*.parquet")) else "folder"
    endings = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
    if path.suffix.lower() in endings:
        return endings[path.suffix.lower()]
    if path.suffix.lower() != ".json":
        raise InputError(f"'{path}' has the ending '{path.suffix}', which is no data that is known; expected {_KNOWN}.")
    with opened(path) as file:
        first = file.readline(_LOOK)
    try:
        row = Where(str(path), 1).json(first)
    except InputError:  # a value over several lines, or a longer one
        return "json"
    return "jsonl" if isinstance(row, dict) and not is_coco(row) else "json"


def _reader(folder: Path, choices: _Choices) -> RowReader:
    choices.check_for("rows", "pictures", "allow_outside", "prompt")
    return RowReader(_picture_folder(folder, choices), **choices.given("prompt"))


def _picture_folder(folder: Path, choices: _Choices) -> PictureFolder:
    return PictureFolder(Path(choices.pictures or folder), bool(choices.allow_outside))


def _open_json(path: Path, choices: _Choices) -> Source:
    content = read_json(path)
    if isinstance(content, list) and choices.format != "coco":
        return JsonList(path, content, _reader(path.parent, choices))
    if not is_coco(content):
        raise InputError(f"'{path}' is {shown(content)}, but JSON data is a list of rows, or COCO with 'images'.")
    choices.check_for("COCO", "pictures", "allow_outside", "prompt", "tasks", "labels", "codec")
    settings = CocoSettings(codec=_codec(choices.codec), **choices.given("tasks", "labels", "prompt"))
    return Coco(path, content, _picture_folder(path.parent, choices), settings)


def _codec(codec: Codec | str | os.PathLike[str] | None) -> Codec | None:
    if not isinstance(codec, str | os.PathLike):
        return codec
    from gemlens.tasks.mask_codec import MaskCodec

    return MaskCodec.load(codec)


def _open_parquet(path: Path, choices: _Choices) -> Source:
    folder, paths = (path, sorted(path.glob("*.parquet"))) if path.is_dir() else (path.parent, [path])
    return Parquet(paths, _reader(folder, choices))


_OPENERS: dict[str, Callable[[Path, _Choices], Source]] = {
    "jsonl": lambda path, choices: Jsonl(path, _reader(path.parent, choices)),
    "json": _open_json,
    "coco": _open_json,
    "csv": lambda path, choices: Csv(path, _reader(path.parent, choices)),
    "parquet": _open_parquet,
    "folder": lambda path, choices: Captioned(path, _reader(path, choices)),
}
