"""Attention on a CPU in bfloat16, a block of queries at a time, which is faster there than torch's fused kernel.

The scores of a block fit into the processor's cache, and the two products run at the rate of plain matrix products.
Rounding is that of the specification (`eager`): scores in bfloat16, softmax in float32. Where nothing but causality and
a window says who sees whom, keys that a whole block cannot see are left out.

Query [B, N, S, H], key and value [B, K, T, H], G = N/K; a block has R queries of G heads.
"""

import torch
from torch import Tensor

from gemlens.models.layers import softcap
from gemlens.spans import View

_SCORES = 2**21  # of one block: 4 MB


def serves(query: Tensor, key: Tensor, dropout: float) -> bool:
    """Whether this is the fast way: a CPU with bfloat16, several queries, no gradients, no dropout, not traced."""
    wants_gradients = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    fits = query.device.type == "cpu" and query.dtype is torch.bfloat16 and query.shape[2] > 1
    return fits and not wants_gradients and not dropout and not torch.compiler.is_compiling()


def attend(
    query: Tensor, key: Tensor, value: Tensor, view: View | None, scale: float, cap: float | None = None
) -> Tensor:
    """[B, N, S, H]: what `eager` gives; `cap` is of the soft cap."""
    batch, heads, length, size = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, length, size)  # [B, K, G, S, H]
    mixed = torch.empty_like(grouped)
    rows = max(16, _SCORES // (grouped.shape[2] * key.shape[2]))
    hidden = None if view is None or view.sees_all else view.mask.logical_not()[:, 0].expand(batch, -1, -1)
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        first, last = (0, key.shape[2]) if view is None else view.reach(start, stop)
        for row in range(batch):
            unseen = None if hidden is None else hidden[row, start:stop, first:last]
            for kv_head in range(key.shape[1]):
                queries = grouped[row, kv_head, :, start:stop]  # [G, R, H]
                keys, values = (states[row, kv_head, first:last] for states in (key, value))
                mixed[row, kv_head, :, start:stop] = _block(queries, keys, values, unseen, scale, cap)
    return mixed.view(batch, heads, length, size)


def _block(
    queries: Tensor, keys: Tensor, values: Tensor, unseen: Tensor | None, scale: float, cap: float | None
) -> Tensor:
    """Queries [G, R, H], keys and values [T, H], unseen [R, T] bool -> [G, R, H]."""
    scores = torch.mm(queries.flatten(0, 1), keys.t()).mul_(scale)  # [G * R, T]
    scores = softcap(scores, cap).view(*queries.shape[:2], -1)  # [G, R, T]
    if unseen is not None:
        scores.masked_fill_(unseen, torch.finfo(scores.dtype).min)
    return torch.mm(scores.softmax(-1).flatten(0, 1), values).view(queries.shape)
