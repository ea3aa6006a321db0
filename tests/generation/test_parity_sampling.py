"""Sampling draws from the reference's distribution; with the same seed it even draws the same tokens."""

from typing import Any

import pytest
import torch
from compared import (
    GEMMA_3,
    GEMMA_3_PICTURES,
    PALIGEMMA,
    RECORDED,
    SETTINGS,
    TEXTS,
    assert_same_answers,
    embedded,
    new_tokens,
    ours,
    pair,
    rows,
    theirs,
)
from pairs import HEADS, Case
from torch import Tensor

WARPERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 3.0, "top_k": 0, "top_p": 0.8},
    {"top_k": 0, "min_p": 0.02, "repetition_penalty": 1.2},
    {"top_k": 30, "typical_p": 0.6, "no_repeat_ngram_size": 1, "renormalize_logits": True},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95, "suppress_tokens": [17]},
]
CHI_SQUARE = 27.88  # 99.9 % quantile at 9 degrees of freedom


@pytest.mark.parametrize("warpers", WARPERS, ids=lambda warpers: "-".join(warpers) or "plain")
@pytest.mark.parametrize("case", HEADS, ids=str)
def test_the_same_seed_draws_the_references_tokens(case: Case, warpers: dict[str, Any]) -> None:
    batch = rows(case, padding="none")
    settings = {"do_sample": True, **RECORDED, **warpers}
    answers = []
    for library in (theirs, ours):
        torch.manual_seed(5)
        answers.append(library(case, batch, **settings))
    assert_same_answers(*answers)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("case", HEADS, ids=str)
def test_several_samples_and_drawn_beams_are_the_references_with_the_same_seed(case: Case, beams: int) -> None:
    batch = rows(case, padding="left")
    settings = {"do_sample": True, "num_return_sequences": 3, "num_beams": beams, "top_k": 40, "temperature": 1.7}
    torch.manual_seed(5)
    expected = pair(case).reference.generate(**embedded(case, batch), **{**SETTINGS, **settings})
    torch.manual_seed(5)
    given = new_tokens(batch, ours(case, batch, **settings))
    assert torch.equal(expected, given)
    assert len(given.unique(dim=0)) > 3


def statistic(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's chi-square of counts [n] that were drawn from probabilities [n]."""
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("case", [GEMMA_3, PALIGEMMA, GEMMA_3_PICTURES], ids=str)
def test_drawn_tokens_have_the_frequencies_of_the_references_scores(case: Case) -> None:
    """The first token, and the second one after the most frequent first."""
    batch = rows(case, padding="left", pictures=(2, 1), seed=3).row(0)
    draws = {"do_sample": True, "top_k": 10, "temperature": 9.0, "eos_token_id": None, "max_new_tokens": 2}
    given = new_tokens(batch, ours(case, batch, **draws, num_return_sequences=4000, seed=11))
    first = theirs(case, batch, **draws, **RECORDED).scores[0][0]
    common = given[:, 0].bincount().argmax()
    longer = torch.cat([batch.ids, common.view(1, 1)], dim=1)
    scores, drawn = [first, after(case, batch, longer, draws)], [given[:, 0], given[given[:, 0] == common, 1]]
    for step in range(2):
        kept = scores[step].isfinite().nonzero().flatten()
        counts = drawn[step].bincount(minlength=99)
        assert counts[kept].sum() == len(drawn[step]) > 400
        assert statistic(counts[kept].double(), scores[step][kept].double().softmax(-1)) < CHI_SQUARE


def after(case: Case, batch: Any, longer: Tensor, draws: dict[str, Any]) -> Tensor:
    """The reference's scores [V] of the second token, if the first one is given."""
    forced = int(longer[0, -1])

    def first_is_forced(row: int, ids: Tensor) -> list[int]:
        return [forced] if len(ids) < longer.shape[1] else list(range(99))

    answer = theirs(case, batch, **draws, **RECORDED, prefix_allowed_tokens_fn=first_is_forced)
    assert torch.equal(answer.sequences[:, :-1], longer)
    return answer.scores[1][0]


def test_the_statistic_tells_a_wrong_distribution() -> None:
    """Greedy tokens, or another temperature, would not pass."""
    torch.manual_seed(0)
    probabilities = torch.randn(10).softmax(-1).double()
    right = torch.multinomial(probabilities, 4000, replacement=True).bincount(minlength=10).double()
    wrong = torch.multinomial(probabilities.sqrt(), 4000, replacement=True).bincount(minlength=10).double()
    assert statistic(right, probabilities) < CHI_SQUARE < statistic(wrong, probabilities)


@pytest.mark.parametrize("case", TEXTS, ids=str)
def test_a_seed_gives_the_same_tokens_each_time_and_leaves_torchs_own_numbers_alone(case: Case) -> None:
    batch = rows(case)
    settings = {"do_sample": True, "temperature": 3.0, "eos_token_id": None}
    before = torch.get_rng_state()
    first, again, other = (ours(case, batch, **settings, seed=seed) for seed in (1, 1, 2))
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(first, again)
    assert torch.equal(first, ours(case, batch, **settings, generator=generator))
    assert not torch.equal(first, other)
    assert not torch.equal(first, ours(case, batch, **settings, generator=generator))  # it has gone on
    assert torch.equal(before, torch.get_rng_state())


def test_samples_of_a_row_differ_and_are_told_apart_by_row() -> None:
    batch = rows(GEMMA_3)
    settings = {"do_sample": True, "num_return_sequences": 4, "temperature": 5.0, "eos_token_id": None, "seed": 0}
    given = ours(GEMMA_3, batch, **settings)
    assert torch.equal(given[:, : batch.ids.shape[1]], batch.ids.repeat_interleave(4, dim=0))
    assert len(given.unique(dim=0)) == 12
