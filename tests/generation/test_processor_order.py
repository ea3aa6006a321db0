"""Settings ask for the reference's processors, in its order, with its numbers."""

import random
from typing import Any

import torch
from compared import GEMMA_3, pair
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.logits_process import LogitsProcessor

from gemlens.generation.config import Settings
from gemlens.generation.sampling import Length, processors_for

PROMPT, MOST, VOCABULARY = 6, 14, 99
CHOICES: dict[str, list[Any]] = {  # each is left out in half of the cases
    "repetition_penalty": [1.0, 1.3], "no_repeat_ngram_size": [0, 2], "bad_words_ids": [[[5], [6, 7]]],
    "min_length": [0, 9], "min_new_tokens": [0, 2], "forced_bos_token_id": [4], "forced_eos_token_id": [3, [3, 8]],
    "suppress_tokens": [[10, 11]], "begin_suppress_tokens": [[12, 13]], "renormalize_logits": [True, False],
    "do_sample": [True, False], "temperature": [1.0, 0.6], "top_k": [0, 7, 50], "top_p": [0.8, 1.0], "min_p": [0.01],
    "typical_p": [0.9, 1.0], "num_beams": [1, 3], "eos_token_id": [1, [1, 5, 9]],
}  # fmt: skip


class Custom(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.roll(1, dims=-1)


def theirs(said: dict[str, Any], custom: list[Any], allowed: Any, prompt: int) -> Any:
    model = pair(GEMMA_3).reference
    config = GenerationConfig(**{"pad_token_id": 0, **said, "max_length": MOST})
    model._prepare_special_tokens(config, device="cpu")
    return model._get_logits_processor(
        config, prompt, prefix_allowed_tokens_fn=allowed, logits_processor=custom, device="cpu"
    )


def names(processors: Any) -> list[str]:
    return [type(processor).__name__ for processor in processors]


def test_any_settings_give_the_references_list() -> None:
    dice, seen = random.Random(0), set()
    for _ in range(400):
        said = {name: dice.choice(values) for name, values in CHOICES.items() if dice.random() < 0.5}
        if said.get("min_length") and said.get("min_new_tokens") is not None:
            del said["min_length"]  # both mean the same there: generate makes one of the other
        custom = [Custom()] if dice.random() < 0.3 else []
        allowed = (lambda row, ids: range(row, 90)) if dice.random() < 0.3 else None
        ours = processors_for(Settings(**said), Length(PROMPT, MOST), custom, allowed)
        expected = theirs(said, list(custom), allowed, PROMPT)
        assert names(ours) == names(expected), said
        seen |= set(names(ours))
        rows = said.get("num_beams", 1)
        for length in (PROMPT, PROMPT + 2, MOST - 1):
            ids, scores = torch.randint(14, VOCABULARY, (2 * rows, length)), torch.randn(2 * rows, VOCABULARY)
            assert torch.equal(ours(ids, scores.clone()), expected(ids, scores.clone())), said
    assert len(seen) == 17  # all but the bases


def test_begin_suppressed_tokens_wait_for_a_forced_first_one() -> None:
    said = {"forced_bos_token_id": 4, "begin_suppress_tokens": [12, 13]}
    for prompt, bos in ((1, said), (2, said), (1, {"begin_suppress_tokens": [12]})):
        ours, expected = processors_for(Settings(**bos), Length(prompt, 9)), theirs(bos, [], None, prompt)
        for length in range(1, 4):
            ids, scores = torch.full((1, length), 20), torch.randn(1, VOCABULARY)
            assert torch.equal(ours(ids, scores), expected(ids, scores))


def test_no_settings_ask_for_nothing() -> None:
    assert processors_for(Settings(), Length(PROMPT, MOST)) == []
    assert processors_for(Settings(temperature=0.5, top_k=3, top_p=0.5), Length(PROMPT, MOST)) == []


def test_at_temperature_zero_nothing_is_drawn() -> None:
    assert names(processors_for(Settings(do_sample=True, temperature=0.0, top_k=3), Length(PROMPT, MOST))) == []
