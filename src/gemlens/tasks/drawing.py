"""Findings drawn on their picture: boxes, labels, translucent masks.

Everything is a bright colour with a black edge, so that it stands out from black, white and busy pictures alike. A
label has one colour, in every picture; only where two labels of one picture would share theirs, one takes the next.
"""

import os
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gemlens.errors import InputError
from gemlens.tasks.findings import Finding

_COLOURS = [
    "#ffd400", "#00e5ff", "#ff7ab8", "#76ff03", "#ff9100", "#b39dff", "#ffffff", "#00e6a0",
    "#ff8a78", "#8fb8ff", "#d8e600", "#e87bff", "#ffc49c", "#5ce0c8", "#d4b06a", "#b0bec5",
]  # fmt: skip  # each at least 7 to 1 against black, by WCAG 2.2
_LONGEST = 200  # characters of a label that are looked at
_CLEAR = 0.55  # how much of the picture is seen through a mask

_Pixels = tuple[int, int, int, int]  # left, top, right, bottom
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw(picture: Image.Image, findings: Sequence[Finding], font: str | os.PathLike[str] | None = None) -> Image.Image:
    """A copy of a picture in RGB with findings drawn on it.

    Lines and letters grow with the picture. Names stand above their box, or where there is room; what is too long is
    shortened to the picture's width.

    Args:
        picture: as the findings' pixels count it.
        findings: the later lie on top.
        font: a TrueType or OpenType file. Pillow's own has the signs of ASCII and a few quotation marks only, and draws
            a small box for each other one: accents and other scripts need a font that has them, such as DejaVuSans.ttf
            (Latin, Greek, Cyrillic, Arabic) or one of the Noto fonts.

    Raises:
        InputError: a mask of another size than the picture, or a font that cannot be read.
    """
    drawn = picture.convert("RGB")
    colours = _colours({finding.label for finding in findings})
    line = max(1, round(max(drawn.size) / 350))
    for finding in findings:
        if finding.mask is not None:
            drawn = _with_mask(drawn, finding.mask, colours[finding.label], line)
    pen = ImageDraw.Draw(drawn)
    for finding in findings:
        _draw_box(pen, finding, colours[finding.label], line)
    _Names(pen, drawn.size, _font(font, drawn.size), line).draw(findings, colours)
    return drawn


def _colours(labels: Iterable[str]) -> dict[str, str]:
    """Each label's colour: by its own letters, and no two share one while there are enough."""
    colours: dict[str, str] = {}
    for label in sorted(labels):
        start = zlib.crc32(label.encode("utf-8", "surrogatepass"))
        turns = [_COLOURS[(start + turn) % len(_COLOURS)] for turn in range(len(_COLOURS))]
        colours[label] = next((colour for colour in turns if colour not in colours.values()), turns[0])
    return colours


def _with_mask(picture: Image.Image, mask: np.ndarray, colour: str, line: int) -> Image.Image:
    """The picture with the mask tinted, and its border drawn."""
    if mask.shape != picture.size[::-1]:
        shapes = f"{list(mask.shape)}, but the picture is {list(picture.size[::-1])}"
        raise InputError(f"A mask is [height, width] {shapes}; draw findings on the picture they were found in.")
    inside = Image.fromarray(mask.astype(np.uint8) * 255)
    tinted = Image.blend(Image.new("RGB", picture.size, colour), picture, _CLEAR)
    picture = Image.composite(tinted, picture, inside)
    for thickness, ink in ((2 * line, "black"), (line, colour)):
        border = mask & ~_eroded(mask, thickness)
        picture.paste(ink, mask=Image.fromarray(border.astype(np.uint8) * 255))
    return picture


def _eroded(mask: np.ndarray, steps: int) -> np.ndarray:
    """What of a mask is further than `steps` pixels from all outside of it; beyond the picture nothing is outside."""
    core, done = mask.copy(), 0
    while done < steps:
        step = min(done + 1, steps - done)  # doubled each time, without a gap
        for lines in (core, core.T):
            lines[step:] &= lines[:-step]
            lines[:-step] &= lines[step:]
        done += step
    return core


def _draw_box(pen: ImageDraw.ImageDraw, finding: Finding, colour: str, line: int) -> None:
    """A coloured line between two black ones, inside the box's outer edge."""
    left, top, right, bottom = _corners(finding)
    for inset, ink in ((0, "black"), (line, colour), (2 * line, "black")):
        if left + inset <= right - inset and top + inset <= bottom - inset:
            pen.rectangle((left + inset, top + inset, right - inset, bottom - inset), outline=ink, width=line)


def _corners(finding: Finding) -> _Pixels:
    """The first and last pixels of a box."""
    box = finding.box
    left, top = round(box.left), round(box.top)
    return left, top, max(left, round(box.right) - 1), max(top, round(box.bottom) - 1)


def _font(path: str | os.PathLike[str] | None, size: tuple[int, int]) -> _Font:
    height = max(14, round(max(size) / 30))
    if path is None:
        return ImageFont.load_default(height)
    try:
        return ImageFont.truetype(os.fspath(path), height)
    except OSError as error:
        raise InputError(
            f"'{os.fspath(path)}' is no font that can be read ({error}); pass a .ttf or .otf file."
        ) from error


class _Names:
    """Writes labels, each inside the picture and, where there is room, beside those before it."""

    def __init__(self, pen: ImageDraw.ImageDraw, size: tuple[int, int], font: _Font, line: int) -> None:
        self.pen, self.size, self.font = pen, size, font
        self.line = line
        self.edge = max(2, line)  # the outermost pixel of an edge is half transparent
        self.taken: list[_Pixels] = []

    def draw(self, findings: Sequence[Finding], colours: dict[str, str]) -> None:
        for finding in findings:
            if text := self.shortened(_shown(finding)):
                self.draw_one(text, _corners(finding), colours[finding.label])

    def draw_one(self, text: str, corners: _Pixels, colour: str) -> None:
        left, top, right, bottom = self.bounds(text)
        width, height = right - left, bottom - top
        x, y = self.place(corners, width, height)
        self.taken.append((x, y, x + width, y + height))
        self.pen.text((x - left, y - top), text, colour, self.font, stroke_width=self.edge, stroke_fill="black")

    def place(self, corners: _Pixels, width: int, height: int) -> tuple[int, int]:
        """The upper left corner of a name: above the box, in it, below it, elsewhere; above if nothing is free."""
        left, top, right, bottom = corners
        inset = 3 * self.line
        wanted = [(left, top - height), (left + inset, top + inset), (left, bottom + 1), (right - width, top - height)]
        room_x, room_y = self.size[0] - width, self.size[1] - height
        wanted += [(left, y) for y in range(0, room_y + 1, height)]
        places = [(min(max(x, 0), room_x), min(max(y, 0), room_y)) for x, y in wanted]
        return next((place for place in places if self.is_free(*place, width, height)), places[0])

    def is_free(self, x: int, y: int, width: int, height: int) -> bool:
        return not any(
            x < right and left < x + width and y < bottom and top < y + height
            for left, top, right, bottom in self.taken
        )

    def shortened(self, text: str) -> str:
        """The text, or as much of it as fits into the picture; empty if nothing does."""
        kept = text
        while text and not self.fits(kept):
            text = text[:-1]
            kept = f"{text.rstrip()}..."
        return kept if text else ""

    def fits(self, text: str) -> bool:
        left, top, right, bottom = self.bounds(text)
        return right - left <= self.size[0] and bottom - top <= self.size[1]

    def bounds(self, text: str) -> _Pixels:
        """Where the pixels of a text lie if it is drawn at (0, 0)."""
        left, top, right, bottom = self.pen.textbbox((0, 0), text, self.font, stroke_width=self.edge)
        return int(np.floor(left)), int(np.floor(top)), int(np.ceil(right)), int(np.ceil(bottom))


def _shown(finding: Finding) -> str:
    """What is written at a box: no control characters, no line feeds."""
    label = "".join(sign if sign.isprintable() else " " for sign in finding.label[:_LONGEST])
    return label.strip() if finding.score is None else f"{label} {finding.score:.2f}".strip()
