"""Norms and attention that keep less for the backward pass than autograd would, and are faster on a CPU.

    keep_less(model)  ->  the same model: the same weights under the same names, the same numbers but for rounding

A norm keeps its input and one number per row, where autograd keeps float32 copies. Attention in bfloat16 on a CPU keeps
queries, keys and values, and computes its weights again, a block of queries at a time. Other ways to attend stay.

Query [B, N, S, H], key and value [B, K, T, H], G = N/K; a block has R queries of G heads.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gemlens.models import attention, blocked_attention
from gemlens.models.attention import AttentionBlock, Scores
from gemlens.models.layers import RMSNorm, softcap
from gemlens.models.pretrained import PreTrainedModel
from gemlens.models.swap import swap
from gemlens.spans import View

_SCORES = 2**18  # of one block: 512 kB, which stay in a processor's own cache


def keep_less(model: PreTrainedModel) -> None:
    """Changes norms, and attention unless an implementation was chosen for the model."""
    swap(model, lambda _, module: LeanNorm(module) if type(module) is RMSNorm else None)
    if model.attn_implementation is None:
        for module in model.modules():
            if isinstance(module, AttentionBlock):
                module.attend = attend


class LeanNorm(RMSNorm):
    """Takes the place of an RMSNorm, and has its weight.

    Args:
        norm: the norm.
    """

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__(len(norm.weight), norm.eps)
        self.weight = norm.weight
        self.train(norm.training)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., size] -> [..., size], of the same dtype."""
        return cast(Tensor, _Norm.apply(hidden, self.weight, self.eps))  # type: ignore[no-untyped-call]


def attend(
    query: Tensor, key: Tensor, value: Tensor, view: View | None, scores: Scores
) -> tuple[Tensor, Tensor | None]:
    """Attention by blocks where that serves, else what a model does by itself; see gemlens.models.attention."""
    wants_gradients = torch.is_grad_enabled() and any(states.requires_grad for states in (query, key, value))
    with torch.no_grad():
        serves = blocked_attention.serves(query, key, scores.dropout)
    if wants_gradients and serves:
        return _Attention.apply(query, key, value, view, scores.scale, scores.cap), None  # type: ignore[no-untyped-call]
    return attention.choose(None, scores.cap)(query, key, value, view, scores)


class _Norm(torch.autograd.Function):
    """x / rms(x) * (1 + weight) in float32, as in RMSNorm."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        full = hidden.float()
        squares = torch.linalg.vector_norm(full, dim=-1, keepdim=True).square_()
        inverse = squares.div_(hidden.shape[-1]).add_(eps).rsqrt_()  # [..., 1]
        ctx.save_for_backward(hidden, weight, inverse)
        return (full * inverse).mul_(1.0 + weight.float()).type_as(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, inverse = ctx.saved_tensors
        full, normed = gradient.float(), hidden.float() * inverse
        of_hidden = of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (full * normed).flatten(0, -2).sum(0).type_as(weight)
        if ctx.needs_input_grad[0]:
            full = full * (1.0 + weight.float())
            share = torch.linalg.vecdot(full, normed).unsqueeze(-1) / hidden.shape[-1]
            of_hidden = full.addcmul_(normed, share, value=-1).mul_(inverse).type_as(hidden)
        return of_hidden, of_weight, None


class _Attention(torch.autograd.Function):
    """softcap(Q K^T scale) masked, softmax, V; rounded as `eager` rounds."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, view: View | None, scale: float, cap: float | None
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.rest = view, scale, cap
        return blocked_attention.attend(query, key, value, view, scale, cap)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        view, scale, cap = ctx.rest
        grouped = query.reshape(len(query), key.shape[1], -1, *query.shape[2:])  # [B, K, G, S, H]
        gradient = gradient.reshape(grouped.shape)
        of_query = torch.empty_like(grouped)
        of_key, of_value = (torch.zeros_like(states, dtype=torch.float32) for states in (key, value))
        rows = max(16, _SCORES // (grouped.shape[2] * key.shape[2]))
        hidden = None if view is None or view.sees_all else view.mask.logical_not()[:, 0].expand(len(query), -1, -1)
        for start in range(0, query.shape[2], rows):
            block = slice(start, min(start + rows, query.shape[2]))
            seen = slice(*((0, key.shape[2]) if view is None else view.reach(block.start, block.stop)))
            for row in range(len(query)):
                unseen = None if hidden is None else hidden[row, block, seen]
                for head in range(key.shape[1]):
                    at_queries, at_keys = (row, head, slice(None), block), (row, head, seen)
                    parts = _block_gradients(
                        grouped[at_queries], key[at_keys], value[at_keys], gradient[at_queries], unseen, scale, cap
                    )
                    of_query[at_queries] = parts[0]
                    of_key[at_keys] += parts[1]
                    of_value[at_keys] += parts[2]
        return of_query.view(query.shape), of_key.type_as(key), of_value.type_as(value), None, None, None


def _block_gradients(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    gradient: Tensor,
    unseen: Tensor | None,
    scale: float,
    cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of queries [G, R, H], keys and values [T, H], given that of the result [G, R, H]; unseen [R, T] bool."""
    rows, gradient = queries.flatten(0, 1), gradient.flatten(0, 1)  # [G * R, H]
    scores = softcap(torch.mm(rows, keys.t()).mul_(scale), cap)  # [G * R, T]
    bend = None if cap is None else 1 - (scores / cap).square()  # the derivative of the soft cap
    if unseen is not None:
        scores.view(*queries.shape[:2], -1).masked_fill_(unseen, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    of_values = torch.mm(weights.t(), gradient)
    of_weights = torch.mm(gradient, values.t())
    of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
    of_scores = (of_scores if bend is None else of_scores.mul_(bend)).mul_(scale)
    return torch.mm(of_scores, keys).view(queries.shape), torch.mm(of_scores.t(), rows), of_values
