"""A model that says what a script tells it, to try scores without weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gemlens.data.example import Example, Examples
from gemlens.generation.config import GenerationConfig


@dataclass
class Scripted:
    """Answers the prompts of `asked`, in their order, with the texts of `answers`."""

    processor: Any
    answers: Sequence[str]
    batches: list[int] = field(default_factory=list)
    device = torch.device("cpu")

    @property
    def generation_config(self) -> GenerationConfig:
        return GenerationConfig(eos_token_id=self.processor.tokenizer.eos_token_id, pad_token_id=0)

    def generate(self, input_ids: Tensor, logits_processor: Sequence[Any] = (), **_: Any) -> Tensor:
        begin = sum(self.batches)
        self.batches.append(len(input_ids))
        tokenizer = self.processor.tokenizer
        said = [
            tokenizer.encode(text, add_special_tokens=False) for text in self.answers[begin : begin + len(input_ids)]
        ]
        longest = max(map(len, said)) + 1
        rows = [ids + [tokenizer.eos_token_id] + [0] * (longest - len(ids) - 1) for ids in said]
        answer = torch.tensor(rows)
        for step in range(longest):
            scores = torch.full((len(rows), len(tokenizer)), -1e9)
            scores[torch.arange(len(rows)), answer[:, step]] = 0.0
            for watch in logits_processor:
                watch(input_ids, scores)
        return torch.cat([input_ids, answer], dim=1)


def white(width: int = 64, height: int = 48) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


def examples(*pairs: tuple[str, str]) -> Examples:
    """One white picture for each (prompt, right answer)."""
    return Examples([Example(f"made:{number}", (white(),), *pair) for number, pair in enumerate(pairs)])
