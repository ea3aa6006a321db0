"""Drawings are legible on any picture: measured, with the contrast of WCAG 2.2 (1 to 21; 4.5 is asked for text)."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from gemlens.errors import InputError
from gemlens.tasks import drawing
from gemlens.tasks.boxes import Box
from gemlens.tasks.drawing import draw
from gemlens.tasks.findings import Finding

FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
SIZES = [(320, 240), (1200, 900)]
BACKGROUNDS = ["black", "white", "grey", "yellow", "busy"]
Pixel = tuple[int, int, int]


def background(name: str, size: tuple[int, int]) -> Image.Image:
    if name != "busy":
        return Image.new("RGB", size, name)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def light(pixels: np.ndarray) -> np.ndarray:
    """Relative luminance, WCAG 2.2."""
    parts = np.asarray(pixels) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    low, high = np.sort(np.stack(np.broadcast_arrays(light(one), light(two))), axis=0)
    return (high + 0.05) / (low + 0.05)


def colour_of(label: str) -> np.ndarray:
    """What a label's boxes are drawn with: the only colour on black."""
    drawn = np.asarray(draw(Image.new("RGB", (100, 100)), [Finding(label, Box(5, 50, 95, 95))]))
    return drawn[51, 50]


def changed(before: Image.Image, after: Image.Image) -> np.ndarray:
    return (np.asarray(before) != np.asarray(after)).any(-1)


# -- legible -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("label", ["cat", "traffic light", "ill"])
def test_letters_stand_out_from_what_is_around_them(size: tuple[int, int], label: str) -> None:
    """On all pictures a name covers the same pixels: bright letters in an edge that is dark and nowhere open."""
    width, height = size
    finding = Finding(label, Box(10, height / 2, width - 10, height - 10))  # the name stands above
    drawn = np.stack([np.asarray(draw(background(name, size), [finding])) for name in BACKGROUNDS])[:, : height // 2]
    covered = (drawn == drawn[0]).all((0, -1))
    against_black = contrast(drawn[0], np.zeros(3))
    letters = covered & (against_black >= 4.5)
    assert letters.sum() >= 8 * len(label)
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        assert covered[np.roll(letters, (dy, dx), (0, 1))].all(), "no letter touches the picture"
    # Strokes are not washed out: in most columns the brightest pixel has nearly all the contrast that its colour has.
    columns = np.where(letters, against_black, 0).max(0)
    assert np.median(columns[columns > 0]) >= 0.85 * contrast(colour_of(label), np.zeros(3)) >= 6


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", BACKGROUNDS)
def test_lines_of_a_box_stand_out(name: str, size: tuple[int, int]) -> None:
    """From left to right across each of its four sides: a step of at least 7 to 1 between neighbours."""
    picture = background(name, size)
    width, height = size
    box = Box(width * 0.2, height * 0.3, width * 0.8, height * 0.9)
    drawn = np.asarray(draw(picture, [Finding("cat", box)]))
    reach = 3 * max(1, round(max(size) / 350))
    middle_x, middle_y = round(width / 2), round(height * 0.6)
    strips = [
        drawn[middle_y, round(box.left) : round(box.left) + reach],
        drawn[middle_y, round(box.right) - reach : round(box.right)],
        drawn[round(box.top) : round(box.top) + reach, middle_x],
        drawn[round(box.bottom) - reach : round(box.bottom), middle_x],
    ]
    for strip in strips:
        assert contrast(strip[:-1], strip[1:]).max() >= 7
        assert (strip == colour_of("cat")).all(-1).any()


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_mask_is_seen_through_and_has_a_border(name: str) -> None:
    picture = background(name, (200, 200))
    mask = np.zeros((200, 200), dtype=bool)
    mask[50:150, 50:150] = True
    drawn = draw(picture, [Finding("cat", Box(20, 60, 180, 190), mask)])
    inside, colour = np.asarray(drawn)[70:140, 75:140].astype(int), colour_of("cat").astype(int)
    mixed = colour + (np.asarray(picture)[70:140, 75:140].astype(int) - colour) * 0.55
    assert np.abs(inside - mixed).max() <= 1, "55 % of the picture, 45 % of the colour"
    border = np.asarray(drawn)[50:56, 100]
    assert (border == colour).all(-1).any()
    assert contrast(border[:-1], border[1:]).max() >= 7
    outside = ~mask
    outside[59:] = False
    outside[:, :20] = False
    assert not (changed(picture, drawn) & outside)[:30].any()


def test_the_border_of_a_mask_is_as_thick_as_the_lines() -> None:
    """By hand: a pixel belongs to what is left if all within the steps around it do."""
    mask = np.random.default_rng(0).random((40, 50)) < 0.97
    for steps in (1, 2, 3, 6):
        padded = np.pad(mask, steps, constant_values=True)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * steps + 1,) * 2)
        assert (drawing._eroded(mask, steps) == windows.all((2, 3))).all()
    assert not drawing._eroded(np.zeros((3, 3), dtype=bool), 9).any()


# -- in its place ------------------------------------------------------------------------------------------------------

spots = st.floats(-20, 250)
labels = st.sampled_from(
    ["cat", "a very long label that has no room", "y", "\u732b", "", "bad\0\ud800\nsign", "x" * 500]
)
a_finding = st.builds(
    lambda label, a, b, c, d, score: Finding(label, Box(min(a, c), min(b, d), max(a, c), max(b, d)), score=score),
    labels, spots, spots, spots, spots, st.none() | st.floats(0, 1),
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(a_finding, max_size=5), st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_any_findings_can_be_drawn_on_any_picture(findings: list[Finding], size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, "green")
    drawn = draw(picture, findings)
    assert drawn.size == size
    assert drawn.mode == "RGB"
    assert not changed(picture, Image.new("RGB", size, "green")).any(), "the picture that came is as it was"


def ink(names: list[str], box: Box, size: tuple[int, int] = (320, 240)) -> np.ndarray:
    """Bool [height, width]: the pixels of names on black, without their box."""
    black = Image.new("RGB", size)
    with_names, without = (draw(black, [Finding(name, box) for name in each]) for each in (names, [""]))
    return (contrast(np.asarray(with_names), np.zeros(3)) >= 3) & (contrast(np.asarray(without), np.zeros(3)) < 3)


@pytest.mark.parametrize("at", [(0, 0), (310, 0), (0, 230), (310, 230), (-40, 50), (400, 300)], ids=str)
def test_a_label_is_written_whole_wherever_its_box_lies(at: tuple[int, int]) -> None:
    """With the pixels that it has in the middle of the picture."""
    middle, there = (ink(["traffic"], Box(x, y, x + 2, y + 2)) for x, y in ((150, 120), at))
    assert middle.sum() > 50
    assert there.sum() == middle.sum()


def test_a_label_without_room_is_shortened_to_the_room_there_is() -> None:
    for width in (160, 320):
        columns = np.flatnonzero(ink(["m" * 300], Box(0, 40, width, 60), (width, 60)).any(0))
        assert width - 20 < columns.max() < width


def test_names_of_boxes_at_one_place_do_not_cover_each_other() -> None:
    names, box = ["one", "two", "six", "ten", "axe", "ewe", "ice", "own"], Box(60, 80, 250, 200)
    alone = sum(ink([name], box).sum() for name in names)
    assert ink(names, box).sum() == pytest.approx(alone, rel=0.03), "colours light up more or less of an edge"


def test_letters_and_lines_grow_with_the_picture() -> None:
    def heights(width: int) -> tuple[int, int]:
        size, top = (width, width // 5), width // 10
        box = Box(0, top, width, width // 5)
        side = np.asarray(draw(Image.new("RGB", size), [Finding("", box)]))[top : top + width // 40, width // 2]
        return int(ink(["HI"], box, size).any(1).sum()), int(side.any(-1).sum())

    small, large = heights(450), heights(3600)
    assert [b / a for a, b in zip(small, large, strict=True)] == pytest.approx([8, 8], abs=2.1)


# -- colours -----------------------------------------------------------------------------------------------------------


def test_labels_of_one_picture_have_different_colours() -> None:
    labels = [f"thing {number}" for number in range(16)]
    colours = drawing._colours(labels)
    assert len(set(colours.values())) == 16
    for one, two in combinations([ImageColor.getrgb(colour) for colour in colours.values()], 2):
        assert sum((a - b) ** 2 for a, b in zip(one, two, strict=True)) > 40**2


def test_a_label_has_the_same_colour_in_every_picture_and_run() -> None:
    """Not that of Python's own hash, which every run draws anew; the order of findings does not matter."""
    assert drawing._colours(["cat"])["cat"] == drawing._colours(["dog", "cat"])["cat"] == drawing._COLOURS[8]
    assert drawing._colours(["cat", "dog"]) == drawing._colours(["dog", "cat"])


def test_more_labels_than_colours_share_them() -> None:
    colours = drawing._colours([f"thing {number}" for number in range(100)])
    assert len(colours) == 100
    assert len(set(colours.values())) == 16


def test_every_colour_stands_out_from_black() -> None:
    for colour in set(drawing._COLOURS):
        assert contrast(np.array(ImageColor.getrgb(colour)), np.zeros(3)) >= 7


# -- fonts and mistakes ------------------------------------------------------------------------------------------------


def glyphs(label: str, font: Path | None) -> np.ndarray:
    return np.asarray(draw(Image.new("RGB", (320, 100)), [Finding(label, Box(0, 60, 320, 100))], font))[:58]


@pytest.mark.parametrize(
    ("one", "two"), [("\u043a\u043e\u0442", "\u043f\u0451\u0441"), ("\u00e9", "\u00f1"), ("\u03b1", "\u03c9")]
)
def test_another_font_writes_other_scripts(one: str, two: str) -> None:
    """Pillow's own draws one and the same box for each letter it lacks, as the docstring says."""
    alike: Callable[[Path | None], bool] = lambda font: bool(  # noqa: E731
        ((glyphs(one, font) > 0).any(-1) == (glyphs(two, font) > 0).any(-1)).all()
    )
    assert alike(None)
    assert not alike(FONT)


def test_scores_are_written_where_there_are_any() -> None:
    picture = Image.new("RGB", (320, 100))
    box = Box(0, 60, 320, 100)
    with_score = draw(picture, [Finding("cat", box, score=0.873)])
    assert not changed(with_score, draw(picture, [Finding("cat", box, score=0.8699)])).any(), "two digits"
    assert changed(with_score, draw(picture, [Finding("cat", box)])).any()


def test_pictures_of_other_modes_become_rgb() -> None:
    for mode in ("L", "RGBA", "P", "1", "CMYK"):
        assert draw(Image.new(mode, (50, 40)), [Finding("cat", Box(5, 5, 20, 20))]).mode == "RGB"


def test_a_mask_of_another_picture_is_refused() -> None:
    finding = Finding("cat", Box(0, 0, 5, 5), np.ones((40, 50), dtype=bool))
    with pytest.raises(InputError, match=r"A mask is \[height, width\] \[40, 50\], but the picture is \[50, 40\]"):
        draw(Image.new("RGB", (40, 50)), [finding])


def test_a_font_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.ttf").write_bytes(b"no font")
    for path in (tmp_path / "no.ttf", tmp_path / "missing.ttf"):
        with pytest.raises(InputError, match=r"is no font that can be read .*; pass a .ttf or .otf file"):
            draw(Image.new("RGB", (40, 50)), [], path)
