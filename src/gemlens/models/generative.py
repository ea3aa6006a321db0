"""Models with a head over the vocabulary: what `generate` needs of them, and the door to it.

`generate` hands over to gemlens.generation, which holds the loops. Nothing else in gemlens.models knows of it.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gemlens.caches.cache import Cache
from gemlens.errors import InputError
from gemlens.models.layers import softcap
from gemlens.models.outputs import Logits
from gemlens.models.pretrained import PreTrainedModel
from gemlens.spans import Span

if TYPE_CHECKING:
    from gemlens.checkpoints.hub import Origin
    from gemlens.generation.config import GenerationConfig
    from gemlens.generation.generate import Generated
    from gemlens.generation.logits import LogitsProcessor
    from gemlens.generation.loop import Streamer
    from gemlens.generation.sampling import AllowedTokens
    from gemlens.generation.stopping import Decodes, StoppingCriteria


@runtime_checkable
class FindingHead(Protocol):
    """A head that finds the largest logits without computing all of them."""

    def largest(self, hidden: Tensor, count: int) -> Logits:
        """[B, S, D] -> the `count` largest logits of each token as `forward` gives them; others may be -inf."""


def logits_of(head: nn.Module, hidden: Tensor, cap: float | None, largest: int | None) -> Logits:
    """[B, S, D] -> all logits of each token or at least the `largest` ones, softly capped."""
    if largest is not None and isinstance(head, FindingHead):
        values, ids = head.largest(hidden, largest)
        return Logits(softcap(values, cap), ids)
    return Logits(softcap(head(hidden), cap))


class GenerativeModel(PreTrainedModel):
    """A model that predicts the next token at every place.

    Attributes:
        answer_type: the token type of what comes after the prompt; None where tokens have none.
    """

    answer_type: ClassVar[int | None] = None
    _generation_config: "GenerationConfig | None" = None

    @property
    def finds_largest(self) -> bool:
        """Whether the head finds the largest logits without computing all of them."""
        return isinstance(self.get_output_embeddings(), FindingHead)

    @abstractmethod
    def span(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Span:
        """Who sees whom in a prompt [B, S], without reading it; see gemlens.spans."""

    @abstractmethod
    def step(
        self,
        input_ids: Tensor,
        cache: Cache,
        attention_mask: Tensor | None = None,
        compiled: bool = False,
        largest: int | None = None,
    ) -> Logits:
        """Reads text [B, S] behind what is cached; gives its logits.

        Args:
            input_ids: [B, S].
            cache: holds what comes before; extended.
            attention_mask: [B, cached + S], 0 for padding.
            compiled: by torch.compile, for caches of fixed shapes. As long as shapes stay, it is compiled once.
            largest: how many of the largest logits of a token are needed; a head may find them without computing all.
                None: all are needed.
        """

    @property
    def picture_tokens(self) -> tuple[int, int] | None:
        """The id that stands for a picture and how many of it one takes; None for text models."""
        return None

    @property
    def max_positions(self) -> int:
        """How many tokens the model was made for."""
        return int(self.text_model().config.max_position_embeddings)

    @property
    def generation_config(self) -> "GenerationConfig":
        """What `generate` does where a call says nothing: the checkpoint's `generation_config.json`."""
        if self._generation_config is None:
            from gemlens.generation.config import GenerationConfig

            text = self.text_model().config
            own = {name: self.config.extra.get(name, getattr(text, name)) for name in _SPECIAL_TOKENS}
            self._generation_config = GenerationConfig(**{name: ids for name, ids in own.items() if _are_tokens(ids)})
        return self._generation_config

    @generation_config.setter
    def generation_config(self, value: "GenerationConfig") -> None:
        self._generation_config = value

    def read_companions(self, origin: "Origin") -> None:
        """Reads `generation_config.json`, if there is one."""
        from gemlens.checkpoints.hub import read_json
        from gemlens.generation.config import FILE, GenerationConfig

        path = origin.find(FILE)
        if path is not None:
            self.generation_config = GenerationConfig.from_dict(read_json(path)).over(self.generation_config)

    def save_companions(self, folder: Path) -> None:
        """Writes `generation_config.json`."""
        self.generation_config.save_pretrained(folder)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        *,
        generation_config: "GenerationConfig | None" = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        logits_processor: "Sequence[LogitsProcessor] | None" = None,
        stopping_criteria: "Sequence[StoppingCriteria] | None" = None,
        prefix_allowed_tokens_fn: "AllowedTokens | None" = None,
        streamer: "Streamer | None" = None,
        assistant_model: "GenerativeModel | None" = None,
        tokenizer: "Decodes | None" = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        compile: bool = False,  # noqa: A002 - what users of torch expect
        **settings: Any,
    ) -> "Generated":
        """Continues prompts.

        Args:
            input_ids: [B, S] ids, padding on the left.
            generation_config: settings; wins over the model's `generation_config`.
            attention_mask: [B, S], 0 for padding; without it, tokens of the padding id are padding.
            token_type_ids, pixel_values: as in `forward`. Pictures are encoded once, for all beams and samples.
            inputs_embeds: [B, S, D] instead of ids; then only new tokens are given back.
            past_key_values: a cache that holds the beginning of `input_ids`, as an earlier call gave it back.
            logits_processor: more functions on the scores of the next token; see gemlens.generation.logits.
            stopping_criteria: more functions that tell when a row has ended; see gemlens.generation.stopping.
            prefix_allowed_tokens_fn: (number of the prompt, ids [S] so far) -> the ids that may come next.
            streamer: is shown the prompt and every token as it comes, and told the end, also after an error.
            assistant_model: a smaller model of the same vocabulary that guesses; the tokens stay the same.
            tokenizer: needed for `stop_strings`.
            seed: of the draws, which are then the same every time; or
            generator: what draws.
            compile: compile single steps, with a static cache.
            **settings: see gemlens.generation.config.Settings; they win over everything.

        Returns:
            ids [B * num_return_sequences, S + new], rows that end early filled with padding; or, if
            `return_dict_in_generate` asks for it, a GenerateDecoderOnlyOutput or GenerateBeamDecoderOnlyOutput.

        Raises:
            TypeError: an unknown argument.
            InputError: a value out of range, arguments that exclude each other, a text that does not fit, or logits
                that are not finite.
        """
        from gemlens.generation import generate
        from gemlens.generation.reading import Prompt

        try:
            if input_ids is None and inputs_embeds is None:
                raise InputError("There is nothing to continue: pass input_ids, or inputs_embeds.")
            if input_ids is None:
                assert inputs_embeds is not None
                input_ids = torch.empty(len(inputs_embeds), 0, dtype=torch.int64, device=inputs_embeds.device)
            company = generate.Company(
                tuple(logits_processor or ()), tuple(stopping_criteria or ()), prefix_allowed_tokens_fn, streamer,
                assistant_model, tokenizer, _generator(seed, generator, self.device), compile,
            )  # fmt: skip
            prompt = Prompt(input_ids, attention_mask, token_type_ids, pixel_values, inputs_embeds)
            said = self._said(generation_config, settings)
            return generate.generate(self, prompt, said.settings(), company, past_key_values)
        finally:
            if streamer is not None:
                streamer.end()  # whoever reads the stream must not wait for ever

    def _said(self, generation_config: "GenerationConfig | None", settings: dict[str, Any]) -> "GenerationConfig":
        from gemlens.generation.config import GenerationConfig

        said = GenerationConfig(**settings)
        if generation_config is not None:
            said = said.over(generation_config)
        return said.over(self.generation_config)


_SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


def _are_tokens(ids: Any) -> bool:
    listed = ids if isinstance(ids, list) else [ids]
    return all(type(token) is int and token >= 0 for token in listed)


def _generator(seed: int | None, generator: torch.Generator | None, device: torch.device) -> torch.Generator | None:
    if seed is None:
        return generator
    if generator is not None:
        raise InputError("seed and generator both say how tokens are drawn; pass one of them.")
    if type(seed) is not int:
        raise InputError(f"seed is {seed!r}, but it must be a whole number.")
    return torch.Generator(device).manual_seed(seed)
