"""Pictures and files of pictures that the tests here make, the same every time."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MODES = (
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16",
    "I;16B", "I;16L", "F",
)  # fmt: skip


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Random pixels, the worst that a resize can get; transparent modes stay opaque."""
    values = np.random.default_rng((seed, width, height)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def photo(width: int, height: int) -> Image.Image:
    """Smooth colours with edges, as photographs have."""
    x, y = np.meshgrid(np.linspace(0, 7, width), np.linspace(0, 5, height))
    waves = np.stack([np.sin(x + y), np.cos(x * y / 3), np.sign(np.sin(3 * x)) * np.cos(y)], axis=-1)
    return Image.fromarray(((waves + 1) * 127.5).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int = 16_000) -> bytes:
    """A black PNG of side x side pixels, made row by row: small as a file, huge when decoded."""
    press = zlib.compressobj(9)
    row = bytes(1 + side * 3)
    pressed = b"".join([press.compress(row) for _ in range(side)]) + press.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", pressed) + png_chunk(b"IEND", b"")
