"""A chart as lines of text, with the colours of a terminal or without."""

from collections.abc import Iterator
from itertools import groupby
from textwrap import wrap

from gemlens.visualize.chart import LONGEST_LABEL, Cell, Chart, Panel, clipped, columns

_READ = "A row is a token; its cells are what it sees, by kind:"


def draw(chart: Chart, colour: bool, width: int) -> str:
    """The drawing; no line passes `width` columns if the chart has no more lines than there is `room` for."""
    labels = [clipped(label, _label_width(width)) for label in chart.labels]
    text = [*wrap(chart.title, width), *wrap(_READ, width), *_legend(chart, colour, width)]
    for panel in chart.panels:
        text += ["", *wrap(panel.title, width), *_rows(panel, chart.numbers, labels, colour)]
    if chart.left_out:
        text += ["", *wrap(chart.left_out, width)]
    return "\n".join(text)


def room(width: int, tokens: int) -> int:
    """How many lines fit beside their labels into `width` columns, of a prompt of so many tokens."""
    return (width - _label_width(width) - len(str(tokens)) - 2) // 2


def _label_width(width: int) -> int:
    return max(min(LONGEST_LABEL, width // 4), 4)


def _legend(chart: Chart, colour: bool, width: int) -> Iterator[str]:
    line, used = "", 0
    for cell in chart.legend:
        size = len(cell.meaning) + 4
        if used + size > width:
            yield line.rstrip()
            line, used = "", 0
        line += f"{_painted(cell, 1, colour)}{cell.meaning}  "
        used += size
    yield line.rstrip()


def _rows(panel: Panel, numbers: tuple[str, ...], labels: list[str], colour: bool) -> Iterator[str]:
    """The numbers of the columns, written downwards, and then a line per row."""
    digits, width = max(map(len, numbers)), max(map(columns, labels))
    for digit in range(digits):
        yield " " * (digits + width + 2) + " ".join(number.rjust(digits)[digit] for number in numbers)
    for number, label, cells in zip(numbers, labels, panel.cells, strict=True):
        blanks = " " * (width - columns(label))
        signs = "".join(_painted(cell, len([*equal]), colour) for cell, equal in groupby(cells))
        yield f"{number:>{digits}} {label}{blanks} {signs}".rstrip()


def _painted(cell: Cell, count: int, colour: bool) -> str:
    text = f"{cell.sign} " * count
    return f"\x1b[{cell.terminal}m{text}\x1b[0m" if colour else text
