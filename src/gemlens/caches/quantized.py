"""A cache that holds eight bits for each number, and for 32 of them the size of their steps: 9/16 of bfloat16's memory.

See `in_bytes` in kernels/reference.py.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gemlens.caches.dynamic import DynamicCache
from gemlens.errors import InputError
from gemlens.kernels.reference import from_bytes, in_bytes


class QuantizedCache(DynamicCache):
    """A DynamicCache in eight bits. What is given to `update` comes back rounded.

    Args:
        config: of the model; its sliding layers then keep only their window. Without it every layer keeps everything.
    """

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        cache_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Takes [B, K, S, H] of the new tokens of one layer; gives the [B, K, T, H] to attend to.

        Raises:
            InputError: gradients are asked for, which eight bits do not carry.
        """
        if key_states.requires_grad or value_states.requires_grad:
            raise InputError("A QuantizedCache carries no gradients; use torch.no_grad(), or a DynamicCache.")
        keys, values = self.append(in_bytes(key_states), in_bytes(value_states), layer_idx)
        return from_bytes(keys).to(key_states.dtype), from_bytes(values).to(value_states.dtype)

    def append(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """The same of what `in_bytes` gave, for kernels that read it so."""
        return super().update(keys, values, layer_idx)

    def __getitem__(self, layer_idx: int) -> tuple[Tensor | None, Tensor | None]:
        keys, values = (None if kept is None else from_bytes(kept) for kept in super().__getitem__(layer_idx))
        return keys, values
