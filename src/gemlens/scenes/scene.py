"""A seed -> a picture, and what is where in it, exactly.

Things lie on a photograph, some a little behind others, and words stand where no thing is. Boxes and masks are of what
is visible: a mask is where the thing is more than half opaque and nothing lies before it, a box is the mask's.
"""

from dataclasses import dataclass
from functools import cmp_to_key
from itertools import pairwise
from math import cos, radians, sin
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from gemlens.errors import InputError
from gemlens.scenes import artwork, words
from gemlens.scenes.kinds import KINDS, Kind
from gemlens.tasks.boxes import Box

WORDS_OF_A_PAGE = 12  # at most
SPLITS = ("train", "test")
SIDE = 128  # of most pictures, in pixels
_NOTHING = -1
_VISIBLE = 0.75  # of a thing, at least


@dataclass(frozen=True)
class Thing:
    """A thing in a picture.

    Args:
        kind: what it is.
        box: of what is visible, in pixels.
        mask: bool [height, width] of the whole picture, what is visible.
    """

    kind: Kind
    box: Box
    mask: np.ndarray

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle of the box."""
        return (self.box.left + self.box.right) / 2, (self.box.top + self.box.bottom) / 2


@dataclass(frozen=True)
class Word:
    """A word or number in a picture.

    Args:
        text: what is written.
        box: of its letters, in pixels.
        centres: (x, y) of the middle of each letter, in pixels.
    """

    text: str
    box: Box
    centres: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Args:
        picture: RGB.
        things: from the farthest to the nearest.
        words: as one reads: lines from the top, words of a line from the left.
    """

    picture: Image.Image
    things: tuple[Thing, ...]
    words: tuple[Word, ...]


def draw(seed: int, split: str = "train") -> Scene:
    """The scene of a seed; those of one split share neither photographs nor seeds with those of the other.

    Raises:
        InputError: there is no such split.
    """
    if split not in SPLITS:
        raise InputError(f"There is no split {split!r} of scenes; there are {', '.join(SPLITS)}.")
    chance = Random(f"{split}:{seed}")
    size = (SIDE, SIDE) if chance.random() < 0.7 else (chance.randint(128, 224), chance.randint(128, 224))
    canvas = _Canvas(artwork.background(chance, split, size), chance)
    count = chance.choices((0, 1, 2, 3, 4, 5, 6), (3, 15, 20, 20, 17, 15, 10))[0]
    kinds = chance.sample(KINDS, chance.randint(1, 4))
    for _ in range(count):
        canvas.put(chance.choice(kinds))
    for _ in range(chance.choices((0, 1, 2), (55, 33, 12))[0]):
        canvas.write(words.pick(chance, split))
    return canvas.finished()


def page(seed: int, split: str = "train") -> Scene:
    """A picture with as many words as find a place, and nothing else: where letters are learned fastest."""
    chance = Random(f"{split}:page:{seed}")
    canvas = _Canvas(artwork.background(chance, split, (SIDE, SIDE)), chance)
    for _ in range(WORDS_OF_A_PAGE):
        canvas.write(words.pick(chance, split))
    return canvas.finished()


class _Canvas:
    """A picture on which things are put, each before those that are there."""

    def __init__(self, picture: Image.Image, chance: Random) -> None:
        self._picture, self._chance = picture, chance
        self._owner = np.full(picture.size[::-1], _NOTHING, np.int8)  # which thing or word is seen there
        self._areas: list[int] = []  # of each thing, when nothing lay before it
        self._kinds: list[Kind] = []
        self._words: list[Word] = []

    def put(self, kind: Kind) -> None:
        """Puts a thing where it hides little of others; leaves it out where there is no such place."""
        drawn = self._varied(artwork.thing(kind))
        solid = np.asarray(drawn.getchannel("A")) > 127
        for _ in range(8):
            left, top = self._place(drawn.size)
            behind = self._owner[top : top + drawn.height, left : left + drawn.width]
            if self._may_hide(behind[solid]):
                behind[solid] = len(self._kinds)
                self._picture.paste(drawn, (left, top), drawn)
                self._areas.append(int(solid.sum()))
                self._kinds.append(kind)
                return

    def write(self, text: str) -> None:
        """Writes a word where nothing is; leaves it out where there is no such place."""
        chance, side = self._chance, min(self._picture.size)
        drawn, box, centres = _lettering(text, round(side * chance.uniform(0.13, 0.24)), chance)
        if drawn.width > self._picture.width - 2 or drawn.height > self._picture.height - 2:
            return
        for _ in range(12):
            left, top = self._place(drawn.size)
            behind = self._owner[top : top + drawn.height, left : left + drawn.width]
            if (behind == _NOTHING).all():
                behind[...] = len(self._kinds)
                self._picture.paste(drawn, (left, top), drawn)
                self._areas.append(0)
                self._kinds.append(KINDS[0])
                moved = Box(left + box[0], top + box[1], left + box[2], top + box[3])
                self._words.append(Word(text, moved, tuple((left + x, top + y) for x, y in centres)))
                return

    def finished(self) -> Scene:
        """The scene."""
        things = []
        for number, (kind, area) in enumerate(zip(self._kinds, self._areas, strict=True)):
            if area:
                mask = self._owner == number
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                edges = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
                things.append(Thing(kind, Box(*map(float, edges)), mask))
        ordered = sorted(self._words, key=cmp_to_key(_read_after))
        return Scene(self._picture, tuple(things), tuple(ordered))

    def _varied(self, drawn: Image.Image) -> Image.Image:
        """The picture of a thing in another size, mirrored, turned, brighter or darker; cut to what is not empty."""
        chance = self._chance
        side = round(min(self._picture.size) * chance.uniform(0.18, 0.5))
        if chance.random() < 0.5:
            drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        drawn = drawn.resize((side, side), Image.Resampling.BILINEAR)
        if chance.random() < 0.5:
            drawn = drawn.rotate(chance.uniform(-20, 20), Image.Resampling.BILINEAR, expand=True)
        if chance.random() < 0.5:
            shaded = ImageEnhance.Brightness(drawn.convert("RGB")).enhance(chance.uniform(0.7, 1.2))
            shaded.putalpha(drawn.getchannel("A"))
            drawn = shaded
        return drawn.crop(drawn.getchannel("A").getbbox())

    def _place(self, size: tuple[int, int]) -> tuple[int, int]:
        (width, height), (wide, high) = self._picture.size, size
        return self._chance.randint(0, width - wide), self._chance.randint(0, height - high)

    def _may_hide(self, owners: np.ndarray) -> bool:
        """Whether enough stays visible of all that owns these pixels."""
        for number in set(owners[owners != _NOTHING].tolist()):
            left = int((self._owner == number).sum()) - int((owners == number).sum())
            if left < _VISIBLE * self._areas[number]:
                return False
        return True


def _read_after(first: Word, second: Word) -> int:
    """Above 0 where the first of two words is read second: it stands lower, or on the same line to the right."""
    one, other = first.box, second.box
    shared = min(one.bottom, other.bottom) - max(one.top, other.top)
    is_one_line = 2 * shared > min(one.height, other.height)
    return 1 if (one.left > other.left if is_one_line else one.top > other.top) else -1


def _lettering(
    text: str, height: int, chance: Random
) -> tuple[Image.Image, tuple[float, float, float, float], list[tuple[float, float]]]:
    """A word on nothing with an outline, or on a plate; and therein the box of its letters and the middle of each."""
    font = artwork.font(height)
    edge = max(2, height // 8)
    left, top, right, bottom = font.getbbox(text)
    size = (round(right - left) + 2 * edge, round(bottom - top) + 2 * edge)
    dark, bright = (tuple(chance.randrange(0, 90) for _ in "rgb"), tuple(chance.randrange(170, 256) for _ in "rgb"))
    ink, ground = (dark, bright) if chance.random() < 0.5 else (bright, dark)
    if chance.random() < 0.5:
        drawn = Image.new("RGBA", size, (*ground, 255))
        ImageDraw.Draw(drawn).text((edge - left, edge - top), text, ink, font)
    else:
        drawn = Image.new("RGBA", size, (*ground, 0))
        pen = ImageDraw.Draw(drawn)
        pen.text((edge - left, edge - top), text, ink, font, stroke_width=edge // 2, stroke_fill=ground)
    angle = chance.uniform(-8, 8) if chance.random() < 0.4 else 0.0
    if angle:
        drawn = drawn.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    ends = [edge - left + font.getlength(text[:number]) for number in range(len(text) + 1)]
    along = [(begin + end - size[0]) / 2 for begin, end in pairwise(ends)]  # from the middle
    turn = radians(angle)
    middle = drawn.width / 2, drawn.height / 2
    centres = [(middle[0] + x * cos(turn), middle[1] - x * sin(turn)) for x in along]
    return drawn, (edge, edge, drawn.width - edge, drawn.height - edge), centres
