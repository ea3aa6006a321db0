"""What a tokenizer is given, checked: texts, and the second texts of pairs."""

from collections.abc import Iterable, Sequence
from typing import Any

from gemlens.errors import InputError


def checked_texts(name: str, text: Any) -> tuple[list[str], bool]:
    """The texts, and whether it was a single one."""
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not all(isinstance(each, str) for each in texts):
        shown = type(text).__name__
        if isinstance(text, (list, tuple)):
            shown += f" with {next(type(each).__name__ for each in text if not isinstance(each, str))} in it"
        raise InputError(
            f"{name} must be a text or a list of texts, but this came: {shown}. Join texts that are split into words."
        )
    check_unicode(texts)
    return list(texts), isinstance(text, str)


def checked_seconds(texts: Sequence[str], text_pair: Any, one: bool) -> list[str]:
    """The second texts, one for each of the first."""
    seconds, single = checked_texts("text_pair", text_pair)
    if single != one or len(seconds) != len(texts):
        raise InputError(
            f"text and text_pair must be two texts or two lists of one length; {len(texts)} and {len(seconds)} came."
        )
    return seconds


def check_unicode(texts: Iterable[str]) -> None:
    """Refuses texts that no file could hold."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"The text has half a character (a lone surrogate) at position {error.start}; "
                "read it as UTF-8, or replace it with text.encode(errors='replace').decode()."
            ) from error
