"""PaliGemma (arXiv 2407.07726) and PaliGemma 2 (arXiv 2412.03555): a block of pictures and prompt, then the answer."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from gemlens.errors import InputError
from gemlens.models.configs.multimodal import PaliGemmaConfig
from gemlens.models.loss import IGNORED
from gemlens.models.multimodal import (
    MultimodalForConditionalGeneration,
    MultimodalModel,
    Prompt,
    new_token_types,
    refuse_seen_answers,
)
from gemlens.models.outputs import PaliGemmaCausalLMOutputWithPast, PaligemmaModelOutputWithPast
from gemlens.models.placement import Blocks


class PaliGemmaProjector(nn.Module):
    """One linear layer; a token per patch."""

    def __init__(self, config: PaliGemmaConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.vision_config.hidden_size, config.projection_dim)

    def forward(self, patches: Tensor) -> Tensor:
        """[I, P, vision width] -> [I, P, D]."""
        vectors: Tensor = self.linear(patches)
        return vectors


class PaliGemmaModel(MultimodalModel):
    """PaliGemma without a head.

    Pictures and prompt all see each other; every token of the answer sees what stands before it. The answer begins
    where `token_type_ids` turn to 1, or else after the run of -100 at the start of `labels`, or else after all tokens
    of the first call: what comes later, with the cache, is answer.
    """

    config_class = PaliGemmaConfig
    output_class = PaligemmaModelOutputWithPast
    config: PaliGemmaConfig
    first_position: ClassVar[int] = 1

    def make_projector(self) -> nn.Module:
        """One linear layer."""
        return PaliGemmaProjector(self.config)

    def public_features(self, features: Tensor) -> Tensor:
        """Divided by sqrt(D), as `inputs_embeds` are multiplied by it: the decoder reads the projector's own values."""
        return features / math.sqrt(self.config.text_config.hidden_size)

    def blocks(self, prompt: Prompt, shape: tuple[int, int], device: torch.device, past: int) -> Blocks | None:
        """The prompt is one block.

        Raises:
            InputError: labels or types by which the answer could be seen, or pictures in the answer.
        """
        types = new_token_types(prompt.token_type_ids, shape, past)
        if past:
            return None
        scored = None if prompt.labels is None else prompt.labels != IGNORED
        if types is None:
            no_answer = torch.ones(shape, dtype=torch.bool, device=device)
            return Blocks(prefix=no_answer if scored is None else ~scored.cummax(1).values)
        refuse_seen_answers(prompt.labels, types, seen=0, meaning="the prompt")
        pictures = self._placeholders(prompt.input_ids, None)
        if pictures is not None and bool((pictures & (types == 1)).any()):
            raise InputError("token_type_ids are 1 for picture tokens, but 1 means the answer; pictures have type 0.")
        return Blocks(prefix=types == 0)


class PaliGemmaForConditionalGeneration(MultimodalForConditionalGeneration):
    """PaliGemma with a head."""

    config_class = PaliGemmaConfig
    model_class = PaliGemmaModel
    output_class = PaliGemmaCausalLMOutputWithPast
    answer_type = 1
