"""Random queries, keys and values, and who sees whom: what the tests of attention attend with."""

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from gemlens.spans import PlainSpan, View, join, span_of

EXACT = {"atol": 1e-5, "rtol": 1e-5}


def states(batch: int, heads: int, kv_heads: int, queries: int, keys: int, size: int = 4) -> tuple[Tensor, ...]:
    numbers = torch.Generator().manual_seed(batch + 10 * heads + 100 * queries + 1000 * keys)
    shapes = ((batch, heads, queries, size), (batch, kv_heads, keys, size), (batch, kv_heads, keys, size))
    return tuple(torch.randn(shape, generator=numbers) for shape in shapes)


@st.composite
def views(draw: st.DrawFn, batch: int, kinds: tuple[str, ...] = ("plain", "padded", "blocks", "packed")) -> View:
    """What S queries see of T keys: the last tokens of T, with a window or without."""
    kind = draw(st.sampled_from(kinds))
    queries, past = draw(st.integers(1, 5)), draw(st.integers(0, 5)) if kind != "packed" else 0
    window = draw(st.none() | st.integers(1, 6))
    if kind == "plain":
        new = PlainSpan(past, queries, "cpu")
        return View(new, join([PlainSpan(0, past, "cpu"), new]) if past else new, window)

    def marks(length: int) -> Tensor:
        size = batch * length
        return torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size))).view(batch, length)

    slots = torch.arange(past, past + queries)
    if kind == "packed":
        segment = marks(queries).cumsum(1)
        span = span_of(slots, segment=segment)
        return View(span, span, window)
    held = span_of(torch.arange(past), real=marks(past)) if past else None
    before: Any = 0 if held is None else held.real_count()
    if kind == "blocks":
        pictures = marks(queries)
        starts = pictures & ~F.pad(pictures, (1, 0))[:, :-1]
        new = span_of(slots, before=before, real=marks(queries), pictures=pictures, picture_starts=starts)
    else:  # the new tokens are not padded, what is cached was
        new = span_of(slots, before=before)
    return View(new, new if held is None else join([held, new]), window)


heads = st.sampled_from([(1, 1), (2, 2), (4, 2), (4, 1)])
caps = st.none() | st.floats(0.5, 5)
