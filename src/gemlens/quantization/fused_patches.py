"""The picture encoder on a CPU's kernels; what is replaced stays inside: it gives attention weights and gradients.

FusedPatchLayer     a layer whose products are of blocks, as one native call
PatchAttention      between products of torch, attention as native call: scores never are a matrix in memory
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from gemlens.kernels.attention import attend
from gemlens.kernels.machine import machine
from gemlens.models.attention import blocked
from gemlens.models.layers import ACTIVATIONS
from gemlens.models.siglip import SiglipAttention, SiglipEncoderLayer
from gemlens.quantization.blocks import BlockLinear

_PRODUCTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
_NORMS = ("layer_norm1", "layer_norm2")


class FusedPatchLayer(nn.Module):
    """Takes the place of a SiglipEncoderLayer.

    Args:
        layer: one that `can_fuse`.
    """

    def __init__(self, layer: SiglipEncoderLayer) -> None:
        super().__init__()
        self.layer = layer
        self._native: Any = None
        self._held: list[Tensor] = []  # what the native layer has addresses of

    def forward(self, hidden: Tensor, weights: bool) -> tuple[Tensor, Tensor | None]:
        """See SiglipEncoderLayer.forward."""
        if weights or (torch.is_grad_enabled() and hidden.requires_grad):
            return cast("tuple[Tensor, Tensor | None]", self.layer(hidden, weights))
        x = hidden.float().contiguous()
        result = torch.empty_like(x)
        self.native().run(*x.shape[:2], x.data_ptr(), result.data_ptr())
        return result.to(hidden.dtype), None

    def native(self) -> Any:
        """The native layer; it holds addresses of the weights, so it is made anew when these move."""
        if self._native is None:
            products = [cast(BlockLinear, self.layer.get_submodule(name)) for name in _PRODUCTS]
            norms = [cast(nn.LayerNorm, self.layer.get_submodule(name)) for name in _NORMS]
            self._held = [each.float() for norm in norms for each in (norm.weight, norm.bias)]
            biases = [cast(Tensor, product.bias).float() for product in products]
            numbers = [each.data_ptr() for each in self._held]
            attention = self.layer.self_attn
            self._native = machine().native.patch_layer(  # type: ignore[union-attr]  # can_fuse asked for it
                [(*product.matrix, bias.data_ptr()) for product, bias in zip(products, biases, strict=True)],
                [(numbers[0], numbers[1]), (numbers[2], numbers[3])],
                attention.q_proj.out_features // attention.head_dim, norms[0].eps,
            )  # fmt: skip
            self._held += biases
        return self._native

    def _apply(self, fn: Any, recurse: bool = True) -> "FusedPatchLayer":
        self._native = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class PatchAttention(nn.Module):
    """Takes the place of a SiglipAttention, and of "blocked" there; told to attend otherwise, it does that.

    Args:
        attention: whose products these are; one that `can_attend`.
    """

    def __init__(self, attention: SiglipAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hidden: Tensor, weights: bool) -> tuple[Tensor, Tensor | None]:
        """See SiglipAttention.forward."""
        own = self.attention
        if own.attend is not blocked or weights or (torch.is_grad_enabled() and hidden.requires_grad):
            return cast("tuple[Tensor, Tensor | None]", own(hidden, weights))
        query, key, value = (
            product(hidden).unflatten(-1, (-1, own.head_dim))  # [I, P, N, H]
            for product in (own.q_proj, own.k_proj, own.v_proj)
        )
        if key.dtype is not torch.bfloat16:
            key, value = key.float(), value.float()
        mixed = attend(query.float(), key.transpose(1, 2), value.transpose(1, 2), None, own.scale)
        return own.out_proj(mixed.flatten(2).to(hidden.dtype)), None


def can_fuse(layer: nn.Module) -> bool:
    """Whether one native call does all that a layer does."""
    if machine().native is None or not isinstance(layer, SiglipEncoderLayer):
        return False
    products = [layer.get_submodule(name) for name in _PRODUCTS]
    plain = all(isinstance(each, BlockLinear) and each.bias is not None for each in products)
    plain = plain and not any(each.padding for each in products[:-1])
    return plain and layer.mlp.activation is ACTIVATIONS["gelu_pytorch_tanh"]


def can_attend(attention: nn.Module) -> bool:
    """Whether a kernel does what a module does between its products."""
    return machine().native is not None and isinstance(attention, SiglipAttention)
