"""Who changes which weight: AdamW all of them, or Muon the matrices of the layers and AdamW the rest.

Muon (https://kellerjordan.github.io/posts/muon, scaled as in https://arxiv.org/abs/2502.16982 so that AdamW's rates and
decay fit) makes every step of a matrix orthogonal. Where a whole model learns from nothing, far fewer steps are needed.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from gemlens.errors import InputError
from gemlens.training.settings import Settings

# What each remembers of a weight, in tensors of the weight's shape.
_MEMORY = {"AdamW": ("exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that learn, by name; a shared one once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def optimizers_of(model: nn.Module, settings: Settings) -> list[Optimizer]:
    """What changes the weights that learn; only matrices decay, and no embedding of tokens.

    Raises:
        InputError: nothing learns, or this torch has no Muon.
    """
    weights = learning(model)
    if not weights:
        raise InputError("No weight of the model learns; name parts in train.")
    if settings.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise InputError(f"torch {torch.__version__} has no Muon; install torch 2.9 or newer, or use 'adamw'.")
    matrices = {name for name, weight in weights.items() if weight.dim() == 2 and ".layers." in name}
    hidden = matrices if settings.optimizer == "muon" else set()
    found: list[Optimizer] = []
    if others := {name: weight for name, weight in weights.items() if name not in hidden}:
        found.append(_adamw(others, settings))
    if hidden:
        found.append(
            torch.optim.Muon(
                [weights[name] for name in weights if name in hidden],
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return found


def update(optimizers: Iterable[Optimizer], learning_rate: float) -> None:
    """One update of the weights; gradients are forgotten."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def memory_of(optimizers: Sequence[Optimizer], weight: nn.Parameter) -> tuple[Optimizer, tuple[str, ...]]:
    """Which optimizer changes a weight, and the names of what it remembers of it."""
    (optimizer,) = (
        each for each in optimizers for group in each.param_groups if any(weight is own for own in group["params"])
    )
    return optimizer, _MEMORY[type(optimizer).__name__]


def _adamw(weights: dict[str, nn.Parameter], settings: Settings) -> torch.optim.AdamW:
    decaying = {name for name, weight in weights.items() if weight.dim() > 1 and "embed" not in name}
    groups = [
        {"params": [weight for name, weight in weights.items() if name in part], "weight_decay": decay}
        for decay, part in ((settings.weight_decay, decaying), (0.0, weights.keys() - decaying))
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )
