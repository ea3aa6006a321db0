"""The one door for pictures: whatever a person calls a picture -> a Pillow image in RGB, upright, on white.

path, file object, bytes, data: URL, http(s) URL -> picture_files (header checked, then decoded) -> picture_colours
Pillow image -> picture_colours
array or tensor: [H, W], [H, W, C] or [C, H, W] -> Pillow image
"""

import base64
import binascii
import os
import re
import stat
import urllib.parse
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias, Union, cast

from PIL import Image
from torch import Tensor

from gemlens.errors import InputError, PictureError
from gemlens.processing.pictures.picture_colours import to_rgb
from gemlens.processing.pictures.picture_files import PictureLimits, decode_file

if TYPE_CHECKING:
    import numpy as np

    from gemlens.processing.pictures.picture_urls import UrlRules

__all__ = ["PictureLimits", "PictureSource", "open_picture"]

PictureSource: TypeAlias = Union[
    Image.Image, "np.ndarray", Tensor, str, os.PathLike[str], bytes, bytearray, memoryview, IO[bytes]
]
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_DATA_URL = re.compile(r"data:(?P<type>[^,]*?)(?P<base64>;\s*base64)?,", re.IGNORECASE)
_CHANNELS = (3, 1, 4, 2)  # the likelier number first, where both ends of an array could be channels


def open_picture(
    source: PictureSource, limits: PictureLimits | None = None, allow_urls: "bool | UrlRules" = True
) -> Image.Image:
    """The picture as it would be seen, decoded: mode RGB, upright as its EXIF data says, on white where transparent.

    Args:
        source: a Pillow image of any mode; an array or tensor of [H, W], [H, W, C] or [C, H, W] with 1 to 4 channels
            (grey, grey and alpha, RGB, RGBA), whole numbers up to 255 or floats within [0, 1] or [0, 255]; a path; the
            bytes of a PNG, JPEG, WebP, GIF, BMP or TIFF file or an open file of them, read from its beginning; a
            `data:` URL (RFC 2397); an http or https URL. Of an animation, the first frame.
        limits: what the picture may ask for; None: `PictureLimits()`.
        allow_urls: whether the network may be asked for http and https URLs, False where strangers name them; rules
            other than the usual are a `gemlens.processing.pictures.picture_urls.UrlRules`.

    Raises:
        InputError: `source` is of no such type or shape.
        PictureError: the picture is damaged, too large or of no known kind, or its URL may not be fetched.
    """
    limits = limits or PictureLimits()
    if isinstance(source, Image.Image):
        limits.check_size(*source.size, "The picture")
        return to_rgb(source)
    if isinstance(source, str) and (found := _URL.match(source)):
        data, name = _fetch(source, found[1].lower(), limits, allow_urls), "The picture of the URL"
    elif isinstance(source, str) and source[:5].lower() == "data:":
        data, name = _decode_data_url(source, limits), "The picture of the data: URL"
    elif isinstance(source, (str, os.PathLike)):
        name = f"The picture {shown(os.fspath(source))}"
        data = _read_path(source, limits, name)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        limits.check_bytes(memoryview(source).nbytes, "The picture")
        data, name = bytes(source), "The picture"
    elif hasattr(source, "read"):
        data, name = _read_file(cast("IO[bytes]", source), limits), "The picture"
    else:
        return to_rgb(_from_array(source, limits))
    return to_rgb(decode_file(data, limits, name), name)


def shown(text: str | bytes) -> str:
    """Text that a caller passed, quoted, without control characters and short enough for a sentence."""
    quoted = ascii(text)
    return quoted if len(quoted) <= 200 else f"{quoted[:120]}...{quoted[-20:]}"


# -- bytes from files and URLs -----------------------------------------------------------------------------------------


def _fetch(url: str, scheme: str, limits: PictureLimits, allow_urls: "bool | UrlRules") -> bytes:
    if scheme not in ("http", "https"):
        raise PictureError(f"URLs of {scheme}:// are never read; pass a path, a data: URL, or an http or https URL.")
    if allow_urls is False:
        raise PictureError("The picture is a URL, but allow_urls=False forbids to ask the network; pass a file.")
    from gemlens.processing.pictures.picture_urls import UrlRules, fetch

    return fetch(url, limits.bytes, UrlRules() if allow_urls is True else allow_urls)


def _decode_data_url(url: str, limits: PictureLimits) -> bytes:
    """What follows the comma, decoded. The media type is not believed either way: the bytes say what they are."""
    name = "The picture of the data: URL"
    head = _DATA_URL.match(url[:1000])
    if head is None:
        raise PictureError("The data: URL has no comma after its media type; it reads 'data:image/png;base64,...'.")
    # As text a byte takes 4/3 of a character, line breaks besides; percent-encoded up to 4.
    most = limits.bytes * 3 // 2 if head["base64"] and "%" not in url else limits.bytes * 4
    limits.check_bytes(0 if len(url) - head.end() <= most + 1000 else limits.bytes + 1, name)
    payload = url[head.end() :]
    if not payload.isascii():
        raise PictureError("The data: URL has characters outside ASCII; percent-encode them or use base64.")
    data = urllib.parse.unquote_to_bytes(payload)
    if head["base64"]:
        try:
            data = base64.b64decode(data.translate(None, b" \t\r\n"), validate=True)
        except (binascii.Error, ValueError):
            raise PictureError("The data: URL says base64, but what follows is not; encode the file again.") from None
    limits.check_bytes(len(data), name)
    return data


def _read_path(path: str | os.PathLike[str], limits: PictureLimits, name: str) -> bytes:
    """The bytes of a regular file: a pipe would be waited for, and reading a device may do anything."""
    try:
        regular = stat.S_ISREG(Path(path).stat().st_mode)
        if not regular:
            raise PictureError(f"{name} is no file but a folder, a pipe or a device; pass a file.")
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # exchanged since it was looked at
                raise PictureError(f"{name} is no file but a folder, a pipe or a device; pass a file.")
            limits.check_bytes(os.fstat(descriptor).st_size, name)
            data = file.read(limits.bytes + 1)
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(f"{name} does not exist; check the spelling and the current folder.") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or "no name of a file"
        raise PictureError(f"{name} cannot be read ({reason.lower()}).") from None
    limits.check_bytes(len(data), name)
    return data


def _read_file(file: IO[bytes], limits: PictureLimits) -> bytes:
    try:
        if file.seekable():
            file.seek(0)
        data = file.read(limits.bytes + 1)
    except (OSError, ValueError, AttributeError):  # ValueError: the file is closed
        raise PictureError("The file of the picture cannot be read; pass one that is open for reading.") from None
    if not isinstance(data, bytes):
        raise PictureError("The file of the picture gives no bytes; open it in the mode 'rb'.")
    limits.check_bytes(len(data), "The picture")
    return data


# -- arrays ------------------------------------------------------------------------------------------------------------


def _from_array(source: object, limits: PictureLimits) -> Image.Image:
    import numpy as np

    if isinstance(source, Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.dtype.is_floating_point else source).numpy()
    if not isinstance(source, np.ndarray):
        raise InputError(
            f"A {type(source).__name__} is no picture; pass a Pillow image, an array, a tensor, a path, bytes, an open "
            "file or a URL."
        )
    pixels = _channels_last(source)
    limits.check_size(pixels.shape[1], pixels.shape[0], "The picture")
    pixels = _bytes_of(pixels)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels))


def _channels_last(array: "np.ndarray") -> "np.ndarray":
    """[H, W, C] of a picture in any order of axes; where both ends could be channels, the last is believed."""
    if array.ndim == 2:
        return array[..., None]
    if array.ndim == 3 and array.size:
        for channels in _CHANNELS:
            if array.shape[2] == channels:
                return array
            if array.shape[0] == channels:
                return array.transpose(1, 2, 0)
    shape = " x ".join(map(str, array.shape))
    raise InputError(f"An array of {shape or 'no axes'} is no picture; pass [H, W], [H, W, C] or [C, H, W], C 1 to 4.")


def _bytes_of(pixels: "np.ndarray") -> "np.ndarray":
    """The values as uint8."""
    import numpy as np

    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    floating = np.issubdtype(pixels.dtype, np.floating)
    if not floating and not np.issubdtype(pixels.dtype, np.integer):
        raise InputError(f"Pixels of type {pixels.dtype} are no numbers from 0 to 255; pass uint8 or floats.")
    least, most = pixels.min(), pixels.max()
    if not (least >= 0 and most <= 255):  # so that NaN is refused too
        raise InputError(f"Pixels lie within [{least}, {most}], but must lie within [0, 1] or [0, 255].")
    scale = 255 if floating and most <= 1 else 1
    return np.rint(pixels.astype(np.float64) * scale).astype(np.uint8)
