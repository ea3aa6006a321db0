"""What PaliGemma and Gemma 3 with pictures share: pictures become vectors that take the place of picture tokens.

    pixels -> vision_tower -> multi_modal_projector -> rows of the embeddings -> language_model -> lm_head

A family adds its projector and says which tokens see more than what stands before them (`blocks`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gemlens.caches.cache import Cache
from gemlens.errors import InputError
from gemlens.models.configs.multimodal import Gemma3Config, PaliGemmaConfig
from gemlens.models.decoder import Decoded, Placement, Recording
from gemlens.models.generative import GenerativeModel, logits_of
from gemlens.models.loss import IGNORED, check_labels, next_token_loss
from gemlens.models.outputs import Logits, MultimodalCausalLMOutputWithPast, MultimodalModelOutputWithPast
from gemlens.models.placement import Blocks, place
from gemlens.models.pretrained import PreTrainedModel
from gemlens.models.siglip import SiglipVisionModel
from gemlens.models.text import TEXT_MODELS, TextModel, last_tokens, last_wanted
from gemlens.spans import Span

MultimodalConfig = PaliGemmaConfig | Gemma3Config


@dataclass(frozen=True)
class Prompt:
    """The documented arguments that say what the model reads; see `MultimodalModel.forward`."""

    input_ids: Tensor | None = None
    pixel_values: Tensor | None = None
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    past_key_values: Cache | None = None
    token_type_ids: Tensor | None = None
    cache_position: Tensor | None = None
    inputs_embeds: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Read:
    """What a model without a head gives to the head above it.

    Args:
        decoded: of the decoder.
        cache: the cache, extended.
        pictures: [I, tokens, D] as `get_image_features` gives them; None without pictures.
    """

    decoded: Decoded
    cache: Cache | None
    pictures: Tensor | None


class MultimodalModel(PreTrainedModel, ABC):
    """A picture encoder, a projector and a decoder, without a head."""

    config: MultimodalConfig
    output_class: ClassVar[type[MultimodalModelOutputWithPast]]
    first_position: ClassVar[int] = 0  # what the first token is rotated by
    main_input_name: ClassVar[str] = "input_ids"
    no_split_modules: ClassVar[tuple[str, ...]] = ("SiglipEncoderLayer", "DecoderLayer")
    multi_modal_projector: nn.Module

    def __init__(self, config: MultimodalConfig, *, attn_implementation: str | dict[str, str] | None = None) -> None:
        super().__init__(config)
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.multi_modal_projector = self.make_projector()
        self.language_model = TEXT_MODELS[config.text_config.model_type](config.text_config, windows=config.windows)
        self.finish(attn_implementation)

    @abstractmethod
    def make_projector(self) -> nn.Module:
        """The module from the encoder's width to the decoder's."""

    @abstractmethod
    def blocks(self, prompt: Prompt, shape: tuple[int, int], device: torch.device, past: int) -> Blocks | None:
        """Which of the [B, S] tokens see more than what stands before them."""

    def span(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Span:
        """Who sees whom in a prompt [B, S], without reading it; see gemlens.spans and `forward`."""
        prompt = Prompt(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, labels=labels)
        return self._place(prompt, (len(input_ids), input_ids.shape[1]), input_ids.device).span

    def public_features(self, features: Tensor) -> Tensor:
        """What `get_image_features` shows of the vectors that the decoder reads."""
        return features

    def text_model(self) -> TextModel:
        """The decoder."""
        return self.language_model

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Pictures [I, C, height, width] as rows for `inputs_embeds`, [I, tokens, D]."""
        return self.public_features(self._encode(pixel_values))

    def get_placeholder_mask(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, image_features: Tensor
    ) -> Tensor:
        """Where picture vectors go: [B, S, D] bool, as in `inputs_embeds`.

        Without ids, a picture token is one whose embedding is exactly that of the picture token.

        Raises:
            InputError: there are not as many picture tokens as picture vectors.
        """
        found = self._placeholders(input_ids, inputs_embeds)
        if found is None:
            raise InputError("You must specify input_ids or inputs_embeds.")
        pictures, each, width = image_features.shape
        tokens, vectors = int(found.sum()), pictures * each
        if tokens != vectors:
            raise InputError(
                f"Image features and image tokens do not match: tokens: {tokens}, features {vectors}. Every picture "
                f"needs {each} tokens of id {self.config.image_token_index} in a row of input_ids; {pictures} pictures "
                "came."
            )
        return found.unsqueeze(-1).expand(-1, -1, width)

    def read(self, prompt: Prompt, use_cache: bool | None, recording: Recording) -> Read:
        """Embeds tokens and pictures and sends them through the decoder."""
        ids, given = prompt.input_ids, prompt.inputs_embeds
        known = ids
        if ids is not None and self.config.image_token_index >= self.language_model.embed_tokens.num_embeddings:
            known = ids.masked_fill(ids == self.config.image_token_index, 0)  # a token without a row
        embeds = self.language_model.embed(known, given)
        features = None
        if prompt.pixel_values is not None:
            features = self._encode(prompt.pixel_values).to(embeds.device, embeds.dtype)
            if features.shape[-1] != embeds.shape[-1]:
                raise InputError(
                    f"The projector gives vectors of width {features.shape[-1]}, but the decoder's width is "
                    f"{embeds.shape[-1]}: this config is for text only."
                )
            embeds = embeds.masked_scatter(self.get_placeholder_mask(ids, given, features), features)
        elif ids is not None and ids.shape[1] > 1 and bool((ids == self.config.image_token_index).any()):
            raise InputError(
                f"input_ids hold picture tokens (id {self.config.image_token_index}), but no pixel_values came."
            )
        check_labels(prompt.labels, embeds.shape[:2], self.language_model.embed_tokens.num_embeddings)
        cache = self.cache_for(prompt.past_key_values, use_cache)
        placement = self._place(prompt, (embeds.shape[0], embeds.shape[1]), embeds.device, cache)
        decoded = self.language_model.decode(embeds, placement, recording)
        shown = None if features is None else self.public_features(features)
        return Read(decoded, placement.cache, shown)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        token_type_ids: Tensor | None = None,
        cache_position: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MultimodalModelOutputWithPast | tuple[Any, ...]:
        """Reads text and pictures. See `TextModel.forward` for the arguments not named here.

        Args:
            pixel_values: [I, C, height, width], all pictures of the batch in the order of their tokens.
            token_type_ids: [B, S] or [B, cached + S]; what 0 and 1 mean is the family's, see `blocks`. Need not be
                passed: ids and labels say the same.
            labels: [B, S] ids, -100 where nothing is scored; here they only shape the mask.

        Raises:
            InputError: arguments that do not fit each other or the cache.
        """
        prompt = Prompt(
            input_ids, pixel_values, attention_mask, position_ids, past_key_values, token_type_ids, cache_position,
            inputs_embeds, labels,
        )  # fmt: skip
        read = self.read(prompt, use_cache, self.recording(output_hidden_states, output_attentions))
        decoded = read.decoded
        output = self.output_class(decoded.last, read.cache, decoded.hidden_states, decoded.attentions, read.pictures)
        return self.given(output, return_dict)

    def _encode(self, pixel_values: Tensor) -> Tensor:
        """[I, C, height, width] -> the vectors that the decoder reads, [I, tokens, D]."""
        seen = self.vision_tower.vision_model(pixel_values, Recording(), interpolate=False)
        features: Tensor = self.multi_modal_projector(seen.last_hidden_state)
        return features

    def _place(
        self, prompt: Prompt, shape: tuple[int, int], device: torch.device, cache: Cache | None = None
    ) -> Placement:
        past = prompt.past_key_values.get_seq_length() if isinstance(prompt.past_key_values, Cache) else 0
        return place(
            shape,
            device,
            attention_mask=prompt.attention_mask,
            position_ids=prompt.position_ids,
            cache=cache,
            cache_position=prompt.cache_position,
            blocks=self.blocks(prompt, shape, device, past),
            first_position=self.first_position,
        )

    def _placeholders(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor | None:
        """[B, S] bool: the picture tokens; None if they cannot be told."""
        token = self.config.image_token_index
        if input_ids is not None:
            return input_ids == token
        embedding = self.language_model.embed_tokens
        if inputs_embeds is None or token >= embedding.num_embeddings:
            return None
        row = embedding(torch.tensor(token, device=inputs_embeds.device))
        return (inputs_embeds == row).all(-1)


def new_token_types(token_type_ids: Tensor | None, shape: tuple[int, int], past: int) -> Tensor | None:
    """The types of the S new tokens, [B, S], out of types for them or for the cached ones too.

    Raises:
        InputError: another shape, or values other than 0 and 1.
    """
    if token_type_ids is None:
        return None
    batch, length = shape
    if not isinstance(token_type_ids, Tensor):
        raise InputError(f"token_type_ids are a {type(token_type_ids).__name__}, but must be a tensor {list(shape)}.")
    if (
        token_type_ids.dim() != 2
        or token_type_ids.shape[0] != batch
        or token_type_ids.shape[1] not in (length, past + length)
    ):
        raise InputError(f"token_type_ids have shape {tuple(token_type_ids.shape)}, but must be {list(shape)}.")
    types = token_type_ids[:, -length:]
    if bool(((types != 0) & (types != 1)).any()):
        raise InputError("token_type_ids hold values other than 0 and 1.")
    return types


def refuse_seen_answers(
    labels: Tensor | None, types: Tensor, seen: int, meaning: str, but: Tensor | None = None
) -> None:
    """Labels must not score tokens that see each other: the answer would be visible to what predicts it.

    Args:
        labels: [B, S] ids, -100 where nothing is scored.
        types: [B, S] of 0 and 1.
        seen: the type of tokens that see each other.
        meaning: what that type means, for the sentence.
        but: [B, S] bool, tokens that may be scored all the same.

    Raises:
        InputError: they do.
    """
    if labels is None:
        return
    visible = (labels != IGNORED) & (types == seen)
    if bool((visible if but is None else visible & ~but).any()):
        raise InputError(
            f"labels score tokens whose token_type_ids are {seen}, which means {meaning}. Such tokens see each other, "
            f"so the answer would be visible to what predicts it; give the answer type {1 - seen}, or leave "
            "token_type_ids out."
        )


class MultimodalForConditionalGeneration(GenerativeModel):
    """A multimodal model with a head over the vocabulary."""

    config: MultimodalConfig
    model_class: ClassVar[type[MultimodalModel]]
    output_class: ClassVar[type[MultimodalCausalLMOutputWithPast]]
    main_input_name: ClassVar[str] = "input_ids"
    no_split_modules: ClassVar[tuple[str, ...]] = ("SiglipEncoderLayer", "DecoderLayer")

    def __init__(self, config: MultimodalConfig, *, attn_implementation: str | dict[str, str] | None = None) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.finish(attn_implementation)

    def text_model(self) -> TextModel:
        """The decoder."""
        return self.model.language_model

    def tied_weights(self) -> dict[str, str]:
        """The head is the embedding, unless the config says no."""
        tied = self.config.text_config.tie_word_embeddings
        return {"lm_head.weight": "model.language_model.embed_tokens.weight"} if tied else {}

    @property
    def language_model(self) -> TextModel:
        """The decoder."""
        return self.model.language_model

    @property
    def vision_tower(self) -> SiglipVisionModel:
        """The picture encoder."""
        return self.model.vision_tower

    @property
    def multi_modal_projector(self) -> nn.Module:
        """From the picture encoder's width to the decoder's."""
        return self.model.multi_modal_projector

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Pictures [I, C, height, width] as rows for `inputs_embeds`, [I, tokens, D]."""
        return self.model.get_image_features(pixel_values)

    def span(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Span:
        """Who sees whom in a prompt [B, S], without reading it; see gemlens.spans and `MultimodalModel.forward`."""
        return self.model.span(input_ids, attention_mask, token_type_ids, labels)

    def step(
        self,
        input_ids: Tensor,
        cache: Cache,
        attention_mask: Tensor | None = None,
        compiled: bool = False,
        largest: int | None = None,
    ) -> Logits:
        """Reads text [B, S] behind what is cached; gives its logits. See `GenerativeModel.step`."""
        embeds = self.language_model.embed(input_ids)
        shape, first = (len(input_ids), input_ids.shape[1]), self.model.first_position
        placement = place(shape, embeds.device, attention_mask=attention_mask, cache=cache, first_position=first)
        return self._logits(self.language_model.decode(embeds, placement, Recording(), compiled).last, largest)

    @property
    def picture_tokens(self) -> tuple[int, int]:
        """The id that stands for a picture and how many of it one takes."""
        return self.config.image_token_index, self.config.tokens_per_image

    def _logits(self, hidden: Tensor, largest: int | None = None) -> Logits:
        return logits_of(self.lm_head, hidden, self.config.text_config.softcaps[1], largest)

    def get_placeholder_mask(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, image_features: Tensor
    ) -> Tensor:
        """Where picture vectors go: [B, S, D] bool. See `MultimodalModel.get_placeholder_mask`."""
        return self.model.get_placeholder_mask(input_ids, inputs_embeds, image_features)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        token_type_ids: Tensor | None = None,
        cache_position: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
    ) -> MultimodalCausalLMOutputWithPast | tuple[Any, ...]:
        """Predicts the next token at every place. See `MultimodalModel.forward` for the arguments not named here.

        Args:
            labels: [B, S] ids, -100 where nothing is scored; place i is predicted from the places before it. In
                PaliGemma they also say where the answer begins, so that the prompt cannot see it.
            logits_to_keep: give logits of the last n tokens only, or of the tokens at these indices; 0 for all.
            num_items_in_batch: divide the summed loss by this instead of the number of scored labels.

        Raises:
            InputError: arguments that do not fit each other or the cache.
        """
        prompt = Prompt(
            input_ids, pixel_values, attention_mask, position_ids, past_key_values, token_type_ids, cache_position,
            inputs_embeds, labels,
        )  # fmt: skip
        last = 0 if labels is not None else last_wanted(logits_to_keep)
        read = self.model.read(prompt, use_cache, self.recording(output_hidden_states, output_attentions, last))
        decoded = read.decoded
        logits = self._logits(last_tokens(decoded.last, logits_to_keep)).values
        loss = None if labels is None else next_token_loss(logits, labels, attention_mask, num_items_in_batch)
        output = self.output_class(loss, logits, read.cache, decoded.hidden_states, decoded.attentions, read.pictures)
        return self.given(output, return_dict)
