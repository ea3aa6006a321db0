"""Folding, text in the terminal, PNG and SVG: each says what the masks say, and nothing of a token's text acts."""

import io
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mask_folders import copied, visualizer
from PIL import Image

from gemlens import AttentionMaskVisualizer
from gemlens.visualize.chart import GAP, HIDDEN, OUTSIDE, SEEN, LayerMask, Line, Token, columns, fold, shorten, shown
from gemlens.visualize.drawing import MaskDrawing
from gemlens.visualize.page import CELL, Run, lay_out
from gemlens.visualize.svg import draw as draw_svg

TEXT = "Where is the License granted?"
WIDE = 500
HOSTILE = [
    "\x1b[31mred", "\x1b]0;title\x07", "\x9b31m", "a\nb\rc\td", "\x00", "\x7f\x08\x08", "\u202egnp.exe",
    "\u200b\u2066", "e\u0301\u0301", "\u0301", "</text><script>alert(1)</script>", "&lt;\"'&", "\ud800", "\ufffe",
    "\u2028", "\\x1b[31m", "\u4f60\u597d" * 30, "x" * 10_000, "", " ", "\u2581", "\U000e0001",
    "\U0001f468\u200d\U0001f469",
]  # fmt: skip
OURS = re.compile(r"\x1b\[[0-9;]+m")


def causal(tokens: list[Token], window: int | None = None) -> LayerMask:
    size = len(tokens)
    every = torch.ones(size, size).tril().bool()
    seen = every if window is None else every.triu(1 - window)
    return LayerMask(window, (0,), 1, seen, every & ~seen)


def text_drawing(texts: list[str], model: str = "a model", window: int | None = None) -> MaskDrawing:
    tokens = [Token(text, "text") for text in texts]
    return MaskDrawing(model, tuple(tokens), (causal(tokens, window),))


@pytest.fixture(scope="module")
def drawing() -> MaskDrawing:
    """Two panels and every kind of cell but a prefix."""
    return visualizer("gemma3-pictures")("the <img> is", suffix=" the Work")


# -- folding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["paligemma", "gemma3-pictures"])
@pytest.mark.parametrize("most", range(1, 6))
def test_folded_pictures_still_say_what_the_masks_say(family: str, most: int) -> None:
    given = visualizer(family, 50)("the <img> is <img><img> a", suffix=" Work", tokens_per_picture_drawn=most)
    chart = given.chart(WIDE)
    owner = [place for place, line in enumerate(chart.lines) for _ in range(line.count)]
    assert len(chart.lines) == len(given.tokens) - 3 * max(0, 4 - most)
    for panel in chart.panels:
        cells = torch.tensor([[cell in SEEN.values() for cell in row] for row in panel.cells])
        assert torch.equal(cells[owner][:, owner], given.masks[0].seen)


def test_tokens_that_a_window_tells_apart_are_not_folded() -> None:
    """Within 50 tokens all of a picture's see the same; a window of 4 reaches back differently far from each."""
    long, short = (visualizer("gemma3-pictures", window)("the <img>", tokens_per_picture_drawn=1) for window in (50, 4))
    assert {line.count for line in long.chart(WIDE).lines} == {1, 4}
    assert {line.count for line in short.chart(WIDE).lines} == {1}


@given(
    bits=st.lists(st.booleans(), min_size=9, max_size=9),
    groups=st.lists(st.integers(0, 2), min_size=2, max_size=12).map(sorted),
    flipped=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=2),
    most=st.integers(1, 4),
)
def test_only_what_is_alike_is_folded(
    bits: list[bool], groups: list[int], flipped: list[tuple[int, int]], most: int
) -> None:
    """Any mask of one picture, even one that no model has, can be read back from its folded lines."""
    seen = torch.tensor(bits).view(3, 3)[groups][:, groups]
    for row, column in flipped:
        seen[row % len(groups), column % len(groups)] ^= True
    mask = LayerMask(None, (0,), 1, seen, torch.zeros_like(seen))
    lines = fold([Token("", "picture", 0)] * len(groups), [mask], most)
    first = [line.first for line in lines for _ in range(line.count)]
    assert torch.equal(seen[first][:, first], seen)
    if len(set(groups)) == 1 and not flipped:
        assert len(lines) == min(most, len(groups))


def test_layers_that_see_the_same_share_a_panel() -> None:
    (panel,) = visualizer("gemma3", 50)(TEXT).chart(WIDE).panels
    assert panel.title == "sliding attention, window 50 (2 of 3 layers); full attention (1 of 3 layers)"
    assert len(visualizer("gemma3")(TEXT).chart(WIDE).panels) == 2


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(3, 30))
def test_what_is_left_out_is_a_gap_between_beginning_and_end(counts: list[int], most: int) -> None:
    firsts = [sum(counts[:place]) for place in range(len(counts))]
    lines = [Line(first, count) for first, count in zip(firsts, counts, strict=True)]
    kept = shorten(lines, most)
    assert len(kept) == min(most, len(lines))
    assert sum(line.count for line in kept) == sum(counts)
    assert all(line in lines for line in kept if not line.is_gap)
    assert [line.first for line in kept] == sorted({line.first for line in kept})
    assert sum(line.is_gap for line in kept) == (len(lines) > most)


# -- terminal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 33, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("colour", [False, True])
def test_no_line_is_wider_than_the_terminal(width: int, colour: bool) -> None:
    given = text_drawing(["\u4f60\u597d", "License", "<start_of_image>"] * 40, "google/gemma" * 9, window=5)
    lines = OURS.sub("", given.text(colour, width)).splitlines()
    assert max(columns(line) for line in lines) <= width
    assert max(columns(line) for line in lines) >= width - 4, "and the room is used"


def test_a_sentence_says_what_was_left_out() -> None:
    given = text_drawing(["a"] * 60)
    assert "left out" not in given.text(False, 200)
    said = " ".join(given.text(False, 60).splitlines()[-2:])
    found = re.search(r"Tokens (\d+) to (\d+) are left out, as there is room for (\d+) lines", said)
    assert found is not None
    first, last, room = map(int, found.groups())
    assert 60 - (last - first + 1) + 1 == room


def test_colours_add_nothing_but_colours(drawing: MaskDrawing) -> None:
    coloured, plain = drawing.text(True, 120), drawing.text(False, 120)
    assert "\x1b" not in plain
    assert [line.rstrip() for line in OURS.sub("", coloured).splitlines()] == plain.splitlines()


def test_every_kind_of_cell_has_its_own_sign_and_its_own_colours() -> None:
    cells = [*SEEN.values(), HIDDEN, OUTSIDE, GAP]
    for name in ("sign", "meaning", "fill", "terminal"):
        assert len({getattr(cell, name) for cell in cells}) == len(cells), name


def luminance(colour: str) -> float:
    """Relative luminance as in WCAG 2, of "#rrggbb"."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("cell", [*SEEN.values(), OUTSIDE], ids=lambda cell: cell.meaning)
def test_signs_can_be_read_on_their_colour(cell: Any) -> None:
    dark, light = sorted((luminance(cell.ink), luminance(cell.fill)))
    assert (light + 0.05) / (dark + 0.05) > 2.4


def test_the_legend_names_the_cells_that_occur(drawing: MaskDrawing) -> None:
    assert [cell.meaning for cell in drawing.chart(WIDE).legend] == [
        "text", "picture", "answer", "not seen", "outside the window",
    ]  # fmt: skip
    assert [cell.meaning for cell in visualizer("paligemma")("<img>").chart(WIDE).legend] == ["picture", "prefix"]


@pytest.mark.parametrize(
    ("terminal", "variables", "colours"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colours_are_printed_where_they_are_shown_and_wanted(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    variables: dict[str, str],
    colours: bool,
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    given = visualizer("gemma")(TEXT)
    printed = capsys.readouterr().out
    assert ("\x1b" in printed) == colours
    assert printed == given.text(colours) + "\n"


def test_a_terminal_that_has_few_letters_gets_codes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    place = copied("gemma", tmp_path / "caf\u00e9 \u4f60")
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding="ascii", write_through=True))
    AttentionMaskVisualizer(place)("the")
    assert b"caf\\xe9_\\u4f60: " in file.getvalue()


# -- hostile tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [False, True])
def test_nothing_of_a_token_or_a_name_reaches_the_terminal_but_visible_characters(colour: bool) -> None:
    for model in HOSTILE[:6]:
        written = OURS.sub("", text_drawing(HOSTILE, model).text(colour, 120))
        assert all(character.isprintable() or character == "\n" for character in written)
        assert not any(character in written for character in "\u202e\u200b\u0301\x9b\x1b")


def test_hostile_tokens_stay_in_their_rows() -> None:
    rows = text_drawing(HOSTILE).text(False, 200).splitlines()[-len(HOSTILE) :]
    assert [int(row.split()[0]) for row in rows] == list(range(len(HOSTILE)))
    assert len({re.sub(r" [#. ]+$", "", row) for row in rows}) == len(HOSTILE)


@given(st.text(max_size=12))
def test_shown_text_is_visible_and_stays_shown(text: str) -> None:
    given = shown(text)
    assert given.isprintable()
    assert " " not in given
    for character in text:
        assert shown(character) in given


def test_hostile_tokens_are_text_in_svg_and_png(tmp_path: Path) -> None:
    given = text_drawing(HOSTILE, "<b>&\x1b[1m")
    for name in ("mask.svg", "mask.png"):
        given.save(tmp_path / name)
    root = ElementTree.fromstring((tmp_path / "mask.svg").read_text(encoding="utf-8"))
    texts = ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {each.tag.rpartition("}")[2] for each in root.iter()} == {"svg", "defs", "pattern", "rect", "text"}
    assert any(text.startswith("</text><script>a") for text in texts)
    assert f"<b>&\\x1b[1m: {len(HOSTILE)} tokens" in texts
    assert opened(tmp_path / "mask.png").getpixel((1, 1)) == (255, 255, 255)


# -- PNG and SVG -------------------------------------------------------------------------------------------------------


def opened(path: Path) -> Image.Image:
    """The picture in a file, read whole."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_the_pixels_of_each_cell_have_its_colour(drawing: MaskDrawing, tmp_path: Path) -> None:
    drawing.save(tmp_path / "mask.png")
    shot = opened(tmp_path / "mask.png")
    chart = drawing.chart(WIDE)
    corners = [(run.x + place * CELL, run.y) for run in lay_out(chart).runs for place in range(run.count)]
    legend = len(chart.legend)
    expected = [cell for panel in chart.panels for row in panel.cells for cell in row]
    assert len(corners) == legend + len(expected)
    cells = iter(expected)
    for x, y in corners[legend:]:
        colour = rgb(next(cells).fill)
        assert shot.getpixel((x + 1, y + 1)) == shot.getpixel((x + CELL - 2, y + CELL - 2)) == colour
        assert shot.getpixel((x + CELL - 1, y + 1)) == (255, 255, 255), "the line between two cells"
    first = min(corners[legend:])
    rows = sorted({y for x, y in corners[legend:] if x == first[0]})
    assert rows == [first[1] + CELL * place for place in range(len(chart.lines))]


def test_the_rectangles_of_an_svg_are_the_cells(drawing: MaskDrawing, tmp_path: Path) -> None:
    drawing.save(tmp_path / "mask.svg")
    name = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring((tmp_path / "mask.svg").read_text(encoding="utf-8"))
    colours = {f"url(#{pattern.attrib['id']})": pattern[0].attrib["fill"] for pattern in root.iter(f"{name}pattern")}
    drawn: dict[str, int] = {}
    for each in root.findall(f"{name}rect"):
        if each.attrib["fill"] in colours:
            colour = colours[each.attrib["fill"]]
            drawn[colour] = drawn.get(colour, 0) + int(each.attrib["width"]) // CELL
    sign, window = SEEN, drawing.masks[0]
    seen = sum(int(mask.seen.sum()) for mask in drawing.masks)
    fills = {cell.fill for cell in sign.values()}
    in_legend = 3
    assert sum(count for colour, count in drawn.items() if colour in fills) == seen + in_legend
    assert drawn[OUTSIDE.fill] == int(window.outside.sum()) + 1


def test_png_and_svg_put_the_same_page_down(drawing: MaskDrawing, tmp_path: Path) -> None:
    for name in ("mask.svg", "mask.PNG"):
        drawing.save(tmp_path / name)
    root = ElementTree.fromstring((tmp_path / "mask.svg").read_text(encoding="utf-8"))
    assert opened(tmp_path / "mask.PNG").size == (int(root.attrib["width"]), int(root.attrib["height"]))


def test_everything_stands_on_the_page() -> None:
    given = text_drawing(["<start_of_image>", "\u4f60\u597d" * 9] * 150, window=7)
    chart = given.chart(40)
    page = lay_out(chart)
    for run in page.runs:
        assert run.x >= 0
        assert run.x + run.count * CELL <= page.width
        assert run.y + CELL <= page.height
    for text in page.texts:
        wide = 7.3 * columns(text.text)
        left = text.x - wide if text.at_right else text.x
        assert left >= 0
        assert text.upwards or left + wide <= page.width
        assert text.y - (wide if text.upwards else 0) >= 0
        assert text.y <= page.height
    assert any("are left out" in text.text for text in page.texts)
    assert draw_svg(page).count("are left out") == 1


def test_a_long_prompt_becomes_a_picture_of_bounded_size(tmp_path: Path) -> None:
    given = text_drawing(["a"] * 3000)
    given.save(tmp_path / "mask.svg")
    given.save(tmp_path / "mask.png")
    assert max(opened(tmp_path / "mask.png").size) < 5000
    assert (tmp_path / "mask.svg").stat().st_size < 1_000_000


def test_gaps_are_left_white() -> None:
    page = lay_out(text_drawing(["a"] * 30).chart(9))
    assert GAP not in {run.cell for run in page.runs}
    widest = max(run.count for run in page.runs)
    assert widest == 4, "half of the lines beside the gap"


def test_runs_are_as_long_as_possible() -> None:
    """What keeps an SVG small: equal neighbours of a row are one rectangle."""
    page = lay_out(text_drawing(["a"] * 20).chart(WIDE))
    assert len(page.runs) == 2 * 20 - 1 + 2
    assert all(isinstance(run, Run) for run in page.runs)
