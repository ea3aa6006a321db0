"""Four <loc> tokens <-> a box in pixels of the original picture.

    Box(left=64, top=32, right=128, bottom=96) of a picture of 256 x 128
        <-> "<loc0256><loc0256><loc0767><loc0512>": top, left, bottom, right

A side is cut into 1023 steps, as big_vision does when it trains and when it scores: token 0 is one edge of the picture,
token 1023 the other. Blog posts and the library supervision divide by 1024, which moves a box by up to a thousandth of
the side; `bins=1024` gives that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gemlens.errors import InputError

BINS = 1023
LAST_LOC = 1023  # the vocabulary has <loc0000> to <loc1023>


@dataclass(frozen=True)
class Box:
    """A box in pixels of the original picture; (0, 0) is the upper left corner of its first pixel."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """From left to right, in pixels; never negative."""
        return max(0.0, self.right - self.left)

    @property
    def height(self) -> float:
        """From top to bottom, in pixels; never negative."""
        return max(0.0, self.bottom - self.top)

    @property
    def area(self) -> float:
        """In pixels."""
        return self.width * self.height

    def iou(self, other: "Box") -> float:
        """The area that both cover, over the area that one of them covers: 0 to 1; 0 for two boxes of no area."""
        common = self.common(other).area
        either = self.area + other.area - common
        return common / either if either > 0 else 0.0

    def common(self, other: "Box") -> "Box":
        """What both cover; a box of no area if they do not meet."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        return Box(left, top, min(self.right, other.right), min(self.bottom, other.bottom))

    def clipped(self, size: tuple[int, int]) -> "Box":
        """The part inside a picture of (width, height)."""
        return self.common(Box(0, 0, *checked_size(size)))


def write_box(box: Box, size: tuple[int, int], bins: int = BINS) -> str:
    """The four tokens of a box: round(coordinate / side * 1023), as big_vision writes them.

    What lies outside the picture is cut off. A box too small for two different tokens is widened to the next one, since
    four tokens of no area mean nothing; each edge is still within one step of where it was.

    Args:
        box: in pixels.
        size: (width, height) of the original picture.
        bins: 1023, or 1024 for models that were trained so.

    Raises:
        InputError: no part of the box lies inside the picture.
    """
    width, height = checked_size(size)
    inside = box.clipped(size)
    if not inside.area > 0:  # also what has NaN
        raise InputError(f"{box} covers nothing of a picture of {width} x {height}; leave it out.")
    top, bottom = _tokens(inside.top / height, inside.bottom / height, checked_bins(bins))
    left, right = _tokens(inside.left / width, inside.right / width, bins)
    return "".join(f"<loc{token:04d}>" for token in (top, left, bottom, right))


def read_box(locs: Sequence[int], size: tuple[int, int], bins: int = BINS) -> Box:
    """The box of four tokens.

    Args:
        locs: top, left, bottom, right, each 0 to 1023.
        size: (width, height) of the original picture.
        bins: 1023, or 1024 for models that were trained so.

    Raises:
        InputError: other than four numbers, or numbers out of range.
    """
    width, height = checked_size(size)
    if len(locs) != 4 or not all(0 <= loc <= LAST_LOC for loc in locs):
        raise InputError(f"A box takes four numbers from 0 to {LAST_LOC}, not {list(locs)}.")
    top, left, bottom, right = locs
    checked_bins(bins)
    return Box(left * width / bins, top * height / bins, right * width / bins, bottom * height / bins)


def checked_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height), if there can be such a picture.

    Raises:
        InputError: a side is not a whole number above 0.
    """
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise InputError(f"The size of a picture is (width, height) in pixels, not {size!r}.")
    return size


def checked_bins(bins: int) -> int:
    """The number of steps, if it is one of the two in use.

    Raises:
        InputError: it is not.
    """
    if bins not in (1023, 1024):
        raise InputError(f"bins={bins!r}, but <loc> tokens divide a side by 1023 (the original) or 1024.")
    return bins


def _tokens(start: float, end: float, bins: int) -> tuple[int, int]:
    """The tokens of two edges within 0 and 1, never the same."""
    first, last = (min(round(edge * bins), LAST_LOC) for edge in (start, end))
    if first < last:
        return first, last
    # Widened to the side where the middle of the box lies: so no edge moves by more than one step.
    first = min(math.floor((start + end) / 2 * bins), LAST_LOC - 1)
    return first, first + 1
