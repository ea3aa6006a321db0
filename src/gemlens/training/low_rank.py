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


def low_rank(base: Tensor, hidden: Tensor, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """base + scale * dropout(hidden) A^T B^T; `base` is overwritten.

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
    """[..., in] bool, False with that probability; four from each random number, as drawing them is what takes time."""
    count = -(-hidden.numel() // 4)
    drawn = torch.empty(count, dtype=torch.int64, device=hidden.device).random_(-(2**63), None)
    noise = drawn.view(torch.int16)[: hidden.numel()].view(hidden.shape)
    return noise >= round(dropout * _STEPS) - _STEPS // 2


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, base: Tensor, hidden: Tensor, a: Tensor, b: Tensor, scale: float, kept: Tensor | None, rise: float
    ) -> Tensor:
        dtype = base.dtype
        seen = hidden.to(dtype).flatten(0, -2)
        if kept is not None:
            seen, scale = seen * kept.flatten(0, -2), scale * rise
        inner = seen @ a.to(dtype).T  # [T, R]
        base.flatten(0, -2).addmm_(inner, b.to(dtype).T, alpha=scale)
        ctx.mark_dirty(base)
        ctx.save_for_backward(hidden, a, b, inner, kept)
        ctx.scale = scale
        return base

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, a, b, inner, kept = ctx.saved_tensors
        dtype = gradient.dtype
        rows = gradient.flatten(0, -2)  # [T, out]
        thin = rows @ (b * ctx.scale).to(dtype)  # [T, R]
        wanted_hidden, wanted_a, wanted_b = ctx.needs_input_grad[1:4]
        of_hidden = of_a = of_b = None
        if wanted_b:
            of_b = (rows.T @ inner).to(b.dtype) * ctx.scale
        if wanted_a:
            seen = hidden.to(dtype).flatten(0, -2)
            of_a = (thin.T @ (seen if kept is None else seen * kept.flatten(0, -2))).to(a.dtype)
        if wanted_hidden:
            of_hidden = (thin @ a.to(dtype)).view(hidden.shape)
            of_hidden = (of_hidden if kept is None else of_hidden.mul_(kept)).to(hidden.dtype)
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
