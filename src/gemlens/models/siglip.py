"""SiglipVisionModel: pictures [I, C, height, width] in, one vector per patch [I, P, D] out (arXiv 2303.15343)."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gemlens.errors import InputError
from gemlens.models.attention import AttentionBlock, Scores, eager
from gemlens.models.configs.siglip import SiglipVisionConfig
from gemlens.models.decoder import Recording
from gemlens.models.layers import ACTIVATIONS
from gemlens.models.outputs import BaseModelOutputWithPooling
from gemlens.models.pretrained import PreTrainedModel


class SiglipEmbeddings(nn.Module):
    """Patches as vectors, plus a learned vector per place."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.image_size, self.side = config.image_size, config.patches_per_side
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Embedding(self.side**2, config.hidden_size)

    def forward(self, pixel_values: Tensor, interpolate: bool) -> Tensor:
        """[I, C, height, width] -> [I, P, D]."""
        self._check(pixel_values, interpolate)
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))  # [I, D, rows, columns]
        # Put in order once, or every layer would be slower.
        return patches.flatten(2).transpose(1, 2).contiguous() + self._places(*patches.shape[-2:])

    def _places(self, rows: int, columns: int) -> Tensor:
        """[P, D]; another grid than the trained one gets bicubic interpolation."""
        places = self.position_embedding.weight
        if (rows, columns) == (self.side, self.side):
            return places
        grid = places.view(self.side, self.side, -1).permute(2, 0, 1).unsqueeze(0)  # [1, D, side, side]
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return grid.squeeze(0).flatten(1).T

    def _check(self, pixel_values: Tensor, interpolate: bool) -> None:
        channels, size = self.patch_embedding.in_channels, self.image_size
        expected = f"[pictures, {channels}, {size}, {size}]"
        if not isinstance(pixel_values, Tensor):
            raise InputError(f"pixel_values are a {type(pixel_values).__name__}, but must be a tensor {expected}.")
        if pixel_values.dim() != 4 or pixel_values.shape[1] != channels:
            raise InputError(f"pixel_values have shape {tuple(pixel_values.shape)}, but this model takes {expected}.")
        if not interpolate and tuple(pixel_values.shape[2:]) != (size, size):
            raise InputError(
                f"pixel_values have shape {tuple(pixel_values.shape)}, but this model takes {expected}; resize the "
                "pictures, or pass interpolate_pos_encoding=True to SiglipVisionModel."
            )
        if min(pixel_values.shape[2:]) < self.patch_embedding.kernel_size[0]:
            raise InputError(f"pixel_values have shape {tuple(pixel_values.shape)}: smaller than one patch.")


class SiglipAttention(AttentionBlock):
    """Every patch sees every patch."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__(cap=None)
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.scale = self.head_dim**-0.5
        self.dropout = config.attention_dropout

    def forward(self, hidden: Tensor, weights: bool) -> tuple[Tensor, Tensor | None]:
        """[I, P, D] -> [I, P, D] and, if asked for, the weights [I, N, P, P]."""
        query, key, value = (
            states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [I, N, P, H]
            for states in (self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden))
        )
        scores = Scores(self.scale, dropout=self.dropout if self.training else 0.0)
        mixed, seen = (eager if weights else self.attend)(query, key, value, None, scores)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), seen

    def initialise(self) -> None:
        """Xavier, as in the original."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)


class SiglipMLP(nn.Module):
    """fc2(activation(fc1(x)))."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        result: Tensor = self.fc2(self.activation(self.fc1(hidden)))
        return result

    def initialise(self) -> None:
        """Xavier, as in the original."""
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)


class SiglipEncoderLayer(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SiglipMLP(config)

    def forward(self, hidden: Tensor, weights: bool) -> tuple[Tensor, Tensor | None]:
        """[I, P, D] -> [I, P, D] and, if asked for, the attention weights."""
        mixed, seen = self.self_attn(self.layer_norm1(hidden), weights)
        hidden = hidden + mixed
        return hidden + self.mlp(self.layer_norm2(hidden)), seen


class SiglipEncoder(nn.Module):
    """The layers."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([SiglipEncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False

    def forward(self, hidden: Tensor, recording: Recording) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """[I, P, D] -> the last output, all layers' inputs and the last output, all attention weights."""
        states, attentions = [hidden], []
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                hidden, weights = checkpoint(layer, hidden, recording.attentions, use_reentrant=False)
            else:
                hidden, weights = layer(hidden, recording.attentions)
            if recording.hidden_states:
                states.append(hidden)
            if weights is not None:
                attentions.append(weights)
        return hidden, states, attentions


class SiglipPoolingHead(nn.Module):
    """One learned query attends to all patches; an MLP follows."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, config.hidden_size))
        self.attention = nn.MultiheadAttention(config.hidden_size, config.num_attention_heads, batch_first=True)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SiglipMLP(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """[I, P, D] -> [I, D]."""
        probe = self.probe.expand(hidden.shape[0], -1, -1)
        pooled = self.attention(probe, hidden, hidden, need_weights=False)[0]
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]

    def initialise(self) -> None:
        """Xavier, as in the original."""
        nn.init.xavier_uniform_(self.probe)
        nn.init.xavier_uniform_(self.attention.in_proj_weight)
        nn.init.zeros_(self.attention.in_proj_bias)
        self.mlp.initialise()


class SiglipVisionTransformer(nn.Module):
    """Embeddings, layers, a last norm, and the pooling head where the config has one."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = SiglipEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.vision_use_head:
            self.head = SiglipPoolingHead(config)

    def forward(self, pixel_values: Tensor, recording: Recording, interpolate: bool) -> BaseModelOutputWithPooling:
        """[I, C, height, width] -> the documented output."""
        hidden, states, attentions = self.encoder(self.embeddings(pixel_values, interpolate), recording)
        hidden = self.post_layernorm(hidden)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=self.head(hidden) if "head" in self._modules else None,
            hidden_states=tuple(states) if recording.hidden_states else None,
            attentions=tuple(attentions) if recording.attentions else None,
        )

    def initialise(self) -> None:
        """As in the original; attention, MLP and head have rules of their own."""
        embeddings = self.embeddings
        width = embeddings.position_embedding.embedding_dim
        nn.init.normal_(embeddings.position_embedding.weight, std=1 / math.sqrt(width))
        fan_in = embeddings.patch_embedding.weight[0].numel()
        nn.init.trunc_normal_(embeddings.patch_embedding.weight, std=1 / math.sqrt(fan_in))
        nn.init.zeros_(embeddings.patch_embedding.bias)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, SiglipAttention | SiglipMLP | SiglipPoolingHead):
                module.initialise()


class SiglipVisionModel(PreTrainedModel):
    """The picture encoder on its own."""

    config_class: ClassVar[type[SiglipVisionConfig]] = SiglipVisionConfig
    config: SiglipVisionConfig
    no_split_modules: ClassVar[tuple[str, ...]] = ("SiglipEncoderLayer",)

    def __init__(self, config: SiglipVisionConfig, *, attn_implementation: str | None = None) -> None:
        super().__init__(config)
        self.vision_model = SiglipVisionTransformer(config)
        self.finish(attn_implementation)

    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Tensor, ...]:
        """Encodes pictures.

        Args:
            pixel_values: [I, C, image_size, image_size].
            output_attentions: also give each layer's attention weights.
            output_hidden_states: also give the embeddings and each layer's output.
            interpolate_pos_encoding: take pictures of other sizes too, with bicubic interpolation of the places.
            return_dict: False for a plain tuple.

        Raises:
            InputError: pictures of another shape.
        """
        recording = self.recording(output_hidden_states, output_attentions)
        return self.given(self.vision_model(pixel_values, recording, interpolate_pos_encoding), return_dict)

    def initialise(self) -> None:
        """Random weights, as in the original."""
        self.vision_model.initialise()

    def get_input_embeddings(self) -> nn.Module:
        """The convolution that turns patches into vectors."""
        return self.vision_model.embeddings.patch_embedding
