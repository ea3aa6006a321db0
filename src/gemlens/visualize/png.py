"""A page as a Pillow picture: each kind of cell is drawn once and then stamped."""

from PIL import Image, ImageDraw, ImageFont

from gemlens.visualize.chart import Cell
from gemlens.visualize.page import CELL, FONT, Page, Text

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_INK = "#222222"


def draw(page: Page) -> Image.Image:
    """The drawing in RGB, one pixel per point. Letters outside ASCII are "?", as Pillow's own font has no others."""
    picture = Image.new("RGB", (page.width, page.height), "#ffffff")
    font = ImageFont.load_default(FONT)
    stamps = {cell: _stamp(cell, font) for cell in {run.cell for run in page.runs}}
    for run in page.runs:
        for number in range(run.count):
            picture.paste(stamps[run.cell], (run.x + number * CELL, run.y))
    for text in page.texts:
        _write(picture, text, font)
    return picture


def _stamp(cell: Cell, font: Font) -> Image.Image:
    stamp = Image.new("RGB", (CELL, CELL), "#ffffff")
    ink = ImageDraw.Draw(stamp)
    ink.rectangle((0, 0, CELL - 2, CELL - 2), fill=cell.fill)
    ink.text(((CELL - 1) / 2, (CELL - 1) / 2), cell.sign, fill=cell.ink, font=font, anchor="mm")
    return stamp


def _write(picture: Image.Image, text: Text, font: Font) -> None:
    letters = text.text.encode("ascii", "replace").decode("ascii")
    if not text.upwards:
        anchor = "rm" if text.at_right else "lm"
        ImageDraw.Draw(picture).text((text.x, text.y), letters, fill=_INK, font=font, anchor=anchor)
        return
    strip = Image.new("L", (max(1, round(font.getlength(letters))), CELL))
    ImageDraw.Draw(strip).text((0, CELL / 2), letters, fill=255, font=font, anchor="lm")
    turned = strip.transpose(Image.Transpose.ROTATE_90)
    picture.paste(_INK, (round(text.x) - CELL // 2, round(text.y) - turned.height), turned)
