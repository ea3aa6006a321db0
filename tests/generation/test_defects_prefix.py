"""Where the reference's generate loses PaliGemma's prefix: with a static cache, and without a cache.

Model-facts 3.5. What is right is the reference with its dynamic cache, which reads the prompt as one block.
"""

import pytest
import torch
from compared import PALIGEMMA, PALIGEMMA_2, RECORDED, assert_same_answers, ours, rows, theirs
from pairs import Case


def first_gap(one: object, other: object) -> float:
    return float((one.logits[0] - other.logits[0]).abs().max())  # type: ignore[attr-defined]


@pytest.mark.parametrize("padding", ["none", "left"])
def test_a_static_cache_makes_paligemmas_prompt_causal_there_and_not_here(padding: str) -> None:
    batch = rows(PALIGEMMA, padding=padding)
    right = theirs(PALIGEMMA, batch, **RECORDED)
    for name in ("static", "hybrid", "dynamic", "offloaded", "offloaded_static"):
        assert_same_answers(right, ours(PALIGEMMA, batch, **RECORDED, cache_implementation=name))
    for name in ("static", "hybrid"):
        wrong = theirs(PALIGEMMA, batch, **RECORDED, cache_implementation=name)
        assert first_gap(right, wrong) > 0.1
        assert not torch.equal(right.sequences, wrong.sequences)


@pytest.mark.parametrize("case", [PALIGEMMA, PALIGEMMA_2], ids=str)
def test_without_a_cache_paligemmas_answer_joins_the_prompt_there_and_not_here(case: Case) -> None:
    batch = rows(case, padding="left")
    right = theirs(case, batch, **RECORDED)
    assert_same_answers(right, ours(case, batch, **RECORDED, use_cache=False))
    wrong = theirs(case, batch, **RECORDED, use_cache=False)
    assert first_gap(right, wrong) < 1e-4  # the prompt alone is read as it should be
    assert (right.logits[1] - wrong.logits[1]).abs().max() > 0.1
