"""The two products of LoRA that autograd would compute with more memory, or not at all.

    low_rank        base + scale * dropout(x) A^T B^T: keeps x, which its neighbours share, and [T, R] numbers
    frozen_product  x W^T with a weight that torchao has rounded: the gradient of x, whatever kernel made the product

T tokens of all rows, R rank. Products are computed in the dtype of the activations, with A and B rounded to it; their
gradients have their own dtype.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_STEPS = 2**16  # of the noise that dropout compares
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def low_rank(base: Tensor, hidden: Tensor, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """base + scale * dropout(hidden) A^T B^T.

    Args:
        base: [..., out], the product with the frozen weight.
        hidden: [..., in].
        a: [R, in].
        b: [out, R].
        scale: of the product.
        dropout: probability that an input is taken for 0, to 1/65536; the others are scaled up.
    """
    kept = _noise(hidden, dropout) if dropout else None
    result: Tensor = _LowRank.apply(base, hidden, a, b, scale, kept, 1 / (1 - _rounded(dropout)))  # type: ignore[no-untyped-call]
    return result


def frozen_product(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[..., in] -> [..., out]; gradients reach `hidden` only."""
    result: Tensor = _FrozenProduct.apply(hidden, weight, bias)  # type: ignore[no-untyped-call]
    return result


def _rounded(dropout: float) -> float:
    return round(dropout * _STEPS) / _STEPS


def _noise(hidden: Tensor, dropout: float) -> Tensor:
    """[..., in] int8 for `_masked`, 0 with that probability and else -1, which is all ones.

    Drawing is what takes time, so a random number of 64 bits serves four inputs.
    """
    drawn = torch.empty(-(-hidden.numel() // 4), dtype=torch.int64, device=hidden.device).random_(-(2**63), None)
    noise = drawn.view(torch.int16)[: hidden.numel()].view(hidden.shape)
    return torch.ge(noise, round(dropout * _STEPS) - _STEPS // 2, out=torch.empty_like(noise)).neg_().to(torch.int8)


def _masked(states: Tensor, kept: Tensor | None) -> Tensor:
    """Zeros where `kept` is 0: bit by bit, which is several times faster than a product or `where`."""
    if kept is None:
        return states
    whole = _INTEGERS[states.itemsize]
    return (states.view(whole) & kept.to(whole)).view(states.dtype)


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, base: Tensor, hidden: Tensor, a: Tensor, b: Tensor, scale: float, kept: Tensor | None, rise: float
    ) -> Tensor:
        dtype = base.dtype
        scale = scale if kept is None else scale * rise
        inner = _masked(hidden.to(dtype), kept).flatten(0, -2) @ a.to(dtype).T  # [T, R]
        ctx.save_for_backward(hidden, a, b, inner, kept)
        ctx.scale = scale
        return torch.addmm(base.flatten(0, -2), inner, b.to(dtype).T, alpha=scale).view(base.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, a, b, inner, kept = ctx.saved_tensors
        dtype = gradient.dtype
        rows = gradient.flatten(0, -2)  # [T, out]
        thin = rows @ (b * ctx.scale).to(dtype)  # [T, R]
        of_hidden = of_a = of_b = None
        if ctx.needs_input_grad[1]:
            of_hidden = _masked((thin @ a.to(dtype)).view(hidden.shape), kept).to(hidden.dtype)
        if ctx.needs_input_grad[2]:
            of_a = (thin.T @ _masked(hidden.to(dtype), kept).flatten(0, -2)).to(a.dtype)
        if ctx.needs_input_grad[3]:
            of_b = (rows.T @ inner).to(b.dtype) * ctx.scale
        return gradient, of_hidden, of_a, of_b, None, None, None


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(hidden, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # Multiplying the unit matrix reads the weight out of whatever order a kernel has it in.
        unit = torch.eye(ctx.weight.shape[1], dtype=gradient.dtype, device=gradient.device)
        return gradient @ F.linear(unit, ctx.weight).T, None, None
