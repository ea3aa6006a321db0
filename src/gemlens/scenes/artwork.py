"""The pictures that scenes are made of: things on transparent ground, and photographs behind them.

pictures/things.png         a row of 8 columns per line, 64 pixels each, in the order of KINDS
pictures/photographs/*.jpg  named train-... or test-...; NOTICE says whose they are
"""

from functools import cache
from pathlib import Path
from random import Random

from PIL import Image, ImageFont

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
    """A crop of a photograph, mirrored, turned and shaded by chance; now and then a plain colour or a gradient."""
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


def _colour(chance: Random) -> tuple[int, int, int]:
    return chance.randrange(256), chance.randrange(256), chance.randrange(256)


@cache
def _sheet() -> Image.Image:
    return Image.open(FOLDER / "things.png").convert("RGBA")
