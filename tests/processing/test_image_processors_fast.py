"""The fast image processors: within the reference's tolerance of the slow twins, in any grouping and on any device."""

from typing import Any

import numpy as np
import pytest
import torch
from made_pictures import noise, photo
from PIL import Image
from test_image_processors import AGGRESSIVE, MODES, PAN_AND_SCAN, SIZES
from torch import Tensor

from gemlens.errors import InputError
from gemlens.processing.pictures.image_processors import Gemma3ImageProcessor, SiglipImageProcessor
from gemlens.processing.pictures.image_processors_fast import (
    Gemma3ImageProcessorFast,
    SiglipImageProcessorFast,
    _interpolated,
)
from gemlens.processing.pictures.image_settings import target_size

FAST = [SiglipImageProcessorFast, Gemma3ImageProcessorFast]
PAIRS = [(SiglipImageProcessorFast, SiglipImageProcessor), (Gemma3ImageProcessorFast, Gemma3ImageProcessor)]


def close(fast: Tensor, slow: Tensor) -> None:
    """The tolerance of the reference's own tests between its slow and fast processors."""
    torch.testing.assert_close(fast, slow, atol=1e-1, rtol=1e-3)
    assert (fast - slow).abs().mean() <= 5e-3


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_gemma_3_is_close_to_the_slow_twin(width: int, height: int) -> None:
    picture = noise(width, height)
    for settings in ({}, PAN_AND_SCAN, {"size": {"height": 70, "width": 56}, "resample": 3}):
        fast = Gemma3ImageProcessorFast()(picture, return_tensors="pt", **settings)
        slow = Gemma3ImageProcessor()(picture, return_tensors="pt", **settings)
        close(fast.pixel_values, slow.pixel_values)
        assert fast.num_crops.tolist() == slow.num_crops.tolist()
        assert fast.pixel_values.is_contiguous()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_siglip_is_close_to_the_slow_twin(width: int, height: int) -> None:
    picture = noise(width, height)
    fast = SiglipImageProcessorFast()(picture, return_tensors="pt").pixel_values
    close(fast, SiglipImageProcessor()(picture, return_tensors="pt").pixel_values)


@pytest.mark.parametrize(("fast", "slow"), PAIRS)
@pytest.mark.parametrize("mode", [*MODES, "I;16", "LAB"])
def test_modes_are_close_to_the_slow_twin(fast: type, slow: type, mode: str) -> None:
    picture = Image.new(mode, (60, 40)) if mode in ("I;16", "LAB") else noise(60, 40, "L").convert(mode)
    close(fast()(picture, return_tensors="pt").pixel_values, slow()(picture, return_tensors="pt").pixel_values)


@pytest.mark.parametrize(("width", "height"), SIZES[::3])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_way_of_other_devices_gives_the_same_bytes(width: int, height: int, mode: str) -> None:
    """The arithmetic that accelerators get, on this one: at most two steps of 255 from that of CPUs."""
    batch = torch.from_numpy(np.array(noise(width, height))).permute(2, 0, 1)[None]
    ways = [_interpolated(batch, (60, 75), mode, in_bytes).int() for in_bytes in (True, False)]
    difference = (ways[0] - ways[1]).abs()
    assert difference.max() <= 2
    assert difference.float().mean() < 0.1


def test_photographs_differ_by_one_step_of_255_at_most() -> None:
    for width, height in ((1920, 1080), (640, 480), (480, 640), (100, 900), (50, 50)):
        for settings in ({}, PAN_AND_SCAN):
            fast = Gemma3ImageProcessorFast(size=448)(photo(width, height), return_tensors="pt", **settings)
            slow = Gemma3ImageProcessor(size=448)(photo(width, height), return_tensors="pt", **settings)
            assert (fast.pixel_values - slow.pixel_values).abs().max() <= 1.001 / 127.5


def test_aggressive_pan_and_scan() -> None:
    for picture in (noise(30, 400), noise(213, 109), noise(40, 41), photo(333, 100)):
        fast = Gemma3ImageProcessorFast(size=18)(picture, return_tensors="pt", **AGGRESSIVE)
        slow = Gemma3ImageProcessor(size=18)(picture, return_tensors="pt", **AGGRESSIVE)
        close(fast.pixel_values, slow.pixel_values)
        assert fast.num_crops.tolist() == slow.num_crops.tolist()


@pytest.mark.parametrize(("fast", "slow"), PAIRS)
@pytest.mark.parametrize(
    "settings",
    [
        {"do_resize": False}, {"do_rescale": False}, {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"do_resize": False, "do_rescale": False, "do_normalize": False}, {"image_mean": 0.1, "image_std": 3},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 0.5, 0.25]}, {"rescale_factor": 1 / 127.5}, {"resample": 0},
    ],
    ids=str,
)  # fmt: skip
def test_settings_mean_what_they_mean_to_the_slow_twin(fast: type, slow: type, settings: dict[str, Any]) -> None:
    picture = photo(61, 47)
    got = fast()(picture, return_tensors="pt", **settings).pixel_values
    expected = slow()(picture, return_tensors="pt", **settings).pixel_values
    steps = 255 if settings.get("do_rescale") is False else 1  # without rescaling a step is as large
    scale = steps * (2 if "image_std" not in settings else 4)
    assert got.shape == expected.shape
    assert (got.float() - expected.float()).abs().max() <= 1.01 * scale / 255 * (
        2 if "rescale_factor" in settings else 1
    )
    assert torch.equal(fast(**settings)(picture, return_tensors="pt").pixel_values, got)


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("settings", [{}, PAN_AND_SCAN])
def test_grouping_changes_no_number_and_no_order(kind: type, settings: dict[str, Any]) -> None:
    settings = settings if kind is Gemma3ImageProcessorFast else {}
    sizes = [(600, 300), (50, 50), (300, 900), (600, 300), (50, 50), (40, 50)]
    pictures = [noise(width, height, seed=seed) for seed, (width, height) in enumerate(sizes)]
    batches = [kind()(pictures, return_tensors="pt", disable_grouping=each, **settings) for each in (None, True, False)]
    alone = [kind()(picture, return_tensors="pt", **settings) for picture in pictures]
    for batch in batches:
        assert torch.equal(batch.pixel_values, torch.cat([each.pixel_values for each in alone]))
    if settings:
        assert batches[0].num_crops.tolist() == [2, 0, 3, 2, 0, 0]
        nested = kind()([pictures[:2], pictures[2:]], return_tensors="pt", **settings)
        assert torch.equal(nested.pixel_values, batches[0].pixel_values)


@pytest.mark.parametrize("kind", FAST)
def test_what_comes_out(kind: type) -> None:
    pictures = [noise(20, 10), noise(10, 20)]
    stacked = kind()(pictures, return_tensors="pt").pixel_values
    assert stacked.shape == (2, 3, 224, 224)
    assert stacked.dtype == torch.float32
    rows = kind()(pictures).pixel_values
    assert isinstance(rows, list)
    assert all(torch.equal(row, other) for row, other in zip(rows, stacked, strict=True))
    arrays = kind()(pictures, return_tensors="np").pixel_values
    assert np.array_equal(arrays, stacked.numpy())
    assert isinstance(kind(return_tensors="pt")(pictures).pixel_values, Tensor)
    with pytest.raises(InputError, match="make no tensor; pass do_resize=True"):
        kind()(pictures, do_resize=False, return_tensors="pt")
    assert [tuple(row.shape) for row in kind()(pictures, do_resize=False).pixel_values] == [(3, 10, 20), (3, 20, 10)]


@pytest.mark.parametrize(("fast", "slow"), PAIRS)
def test_arrays_and_tensors(fast: type, slow: type) -> None:
    array = np.array(photo(61, 47))
    expected = slow()(array, return_tensors="pt").pixel_values
    first = array.transpose(2, 0, 1)
    kinds = [array, first, array.astype(np.int64), array.astype(np.uint16), torch.from_numpy(array),
             torch.from_numpy(first.copy()), torch.from_numpy(array).long()]  # fmt: skip
    for given in kinds:
        close(fast()(given, return_tensors="pt").pixel_values, expected)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        floats = (torch.from_numpy(array) / 255).to(dtype)
        close(fast()(floats, return_tensors="pt", do_rescale=False).pixel_values, expected)
    many = fast()(np.stack([array, array]), return_tensors="pt").pixel_values
    assert torch.equal(many[0], many[1])
    read_only = array.copy()
    read_only.flags.writeable = False
    close(fast()(read_only[::-1, ::-1], return_tensors="pt").pixel_values, expected.flip(2, 3))


@pytest.mark.parametrize("kind", FAST)
def test_what_came_is_not_changed(kind: type) -> None:
    array = np.array(noise(224, 224))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    floats = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0))
    before = array.copy(), tensor.clone(), floats.clone()
    kind()([array, tensor], return_tensors="pt")
    kind()(floats, do_rescale=False, return_tensors="pt")
    assert np.array_equal(array, before[0])
    assert torch.equal(tensor, before[1])
    assert torch.equal(floats, before[2])


@pytest.mark.parametrize("kind", FAST)
def test_grey_and_transparent_tensors_become_rgb(kind: type) -> None:
    grey = torch.from_numpy(np.array(noise(20, 10, "L")))
    expected = kind()(Image.fromarray(grey.numpy()), return_tensors="pt").pixel_values
    for given in (grey, grey[None], grey[..., None]):
        assert torch.equal(kind()(given, return_tensors="pt").pixel_values, expected)
    assert (kind()(torch.zeros(4, 9, 8, dtype=torch.uint8), return_tensors="pt").pixel_values == 1).all()
    with pytest.raises(InputError, match="4 channels came; pass do_convert_rgb=True"):
        kind()(torch.zeros(4, 9, 8, dtype=torch.uint8), do_convert_rgb=False)


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize(
    "wrong",
    [{"resample": 1}, {"resample": 4}, {"resample": 5}, {"data_format": "channels_last"}, {"device": "toaster"},
     {"do_center_crop": True}, {"do_center_crop": True, "crop_size": {"shortest_edge": 4}}, {"rescale_factor": 0}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_done_is_said(kind: type, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"\.$"):
        kind()(noise(5, 6), **wrong)


def test_pixels_beyond_255_are_refused() -> None:
    for given in (
        np.full((8, 8, 3), 256),
        torch.full((3, 8, 8), -1),
        np.array([[["a"]]]),
        np.zeros((8, 8, 3), complex),
    ):
        with pytest.raises(InputError, match=r"\.$"):
            SiglipImageProcessorFast()(given)


@pytest.mark.parametrize("kind", FAST)
def test_values_within_one_are_told(kind: type) -> None:
    with pytest.warns(UserWarning, match="pass do_rescale=False"):
        kind()(torch.zeros(3, 8, 8))


class TestDocumentedArgumentsOfTheirOwn:
    def test_default_to_square(self) -> None:
        picture = noise(60, 40)
        assert Gemma3ImageProcessorFast()(picture, size=20, return_tensors="pt").pixel_values.shape[2:] == (20, 20)
        assert SiglipImageProcessorFast()(picture, size=20, return_tensors="pt").pixel_values.shape[2:] == (20, 30)
        edge = Gemma3ImageProcessorFast()(picture, size=20, default_to_square=False, return_tensors="pt")
        assert edge.pixel_values.shape[2:] == (20, 30)
        assert Gemma3ImageProcessorFast(size=20, default_to_square=False).size == {"shortest_edge": 20}

    def test_centre_crop(self) -> None:
        picture = noise(20, 10)
        crop = {
            "do_resize": False,
            "do_center_crop": True,
            "do_normalize": False,
            "do_rescale": False,
            "return_tensors": "pt",
        }
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        inside = Gemma3ImageProcessorFast()(picture, crop_size={"height": 4, "width": 6}, **crop).pixel_values[0]
        assert torch.equal(inside, pixels[:, 3:7, 7:13])
        around = SiglipImageProcessorFast(crop_size=30, **crop)(picture).pixel_values[0]
        assert around.shape == (3, 30, 30)
        assert torch.equal(around[:, 10:20, 5:25], pixels)
        assert around.sum() == pixels.sum()

    def test_device(self) -> None:
        meta = Gemma3ImageProcessorFast()(noise(60, 40), device=torch.device("cpu"), return_tensors="pt").pixel_values
        assert meta.device.type == "cpu"

    @pytest.mark.gpu
    @pytest.mark.parametrize("kind", FAST)
    def test_on_an_accelerator(self, kind: type) -> None:
        pictures = [noise(width, height) for width, height in ((640, 480), (30, 400), (400, 30), (640, 480), (1, 1))]
        settings = PAN_AND_SCAN if kind is Gemma3ImageProcessorFast else {}
        there = kind()(pictures, device="cuda", return_tensors="pt", **settings)
        assert there.pixel_values.device.type == "cuda"
        close(there.pixel_values.cpu(), kind()(pictures, return_tensors="pt", **settings).pixel_values)

    def test_pan_and_scan_batched(self) -> None:
        batch = torch.from_numpy(np.stack([np.array(noise(600, 300, seed=seed)) for seed in range(3)])).permute(
            0, 3, 1, 2
        )
        crops = Gemma3ImageProcessorFast().pan_and_scan_batched(batch, 256, 4, 1.2)
        assert [tuple(crop.shape) for crop in crops] == [(3, 3, 300, 300)] * 2
        assert torch.equal(torch.cat(crops, dim=-1), batch)
        assert crops[0].data_ptr() == batch.data_ptr()
        assert len(Gemma3ImageProcessorFast().pan_and_scan_batched(batch)) == 2
        assert len(Gemma3ImageProcessorFast(pan_and_scan_min_ratio_to_activate=3).pan_and_scan_batched(batch)) == 0
        assert (
            len(Gemma3ImageProcessorFast().pan_and_scan_batched(batch[0, 0], pan_and_scan_min_ratio_to_activate=3)) == 0
        )
        with pytest.raises(InputError, match="takes a tensor of pictures"):
            Gemma3ImageProcessorFast().pan_and_scan_batched(np.zeros((2, 3, 4, 5)))  # type: ignore[arg-type]

    def test_pan_and_scan_without_resizing(self) -> None:
        """The reference's fast processor resizes crops even if it was told not to."""
        settings = {**PAN_AND_SCAN, "do_resize": False}
        fast = Gemma3ImageProcessorFast()(noise(600, 300), **settings)
        assert [tuple(row.shape) for row in fast.pixel_values] == [(3, 300, 600), (3, 300, 300), (3, 300, 300)]
        slow = Gemma3ImageProcessor()(noise(600, 300), **settings)
        for row, other in zip(fast.pixel_values, slow.pixel_values, strict=True):
            close(row, torch.from_numpy(np.ascontiguousarray(other)))


def test_target_sizes_are_the_references() -> None:
    from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio
    from transformers.image_utils import get_image_size_for_max_height_width

    dice = np.random.default_rng(0)
    for _ in range(500):
        height, width, edge, longest = (int(number) for number in dice.integers(20, 700, 4))
        array = np.broadcast_to(np.uint8(0), (3, height, width))
        plain = get_resize_output_image_size(array, edge, default_to_square=False, input_data_format="channels_first")
        assert target_size({"shortest_edge": edge}, height, width) == plain
        longest += edge
        both = {"shortest_edge": edge, "longest_edge": longest}
        assert target_size(both, height, width) == get_size_with_aspect_ratio((height, width), edge, longest)
        limits = {"max_height": edge, "max_width": longest}
        expected = get_image_size_for_max_height_width((height, width), edge, longest)
        assert target_size(limits, height, width) == tuple(max(1, side) for side in expected)
