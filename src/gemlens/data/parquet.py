"""Parquet files -> rows. Pictures are columns of bytes, of names, or of {bytes, path} as `datasets` writes them.

A file is read by groups of rows, of which the last few are kept. Reading in a random order is quick where groups are
small: `datasets` writes 100 rows with pictures per group.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from gemlens.data.example import Example
from gemlens.data.rows import RowReader
from gemlens.data.where import Where
from gemlens.errors import InputError

_GROUPS = 8  # that are kept
_Read = TypeVar("_Read")


class Parquet:
    """A source of the rows of Parquet files, one after another.

    Args:
        paths: of the files, at least one.
        reader: what makes examples of rows.

    Raises:
        InputError: pyarrow is missing, or a file cannot be read.
    """

    def __init__(self, paths: Sequence[Path], reader: RowReader) -> None:
        self._reader = reader
        self._groups: list[tuple[Path, int]] = []
        lengths = []
        self._firsts: list[int] = []  # the file's row that each group begins with
        for path in paths:
            counts = _reading(path, _group_lengths)
            self._groups += [(path, number) for number in range(len(counts))]
            self._firsts += accumulate(counts[:-1], initial=0) if counts else []
            lengths += counts
        self._starts = [*accumulate(lengths, initial=0)]
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int, /) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = bisect_right(self._starts, index) - 1
        place = index - self._starts[group]
        where = Where(str(self._groups[group][0]), f"row {self._firsts[group] + place + 1}")
        table = self._table(group)
        try:
            (row,) = table.slice(place, 1).to_pylist()
        except ValueError as error:  # a text that is no UTF-8, a time that is no time
            where.refuse(f"the row cannot be read ({str(error)[:100]}).")
        return self._reader.read(row, where)

    def _table(self, group: int) -> Any:
        """The rows of a group."""
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        path, number = self._groups[group]
        table = _reading(path, lambda file: file.read_row_group(number))
        self._kept[group] = table
        if len(self._kept) > _GROUPS:
            self._kept.popitem(last=False)
        return table

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process: everything but the groups that are kept."""
        return {**self.__dict__, "_kept": OrderedDict()}


def _group_lengths(file: Any) -> list[int]:
    return [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]


def _reading(path: Path, read: Callable[[Any], _Read]) -> _Read:
    """What `read` gives of the opened file.

    Raises:
        InputError: the file cannot be read.
    """
    pyarrow, parquet = _library()
    try:
        with parquet.ParquetFile(path) as file:
            return read(file)
    except FileNotFoundError:
        raise InputError(f"'{path}' does not exist; check the spelling and the current folder.") from None
    except (pyarrow.ArrowException, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"'{path}' is no Parquet file, or damaged ({lines[0][:200]}).") from error


def _library() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise InputError("To read Parquet takes pyarrow; install it with: pip install 'gemlens[parquet]'.") from error
    return pyarrow, pyarrow.parquet
