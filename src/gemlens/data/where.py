"""Where a value of a file stands. It reads values, and refuses them with the place in every sentence."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gemlens.errors import InputError


@dataclass(frozen=True)
class Where:
    """A place in a file.

    Args:
        file: as the person called it.
        row: number of the line, counted from 1; or another name of the place; empty for the whole file.
    """

    file: str
    row: int | str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}" if self.row != "" else self.file

    @property
    def id(self) -> str:
        """The place without folders, "train.jsonl:12": the same on every machine."""
        return str(Where(Path(self.file).name, self.row))

    def refuse(self, sentence: str) -> NoReturn:
        """Says what is wrong here.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self}: {sentence}")

    def json(self, data: bytes) -> Any:
        """The value that is written as JSON in UTF-8.

        Raises:
            InputError: it is neither.
        """
        text = self.utf8(data)
        try:
            return json.loads(text, parse_constant=_no_number)
        except json.JSONDecodeError as error:
            line = f"line {error.lineno}, " if error.lineno > 1 else ""
            self.refuse(f"this is no JSON ({error.msg} at {line}column {error.colno}).")
        except RecursionError:
            self.refuse("this is no row, as it is nested too deeply.")
        except ValueError as error:  # a number of more than 4,300 digits, NaN
            self.refuse(f"this is no JSON ({str(error)[:100]}).")

    def utf8(self, data: bytes) -> str:
        """The text that is written in UTF-8.

        Raises:
            InputError: it is not.
        """
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self.refuse(f"this is no UTF-8 ({error.reason}); save the file as UTF-8.")

    def text(self, value: Any, name: str) -> str:
        """The value of a field that must be a text.

        Raises:
            InputError: it is none, or no file could hold it.
        """
        if not isinstance(value, str):
            self.refuse(f"{name} is {shown(value)}, but it must be a text.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            self.refuse(f"{name} has half a character (a lone surrogate) at position {error.start}.")
        return value


def shown(value: Any) -> str:
    """A value from a file, short and safe enough for a sentence."""
    if isinstance(value, dict | list | tuple):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    written = ascii(value) if not isinstance(value, int) or abs(value) < 10**50 else "a very long number"
    return written if len(written) <= 80 else f"{written[:30]}...{written[-40:]}"  # of a path, both ends tell most


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")
