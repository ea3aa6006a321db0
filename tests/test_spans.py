"""The visibility rule: the drawings of its docstring, a brute-force oracle, and what must hold of every mask."""

import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gemlens import spans
from gemlens.spans import EMPTY, PADDING, PlainSpan, Span, View, join, sees, span_of


def drawing(view: View) -> list[str]:
    """The mask of the first row as the docstring draws it."""
    return ["".join("#" if seen else "." for seen in row) for row in view.mask[0, 0].tolist()]


def marks(text: str) -> Tensor:
    """[1, S] bool out of a word of 0 and 1."""
    return torch.tensor([[letter == "1" for letter in text]])


def slots(length: int, start: int = 0) -> Tensor:
    return torch.arange(start, start + length)


def drawings_of_the_docstring() -> list[list[str]]:
    """Columns of the three drawings, out of the module's docstring."""
    drawn: list[list[str]] = [[], [], []]
    for line in (spans.__doc__ or "").splitlines():
        if re.fullmatch(r"[ #.]+", line) and "#" in line:
            parts = [part.replace(" ", "") for part in re.split(r" {3,}", line.strip())]
            for column, part in enumerate(parts if len(parts) == 3 else ["", *parts]):
                drawn[column] += [part] if part else []
    return drawn


def test_masks_look_as_the_docstring_draws_them() -> None:
    text = PlainSpan(0, 4, "cpu")
    paligemma = span_of(slots(6), prefix=marks("111100"))
    gemma3 = span_of(slots(6), pictures=marks("011100"), picture_starts=marks("010000"))
    assert [drawing(View(span, span)) for span in (text, paligemma, gemma3)] == drawings_of_the_docstring()


def test_block_numbers_are_those_of_the_docstring() -> None:
    assert PlainSpan(0, 4, "cpu").block.tolist() == [[0, 1, 2, 3]]
    assert span_of(slots(6), prefix=marks("111100")).block.tolist() == [[0, 0, 0, 0, 4, 5]]
    gemma3 = span_of(slots(6), pictures=marks("011100"), picture_starts=marks("010000"))
    assert gemma3.block.tolist() == [[0, 1, 1, 1, 4, 5]]


def test_a_window_of_w_shows_exactly_w_tokens_itself_included() -> None:
    span = PlainSpan(0, 9, "cpu")
    for window in range(1, 11):
        counts = View(span, span, window).mask[0, 0].sum(-1).tolist()
        assert counts == [min(place + 1, window) for place in range(9)]


def test_neighbouring_pictures_do_not_see_each_other_backwards() -> None:
    span = span_of(slots(6), pictures=marks("111111"), picture_starts=marks("100100"))
    assert drawing(View(span, span)) == ["###...", "###...", "###...", "######", "######", "######"]


def test_a_picture_is_seen_whole_whatever_the_window() -> None:
    span = span_of(slots(6), pictures=marks("011110"), picture_starts=marks("010000"))
    assert drawing(View(span, span, 2)) == ["#.....", "#####.", ".####.", ".####.", ".####.", "....##"]


def test_packed_texts_do_not_see_each_other() -> None:
    span = span_of(slots(5), segment=torch.tensor([[0, 0, 1, 1, 1]]))
    assert drawing(View(span, span)) == ["#....", "##...", "..#..", "..##.", "..###"]


@dataclass(frozen=True)
class Row:
    """One row of an arbitrary call, token by token."""

    real: list[bool]
    kind: list[str]  # "text", "prefix", or the letter of a picture
    segment: list[int]
    before: int  # real tokens that are cached
    past: int  # slots that are cached

    def position(self, token: int) -> int:
        return max(0, self.before + sum(self.real[: token + 1]) - 1)

    def sees(self, query: int, key: int, window: int | None) -> bool:
        """The rule in words: padding apart; same block; else earlier and in the window; never across segments."""
        if self.segment[query] != self.segment[key]:
            return False
        if not self.real[query]:
            return True  # nobody reads what padding sees; it comes after all, so the rule shows it something
        if not self.real[key]:
            return False
        same = self.kind[query] == self.kind[key] != "text"
        if same or query == key:
            return True
        # The prefix is the first block: all see it, and it sees nothing else.
        is_prefix = self.kind[query] == "prefix", self.kind[key] == "prefix"
        earlier = key < query if not any(is_prefix) else is_prefix[1]
        return earlier and (window is None or self.position(query) - self.position(key) < window)


@st.composite
def rows_of_a_call(draw: st.DrawFn, with_prefix: bool = False, with_segments: bool = False) -> list[Row]:
    """Rows of equal length out of stretches of text and pictures, with padding anywhere."""
    length = draw(st.integers(1, 9))
    past = 0 if with_prefix else draw(st.integers(0, 5))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        kind: list[str] = []
        while len(kind) < length:
            stretch = draw(st.integers(1, 4))
            name = draw(st.sampled_from(["text", f"picture {len(kind)}"]))
            kind += [name] * stretch
        if with_prefix:
            kind = ["prefix", *(draw(st.sampled_from(["text", "prefix"])) for _ in range(length - 1))]
        real = [draw(st.booleans()) for _ in range(length)]
        segment = sorted(draw(st.integers(0, 2)) for _ in range(length)) if with_segments else [0] * length
        before = draw(st.integers(0, past))
        rows.append(Row(real, kind[:length], segment, before, past))
    return rows


def span_for(rows: list[Row], with_segments: bool = False) -> Span:
    length = len(rows[0].real)
    kinds = [row.kind for row in rows]
    pictures = torch.tensor([[kind.startswith("picture") for kind in row] for row in kinds])
    starts = [
        [kind.startswith("picture") and kind not in row[:place] for place, kind in enumerate(row)] for row in kinds
    ]
    return span_of(
        slots(length, rows[0].past),
        real=torch.tensor([row.real for row in rows]),
        before=torch.tensor([[row.before] for row in rows]),
        prefix=torch.tensor([[kind == "prefix" for kind in row] for row in kinds]),
        pictures=pictures,
        picture_starts=torch.tensor(starts),
        segment=torch.tensor([row.segment for row in rows]) if with_segments else None,
    )


windows = st.none() | st.integers(1, 6)


@pytest.mark.parametrize(("with_prefix", "with_segments"), [(False, False), (True, False), (False, True)])
@given(data=st.data(), window=windows)
def test_the_mask_is_the_rule_token_by_token(
    with_prefix: bool, with_segments: bool, data: st.DataObject, window: int | None
) -> None:
    rows = data.draw(rows_of_a_call(with_prefix, with_segments))
    span = span_for(rows, with_segments)
    mask = View(span, span, window).mask[:, 0]
    length = len(rows[0].real)
    for number, row in enumerate(rows):
        for query in range(length):
            if row.real[query]:
                expected = [row.sees(query, key, window) for key in range(length)]
                assert mask[number, query].tolist() == expected, (row, query)


@given(rows=rows_of_a_call() | rows_of_a_call(with_prefix=True), window=windows)
def test_no_row_of_a_mask_is_empty_and_no_real_token_sees_padding(rows: list[Row], window: int | None) -> None:
    span = span_for(rows)
    empty = Span(torch.zeros(1, 3, dtype=torch.int64), torch.full((1, 3), EMPTY))
    held = join([empty, span])
    mask = View(span, held, window).mask[:, 0]
    assert mask.any(-1).all()
    real = torch.tensor([row.real for row in rows])
    assert not mask[..., :3].any(), "an empty slot was seen"
    assert not (mask[..., 3:] & real.unsqueeze(2) & ~real.unsqueeze(1)).any()


texts = st.lists(st.sampled_from(["text", "picture"]), min_size=1, max_size=7)
answers = st.builds(
    lambda prompt, answer: ["prefix"] * prompt + ["text"] * answer, st.integers(1, 5), st.integers(0, 4)
)


@given(kinds=texts | answers, pads=st.data(), window=windows)
def test_padding_anywhere_changes_nothing_between_real_tokens(
    kinds: list[str], pads: st.DataObject, window: int | None
) -> None:
    """Left, right and between: only tokens of one picture must stay together, as they do in a prompt."""
    padded: list[str] = []
    for place, kind in enumerate([*kinds, "end"]):
        inside = kind == "picture" and place > 0 and kinds[place - 1] == "picture"
        padded += [] if inside else ["padding"] * pads.draw(st.integers(0, 3))
        padded += [kind] if kind != "end" else []

    def masks(names: list[str]) -> Tensor:
        pictures = torch.tensor([[name == "picture" for name in names]])
        starts = pictures & ~torch.cat([torch.zeros(1, 1, dtype=torch.bool), pictures[:, :-1]], dim=1)
        real = torch.tensor([[name != "padding" for name in names]])
        prefix = torch.tensor([[name == "prefix" for name in names]])
        span = span_of(slots(len(names)), real=real, prefix=prefix, pictures=pictures, picture_starts=starts)
        mask = View(span, span, window).mask[0, 0]
        return mask[real[0]][:, real[0]]

    assert masks(padded).equal(masks(kinds))


@given(data=st.data(), window=windows)
def test_a_row_cut_into_calls_gives_the_lines_of_the_whole_mask(data: st.DataObject, window: int | None) -> None:
    real = torch.tensor([data.draw(st.lists(st.booleans(), min_size=8, max_size=8)) for _ in range(2)])
    cut = data.draw(st.integers(1, 7))
    whole = span_of(slots(8), real=real)
    first = span_of(slots(cut), real=real[:, :cut])
    second = span_of(slots(8 - cut, cut), real=real[:, cut:], before=first.real_count())
    both = join([first, second])
    known = real[:, cut:, None] & real[:, None, :]
    cached = View(second, both, window).mask[:, 0]
    assert (cached & known).equal(View(whole, whole, window).mask[:, 0, cut:] & known)
    assert second.position[real[:, cut:]].equal(whole.position[:, cut:][real[:, cut:]])


@given(start=st.integers(0, 5), length=st.integers(1, 6), held=st.integers(0, 5), window=windows)
def test_shortcuts_are_taken_only_where_the_mask_says_the_same(
    start: int, length: int, held: int, window: int | None
) -> None:
    query = PlainSpan(start, length, "cpu")
    key = join([PlainSpan(start - min(held, start), min(held, start), "cpu"), query])
    view = View(query, key, window)
    assert view.plain
    if view.sees_all:
        assert view.mask.all()
    if view.is_triangle:
        assert view.mask[0, 0].equal(torch.ones(length, length, dtype=torch.bool).tril())


def test_shortcuts_are_taken_for_plain_text() -> None:
    prompt, step = PlainSpan(0, 5, "cpu"), PlainSpan(5, 1, "cpu")
    assert View(prompt, prompt).is_triangle
    assert View(prompt, prompt, 5).is_triangle
    assert not View(prompt, prompt, 4).is_triangle
    assert View(step, join([prompt, step])).sees_all
    assert View(step, join([prompt.last(3), step]), 4).sees_all
    assert not View(step, join([prompt, step]), 4).sees_all


def test_shortcuts_are_not_taken_for_padded_rows() -> None:
    padded = span_of(slots(3), real=marks("011"))
    step = span_of(slots(1, 3), before=padded.real_count())
    assert not View(padded, padded).is_triangle
    assert not View(step, join([padded, step])).sees_all


def test_first_last_and_rows_choose_tokens_and_rows() -> None:
    span = span_of(slots(4), real=torch.tensor([[False, True, True, True], [True, True, True, False]]))
    assert span.position.tolist() == [[0, 0, 1, 2], [0, 1, 2, 2]]
    assert span.last(2).position.tolist() == [[1, 2], [2, 2]]
    assert span.first(2).block.tolist() == [[PADDING, 1], [0, 1]]
    assert span.last(9) is span
    assert span.rows(torch.tensor([1, 0, 1])).position.tolist() == [[0, 1, 2, 2], [0, 0, 1, 2], [0, 1, 2, 2]]
    assert PlainSpan(0, 3, "cpu").rows(torch.tensor([0, 0])).position.tolist() == [[0, 1, 2]]


def test_rows_can_be_chosen_of_text_that_follows_padded_rows() -> None:
    """Here positions differ per row while blocks do not: the new tokens themselves are not padded."""
    span = span_of(slots(2, 4), before=torch.tensor([[1], [4]]))
    chosen = span.rows(torch.tensor([1, 1, 0]))
    assert chosen.position.tolist() == [[4, 5], [4, 5], [1, 2]]
    assert chosen.block.expand(3, -1).tolist() == [[4, 5]] * 3


def test_real_tokens_are_counted_per_row_where_rows_differ() -> None:
    assert PlainSpan(3, 4, "cpu").real_count() == 4
    counts = span_of(slots(3), real=torch.tensor([[False, True, True], [True, True, True]])).real_count()
    assert isinstance(counts, Tensor)
    assert counts.tolist() == [[2], [3]]


def test_the_rule_broadcasts_over_any_shapes() -> None:
    query = torch.tensor([[5]]), torch.tensor([[5]])
    key = torch.arange(7).unsqueeze(0), torch.arange(7).unsqueeze(0)
    assert sees(query, key, None).tolist() == [[True] * 6 + [False]]
    assert sees(query, key, 2).tolist() == [[False] * 4 + [True, True, False]]


def test_plain_spans_that_follow_each_other_stay_plain_and_others_do_not() -> None:
    whole, gap = (join([PlainSpan(0, 2, "cpu"), PlainSpan(start, 3, "cpu")]) for start in (2, 5))
    assert whole.plain
    assert whole.position.tolist() == whole.block.tolist() == [[0, 1, 2, 3, 4]]
    assert not gap.plain
    assert gap.position.tolist() == gap.block.tolist() == [[0, 1, 5, 6, 7]]
