"""Where the reference obeys a setting in a way that nobody means, or goes on where it should stop: both are shown."""

import math
from typing import Any

import pytest
import torch
import transformers
from compared import GEMMA, GEMMA_3, RECORDED, SETTINGS, TEXTS, build, ours, pair, rows, theirs
from pairs import Case

import gemlens

PROMPT = torch.tensor([[5, 6, 7]])


def both(case: Case = GEMMA_3, **arguments: Any) -> tuple[Any, Any]:
    """What the two libraries' generate do with the same arguments, yet to be called."""
    arguments = {"input_ids": PROMPT, **arguments}
    there, here = pair(case).reference.generate, pair(case).ours.generate
    return (lambda: there(**{**SETTINGS, **arguments})), (lambda: here(**{**SETTINGS, **arguments}))


@pytest.mark.parametrize("case", TEXTS, ids=str)
def test_a_repetition_penalty_counts_padding_there_and_not_here(case: Case) -> None:
    """A padded row has the scores that it has alone; there, that of the padding token, which is 0, is another."""
    batch = rows(case, padding="left", pictures=(0, 0, 0), text=20)
    assert not batch.real[2, 0]
    settings = {**RECORDED, "repetition_penalty": 3.0, "pad_token_id": 0, "eos_token_id": None, "suppress_tokens": None}
    alone = theirs(case, batch.row(2), **settings).scores[0][0]
    mine, other = (library(case, batch, **settings).scores[0][2] for library in (ours, theirs))
    torch.testing.assert_close(mine, alone, atol=1e-4, rtol=1e-4)
    assert (other - alone).abs().argmax() == 0
    assert abs(float(other[0] - alone[0])) > 0.1


def test_temperature_zero_is_refused_there_and_greedy_here() -> None:
    there, here = both(do_sample=True, temperature=0.0)
    with pytest.raises(ValueError, match="strictly positive"):
        there()
    assert torch.equal(here(), both(do_sample=False)[1]())


def test_a_text_that_cannot_fit_is_begun_there_and_refused_here() -> None:
    """The models read 128 tokens."""
    long = torch.full((1, 120), 5)
    settings: dict[str, Any] = {"input_ids": long, "attention_mask": torch.ones_like(long), "eos_token_id": None}
    there, here = both(**settings, max_new_tokens=9)
    assert there().shape[1] == 129
    with pytest.raises(
        gemlens.InputError, match=r"120 tokens and 9 new ones make 129, .* at most 128 .* ask for 8 or f"
    ):
        here()
    assert torch.equal(*(run() for run in both(**settings, max_new_tokens=8)))


def test_right_padding_is_continued_there_and_refused_here() -> None:
    """There the answer comes after the padding."""
    padded = {
        "input_ids": torch.tensor([[5, 6, 7, 0], [5, 6, 7, 8]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0], [1] * 4]),
    }
    assert both(**padded)[0]()[0, :4].tolist() == [5, 6, 7, 0]
    for mask in ({}, {"attention_mask": None, "pad_token_id": 0}):
        with pytest.raises(gemlens.InputError, match=r"Row 0 ends in padding.*pad on the left"):
            both(**{**padded, **mask})[1]()


@pytest.mark.parametrize("sample", [False, True])
def test_logits_that_are_not_finite_are_continued_there_and_stop_with_a_sentence_here(sample: bool) -> None:
    broken = build(GEMMA)
    for model in (broken.reference, broken.ours):
        model.model.norm.weight.data.fill_(math.nan)
    arguments = {"input_ids": PROMPT, "do_sample": sample, "max_new_tokens": 3}
    if sample:
        with pytest.raises(RuntimeError, match="probability tensor contains"):
            broken.reference.generate(**arguments)
    else:
        assert broken.reference.generate(**arguments)[0, 3:].tolist() == [0, 0, 0]
    for search in ({}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(gemlens.InputError, match=r"The logits are not finite: the weights are damaged"):
            broken.ours.generate(**arguments, **search)


def test_forbidding_everything_gives_token_0_there_and_a_sentence_here() -> None:
    there, here = both(suppress_tokens=list(range(99)))
    assert there()[0, 3:].tolist() == [0] * 12
    with pytest.raises(gemlens.InputError, match=r"No token is allowed"):
        here()


def test_a_rule_of_allowed_tokens_is_told_the_samples_number_there_and_the_prompts_here() -> None:
    asked: list[int] = []

    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        asked.append(row)
        return [20 + row]

    two = torch.tensor([[5, 6], [7, 8]])
    settings = {"input_ids": two, "do_sample": True, "num_return_sequences": 3, "max_new_tokens": 1}
    there, here = both(**settings, prefix_allowed_tokens_fn=allowed)
    assert there()[:, 2].tolist() == [20, 21, 22, 23, 24, 25]
    assert here()[:, 2].tolist() == [20, 20, 20, 21, 21, 21]
    assert asked == [0, 1, 2, 3, 4, 5, 0, 0, 0, 1, 1, 1]


def test_a_misspelt_setting_is_an_error_in_both() -> None:
    there, here = both(max_new_token=3)
    with pytest.raises(ValueError, match="max_new_token"):
        there()
    with pytest.raises(TypeError, match="max_new_token"):
        here()


class Silent(transformers.generation.streamers.BaseStreamer):
    """Remembers only whether it was told the end."""

    ended = False

    def put(self, value: torch.Tensor) -> None: ...

    def end(self) -> None:
        self.ended = True


def test_a_streamer_waits_for_ever_after_an_error_there_and_is_told_the_end_here() -> None:
    def fails(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("it failed")

    told = []
    for number in range(2):
        streamer = Silent()
        with pytest.raises(RuntimeError, match="it failed"):
            both(GEMMA, streamer=streamer, logits_processor=[fails])[number]()
        told.append(streamer.ended)
    assert told == [False, True]
