"""Chats as trainers write them -> messages in the documented form, and their pictures in order.

{"role": "user", "content": "What is this?"}                          TRL, axolotl: pictures come before the first text
{"role": "user", "content": "<image>What is this?"}                   LLaMA-Factory
{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
{"from": "human", "value": "<image>What is this?"}                    ShareGPT, LLaVA

A part may bring its picture along: {"type": "image", "path": "cow.jpg"}. Line breaks beside a mark belong to it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemlens.data.example import Picture
from gemlens.data.picture_folder import PictureFolder
from gemlens.data.where import Where, shown
from gemlens.errors import InputError
from gemlens.processing.chat.messages import read_conversation

_MARK = re.compile(r"\n*<image>\n*")
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "model": "assistant",
    "gpt": "assistant",
}
_BRINGS = ("image", "path", "url", "base64", "bytes")
_UNREAD = ("tool_calls", "weight", "train")  # they change what is learned, so they may not just be dropped


@dataclass(frozen=True)
class _Place:
    """Where a picture stands; the row's list has it unless it is `own`."""

    own: Picture | None = None


@dataclass(frozen=True)
class _Turn:
    role: str
    parts: tuple[str | _Place, ...]

    def message(self) -> dict[str, Any]:
        """As `Example.messages` has it."""
        if all(isinstance(part, str) for part in self.parts):
            return {"role": self.role, "content": "".join(map(str, self.parts))}
        written = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in self.parts
        ]
        return {"role": self.role, "content": written}


def read_chat(
    entries: Any, system: Any, pictures: Sequence[Picture], folder: PictureFolder, where: Where
) -> tuple[tuple[Mapping[str, Any], ...], tuple[Picture, ...]]:
    """Messages with `{"type": "image"}` where a picture stands, and the pictures in that order.

    Args:
        entries: the chat as the row has it.
        system: what the row says to the model beforehand; None for nothing.
        pictures: those of the row, for places that bring none along.
        folder: where pictures are that parts name.
        where: of the row.

    Raises:
        InputError: something is no message, or pictures and places do not fit.
        PictureError: the file of a picture is missing or outside its folder.
    """
    if not isinstance(entries, list) or not entries:
        where.refuse(f"the chat is {shown(entries)}, but it must be a list of messages.")
    turns = [_turn(entry, f"message {number}", folder, where) for number, entry in enumerate(entries, 1)]
    if system is not None:
        turns.insert(0, _Turn("system", (where.text(system, "'system'"),)))
    if pictures and not _places(turns):
        turns = _with_pictures_first(turns, len(pictures))
    if (places := sum(place.own is None for place in _places(turns))) != len(pictures):
        where.refuse(f"the chat has {places} places for pictures of the row, but the row names {len(pictures)}.")
    waiting = iter(pictures)
    ordered = tuple(next(waiting) if place.own is None else place.own for place in _places(turns))
    messages = tuple(turn.message() for turn in turns)
    try:
        roles = {turn.role for turn in read_conversation(messages)}
    except InputError as error:
        where.refuse(str(error))
    if "assistant" not in roles:
        where.refuse("the chat has no message of the assistant, so there is nothing to learn.")
    return messages, ordered


def _places(turns: Sequence[_Turn]) -> list[_Place]:
    return [part for turn in turns for part in turn.parts if isinstance(part, _Place)]


def _with_pictures_first(turns: list[_Turn], count: int) -> list[_Turn]:
    """The turns with so many pictures before the first words of the user."""
    first = next((number for number, turn in enumerate(turns) if turn.role == "user"), 0)
    opened = _Turn(turns[first].role, (*(_Place() for _ in range(count)), *turns[first].parts))
    return [*turns[:first], opened, *turns[first + 1 :]]


def _turn(entry: Any, name: str, folder: PictureFolder, where: Where) -> _Turn:
    if not isinstance(entry, Mapping):
        where.refuse(f"{name} is {shown(entry)}, but it must be an object with 'role' and 'content'.")
    if unread := next((each for each in _UNREAD if entry.get(each) is not None), None):
        where.refuse(f"{name} has '{unread}', which is not read here; all that the assistant says is learned.")
    role = where.text(entry.get("role", entry.get("from")), f"the role of {name}")
    if role not in _ROLES:
        where.refuse(f"{name} has the role {shown(role)}; there are {', '.join(_ROLES)}.")
    content = entry.get("content", entry.get("value"))
    if isinstance(content, list):
        return _Turn(_ROLES[role], tuple(_part(part, name, folder, where) for part in content))
    return _Turn(_ROLES[role], _split(where.text(content, f"the content of {name}")))


def _split(text: str) -> tuple[str | _Place, ...]:
    """Texts, and places where `<image>` stood."""
    first, *others = _MARK.split(text)
    parts: list[str | _Place] = [first]
    for other in others:
        parts += [_Place(), other]
    return tuple(part for part in parts if part != "") if others else (text,)


def _part(part: Any, name: str, folder: PictureFolder, where: Where) -> str | _Place:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return where.text(part.get("text"), f"a text of {name}")
    if kind not in ("image", "image_url"):
        where.refuse(f"{name} has a part that is {shown(part)}; parts have the type 'text' or 'image'.")
    given = {each: part[each] for each in (*_BRINGS, "image_url") if part.get(each) is not None}
    if not given:
        return _Place()
    if len(given) > 1 and given.keys() != {"bytes", "path"}:
        where.refuse(f"{name} has a picture given as {' and as '.join(map(repr, given))}; give it once.")
    return _Place(folder.picture(_brought(given, name, where), where))


def _brought(given: Mapping[str, Any], name: str, where: Where) -> Any:
    """What a part brings, as `PictureFolder.picture` takes it."""
    if "bytes" in given:
        return given
    if "base64" in given:
        text = where.text(given["base64"], f"a picture of {name}")
        return text if text[:5].lower() == "data:" else f"data:;base64,{text}"
    (value,) = given.values()
    return value.get("url") if "image_url" in given and isinstance(value, Mapping) else value
