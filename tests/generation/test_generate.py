"""What generate means, without a reference: the most probable tokens of the whole text, or the most probable text."""

from itertools import product
from typing import Any

import pytest
import tiny
import torch
from compared import attentive
from torch import Tensor


def model(family: str, **changes: Any) -> Any:
    made = tiny.fresh(family, **changes).requires_grad_(False)
    attentive(made)
    return made


def answer_types(family: str, ids: Tensor, prompt: int) -> dict[str, Tensor]:
    """PaliGemma's token types, which say without a cache where the prompt ends."""
    types = torch.zeros_like(ids)
    types[:, prompt:] = 1
    return {"token_type_ids": types} if family.startswith("paligemma") else {}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tokens_are_the_most_probable_ones_of_the_whole_text(family: str) -> None:
    made, prompt = model(family), tiny.prompt(family)
    length = prompt["input_ids"].shape[1]
    given = made.generate(**prompt, max_new_tokens=9, eos_token_id=None, suppress_tokens=[tiny.PICTURE])
    whole = {**prompt, "input_ids": given}
    logits = made(**whole, **answer_types(family, given, length), use_cache=False).logits
    logits[..., tiny.PICTURE] = -torch.inf
    assert torch.equal(given[:, length:], logits[:, length - 1 : -1].argmax(-1))


@pytest.mark.parametrize("family", ["gemma", "gemma3"])
def test_enough_beams_find_the_most_probable_of_all_texts(family: str) -> None:
    """Three tokens of six: all 216 texts are scored, and 36 beams can hold all that lead to them."""
    made, prompt = model(family, vocab_size=6, pad_token_id=0), torch.tensor([[2, 3, 4], [5, 3, 2]])
    endings = torch.tensor(list(product(range(6), repeat=3)))
    given = made.generate(
        prompt, max_new_tokens=3, eos_token_id=None, num_beams=36, num_return_sequences=5,
        attention_mask=torch.ones_like(prompt), return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    for row, start in enumerate(prompt):
        texts = torch.cat([start.expand(len(endings), -1), endings], dim=1)
        logs = made(texts).logits[:, 2:-1].log_softmax(-1).gather(-1, endings.unsqueeze(-1)).sum((1, 2))
        best = logs.topk(5)
        assert torch.equal(given.sequences[row * 5 : row * 5 + 5], texts[best.indices])
        torch.testing.assert_close(given.sequences_scores[row * 5 : row * 5 + 5], best.values / 3)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_without_settings_there_are_20_new_tokens_or_an_end(family: str) -> None:
    made, prompt = model(family), tiny.prompt(family, rows=1)
    assert made.generate(**prompt, eos_token_id=None).shape == (1, 29)
    first = int(made.generate(**prompt)[0, 9])
    assert made.generate(**prompt, eos_token_id=first).shape == (1, 10)


def test_training_mode_stays_and_no_gradients_are_kept() -> None:
    made = tiny.fresh("gemma3").train()
    given = made.generate(tiny.words(1, 4), max_new_tokens=3, return_dict_in_generate=True, output_logits=True)
    assert made.training
    assert all(parameter.grad is None for parameter in made.parameters())
    assert not any(logits.requires_grad for logits in given.logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_generates_and_its_scores_are_float32(dtype: torch.dtype) -> None:
    made = model("gemma3").to(dtype)
    said = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 3, "eos_token_id": None}
    for search in ({}, {"num_beams": 2}, {"do_sample": True, "seed": 0}):
        given = made.generate(tiny.words(2, 5), **said, **search)
        assert {scores.dtype for scores in given.scores} == {torch.float32}
