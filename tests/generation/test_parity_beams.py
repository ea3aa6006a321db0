"""Beam search gives the reference's tokens, scores and origins.

With several pictures the reference is given embeddings, because its beams scramble pictures: test_defects_beams.py.
"""

from typing import Any

import pytest
import torch
from compared import (
    GEMMA_3,
    GEMMA_3_PICTURES,
    PALIGEMMA_2,
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
from pairs import HEADS, IMAGE, WINDOW, Case

from gemlens.generation.beam import _Beams, _can_improve
from gemlens.generation.config import Settings

SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.6, "early_stopping": True},
    {"num_beams": 2, "num_return_sequences": 2, "length_penalty": -0.5},
    {"num_beams": 2, "early_stopping": "never", "length_penalty": 2.0},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": -1.0, "eos_token_id": list(range(3, 60))},
    {"num_beams": 3, "length_penalty": 0.0, "eos_token_id": None, "max_new_tokens": 5},
    {"num_beams": 5, "early_stopping": True, "eos_token_id": list(range(3, 90)), "num_return_sequences": 5},
]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: "-".join(map(str, search.values())).replace(" ", ""))
@pytest.mark.parametrize("case", HEADS, ids=str)
def test_beams_give_the_references_tokens(case: Case, search: dict[str, Any]) -> None:
    batch = rows(case, padding="left")
    expected = pair(case).reference.generate(**embedded(case, batch), **{**SETTINGS, **search})
    assert torch.equal(expected, new_tokens(batch, ours(case, batch, **search)))


RULES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"min_new_tokens": 4, "suppress_tokens": [17, 18, IMAGE], "bad_words_ids": [[31], [19, 19]]},
    {"forced_eos_token_id": 1, "begin_suppress_tokens": list(range(20, 60)), "renormalize_logits": True},
    {"prefix_allowed_tokens_fn": lambda row, ids: [5, 20 + row, 30 + len(ids) % 7, int(ids[-1])]},
]


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: next(iter(rules)))
@pytest.mark.parametrize("case", TEXTS, ids=str)
def test_beams_obey_the_same_rules(case: Case, rules: dict[str, Any]) -> None:
    batch = rows(case, padding="none")
    search = {"num_beams": 3, "num_return_sequences": 2, **rules}
    assert torch.equal(theirs(case, batch, **search), ours(case, batch, **search))


@pytest.mark.parametrize("search", SEARCHES[:4], ids=lambda search: "-".join(map(str, search.values())))
@pytest.mark.parametrize("case", TEXTS, ids=str)
def test_scores_logits_and_origins_are_the_references(case: Case, search: dict[str, Any]) -> None:
    batch = rows(case, padding="left")
    expected, given = (library(case, batch, **search, **RECORDED) for library in (theirs, ours))
    assert_same_answers(expected, given)
    torch.testing.assert_close(given.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=1e-4)
    assert torch.equal(given.beam_indices, expected.beam_indices)


@pytest.mark.parametrize("case", TEXTS, ids=str)
def test_scores_are_what_the_model_gives_for_the_text(case: Case) -> None:
    """Without a reference: the probability of a beam is that of its tokens, read at once without a cache."""
    batch = rows(case, padding="none")
    search = {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": None, "length_penalty": 0.7}
    given = ours(case, batch, **search, **RECORDED)
    prompt = batch.ids.shape[1]
    with torch.no_grad():
        logs = pair(case).ours(given.sequences, use_cache=False).logits[:, prompt - 1 : -1].log_softmax(-1)
    said = logs.gather(-1, given.sequences[:, prompt:, None]).sum((1, 2))
    torch.testing.assert_close(given.sequences_scores, said / 12**0.7, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cache", ["dynamic", "dynamic_full", "static", "offloaded", "offloaded_static", None])
@pytest.mark.parametrize("case", [GEMMA_3, PALIGEMMA_2, GEMMA_3_PICTURES], ids=str)
def test_beams_are_the_same_with_every_cache(case: Case, cache: str | None) -> None:
    batch = rows(case, padding="left")
    search = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": WINDOW + 2}
    expected = ours(case, batch, **search)
    name = {"use_cache": False} if cache is None else {"cache_implementation": cache}
    assert torch.equal(expected, ours(case, batch, **search, **name))


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_beams_of_a_batch_are_those_of_its_rows(case: Case) -> None:
    batch = rows(case, padding="left")
    search = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8, "eos_token_id": None}
    together = new_tokens(batch, ours(case, batch, **search))
    alone = [new_tokens(batch.row(row), ours(case, batch.row(row), **search)) for row in range(3)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.7, 2.0])
def test_whether_a_running_beam_may_become_better_is_judged_as_there(
    penalty: float, early_stopping: bool | str
) -> None:
    reference = pair(GEMMA_3).reference._check_early_stop_heuristic
    settings = Settings(num_beams=4, length_penalty=penalty, early_stopping=early_stopping)
    both = set()
    for length, longest in ((1, 9), (4, 9), (9, 9)):
        running = (-torch.rand(50, 4) * 4).sort(descending=True).values
        ended = torch.rand(50, 4) < torch.rand(50, 1) * 1.5
        finished = (
            torch.where(ended, -torch.rand(50, 4) * 2 * torch.rand(50, 1) ** 8, -1e9).sort(descending=True).values
        )
        ended = finished > -1e9
        texts = torch.zeros(50, 4, length, dtype=torch.long)
        expected = reference(
            torch.ones(50, 1, dtype=torch.bool),
            running,
            finished,
            ended,
            3 + length,
            3 + longest,
            3,
            early_stopping,
            penalty,
        )
        beams = [_Beams(texts, scores, texts, done) for scores, done in ((running, ~ended & False), (finished, ended))]
        assert torch.equal(_can_improve(*beams, settings, length, longest), expected)
        both |= set(expected.flatten().tolist())
    assert both == {True, False}
