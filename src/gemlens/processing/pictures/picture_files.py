"""The bytes of a picture's file -> a decoded Pillow image, refused by its header before a pixel is decoded.

Hostile files are expected here. Only six formats are read, each by its own reader of Pillow and never by trying all of
them. What a file says about itself (pixels, frames, scans) is checked while it costs nothing. Whatever Pillow then says
about a damaged file stays here: its sentences have quoted memory addresses (CVE-2026-22778 in vLLM).
"""

import io
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice

from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from gemlens.errors import InputError, PictureError

# A camera writes 1 scan, a progressive JPEG about 10. Each scan visits every pixel again, so a small file with
# thousands of empty scans is a picture that decodes for hours.
_MOST_SCANS = 100

_READERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,  # of the several pictures of an MPO, the first
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
_SIGNATURE = re.compile(
    rb"(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<JPEG>\xff\xd8\xff)|(?P<WebP>RIFF....WEBP)|(?P<GIF>GIF8[79]a)"
    rb"|(?P<TIFF>II[*+]\x00|MM\x00[*+])|(?P<BMP>BM)",
    re.DOTALL,
)


@dataclass(frozen=True)
class PictureLimits:
    """What a picture may ask of this machine, checked before it is decoded.

    Args:
        pixels: width times height; as RGB a picture takes four bytes of memory for each.
        width: pixels from left to right.
        height: pixels from top to bottom.
        frames: pictures in one file; only the first is decoded.
        bytes: size of the file, or of what a URL answers.
    """

    pixels: int = 89_478_485  # from here on Pillow itself warns
    width: int = 65_535  # the most that a JPEG can have
    height: int = 65_535
    frames: int = 1_000
    bytes: int = 64_000_000

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if type(value) is not int or value < 1:
                raise InputError(f"PictureLimits.{each.name} is {value!r}, but it must be a positive integer.")

    def check_size(self, width: int, height: int, name: str) -> None:
        """Refuses a picture of this many pixels.

        Raises:
            PictureError: it is empty or too large.
        """
        if width < 1 or height < 1:
            raise PictureError(f"{name} is {width} x {height} pixels; a picture has at least one.")
        if width > self.width or height > self.height or width * height > self.pixels:
            raise PictureError(
                f"{name} is {width} x {height} pixels, but at most {self.width} x {self.height} and {self.pixels} "
                "pixels in all are accepted; make it smaller, or pass limits=PictureLimits(...)."
            )

    def check_bytes(self, size: int, name: str) -> None:
        """Refuses a file of this many bytes.

        Raises:
            PictureError: it is too large.
        """
        if size > self.bytes:
            raise PictureError(
                f"{name} has more than {self.bytes} bytes; make it smaller, or pass limits=PictureLimits(bytes=...)."
            )


def decode_file(data: bytes, limits: PictureLimits, name: str) -> Image.Image:
    """The first picture in a file, decoded, in whichever mode the file has it.

    Args:
        data: the whole file.
        limits: what the file may ask for.
        name: what a sentence calls the picture; its first word is capitalised.

    Raises:
        PictureError: no known format, too large, truncated or damaged.
    """
    limits.check_bytes(len(data), name)
    match = _SIGNATURE.match(data)
    if match is None:
        raise PictureError(f"{name} is no picture that is read here; pass a {', '.join(_READERS)} file.")
    kind = str(match.lastgroup)
    _check_before(kind, data, limits, name)
    with without_pillows_words(f"{name} is truncated or damaged {kind}; save it again, or send another."):
        image = _READERS[kind](io.BytesIO(data))
    limits.check_size(*image.size, name)
    frames = _frames(kind, data, image, limits.frames)
    if frames > limits.frames:
        raise PictureError(f"{name} has more than {limits.frames} frames; pass one of them, or raise the limit.")
    load(image, f"{name} is truncated or damaged {kind}; save it again, or send another.")
    return image


def load(image: Image.Image, otherwise: str) -> None:
    """Decodes an opened image, which Pillow puts off; `otherwise` is the sentence for a damaged one."""
    with without_pillows_words(otherwise):
        image.load()


@contextmanager
def without_pillows_words(sentence: str) -> Iterator[None]:
    """Turns whatever Pillow raises into a PictureError of this sentence, and its warnings into silence."""
    with _SILENCE:
        try:
            yield
        except PictureError:
            raise
        except Exception:  # a damaged file makes Pillow raise nearly everything there is
            raise PictureError(sentence) from None


class _Silence:
    """Ignores the warnings of Pillow's modules while any thread decodes; `catch_warnings` alone mixes up threads."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


_SILENCE = _Silence()


# -- what files say about themselves -----------------------------------------------------------------------------------


def _check_before(kind: str, data: bytes, limits: PictureLimits, name: str) -> None:
    """What must be known before Pillow's reader, because opening or decoding would already cost too much."""
    if kind == "WebP" and (size := _webp_size(data)):  # its reader makes room for two pictures when it opens
        limits.check_size(*size, name)
    if kind == "JPEG" and sum(1 for _ in _jpeg_scans(data)) > _MOST_SCANS:
        raise PictureError(f"{name} is a JPEG of more than {_MOST_SCANS} scans; save it as an ordinary one.")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height by the first chunk (RFC 9649 section 2); None where it is cut off or unknown."""
    chunk, payload = data[12:16], data[20:30]
    if len(payload) < 10:
        return None
    if chunk == b"VP8X":
        return int.from_bytes(payload[4:7], "little") + 1, int.from_bytes(payload[7:10], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(payload[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = struct.unpack("<HH", payload[6:10])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg_scans(data: bytes) -> Iterator[int]:
    """Where each scan of the first JPEG begins; one more than _MOST_SCANS at most."""
    marker = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # a marker that has a length, or the end
    position, count = 2, 0
    while count <= _MOST_SCANS and (found := marker.search(data, position)):
        if found[1] == b"\xd9":
            return
        if found[1] == b"\xda":
            count += 1
            yield found.start()
        position = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))


def _frames(kind: str, data: bytes, image: Image.Image, most: int) -> int:
    """How many pictures the file holds, counted no further than one more than `most`."""
    if kind == "GIF":
        return sum(1 for _ in islice(_gif_frames(data), most + 1))
    if kind == "TIFF":
        return sum(1 for _ in islice(_tiff_frames(data), most + 1))
    return int(getattr(image, "n_frames", 1)) if kind in ("PNG", "WebP") else 1


def _gif_frames(data: bytes) -> Iterator[int]:
    """Where each frame of a GIF begins (GIF89a sections 17 to 26); stops where the file is damaged."""
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while data[position : position + 1] in (b"\x2c", b"\x21"):
        if data[position] == 0x2C:
            yield position
            flags = data[position + 9] if position + 9 < len(data) else 0
            position += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        else:
            position += 2
        while position < len(data) and data[position]:
            position += data[position] + 1
        position += 1


def _tiff_frames(data: bytes) -> Iterator[int]:
    """Where each directory of a TIFF begins (TIFF 6.0 section 2, BigTIFF); stops where the chain ends or turns back."""
    order = "<" if data[:2] == b"II" else ">"
    big = 0x2B in data[2:4]
    count, offset, entry = (struct.Struct(order + code) for code in (("Q", "Q", "20x") if big else ("H", "I", "12x")))
    start, seen = (8 if big else 4), set[int]()
    while start + offset.size <= len(data):
        (position,) = offset.unpack_from(data, start)
        if not position or position in seen or position + count.size > len(data):
            return
        seen.add(position)
        yield position
        start = position + count.size + count.unpack_from(data, position)[0] * entry.size
