"""Greedy search gives the reference's tokens, and its logits and scores at every step."""

from typing import Any

import pytest
import torch
from compared import (
    GEMMA_3,
    GEMMA_3_PICTURES,
    PALIGEMMA,
    PALIGEMMA_2,
    PICTURES,
    RECORDED,
    TEXTS,
    assert_same_answers,
    embedded,
    new_tokens,
    ours,
    pair,
    rows,
    theirs,
)
from pairs import HEADS, IMAGE, TOKENS_PER_PICTURE, WINDOW, Case

RULES: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "pad_token_id": 0},
    {"min_new_tokens": 4, "suppress_tokens": [17, 18, IMAGE], "bad_words_ids": [[31], [5, 6], [19, 19]]},
    {"min_length": 20, "forced_eos_token_id": 1, "begin_suppress_tokens": list(range(20, 60))},
    {"renormalize_logits": True, "eos_token_id": None, "max_new_tokens": 3},
]


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "-".join(rules) or "plain")
@pytest.mark.parametrize("case", HEADS, ids=str)
def test_greedy_search_gives_the_references_tokens_and_scores(case: Case, rules: dict[str, Any], padding: str) -> None:
    # The penalty counts padding there: test_defects_settings.py.
    padding = "none" if "repetition_penalty" in rules else padding
    batch = rows(case, padding=padding)
    assert_same_answers(theirs(case, batch, **RECORDED, **rules), ours(case, batch, **RECORDED, **rules))


@pytest.mark.parametrize("length", [WINDOW - 2, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
@pytest.mark.parametrize("case", TEXTS, ids=str)
def test_texts_that_grow_past_the_window_have_the_references_tokens(case: Case, length: int) -> None:
    batch = rows(case, text=length + 3, pictures=(0, 0), padding="left")
    settings = {"max_new_tokens": 2 * WINDOW + 3, "eos_token_id": None, **RECORDED}
    assert_same_answers(theirs(case, batch, **settings), ours(case, batch, **settings))


CACHES = ["dynamic", "dynamic_full", "static", "hybrid", None]
# With these the reference's prompt is no prefix: test_defects_prefix.py.
WRONG_THERE = [(PALIGEMMA, "static"), (PALIGEMMA, "hybrid"), (PALIGEMMA, None), (PALIGEMMA_2, None)]
CACHED = [(case, cache) for case in HEADS for cache in CACHES if (case, cache) not in WRONG_THERE]


@pytest.mark.parametrize(("case", "cache"), CACHED, ids=str)
def test_every_cache_gives_the_references_tokens_with_that_cache(case: Case, cache: str | None) -> None:
    batch = rows(case, padding="left")
    name = {"use_cache": False} if cache is None else {"cache_implementation": cache}
    assert_same_answers(theirs(case, batch, **name, **RECORDED), ours(case, batch, **name, **RECORDED))


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_embeddings_are_continued_as_in_the_reference(case: Case) -> None:
    """And every setting that counts tokens counts those of the embeddings."""
    batch = rows(case, padding="left")
    arguments = embedded(case, batch)
    length = batch.ids.shape[1]
    for settings in (
        {"max_new_tokens": 6, "eos_token_id": None},
        {"max_length": length + 5, "min_length": length + 3, "eos_token_id": list(range(5, 90))},
        {"max_new_tokens": 5, "min_new_tokens": 3, "eos_token_id": list(range(5, 90))},
        {"max_new_tokens": 4, "forced_eos_token_id": 3, "begin_suppress_tokens": list(range(5, 60))},
    ):
        settings = {"do_sample": False, "pad_token_id": 2, **settings}
        expected = pair(case).reference.generate(**arguments, **settings)
        given = pair(case).ours.generate(**arguments, **settings)
        assert torch.equal(expected, given), settings


@pytest.mark.parametrize("case", PICTURES, ids=str)
def test_several_pictures_stand_in_their_order(case: Case) -> None:
    batch = rows(case, padding="left", pictures=(3, 0, 2))
    assert_same_answers(theirs(case, batch, **RECORDED), ours(case, batch, **RECORDED))
    swapped = batch.ours(pixel_values=batch.pixels.flip(0))
    assert not torch.equal(pair(case).ours.generate(**swapped, max_new_tokens=12), ours(case, batch))


@pytest.mark.parametrize("case", [GEMMA_3, PALIGEMMA, GEMMA_3_PICTURES], ids=str)
def test_a_single_token_and_one_new_one_are_the_references(case: Case) -> None:
    batch = rows(case, text=4, pictures=(1,)).row(0)
    assert batch.ids.shape[1] > TOKENS_PER_PICTURE.get(case.family, 1)
    for settings in ({"max_new_tokens": 1}, {"max_length": batch.ids.shape[1] + 1, "max_new_tokens": None}):
        expected = new_tokens(batch, theirs(case, batch, **settings))
        assert torch.equal(expected, new_tokens(batch, ours(case, batch, **settings)))
    alone = {"input_ids": torch.tensor([[2]]), "attention_mask": torch.ones(1, 1, dtype=torch.long)}
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    settings |= {"forced_bos_token_id": 40, "begin_suppress_tokens": list(range(40, 80))}
    expected = pair(case).reference.generate(**alone, **settings)
    assert torch.equal(expected, pair(case).ours.generate(**alone, **settings))
