"""What reaches the terminal: answers on standard output, everything else on standard error, nothing raw from files.

Text of models and checkpoints may hold escape sequences, which a terminal would obey; `plain` takes them apart.
"""

import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


def plain(text: str) -> str:
    """The text without control characters (C0, DEL, C1), except line breaks and tabs."""
    return "".join(each for each in text if each in "\n\t" or unicodedata.category(each) != "Cc")


def show(text: str) -> None:
    """Writes a part of an answer on standard output, at once."""
    sys.stdout.write(plain(text))
    sys.stdout.flush()


def tell(sentence: str) -> None:
    """Writes a line on standard error."""
    print(plain(sentence), file=sys.stderr, flush=True)


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Lines of a table: as wide as its widest cells, so that nothing is cut; the columns `right` end alike."""
    rows = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def size_text(count: int) -> str:
    """Bytes in a unit that fits: 253.1 MB are 253,100,000."""
    unit = 0
    while count >= 1000 ** (unit + 1) and unit < 4:
        unit += 1
    return f"{count} B" if unit == 0 else f"{count / 1000**unit:.1f} {'kMGT'[unit - 1]}B"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Turns a wheel on standard error, if that is a terminal, while the block works."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True, markup=False).status(plain(what)):
        yield


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error, if that is a terminal; gives the function that moves it by one step."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(plain(what), total=total)
        yield lambda: shown.advance(task)
