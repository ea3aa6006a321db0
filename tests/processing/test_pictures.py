"""The door for pictures: every kind of source and every mode becomes upright RGB on white."""

import base64
import io
import os
import threading
import urllib.parse
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from made_pictures import FORMATS, MODES, encoded, noise, photo
from PIL import Image, ImageOps

from gemlens.errors import InputError, PictureError
from gemlens.processing.pictures.pictures import PictureLimits, open_picture

PICTURE = noise(6, 4)
PNG = encoded(PICTURE)


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode == "RGB" and one.size == other.size and one.tobytes() == other.tobytes()


class TestSources:
    def test_bytes_and_their_kin(self) -> None:
        for source in (PNG, bytearray(PNG), memoryview(PNG), io.BytesIO(PNG)):
            assert same(open_picture(source), PICTURE)

    def test_a_path_as_text_and_as_path_and_an_open_file(self, tmp_path: Path) -> None:
        path = tmp_path / "cat.png"
        path.write_bytes(PNG)
        assert same(open_picture(path), PICTURE)
        assert same(open_picture(str(path)), PICTURE)
        with path.open("rb") as file:
            file.read(7)  # a file is read from its beginning
            assert same(open_picture(file), PICTURE)

    def test_arrays_and_tensors_in_any_order_of_axes(self) -> None:
        array = np.array(PICTURE)
        for source in (
            array,
            array.transpose(2, 0, 1),
            torch.from_numpy(array),
            torch.from_numpy(array).permute(2, 0, 1),
        ):
            assert same(open_picture(source), PICTURE)

    @pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.float16, np.float32, np.float64])
    def test_arrays_up_to_255(self, dtype: type) -> None:
        assert same(open_picture(np.array(PICTURE).astype(dtype)), PICTURE)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_floats_up_to_one(self, dtype: torch.dtype) -> None:
        assert same(open_picture(torch.from_numpy(np.array(PICTURE)).to(dtype) / 255), PICTURE)

    def test_bfloat16_and_gradients_and_other_strides(self) -> None:
        tensor = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]], [[1.0, 1.0]]], dtype=torch.bfloat16, requires_grad=True)
        assert open_picture(tensor).getpixel((0, 0)) == (0, 255, 255)
        assert same(open_picture(np.array(PICTURE)[::-1, ::-1]), PICTURE.rotate(180))

    def test_grey_and_transparent_arrays(self) -> None:
        grey = np.array([[0, 128], [200, 255]], dtype=np.uint8)
        for array in (grey, grey[..., None], grey[None]):
            assert np.array_equal(np.array(open_picture(array))[..., 1], grey)
        assert np.array_equal(np.array(open_picture(grey > 150))[..., 1], (grey > 150) * np.uint8(255))
        clear = np.zeros((5, 4, 4), np.uint8)
        assert open_picture(clear).getpixel((0, 0)) == (255, 255, 255)
        assert open_picture(clear[..., :2]).getpixel((0, 0)) == (255, 255, 255)

    @pytest.mark.parametrize(
        "array",
        [np.full((4, 4, 3), 256), np.full((4, 4, 3), -1.0), np.full((4, 4, 3), np.nan), np.full((4, 4, 3), np.inf),
         np.zeros((6, 4, 5)), np.zeros(4), np.zeros(()), np.zeros((0, 4, 3)), np.zeros((2, 4, 4, 3)),
         np.zeros((4, 4, 3), complex), np.array([["a"]])],
    )  # fmt: skip
    def test_arrays_that_are_no_picture(self, array: np.ndarray) -> None:
        with pytest.raises(InputError, match=r"\.$"):
            open_picture(array)

    @pytest.mark.parametrize("source", [None, 3, [PICTURE], {"url": "x"}, object()])
    def test_other_things_are_refused(self, source: object) -> None:
        with pytest.raises(InputError, match="is no picture; pass"):
            open_picture(source)  # type: ignore[arg-type]

    @pytest.mark.parametrize("kind", FORMATS)
    def test_each_format_decodes_as_pillow_does(self, kind: str) -> None:
        data = encoded(photo(40, 30), kind)
        assert same(open_picture(data), Image.open(io.BytesIO(data)).convert("RGB"))

    @pytest.mark.parametrize("kind", ["PPM", "ICO", "PCX", "TGA", "EPS", "DDS", "SGI", "JPEG2000"])
    def test_other_formats_of_pillow_are_not_read(self, kind: str) -> None:
        with pytest.raises(
            PictureError, match="no picture that is read here; pass a PNG, JPEG, WebP, GIF, BMP, TIFF file"
        ):
            open_picture(encoded(photo(32, 32), kind))

    def test_a_camera_file_of_several_pictures_gives_the_first(self) -> None:
        data = encoded(PICTURE, "MPO", save_all=True, append_images=[noise(9, 9)], quality=95)
        assert open_picture(data).size == PICTURE.size

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_an_animation_gives_its_first_frame(self, kind: str) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        red, green, blue = open_picture(data).getpixel((4, 4))
        assert red > 240
        assert max(green, blue) < 10

    def test_the_callers_image_stays_as_it_is(self) -> None:
        image = noise(5, 5, "RGBA")
        before = image.tobytes()
        open_picture(image)
        assert (image.mode, image.tobytes()) == ("RGBA", before)


class TestDataUrls:
    BASE64 = base64.b64encode(PNG).decode()

    @pytest.mark.parametrize(
        "head",
        ["data:image/png;base64,", "data:;base64,", "DATA:IMAGE/PNG;BASE64,", "data:image/png;name=a%20b;base64,",
         "data:text/plain;base64,", "data:image/png; base64,"],
    )  # fmt: skip
    def test_base64(self, head: str) -> None:
        assert same(open_picture(head + self.BASE64), PICTURE)

    def test_line_breaks_and_percent_signs(self) -> None:
        assert same(open_picture("data:image/png;base64,\n" + base64.encodebytes(PNG).decode()), PICTURE)
        assert same(open_picture("data:image/png;base64," + urllib.parse.quote(self.BASE64, safe="")), PICTURE)
        assert same(open_picture("data:," + urllib.parse.quote_from_bytes(PNG)), PICTURE)

    @pytest.mark.parametrize(
        ("url", "sentence"),
        [("data:image/png;base64", "no comma"), ("data:", "no comma"), ("data:image/png;base64,@@@@", "is not; encode"),
         ("data:;base64,A", "is not; encode"), ("data:;base64,", "no picture that is read"), ("data:,", "no picture"),
         ("data:;base64,\u00fc", "outside ASCII"), ("data:" + "x" * 5000, "no comma"),
         ("data:;base64,=AAA", "is not; encode"), ("data:image/svg+xml,<svg/>", "no picture")],
    )  # fmt: skip
    def test_damaged_ones(self, url: str, sentence: str) -> None:
        with pytest.raises(PictureError, match=sentence):
            open_picture(url)

    def test_they_are_measured_before_they_are_decoded(self) -> None:
        limits = PictureLimits(bytes=len(PNG) - 1)
        for url in ("data:;base64," + self.BASE64, "data:;base64," + "%41" * 10**6, "data:," + "a" * 10**6):
            with pytest.raises(PictureError, match="has more than"):
                open_picture(url, limits)
        assert same(open_picture("data:;base64," + self.BASE64, PictureLimits(bytes=len(PNG))), PICTURE)


class TestPaths:
    def test_no_such_file(self) -> None:
        with pytest.raises(PictureError, match=r"'no/such\\nfile.png' does not exist; check the spelling"):
            open_picture("no/such\nfile.png")
        with pytest.raises(PictureError, match="cannot be read"):
            open_picture("a\0b")
        with pytest.raises(PictureError, match=r"'aaa+\.\.\.a+'"):
            open_picture("a" * 100_000)

    def test_folders_devices_and_pipes_are_not_waited_for(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        for path in (tmp_path, pipe, Path("/dev/zero"), Path("/dev/tty")):
            with pytest.raises(PictureError, match=r"a folder, a pipe or a device|does not exist|cannot be read"):
                open_picture(path)

    @pytest.mark.parametrize("path", ["/proc/self/environ", "/etc/passwd", __file__])
    def test_what_a_file_holds_is_not_told(self, path: str) -> None:
        with pytest.raises(PictureError) as caught:
            open_picture(path)
        assert str(caught.value).startswith(f"The picture '{path}' is no picture that is read here")

    def test_a_file_may_not_grow_past_the_limit(self, tmp_path: Path) -> None:
        (tmp_path / "big.png").write_bytes(PNG)
        with pytest.raises(PictureError, match="has more than 20 bytes"):
            open_picture(tmp_path / "big.png", PictureLimits(bytes=20))
        with pytest.raises(PictureError, match="has more than 20 bytes"):
            open_picture(io.BytesIO(PNG), PictureLimits(bytes=20))

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        closed = io.BytesIO(PNG)
        closed.close()
        for file in (closed, io.StringIO("text")):
            with pytest.raises(PictureError, match=r"cannot be read|gives no bytes"):
                open_picture(file)  # type: ignore[arg-type]


class TestColours:
    @pytest.mark.parametrize("mode", MODES)
    def test_every_mode_becomes_rgb(self, mode: str) -> None:
        image = Image.new(mode, (3, 2))
        picture = open_picture(image)
        assert (picture.mode, picture.size) == ("RGB", (3, 2))

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "RGBA", "LA"])
    def test_opaque_modes_of_8_bits_are_pillows_own(self, mode: str) -> None:
        image = (
            Image.new("LAB", (7, 5), (90, 140, 120))
            if mode == "LAB"
            else noise(7, 5, "L" if mode == "LA" else "RGB").convert(mode)
        )
        assert same(open_picture(image), image.convert("RGB"))

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La", "PA"])
    def test_transparency_shows_white(self, mode: str) -> None:
        assert open_picture(Image.new(mode, (2, 2))).getpixel((0, 0)) == (255, 255, 255)

    def test_half_transparent_is_half_white(self) -> None:
        assert open_picture(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0)) == (255, 127, 127)

    def test_a_transparent_colour_of_a_palette_or_of_a_png(self) -> None:
        palette = noise(4, 4, "P")
        clear = palette.getpixel((0, 0))
        for data in (encoded(palette, transparency=clear), encoded(palette, "GIF", transparency=clear)):
            assert open_picture(data).getpixel((0, 0)) == (255, 255, 255)
        assert (
            open_picture(encoded(Image.new("RGB", (2, 2), "red"), transparency=(255, 0, 0))).getpixel((0, 0))
            == (255,) * 3
        )
        assert open_picture(encoded(Image.new("L", (2, 2), 9), transparency=9)).getpixel((0, 0)) == (255, 255, 255)

    def test_16_bits_lose_their_lower_half(self) -> None:
        """Pillow's own conversion makes everything above 255 white."""
        values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
        for image in (Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
            assert np.array(open_picture(image))[0, :, 0].tolist() == [0, 0, 1, 128, 255]
            assert np.array(image.convert("RGB"))[0, :, 0].tolist() == [0, 255, 255, 255, 255]
        data = encoded(Image.fromarray(values))
        assert np.array(open_picture(data))[0, :, 0].tolist() == [0, 0, 1, 128, 255]

    def test_32_bits_up_to_255_are_8_bits(self) -> None:
        image = Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32))
        assert np.array(open_picture(image))[0, :, 0].tolist() == [0, 7, 255]

    def test_floats(self) -> None:
        image = Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32))
        assert np.array(open_picture(image))[0, :, 0].tolist() == [0, 128, 255]
        image = Image.fromarray(np.array([[-3, 0.5, 99.9, 400]], dtype=np.float32))
        assert np.array(open_picture(image))[0, :, 0].tolist() == [0, 0, 99, 255]
        with pytest.raises(PictureError, match="infinite or not a number"):
            open_picture(Image.fromarray(np.array([[np.nan]], dtype=np.float32)))


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_exif_orientation_is_applied(self, kind: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(photo(24, 16), kind, exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        assert same(open_picture(data), expected)
        assert same(open_picture(Image.open(io.BytesIO(data))), expected)

    @pytest.mark.parametrize(
        "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02"]
    )
    def test_damaged_exif_data_leaves_the_picture_as_it_is(self, exif: bytes) -> None:
        data = encoded(photo(24, 16), "JPEG", exif=exif)
        assert open_picture(data).size == (24, 16)

    @pytest.mark.parametrize("value", [0, 9, 65535])
    def test_an_orientation_that_is_none(self, value: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = value
        assert open_picture(encoded(photo(24, 16), "JPEG", exif=exif)).size == (24, 16)


class TestLimits:
    @pytest.mark.parametrize("name", ["pixels", "width", "height", "frames", "bytes"])
    @pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "9"])
    def test_limits_are_positive_integers(self, name: str, value: object) -> None:
        with pytest.raises(InputError, match=f"PictureLimits.{name} is .* positive integer"):
            PictureLimits(**{name: value})  # type: ignore[arg-type]

    @pytest.mark.parametrize("limits", [PictureLimits(pixels=23), PictureLimits(width=5), PictureLimits(height=3)])
    def test_each_is_kept_for_each_kind_of_source(self, limits: PictureLimits) -> None:
        for source in (PICTURE, np.array(PICTURE), *(encoded(PICTURE, kind) for kind in FORMATS)):
            with pytest.raises(PictureError, match="is 6 x 4 pixels, but at most"):
                open_picture(source, limits)

    def test_what_just_fits_is_opened(self) -> None:
        assert open_picture(PNG, PictureLimits(24, 6, 4, 1, len(PNG))).size == (6, 4)

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_frames(self, kind: str) -> None:
        frames = [noise(8, 8, seed=seed) for seed in range(5)]
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert open_picture(data, PictureLimits(frames=5)).size == (8, 8)
        with pytest.raises(PictureError, match="has more than 4 frames"):
            open_picture(data, PictureLimits(frames=4))

    def test_bigtiff(self) -> None:
        data = encoded(PICTURE, "TIFF", big_tiff=True, save_all=True, append_images=[PICTURE])
        assert data[2] == 43
        assert open_picture(data, PictureLimits(frames=2)).size == PICTURE.size
        with pytest.raises(PictureError, match="more than 1 frames"):
            open_picture(data, PictureLimits(frames=1))


def test_pillows_warnings_stay_inside_and_those_of_others_go_on() -> None:
    bad = encoded(photo(24, 16), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\0\0\x01\0\0\0")
    stop = threading.Event()

    def decode() -> None:
        while not stop.is_set():
            open_picture(bad)

    threads = [threading.Thread(target=decode) for _ in range(3)]
    filters = list(warnings.filters)
    for thread in threads:
        thread.start()
    with pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)
    stop.set()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == filters
