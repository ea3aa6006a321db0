"""Messages as people write them -> turns: one type for each thing, roles by their usual names, neighbours merged.

The first step of a chat; chat_template.py writes the turns as one text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from gemlens.errors import InputError

_ROLES = {"developer": "system", "model": "assistant"}  # what other interfaces call them
_TOOLS = ("tool", "function")
_SOURCES = ("image", "url", "path", "base64")
_MOST_MESSAGES = 10_000


@dataclass(frozen=True)
class Picture:
    """A picture of a message: `source` is what `open_picture` takes, None where only its place is known."""

    source: Any


@dataclass(frozen=True)
class Turn:
    """What one side says: texts and pictures in order. `text_only`: the message gave a text, not a list of parts."""

    role: str
    parts: tuple[str | Picture, ...]
    text_only: bool
    extra: Mapping[str, Any] = field(default_factory=dict)

    def message(self) -> dict[str, Any]:
        """The turn as a chat template sees it."""
        named = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in self.parts]
        content: Any = "".join(part for part in self.parts if isinstance(part, str)) if self.text_only else named
        return {"role": self.role, "content": content, **self.extra}


def is_batch(conversation: Any) -> bool:
    """Whether this is a list of conversations instead of one.

    Raises:
        InputError: it is neither, or empty.
    """
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise InputError("A conversation is a list of messages like {'role': 'user', 'content': 'Hello'}.")
    return isinstance(conversation[0], (list, tuple))


def read_conversation(conversation: Any, knows_tools: bool = False) -> list[Turn]:
    """The turns of a conversation: roles by their usual names, neighbours of one role merged.

    Messages of `developer` are the system's, those of `model` the assistant's. Texts of merged messages are joined by a
    blank line, and so are several texts of the system, of which published templates would drop all but the first.
    What a tool answered is the user's, unless the template `knows_tools`.

    Raises:
        InputError: something is no message, has a part of an unknown type, or the system speaks of pictures or later.
    """
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise InputError("An empty list is no conversation; pass messages like {'role': 'user', 'content': 'Hello'}.")
    if len(conversation) > _MOST_MESSAGES:
        raise InputError(f"The conversation has {len(conversation)} messages; {_MOST_MESSAGES} are the limit.")
    read = [_turn(message, place, knows_tools) for place, message in enumerate(conversation)]
    groups = groupby(read, key=lambda turn: (turn.role, id(turn) if turn.extra else None))
    turns = [_merged(list(group)) for _, group in groups]
    for place, turn in enumerate(turns):
        if turn.role == "system":
            if place or turn.extra or not all(isinstance(part, str) for part in turn.parts):
                raise InputError("A message of the system stands first and holds only text.")
            turns[0] = replace(turn, parts=("\n\n".join(str(part) for part in turn.parts),))
    if all(turn.role == "system" for turn in turns):
        raise InputError("The conversation has only a message of the system; add one of the user.")
    return turns


def _turn(message: Any, place: int, knows_tools: bool) -> Turn:
    where = f"Message {place + 1}"
    if not isinstance(message, Mapping) or not isinstance(role := message.get("role"), str) or not role:
        raise InputError(f"{where} is no dict with a 'role', like {{'role': 'user', 'content': 'Hello'}}.")
    extra = {key: plain_copy(value, where) for key, value in message.items() if key not in ("role", "content")}
    if role in _TOOLS and not knows_tools:
        role, extra = "user", {}
    content = message.get("content")
    if content is None and extra:  # a call of a tool has no words
        content = ""
    if isinstance(content, str):
        return Turn(_ROLES.get(role, role), (content,), True, extra)
    if not isinstance(content, (list, tuple)):
        raise InputError(f"{where} has a 'content' of type {type(content).__name__}; pass a text or a list of parts.")
    parts = tuple(_part(part, where) for part in content)
    return Turn(_ROLES.get(role, role), parts, False, extra)


def _part(part: Any, where: str) -> str | Picture:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image":
        given = [key for key in _SOURCES if part.get(key) is not None]
        if len(given) > 1:
            raise InputError(f"{where} has a picture given as {' and as '.join(map(repr, given))}; give it once.")
        if not given:
            return Picture(None)
        source = part[given[0]]
        if given[0] == "base64" and isinstance(source, str) and not source.startswith("data:"):
            source = f"data:;base64,{source}"
        return Picture(source)
    if kind == "text":
        raise InputError(f"{where} has a part of type 'text' whose 'text' is no text.")
    raise InputError(
        f"{where} has a part of type {kind!r}; parts are {{'type': 'text', 'text': ...}} and {{'type': 'image', 'url': "
        "...}, with 'path', 'image' or 'base64' instead of 'url' if you like."
    )


def _merged(turns: list[Turn]) -> Turn:
    first, *more = turns
    parts = list(first.parts)
    for turn in more:
        head, *rest = turn.parts or ("",)
        if parts and isinstance(parts[-1], str) and isinstance(head, str):
            parts[-1] = "\n\n".join(text for text in (parts[-1], head) if text)
        else:
            parts.append(head)
        parts += rest
    return replace(first, parts=tuple(parts), text_only=all(turn.text_only for turn in turns))


def plain_copy(value: Any, where: str, depth: int = 0) -> Any:
    """A copy made of dicts, lists, texts and numbers only: a template may not get at anything else.

    Raises:
        InputError: the value, which `where` names, holds something else or is nested too deeply.
    """
    if depth > 50:
        raise InputError(f"{where} is nested more than 50 deep.")
    if isinstance(value, Mapping):
        return {str(key): plain_copy(each, where, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_copy(each, where, depth + 1) for each in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise InputError(f"{where} holds a {type(value).__name__}; a chat template takes texts, numbers, lists and dicts.")
