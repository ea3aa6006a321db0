"""Pictures made to do harm: each is a picture or a sentence, soon and in little memory."""

import io
import random
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_pictures import FORMATS, encoded, noise, photo, png_bomb, png_chunk
from PIL import Image

from gemlens.errors import PictureError
from gemlens.processing.pictures.pictures import PictureLimits, open_picture

MUTATIONS = 40_000
# Everything a sentence about a damaged or refused file may say; no word of Pillow's, no address, no path.
SENTENCES = re.compile(
    r"The picture is (truncated or damaged (PNG|JPEG|WebP|GIF|BMP|TIFF); save it again, or send another\."
    r"|no picture that is read here; pass a PNG, JPEG, WebP, GIF, BMP, TIFF file\."
    r"|-?\d+ x -?\d+ pixels; a picture has at least one\."
    r"|\d+ x \d+ pixels, but at most \d+ x \d+ and \d+ pixels in all are accepted; make it smaller, or pass "
    r"limits=PictureLimits\(\.\.\.\)\.|a JPEG of more than 100 scans; save it as an ordinary one\.)"
    r"|The picture has (more than \d+ frames; pass one of them, or raise the limit\."
    r"|values that are infinite or not a number; replace them\.)"
    r"|The picture cannot be decoded; its file is damaged or was closed\."
    r"|The picture of mode '[A-Za-z0-9;]+' cannot be converted to RGB; convert it yourself\."
)
SMALL = PictureLimits(pixels=4_000_000, width=4_000, height=4_000)


def outcome(data: bytes, limits: PictureLimits = SMALL) -> bool:
    """Whether it is a picture; anything but a picture or a sentence fails."""
    try:
        picture = open_picture(data, limits)
    except PictureError as error:
        refusal = error
    else:
        assert picture.mode == "RGB"
        assert picture.width * picture.height <= limits.pixels
        return True
    assert SENTENCES.fullmatch(str(refusal)), str(refusal)
    assert refusal.__cause__ is None
    assert refusal.__suppress_context__ or refusal.__context__ is None
    return False


def seeds() -> Iterator[bytes]:
    """Small files that use many features of each format."""
    small = photo(13, 9)
    for kind in FORMATS:
        yield encoded(small, kind)
    yield encoded(small, "JPEG", progressive=True, quality=40)
    yield encoded(small.convert("CMYK"), "JPEG")
    yield encoded(small.convert("L"), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0")
    yield encoded(small.convert("P"), "PNG", transparency=3)
    yield encoded(small.convert("RGBA"), "PNG")
    yield encoded(small.convert("1"), "PNG")
    yield encoded(noise(5, 5).convert("L"), "GIF", save_all=True, append_images=[noise(5, 5, seed=1).convert("L")])
    yield encoded(small, "PNG", save_all=True, append_images=[small.rotate(180)])
    yield encoded(small, "WEBP", lossless=True)
    yield encoded(small.convert("RGBA"), "WEBP", save_all=True, append_images=[small.convert("RGBA").rotate(180)])
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield encoded(small, "TIFF", compression=compression)
    yield encoded(small.convert("1"), "TIFF", compression="group4")
    yield encoded(small.convert("P"), "BMP")
    yield encoded(small.convert("1"), "BMP")
    yield encoded(Image.new("I;16", (9, 5), 999), "PNG")
    yield encoded(Image.new("F", (9, 5), 0.5), "TIFF")


SEEDS = list(seeds())


def mutated(data: bytes, dice: random.Random) -> bytes:
    """A few bytes changed, most of them in the header; some inserted, cut off, or taken from elsewhere in the file."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        reach = len(changed) if dice.random() < 0.5 else min(len(changed), 64)
        place = dice.randrange(max(1, reach))
        match dice.randrange(7):
            case 0:
                changed[place : place + 1] = bytes([dice.randrange(256)])
            case 1:
                changed[place : place + 1] = (
                    bytes([changed[place % len(changed)] ^ 1 << dice.randrange(8)]) if changed else b""
                )
            case 2:
                changed[place : place + 4] = dice.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\x01"))
            case 3:
                del changed[place : place + dice.randrange(1, 9)]
            case 4:
                changed[place:place] = dice.randbytes(dice.randrange(1, 9))
            case 5:
                start = dice.randrange(max(1, len(changed)))
                changed[place:place] = changed[start : start + dice.randrange(1, 33)]
            case 6:
                del changed[place + 8 :]
    return bytes(changed)


@pytest.mark.parametrize("part", range(10))
def test_mutated_files(part: int) -> None:
    dice = random.Random(part)
    pictures, slowest = 0, 0.0
    for number in range(MUTATIONS // 10):
        data = mutated(SEEDS[number % len(SEEDS)], dice)
        started = time.process_time()
        pictures += outcome(data)
        slowest = max(slowest, time.process_time() - started)
    assert 0 < pictures < MUTATIONS // 10, "some are still pictures, or the mutations are too rough"
    assert slowest < 5, "seconds for a file of some hundred bytes"


@pytest.mark.parametrize("index", range(len(SEEDS)))
def test_every_seed_is_a_picture(index: int) -> None:
    assert outcome(SEEDS[index])


def test_a_jpeg_cut_off_at_every_byte() -> None:
    data = encoded(photo(96, 64), "JPEG", quality=75, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
    assert 1500 < len(data) < 2500
    assert outcome(data)
    assert not any(outcome(data[:length]) for length in range(len(data) - 2)), "the last two bytes say that it ends"


@pytest.mark.parametrize("kind", FORMATS)
def test_files_of_other_formats_cut_off_at_every_byte(kind: str) -> None:
    data = encoded(photo(9, 7), kind)
    for length in range(len(data)):
        outcome(data[:length])


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\xff\xd8\xff", b"BM", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"II*\0", b"MM\0*\0\0\0\x08"]
)
def test_files_of_a_few_bytes(data: bytes) -> None:
    assert not outcome(data)


@pytest.fixture(scope="module")
def bomb() -> bytes:
    data = png_bomb()
    assert 700_000 < len(data) < 800_000
    return data


class TestBombs:
    """The header is read before a pixel is: a bomb costs nothing."""

    def test_16_000_by_16_000_pixels_in_less_than_50_ms_and_10_mb(self, bomb: bytes) -> None:
        outcome(SEEDS[0])  # what is loaded once is not the picture's fault
        tracemalloc.start()
        times = []
        for _ in range(3):
            started = time.process_time()
            assert not outcome(bomb, PictureLimits())
            times.append(time.process_time() - started)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert min(times) < 0.05
        assert peak < 10_000_000

    def test_the_process_stays_small(self, bomb: bytes, tmp_path: Path) -> None:
        """Pillow's memory is not Python's: the most that the process ever had, seen from outside."""
        path = tmp_path / "bomb.png"
        path.write_bytes(bomb)
        program = f"""
import resource
from gemlens.processing.pictures.pictures import open_picture
from gemlens.errors import PictureError
from PIL import Image
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Image.new("RGB", (9, 9)).convert("L")
before = peak()
try:
    open_picture({str(path)!r})
except PictureError as error:
    print(peak() - before, error)
"""
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
        kilobytes, sentence = run.stdout.split(" ", 1)
        assert int(kilobytes) < 10_000
        assert "is 16000 x 16000 pixels, but at most" in sentence

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "JPEG", "TIFF"])
    def test_a_header_that_promises_too_much(self, kind: str) -> None:
        side = 60_000 if kind != "WEBP" else 16_383
        little = struct.pack("<HH", side, side)
        data = encoded(Image.new("RGB", (8, 8)), kind)
        match kind:
            case "PNG":
                header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
                data = data[:8] + header + data[33:]
            case "WEBP":
                data = data[:26] + little + data[30:]
            case "GIF":
                data = data[:6] + little + data[10:]
            case "BMP":
                data = data[:18] + struct.pack("<ii", side, side) + data[26:]
            case "JPEG":
                start = data.index(b"\xff\xc0")
                data = data[: start + 5] + struct.pack(">HH", side, side) + data[start + 9 :]
            case "TIFF":
                data = encoded(Image.new("1", (9_000, 10_000)), "TIFF", compression="group4")
        tracemalloc.start()
        started = time.process_time()
        with pytest.raises(PictureError, match=r"is (\d+) x (\d+) pixels, but at most"):
            open_picture(data)
        assert time.process_time() - started < 0.5
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()

    def test_large_webp_canvas_around_a_small_picture(self) -> None:
        """Pillow makes room for the whole canvas when it opens the file."""
        data = encoded(
            photo(8, 8).convert("RGBA"), "WEBP", save_all=True, append_images=[photo(8, 8).convert("RGBA").rotate(90)]
        )
        assert data[12:16] == b"VP8X"
        wide = data[:24] + (16_382).to_bytes(3, "little") * 2 + data[30:]
        assert not outcome(wide, PictureLimits())

    @pytest.mark.parametrize("kind", ["GIF", "WEBP"])
    def test_ten_thousand_frames(self, kind: str) -> None:
        if kind == "GIF":
            frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x4c\x01\x00"
            data = encoded(Image.new("P", (1, 1)), "GIF")[:-1] + frame * 10_000 + b"\x3b"
        else:
            frames = [Image.new("RGB", (2, 2), (number % 256, number // 256, 0)) for number in range(1_100)]
            data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
        started = time.process_time()
        with pytest.raises(PictureError, match="more than 1000 frames"):
            open_picture(data)
        assert time.process_time() - started < 1

    def test_a_jpeg_of_thousands_of_scans(self) -> None:
        """Each empty scan visits all blocks again: 40 kB could keep a decoder busy for minutes."""
        data = encoded(photo(16, 16), "JPEG", progressive=True)
        start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
        started = time.process_time()
        assert not outcome(data[:end] + data[start:end] * 5_000 + data[end:])
        assert time.process_time() - started < 1
        assert outcome(data[:end] + data[start:end] * 5 + data[end:])

    def test_tiff_directories_in_a_circle(self) -> None:
        data = bytearray(encoded(photo(8, 8), "TIFF"))
        (first,) = struct.unpack_from("<I", data, 4)
        (count,) = struct.unpack_from("<H", data, first)
        struct.pack_into("<I", data, first + 2 + 12 * count, first)
        outcome(bytes(data))

    def test_a_text_chunk_that_unpacks_to_gigabytes(self) -> None:
        data = encoded(photo(8, 8))
        import zlib

        text = png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(50_000_000)))
        outcome(data[:33] + text + data[33:])
        outcome(data[:33] + text * 100 + data[33:])


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("height", [1, 2, 3, 7, 8, 65_535])
def test_pictures_of_odd_sizes(width: int, height: int) -> None:
    for kind in ("PNG", "GIF", "BMP"):
        assert open_picture(encoded(Image.new("RGB", (width, height)), kind)).size == (width, height)
    with pytest.raises(PictureError, match="is 65536 x 1 pixels"):
        open_picture(Image.new("L", (65_536, 1)))


def test_an_image_whose_file_is_broken_or_closed() -> None:
    data = encoded(photo(64, 64), "JPEG")
    with pytest.raises(PictureError, match="cannot be decoded"):
        open_picture(Image.open(io.BytesIO(data[: len(data) // 2])))
    file = io.BytesIO(data)
    image = Image.open(file)
    file.close()
    with pytest.raises(PictureError, match="cannot be decoded"):
        open_picture(image)


def test_a_picture_that_pillow_would_warn_about_is_opened_in_silence() -> None:
    """The one limit is ours; Pillow's own, a global, is not asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = encoded(Image.new("1", (9_500, 9_500)))
        assert open_picture(data, PictureLimits(pixels=100_000_000)).size == (9_500, 9_500)
