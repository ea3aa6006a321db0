"""What is drawn, before anybody chooses ink: tokens and masks -> lines and cells.

Tokens of a picture that see and are seen alike in every layer are folded: one line then stands for many of them and its
cells are still true, as all tokens behind it have the same. What is still too long loses its middle, and says so.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LONGEST_LABEL = 18


@dataclass(frozen=True)
class Token:
    """A token of the prompt.

    Args:
        text: its piece of the vocabulary.
        kind: "text", "picture", "prefix" (PaliGemma's prompt) or "answer".
        picture: which picture it is a part of, counted from 0.
    """

    text: str
    kind: str
    picture: int | None = None


@dataclass(frozen=True, repr=False)
class LayerMask:
    """What tokens see in the layers that have the same window.

    Args:
        window: how many tokens back a query sees, itself included; None for all.
        layers: their numbers, from 0.
        depth: how many layers the model has.
        seen: [S, S] bool, a row per query: True where it sees the key.
        outside: [S, S] bool: True where it would, if there were no window.
    """

    window: int | None
    layers: tuple[int, ...]
    depth: int
    seen: Tensor
    outside: Tensor

    @property
    def title(self) -> str:
        """Which layers these are, in words."""
        kind = "full attention" if self.window is None else f"sliding attention, window {self.window}"
        return f"{kind} ({len(self.layers)} of {self.depth} layers)"

    def __repr__(self) -> str:
        return f"<LayerMask of {len(self.seen)} tokens: {self.title}>"


@dataclass(frozen=True)
class Cell:
    """What a cell says and how it looks, by sign and by colour.

    Args:
        sign: one ASCII character.
        meaning: for the legend.
        fill: colour in pictures (those of what is seen are Okabe and Ito's, which the colour-blind tell apart).
        ink: of the sign in pictures.
        terminal: parameters of the terminal's colour sequence, of its 256 colours.
    """

    sign: str
    meaning: str
    fill: str
    ink: str
    terminal: str


SEEN = {
    "text": Cell("#", "text", "#56b4e9", "#1d6a96", "48;5;74;38;5;16"),
    "picture": Cell("@", "picture", "#e69f00", "#7d5600", "48;5;214;38;5;16"),
    "prefix": Cell("+", "prefix", "#2fb890", "#05523c", "48;5;72;38;5;16"),
    "answer": Cell("*", "answer", "#cc79a7", "#74305a", "48;5;175;38;5;16"),
}
HIDDEN = Cell(".", "not seen", "#f3f3f3", "#b0b0b0", "38;5;244")
OUTSIDE = Cell("-", "outside the window", "#d0d0d0", "#5c5c5c", "48;5;250;38;5;16")
GAP = Cell(" ", "left out", "#ffffff", "#ffffff", "0")
LEGEND = (*SEEN.values(), HIDDEN, OUTSIDE)


@dataclass(frozen=True)
class Line:
    """One row and one column: a token, several that are alike, or a gap where tokens were left out.

    Args:
        first: number of its first token.
        count: how many tokens it stands for.
        is_gap: whether they are left out.
    """

    first: int
    count: int = 1
    is_gap: bool = False


@dataclass(frozen=True)
class Panel:
    """The cells [row][column] of layers that see the same."""

    title: str
    cells: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Chart:
    """All that is drawn.

    Args:
        title: above everything, safe to show.
        lines: rows and columns, the same for all panels.
        numbers: by line, the number of its token; ":" where there are several.
        labels: by line, the text of its token, safe to show.
        panels: side by side or below each other.
        left_out: a sentence about the gap; empty if there is none.
    """

    title: str
    lines: tuple[Line, ...]
    numbers: tuple[str, ...]
    labels: tuple[str, ...]
    panels: tuple[Panel, ...]
    left_out: str

    @cached_property
    def legend(self) -> tuple[Cell, ...]:
        """The cells that occur."""
        found = {cell for panel in self.panels for row in panel.cells for cell in row}
        return tuple(cell for cell in LEGEND if cell in found)


def make_chart(title: str, tokens: Sequence[Token], masks: Sequence[LayerMask], per_picture: int, most: int) -> Chart:
    """The chart of a prompt.

    Args:
        title: above everything, safe to show.
        tokens: S of them.
        masks: by kind of layer.
        per_picture: as many lines at most for tokens of a picture that are alike.
        most: as many lines at most.
    """
    lines = shorten(fold(tokens, masks, per_picture), most)
    gap = next((line for line in lines if line.is_gap), None)
    left_out = ""
    if gap is not None:
        last = gap.first + gap.count - 1
        left_out = (
            f"Tokens {gap.first} to {last} are left out, as there is room for {len(lines)} lines; `masks` has them."
        )
    numbers = tuple(str(line.first) if line.count == 1 and not line.is_gap else ":" for line in lines)
    labels = tuple(_label(line, tokens) for line in lines)
    return Chart(title, lines, numbers, labels, tuple(_panels(lines, tokens, masks)), left_out)


def fold(tokens: Sequence[Token], masks: Sequence[LayerMask], per_picture: int) -> tuple[Line, ...]:
    """A line per token, but `per_picture` at most for neighbours in a picture that are alike in all masks."""
    alike = _alike(masks)
    lines: list[Line] = []
    start = 0
    for end in range(1, len(tokens) + 1):
        picture = tokens[end - 1].picture
        if end < len(tokens) and picture is not None and tokens[end].picture == picture and alike[end - 1]:
            continue
        lines += _folded(start, end, per_picture)
        start = end
    return tuple(lines)


def shorten(lines: Sequence[Line], most: int) -> tuple[Line, ...]:
    """The lines, or their beginning and end around a gap, `most` in all and at least three."""
    most = max(most, 3)
    if len(lines) <= most:
        return tuple(lines)
    head, tail = most // 2, (most - 1) // 2
    first, behind = lines[head].first, lines[-tail].first
    return (*lines[:head], Line(first, behind - first, is_gap=True), *lines[-tail:])


def shown(text: str) -> str:
    """Text of strangers, safe to print: blanks as "_", and what is no visible character of its own as its code.

    Control characters, the terminal's escape sequences among them, marks that turn the direction of writing and marks
    that stand above other letters all become codes such as `\\x1b`.
    """
    return "".join(_shown(character) for character in text.replace("\u2581", "_").replace(" ", "_"))


def columns(text: str) -> int:
    """How many columns a shown text takes in a terminal: East Asian characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def clipped(text: str, most: int) -> str:
    """A shown text of `most` columns at most; ".." stands for its end."""
    if columns(text[: most + 1]) <= most:  # a character takes one column or two
        return text
    text = text[: most - 2]
    while columns(text) > most - 2:
        text = text[:-1]
    return f"{text}.."


def _folded(start: int, end: int, most: int) -> list[Line]:
    """Tokens that are alike as `most` lines: the first and the last of them, and one for those between."""
    if end - start <= most:
        return [Line(number) for number in range(start, end)]
    head, tail = start + most // 2, end - (most - 1) // 2
    return [*map(Line, range(start, head)), Line(head, tail - head), *map(Line, range(tail, end))]


def _shown(character: str) -> str:
    fine = character.isprintable() and unicodedata.category(character)[0] != "M" and character != "\\"
    return character if fine else character.encode("unicode_escape").decode("ascii")


def _label(line: Line, tokens: Sequence[Token]) -> str:
    if line.is_gap:
        return ""
    text = shown(tokens[line.first].text)
    return clipped(text if line.count == 1 else f"{line.count} x {text}", LONGEST_LABEL)


def _alike(masks: Sequence[LayerMask]) -> list[bool]:
    """[S - 1] whether a token and the next see the same and are seen by the same, in all masks."""
    alike = torch.ones(len(masks[0].seen) - 1, dtype=torch.bool)
    for numbers in (each for mask in masks for each in (mask.seen, mask.outside)):
        alike &= (numbers[1:] == numbers[:-1]).all(1) & (numbers[:, 1:] == numbers[:, :-1]).all(0)
    return alike.tolist()


def _panels(lines: Sequence[Line], tokens: Sequence[Token], masks: Sequence[LayerMask]) -> list[Panel]:
    """A panel per kind of layer; kinds that see the same in this prompt share one."""
    titles: list[list[str]] = []
    kept: list[LayerMask] = []
    for mask in masks:
        same = next((place for place, other in enumerate(kept) if torch.equal(other.seen, mask.seen)), None)
        if same is None:
            kept.append(mask)
            titles.append([mask.title])
        else:
            titles[same].append(mask.title)
    return [Panel("; ".join(title), _cells(lines, tokens, mask)) for title, mask in zip(titles, kept, strict=True)]


def _cells(lines: Sequence[Line], tokens: Sequence[Token], mask: LayerMask) -> tuple[tuple[Cell, ...], ...]:
    places = torch.tensor([line.first for line in lines])
    seen, outside = (numbers[places][:, places].tolist() for numbers in (mask.seen, mask.outside))

    def cell(row: int, column: int) -> Cell:
        if lines[row].is_gap or lines[column].is_gap:
            return GAP
        if seen[row][column]:
            return SEEN[tokens[lines[column].first].kind]
        return OUTSIDE if outside[row][column] else HIDDEN

    every = range(len(lines))
    return tuple(tuple(cell(row, column) for column in every) for row in every)
