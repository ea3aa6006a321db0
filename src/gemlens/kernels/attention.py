"""Attention on a CPU, in numbers as they come or, where many tokens attend, in pairs of sixteen bits or fours of bytes.

    attend(query, keys, values, view, scale, cap)     [B, S, N, H] and twice [B, K, T, H] -> [B, S, N, H]

What is not seen is not computed where 128 keys that follow each other are seen by none of a few queries, so that a
window costs what it shows. No matrix of scores is ever in memory.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.kernels import reference
from gemlens.kernels.machine import machine
from gemlens.spans import Span, View

_EVER = 2**62  # a window that reaches all
KEPT = (torch.float32, torch.bfloat16, torch.int8)  # kinds of keys and values, numbered as in kernels.hpp


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    view: View | None,
    scale: float,
    cap: float | None = None,
    coarse: bool = False,
) -> Tensor:
    """What queries see of values.

    Args:
        query: float32 [B, S, N, H].
        keys: float32 or bfloat16 [B, K, T, H], K dividing N: kv head j serves query heads jG to jG+G-1. Or int8
            [B, K, T, more than H], as `in_bytes` of kernels/reference.py gives them.
        values: like `keys`.
        view: who sees whom; None: everybody everything.
        scale: what scores are multiplied by.
        cap: of the soft cap of scores.
        coarse: eight bits are enough, as for a picture encoder whose weights have no more.

    Returns:
        float32 [B, S, N, H]. From 16 tokens on, numbers are rounded to bfloat16 where the processor has its products,
        and with AVX2 to whole steps, of which the largest of 256 has 2,896; coarse ones to eight bits with AVX-512,
        where everybody sees everything and there is no cap.

    Raises:
        InputError: the shapes do not fit each other, or numbers are of another dtype.
    """
    batch, _, heads, size = query.shape
    kv_heads, length = keys.shape[1:3]
    own = batch, reference.width_in_bytes(size) if keys.dtype is torch.int8 else size
    if keys.shape != values.shape or keys.shape[::3] != own or not kv_heads or heads % kv_heads or not length:
        raise InputError(
            f"query is {tuple(query.shape)}, keys are {tuple(keys.shape)} and values {tuple(values.shape)}, but they "
            "must be [B, S, N, H] and twice [B, K, T, H], or what in_bytes makes of that, with K dividing N and T at "
            "least 1."
        )
    if query.dtype is not torch.float32 or keys.dtype is not values.dtype or keys.dtype not in KEPT:
        raise InputError(
            f"Numbers are {query.dtype}, {keys.dtype} and {values.dtype}, but must be torch.float32, keys and values "
            "both that, torch.bfloat16 or torch.int8."
        )
    result: Tensor = torch.ops.gemlens.attend(
        query, keys, values, numbers_of(view), None if view is None else view.window, scale, cap, coarse
    )
    return result


def numbers_of(view: View | None) -> list[Tensor | None]:
    """Positions, blocks and segments of queries and then keys, int64 [1 or B, T]; none where everything is seen."""
    if view is None or view.sees_all:
        return []
    has_segments = view.query.segment is not None and view.key.segment is not None
    found: list[Tensor | None] = []
    for span in (view.query, view.key):
        for numbers in (span.position, span.block, span.segment if has_segments else None):
            is_flat = numbers is None or numbers.stride(1) == 1
            found.append(None if numbers is None else numbers.long() if is_flat else numbers.long().contiguous())
    return found


def addresses(numbers: Sequence[Tensor | None]) -> list[int]:
    """Where they are, each with the way from row to row."""
    found: list[int] = []
    for each in numbers:
        found += [0, 0] if each is None else [each.data_ptr(), 0 if len(each) == 1 else each.stride(0)]
    return found


def reach(window: int | None) -> int:
    """How many tokens back a query sees, as native calls take it."""
    return _EVER if window is None else window


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    numbers: Sequence[Tensor | None],
    window: int | None,
    scale: float,
    cap: float | None,
    coarse: bool,
) -> Tensor:
    batch, steps, heads, size = query.shape
    kv_heads, length = keys.shape[1:3]
    native = machine().native
    if native is None:
        keys, values = (states if states.dtype is torch.int8 else states.float() for states in (keys, values))
        view = View(Span(*numbers[:3]), Span(*numbers[3:]), window) if numbers else None  # type: ignore[arg-type]
        return reference.attend(query, keys, values, view, scale, cap)
    query = query.contiguous()
    if keys.stride(3) != 1 or values.stride() != keys.stride():
        keys, values = keys.contiguous(), values.contiguous()
    mixed = torch.empty_like(query)
    native.attend(batch, steps, length, heads, kv_heads, size, query.data_ptr(), keys.data_ptr(), values.data_ptr(),
                  KEPT.index(keys.dtype), *keys.stride()[:3], addresses(numbers), reach(window), scale,
                  cap or 0.0, coarse, mixed.data_ptr())  # fmt: skip
    return mixed


def _shape(query: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape)


_LIBRARY: Any = torch.library.Library("gemlens", "FRAGMENT")  # type: ignore[no-untyped-call]  # see tiles.py
_NUMBERS = "Tensor query, Tensor keys, Tensor values, Tensor?[] numbers"
_LIBRARY.define(f"attend({_NUMBERS}, int? window, float scale, float? cap, bool coarse) -> Tensor")
_LIBRARY.impl("attend", _attend, "CPU")
torch.library.register_fake("gemlens::attend", _shape, lib=_LIBRARY)
