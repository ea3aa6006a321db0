"""The small parts of the decoders: norm, gated MLP, scaled embedding, soft cap."""

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]

_TANH_GELU = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Activation] = {
    "gelu_pytorch_tanh": _TANH_GELU,
    "gelu_new": _TANH_GELU,
    "gelu": F.gelu,
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
}


class RMSNorm(nn.Module):
    """Gemma's norm: x / rms(x) * (1 + weight), in float32 up to the last step.

    Llama multiplies by the weight after going back to the model's dtype; Gemma does it before, and that can be seen in
    bfloat16. The reference of the formula is google-deepmind/gemma.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., size] -> [..., size], of the same dtype."""
        full = hidden.float()
        full = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self.eps)
        return (full * (1.0 + self.weight.float())).type_as(hidden)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)); [B, S, D] -> [B, S, D] through [B, S, F]."""

    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)
        self.activation = ACTIVATIONS[activation]

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]; in float16 the result comes in float32."""
        gate, up = self.activation(self.gate_proj(hidden)), self.up_proj(hidden)
        if hidden.dtype is not torch.float16:
            result: Tensor = self.down_proj(gate * up)
            return result
        # float16 ends at 65504, and Gemma 3's product passes it. It is scaled by a power of two per token, which loses
        # nothing but numbers that are 2^-24 of the largest, and scaled back in float32.
        product = gate.float() * up.float()
        _, exponent = torch.frexp(product.abs().amax(-1, keepdim=True).clamp(min=1.0))
        scale = torch.ldexp(torch.ones_like(product[..., :1]), exponent)
        return self.down_proj((product / scale).half()).float() * scale


@lru_cache
def rounded(number: float, dtype: torch.dtype) -> float:
    """The number as `dtype` holds it: sqrt(2048) is 45.25 in bfloat16, and Gemma was trained with that."""
    return float(torch.tensor(number, dtype=dtype, device="cpu"))


class ScaledEmbedding(nn.Embedding):
    """Gemma 3's embedding: rows are multiplied by sqrt(D), rounded to the weight's dtype."""

    def __init__(self, rows: int, width: int, padding_idx: int | None) -> None:
        super().__init__(rows, width, padding_idx)
        self.scale = math.sqrt(width)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, S] ids -> [B, S, D]."""
        return super().forward(ids) * rounded(self.scale, self.weight.dtype)


class Scale(nn.Module):
    """Multiplies by a number, rounded to the dtype of what comes."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, hidden: Tensor) -> Tensor:
        """Any shape."""
        return hidden * rounded(self.number, hidden.dtype)


def softcap(values: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(values / cap) (Gemma 2, section 2); the values themselves without a cap."""
    return values if cap is None else torch.tanh(values / cap) * cap
