"""Masks of a picture <-> the codes of a finding, with a codec that keeps the mean of each of 4 x 4 parts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gemlens.errors import InputError
from gemlens.tasks.boxes import Box
from gemlens.tasks.findings import Finding, parse, write
from gemlens.tasks.masks import decode_mask, encode_mask, pixels


class MeanCodec:
    """A code is the mean of its part of 16 x 16, in steps of 1/127."""

    def encode(self, masks: Tensor, /) -> Tensor:
        assert masks.shape[1:] == (64, 64)
        assert masks.dtype == torch.float32
        assert 0 <= masks.min() <= masks.max() <= 1
        self.seen = masks
        return (F.avg_pool2d(masks[:, None], 16).flatten(1) * 127).round().long()

    def decode(self, codes: Tensor, /) -> Tensor:
        assert codes.shape[1:] == (16,)
        assert codes.dtype == torch.int64
        parts = codes.float().view(-1, 4, 4) / 127 * 2 - 1
        return parts.repeat_interleave(16, 1).repeat_interleave(16, 2)


CODEC = MeanCodec()
sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))


@st.composite
def boxes(draw: st.DrawFn, size: tuple[int, int]) -> Box:
    """Of any area, with a part in the picture; the other part may lie outside."""
    starts, ends = st.floats(-0.3, 0.95), st.floats(0.05, 1.3)
    (left, right), (top, bottom) = (sorted((draw(starts), draw(ends))) for _ in "xy")
    box = Box(left * size[0], top * size[1], right * size[0], bottom * size[1])
    assume(box.clipped(size).area > 0)
    return box


def by_hand(codes: tuple[int, ...], box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """transfers/segmentation.py: the decoded mask at the size of the box, above 0, at its place."""
    left, top, right, bottom = box
    m64 = CODEC.decode(torch.tensor([codes]))[0].numpy()
    inside = np.asarray(Image.fromarray(m64).resize([right - left, bottom - top], resample=Image.Resampling.BILINEAR))
    mask = np.zeros(size[::-1], dtype=bool)
    mask[top:bottom, left:right] = inside > 0.0
    return mask


@given(st.data(), sizes, st.lists(st.integers(0, 127), min_size=16, max_size=16))
def test_a_mask_fills_its_box_and_nothing_else(data: st.DataObject, size: tuple[int, int], codes: list[int]) -> None:
    box = data.draw(boxes(size))
    mask = decode_mask(codes, box, size, CODEC)
    assert mask.dtype == np.bool_
    assert mask.shape == size[::-1]
    assert (mask == by_hand(tuple(codes), pixels(box, size), size)).all()


@given(st.data(), sizes)
def test_edges_go_to_the_nearest_pixel_and_a_box_takes_at_least_one(data: st.DataObject, size: tuple[int, int]) -> None:
    box = data.draw(boxes(size))
    inside = box.clipped(size)
    left, top, right, bottom = pixels(box, size)
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    assert abs(left - inside.left) <= 0.5 or left == size[0] - 1
    assert abs(top - inside.top) <= 0.5 or top == size[1] - 1
    assert abs(right - inside.right) <= 0.5 or right == left + 1
    assert abs(bottom - inside.bottom) <= 0.5 or bottom == top + 1


@pytest.mark.parametrize("box", [(0, 0, 64, 64), (3, 5, 131, 261), (10, 20, 26, 28), (7, 7, 8, 8), (0, 0, 300, 300)])
def test_the_codec_sees_the_part_in_the_box_shrunk_without_aliasing(box: tuple[int, int, int, int]) -> None:
    """As torch resizes it; TensorFlow, of big_vision, and Pillow use the same filter."""
    left, top, right, bottom = box
    mask = np.random.default_rng(0).random((300, 300)) < 0.5
    encode_mask(mask, Box(*box), CODEC)
    part = torch.from_numpy(mask[top:bottom, left:right].astype(np.float32))[None, None]
    expected = F.interpolate(part, size=(64, 64), mode="bilinear", antialias=True)[0]
    assert torch.allclose(CODEC.seen, expected, atol=1e-5)


def test_codes_are_numbers_row_by_row() -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[:16, 16:32] = True
    mask[48:] = True
    assert encode_mask(mask, Box(0, 0, 64, 64), CODEC) == (0, 127, *[0] * 10, *[127] * 4)


@pytest.mark.parametrize(
    "box", [Box(10, 20, 74, 84), Box(10, 20, 138, 276), Box(0, 0, 16, 8), Box(10.4, 19.6, 73.7, 83.8)]
)
def test_a_mask_of_whole_parts_comes_back_at_its_very_pixels(box: Box) -> None:
    """But for single pixels at a corner where four parts meet, two of them in the mask."""
    left, top, right, bottom = pixels(box, (150, 300))
    parts = np.random.default_rng(1).random((4, 4)) < 0.5
    mask = np.zeros((300, 150), dtype=bool)
    mask[top:bottom, left:right] = np.kron(parts, np.ones(((bottom - top) // 4, (right - left) // 4))) > 0
    assert (decode_mask(encode_mask(mask, box, CODEC), box, (150, 300), CODEC) != mask).sum() <= 2


def test_a_finding_with_a_mask_comes_back_with_it() -> None:
    """The box lies on whole steps, so its pixels are those that were encoded."""
    size, box = (1023, 1023), Box(100, 200, 164, 328)
    mask = np.zeros((1023, 1023), dtype=bool)
    mask[232:296, 116:148] = True
    text = write([Finding("cat", box, mask), Finding("dog", box)], size, CODEC)
    cat, dog = parse(text, size, CODEC)
    assert (cat.mask == mask).all()
    assert cat.codes == encode_mask(mask, box, CODEC)
    assert dog.mask is dog.codes is None
    assert parse(text, size)[0].mask is None, "no codec was passed"
    assert parse(text, size)[0] == cat


def test_codes_win_over_the_mask_they_came_with() -> None:
    finding = Finding("cat", Box(0, 0, 9, 9), np.ones((9, 9), dtype=bool), codes=(5,) * 16)
    assert "<seg005>" * 16 in write([finding], (9, 9), CODEC)
    assert "<seg" not in write([replace(finding, codes=None)], (9, 9)), "without a codec it is a box"
    assert "<seg127>" * 16 in write([replace(finding, codes=None)], (9, 9), CODEC)


@pytest.mark.parametrize("mask", [np.ones((9, 9)), np.ones((1, 9, 9), dtype=bool), np.ones((9, 9), dtype=np.uint8)])
def test_what_is_no_mask_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"A mask is bool \[height, width\], not"):
        encode_mask(mask, Box(0, 0, 5, 5), CODEC)


def test_a_box_outside_the_picture_is_refused() -> None:
    with pytest.raises(InputError, match="covers nothing of a picture of 9 x 8"):
        decode_mask((0,) * 16, Box(10, 0, 12, 5), (9, 8), CODEC)
    with pytest.raises(InputError, match="covers nothing of a picture of 9 x 8"):
        encode_mask(np.ones((8, 9), dtype=bool), Box(0, 8, 5, 9), CODEC)
