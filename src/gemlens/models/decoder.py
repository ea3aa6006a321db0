"""The decoder of Gemma 1, 2 and 3, without a version inside: hidden states and spans in, hidden states out.

What differs between the three is decided in `__init__`: numbers come from the config, per layer; a norm that a version
does not have is `nn.Identity`. `forward` asks nothing.

The residual stream has the model's dtype, except that a float16 model carries it in float32: Gemma 3's stream passes
65504, where float16 ends, and clipping it costs accuracy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gemlens.caches.cache import Cache
from gemlens.models.attention import AttentionBlock, Scores, eager
from gemlens.models.configs.rope import RopeSpec
from gemlens.models.configs.text import TextConfig
from gemlens.models.layers import GatedMLP, RMSNorm
from gemlens.models.rope import rotate, rotations
from gemlens.spans import Span, View


@dataclass(frozen=True)
class Placement:
    """Where the S tokens of one call stand.

    Args:
        span: who sees them and whom they see.
        position_ids: [B, S] or [1, S], what they are rotated by.
        cache: what came before; None to see only themselves.
        cache_position: [S] slots that they take in the cache; None for the next ones.
    """

    span: Span
    position_ids: Tensor
    cache: Cache | None = None
    cache_position: Tensor | None = None

    def for_rows(self, count: int) -> "Placement":
        """With numbers for each row, so that shapes stay when rows that were alike are so no more."""
        position_ids = self.position_ids.expand(count, -1).contiguous()
        return replace(self, span=self.span.for_rows(count), position_ids=position_ids)


@dataclass(frozen=True)
class Recording:
    """What a caller wants to look at.

    Args:
        hidden_states, attentions: of all layers, besides the result.
        last: of how many of the last tokens the result is wanted, where nothing else is; 0 for all. The last layer then
            computes keys and values of all tokens, and everything else of these only.
    """

    hidden_states: bool = False
    attentions: bool = False
    last: int = 0


@dataclass(frozen=True)
class Decoded:
    """What a decoder gives.

    Args:
        last: [B, S, D] after the final norm.
        hidden_states: the embeddings, then every layer's output, the last after the final norm: L+1 of [B, S, D].
        attentions: L of [B, N, S, T].
    """

    last: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Attention(AttentionBlock):
    """Grouped-query attention with rotary positions; norms on queries and keys where the version has them."""

    def __init__(self, config: TextConfig, layer_idx: int) -> None:
        super().__init__(cap=config.softcaps[0])
        self.layer_idx = layer_idx
        self.head_dim = size = config.head_dim
        width, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        bias = config.attention_bias
        self.q_proj = nn.Linear(width, heads * size, bias=bias)
        self.k_proj = nn.Linear(width, kv_heads * size, bias=bias)
        self.v_proj = nn.Linear(width, kv_heads * size, bias=bias)
        self.o_proj = nn.Linear(heads * size, width, bias=bias)
        normed = config.query_key_norms
        self.q_norm = RMSNorm(size, config.rms_norm_eps) if normed else nn.Identity()
        self.k_norm = RMSNorm(size, config.rms_norm_eps) if normed else nn.Identity()
        self.scale = config.query_scale
        self.dropout = config.attention_dropout

    def forward(
        self, hidden: Tensor, rotation: tuple[Tensor, Tensor], view: View, cache: Cache | None, weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """[B, S, D] -> [B, S, D] and, if asked for, the weights [B, N, S, T]; both of the last tokens, `view.query`."""
        count = len(view.query)
        query, key, value = (
            states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, N or K, S, H]
            for states in (self.q_proj(hidden[:, -count:]), self.k_proj(hidden), self.v_proj(hidden))
        )
        cos, sin = rotation
        query = rotate(self.q_norm(query), cos[:, -count:], sin[:, -count:])
        key = rotate(self.k_norm(key), cos, sin)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        # Only the specification gives weights back; its result is the same as that of the others.
        attend = eager if weights else self.attend
        scores = Scores(self.scale, self.cap, self.dropout if self.training else 0.0)
        mixed, seen = attend(query, key, value, view, scores)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), seen


Call = tuple[tuple[Tensor, Tensor], View]  # what a layer is given: a rotation, and who sees whom


class DecoderLayer(nn.Module):
    """x += after_attention(attention(before_attention(x))); x += after_mlp(mlp(before_mlp(x))).

    The norms carry the official checkpoints' names. Gemma 1 gives the name `post_attention_layernorm` to the norm
    before its MLP, Gemma 2 and 3 to the one after attention.
    """

    def __init__(self, config: TextConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer_idx)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.activation)
        self.norm_order = (
            ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
            if config.sandwich_norms
            else ("input_layernorm", "no_norm", "post_attention_layernorm", "no_norm")
        )
        for name in self.norm_order:
            norm = nn.Identity() if name == "no_norm" else RMSNorm(config.hidden_size, config.rms_norm_eps)
            self.add_module(name, norm)

    def forward(
        self,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor],
        view: View,
        cache: Cache | None,
        weights: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor | None]:
        """The residual stream [B, S, D] -> the same of the last tokens, those of `view.query`.

        `dtype` is that of the arithmetic between the norms.
        """
        before_attention, after_attention, before_mlp, after_mlp = map(self.get_submodule, self.norm_order)
        mixed, seen = self.self_attn(before_attention(hidden).to(dtype), rotation, view, cache, weights)
        hidden = hidden[:, -len(view.query) :] + after_attention(mixed.to(hidden.dtype))
        transformed = self.mlp(before_mlp(hidden).to(dtype))
        return hidden + after_mlp(transformed.to(hidden.dtype)), seen


class Layers(nn.ModuleList):
    """The layers of a decoder. What takes its place may run them otherwise."""

    def forward(self, hidden: Tensor, calls: Sequence[Call], cache: Cache | None, dtype: torch.dtype) -> Tensor:
        """The residual stream [B, S, D] -> the same after all layers; see `DecoderLayer.forward`."""
        return _in_order([*self], hidden, calls, cache, dtype)


def run_layers(
    layers: Layers,
    windows: Sequence[int | None],
    ropes: Sequence[RopeSpec],
    hidden: Tensor,
    placement: Placement,
    recording: Recording,
    checkpointing: bool,
    compiled: bool = False,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Sends embeddings [B, S, D] through the layers: the last output, all inputs, all attention weights.

    Masks and rotations are made once for all layers that share them; rotations that are the same are one object.
    """
    dtype = hidden.dtype
    hidden = hidden.float() if dtype is torch.float16 else hidden
    if compiled:
        placement = placement.for_rows(len(hidden))
    span, cache = placement.span, placement.cache
    keys = [span] * len(layers) if cache is None else cache.extend(span, windows, placement.cache_position)
    turned = {
        id(spec): rotations(spec, placement.position_ids, dtype) for spec in {id(spec): spec for spec in ropes}.values()
    }
    kinds: dict[tuple[int, int | None, int], Call] = {}
    calls = []
    for spec, window, key in zip(ropes, windows, keys, strict=False):
        kind = id(spec), window, id(key)
        if kind not in kinds:
            kinds[kind] = turned[id(spec)], View(span, key, window)
        calls.append(kinds[kind])
    if compiled:
        for _, view in kinds.values():
            _ = view.mask  # made before, so that the compiled part takes tensors only
        return _compiled()([*layers], hidden, calls, cache, dtype), [], []
    if not (recording.hidden_states or recording.attentions or checkpointing):
        if 0 < recording.last < len(span):
            rotation, view = calls[-1]
            calls[-1] = rotation, View(span.last(recording.last), view.key, view.window)
        return layers(hidden, calls, cache, dtype), [], []
    inputs, attentions = [], []
    for layer, (rotation, view) in zip(layers, calls, strict=False):
        arguments = (hidden, rotation, view, cache, recording.attentions, dtype)
        inputs.append(hidden)
        if checkpointing:
            hidden, weights = checkpoint(layer, *arguments, use_reentrant=False)
        else:
            hidden, weights = layer(*arguments)
        if weights is not None:
            attentions.append(weights)
    return hidden, inputs, attentions


def _in_order(
    layers: Sequence[nn.Module], hidden: Tensor, calls: Sequence[Call], cache: Cache | None, dtype: torch.dtype
) -> Tensor:
    for layer, (rotation, view) in zip(layers, calls, strict=False):
        hidden, _ = layer(hidden, rotation, view, cache, False, dtype)
    return hidden


@lru_cache
def _compiled() -> Callable[..., Tensor]:
    """All layers as one compiled function; on an accelerator as one CUDA graph."""
    mode = "reduce-overhead" if torch.cuda.is_available() else None
    return torch.compile(_in_order, mode=mode, dynamic=False, fullgraph=True)
