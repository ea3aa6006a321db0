"""peft over the reference's models, and ours with the same adapter: the same weights, the same numbers in A and B."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
import pairs
import peft

from gemlens.training.lora import LoraSettings, add_lora, lora_layers

CASES = [str(case) for case in pairs.HEADS]
LANGUAGE = r"(.*language_model.*|model\.layers.*)\.([qkvo]|gate|up|down)_proj"  # peft's words for our "language"


@dataclass(frozen=True)
class Adapted:
    """Both models with an adapter that does something, in eval mode, and a batch for them.

    Args:
        theirs: peft's.
        ours: ours.
        rows: what both read.
    """

    theirs: Any
    ours: Any
    rows: pairs.Batch

    def logits(self) -> tuple[Tensor, Tensor]:
        """What peft and ours give for the batch."""
        with torch.no_grad():
            theirs = self.theirs(**self.rows.reference()).logits
            return theirs, self.ours(**self.rows.ours()).logits


def plain(name: str = "PaliGemmaForConditionalGeneration-Gemma") -> tuple[pairs.Pair, pairs.Batch]:
    """The reference's model of that case, ours, and a batch."""
    torch.manual_seed(0)
    case = pairs.case_named(name)
    return pairs.build(case), pairs.batch(case, padding="right")


def with_peft(model: nn.Module, targets: str | list[str] = LANGUAGE, **changes: Any) -> Any:
    """The reference's model with an adapter of peft whose B is not zero."""
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, **changes)
    adapted = peft.get_peft_model(model, config).eval()
    stir(adapted)
    return adapted


def stir(model: nn.Module, seed: int = 5) -> None:
    """Sizeable numbers in everything that learns, the same for weights of the same names and shapes."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=numbers).to(weight.dtype) * 0.1)


def adapted(name: str, **settings: Any) -> Adapted:
    """Both with the same adapter on all projections of the decoder."""
    pair, rows = plain(name)
    settings = {"rank": 4, "alpha": 6.0, "dropout": 0.0, **settings}
    theirs = with_peft(pair.reference, use_rslora=settings.get("rslora", False))
    add_lora(pair.ours, LoraSettings(**settings))
    for layer, numbers in lora_layers(pair.ours).items():
        their_layer = theirs.get_submodule(f"base_model.model.{layer}")
        with torch.no_grad():
            numbers.lora_A.copy_(their_layer.lora_A["default"].weight)
            numbers.lora_B.copy_(their_layer.lora_B["default"].weight)
    return Adapted(theirs, pair.ours, rows)
