"""The geometry of pan and scan: equal to the reference's, without its crops of no width."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor as Reference

from gemlens.errors import InputError
from gemlens.processing.pictures.pan_and_scan import Box, crop_boxes

REFERENCE = Reference()


def reference_boxes(width: int, height: int, *numbers: float) -> list[Box]:
    """Where the reference cuts, read off an array that holds its own coordinates; no memory for its pixels."""
    rows = np.broadcast_to(np.arange(height)[:, None, None], (height, width, 3))
    columns = np.broadcast_to(np.arange(width)[None, :, None], (height, width, 3))
    cut = [REFERENCE.pan_and_scan(part, *numbers, input_data_format="channels_last") for part in (columns, rows)]
    return [
        (int(x[0, 0, 0]), int(y[0, 0, 0]), int(x[0, -1, 0]) + 1, int(y[-1, 0, 0]) + 1) if x.size else (0, 0, 0, 0)
        for x, y in zip(*cut, strict=True)
    ]


@given(
    st.integers(4, 4000), st.integers(4, 4000), st.integers(1, 600), st.integers(1, 12),
    st.floats(0.1, 8, allow_nan=False),
)  # fmt: skip
def test_boxes_are_the_references(width: int, height: int, least: int, most: int, ratio: float) -> None:
    expected = [box for box in reference_boxes(width, height, least, most, ratio) if box != (0, 0, 0, 0)]
    assert crop_boxes(width, height, least, most, ratio) == expected


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 600), st.integers(1, 12), st.floats(0.1, 8))
def test_boxes_tile_the_picture(width: int, height: int, least: int, most: int, ratio: float) -> None:
    boxes = crop_boxes(width, height, least, most, ratio)
    assert len(boxes) <= most
    if not boxes:
        return
    assert sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) == width * height
    assert all(left < right and top < bottom for left, top, right, bottom in boxes)
    assert boxes[0][:2] == (0, 0)
    assert boxes[-1][2:] == (width, height)
    turned = crop_boxes(height, width, least, most, ratio)
    assert width == height or turned == [(top, left, bottom, right) for left, top, right, bottom in boxes]


@pytest.mark.parametrize(
    ("width", "height", "count"),
    [
        (256, 256, 0), (1000, 834, 0), (1000, 833, 2), (1920, 1080, 2), (512, 256, 2), (511, 256, 2), (510, 256, 0),
        (640, 256, 2), (768, 256, 3), (896, 256, 3), (1000, 256, 3), (1024, 256, 4), (9999, 256, 4), (9999, 255, 0),
        (2500, 1000, 3), (2499, 1000, 2), (3500, 1000, 4), (3499, 1000, 3),
    ],
)  # fmt: skip
def test_published_numbers_at_each_threshold(width: int, height: int, count: int) -> None:
    assert len(crop_boxes(width, height, 256, 4, 1.2)) == count
    assert len(crop_boxes(height, width, 256, 4, 1.2)) == count
    for w, h in itertools.product((width - 1, width, width + 1), (height - 1, height, height + 1)):
        assert crop_boxes(w, h, 256, 4, 1.2) == reference_boxes(w, h, 256, 4, 1.2)


def test_crops_of_no_width_are_cut_there_and_not_here() -> None:
    """9 x 2 pixels in 4 crops of 3: the fourth is empty; the reference resizes it to a black picture."""
    image = np.zeros((2, 9, 3), np.uint8)
    crops = REFERENCE.pan_and_scan(image, 1, 4, 1.2, input_data_format="channels_last")
    assert [crop.shape[1] for crop in crops] == [3, 3, 3, 0]
    settings = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 1, "pan_and_scan_max_num_crops": 4,
                "pan_and_scan_min_ratio_to_activate": 1.2}  # fmt: skip
    batch = REFERENCE(image + np.uint8(200), input_data_format="channels_last", return_tensors="pt", **settings)
    assert batch["num_crops"].tolist() == [4]
    assert batch["pixel_values"].amax((1, 2, 3)).tolist()[4] == -1
    assert crop_boxes(9, 2, 1, 4, 1.2) == [(0, 0, 3, 2), (3, 0, 6, 2), (6, 0, 9, 2)]


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("value", [0, -1, float("nan"), None, "4", True])
def test_numbers_must_be_positive(place: int, value: Any) -> None:
    arguments: list[Any] = [800, 300, 256, 4, 1.2]
    arguments[place] = value
    with pytest.raises(InputError, match="must be a positive number"):
        crop_boxes(*arguments)
