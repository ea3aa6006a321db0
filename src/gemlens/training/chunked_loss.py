"""Cross-entropy over a large vocabulary, a chunk of tokens at a time: the logits of all tokens never exist at once.

    hidden [N, D] -> per chunk: head -> logits [C, V] -> soft cap -> losses, gradient of hidden -> sum of the losses

1,024 tokens times 262,144 words are 1 GB of float32 logits, and their gradient as much again. A plain head is
differentiated in the forward pass, while the logits of a chunk are there. Every other head (quantized, with an adapter,
with hooks) is called chunk by chunk, and once more in the backward pass.

gemlens.models.loss is the slow truth, which the tests compare with. N tokens, C of them in a chunk.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from gemlens.models.layers import softcap

CHUNK = 256
_WIDE = 2**20  # logits that are float32 at once: 4 MB, which stay near the processor


@dataclass(frozen=True)
class Rule:
    """How logits become losses.

    Args:
        cap: of the soft cap of logits; None for no cap.
        label_smoothing: the part of each target that is spread over the whole vocabulary, as in torch's cross_entropy.
        chunk: how many tokens' logits exist at once.
    """

    cap: float | None = None
    label_smoothing: float = 0.0
    chunk: int = CHUNK


def chunked_cross_entropy(
    hidden: Tensor, targets: Tensor, head: nn.Module, rule: Rule, weights: Tensor | None = None
) -> Tensor:
    """The sum of weight times cross-entropy: one number, in float32 or, of a float64 model, in float64.

    Args:
        hidden: [N, D].
        targets: [N] ids.
        head: [C, D] -> logits [C, V].
        rule: how logits become losses.
        weights: [N], what each token's loss is multiplied by; None for 1. They get no gradient.
    """
    if weights is None:
        weights = hidden.new_ones(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
    if isinstance(head, nn.Linear) and _is_plain(head):
        arguments = (hidden, head.weight, targets, weights, rule, _dtype_of_products(hidden), torch.is_grad_enabled())
        with torch.autocast(hidden.device.type, enabled=False):
            return cast(Tensor, _InForward.apply(*arguments))  # type: ignore[no-untyped-call]
    total = hidden.sum(dtype=weights.dtype) * 0  # of no tokens, too, the loss has a gradient
    for part in _chunks(len(hidden), rule.chunk):
        given = (hidden[part], targets[part], weights[part])
        total = total + checkpoint(_chunks_loss, head, *given, rule, use_reentrant=False)
    return total


def _is_plain(head: nn.Linear) -> bool:
    """Whether the head does nothing but multiply by a matrix: no subclass, bias, hook, or weight of a special kind."""
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    special = type(head) is not nn.Linear or type(head.weight) is not nn.Parameter
    return not special and head.bias is None and head.weight.is_floating_point() and not any(hooks)


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, length, chunk)]


def _dtype_of_products(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _chunks_loss(head: nn.Module, hidden: Tensor, targets: Tensor, weights: Tensor, rule: Rule) -> Tensor:
    logits = softcap(head(hidden).to(weights.dtype), rule.cap)
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=rule.label_smoothing)
    return (losses * weights).sum()


class _InForward(torch.autograd.Function):
    """The same for a plain head; gradients for a loss that counts once are made in the forward pass, and then scaled.

    The matrix products are in `dtype`, everything else in float32, the sum of the weight's gradient too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        rule: Rule,
        dtype: torch.dtype,
        learns: bool,
    ) -> Tensor:
        of_hidden, of_weight = (learns and needed for needed in ctx.needs_input_grad[:2])
        ctx.dtypes = (hidden.dtype, weight.dtype)
        states, matrix = hidden.to(dtype), weight.to(dtype)
        total = weights.new_zeros(())
        hidden_gradient = torch.empty_like(hidden) if of_hidden else None
        weight_gradient = torch.zeros_like(weight, dtype=weights.dtype) if of_weight else None
        shape = (min(rule.chunk, len(hidden)), len(matrix))
        products = matrix.new_empty(shape)  # logits, and then their gradient; fresh memory for each would cost time
        rows = max(1, _WIDE // len(matrix))
        wide = products.new_empty((min(rows, len(products)), len(matrix)), dtype=weights.dtype)
        for part in _chunks(len(hidden), rule.chunk):
            counts = weights[part]
            logits = products[: len(counts)]
            torch.mm(states[part], matrix.t(), out=logits)
            for few in _chunks(len(counts), rows):
                slope = wide[: len(logits[few])].copy_(logits[few])
                total += (_losses_then_slope(slope, targets[part][few], rule) * counts[few]).sum()
                logits[few] = slope
            if hidden_gradient is not None:
                torch.mul(logits @ matrix, counts.unsqueeze(1), out=hidden_gradient[part])
            if weight_gradient is not None:
                _add_product(weight_gradient, logits.t(), (states[part] * counts.unsqueeze(1)).to(dtype))
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [
            None if gradient is None else torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*gradients, None, None, None, None, None)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype is left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _losses_then_slope(logits: Tensor, targets: Tensor, rule: Rule) -> Tensor:
    """Losses [C] of the head's logits [C, V], which become the derivatives of the losses by them, in place."""
    cap, spread = rule.cap, rule.label_smoothing
    bend = None
    if cap is not None:
        bend = 1 - logits.div_(cap).tanh_().square()  # tanh' = 1 - tanh^2
        logits *= cap
    rows = torch.arange(len(targets), device=targets.device)
    logits -= logits.amax(-1, keepdim=True)
    losses = -(1 - spread) * logits[rows, targets]
    if spread:
        losses -= spread * logits.mean(-1)
    sums = logits.exp_().sum(-1)
    losses += sums.log()
    logits /= sums.unsqueeze(1)
    logits[rows, targets] -= 1 - spread
    if spread:
        logits -= spread / logits.shape[1]
    if bend is not None:
        logits *= bend
    return losses
