"""Boxes and <loc> tokens, for pictures of any size."""

import re
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from gemlens.errors import InputError
from gemlens.tasks.boxes import BINS, Box, read_box, write_box

sides = st.integers(1, 10_000)
sizes = st.tuples(sides, sides)
bins = st.sampled_from([1023, 1024])
fractions = st.floats(0, 1)


def locs_of(text: str) -> list[int]:
    assert re.fullmatch(r"(<loc\d{4}>){4}", text)
    return [int(digits) for digits in re.findall(r"\d{4}", text)]


def big_vision(box: Box, size: tuple[int, int]) -> list[int]:
    """pp/proj/paligemma/segmentation.py: y1, x1, y2, x2 in [0, 1], times 1023, rounded, clipped."""
    width, height = size
    edges = np.array([box.top / height, box.left / width, box.bottom / height, box.right / width])
    return np.clip(np.round(edges * 1023), 0, 1023).astype(int).tolist()


@st.composite
def boxes_inside(draw: st.DrawFn, size: tuple[int, int]) -> Box:
    """Of any area above 0, with edges anywhere."""
    (left, right), (top, bottom) = (sorted(draw(st.tuples(fractions, fractions))) for _ in "xy")
    width, height = size
    box = Box(left * width, top * height, right * width, bottom * height)
    assume(box.area > 0)
    return box


@given(st.data(), sizes, bins)
def test_a_box_comes_back_within_one_step_of_the_picture(data: st.DataObject, size: tuple[int, int], bins: int) -> None:
    box = data.draw(boxes_inside(size))
    back = read_box(locs_of(write_box(box, size, bins)), size, bins)
    steps = np.array([size[0], size[1], size[0], size[1]]) / bins
    assert (np.abs(np.subtract(astuple(back), astuple(box))) <= steps * 1.000001).all()
    assert back.area > 0


@given(st.data(), sizes)
def test_tokens_are_those_of_big_vision(data: st.DataObject, size: tuple[int, int]) -> None:
    """Where theirs make a box at all: two equal tokens are what its evaluator counts as invalid."""
    box = data.draw(boxes_inside(size))
    top, left, bottom, right = theirs = big_vision(box, size)
    assume(top < bottom and left < right)
    assert locs_of(write_box(box, size)) == theirs


@pytest.mark.parametrize("size", [(1, 1), (224, 224), (640, 427), (333, 1000), (1023, 1024), (3000, 17)])
def test_a_black_rectangle_comes_back_at_its_pixels(size: tuple[int, int]) -> None:
    """The rectangle is drawn, found by its pixels, written and read; up to 1,023 pixels, at the very pixels."""
    width, height = size
    left, top, right, bottom = width // 3, height // 4, width // 3 + 1 + width // 2, height // 4 + 1 + height // 3
    picture = Image.new("L", size, 255)
    picture.paste(0, (left, top, right, bottom))
    ys, xs = np.nonzero(np.asarray(picture) == 0)
    drawn = Box(int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    back = read_box(locs_of(write_box(drawn, size)), size)
    for side, found, there in zip((*size, *size), astuple(back), astuple(drawn), strict=True):
        assert abs(found - there) <= side / BINS / 2 + 1e-9
        assert round(found) == there or side > 1023


@given(st.tuples(*[st.floats(-20_000, 20_000)] * 4), sizes)
def test_what_lies_outside_the_picture_is_cut_off(
    edges: tuple[float, float, float, float], size: tuple[int, int]
) -> None:
    box = Box(*edges)
    inside = box.clipped(size)
    if inside.area == 0:
        with pytest.raises(InputError, match="covers nothing of a picture of"):
            write_box(box, size)
        return
    assert 0 <= inside.left < inside.right <= size[0]
    assert 0 <= inside.top < inside.bottom <= size[1]
    assert write_box(box, size) == write_box(inside, size)


def test_the_order_is_top_left_bottom_right() -> None:
    assert locs_of(write_box(Box(left=0.1, top=0.2, right=0.3, bottom=0.4), (1, 1))) == [205, 102, 409, 307]
    assert read_box([205, 102, 409, 307], (1023, 1023)) == Box(left=102, top=205, right=307, bottom=409)


def test_the_last_token_is_the_edge_of_the_picture() -> None:
    assert read_box([0, 0, 1023, 1023], (640, 427)) == Box(0, 0, 640, 427)
    assert read_box([0, 0, 1023, 1023], (1024, 2048), bins=1024) == Box(0, 0, 1023, 2046)
    assert locs_of(write_box(Box(0, 0, 640, 427), (640, 427), bins=1024)) == [0, 0, 1023, 1023]


@pytest.mark.parametrize("place", [0, 3, 500.2, 999.9])
def test_a_box_smaller_than_a_step_keeps_an_area(place: float) -> None:
    size = (1000, 100_000)
    top, left, bottom, right = locs_of(write_box(Box(place, 50_000, place + 0.1, 50_001), size))
    assert bottom == top + 1
    assert right == left + 1


def squares(box: Box) -> set[tuple[int, int]]:
    return {(x, y) for x in range(int(box.left), int(box.right)) for y in range(int(box.top), int(box.bottom))}


corners = st.integers(0, 6)


@given(st.tuples(*[corners] * 4), st.tuples(*[corners] * 4))
def test_overlap_is_that_of_counted_squares(one: tuple[int, int, int, int], two: tuple[int, int, int, int]) -> None:
    first, second = Box(*one), Box(*two)
    either = squares(first) | squares(second)
    expected = len(squares(first) & squares(second)) / len(either) if either else 0.0
    assert first.iou(second) == second.iou(first) == pytest.approx(expected)
    assert first.area == len(squares(first))


@pytest.mark.parametrize("locs", [[0, 0, 1], [0, 0, 1, 1, 1], [0, 0, 1, 1024], [-1, 0, 1, 1]])
def test_what_is_no_box_is_refused(locs: list[int]) -> None:
    with pytest.raises(InputError, match="A box takes four numbers from 0 to 1023"):
        read_box(locs, (10, 10))


@pytest.mark.parametrize("box", [Box(1, 1, 1, 5), Box(5, 1, 1, 5), Box(10, 0, 20, 5), Box(float("nan"), 0, 1, 1)])
def test_a_box_of_no_area_in_the_picture_is_refused(box: Box) -> None:
    with pytest.raises(InputError, match="covers nothing of a picture of 10 x 10; leave it out"):
        write_box(box, (10, 10))


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5,), (5.0, 5)])
def test_an_impossible_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="The size of a picture is"):
        write_box(Box(0, 0, 1, 1), size)


def test_other_steps_are_refused() -> None:
    with pytest.raises(InputError, match="bins=1000, but <loc> tokens divide a side by 1023"):
        write_box(Box(0, 0, 1, 1), (5, 5), bins=1000)
    with pytest.raises(InputError, match="bins=0"):
        read_box([0, 0, 1, 1], (5, 5), bins=0)
