"""The slow image processors: the reference's numbers bit for bit, and where we differ on purpose, both behaviours."""

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from made_pictures import encoded, noise, photo
from PIL import Image
from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor as TheirGemma3
from transformers.models.siglip.image_processing_siglip import SiglipImageProcessor as TheirSiglip

from gemlens.errors import CheckpointError, InputError, PictureError
from gemlens.processing.pictures.auto_image_processor import AutoImageProcessor
from gemlens.processing.pictures.image_processors import Gemma3ImageProcessor, SiglipImageProcessor
from gemlens.processing.pictures.image_processors_fast import Gemma3ImageProcessorFast, SiglipImageProcessorFast
from gemlens.processing.pictures.pictures import PictureLimits
from gemlens.processing.pictures.pixels import Pixels, arithmetic

PAN_AND_SCAN = {
    "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 256, "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}  # fmt: skip
AGGRESSIVE = {**PAN_AND_SCAN, "pan_and_scan_min_crop_size": 10, "pan_and_scan_min_ratio_to_activate": 0.3}
SLOW = [SiglipImageProcessor, Gemma3ImageProcessor]
PAIRS = [(SiglipImageProcessor, TheirSiglip), (Gemma3ImageProcessor, TheirGemma3)]

SIZES = [
    (1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 77), (77, 1), (2, 3), (3, 2), (3, 3), (3, 500), (500, 3), (4, 3),
    (7, 8), (223, 224), (224, 224), (225, 224), (224, 225), (10_000, 3), (10_000, 40), (3, 3000), (640, 480),
    (481, 641), (1999, 31), (17, 1333), (400, 30), (30, 400), (1023, 767),
    # the thresholds of pan and scan, plus and minus one
    *((width + more, height) for width, height in ((1200, 1000), (510, 256), (512, 256), (640, 256), (768, 300),
                                                   (1050, 300), (1024, 256)) for more in (-1, 0, 1)),
    *((height, width + more) for width, height in ((1200, 1000), (510, 256), (512, 256), (640, 256), (768, 300),
                                                   (1050, 300), (1024, 256)) for more in (-1, 0, 1)),
]  # fmt: skip
MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "RGBX"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(level)


def test_there_are_enough_sizes() -> None:
    assert len(SIZES) >= 60


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_gemma_3_is_the_reference_bit_for_bit(width: int, height: int) -> None:
    picture = noise(width, height)
    for settings in ({}, PAN_AND_SCAN, {"size": {"height": 70, "width": 56}, "resample": 3}):
        ours = Gemma3ImageProcessor()(picture, return_tensors="pt", **settings)
        # Of pictures 1 or 3 pixels high, the reference takes rows for channels unless it is told.
        theirs = TheirGemma3()(picture, return_tensors="pt", input_data_format="channels_last", **_told(settings))
        if height in (1, 3) and settings is PAN_AND_SCAN:  # and in pan and scan it does not listen
            continue
        assert torch.equal(ours.pixel_values, theirs["pixel_values"])
        assert ours.num_crops.tolist() == theirs["num_crops"].tolist()


def _told(settings: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(settings)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_siglip_is_the_reference_bit_for_bit(width: int, height: int) -> None:
    picture = noise(width, height)
    ours = SiglipImageProcessor()(picture, return_tensors="pt").pixel_values
    theirs = TheirSiglip()(picture, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("width", "height"), [(37, 23), (5, 90), (300, 128)])
def test_modes_are_the_reference_bit_for_bit(mode: str, width: int, height: int) -> None:
    picture = noise(width, height, mode if mode != "LA" else "L").convert(mode)
    ours = Gemma3ImageProcessor()(picture, return_tensors="pt").pixel_values
    assert torch.equal(ours, TheirGemma3()(picture, return_tensors="pt")["pixel_values"])
    assert torch.equal(
        SiglipImageProcessor()(picture, return_tensors="pt").pixel_values,
        TheirSiglip()(picture, return_tensors="pt", do_convert_rgb=True)["pixel_values"],
    )


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize(
    "settings",
    [
        {"do_resize": False}, {"do_rescale": False}, {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"do_resize": False, "do_rescale": False, "do_normalize": False}, {"image_mean": 0.1, "image_std": 3},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 0.5, 0.25]}, {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 2},
        {"size": {"height": 3, "width": 500}}, *({"resample": number} for number in range(6)),
        {"data_format": "channels_last"}, {"do_convert_rgb": True},
    ],
    ids=str,
)  # fmt: skip
def test_settings_are_the_reference_bit_for_bit(ours: type, theirs: type, settings: dict[str, Any]) -> None:
    picture = noise(61, 47)
    for stored, call in (({}, settings), ({k: v for k, v in settings.items() if k != "data_format"}, settings)):
        got = ours(**stored)(picture, return_tensors="pt", **call).pixel_values
        expected = theirs(**_told(stored))(picture, return_tensors="pt", **_told(call))["pixel_values"]
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["channels_first", "channels_last"])
def test_arrays_are_the_reference_bit_for_bit(ours: type, theirs: type, dtype: type, order: str) -> None:
    array = np.array(noise(61, 47)).astype(dtype)
    array = array if order == "channels_last" else array.transpose(2, 0, 1)
    for settings in ({}, {"do_resize": False}, {"do_rescale": False}, {"input_data_format": order}):
        got = ours()(array, return_tensors="pt", **settings).pixel_values
        expected = theirs()(array, return_tensors="pt", **settings)["pixel_values"]
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
        if dtype != np.uint16:
            tensor = torch.from_numpy(np.ascontiguousarray(array))
            assert torch.equal(ours()(tensor, return_tensors="pt", **settings).pixel_values, expected)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_arrays_within_one_are_the_reference_bit_for_bit(ours: type, theirs: type) -> None:
    array = np.random.default_rng(0).random((47, 61, 3), dtype=np.float32)
    for settings in ({"do_rescale": False}, {"do_rescale": False, "do_resize": False}):
        expected = theirs()(array, return_tensors="pt", **settings)["pixel_values"]
        assert torch.equal(ours()(array, return_tensors="pt", **settings).pixel_values, expected)
    with pytest.warns(UserWarning, match="pass do_rescale=False"):
        twice = ours()(array, return_tensors="pt").pixel_values
    assert torch.equal(twice, theirs()(array, return_tensors="pt")["pixel_values"])


def test_the_table_of_256_values_gives_the_numbers_of_the_plain_arithmetic() -> None:
    settings = Gemma3ImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.3, 0.7, 1.1])._settings(
        {"do_resize": False}
    )
    pixels = Pixels(np.array(noise(40, 30)))
    assert np.array_equal(pixels.finished(settings), arithmetic(np.array(noise(40, 30)), settings))


class TestTheReferencesOwnTests:
    """Those of tests/models/gemma3 and siglip, in our words (model-facts 8.4 and 8.5)."""

    SIZE = {"height": 18, "width": 18}  # noqa: RUF012

    def test_properties(self) -> None:
        for name in ("do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
                     "image_std", "do_convert_rgb"):  # fmt: skip
            assert all(hasattr(processor(), name) for processor in SLOW)
        for name in PAN_AND_SCAN:
            assert hasattr(Gemma3ImageProcessor(), name)

    @pytest.mark.parametrize(("ours", "theirs"), PAIRS)
    def test_without_arguments(self, ours: type, theirs: type) -> None:
        """Each has the reference's defaults and argument names, in its order."""
        expected = theirs().to_dict()
        assert expected.pop("_processor_class") is None
        assert ours().to_dict() == expected
        assert list(ours().model_input_names) == list(theirs.model_input_names)
        for method in ("__init__", "preprocess"):
            names = getattr(ours, method).__code__.co_varnames[: getattr(ours, method).__code__.co_argcount]
            other = getattr(getattr(theirs, method), "__wrapped__", getattr(theirs, method)).__code__
            assert names == other.co_varnames[: other.co_argcount]

    @pytest.mark.parametrize("processor", SLOW)
    def test_a_size_of_its_own(self, processor: type) -> None:
        assert processor.from_dict({}).size == {"height": 224, "width": 224}
        assert processor.from_dict({"size": {"height": 18, "width": 18}}, size=84).size == {"height": 84, "width": 84}

    @pytest.mark.parametrize("kind", ["PIL", "numpy", "torch"])
    def test_pan_and_scan_of_300_by_600(self, kind: str) -> None:
        picture = noise(300, 600)
        given: Any = {"PIL": picture, "numpy": np.array(picture),
                      "torch": torch.from_numpy(np.array(picture)).permute(2, 0, 1)}[kind]  # fmt: skip
        processor = Gemma3ImageProcessor(size=self.SIZE, **PAN_AND_SCAN)
        assert processor(given, return_tensors="pt").pixel_values.shape == (3, 3, 18, 18)
        assert processor([given] * 3, return_tensors="pt").pixel_values.shape == (9, 3, 18, 18)
        assert processor([[given, given], [given]], return_tensors="pt").pixel_values.shape == (9, 3, 18, 18)
        assert processor([[given, given], [given]], return_tensors="pt").num_crops.tolist() == [2, 2, 2]

    @pytest.mark.parametrize("processor", SLOW)
    def test_one_and_seven_pictures(self, processor: type) -> None:
        pictures = [noise(30 + 11 * number, 400 - 50 * number) for number in range(7)]
        call = processor(size=self.SIZE)
        assert call(pictures[0], return_tensors="pt").pixel_values.shape == (1, 3, 18, 18)
        assert call(pictures, return_tensors="pt").pixel_values.shape == (7, 3, 18, 18)
        assert call(np.stack([np.array(noise(20, 20))] * 4), return_tensors="pt").pixel_values.shape == (4, 3, 18, 18)
        nested = call([pictures[:3], pictures[3:]], return_tensors="np").pixel_values
        assert np.array_equal(nested, call(pictures, return_tensors="np").pixel_values)

    def test_pictures_and_crops_keep_their_order(self) -> None:
        pictures = [noise(600, 300), noise(50, 50), noise(300, 900)]
        batch = Gemma3ImageProcessor(size=self.SIZE)(pictures, return_tensors="pt", **PAN_AND_SCAN)
        assert batch.num_crops.tolist() == [2, 0, 3]
        alone = [Gemma3ImageProcessor(size=self.SIZE)(each, return_tensors="pt", **PAN_AND_SCAN) for each in pictures]
        assert torch.equal(batch.pixel_values, torch.cat([each.pixel_values for each in alone]))
        first = Gemma3ImageProcessor(size=self.SIZE)(pictures[0].crop((0, 0, 300, 300)), return_tensors="pt")
        assert torch.equal(batch.pixel_values[1], first.pixel_values[0])

    def test_aggressive_pan_and_scan(self) -> None:
        for picture in (noise(30, 400), noise(213, 109), noise(40, 41)):
            ours = Gemma3ImageProcessor(size=self.SIZE)(picture, return_tensors="pt", **AGGRESSIVE)
            theirs = TheirGemma3(size=self.SIZE)(picture, return_tensors="pt", **AGGRESSIVE)
            assert torch.equal(ours.pixel_values, theirs["pixel_values"])
            assert ours.num_crops.tolist() == theirs["num_crops"].tolist()

    @pytest.mark.parametrize("processor", SLOW)
    def test_one_instances_settings_are_not_anothers(self, processor: type) -> None:
        one, other = processor(), processor()
        one.size["height"] = 5
        one.image_mean.append(1)
        assert other.size["height"] == processor().size["height"] == 224
        assert len(processor().image_mean) == 3


class TestKindsOfInput:
    @pytest.mark.parametrize("processor", SLOW)
    def test_paths_bytes_and_data_urls(self, processor: type, tmp_path: Path) -> None:
        import base64

        picture = photo(40, 30)
        (tmp_path / "cat.png").write_bytes(encoded(picture))
        url = "data:image/png;base64," + base64.b64encode(encoded(picture)).decode()
        expected = processor()([picture] * 4, return_tensors="pt").pixel_values
        given = [tmp_path / "cat.png", str(tmp_path / "cat.png"), encoded(picture), url]
        assert torch.equal(processor()(given, return_tensors="pt").pixel_values, expected)

    @pytest.mark.parametrize("processor", SLOW)
    def test_limits_and_urls_are_passed_on(self, processor: type) -> None:
        with pytest.raises(PictureError, match="at most 65535 x 65535 and 5 pixels"):
            processor()(noise(4, 4), limits=PictureLimits(pixels=5))
        with pytest.raises(PictureError, match="allow_urls=False"):
            processor()("http://example.com/cat.png", allow_urls=False)
        with pytest.raises(PictureError, match="not public"):
            processor()("http://127.0.0.1/cat.png")

    @pytest.mark.parametrize("processor", SLOW)
    def test_results_as_lists_arrays_and_tensors(self, processor: type) -> None:
        pictures = [noise(4, 5), noise(6, 7)]
        lists = processor()(pictures).pixel_values
        assert [type(each) for each in lists] == [np.ndarray] * 2
        arrays = processor()(pictures, return_tensors="np").pixel_values
        assert isinstance(arrays, np.ndarray)
        assert np.array_equal(arrays, np.stack(lists))
        assert np.array_equal(processor()(pictures, return_tensors="pt").pixel_values.numpy(), arrays)
        with pytest.raises(InputError, match=r"3 x 5 x 4 and 3 x 7 x 6 make no tensor; pass do_resize=True"):
            processor()(pictures, do_resize=False, return_tensors="pt")
        assert [each.shape for each in processor()(pictures, do_resize=False).pixel_values] == [(3, 5, 4), (3, 7, 6)]

    @pytest.mark.parametrize("processor", SLOW)
    def test_arrays_without_three_channels_become_rgb(self, processor: type) -> None:
        grey = np.array(noise(20, 10, "L"))
        expected = processor()(Image.fromarray(grey), return_tensors="pt").pixel_values
        for array in (grey, grey[..., None], grey[None], torch.from_numpy(grey)):
            assert torch.equal(processor()(array, return_tensors="pt").pixel_values, expected)
        assert torch.equal(processor()(grey, input_data_format="none", return_tensors="pt").pixel_values, expected)
        clear = np.zeros((10, 20, 4), np.uint8)
        assert (processor()(clear, return_tensors="pt").pixel_values == 1).all()
        assert (
            processor()(clear / 255, return_tensors="pt", do_rescale=False, do_normalize=False).pixel_values == 1
        ).all()

    @pytest.mark.parametrize("processor", SLOW)
    @pytest.mark.parametrize(
        "images",
        [[], [[]], None, 3, [None], object(), np.zeros(3), np.zeros((6, 5, 7)), np.zeros((0, 3, 3)),
         np.zeros((1, 2, 3, 4, 5)),
         np.full((8, 8, 3), 256), np.full((8, 8, 3), 150.5), np.full((8, 8, 3), np.nan), [[[[[[[[[[]]]]]]]]]]],
        ids=lambda each: str(each)[:20],
    )  # fmt: skip
    def test_what_is_no_picture_is_a_sentence(self, processor: type, images: Any) -> None:
        with pytest.raises(InputError, match=r"\.$"):
            processor()(images)

    @pytest.mark.parametrize("processor", SLOW)
    def test_unconverted_pictures_must_have_one_or_three_channels(self, processor: type) -> None:
        for mode in ("RGBA", "CMYK", "LA"):
            with pytest.raises(InputError, match="channels came; pass do_convert_rgb=True"):
                processor()(noise(5, 5, "L" if mode == "LA" else "RGB").convert(mode), do_convert_rgb=False)
        settings = {"do_convert_rgb": False, "image_mean": 0.5, "image_std": 0.5, "return_tensors": "pt"}
        assert processor()(noise(5, 5, "L"), **settings).pixel_values.shape == (1, 1, 224, 224)
        with pytest.raises(InputError, match="image_mean has 3 numbers, but the picture has 1 channels"):
            processor()(noise(5, 5, "L"), do_convert_rgb=False)

    @pytest.mark.parametrize("processor", SLOW)
    def test_an_array_that_can_be_read_in_two_ways_is_told(self, processor: type) -> None:
        array = np.array(noise(20, 3))
        with pytest.warns(UserWarning, match="3 x 20 x 3 can be read in two ways"):
            first = processor()(array, return_tensors="pt").pixel_values
        last = processor()(array, return_tensors="pt", input_data_format="channels_last").pixel_values
        assert not torch.equal(first, last)
        assert torch.equal(last, processor()(Image.fromarray(array), return_tensors="pt").pixel_values)


class TestPanAndScanMethod:
    def test_crops_are_views_of_what_came(self) -> None:
        array = np.array(noise(600, 300))
        for given, order in ((array, "channels_last"), (array.transpose(2, 0, 1), "channels_first")):
            crops = Gemma3ImageProcessor().pan_and_scan(given)
            theirs = TheirGemma3().pan_and_scan(given, 256, 4, 1.2, input_data_format=order)
            assert all(np.array_equal(ours, other) for ours, other in zip(crops, theirs, strict=True))
            assert all(np.shares_memory(crop, given) for crop in crops)
            turned = Gemma3ImageProcessor().pan_and_scan(given, data_format="channels_first")
            assert [crop.shape for crop in turned] == [(3, 300, 300)] * 2
        images = Gemma3ImageProcessor().pan_and_scan(noise(600, 300))
        assert [image.size for image in images] == [(300, 300)] * 2
        assert Gemma3ImageProcessor().pan_and_scan(noise(300, 300)) == []

    def test_numbers_of_the_call_beat_stored_ones_beat_defaults(self) -> None:
        picture = noise(1024, 256)
        processor = Gemma3ImageProcessor(pan_and_scan_max_num_crops=3)
        assert len(Gemma3ImageProcessor().pan_and_scan(picture)) == 4
        assert len(processor.pan_and_scan(picture)) == 3
        assert len(processor.pan_and_scan(picture, pan_and_scan_max_num_crops=2)) == 2
        assert processor(picture, do_pan_and_scan=True).num_crops == [3]
        assert processor(picture, do_pan_and_scan=True, pan_and_scan_max_num_crops=2).num_crops == [2]


class TestArguments:
    @pytest.mark.parametrize("processor", [*SLOW, SiglipImageProcessorFast, Gemma3ImageProcessorFast])
    def test_a_misspelt_one_is_an_error(self, processor: type) -> None:
        with pytest.raises(InputError, match=r"takes no argument 'do_resise'; did you mean 'do_resize'\?"):
            processor(do_resise=False)
        with pytest.raises(InputError, match=r"takes no argument 'sise'; did you mean 'size'\?"):
            processor()(noise(3, 4), sise=5)
        with pytest.raises(InputError, match="takes no argument 'quite_another'; it takes "):
            processor.from_dict({}, quite_another=5)

    @pytest.mark.parametrize("processor", [*SLOW, SiglipImageProcessorFast, Gemma3ImageProcessorFast])
    @pytest.mark.parametrize(
        "wrong",
        [
            {"do_resize": "yes"}, {"size": {"height": 5}}, {"size": {"height": 0, "width": 5}}, {"size": "big"},
            {"size": {"height": 5.5, "width": 5}}, {"size": {"shortest_edge": 5, "max_width": 7}}, {"resample": 9},
            {"resample": "bilinear"}, {"rescale_factor": "x"}, {"rescale_factor": float("nan")}, {"image_mean": "x"},
            {"image_mean": []}, {"image_std": 0}, {"image_std": [1, 0, 1]}, {"image_mean": [0.1, 0.2]},
            {"return_tensors": "tf"}, {"return_tensors": "jax"}, {"data_format": "last"}, {"input_data_format": "CHW"},
            {"do_normalize": 3}, {"size": True}, {"size": [1, 2, 3]},
        ],
        ids=str,
    )  # fmt: skip
    def test_values_that_make_no_sense(self, processor: type, wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=r"[.?]$"):
            processor()(noise(3, 4), **wrong)

    @pytest.mark.parametrize("processor", [*SLOW, SiglipImageProcessorFast, Gemma3ImageProcessorFast])
    def test_the_callers_dicts_stay_as_they_are(self, processor: type) -> None:
        size, settings = {"height": 5, "width": 6}, {"do_normalize": True, "size": {"height": 5, "width": 6}}
        before = copy.deepcopy(settings)
        made = processor.from_dict(settings)
        processor(size=size)(noise(3, 4), size=size, return_tensors="pt")
        made.size["height"] = 99
        assert settings == before
        assert size == {"height": 5, "width": 6}

    def test_call_beats_stored_beats_default(self) -> None:
        picture = noise(30, 20)
        processor = SiglipImageProcessor(size=7, do_normalize=False)
        assert processor(picture, return_tensors="pt").pixel_values.shape[-1] == 7
        assert processor(picture, return_tensors="pt").pixel_values.min() >= 0
        again = processor(picture, return_tensors="pt", size=9, do_normalize=True).pixel_values
        assert torch.equal(again, SiglipImageProcessor(size=9)(picture, return_tensors="pt").pixel_values)
        processor.do_normalize = True  # attributes are what is stored
        assert processor(picture, return_tensors="pt").pixel_values.min() < 0

    def test_enumerations_of_the_reference_and_of_pillow(self) -> None:
        from transformers.image_utils import ChannelDimension

        picture = noise(30, 20)
        ours = SiglipImageProcessor(resample=Image.Resampling.BOX)
        assert type(ours.to_dict()["resample"]) is int
        rows = ours(picture, data_format=ChannelDimension.LAST, return_tensors="pt").pixel_values
        assert rows.shape == (1, 224, 224, 3)


class TestDefectsOfTheReference:
    """What it does, and what we do."""

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "I;16"])
    def test_paligemmas_processor_crashes_there_on_grey_or_transparent_pictures(self, mode: str) -> None:
        picture = noise(20, 10, "L" if mode in ("LA", "I;16") else "RGB").convert(mode)
        with pytest.raises(ValueError, match=r"Unsupported number of image dimensions|Unable to infer"):
            TheirSiglip()(picture)
        assert SiglipImageProcessor()(picture, return_tensors="pt").pixel_values.shape == (1, 3, 224, 224)

    def test_rows_are_taken_for_channels_there(self) -> None:
        picture = photo(50, 3)
        scrambled = TheirGemma3()(picture, return_tensors="pt")["pixel_values"]
        told = TheirGemma3()(picture, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        assert not torch.equal(scrambled, told)
        assert torch.equal(Gemma3ImageProcessor()(picture, return_tensors="pt").pixel_values, told)
        with pytest.raises(ValueError, match="mean must have 1 elements"):
            TheirGemma3()(photo(50, 1))
        assert Gemma3ImageProcessor()(photo(50, 1), return_tensors="pt").pixel_values.shape == (1, 3, 224, 224)

    def test_the_first_array_decides_for_all_there(self) -> None:
        one, other = np.array(noise(20, 10)), np.array(noise(20, 10)).transpose(2, 0, 1)
        with pytest.raises((ValueError, TypeError)):
            TheirSiglip()([one, other], return_tensors="pt")
        both = SiglipImageProcessor()([one, other], return_tensors="pt").pixel_values
        assert torch.equal(both[0], both[1])

    def test_pan_and_scan_without_numbers_is_a_type_error_there(self) -> None:
        with pytest.raises(TypeError, match="not supported between instances"):
            TheirGemma3()(noise(600, 300), do_pan_and_scan=True)
        ours = Gemma3ImageProcessor()(noise(600, 300), do_pan_and_scan=True, return_tensors="pt")
        theirs = TheirGemma3()(noise(600, 300), return_tensors="pt", **PAN_AND_SCAN)
        assert torch.equal(ours.pixel_values, theirs["pixel_values"])

    def test_what_is_hidden_shows_there(self) -> None:
        hidden = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
        assert TheirGemma3()(hidden, return_tensors="pt")["pixel_values"][0, 1].max() == -1, "red"
        assert Gemma3ImageProcessor()(hidden, return_tensors="pt").pixel_values.min() == 1, "white"

    def test_16_bits_are_white_there(self) -> None:
        grey = Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16))
        assert TheirGemma3()(grey, return_tensors="pt")["pixel_values"].min() == 1
        assert abs(float(Gemma3ImageProcessor()(grey, return_tensors="pt").pixel_values.mean())) < 0.01

    def test_exif_orientation_is_ignored_there_unless_a_path_came(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        (tmp_path / "phone.jpg").write_bytes(encoded(photo(60, 30), "JPEG", exif=exif))
        opened = Image.open(tmp_path / "phone.jpg")
        theirs = TheirGemma3()(str(tmp_path / "phone.jpg"), return_tensors="pt")["pixel_values"]
        assert not torch.equal(TheirGemma3()(opened, return_tensors="pt")["pixel_values"], theirs)
        for given in (opened, str(tmp_path / "phone.jpg")):
            assert torch.equal(Gemma3ImageProcessor()(given, return_tensors="pt").pixel_values, theirs)

    def test_no_data_format_means_that_of_the_picture_but_is_an_error_there(self) -> None:
        array = np.array(noise(9, 7))
        with pytest.raises(ValueError, match="None is not a valid ChannelDimension"):
            TheirSiglip()(array, data_format=None)
        assert SiglipImageProcessor()(array, data_format=None).pixel_values[0].shape == (224, 224, 3)
        first = SiglipImageProcessor()(array.transpose(2, 0, 1), data_format=None).pixel_values[0]
        assert first.shape == (3, 224, 224)

    def test_a_misspelt_argument_is_ignored_there(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TheirSiglip(do_resise=False)
        with pytest.raises(InputError):
            SiglipImageProcessor(do_resise=False)

    def test_a_number_for_the_size_of_a_call_is_a_key_error_there(self) -> None:
        with pytest.raises(KeyError):
            TheirGemma3()(noise(5, 5), size=18)
        assert Gemma3ImageProcessor()(noise(5, 5), size=18, return_tensors="pt").pixel_values.shape[-1] == 18


PUBLISHED = {
    "do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor", "image_seq_length": 256, "image_std": [0.5, 0.5, 0.5],
    "processor_class": "PaliGemmaProcessor", "resample": 3, "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224}, "something_new": {"a": [1]}, "_valid_processor_keys": ["images"],
}  # fmt: skip


class TestFiles:
    @pytest.mark.parametrize(
        ("ours", "theirs"), [*PAIRS, (SiglipImageProcessorFast, TheirSiglip), (Gemma3ImageProcessorFast, TheirGemma3)]
    )
    def test_what_we_write_the_reference_reads(self, ours: type, theirs: type, tmp_path: Path) -> None:
        made = ours(size={"height": 18, "width": 20}, resample=2, image_mean=[0.1, 0.2, 0.3], image_seq_length=9)
        assert made.save_pretrained(tmp_path) == [str(tmp_path / "preprocessor_config.json")]
        read = theirs.from_pretrained(tmp_path)
        assert read.size == {"height": 18, "width": 20}
        assert read.image_mean == [0.1, 0.2, 0.3]
        assert read.image_seq_length == 9
        assert ours.from_pretrained(tmp_path).to_dict() == made.to_dict()
        name = ours.__name__.removesuffix("Fast")
        again = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
        assert type(again).__name__ == name

    @pytest.mark.parametrize(("ours", "theirs"), PAIRS)
    def test_what_the_reference_writes_we_read(self, ours: type, theirs: type, tmp_path: Path) -> None:
        theirs(size={"height": 18, "width": 20}, do_normalize=False).save_pretrained(tmp_path)
        for read in (ours.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
            assert {**read.to_dict(), "_processor_class": None} == theirs.from_pretrained(tmp_path).to_dict()
            assert type(read) is ours

    def test_a_published_file_survives_a_round_trip(self, tmp_path: Path) -> None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
        read = SiglipImageProcessor.from_pretrained(tmp_path)
        assert read.image_seq_length == 256
        assert read.processor_class == "PaliGemmaProcessor"
        read.image_seq_length = 1024
        read.save_pretrained(tmp_path / "new")
        written = json.loads((tmp_path / "new" / "preprocessor_config.json").read_text())
        assert written == {**PUBLISHED, "image_seq_length": 1024}
        with pytest.raises(AttributeError, match="SiglipImageProcessor has no 'image_sequence'"):
            _ = read.image_sequence
        assert not hasattr(SiglipImageProcessor(), "image_seq_length")
        assert copy.deepcopy(read).to_dict() == read.to_dict()

    def test_slow_files_open_fast_and_back(self, tmp_path: Path) -> None:
        Gemma3ImageProcessorFast(size=896, **PAN_AND_SCAN, device="cpu").save_pretrained(tmp_path)
        slow = Gemma3ImageProcessor.from_pretrained(tmp_path)
        assert slow.size == {"height": 896, "width": 896}
        assert slow.pan_and_scan_max_num_crops == 4
        slow.save_pretrained(tmp_path / "slow")
        fast = Gemma3ImageProcessorFast.from_pretrained(tmp_path / "slow")
        assert fast.device == "cpu", "what the slow one does not know stays"
        assert fast.to_dict() == Gemma3ImageProcessorFast.from_pretrained(tmp_path).to_dict()

    @pytest.mark.parametrize("use_fast", [None, True, False])
    @pytest.mark.parametrize(
        ("name", "slow", "fast"),
        [("SiglipImageProcessor", SiglipImageProcessor, SiglipImageProcessorFast),
         ("Gemma3ImageProcessorFast", Gemma3ImageProcessor, Gemma3ImageProcessorFast)],
    )  # fmt: skip
    def test_auto(self, tmp_path: Path, use_fast: bool | None, name: str, slow: type, fast: type) -> None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": name, "size": 30}))
        read = AutoImageProcessor.from_pretrained(tmp_path, use_fast=use_fast, do_normalize=False)
        expected = name.endswith("Fast") if use_fast is None else use_fast
        assert type(read) is (fast if expected else slow)
        assert read.is_fast is expected
        assert read.do_normalize is False
        with pytest.raises(InputError, match="did you mean 'do_normalize'"):
            AutoImageProcessor.from_pretrained(tmp_path, do_normalise=False)

    def test_auto_by_the_models_config(self, tmp_path: Path) -> None:
        (tmp_path / "preprocessor_config.json").write_text("{}")
        with pytest.raises(CheckpointError, match="names no 'image_processor_type'"):
            AutoImageProcessor.from_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
        assert type(AutoImageProcessor.from_pretrained(tmp_path)) is Gemma3ImageProcessor

    def test_settings_inside_a_processors_file(self, tmp_path: Path) -> None:
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {**PUBLISHED, "size": 448}}))
        assert SiglipImageProcessor.from_pretrained(tmp_path).size == {"height": 448, "width": 448}

    def test_files_that_are_not_there_or_of_another_family(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no 'preprocessor_config.json'"):
            SiglipImageProcessor.from_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"}))
        for reader in (SiglipImageProcessor, Gemma3ImageProcessorFast, AutoImageProcessor):
            with pytest.raises(CheckpointError, match="is a 'CLIPImageProcessor', but gemlens has"):
                reader.from_pretrained(tmp_path)
        with pytest.raises(InputError, match="is a file; pass a folder"):
            SiglipImageProcessor().save_pretrained(tmp_path / "preprocessor_config.json")
        with pytest.raises(InputError, match="is not made but asked"):
            AutoImageProcessor()
