"""A chart -> where everything stands on a page, in points; png.py and svg.py only put it down.

title
how to read it, legend
panel title        panel title
        columns            columns
  rows  cells        rows  cells
what is left out
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from gemlens.visualize.chart import GAP, Cell, Chart, Panel, columns

CELL = 18  # a cell's side, the white line between two cells included
FONT = 12
_LETTER = 7.3  # width of one column of text
_LINE = 24  # height of one line of text
_MARGIN = 20
_READ = "A row is a token; its cells are what it sees, by kind."


@dataclass(frozen=True)
class Text:
    """One line of text around the height `y`.

    Args:
        x: where it begins, or ends if it is right-aligned.
        y: its middle.
        text: safe to show.
        at_right: whether it ends at x.
        upwards: whether it is turned to read upwards; it then begins at y, around x.
    """

    x: float
    y: float
    text: str
    at_right: bool = False
    upwards: bool = False


@dataclass(frozen=True)
class Run:
    """Equal cells side by side, the first with its upper left corner at (x, y)."""

    x: int
    y: int
    count: int
    cell: Cell


@dataclass(frozen=True)
class Page:
    """All that is put down, on white."""

    width: int
    height: int
    texts: tuple[Text, ...]
    runs: tuple[Run, ...]


def lay_out(chart: Chart) -> Page:
    """The page of a chart."""
    names = [f"{label}  {number}" for label, number in zip(chart.labels, chart.numbers, strict=True)]
    beside, side = max(map(_width, names)) + 8, CELL * len(names)  # names stand beside the cells and above them
    top = _MARGIN + 3 * _LINE + beside
    bottom = top + side + (2 * _LINE if chart.left_out else 0)
    texts = [
        Text(_MARGIN, _MARGIN + _LINE / 2, chart.title),
        Text(_MARGIN, _MARGIN + 1.5 * _LINE, _READ),
        Text(_MARGIN, bottom - _LINE, chart.left_out),
    ]
    runs: list[Run] = []
    left = _MARGIN + _width(_READ) + CELL
    for cell in chart.legend:
        runs.append(Run(left, _MARGIN + _LINE + (_LINE - CELL) // 2, 1, cell))
        texts.append(Text(left + CELL + 4, _MARGIN + 1.5 * _LINE, cell.meaning))
        left += 2 * CELL + _width(cell.meaning)
    right = max(left, *(_MARGIN + _width(text.text) for text in texts[:3]))
    left = _MARGIN
    for panel in chart.panels:
        texts.append(Text(left, _MARGIN + 2.5 * _LINE, panel.title))
        texts += _names(chart, left + beside, top)
        runs += _runs(panel, left + beside, top)
        right = max(right, left + beside + side, left + _width(panel.title))
        left += max(beside + side, _width(panel.title)) + 2 * CELL
    return Page(right + _MARGIN, bottom + _MARGIN, tuple(text for text in texts if text.text), tuple(runs))


def _names(chart: Chart, left: int, top: int) -> Iterator[Text]:
    """The names of rows left of the cells that begin at (left, top), and of columns above them."""
    for place, (number, label) in enumerate(zip(chart.numbers, chart.labels, strict=True)):
        middle = place * CELL + CELL / 2
        yield Text(left - 6, top + middle, f"{label}  {number}", at_right=True)
        yield Text(left + middle, top - 6, f"{number}  {label}", upwards=True)


def _runs(panel: Panel, left: int, top: int) -> Iterator[Run]:
    for row, cells in enumerate(panel.cells):
        column = 0
        for cell, equal in groupby(cells):
            count = len([*equal])
            if cell is not GAP:
                yield Run(left + column * CELL, top + row * CELL, count, cell)
            column += count


def _width(text: str) -> int:
    return round(columns(text) * _LETTER)
