"""Linear layers for a CPU in bfloat16: weights in the order in which oneDNN reads them, or widened for a product.

torch brings a weight into that order at every call, or multiplies without it; here it is done once. No number changes.
Processors without products of bfloat16 have no such order; there float32 is several times as fast, and rounds once.
`hasten` changes more than the order: attention rounds otherwise, and the picture encoder's MLP once less.
"""

from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemlens.errors import InputError
from gemlens.models.layers import ACTIVATIONS
from gemlens.models.siglip import SiglipMLP
from gemlens.models.swap import swap
from gemlens.quantization.fused_patches import PatchAttention, can_attend

if TYPE_CHECKING:
    from gemlens.models.pretrained import PreTrainedModel

_FEW = 8  # tokens whose products take as long as reading the weights
_WIDENED = 2**24  # weights at once: 64 MB in float32


class PackedLinear(nn.Module):
    """y = x W^T + b, for inference.

    Args:
        weight: [out, in] in bfloat16, on a CPU.
        bias: [out], or None.

    Attributes:
        packed: the weight in oneDNN's order, an opaque tensor of shape [out, in].
        compiles: False; torch.compile cannot look into such tensors.
    """

    compiles: ClassVar[bool] = False

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """[out, in], in the usual order; made at every call."""
        return cast(Tensor, self.packed.to_dense())

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return self._product(hidden, "none", "")

    def gelu(self, hidden: Tensor) -> Tensor:
        """The same through GELU with tanh, [..., in] -> [..., out], which is rounded once."""
        return self._product(hidden, "gelu", "tanh")

    def _product(self, hidden: Tensor, then: str, how: str) -> Tensor:
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(hidden, self.packed, self.bias, then, [], how))

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:
        raise InputError("A packed model is for inference and cannot be saved; save it before pack().")


class WidenedLinear(nn.Linear):
    """Takes the place of an `nn.Linear` in bfloat16 on a CPU, whose weights it shares.

    Many tokens are multiplied in float32, with a part of the weights after the other, and the products rounded.

    Args:
        layer: that one.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        wants_gradients = torch.is_grad_enabled() and (hidden.requires_grad or self.weight.requires_grad)
        if hidden.shape[:-1].numel() < _FEW or wants_gradients or hidden.dtype is not torch.bfloat16:
            return super().forward(hidden)
        result, wide = hidden.new_empty(*hidden.shape[:-1], self.out_features), hidden.float()
        step = max(1, _WIDENED // self.in_features)
        for begin in range(0, self.out_features, step):
            part = slice(begin, begin + step)
            bias = None if self.bias is None else self.bias[part].float()
            result[..., part] = F.linear(wide, self.weight[part].float(), bias)
        return result


class WidenedConvolution(nn.Conv2d):
    """Takes the place of an `nn.Conv2d` in bfloat16 on a CPU, as WidenedLinear that of a linear layer.

    Args:
        layer: that one.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        stride, padding, dilation = (cast(Any, each) for each in (layer.stride, layer.padding, layer.dilation))
        super().__init__(layer.in_channels, layer.out_channels, cast(Any, layer.kernel_size), stride, padding, dilation,
                         layer.groups, device="meta")  # fmt: skip
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, pixels: Tensor) -> Tensor:
        """[I, 3, height, width] -> [I, D, rows, columns]."""
        bias = None if self.bias is None else self.bias.float()
        return self._conv_forward(pixels.float(), self.weight.float(), bias).to(pixels.dtype)


class PackedPatchMlp(nn.Module):
    """Takes the place of a SiglipMLP with GELU with tanh whose layers are packed.

    Args:
        mlp: that one.
    """

    def __init__(self, mlp: SiglipMLP) -> None:
        super().__init__()
        self.fc1, self.fc2 = cast(PackedLinear, mlp.fc1), cast(PackedLinear, mlp.fc2)

    def forward(self, hidden: Tensor) -> Tensor:
        """See SiglipMLP.forward."""
        return cast(Tensor, self.fc2(self.fc1.gelu(hidden)))


def can_pack(model: nn.Module) -> bool:
    """Whether the model is in bfloat16 on a CPU, with a torch and a processor that multiply such matrices by oneDNN."""
    return _is_half(model) and multiplies_bfloat16()


def multiplies_bfloat16() -> bool:
    """Whether torch and this processor multiply matrices in bfloat16 by oneDNN; without, float32 is much faster."""
    return bool(torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_half(model: nn.Module) -> bool:
    return {(weight.device.type, weight.dtype) for weight in model.parameters()} == {("cpu", torch.bfloat16)}


def pack(model: nn.Module) -> list[str]:
    """Packs every linear layer of a model in place.

    The model is then for inference only: weights cannot be trained, saved, moved or resized. It takes as much memory as
    before, and once more that of the head where head and embedding share a weight.

    Returns:
        Names of the layers.

    Raises:
        InputError: see `can_pack`.
    """
    if not can_pack(model):
        raise InputError(
            "Only a model in bfloat16 on a CPU that multiplies such numbers can be packed: load it with "
            "dtype=torch.bfloat16, and ask can_pack() before."
        )
    return swap(model, _packed)


def hasten(model: "PreTrainedModel") -> None:
    """Makes a model that was just loaded answer as fast as it can here; see `pack` for what it cannot do then.

    Attention is computed by blocks, in the picture encoder by kernels, unless the model was told how. Where the
    processor has no products of bfloat16, those of many tokens are made in float32, and nothing else changes. What is
    not in bfloat16 on a CPU stays as it is.
    """
    if not can_pack(model):
        if _is_half(model):
            swap(model, _widened)
        return
    pack(model)
    swap(model, _packed_mlp)
    if model.attn_implementation is None:
        model.set_attn_implementation("blocked")
        swap(model, lambda _, module: PatchAttention(module) if can_attend(module) else None)  # type: ignore[arg-type]


def _widened(name: str, module: nn.Module) -> nn.Module | None:
    if type(module) is nn.Conv2d:
        return WidenedConvolution(module)
    return WidenedLinear(module) if type(module) is nn.Linear else None


def _packed(name: str, module: nn.Module) -> nn.Module | None:
    return PackedLinear(module.weight, module.bias) if type(module) is nn.Linear else None


def _packed_mlp(name: str, module: nn.Module) -> nn.Module | None:
    is_known = isinstance(module, SiglipMLP) and module.activation is ACTIVATIONS["gelu_pytorch_tanh"]
    return PackedPatchMlp(module) if is_known else None  # type: ignore[arg-type]
