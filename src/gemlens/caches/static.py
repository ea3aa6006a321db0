"""StaticCache: fixed shapes, allocated once. Sliding layers are rings of their window's size.

The order of slots in a ring does not matter: the span of what they hold says who sees them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gemlens.caches.cache import HasWindows, check_windows
from gemlens.errors import InputError
from gemlens.spans import EMPTY, PADDING, Span, join


@dataclass
class _Writing:
    """Where the tokens of the present call go in layers of one kind."""

    places: Tensor  # [B, S] or [1, S]
    returns: str  # what update() gives: "new", "buffer" or "both"


class _Slots:
    """The span of a buffer, kept once for all layers of one kind.

    A ring of W slots has one more, where padding and what is already out of reach are written.
    """

    def __init__(self, size: int, is_ring: bool) -> None:
        self.size, self.is_ring = size, is_ring
        self.width = size + 1 if is_ring else size
        self.span: Span | None = None
        self.writing: _Writing | None = None

    def extend(self, span: Span, slots: Tensor, seen: int) -> Span:
        """Records the new tokens; gives the span of the keys to attend to."""
        places = slots.unsqueeze(0) if not self.is_ring else self._ring_places(span)
        if self.span is None or self.span.position.shape[0] < span.position.shape[0]:
            self._widen(span)
        assert self.span is not None
        # The first call needs nothing from the buffer. Several tokens at once need both: a ring may lose, by their
        # writing, keys that the first of them still sees.
        returns = "new" if seen == 0 else "both" if self.is_ring and len(span) > 1 else "buffer"
        keys = span if returns == "new" else self.span if returns == "buffer" else join([self.span, span])
        rows = self.span.position.shape[0]
        self.span.position.scatter_(1, places.expand(rows, -1), span.position.expand(rows, -1))
        self.span.block.scatter_(1, places.expand(rows, -1), span.block.expand(rows, -1))
        if self.is_ring:
            self.span.block[:, -1] = EMPTY
        self.writing = _Writing(places, returns)
        return keys

    def _ring_places(self, span: Span) -> Tensor:
        stays = (span.block < PADDING) & (span.position > span.position[:, -1:] - self.size)
        return torch.where(stays, span.position % self.size, self.size)

    def _widen(self, span: Span) -> None:
        rows = span.position.shape[0]
        if self.span is None:
            position = torch.zeros(rows, self.width, dtype=torch.int64, device=span.position.device)
            self.span = Span(position, torch.full_like(position, EMPTY))
        else:
            self.span = Span(self.span.position.repeat(rows, 1), self.span.block.repeat(rows, 1))


class StaticLayer:
    """The buffers of one layer, [B, K, slots, H] each; None before the first token."""

    def __init__(self, slots: _Slots) -> None:
        self.slots = slots
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def is_sliding(self) -> bool:
        """Whether the buffer is a ring of the window's size."""
        return self.slots.is_ring

    @property
    def max_cache_len(self) -> int:
        """Tokens that the buffer can hold."""
        return self.slots.size

    def change(self, how: Callable[[Tensor], Tensor]) -> None:
        """Replaces keys and values by `how` of them."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = how(self.keys), how(self.values)

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes [B, K, S, H] to its places; gives what the new tokens attend to."""
        writing = self.slots.writing
        if writing is None:
            raise InputError("StaticCache.update() came before extend(): the places of the new tokens are not known.")
        if self.keys is None or self.values is None or (writing.returns == "new" and not _serves(self.keys, keys)):
            batch, heads, _, size = keys.shape
            self.keys = keys.new_zeros(batch, heads, self.slots.width, size)
            self.values = values.new_zeros(batch, heads, self.slots.width, values.shape[-1])
        given = keys, values
        if writing.returns == "both":
            given = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        places = writing.places[:, None, :, None].expand(keys.shape[0], keys.shape[1], -1, keys.shape[3])
        self.keys.scatter_(2, places, keys)
        self.values.scatter_(2, places, values)
        return (self.keys, self.values) if writing.returns == "buffer" else given


def _serves(buffer: Tensor, states: Tensor) -> bool:
    """Whether a buffer of earlier texts can be written to with states of a new one."""
    alike = (len(buffer), buffer.dtype, buffer.device) == (len(states), states.dtype, states.device)
    return alike and buffer.is_inference() == torch.is_inference_mode_enabled()


def _reordered(states: Tensor, rows: Tensor) -> Tensor:
    """The chosen rows, in the same memory if they fit there: compiled steps know where it is."""
    chosen = states.index_select(0, rows)
    return states.copy_(chosen) if chosen.shape == states.shape else chosen


class StaticCache:
    """Room for a fixed number of tokens, so that shapes never change.

    Args:
        config: of the model; says which layers slide.
        max_cache_len: tokens there is room for, padding counted.
    """

    is_compileable = True

    def __init__(self, config: HasWindows, max_cache_len: int) -> None:
        if type(max_cache_len) is not int or max_cache_len < 1:
            raise InputError(f"max_cache_len is {max_cache_len!r}, but it must be a positive integer.")
        sizes = {window: min(window or max_cache_len, max_cache_len) for window in config.windows}
        self._windows = config.windows
        self._slots = {window: _Slots(size, is_ring=window is not None) for window, size in sizes.items()}
        self.layers = [StaticLayer(self._slots[window]) for window in config.windows]
        self._room = max_cache_len
        self._seen = 0
        self._real: Tensor | int = 0

    @property
    def max_cache_len(self) -> int:
        """Tokens there is room for, padding counted."""
        return self._room

    @property
    def is_sliding(self) -> list[bool]:
        """Per layer: whether its buffer is a ring of the window's size."""
        return [layer.is_sliding for layer in self.layers]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots seen so far, padding counted, whether or not a sliding layer still holds them."""
        return self._seen

    def real_tokens(self) -> Tensor | int:
        """Real tokens seen so far: one number if the rows are alike, else [B, 1]."""
        return self._real

    def rows(self) -> int | None:
        """B of what is held; None before the first token."""
        keys = self.layers[0].keys
        return None if keys is None or self._seen == 0 else keys.shape[0]

    def extend(self, span: Span, windows: Sequence[int | None], cache_position: Tensor | None = None) -> Sequence[Span]:
        """Takes the span of the new tokens; gives per layer the span of the keys that `update` will give."""
        if len(windows) > len(self.layers):
            raise InputError(
                f"The static cache was made for {len(self.layers)} layers, but the model has {len(windows)}."
            )
        check_windows(self._windows, windows)
        if self._seen + len(span) > self._room:
            raise InputError(
                f"The static cache has room for {self._room} tokens; {self._seen} are held and {len(span)} came. "
                f"Make it with max_cache_len={self._seen + len(span)} or more."
            )
        self._leave_inference_mode()
        slots = cache_position
        if slots is None:
            slots = torch.arange(self._seen, self._seen + len(span), device=span.position.device)
        keys = {window: kind.extend(span, slots, self._seen) for window, kind in self._slots.items()}
        self._seen += len(span)
        self._real = self._real + span.real_count()
        by_kind = {id(kind): keys[window] for window, kind in self._slots.items()}
        return [by_kind[id(layer.slots)] for layer in self.layers]

    def _leave_inference_mode(self) -> None:
        """Tensors that were made in it could not be written to outside."""
        if torch.is_inference_mode_enabled():
            return
        for kind in self._slots.values():
            if kind.span is not None and kind.span.position.is_inference():
                kind.span = Span(kind.span.position.clone(), kind.span.block.clone())
        for layer in self.layers:
            layer.change(lambda states: states.clone() if states.is_inference() else states)

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        cache_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Takes [B, K, S, H] of the new tokens of one layer; gives the [B, K, T, H] to attend to."""
        return self.layers[layer_idx].write(key_states, value_states)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replaces row b by the former row `beam_idx[b]`; their number may change."""
        for kind in self._slots.values():
            kind.span = kind.span.rows(beam_idx) if kind.span is not None else None
        if isinstance(self._real, Tensor) and self._real.shape[0] > 1:
            self._real = self._real[beam_idx.to(self._real.device)]
        for layer in self.layers:
            layer.change(lambda states: _reordered(states, beam_idx.to(states.device)))

    def reset(self) -> None:
        """Forgets everything; the buffers stay."""
        for kind in self._slots.values():
            kind.span, kind.writing = None, None
        self._seen, self._real = 0, 0

    def __len__(self) -> int:
        return len(self.layers)
