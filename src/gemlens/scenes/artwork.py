"""The pictures that scenes are made of: things on transparent ground, and photographs behind them.

pictures/things.png         a row of 8 columns per line, 64 pixels each, in the order of KINDS
pictures/photographs/*.jpg  named train-... or test-...; NOTICE says whose they are
"""

from functools import cache
from pathlib import Path
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFont

from gemlens.scenes.kinds import KINDS, Kind

FOLDER = Path(__file__).parent / "pictures"
SIDE, COLUMNS = 64, 8


@cache
def thing(kind: Kind) -> Image.Image:
    """The picture of a kind: RGBA, 64 x 64."""
    row, column = divmod(KINDS.index(kind), COLUMNS)
    return _sheet().crop((column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE))


@cache
def photographs(split: str) -> tuple[Image.Image, ...]:
    """The photographs of a split, RGB."""
    paths = sorted((FOLDER / "photographs").glob(f"{split}-*.jpg"))
    return tuple(Image.open(path).convert("RGB") for path in paths)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Letters about `size` pixels high."""
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)  # Pillow without FreeType has one size only
    return found


def background(chance: Random, split: str, size: tuple[int, int]) -> Image.Image:
    """A crop of a photograph, mirrored and shaded by chance; now and then a plain colour or a gradient.

    Those of "train" are disguised as well, so that a few photographs teach what to overlook in all others.
    """
    drawn = _ground(chance, split, size)
    return _disguised(drawn, chance) if split == "train" else drawn


def _ground(chance: Random, split: str, size: tuple[int, int]) -> Image.Image:
    style = chance.random()
    if style < 0.1:
        return Image.new("RGB", size, _colour(chance))
    if style < 0.2:
        ramp = Image.linear_gradient("L").rotate(90 * chance.randrange(4)).resize(size)
        return Image.composite(Image.new("RGB", size, _colour(chance)), Image.new("RGB", size, _colour(chance)), ramp)
    photograph = chance.choice(photographs(split))
    ratio, (width, height) = size[0] / size[1], photograph.size
    tall = height * chance.uniform(0.3, 1.0)
    wide = min(tall * ratio, float(width))
    tall = wide / ratio
    left, top = chance.uniform(0, width - wide), chance.uniform(0, height - tall)
    crop = photograph.resize(size, Image.Resampling.BILINEAR, (left, top, left + wide, top + tall))
    if chance.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    shade, strength = Image.new("RGB", size, _colour(chance)), chance.uniform(0, 0.35)
    return Image.blend(crop, shade, strength)


def _disguised(drawn: Image.Image, chance: Random) -> Image.Image:
    """The background in other colours, turned, under a second one, and with shapes that are no things, by chance."""
    size = drawn.size
    if chance.random() < 0.4:
        drawn = Image.blend(drawn, _ground(chance, "train", size), chance.uniform(0.2, 0.8))
    if chance.random() < 0.5:
        drawn = drawn.transpose(Image.Transpose(chance.randrange(7))).resize(size)
    if chance.random() < 0.5:
        drawn = Image.merge("RGB", chance.sample(drawn.split(), 3))
    if chance.random() < 0.15:
        drawn = ImageChops.invert(drawn)
    if chance.random() < 0.5:
        drawn = ImageEnhance.Contrast(drawn).enhance(chance.uniform(0.4, 1.8))
        drawn = ImageEnhance.Color(drawn).enhance(chance.uniform(0.0, 2.0))
    if chance.random() < 0.4:
        pen = ImageDraw.Draw(drawn, "RGBA")
        for _ in range(chance.randint(1, 6)):
            _scribble(pen, chance, size)
    return drawn


def _scribble(pen: ImageDraw.ImageDraw, chance: Random, size: tuple[int, int]) -> None:
    """A spot, a triangle, a slab or a stroke, half seen through or not."""
    width, height = size
    x, y, far = chance.uniform(0, width), chance.uniform(0, height), min(size) / 3
    points = [(x + chance.uniform(-far, far), y + chance.uniform(-far, far)) for _ in range(3)]
    frame = [min(points), (max(points)[0], max(min(points)[1], max(points)[1]))]
    fill = (*_colour(chance), chance.randrange(60, 256))
    match chance.randrange(4):
        case 0:
            pen.ellipse(frame, fill)
        case 1:
            pen.polygon(points, fill)
        case 2:
            pen.rectangle(frame, fill)
        case _:
            pen.line(points, fill, chance.randint(1, 6))


def _colour(chance: Random) -> tuple[int, int, int]:
    return chance.randrange(256), chance.randrange(256), chance.randrange(256)


@cache
def _sheet() -> Image.Image:
    return Image.open(FOLDER / "things.png").convert("RGBA")
