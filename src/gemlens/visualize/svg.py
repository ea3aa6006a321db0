"""A page as SVG text: each kind of cell is a pattern as large as a cell, each run of equal cells one rectangle."""

from xml.sax.saxutils import escape

from gemlens.visualize.chart import Cell
from gemlens.visualize.page import CELL, FONT, Page, Run, Text


def draw(page: Page) -> str:
    """The drawing as one SVG element."""
    names = {cell: f"cell-{number}" for number, cell in enumerate(dict.fromkeys(run.cell for run in page.runs))}
    size = f'width="{page.width}" height="{page.height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {page.width} {page.height}" '
        f'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="{FONT}" fill="#222222">',
        "<defs>",
        *(_pattern(cell, name) for cell, name in names.items()),
        "</defs>",
        f'<rect {size} fill="#ffffff"/>',
        *(_run(run, names[run.cell]) for run in page.runs),
        *(_text(text) for text in page.texts),
        "</svg>",
    ]
    return "\n".join([*lines, ""])


def _pattern(cell: Cell, name: str) -> str:
    side, middle = CELL - 1, (CELL - 1) / 2
    return (
        f'<pattern id="{name}" width="{CELL}" height="{CELL}" patternUnits="userSpaceOnUse">'
        f'<rect width="{side}" height="{side}" fill="{cell.fill}"/>'
        f'<text x="{middle}" y="{middle}" text-anchor="middle" dominant-baseline="central" fill="{cell.ink}">'
        f"{escape(cell.sign)}</text></pattern>"
    )


def _run(run: Run, name: str) -> str:
    # Patterns begin at the origin, so the rectangle is drawn there and moved.
    return (
        f'<rect transform="translate({run.x} {run.y})" width="{run.count * CELL}" height="{CELL}" fill="url(#{name})"/>'
    )


def _text(text: Text) -> str:
    turned = f' transform="rotate(-90 {text.x} {text.y})"' if text.upwards else ""
    anchor = ' text-anchor="end"' if text.at_right else ""
    place = f'x="{text.x}" y="{text.y}"{turned}{anchor}'
    return f'<text {place} dominant-baseline="central" xml:space="preserve">{escape(text.text)}</text>'
