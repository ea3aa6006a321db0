"""Attention on a CPU, in numbers as they come or, where many tokens attend, in pairs of bfloat16; sums in float32.

    attend(query, keys, values, view, scale, cap)     [B, S, N, H] and twice [B, K, T, H] -> [B, S, N, H]

What is not seen is not computed where 64 keys that follow each other are seen by none of a few queries, so that a
window costs what it shows. No matrix of scores is ever in memory.
"""

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.kernels import reference
from gemlens.kernels.machine import machine
from gemlens.spans import View

_EVER = 2**62  # a window that reaches all


def attend(
    query: Tensor, keys: Tensor, values: Tensor, view: View | None, scale: float, cap: float | None = None
) -> Tensor:
    """What queries see of values.

    Args:
        query: float32 [B, S, N, H].
        keys: float32 [B, K, T, H], K dividing N: kv head j serves query heads jG to jG+G-1.
        values: like `keys`.
        view: who sees whom; None: everybody everything.
        scale: what scores are multiplied by.
        cap: of the soft cap of scores.

    Returns:
        float32 [B, S, N, H]. From 16 tokens on, numbers are rounded to bfloat16 where the processor has its products.

    Raises:
        InputError: the shapes do not fit each other, or numbers are not float32.
    """
    batch, steps, heads, size = query.shape
    kv_heads, length = keys.shape[1:3]
    if keys.shape != values.shape or keys.shape[::3] != (batch, size) or not kv_heads or heads % kv_heads or not length:
        raise InputError(
            f"query is {tuple(query.shape)}, keys are {tuple(keys.shape)} and values {tuple(values.shape)}, but they "
            "must be [B, S, N, H] and twice [B, K, T, H], with K dividing N and T at least 1."
        )
    if {query.dtype, keys.dtype, values.dtype} != {torch.float32}:
        raise InputError(f"Numbers are {query.dtype}, {keys.dtype} and {values.dtype}, but must be torch.float32.")
    native = machine().native
    if native is None:
        return reference.attend(query, keys, values, view, scale, cap)
    query = query.contiguous()
    if keys.stride()[2:] != (size, 1) or values.stride() != keys.stride():
        keys, values = keys.contiguous(), values.contiguous()
    spans, held = addresses(view)
    window = reach(view)
    mixed = torch.empty_like(query)
    native.attend(batch, steps, length, heads, kv_heads, size, query.data_ptr(), keys.data_ptr(), values.data_ptr(),
                  keys.stride(0), keys.stride(1), spans, window, scale, cap or 0.0, mixed.data_ptr())  # fmt: skip
    del held
    return mixed


def reach(view: View | None) -> int:
    """How many tokens back a query sees, as native calls take it."""
    return _EVER if view is None or view.window is None else view.window


def addresses(view: View | None) -> tuple[list[int], list[Tensor]]:
    """Where positions, blocks and segments of queries and then keys are, each with the way from row to row.

    And the tensors that are there, to hold meanwhile.
    """
    if view is None or view.sees_all:
        return [], []
    found: list[int] = []
    held: list[Tensor] = []
    has_segments = view.query.segment is not None and view.key.segment is not None
    for span in (view.query, view.key):
        for numbers in (span.position, span.block, span.segment if has_segments else None):
            if numbers is None:
                found += [0, 0]
                continue
            numbers = numbers.long() if numbers.stride(1) == 1 else numbers.long().contiguous()
            held.append(numbers)
            found += [numbers.data_ptr(), 0 if len(numbers) == 1 else numbers.stride(0)]
    return found, held
