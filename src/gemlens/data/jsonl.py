"""JSON files of rows -> sources. Of JSONL only the places of the lines are kept, so a file of any size may be opened.

file -> Lines: where each line begins -> a line, read when it is asked for -> RowReader -> Example
"""

import os
import stat
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gemlens.data.example import Example
from gemlens.data.rows import RowReader
from gemlens.data.where import Where
from gemlens.errors import InputError

_LONGEST_LINE = 256_000_000  # bytes; a row with several pictures as `data:` URLs


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A data file, open for reading.

    Raises:
        InputError: it is missing, no regular file, or reading fails.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise InputError(f"'{path}' is no file but a folder, a pipe or a device; pass a file.")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"'{path}' does not exist; check the spelling and the current folder.") from None
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({(error.strerror or 'no reason given').lower()}).") from error


class Lines:
    """The lines of a file that hold something, by number from 0. 12 bytes of memory for each.

    Raises:
        InputError: the file cannot be read, or a line is longer than 256 MB.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._numbers = array("Q"), array("I")
        position = 0
        with opened(path) as file:
            self._stamp = _stamp(file)
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), b""), 1):
                if len(line) > _LONGEST_LINE:
                    Where(str(path), number).refuse("the line has more than 256 MB; this is no JSONL.")
                if not line.isspace():
                    self._starts.append(position)
                    self._numbers.append(number)
                position += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> Where:
        """The place of a line."""
        return Where(str(self.path), self._numbers[index])

    def read(self, index: int) -> Any:
        """The JSON value on a line.

        Raises:
            InputError: it is no JSON, or the file is another than when it was opened.
        """
        where = self.where(index)
        with opened(self.path) as file:
            if _stamp(file) != self._stamp:
                raise InputError(f"'{self.path}' has changed since it was opened; open it again.")
            file.seek(self._starts[index])
            return where.json(file.readline().rstrip())


def _stamp(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


class Jsonl:
    """A source of the lines of a file, one row each.

    Args:
        path: of the file.
        reader: what makes examples of rows.

    Raises:
        InputError: the file cannot be read.
    """

    def __init__(self, path: Path, reader: RowReader) -> None:
        self._lines, self._reader = Lines(path), reader

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int, /) -> Example:
        return self._reader.read(self._lines.read(index), self._lines.where(index))


class JsonList:
    """A source of the rows of one JSON list, which is held in memory.

    Args:
        path: of the file, for sentences.
        rows: the list.
        reader: what makes examples of rows.
    """

    def __init__(self, path: Path, rows: list[Any], reader: RowReader) -> None:
        self._path, self._rows, self._reader = path, rows, reader

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Example:
        return self._reader.read(self._rows[index], Where(str(self._path), f"row {index + 1}"))


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        InputError: the file cannot be read or is no JSON.
    """
    with opened(path) as file:
        return Where(str(path), "").json(file.read())
