"""A decoded Pillow image of any mode -> RGB as it would be seen: upright, on white, 8 bits.

Pillow's own `convert("RGB")`, which the reference uses, drops transparency (what was hidden shows) and clips 16 bits to
255 (all is white). For opaque pictures of 8 bits the two are equal.
"""

from PIL import Image

from gemlens.errors import PictureError
from gemlens.processing.pictures.picture_files import load, without_pillows_words

_ORIENTATION = 0x0112
_SAY_HOW_TO_TURN = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where getexif looks
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image, name: str = "The picture") -> Image.Image:
    """The image in mode RGB, turned upright as its EXIF data says, on white where it is transparent.

    16-bit values lose their lower half. Modes I and F without a declared range follow the rule of arrays: above 255
    they are 16-bit values; a float image that stays within [0, 1] is scaled by 255.

    Raises:
        PictureError: the image is damaged, closed, or of no known mode.
    """
    load(image, f"{name} cannot be decoded; its file is damaged or was closed.")
    with without_pillows_words(f"{name} of mode {image.mode!r} cannot be converted to RGB; convert it yourself."):
        turn = _UPRIGHT.get(_orientation(image))
        return _colours(image if turn is None else _turned(image, turn), name)


def _turned(image: Image.Image, turn: Image.Transpose) -> Image.Image:
    """The image turned, and nothing left that says so: pictures pass this door more than once."""
    turned = image.transpose(turn)
    for name in _SAY_HOW_TO_TURN:
        turned.info.pop(name, None)
    return turned


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) else 1
    except Exception:  # damaged EXIF data around a sound picture is common; it then stands as it is stored
        return 1


def _colours(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bits(image, name).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # Pillow converts it to LA only
        image = image.convert("LA")
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image.convert("RGBA"))
    return paper.convert("RGB")


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """A grey image of 16 or 32 bits, or of floats, as mode L."""
    import numpy as np

    values = np.asarray(image)
    if image.mode == "F":
        if not np.isfinite(values).all():
            raise PictureError(f"{name} has values that are infinite or not a number; replace them.")
        if values.min() >= 0 and values.max() <= 1:
            values = np.rint(values * 255)
        return Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.mode != "I" or values.max() > 255:
        values = values.astype(np.int64) >> 8
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))
