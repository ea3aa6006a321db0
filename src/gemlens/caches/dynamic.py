"""DynamicCache: grows with the text. Sliding layers keep only what their window needs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gemlens.caches.cache import HasWindows, check_windows
from gemlens.errors import InputError
from gemlens.spans import PlainSpan, Span, join

_LEAST_ROOM = 64  # slots for tokens to come
_COPIED = 2**15  # numbers at once: for more, torch wakes threads on a CPU, which are in the way of those of kernels


class Reserved(NamedTuple):
    """Where keys and values lie: in the slots from `first` to before `end` of [B, K, room, H] each, contiguous."""

    keys: Tensor
    values: Tensor
    first: int
    end: int


class DynamicLayer:
    """Keys and values of one layer, [B, K, T, H] each; None before the first token.

    They lie at the beginning of tensors that have room for more, so that a token more is written and nothing is copied.
    What was given out is never written to again.
    """

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self._held: tuple[Tensor, Tensor] | None = None  # [B, K, room for T, H]
        self._first = self._end = 0

    @property
    def keys(self) -> Tensor | None:
        """What is held, [B, K, T, H]."""
        return None if self._held is None else self._held[0][:, :, self._first : self._end]

    @property
    def values(self) -> Tensor | None:
        """Like `keys`."""
        return None if self._held is None else self._held[1][:, :, self._first : self._end]

    @property
    def held(self) -> Tensor | None:
        """The tensor in which `keys` lie."""
        return None if self._held is None else self._held[0]

    @property
    def is_sliding(self) -> bool:
        """Whether the layer forgets what its window no longer needs."""
        return self.window is not None

    def append(self, keys: Tensor, values: Tensor, keep: int | None) -> tuple[Tensor, Tensor]:
        """Joins what is held with the new; gives all of it and goes on holding the last `keep` slots."""
        given = self._joined(keys, values)
        if keep is not None and self._end - self._first > keep:
            self._first = self._end - keep
            if self._first > _most_forgotten(keep):
                self.change(Tensor.clone)
        return given

    def reserve(self, count: int, keep: int | None, like: Tensor) -> "Reserved":
        """Like `append` of `count` new tokens, but their slots, the last ones, are the caller's to write.

        What is held has no gradients; `like`, [B, K, 0, H], is of its dtype.
        """
        if self._held is None:
            room = *like.shape[:2], count + _LEAST_ROOM, like.shape[3]
            self._held = like.new_empty(room), like.new_empty(room)
        held = self._held[0]
        is_ready = held.is_contiguous() and held.is_inference() == torch.is_inference_mode_enabled()
        if not is_ready or self._end + count > held.shape[2]:
            self._make_room(count)
        self._end += count
        first, end = self._first, self._end
        if keep is not None:
            self._first = max(first, end - keep)
        return Reserved(*self._held, first, end)

    def change(self, how: Callable[[Tensor], Tensor]) -> None:
        """Replaces keys and values by `how` of them."""
        if self.keys is not None and self.values is not None:
            self._hold(how(self.keys), how(self.values))

    def forget(self) -> None:
        """Holds nothing any more."""
        self._held, self._first, self._end = None, 0, 0

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        self._held, self._first, self._end = (keys, values), 0, keys.shape[2]

    def _joined(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self._held is None or self.keys is None or self.values is None:
            self._hold(keys, values)
            return keys, values
        is_plain = not any(states.requires_grad for states in (keys, values, *self._held))
        fits = all(
            held.dtype == new.dtype and held.shape[:2] == new.shape[:2]
            for held, new in zip(self._held, (keys, values), strict=True)
        )
        if not (is_plain and fits):  # gradients flow through what is held
            self._hold(torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2))
            assert self._held is not None
            return self._held
        end = self._end + keys.shape[2]
        if end > self._held[0].shape[2] or self._held[0].is_inference() != keys.is_inference():
            self._make_room(keys.shape[2])
            end = self._end + keys.shape[2]
        for held, new in zip(self._held, (keys, values), strict=True):
            held[:, :, self._end : end] = new
        self._end = end
        first = self._first
        return self._held[0][:, :, first:end], self._held[1][:, :, first:end]

    def _make_room(self, count: int) -> None:
        """Moves what is held into larger tensors, for `count` slots more and some that come later."""
        assert self._held is not None
        length = self._end - self._first
        room = length + count + max(_LEAST_ROOM, length // 4)
        moved = []
        for held in self._held:
            larger = held.new_empty(*held.shape[:2], room, held.shape[3])
            for begin, end in _stretches(held, length):
                larger[:, :, begin:end] = held[:, :, self._first + begin : self._first + end]
            moved.append(larger)
        self._held, self._first, self._end = (moved[0], moved[1]), 0, length


def _stretches(held: Tensor, length: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of slots to be copied at once, in order; see `_COPIED`. All where there are no such threads."""
    each = held.shape[0] * held.shape[1] * held.shape[3]
    step = _COPIED // each if held.device.type == "cpu" and 0 < each <= _COPIED else max(1, length)
    return ((begin, min(length, begin + step)) for begin in range(0, length, step))


class DynamicCache:
    """Grows with the text.

    Args:
        config: of the model; its sliding layers then keep only their window. Without it every layer keeps everything.
    """

    is_compileable = False

    def __init__(self, config: HasWindows | None = None) -> None:
        self.layers = [DynamicLayer(window) for window in (config.windows if config else ())]
        self._spans: dict[int | None, Span] = {}  # what the layers of one window hold
        self._keep: dict[int | None, int | None] = {}  # how many slots they go on holding after this call
        self._seen = 0
        self._real: Tensor | int = 0

    @classmethod
    def from_legacy_cache(cls, past_key_values: Sequence[tuple[Tensor, Tensor]] | None = None) -> "DynamicCache":
        """A cache of plain text from a tuple of (keys, values) per layer.

        Raises:
            InputError: the layers hold different numbers of tokens.
        """
        lengths = {keys.shape[2] for keys, _ in past_key_values or ()}
        if len(lengths) > 1:
            raise InputError(
                f"The layers hold {' and '.join(map(str, sorted(lengths)))} tokens: some have forgotten, and a tuple "
                "does not say where the others stood. Pass the cache itself."
            )
        cache = cls()
        for layer, (keys, values) in enumerate(past_key_values or ()):
            cache.update(keys, values, layer)
        if cache.layers and cache.layers[0].keys is not None:
            cache._seen = cache._real = cache.layers[0].keys.shape[2]
            cache._spans = {None: PlainSpan(0, cache._seen, cache.layers[0].keys.device)}
        return cache

    def to_legacy_cache(self) -> tuple[tuple[Tensor | None, Tensor | None], ...]:
        """A tuple of (keys, values) per layer. Padding and pictures are not remembered there."""
        return tuple(self[layer] for layer in range(len(self)))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots seen so far, padding counted, whether or not a sliding layer still holds them."""
        return self._seen

    def real_tokens(self) -> Tensor | int:
        """Real tokens seen so far: one number if the rows are alike, else [B, 1]."""
        return self._real

    def rows(self) -> int | None:
        """B of what is held; None before the first token."""
        held = self.layers[0].held if self.layers else None
        return None if held is None else held.shape[0]

    def extend(self, span: Span, windows: Sequence[int | None], cache_position: Tensor | None = None) -> Sequence[Span]:
        """Takes the span of the new tokens; gives per layer the span of the keys that `update` will give."""
        check_windows([layer.window for layer in self.layers], windows)
        while len(self.layers) < len(windows):
            self.layers.append(DynamicLayer())
        self._seen += len(span)
        self._real = self._real + span.real_count()
        seen_now: dict[int | None, Span] = {}
        for window in {layer.window for layer in self.layers}:
            held = self._spans.get(window)
            seen_now[window] = whole = span if held is None else join([held, span])
            self._keep[window] = keep = None if window is None else _slots_needed(whole, window)
            self._spans[window] = whole if keep is None else whole.last(keep)
        return [seen_now[layer.window] for layer in self.layers]

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        cache_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Takes [B, K, S, H] of the new tokens of one layer; gives the [B, K, T, H] to attend to."""
        while len(self.layers) <= layer_idx:
            self.layers.append(DynamicLayer())
        layer = self.layers[layer_idx]
        return layer.append(key_states, value_states, self._keep.get(layer.window))

    def can_reserve(self, count: int, rows: int, dtype: torch.dtype) -> bool:
        """Whether `reserve` serves all layers for so many new tokens a row.

        Not if something else is held than so many rows in a dtype, without gradients; nor where sliding layers would
        forget so many of the new tokens that their memory is better given back layer by layer.
        """
        keeps = [self._keep.get(layer.window) for layer in self.layers]
        held = [layer.held for layer in self.layers if layer.held is not None]
        return all(keep is None or count - keep <= _most_forgotten(keep) for keep in keeps) and all(
            each.dtype is dtype and each.shape[0] == rows and not each.requires_grad for each in held
        )

    def reserve(self, count: int, layer_idx: int, like: Tensor) -> Reserved:
        """Like `update` of `count` new tokens a row, but their slots, the last ones, are the caller's to write.

        What is held is like `like`, [B, K, 0, H].
        """
        layer = self.layers[layer_idx]
        return layer.reserve(count, self._keep.get(layer.window), like)

    def crop(self, max_length: int) -> None:
        """Forgets all but the first `max_length` slots; a negative number forgets that many at the end.

        Raises:
            InputError: a sliding layer has already forgotten what it would have to see again.
        """
        length = max(0, self._seen + max_length if max_length < 0 else max_length)
        surplus = self._seen - length
        if surplus <= 0:
            return
        for window, span in self._spans.items():
            if len(span) < self._seen:
                raise InputError(
                    f"The cache cannot be cropped from {self._seen} to {length} tokens: layers with a window of "
                    f"{window} hold only the last {len(span)}. DynamicCache() without a config forgets nothing."
                )
        self._spans = {window: span.first(length) for window, span in self._spans.items()}
        self._real = next(iter(self._spans.values())).real_count() if self._spans else 0
        for layer in self.layers:
            layer.change(lambda states: states[:, :, :length])
        self._seen = length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replaces row b by the former row `beam_idx[b]`."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows `indices` [B'], in their order."""
        self._spans = {window: span.rows(indices) for window, span in self._spans.items()}
        if isinstance(self._real, Tensor) and self._real.shape[0] > 1:
            self._real = self._real[indices.to(self._real.device)]
        for layer in self.layers:
            layer.change(lambda states: states.index_select(0, indices.to(states.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, one after the other."""
        if self.layers and self.layers[0].keys is not None:
            rows = torch.arange(self.layers[0].keys.shape[0]).repeat_interleave(repeats)
            self.batch_select_indices(rows)

    def reset(self) -> None:
        """Forgets everything."""
        for layer in self.layers:
            layer.forget()
        self._spans, self._keep, self._seen, self._real = {}, {}, 0, 0

    @property
    def is_sliding(self) -> list[bool]:
        """Per layer: whether it forgets what its window no longer needs."""
        return [layer.is_sliding for layer in self.layers]

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer_idx: int) -> tuple[Tensor | None, Tensor | None]:
        return self.layers[layer_idx].keys, self.layers[layer_idx].values

    def __iter__(self) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        return iter(self.to_legacy_cache())


def _most_forgotten(keep: int) -> int:
    """How many slots before those that are held may still take memory."""
    return max(_LEAST_ROOM, 2 * keep)


def _slots_needed(span: Span, window: int) -> int:
    """How many of the last slots the next token may still see in a layer with this window.

    The next token sees `window - 1` real tokens back. Padding between them takes slots too, so where there may be some
    it is looked for.
    """
    if span.plain:
        return window - 1
    newest = span.position[:, -1:]
    needed = span.position > newest - (window - 1)
    first = needed.int().argmax(1)  # the first slot that is needed, per row
    return min(len(span), int(len(span) - first.min())) if window > 1 else 0
