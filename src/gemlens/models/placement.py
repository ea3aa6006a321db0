"""From the documented arguments to a Placement: where the tokens of this call stand, checked once, for every model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gemlens.caches.cache import Cache
from gemlens.errors import InputError
from gemlens.models.decoder import Placement
from gemlens.spans import PlainSpan, Span, span_of


@dataclass(frozen=True)
class Blocks:
    """Tokens that see more than what stands before them, [B, S] bool each.

    Args:
        prefix: PaliGemma's pictures and prompt, one block.
        pictures: Gemma 3's picture tokens, one block per picture.
        picture_starts: the first token of each picture.
    """

    prefix: Tensor | None = None
    pictures: Tensor | None = None
    picture_starts: Tensor | None = None


def place(
    shape: tuple[int, int],
    device: torch.device,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    cache: Cache | None = None,
    cache_position: Tensor | None = None,
    blocks: Blocks | None = None,
    first_position: int = 0,
) -> Placement:
    """Checks the arguments against the shape [B, S] of the new tokens and derives the span.

    Args:
        attention_mask: [B, past + S], 0 for padding. What was cached remembers its own padding.
        position_ids: [B, S], [1, S] or [S]; by default each token's count of real tokens before it.
        first_position: what the first token is rotated by (PaliGemma counts from 1).
        blocks: see `Blocks`; None for causal text.

    Raises:
        InputError: shapes that do not fit the tokens and the cache.
    """
    batch, length = shape
    past = 0 if cache is None else cache.get_seq_length()
    held = None if cache is None else cache.rows()
    if held not in (None, batch):
        raise InputError(f"The cache holds {held} rows, but {batch} came; use a new cache.")
    real = _real_tokens(attention_mask, batch, past, length, device)
    _check_cache_position(cache_position, past, length)
    position_ids = _checked_positions(position_ids, batch, length)
    segment = _segments(position_ids) if attention_mask is None and position_ids is not None else None
    if segment is not None and cache is not None:
        raise InputError(
            "Packed rows cannot be cached: position_ids do not go up by one, so several texts share a row; pass "
            "use_cache=False, or an attention_mask if it is one text."
        )
    before = 0 if cache is None else cache.real_tokens()
    span = _span(past, length, device, real, before, blocks, segment)
    if position_ids is None:
        position_ids = span.position + first_position if first_position else span.position
    return Placement(span, position_ids, cache, cache_position)


def _span(
    past: int,
    length: int,
    device: torch.device,
    real: Tensor | None,
    before: Tensor | int,
    blocks: Blocks | None,
    segment: Tensor | None,
) -> Span:
    if real is None and blocks is None and segment is None and isinstance(before, int):
        return PlainSpan(past, length, device)
    slots = torch.arange(past, past + length, device=device)
    blocks = blocks or Blocks()
    return span_of(
        slots,
        real=real,
        before=before,
        prefix=blocks.prefix,
        pictures=blocks.pictures,
        picture_starts=blocks.picture_starts,
        segment=segment,
    )


def _real_tokens(mask: Tensor | None, batch: int, past: int, length: int, device: torch.device) -> Tensor | None:
    """[B, S] bool of the new tokens, or None where nothing is padded."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] not in (1, batch):
        came = f"of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise InputError(
            f"attention_mask is {came}, but it must be [batch, tokens] = [{batch}, {past + length}] with 0 for "
            "padding; which tokens see each other follows from it, the token types and the labels."
        )
    if mask.shape[1] != past + length:
        raise InputError(
            f"attention_mask covers {mask.shape[1]} tokens, but {past} are cached and {length} came; it must cover all "
            f"{past + length}."
        )
    real = mask[:, past:].to(device).bool().expand(batch, -1)
    return None if bool(real.all()) else real


def _check_cache_position(cache_position: Tensor | None, past: int, length: int) -> None:
    if cache_position is None or torch.compiler.is_compiling():
        return
    if cache_position.shape != (length,):
        raise InputError(
            f"cache_position has shape {tuple(cache_position.shape)}, but {length} tokens came: [{length}]."
        )
    if cache_position.device.type == "cpu" and cache_position.tolist() != list(range(past, past + length)):
        raise InputError(
            f"cache_position runs from {int(cache_position[0])} to {int(cache_position[-1])}, but {past} tokens are "
            f"cached, so the {length} new ones take the places {past} to {past + length - 1}."
        )


def _checked_positions(position_ids: Tensor | None, batch: int, length: int) -> Tensor | None:
    if position_ids is None:
        return None
    if not isinstance(position_ids, Tensor):
        raise InputError(f"position_ids are a {type(position_ids).__name__}, but must be a tensor [{batch}, {length}].")
    position_ids = position_ids.unsqueeze(0) if position_ids.dim() == 1 else position_ids
    if position_ids.dim() != 2 or position_ids.shape[0] not in (1, batch) or position_ids.shape[1] != length:
        raise InputError(f"position_ids has shape {tuple(position_ids.shape)}, but it must be [{batch}, {length}].")
    return position_ids


def _segments(position_ids: Tensor) -> Tensor | None:
    """Packed texts: where positions do not go up by one, another text begins. None for a single text."""
    steps = position_ids.diff(dim=1, prepend=position_ids[:, :1] - 1)
    begins = steps != 1
    return begins.cumsum(1) if bool(begins.any()) else None
