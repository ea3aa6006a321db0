"""Tiny models of every family, whose weights are large enough that a wrong mask or a lost key shows in the logits."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from gemlens import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)
from gemlens.models.configs.text import TextConfig
from gemlens.models.pretrained import PreTrainedModel

VOCABULARY = 40
PICTURE = 36  # the id of the picture token
WORDS = range(3, 36)  # ids that mean nothing special
IMAGE_SIZE, TOKENS_PER_PICTURE = 8, 4
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
VISION = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "vision_use_head": False,
}

TEXT_FAMILIES = ("gemma", "gemma2", "gemma3")
PICTURE_FAMILIES = ("paligemma", "paligemma2", "gemma3-pictures")
FAMILIES = TEXT_FAMILIES + PICTURE_FAMILIES


def text_config(family: str, window: int = 4, **changes: Any) -> TextConfig:
    """Numbers of a text decoder; its layers are, where the family has windows: sliding, full, sliding."""
    if family == "gemma":
        return GemmaConfig(**{**TEXT, **changes})
    if family == "gemma2":
        caps = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}
        return Gemma2Config(**{**TEXT, "query_pre_attn_scalar": 8, "sliding_window": window, **caps, **changes})
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    own = {"query_pre_attn_scalar": 8, "sliding_window": window, "layer_types": types, "rope_local_base_freq": 100.0}
    return Gemma3TextConfig(**{**TEXT, **own, **changes})


def vision_config(patch_size: int = 4, **changes: Any) -> SiglipVisionConfig:
    """Numbers of a picture encoder: pictures of 8 x 8 pixels, 4 patches unless told."""
    return SiglipVisionConfig(**{**VISION, "patch_size": patch_size, **changes})


def config(family: str, window: int = 4, **changes: Any) -> Any:
    """Numbers of a model of any family; `changes` are of its text decoder. A picture takes 4 tokens."""
    if family in TEXT_FAMILIES:
        return text_config(family, window, **changes)
    if family == "gemma3-pictures":
        text = text_config("gemma3", window, **changes)
        ids = {"boi_token_index": PICTURE + 1, "eoi_token_index": PICTURE + 2, "image_token_index": PICTURE}
        return Gemma3Config(text, vision_config(patch_size=2), mm_tokens_per_image=TOKENS_PER_PICTURE, **ids)
    text = text_config("gemma" if family == "paligemma" else "gemma2", window, **changes)
    return PaliGemmaConfig(vision_config(), text, image_token_index=PICTURE, projection_dim=text.hidden_size)


MODELS: dict[str, type[PreTrainedModel]] = {
    "gemma": GemmaForCausalLM,
    "gemma2": Gemma2ForCausalLM,
    "gemma3": Gemma3ForCausalLM,
    "paligemma": PaliGemmaForConditionalGeneration,
    "paligemma2": PaliGemmaForConditionalGeneration,
    "gemma3-pictures": Gemma3ForConditionalGeneration,
}


def spread_weights(model: nn.Module, seed: int = 0) -> None:
    """Random weights that neither vanish nor explode: columns of length 1, norms within 1 +- 0.3, no zero biases."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            fan_in = 1 if "embed" in name and weight.dim() == 2 else weight[0].numel()
            std = 0.3 if weight.dim() == 1 else fan_in**-0.5
            weight.copy_(torch.randn(weight.shape, generator=numbers) * std)


def build(model_class: type[PreTrainedModel], model_config: Any, **arguments: Any) -> Any:
    """A model in eval mode; the same weights for the same shapes."""
    model = model_class(model_config, **arguments)
    spread_weights(model)
    return model.eval()


def fresh(family: str, window: int = 4, attn_implementation: Any = None, **changes: Any) -> Any:
    """A model with a head that the caller may change; `changes` are of its text config."""
    return build(MODELS[family], config(family, window, **changes), attn_implementation=attn_implementation)


@lru_cache(maxsize=64)
def model(family: str, window: int = 4) -> Any:
    """A shared model with a head, which nobody may change."""
    return fresh(family, window).requires_grad_(False)


def words(*shape: int, seed: int = 0) -> Tensor:
    """Random ids of ordinary tokens."""
    return torch.randint(WORDS.start, WORDS.stop, shape, generator=torch.Generator().manual_seed(seed))


def pixels(count: int, seed: int = 0) -> Tensor:
    """Random pictures [count, 3, 8, 8]."""
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def prompt(family: str, rows: int = 2, length: int = 9, pictures: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of a call: text, with `pictures` pictures at the start of each row where the family has any."""
    ids = words(rows, length, seed=seed)
    if family in TEXT_FAMILIES or not pictures:
        return {"input_ids": ids}
    ids[:, : pictures * TOKENS_PER_PICTURE] = PICTURE
    return {"input_ids": ids, "pixel_values": pixels(rows * pictures, seed=seed)}
