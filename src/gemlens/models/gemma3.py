"""Gemma 3 with pictures (arXiv 2503.19786): causal text, and every picture one block."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemlens.caches.cache import Cache
from gemlens.errors import InputError
from gemlens.models.configs.multimodal import Gemma3Config
from gemlens.models.layers import RMSNorm
from gemlens.models.loss import classification_loss
from gemlens.models.multimodal import (
    MultimodalForConditionalGeneration,
    MultimodalModel,
    Prompt,
    new_token_types,
    refuse_seen_answers,
)
from gemlens.models.outputs import (
    Gemma3CausalLMOutputWithPast,
    Gemma3ModelOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from gemlens.models.placement import Blocks
from gemlens.models.pretrained import PreTrainedModel
from gemlens.models.text import TextModel


class Gemma3Projector(nn.Module):
    """Averages squares of patches, norms, and multiplies by a matrix."""

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        vision = config.vision_config
        self.side, self.tokens_per_side = vision.patches_per_side, int(config.mm_tokens_per_image**0.5)
        self.mm_input_projection_weight = nn.Parameter(torch.zeros(vision.hidden_size, config.text_config.hidden_size))
        self.mm_soft_emb_norm = RMSNorm(vision.hidden_size, vision.layer_norm_eps)

    def forward(self, patches: Tensor) -> Tensor:
        """[I, P, vision width] -> [I, tokens, D].

        Raises:
            InputError: the config asks for more tokens than there are patches.
        """
        square = self.side // self.tokens_per_side
        if square < 1:
            raise InputError(
                f"config.mm_tokens_per_image is {self.tokens_per_side**2}, but a picture has {self.side**2} patches."
            )
        grid = patches.transpose(1, 2).reshape(
            len(patches), patches.shape[2], self.side, self.side
        )  # [I, vision width, side, side]
        pooled = F.avg_pool2d(grid, kernel_size=square, stride=square).flatten(2).transpose(1, 2)
        return (self.mm_soft_emb_norm(pooled) @ self.mm_input_projection_weight).type_as(patches)


class Gemma3Model(MultimodalModel):
    """Gemma 3 without a head.

    Text is causal; all tokens of one picture see each other. A picture is a run of `token_type_ids` of 1, or else of
    picture tokens; a run of several pictures' tokens is cut into pictures.
    """

    config_class = Gemma3Config
    output_class = Gemma3ModelOutputWithPast
    config: Gemma3Config

    def make_projector(self) -> nn.Module:
        """Pooling, norm and matrix."""
        return Gemma3Projector(self.config)

    def blocks(self, prompt: Prompt, shape: tuple[int, int], device: torch.device, past: int) -> Blocks | None:
        """Every picture is one block.

        Raises:
            InputError: labels of words among the picture tokens, which could be seen.
        """
        types = new_token_types(prompt.token_type_ids, shape, past)
        placeholders = self._placeholders(prompt.input_ids, prompt.inputs_embeds)
        if types is not None and placeholders is not None:  # scoring a placeholder is idle, but shows no answer
            refuse_seen_answers(prompt.labels, types, seen=1, meaning="a picture", but=placeholders)
        pictures = placeholders if types is None else types == 1
        if pictures is None or not bool(pictures.any()):
            return None
        starts = _run_starts(pictures)
        if placeholders is not None:
            starts = starts | _every(self.config.tokens_per_image, placeholders)
        return Blocks(pictures=pictures, picture_starts=starts & pictures)


class Gemma3ForConditionalGeneration(MultimodalForConditionalGeneration):
    """Gemma 3 with pictures and a head."""

    config_class = Gemma3Config
    model_class = Gemma3Model
    output_class = Gemma3CausalLMOutputWithPast
    answer_type = 0


class Gemma3ForSequenceClassification(PreTrainedModel):
    """Gemma 3 with pictures and a head over classes, at the last token of a row."""

    config_class = Gemma3Config
    config: Gemma3Config
    main_input_name = "input_ids"
    no_split_modules = ("SiglipEncoderLayer", "DecoderLayer")

    def __init__(self, config: Gemma3Config, *, attn_implementation: str | dict[str, str] | None = None) -> None:
        super().__init__(config)
        if config.id2label is None:
            config.num_labels = config.num_labels  # names them, as examples print names
        self.model = Gemma3Model(config)
        self.score = nn.Linear(config.text_config.hidden_size, config.num_labels, bias=False)
        self.finish(attn_implementation)

    @property
    def num_labels(self) -> int:
        """How many classes."""
        return self.score.out_features

    def text_model(self) -> TextModel:
        """The decoder."""
        return self.model.language_model

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutputWithPast | tuple[object, ...]:
        """Classifies rows. See `MultimodalModel.forward` for the arguments not named here.

        Args:
            labels: [B] class numbers, or [B] or [B, num_labels] numbers for regression or several classes at once
                (`config.problem_type`, or told by their dtype).

        Raises:
            InputError: arguments that do not fit each other, or several rows without a padding token.
        """
        prompt = Prompt(
            input_ids, pixel_values, attention_mask, position_ids, past_key_values, token_type_ids, cache_position,
            inputs_embeds,
        )  # fmt: skip
        read = self.model.read(prompt, use_cache, self.recording(output_hidden_states, output_attentions))
        last = read.decoded.last
        rows = torch.arange(last.shape[0], device=last.device)
        logits = self.score(last[rows, self._last_tokens(prompt, last)])
        loss = None
        if labels is not None:
            loss, self.config.problem_type = classification_loss(logits, labels, self.config.problem_type)
        output = SequenceClassifierOutputWithPast(
            loss, logits, read.cache, read.decoded.hidden_states, read.decoded.attentions
        )
        return self.given(output, return_dict)

    def _last_tokens(self, prompt: Prompt, last: Tensor) -> Tensor:
        """[B] index of each row's last real token: by the mask, else by the padding id, else the last."""
        batch, length = last.shape[:2]
        ids, pad = prompt.input_ids, self.config.text_config.pad_token_id
        places = torch.arange(length, device=last.device)
        if prompt.attention_mask is not None:
            real = prompt.attention_mask[:, -length:].to(last.device) != 0
        elif ids is not None and pad is not None:
            real = ids != pad
        elif batch > 1 and ids is not None:
            raise InputError(
                "Several rows cannot be classified without config.text_config.pad_token_id or attention_mask."
            )
        else:
            return places[-1:].expand(batch)
        return (places * real).argmax(-1)


def _run_starts(marked: Tensor) -> Tensor:
    """[B, S] bool: marked tokens whose left neighbour is not."""
    return marked & ~F.pad(marked, (1, 0))[:, :-1]


def _every(count: int, marked: Tensor) -> Tensor:
    """[B, S] bool: in every run of marked tokens, each `count`-th from its start."""
    places = torch.arange(marked.shape[1], device=marked.device).expand(marked.shape)
    start = torch.where(_run_starts(marked), places, 0).cummax(1).values
    return marked & ((places - start) % count == 0)
