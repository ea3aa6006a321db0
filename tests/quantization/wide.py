"""Tiny models whose layers are wide enough for groups of 32, and what quantized ones hold."""

from typing import Any

import tiny
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gemlens import Gemma3Config, PaliGemmaConfig

TEXT = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
FAMILIES = ("gemma3", "paligemma", "gemma3-pictures")
# (quant_type, its arguments): each scheme once.
SCHEMES: tuple[tuple[str, dict[str, int]], ...] = (
    ("int4_weight_only", {"group_size": 32}),
    ("int8_weight_only", {}),
    ("int8_weight_only", {"group_size": 64}),
    ("int8_dynamic_activation_int8_weight", {}),
)


def config(family: str, **changes: Any) -> Any:
    """Numbers of a model; `changes` are of its text decoder."""
    text = tiny.text_config("gemma" if family == "paligemma" else "gemma3", **{**TEXT, **changes})
    if family not in tiny.PICTURE_FAMILIES:
        return text
    vision = {"hidden_size": 64, "intermediate_size": 128}
    if family == "paligemma":
        return PaliGemmaConfig(
            tiny.vision_config(**vision), text, image_token_index=tiny.PICTURE, projection_dim=text.hidden_size
        )
    ids = {"boi_token_index": tiny.PICTURE + 1, "eoi_token_index": tiny.PICTURE + 2, "image_token_index": tiny.PICTURE}
    return Gemma3Config(text, tiny.vision_config(2, **vision), mm_tokens_per_image=tiny.TOKENS_PER_PICTURE, **ids)


def model(family: str, **changes: Any) -> Any:
    """A float model with random weights."""
    return tiny.build(tiny.MODELS[family], config(family, **changes))


def logits(of: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return of(**inputs).logits


def rounded(of: nn.Module) -> dict[str, Any]:
    """The tensors of torchao in a model, by name."""
    return {name: value for name, value in of.state_dict().items() if is_traceable_wrapper_subclass(value)}


def values(weight: Any) -> Tensor:
    """What a rounded weight stands for, as its own kernel multiplies: the product with the unit matrix."""
    unit = torch.eye(weight.shape[1], dtype=weight.dtype)
    return torch.nn.functional.linear(unit, weight).T.contiguous()
