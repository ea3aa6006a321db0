"""Caches whose keys and values wait in main memory, so that a long text takes an accelerator's for one layer at a time.

On a machine without an accelerator they are the caches that they extend.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gemlens.caches.dynamic import DynamicCache, DynamicLayer
from gemlens.caches.static import StaticCache, StaticLayer

_WAITING = torch.device("cpu")


class OffloadedCache(DynamicCache):
    """A DynamicCache in main memory."""

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        cache_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Takes [B, K, S, H] of the new tokens of one layer; gives the [B, K, T, H] to attend to."""
        with _brought(self.layers[layer_idx], key_states.device):
            return super().update(key_states, value_states, layer_idx, cache_kwargs)


class OffloadedStaticCache(StaticCache):
    """A StaticCache in main memory. Its tensors move, so steps with it are not compiled."""

    is_compileable = False

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        cache_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Takes [B, K, S, H] of the new tokens of one layer; gives the [B, K, T, H] to attend to."""
        with _brought(self.layers[layer_idx], key_states.device):
            return super().update(key_states, value_states, layer_idx, cache_kwargs)


@contextmanager
def _brought(layer: DynamicLayer | StaticLayer, device: torch.device) -> Iterator[None]:
    layer.change(lambda states: states.to(device))
    yield
    layer.change(lambda states: states.to(_WAITING))
