"""Decoder layers whose products are of blocks, as native calls instead of some fifty of torch for each layer.

    FusedLayer      project (norm, products, norms of heads, rotation) -> cache -> attend -> finish (product, norm, MLP)
    FusedLayers     all of that for all layers at once, where a DynamicCache makes room for their keys
    FusedNorm       the norm after them

The layer that is replaced stays inside: it is the specification, and it does what the native calls cannot.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from gemlens.caches.cache import Cache
from gemlens.caches.dynamic import DynamicCache
from gemlens.caches.quantized import QuantizedCache
from gemlens.kernels.attention import KEPT, addresses, attend, numbers_of, reach
from gemlens.kernels.machine import machine
from gemlens.kernels.reference import width_in_bytes
from gemlens.models.decoder import Call, DecoderLayer, Layers
from gemlens.models.layers import ACTIVATIONS, RMSNorm
from gemlens.models.swap import swap
from gemlens.quantization import fused_patches
from gemlens.quantization.blocks import BlockLinear
from gemlens.quantization.fused_patches import FusedPatchLayer
from gemlens.spans import View

_PRODUCTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
             "mlp.up_proj", "mlp.down_proj")  # fmt: skip
# What is held by caches that kernels write to.
HELD: dict[type, torch.dtype] = {DynamicCache: torch.bfloat16, QuantizedCache: torch.int8}


class FusedLayer(nn.Module):
    """Takes the place of a DecoderLayer.

    Args:
        layer: one that `can_fuse`.
    """

    compiles = False

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        self.layer = layer
        attention = layer.self_attn
        self.heads = attention.q_proj.out_features // attention.head_dim
        self.kv_heads = attention.k_proj.out_features // attention.head_dim
        self._native: Any = None
        self._norms: list[Tensor] = []

    def forward(
        self,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor],
        view: View,
        cache: Cache | None,
        weights: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor | None]:
        """See DecoderLayer.forward."""
        if weights or (torch.is_grad_enabled() and hidden.requires_grad):
            return cast("tuple[Tensor, Tensor | None]", self.layer(hidden, rotation, view, cache, weights, dtype))
        attention, size = self.layer.self_attn, self.layer.self_attn.head_dim
        batch, steps, _ = hidden.shape
        x, count = hidden.float().contiguous(), len(view.query)
        query = torch.empty(batch, count, self.heads, size)
        key, value = (torch.empty(batch, steps, self.kv_heads, size) for _ in "kv")
        if count == steps:
            self._project(x, rotation, query, key, value)
        else:  # of the last layer only the last tokens are wanted
            self._project(x, rotation, None, key, value)
            x, (cos, sin) = x[:, -count:].contiguous(), rotation
            self._project(x, (cos[:, -count:], sin[:, -count:]), query, None, None)
        keys, values = key.transpose(1, 2), value.transpose(1, 2)  # [B, K, S, H]
        if cache is not None:
            kept = HELD.get(type(cache), dtype)  # others may have made room already
            put = cache.append if type(cache) is QuantizedCache else cache.update
            new = _as_kept(key, kept).transpose(1, 2), _as_kept(value, kept).transpose(1, 2)
            seen = put(*new, attention.layer_idx)  # [B, K, T, H], or more in int8
            if seen[0].shape[2] > steps:  # tokens before which nothing was seen attend to what is not rounded yet
                keys, values = seen
        if keys.dtype not in KEPT:
            keys, values = keys.float(), values.float()
        mixed = attend(query, keys, values, view, attention.scale, attention.cap)
        result = torch.empty_like(x)
        self.native().finish(batch * count, mixed.data_ptr(), x.data_ptr(), result.data_ptr())
        return result.to(hidden.dtype), None

    def _project(self, x: Tensor, rotation: tuple[Tensor, Tensor], *results: Tensor | None) -> None:
        """Queries, keys and values of x [B, S, D], to where they are wanted."""
        cos, sin = (part.float().contiguous() for part in rotation)
        places = (0 if result is None else result.data_ptr() for result in results)
        turns = cos.shape[0] * cos.shape[1]
        self.native().project(x.shape[0] * x.shape[1], x.data_ptr(), cos.data_ptr(), sin.data_ptr(), turns, *places)

    def room(self, rows: int, dtype: torch.dtype) -> Tensor:
        """Keys or values of no token, [B, K, 0, H], or more in int8."""
        size = self.layer.self_attn.head_dim
        return torch.empty(rows, self.kv_heads, 0, width_in_bytes(size) if dtype is torch.int8 else size, dtype=dtype)

    def native(self) -> Any:
        """The native layer; it holds addresses of the weights, so it is made anew when these move."""
        if self._native is None:
            layer, attention = self.layer, self.layer.self_attn
            norms = [*map(layer.get_submodule, layer.norm_order), attention.q_norm, attention.k_norm]
            self._norms = [1.0 + norm.weight.float() if isinstance(norm, RMSNorm) else torch.empty(0) for norm in norms]
            matrices = [cast(BlockLinear, layer.get_submodule(name)) for name in _PRODUCTS]
            eps = next(norm.eps for norm in norms if isinstance(norm, RMSNorm))
            self._native = machine().native.layer(  # type: ignore[union-attr]  # can_fuse asked for it
                [each.matrix for each in matrices],
                [norm.data_ptr() if norm.numel() else 0 for norm in self._norms],
                self.heads, self.kv_heads, attention.head_dim, eps, attention.scale, attention.cap or 0.0,
            )  # fmt: skip
        return self._native

    def _apply(self, fn: Any, recurse: bool = True) -> "FusedLayer":
        self._native = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def _as_kept(states: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers in a dtype, in int8 as `in_bytes` of kernels/reference.py gives them.

    Not by torch where kernels can, as its threads would be in the way of theirs after it.
    """
    native, size = machine().native, states.shape[-1]
    assert native is not None  # can_fuse asked for it
    if dtype is torch.int8:
        rounded = torch.empty(*states.shape[:-1], width_in_bytes(size), dtype=dtype)
        native.to_bytes(states.data_ptr(), states.numel() // size, size, rounded.data_ptr())
        return rounded
    if dtype is torch.bfloat16:
        rounded = torch.empty(states.shape, dtype=dtype)
        native.to_brains(states.data_ptr(), states.numel(), rounded.data_ptr())
        return rounded
    return states.to(dtype)


class FusedLayers(Layers):
    """Takes the place of `Layers`, all of them FusedLayer."""

    def forward(self, hidden: Tensor, calls: Sequence[Call], cache: Cache | None, dtype: torch.dtype) -> Tensor:
        """See Layers.forward."""
        if not self._serves(hidden, cache):
            return super().forward(hidden, calls, cache, dtype)
        assert isinstance(cache, DynamicCache)
        count = len(self) if len(calls[-1][1].query) == hidden.shape[1] else len(self) - 1
        if count:
            hidden = self._together(hidden, calls[:count], cache)
        for layer, (rotation, view) in zip([*self][count:], calls[count:], strict=True):  # of a prompt's last token
            hidden, _ = layer(hidden, rotation, view, cache, False, dtype)
        return hidden

    def _together(self, hidden: Tensor, calls: Sequence[Call], cache: DynamicCache) -> Tensor:
        """The first layers, as many as there are calls."""
        batch, steps, _ = hidden.shape
        kept = HELD[type(cache)]
        held: list[Any] = []  # what native code has addresses of
        views: list[tuple[list[int], int]] = []
        kinds: dict[int, tuple[int, int, int]] = {}  # of calls: addresses of the rotation, and the number of the view
        turns = []
        for index, (layer, call) in enumerate(zip(self, calls, strict=False)):
            if id(call) not in kinds:
                (cos, sin), view = (part.float().contiguous() for part in call[0]), call[1]
                held.append((cos, sin))
                kinds[id(call)] = cos.data_ptr(), sin.data_ptr(), -1 if view.sees_all else len(views)
                if not view.sees_all:
                    seen_by = numbers_of(view)
                    held.append(seen_by)
                    views.append((addresses(seen_by), reach(view.window)))
            keys, values, first, end = cache.reserve(steps, index, cast(FusedLayer, layer).room(batch, kept))
            row, head, slot, _ = keys.stride()
            begin = first * slot * keys.element_size()
            seen = keys.data_ptr() + begin, values.data_ptr() + begin, row, head, end - first
            turns.append((cast(FusedLayer, layer).native(), *seen, *kinds[id(call)]))
        cos = calls[0][0][0]
        result = hidden.float().clone(memory_format=torch.contiguous_format)
        machine().native.run(  # type: ignore[union-attr]  # can_fuse asked for it
            turns, KEPT.index(kept), views, batch, steps, cos.shape[0] * cos.shape[1], result.data_ptr()
        )
        return result.to(hidden.dtype)

    def _serves(self, hidden: Tensor, cache: Cache | None) -> bool:
        """Whether one call does it, for a cache to write to."""
        batch, steps, _ = hidden.shape
        if (torch.is_grad_enabled() and hidden.requires_grad) or type(cache) not in HELD:  # others keep it elsewhere
            return False
        assert isinstance(cache, DynamicCache)
        return cache.can_reserve(steps, batch, HELD[type(cache)]) and all(
            isinstance(layer, FusedLayer) for layer in self
        )


class FusedNorm(nn.Module):
    """Takes the place of the last RMSNorm, whose six operations of torch take as long as two layers of one token.

    Args:
        norm: with its weight.
    """

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.norm, self.weight = norm, 1.0 + norm.weight.detach().float()

    def forward(self, hidden: Tensor) -> Tensor:
        """See RMSNorm.forward."""
        if torch.is_grad_enabled() and hidden.requires_grad:
            return cast(Tensor, self.norm(hidden))
        x = hidden.float().contiguous()
        result, size = torch.empty_like(x), x.shape[-1]
        machine().native.norm(  # type: ignore[union-attr]  # it is there where layers were fused
            x.data_ptr(), self.weight.data_ptr(), x.numel() // size, size, self.norm.eps, result.data_ptr()
        )
        return result.to(hidden.dtype)


def can_fuse(layer: nn.Module) -> bool:
    """Whether native calls do all that a layer does."""
    if machine().native is None or not isinstance(layer, DecoderLayer):
        return False
    products = [layer.get_submodule(name) for name in _PRODUCTS]
    plain = all(isinstance(each, BlockLinear) and each.bias is None and not each.padding for each in products)
    return plain and layer.mlp.activation is ACTIVATIONS["gelu_pytorch_tanh"]


def fuse(model: nn.Module) -> None:
    """Replaces every layer of a model that can be; its weights are there already."""
    swap(model, lambda _, module: _fused(module))
    swap(model, lambda _, module: _all_fused(module))
    if any(isinstance(module, FusedLayers) for module in model.modules()):
        swap(model, lambda name, module: FusedNorm(module) if _is_last_norm(name, module) else None)  # type: ignore[arg-type]


def _fused(module: nn.Module) -> nn.Module | None:
    if can_fuse(module):
        return FusedLayer(module)  # type: ignore[arg-type]
    return FusedPatchLayer(module) if fused_patches.can_fuse(module) else None  # type: ignore[arg-type]


def _all_fused(module: nn.Module) -> nn.Module | None:
    is_fused = isinstance(module, Layers) and all(isinstance(layer, FusedLayer) for layer in module)
    return FusedLayers(module) if is_fused else None  # type: ignore[arg-type]


def _is_last_norm(name: str, module: nn.Module) -> bool:
    return isinstance(module, RMSNorm) and name.rpartition(".")[2] == "norm"
