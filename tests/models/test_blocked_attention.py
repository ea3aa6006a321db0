"""Attention by blocks of queries: equal to the specification, whatever the blocks."""

import pytest
import torch
from attention_inputs import EXACT, caps, heads, states, views
from hypothesis import given
from hypothesis import strategies as st

from gemlens.models import blocked_attention
from gemlens.models.attention import Scores, blocked, eager, sdpa
from gemlens.models.blocked_attention import attend, serves
from gemlens.spans import PlainSpan, View


@given(data=st.data(), batch=st.integers(1, 3), grouping=heads, cap=caps, scores=st.sampled_from([1, 40, 2**21]))
def test_it_is_the_specification_in_blocks_of_any_size(
    data: st.DataObject, batch: int, grouping: tuple[int, int], cap: float | None, scores: int
) -> None:
    view = data.draw(st.none() | views(batch, kinds=("plain", "padded", "blocks", "packed")))
    queries, keys = (20, 21) if view is None else (len(view.query), len(view.key))
    query, key, value = states(batch, *grouping, queries, keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked_attention, "_SCORES", scores)
        mixed = attend(query, key, value, view, 0.7, cap)
    torch.testing.assert_close(mixed, eager(query, key, value, view, Scores(0.7, cap))[0], **EXACT)


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("past", [0, 30])
@pytest.mark.parametrize("queries", [17, 64])
def test_keys_that_a_whole_block_cannot_see_are_left_out_and_no_others(
    window: int | None, past: int, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_span = PlainSpan(0, past + queries, "cpu")
    view = View(key_span.last(queries), key_span, window)
    query, key, value = states(1, 4, 2, queries, past + queries)
    monkeypatch.setattr(blocked_attention, "_SCORES", 1)  # blocks of 16 queries
    mixed = attend(query, key, value, view, 0.5)
    torch.testing.assert_close(mixed, eager(query, key, value, view, Scores(0.5))[0], **EXACT)
    first, last = view.reach(16, 17)
    assert last == past + 17
    assert first == (0 if window is None else max(0, past + 17 - window))
    unseen = key.clone()
    unseen[:, :, last:] = torch.nan  # what the first 17 queries cannot see
    few = View(view.query.first(17), key_span.first(last), window)
    until = attend(query[:, :, :17], unseen[:, :, :last], value[:, :, :last], few, 0.5)
    torch.testing.assert_close(until, mixed[:, :, :17], **EXACT)


def test_in_bfloat16_it_rounds_as_the_specification_does() -> None:
    span = PlainSpan(0, 70, "cpu")
    view = View(span, span, 20)
    query, key, value = (part.bfloat16() for part in states(2, 4, 2, 70, 70, size=16))
    expected = eager(query, key, value, view, Scores(0.3, cap=4.0))[0]
    torch.testing.assert_close(attend(query, key, value, view, 0.3, 4.0), expected, atol=1e-2, rtol=1e-2)
    same = (attend(query, key, value, view, 0.3, 4.0) == expected).float().mean()
    assert same > 0.99


@pytest.mark.parametrize(
    ("dtype", "queries", "dropout", "gradients", "expected"),
    [
        (torch.bfloat16, 9, 0.0, False, True),
        (torch.float32, 9, 0.0, False, False),
        (torch.bfloat16, 1, 0.0, False, False),
        (torch.bfloat16, 9, 0.1, False, False),
        (torch.bfloat16, 9, 0.0, True, False),
    ],
)
def test_it_serves_long_bfloat16_texts_without_gradients(
    dtype: torch.dtype, queries: int, dropout: float, gradients: bool, expected: bool
) -> None:
    query, key, value = (part.to(dtype).requires_grad_(gradients) for part in states(1, 2, 1, queries, 9))
    assert serves(query, key, dropout) is expected
    span = PlainSpan(0, 9, "cpu")
    view = View(span.last(queries), span)
    way = attend if expected else None
    found = blocked(query, key, value, view, Scores(0.5, dropout=dropout))[0]
    if way is not None:
        assert found.equal(way(query, key, value, view, 0.5))
    elif not dropout:
        assert found.equal(sdpa(query, key, value, view, Scores(0.5))[0])
