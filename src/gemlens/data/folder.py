"""A folder of pictures with their texts -> rows.

metadata.jsonl     {"file_name": "cow.jpg", "text": "a cow"}, as `datasets` has it; or any other row of rows.py
captions.csv       columns image and caption; or prefix and suffix, or the names of rows.py; metadata.csv too
cow.txt            beside cow.jpg, where there is none of these files
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from gemlens.data.example import Example
from gemlens.data.jsonl import opened
from gemlens.data.rows import RowReader
from gemlens.data.where import Where
from gemlens.errors import InputError

TABLES = ("captions.csv", "metadata.csv")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class Csv:
    """A source of the rows of a CSV file, which is held in memory; the first row names the columns.

    Args:
        path: of the file.
        reader: what makes examples of rows.

    Raises:
        InputError: the file cannot be read or is no CSV in UTF-8.
    """

    def __init__(self, path: Path, reader: RowReader) -> None:
        self._path, self._reader = path, reader
        self._names, *self._rows = _csv_rows(path)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Example:
        (_, names), (line, row) = self._names, self._rows[index]
        return self._reader.read(dict(zip(names, row, strict=True)), Where(str(self._path), line))


class Captioned:
    """A source of the pictures of a folder, each with a text file of its name beside it, in the order of their names.

    Args:
        path: of the folder.
        reader: what makes examples of rows.

    Raises:
        InputError: a picture has no text, or the folder cannot be read. When called: a text is no UTF-8.
    """

    def __init__(self, path: Path, reader: RowReader) -> None:
        self._path, self._reader = path, reader
        self._pictures = [path / name for name in names_in(path) if is_picture(name)]
        for picture in self._pictures:
            if not picture.with_suffix(".txt").is_file():
                raise InputError(
                    f"'{picture}' has no text beside it; write '{picture.with_suffix('.txt').name}', or one file "
                    "captions.csv or metadata.jsonl for all pictures."
                )

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int, /) -> Example:
        picture = self._pictures[index]
        where = Where(str(picture.with_suffix(".txt")), "")
        with opened(picture.with_suffix(".txt")) as file:
            text = where.utf8(file.read()).strip()
        return self._reader.read({"image": picture.name, "caption": text}, where)


def names_in(folder: Path) -> list[str]:
    """The names in a folder, in their order.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InputError(f"The folder '{folder}' cannot be read ({str(error.strerror).lower()}).") from error


def is_picture(name: str) -> bool:
    """Whether a file's name ends like one of a picture."""
    return Path(name).suffix.lower() in _PICTURES


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of the last line, values) of every row that is not empty, beginning with the names of the columns."""
    with opened(path) as file:
        text = Where(str(path), "").utf8(file.read())
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] | None = None
    try:
        for row in filter(None, rows):
            names = row if names is None else names
            if len(row) != len(names):
                Where(str(path), rows.line_num).refuse(f"the row has {len(row)} values, but {len(names)} columns.")
            yield rows.line_num, row
    except csv.Error as error:
        Where(str(path), rows.line_num).refuse(f"this is no CSV ({error}).")
    if names is None:
        Where(str(path), "").refuse("the file is empty; its first row names the columns, such as image,caption.")
