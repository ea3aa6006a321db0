"""A decoder written once more, plainly and in float64, from the papers' formulas: who is right where two models differ.

It reads the reference's weights and config, one row at a time, and takes the mask as it is: visible[layer][query, key].
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    return states / (states.square().mean(-1, keepdim=True) + eps).sqrt() * (1 + weight)


def turn(states: Tensor, theta: float) -> Tensor:
    """Rotary embedding of [T, N, H]: pair (i, i + H/2) as one complex number, turned by position * theta^(-2i/H)."""
    half = states.shape[-1] // 2
    angles = torch.arange(len(states)).double()[:, None] * theta ** (-torch.arange(half).double() / half)
    turned = (
        torch.complex(states[..., :half], states[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    )
    return torch.cat([turned.real, turned.imag], dim=-1)


def capped(values: Tensor, cap: float | None) -> Tensor:
    return values if cap is None else cap * torch.tanh(values / cap)


def causal(length: int, window: int | None = None) -> Tensor:
    """[S, S] bool: keys at or before the query, at most `window` of them."""
    back = torch.arange(length)[:, None] - torch.arange(length)
    return (back >= 0) & (back < (window or length))


def attend(weights: Callable[[str], Tensor], config: Any, states: Tensor, visible: Tensor, theta: float) -> Tensor:
    """Attention of one layer, head by head."""
    length, size = len(states), config.head_dim
    query, key, value = (
        (states @ weights(f"self_attn.{name}_proj.weight").T).view(length, -1, size) for name in ("q", "k", "v")
    )
    if config.model_type == "gemma3_text":
        query = norm(query, weights("self_attn.q_norm.weight"), config.rms_norm_eps)
        key = norm(key, weights("self_attn.k_norm.weight"), config.rms_norm_eps)
    query, key = turn(query, theta), turn(key, theta)
    scale = getattr(config, "query_pre_attn_scalar", size) ** -0.5
    group = config.num_attention_heads // config.num_key_value_heads
    mixed = []
    for head in range(config.num_attention_heads):
        scores = query[:, head] @ key[:, head // group].T * scale
        scores = capped(scores, getattr(config, "attn_logit_softcapping", None))
        mixed.append(scores.masked_fill(~visible, -math.inf).softmax(-1) @ value[:, head // group])
    return torch.cat(mixed, dim=-1) @ weights("self_attn.o_proj.weight").T


def layer(weights: Callable[[str], Tensor], config: Any, states: Tensor, visible: Tensor, theta: float) -> Tensor:
    def normed(given: Tensor, name: str) -> Tensor:
        return norm(given, weights(f"{name}_layernorm.weight"), config.rms_norm_eps)

    sandwich = config.model_type != "gemma"
    mixed = attend(weights, config, normed(states, "input"), visible, theta)
    states = states + (normed(mixed, "post_attention") if sandwich else mixed)
    inner = normed(states, "pre_feedforward" if sandwich else "post_attention")
    gate = F.gelu(inner @ weights("mlp.gate_proj.weight").T, approximate="tanh")
    result = (gate * (inner @ weights("mlp.up_proj.weight").T)) @ weights("mlp.down_proj.weight").T
    return states + (normed(result, "post_feedforward") if sandwich else result)


def exact_logits(model: nn.Module, embeds: Tensor, visible: Mapping[str, Tensor] | Tensor) -> Tensor:
    """[S, V] float64 logits of one row.

    Args:
        model: the reference's, with a tied head.
        embeds: [S, D] what the first layer reads.
        visible: [S, S] bool, or one per layer type.
    """
    config = model.config.get_text_config()
    text = model.model.language_model if hasattr(model.model, "language_model") else model.model
    state = {name: weight.double() for name, weight in text.state_dict().items()}
    states = embeds.double()
    for index in range(config.num_hidden_layers):
        kind = config.layer_types[index] if hasattr(config, "layer_types") else "full_attention"
        local = config.model_type == "gemma3_text" and kind == "sliding_attention"
        states = layer(
            lambda name, index=index: state[f"layers.{index}.{name}"],
            config,
            states,
            visible[kind] if isinstance(visible, Mapping) else visible,
            config.rope_local_base_freq if local else config.rope_theta,
        )
    states = norm(states, state["norm.weight"], config.rms_norm_eps)
    return capped(states @ state["embed_tokens.weight"].T, getattr(config, "final_logit_softcapping", None))


@torch.no_grad()
def exact_embeds(model: nn.Module, ids: Tensor, pixels: Tensor | None = None, image: int = -1) -> Tensor:
    """[S, D] what the first layer reads of one row: embeddings times sqrt(D), pictures as the projector gives them."""
    config = model.config.get_text_config()
    embeds = model.get_input_embeddings().weight.double()[ids] * math.sqrt(config.hidden_size)
    if pixels is not None:
        features = model.get_image_features(pixels).double()
        if config.model_type != "gemma3_text":  # the reference divides, so that its decoder can multiply
            features = features * math.sqrt(config.hidden_size)
        embeds[ids == image] = features.flatten(0, 1)
    return embeds
