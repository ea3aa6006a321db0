"""The one Protocol between a decoder and what it has seen."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from gemlens.errors import InputError
from gemlens.spans import Span


class HasWindows(Protocol):
    """A model or its config, as far as a cache needs it."""

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Per layer: how many tokens back a query sees, itself included; None sees all."""


@runtime_checkable
class Cache(Protocol):
    """Keys and values per layer, [B, K, T, H] each, and the span of what is held.

    One forward pass calls `extend` once, with the span of its new tokens, and then `update` once per layer.
    """

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots seen so far, padding counted, whether or not a sliding layer still holds them."""

    def real_tokens(self) -> Tensor | int:
        """Real tokens seen so far: one number if the rows are alike, else [B, 1]."""

    def rows(self) -> int | None:
        """B of what is held; None before the first token."""

    def extend(self, span: Span, windows: Sequence[int | None], cache_position: Tensor | None = None) -> Sequence[Span]:
        """Takes the span of the new tokens; gives per layer the span of the keys that `update` will give.

        Args:
            windows: per layer of the model: how many tokens back a query sees; None sees all.
            cache_position: [S] slots of the new tokens; None for the next ones.

        Raises:
            InputError: the tokens do not fit, or the cache forgets what a layer still sees.
        """

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        cache_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Takes [B, K, S, H] of the new tokens of one layer; gives the [B, K, T, H] to attend to."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replaces row b by the former row `beam_idx[b]`; their number may change."""

    def reset(self) -> None:
        """Forgets everything."""


def check_windows(held: Sequence[int | None], seen: Sequence[int | None]) -> None:
    """A layer's cache must hold at least what the layer sees.

    Raises:
        InputError: it forgets earlier.
    """
    for layer, (keeps, needs) in enumerate(zip(held, seen, strict=False)):
        if keeps is not None and (needs is None or needs > keeps):
            raise InputError(
                f"The cache of layer {layer} forgets all but {keeps} tokens, but the layer sees {needs or 'all'}; make "
                "the cache from model.config, not from another model's or a part's."
            )
