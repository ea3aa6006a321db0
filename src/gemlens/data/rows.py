"""A row of a file -> an Example. JSONL, JSON lists, CSV and Parquet all come through here.

{"image": "cow.jpg", "prefix": "detect cow", "suffix": "<loc0100><loc0200><loc0300><loc0400> cow"}
{"image": "cow.jpg", "caption": "a cow"}                                 with the prompt that the source was given
{"messages": [...], "images": ["cow.jpg"]}, {"conversations": [...]}     chats.py

Several pictures are a list. `id` and `references` (all answers that count as right) may stand in any row. Fields of
other names are not read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemlens.data.chats import read_chat
from gemlens.data.example import Example, Picture
from gemlens.data.picture_folder import PictureFolder
from gemlens.data.where import Where, shown

PICTURES = ("image", "images", "file_name", "image_path")
CAPTIONS = ("caption", "text")
_CHATS = ("messages", "conversations")
_LONGEST_ID = 200  # characters


@dataclass(frozen=True)
class RowReader:
    """Reads rows.

    Args:
        folder: where their pictures are.
        prompt: of rows that have a caption and no prefix.
    """

    folder: PictureFolder
    prompt: str = "caption en"

    def read(self, row: Any, where: Where) -> Example:
        """The example of a row.

        Raises:
            InputError: a field is missing or holds something else than it should; the sentence names the place.
            PictureError: a picture's file is missing or outside its folder.
        """
        if not isinstance(row, Mapping):
            where.refuse(f"this is {shown(row)}, but a row is an object such as {{'image': ..., 'prefix': ...}}.")
        row = {str(name): value for name, value in row.items() if value is not None}  # Parquet fills up with None
        name, references, pictures = _id(row, where), _references(row, where), self._pictures(row, where)
        if chat := next((each for each in _CHATS if each in row), None):
            messages, pictures = read_chat(row[chat], row.get("system"), pictures, self.folder, where)
            return Example(name, pictures, messages=messages, references=references)
        prefix, suffix = self._texts(row, where)
        return Example(name, pictures, prefix, suffix, references=references)

    def _texts(self, row: Mapping[str, Any], where: Where) -> tuple[str, str]:
        """Prompt and answer."""
        if "prefix" in row and "suffix" in row:
            return where.text(row["prefix"], "'prefix'"), where.text(row["suffix"], "'suffix'")
        caption = next((each for each in CAPTIONS if each in row), None)
        if caption is None or "prefix" in row or "suffix" in row:
            has = shown(", ".join(sorted(row)))
            where.refuse(f"the row has {has}; expected are image, prefix, suffix, or image, caption, or messages.")
        return self.prompt, where.text(row[caption], f"'{caption}'")

    def _pictures(self, row: Mapping[str, Any], where: Where) -> tuple[Picture, ...]:
        given = [name for name in PICTURES if name in row]
        if len(given) > 1:
            where.refuse(f"pictures are given as {' and as '.join(map(repr, given))}; give them once.")
        values = row[given[0]] if given else []
        return tuple(self.folder.picture(each, where) for each in (values if isinstance(values, list) else [values]))


def _id(row: Mapping[str, Any], where: Where) -> str:
    """The place, and what the row calls itself."""
    own = row.get("id", "")
    if type(own) is int:
        own = shown(own)
    return f"{where.id} ({own[:_LONGEST_ID]})" if where.text(own, "'id'") else where.id


def _references(row: Mapping[str, Any], where: Where) -> tuple[str, ...]:
    texts = row.get("references", [])
    if not isinstance(texts, list):
        where.refuse(f"'references' is {shown(texts)}, but it must be a list of texts.")
    return tuple(where.text(text, "a reference") for text in texts)
