"""The text models: token ids [B, S] in, hidden states [B, S, D] or logits [B, S, V] out."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gemlens.caches.cache import Cache
from gemlens.errors import InputError
from gemlens.models.configs.text import Gemma2Config, Gemma3TextConfig, GemmaConfig, TextConfig
from gemlens.models.decoder import Decoded, DecoderLayer, Layers, Placement, Recording, run_layers
from gemlens.models.generative import GenerativeModel, logits_of
from gemlens.models.layers import RMSNorm, Scale, ScaledEmbedding
from gemlens.models.loss import check_labels, next_token_loss
from gemlens.models.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, Logits
from gemlens.models.placement import place
from gemlens.models.pretrained import PreTrainedModel
from gemlens.spans import Span


class TextModel(PreTrainedModel):
    """A decoder without a head: embedding, layers, final norm.

    Args:
        config: its numbers.
        attn_implementation: see PreTrainedModel.
        windows: per layer, instead of the config's (PaliGemma has none).
    """

    config: TextConfig
    main_input_name: ClassVar[str] = "input_ids"
    no_split_modules: ClassVar[tuple[str, ...]] = ("DecoderLayer",)

    def __init__(
        self,
        config: TextConfig,
        *,
        attn_implementation: str | None = None,
        windows: tuple[int | None, ...] | None = None,
    ) -> None:
        super().__init__(config)
        rows, width, pad = config.vocab_size, config.hidden_size, config.pad_token_id
        pad = None if pad is None or pad < 0 else pad  # for torch, -1 would be the last row
        scaled = config.embeds_are_scaled
        self.embed_tokens = ScaledEmbedding(rows, width, pad) if scaled else nn.Embedding(rows, width, pad)
        self.scale_embeds = nn.Identity() if scaled else Scale(math.sqrt(width))
        self.layers = Layers([DecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = RMSNorm(width, config.rms_norm_eps)
        self.windows, self.ropes = config.windows if windows is None else windows, config.ropes
        self.gradient_checkpointing = False
        self.finish(attn_implementation)

    def text_model(self) -> "TextModel":
        """Itself."""
        return self

    def embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None = None) -> Tensor:
        """What the first layer takes, [B, S, D].

        `inputs_embeds` are rows of the embedding module: multiplied by sqrt(D) here for Gemma 1 and 2, already
        multiplied for Gemma 3.

        Raises:
            InputError: both or neither given, a wrong shape, ids outside the vocabulary.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("You must specify exactly one of input_ids or inputs_embeds.")
        if input_ids is not None:
            _check_ids(input_ids, self.embed_tokens.num_embeddings)
            inputs_embeds = self.embed_tokens(input_ids)
        assert inputs_embeds is not None
        width = self.embed_tokens.embedding_dim
        if inputs_embeds.dim() != 3 or inputs_embeds.shape[-1] != width or inputs_embeds.shape[1] == 0:
            raise InputError(
                f"inputs_embeds have shape {tuple(inputs_embeds.shape)}, but must be [batch, tokens, {width}]."
            )
        embeds: Tensor = self.scale_embeds(inputs_embeds)
        return embeds

    def decode(self, embeds: Tensor, placement: Placement, recording: Recording, compiled: bool = False) -> Decoded:
        """Sends what `embed` gives through the layers and the final norm."""
        hidden, inputs, attentions = run_layers(
            self.layers, self.windows, self.ropes, embeds, placement, recording,
            self.gradient_checkpointing and self.training, compiled,
        )  # fmt: skip
        last = self.norm(hidden).to(embeds.dtype)
        return Decoded(
            last,
            (*inputs, last) if recording.hidden_states else None,
            tuple(attentions) if recording.attentions else None,
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Reads tokens.

        Args:
            input_ids: [B, S] ids of the tokens that are not cached yet; or
            inputs_embeds: [B, S, D] rows of the embedding module.
            attention_mask: [B, cached + S], 0 for padding.
            position_ids: [B, S] what tokens are rotated by; by default their count of real tokens before them. Given
                without a mask and a cache, a step other than 1 begins another text packed into the same row.
            past_key_values: the cache, which is extended and given back.
            use_cache: make a cache if none is given; by default the config's, and not in training.
            output_attentions: also give attention weights (computed by eager).
            output_hidden_states: also give each layer's output.
            cache_position: [S] places of the tokens in the cache: the next ones.
            return_dict: False for a plain tuple.

        Raises:
            InputError: arguments that do not fit each other or the cache.
        """
        embeds = self.embed(input_ids, inputs_embeds)
        placement = place(
            (embeds.shape[0], embeds.shape[1]),
            embeds.device,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=self.cache_for(past_key_values, use_cache),
            cache_position=cache_position,
        )
        decoded = self.decode(embeds, placement, self.recording(output_hidden_states, output_attentions))
        output = BaseModelOutputWithPast(decoded.last, placement.cache, decoded.hidden_states, decoded.attentions)
        return self.given(output, return_dict)


class GemmaModel(TextModel):
    """Gemma 1 without a head."""

    config_class = GemmaConfig


class Gemma2Model(TextModel):
    """Gemma 2 without a head."""

    config_class = Gemma2Config


class Gemma3TextModel(TextModel):
    """Gemma 3's decoder without a head."""

    config_class = Gemma3TextConfig


TEXT_MODELS: dict[str, type[TextModel]] = {
    model.config_class.model_type: model for model in (GemmaModel, Gemma2Model, Gemma3TextModel)
}


def last_wanted(logits_to_keep: int | Tensor) -> int:
    """Of how many of the last tokens `last_tokens` takes some; 0 for all."""
    return logits_to_keep if type(logits_to_keep) is int and logits_to_keep > 0 else 0


def last_tokens(hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The hidden states whose logits are wanted: the last n of [B, S, D] (0: all), or those at the indices [n].

    Raises:
        InputError: a negative number, or an index tensor that is not one-dimensional.
    """
    if isinstance(logits_to_keep, Tensor):
        if logits_to_keep.dim() != 1:
            raise InputError(
                f"logits_to_keep has shape {tuple(logits_to_keep.shape)}, but it must be [tokens] or a number."
            )
        last = hidden.shape[1] - 1
        if logits_to_keep.numel() and not -last - 1 <= int(logits_to_keep.min()) <= int(logits_to_keep.max()) <= last:
            raise InputError(f"logits_to_keep holds indices beyond the {last + 1} tokens that came.")
        return hidden[:, logits_to_keep]
    if type(logits_to_keep) is not int or logits_to_keep < 0:
        raise InputError(f"logits_to_keep is {logits_to_keep!r}, but it must be 0 (all) or the number of last tokens.")
    return hidden[:, -logits_to_keep:] if logits_to_keep else hidden


class CausalLM(GenerativeModel):
    """A text model with a head over the vocabulary."""

    config: TextConfig
    main_input_name: ClassVar[str] = "input_ids"
    no_split_modules: ClassVar[tuple[str, ...]] = ("DecoderLayer",)

    def __init__(self, config: TextConfig, *, attn_implementation: str | None = None) -> None:
        super().__init__(config)
        self.model = TEXT_MODELS[config.model_type](config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.finish(attn_implementation)

    def text_model(self) -> TextModel:
        """The part that reads tokens."""
        return self.model

    def tied_weights(self) -> dict[str, str]:
        """The head is the embedding, unless the config says no."""
        return {"lm_head.weight": "model.embed_tokens.weight"} if self.config.tie_word_embeddings else {}

    def span(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Span:
        """Who sees whom in a prompt [B, S], without reading it; see gemlens.spans.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 0 for padding.
            token_type_ids: says nothing about text.
        """
        return place((len(input_ids), input_ids.shape[1]), input_ids.device, attention_mask=attention_mask).span

    def step(
        self,
        input_ids: Tensor,
        cache: Cache,
        attention_mask: Tensor | None = None,
        compiled: bool = False,
        largest: int | None = None,
    ) -> Logits:
        """Reads text [B, S] behind what is cached; gives its logits. See `GenerativeModel.step`."""
        embeds = self.model.embed(input_ids)
        shape = (len(input_ids), input_ids.shape[1])
        placement = place(shape, embeds.device, attention_mask=attention_mask, cache=cache)
        return self._logits(self.model.decode(embeds, placement, Recording(), compiled).last, largest)

    def _logits(self, hidden: Tensor, largest: int | None = None) -> Logits:
        return logits_of(self.lm_head, hidden, self.config.softcaps[1], largest)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Predicts the next token at every place. See `TextModel.forward` for the arguments not named here.

        Args:
            labels: [B, S] ids, -100 where nothing is scored; place i is predicted from the places before it.
            logits_to_keep: give logits of the last n tokens only, or of the tokens at these indices; 0 for all.
            num_items_in_batch: divide the summed loss by this instead of the number of scored labels.

        Raises:
            InputError: arguments that do not fit each other or the cache.
        """
        embeds = self.model.embed(input_ids, inputs_embeds)
        check_labels(labels, embeds.shape[:2], self.config.vocab_size)
        placement = place(
            (embeds.shape[0], embeds.shape[1]),
            embeds.device,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=self.cache_for(past_key_values, use_cache),
            cache_position=cache_position,
        )
        last = 0 if labels is not None else last_wanted(logits_to_keep)
        decoded = self.model.decode(embeds, placement, self.recording(output_hidden_states, output_attentions, last))
        logits = self._logits(last_tokens(decoded.last, logits_to_keep)).values
        loss = None if labels is None else next_token_loss(logits, labels, attention_mask, num_items_in_batch)
        output = CausalLMOutputWithPast(loss, logits, placement.cache, decoded.hidden_states, decoded.attentions)
        return self.given(output, return_dict)


class GemmaForCausalLM(CausalLM):
    """Gemma 1 with a head."""

    config_class = GemmaConfig


class Gemma2ForCausalLM(CausalLM):
    """Gemma 2 with a head."""

    config_class = Gemma2Config


class Gemma3ForCausalLM(CausalLM):
    """Gemma 3, text only, with a head."""

    config_class = Gemma3TextConfig


def _check_ids(input_ids: Tensor, rows: int) -> None:
    if not isinstance(input_ids, Tensor):
        raise InputError(f"input_ids are a {type(input_ids).__name__}, but must be a tensor of shape [batch, tokens].")
    if input_ids.dim() != 2 or input_ids.shape[1] == 0 or input_ids.dtype not in (torch.int64, torch.int32):
        raise InputError(
            f"input_ids have shape {tuple(input_ids.shape)} and dtype {input_ids.dtype}, but must be whole numbers of "
            "shape [batch, tokens] with at least one token."
        )
    # On an accelerator an id out of range ends the process; there single tokens of decoding are trusted, as asking
    # would make every step wait.
    if torch.compiler.is_compiling() or (input_ids.device.type != "cpu" and input_ids.shape[1] == 1):
        return
    if input_ids.device.type == "meta" or input_ids.numel() == 0:
        return
    numbers = input_ids.tolist()  # one call of torch, which takes longer than all the rest
    low, high = min(map(min, numbers)), max(map(max, numbers))
    if low < 0 or high >= rows:
        raise InputError(f"input_ids hold {low if low < 0 else high}, but the vocabulary ends at {rows - 1}.")
