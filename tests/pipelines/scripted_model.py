"""A model that says what a script tells it: prompts -> answers, each token with a probability of its own."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import gemlens

SURE = 1 - 1e-6


def scripted(
    processor: Any, answers: Mapping[str, str | Sequence[str]], chances: Sequence[float] = ()
) -> Callable[..., Tensor]:
    """A `generate` of a PaliGemma.

    Args:
        processor: of the model.
        answers: to each prompt; of several answers one after the other.
        chances: of the first tokens of each answer, each above 0.5; the others are sure.
    """
    tokenizer = processor.tokenizer
    rest = {prompt: iter([said] if isinstance(said, str) else said) for prompt, said in answers.items()}

    def answer(row: Tensor) -> list[int]:
        prompt = tokenizer.decode(row, skip_special_tokens=True).strip()
        text = answers[prompt] if isinstance(answers[prompt], str) else next(rest[prompt])
        return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]

    def generate(input_ids: Tensor, *, logits_processor: Sequence[Any] = (), streamer: Any = None, **_: Any) -> Tensor:
        rows = [answer(row) for row in input_ids]
        longest = max(map(len, rows))
        said = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
        if streamer is not None:
            streamer.put(input_ids)
        for step in range(longest):
            chance = chances[step] if step < len(chances) else SURE
            scores = torch.full((len(rows), len(tokenizer)), -math.inf)
            scores[:, tokenizer.unk_token_id] = math.log(1 - chance)
            scores[torch.arange(len(rows)), said[:, step]] = math.log(chance)
            for watch in logits_processor:
                watch(input_ids, scores)
            if streamer is not None:
                streamer.put(said[:, step])
        if streamer is not None:
            streamer.end()
        return torch.cat([input_ids, said], dim=1)

    return generate


def make_all_say(
    monkeypatch: pytest.MonkeyPatch, folder: str, answers: Mapping[str, Any], chances: Sequence[float] = ()
) -> None:
    """Every PaliGemma that is loaded from now on answers by this script; `folder` is one of them."""
    generate = scripted(gemlens.AutoProcessor.from_pretrained(folder), answers, chances)
    monkeypatch.setattr(
        gemlens.PaliGemmaForConditionalGeneration, "generate", lambda self, *given, **named: generate(*given, **named)
    )
