"""Five ways to compute attention. Each gives the same numbers or refuses; none drops a mask or a cap silently.

    eager               plain torch, the specification; the only one that gives the weights back
    sdpa                torch's scaled_dot_product_attention; cannot cap scores
    flex_attention      torch's FlexAttention; caps and masks; no dropout
    flash_attention_2   the flash_attn package; caps and windows, but only plain causal rows
    blocked             on a CPU in bfloat16, by blocks of queries, rounding as eager does; elsewhere sdpa or eager

Shapes: query [B, N, S, H], key and value [B, K, T, H] with K dividing N: kv head j serves query heads jG .. jG+G-1.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemlens.errors import InputError
from gemlens.models import blocked_attention
from gemlens.models.layers import softcap
from gemlens.spans import View, sees


@dataclass(frozen=True)
class Scores:
    """How scores are made of queries and keys.

    Args:
        scale: what they are multiplied by.
        cap: of the soft cap, applied before the mask.
        dropout: on the weights; 0 outside training.
    """

    scale: float
    cap: float | None = None
    dropout: float = 0.0


class AttentionFunction(Protocol):
    """(query, key, value, view, scores) -> [B, N, S, H] and, from eager only, weights [B, N, S, T]."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, view: View | None, scores: Scores
    ) -> tuple[Tensor, Tensor | None]:
        """`view` None: everything is seen, as in the picture encoder."""


def eager(query: Tensor, key: Tensor, value: Tensor, view: View | None, scores: Scores) -> tuple[Tensor, Tensor | None]:
    """The specification: scores, cap, mask, softmax in float32, sum of values."""
    batch, heads, length, size = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, length, size)  # [B, K, G, S, H]
    logits = softcap(grouped @ key.unsqueeze(2).transpose(-1, -2) * scores.scale, scores.cap)  # [B, K, G, S, T]
    if view is not None and not view.sees_all:
        logits = logits.masked_fill(~view.mask.to(logits.device).unsqueeze(1), torch.finfo(logits.dtype).min)
    weights = F.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=scores.dropout) if scores.dropout else weights
    return (weights @ value.unsqueeze(2)).reshape(query.shape), weights.reshape(batch, heads, length, -1)


def sdpa(query: Tensor, key: Tensor, value: Tensor, view: View | None, scores: Scores) -> tuple[Tensor, None]:
    """torch's fused kernels. Masks are left out where causality says everything, which is faster."""
    triangle = view is not None and view.is_triangle and query.shape[2] > 1
    mask = None if view is None or view.sees_all or triangle else view.mask.to(query.device)
    shape = query.shape
    if shape[2] == 1:
        # The heads of a group see the same keys, so for one token they are rows of one head, which is faster.
        query = query.reshape(shape[0], key.shape[1], -1, shape[3])
    mixed = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=scores.dropout,
        is_causal=triangle,
        scale=scores.scale,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return mixed.reshape(shape), None


def flex(query: Tensor, key: Tensor, value: Tensor, view: View | None, scores: Scores) -> tuple[Tensor, None]:
    """torch's FlexAttention, compiled on an accelerator."""
    from torch.nn.attention.flex_attention import create_block_mask

    wants_gradients = torch.is_grad_enabled() and any(states.requires_grad for states in (query, key, value))
    if query.device.type == "cpu" and wants_gradients:
        raise InputError(
            "flex_attention computes no gradients on a CPU; train with attn_implementation='eager' or 'sdpa', or use "
            "torch.no_grad()."
        )
    if scores.dropout:
        raise InputError("flex_attention has no dropout: set attention_dropout=0.0 or attn_implementation='sdpa'.")
    block_mask = None
    if view is not None and not view.sees_all:
        rows = max(view.query.position.shape[0], view.key.position.shape[0])
        block_mask = create_block_mask(
            _mask_mod(view), rows, None, query.shape[2], key.shape[2], device=str(query.device)
        )
    cap = scores.cap

    def score_mod(score: Tensor, *_: Tensor) -> Tensor:
        return softcap(score, cap)

    with warnings.catch_warnings():
        # On a CPU it runs uncompiled, which it would warn of.
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile", category=UserWarning)
        mixed = _flex_kernel(query.device.type)(
            query,
            key,
            value,
            score_mod=None if cap is None else score_mod,
            block_mask=block_mask,
            scale=scores.scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
    return mixed, None


def _mask_mod(view: View) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    query, key, window = view.query, view.key, view.window

    def mask_mod(batch: Tensor, head: Tensor, query_slot: Tensor, key_slot: Tensor) -> Tensor:
        # Spans of one row serve the whole batch.
        q = batch % query.position.shape[0]
        k = batch % key.position.shape[0]
        seen = sees(
            (query.position[q, query_slot], query.block[q, query_slot]),
            (key.position[k, key_slot], key.block[k, key_slot]),
            window,
        )
        if query.segment is not None and key.segment is not None:
            seen = seen & (query.segment[q, query_slot] == key.segment[k, key_slot])
        return seen

    return mask_mod


@lru_cache
def _flex_kernel(device_type: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if device_type == "cpu" else torch.compile(flex_attention, dynamic=True)


def flash(query: Tensor, key: Tensor, value: Tensor, view: View | None, scores: Scores) -> tuple[Tensor, None]:
    """The flash_attn package, [B, S, N, H] there."""
    from flash_attn import flash_attn_func

    if view is not None and not view.plain:
        raise InputError(
            "flash_attention_2 can only express causal text without padding, but these rows hold padding, pictures, a "
            "prefix or several texts; use attn_implementation='sdpa', 'flex_attention' or 'eager'."
        )
    window = -1 if view is None or view.window is None else view.window - 1
    mixed = flash_attn_func(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        dropout_p=scores.dropout,
        softmax_scale=scores.scale,
        causal=view is not None,
        window_size=(window, 0 if window >= 0 else -1),
        softcap=scores.cap or 0.0,
    )
    return mixed.transpose(1, 2), None


def blocked(query: Tensor, key: Tensor, value: Tensor, view: View | None, scores: Scores) -> tuple[Tensor, Any]:
    """By blocks of queries where that serves, see blocked_attention.py; else sdpa, or eager where scores are capped."""
    if blocked_attention.serves(query, key, scores.dropout):
        return blocked_attention.attend(query, key, value, view, scores.scale, scores.cap), None
    return (sdpa if scores.cap is None else eager)(query, key, value, view, scores)


IMPLEMENTATIONS: dict[str, AttentionFunction] = {
    "eager": eager,
    "sdpa": sdpa,
    "flex_attention": flex,
    "flash_attention_2": flash,
    "blocked": blocked,
}


def choose(name: str | None, cap: float | None = None) -> AttentionFunction:
    """The implementation of that name; None for the fastest of the first two that is sure to be right here.

    Raises:
        InputError: an unknown name, a package that is missing, or one that cannot apply the model's soft cap.
    """
    if name is None:
        return sdpa if cap is None else eager
    if name not in IMPLEMENTATIONS:
        raise InputError(f"attn_implementation is {name!r}; known are {', '.join(IMPLEMENTATIONS)}.")
    if name == "sdpa" and cap is not None:
        raise InputError(
            f"sdpa cannot apply this model's soft cap of {cap} to attention scores (the reference drops it silently); "
            "use attn_implementation='eager' or 'flex_attention'."
        )
    if name == "flash_attention_2" and find_spec("flash_attn") is None:
        raise InputError(
            "attn_implementation='flash_attention_2' needs the flash_attn package: pip install flash-attn."
        )
    return IMPLEMENTATIONS[name]


class AttentionBlock(nn.Module):
    """A module that attends, in one of the ways above.

    Args:
        cap: soft cap of the scores, which the way must be able to apply.
    """

    def __init__(self, cap: float | None) -> None:
        super().__init__()
        self.cap = cap
        self.attend: AttentionFunction = choose(None, cap)
