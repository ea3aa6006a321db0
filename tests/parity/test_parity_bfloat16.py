"""In bfloat16 the same attention gives the same top token, no further from float32 than the reference."""

from typing import Any

import pytest
import torch
from pairs import IMAGE, TOKENS_PER_PICTURE, Case, Pair, build, case_named
from torch import Tensor

ROWS, LENGTH = 8, 280  # 2240 places
VOCABULARY = 4096
# The square root of the width is a whole number, so that PaliGemma's picture vectors survive the reference's dividing
# and multiplying by it; test_defects_numbers.py shows what happens otherwise.
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "max_position_embeddings": 512}
CAPPED = ["Gemma2ForCausalLM", "PaliGemmaForConditionalGeneration-Gemma2"]
UNCAPPED = [
    "GemmaForCausalLM",
    "Gemma3ForCausalLM",
    "PaliGemmaForConditionalGeneration-Gemma",
    "Gemma3ForConditionalGeneration",
]


def long_rows(case: Case, padded: int = 0) -> tuple[dict[str, Any], dict[str, Any], Tensor]:
    """Arguments of the reference and of ours, and the real places."""
    ids = torch.randint(100, VOCABULARY, (ROWS, LENGTH))
    mask = torch.ones_like(ids)
    mask[: ROWS // 2, :padded] = 0
    # The same turns for both: under left padding the reference counts padding, and rounding depends on the number.
    arguments: dict[str, Any] = {"attention_mask": mask, "position_ids": torch.arange(LENGTH).unsqueeze(0)}
    if case.family:
        start = padded + (3 if case.family == "gemma3" else 0)
        ids[:, start : start + TOKENS_PER_PICTURE[case.family]] = IMAGE
        arguments["pixel_values"] = torch.randn(ROWS, 3, 20, 20)
    arguments["input_ids"] = ids
    types = {"token_type_ids": (ids == IMAGE).long()} if case.family == "gemma3" else {}
    return {**arguments, **types}, arguments, mask.bool()


def top_agreement(one: Tensor, other: Tensor) -> float:
    return (one.argmax(-1) == other.argmax(-1)).float().mean().item()


@torch.no_grad()
def half_logits(pair: Pair, case: Case, padded: int) -> tuple[Tensor, Tensor, Tensor]:
    """The reference's and our bfloat16 logits, and the float32 ones, at real places."""
    theirs, ours, real = long_rows(case, padded)
    exact = pair.reference(**theirs).logits[real]
    pair.to(torch.bfloat16)
    half = [pair.reference(**theirs).logits, pair.ours(**ours).logits]
    assert half[0].dtype == half[1].dtype == torch.bfloat16
    return half[0][real].float(), half[1][real].float(), exact


def assert_as_good(pair: Pair, case: Case, padded: int) -> None:
    theirs, ours, exact = half_logits(pair, case, padded)
    assert len(exact) >= 2000
    assert 1 < exact.std() < 4
    assert top_agreement(theirs, ours) >= 0.99
    # Random weights give flat logits, so bfloat16 itself changes the top token of some per cent of the places; the
    # reference's share is ours.
    assert abs(top_agreement(theirs, exact) - top_agreement(ours, exact)) < 0.01
    assert (ours - exact).abs().mean() < 1.02 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("padded", [0, 9])
@pytest.mark.parametrize("name", CAPPED + UNCAPPED)
def test_eager_gives_the_top_tokens_of_the_references_eager(name: str, padded: int) -> None:
    case = case_named(name)
    assert_as_good(build(case, implementation="eager", **SIZES), case, padded)


@pytest.mark.parametrize("padded", [0, 9])
@pytest.mark.parametrize("name", UNCAPPED)
def test_the_default_gives_the_top_tokens_of_the_references_sdpa(name: str, padded: int) -> None:
    case = case_named(name)
    assert_as_good(build(case, attention="sdpa", **SIZES), case, padded)


@pytest.mark.parametrize("padded", [0, 9])
@pytest.mark.parametrize("name", CAPPED + UNCAPPED)
def test_blocked_is_as_close_to_float32_as_the_references_eager(name: str, padded: int) -> None:
    """It sums in another order, which on these flat logits changes some top tokens: 98.5 % stay, not 99 %."""
    case = case_named(name)
    theirs, ours, exact = half_logits(build(case, implementation="blocked", **SIZES), case, padded)
    assert top_agreement(theirs, ours) >= 0.985
    assert abs(top_agreement(theirs, exact) - top_agreement(ours, exact)) < 0.01
    assert (ours - exact).abs().mean() < 1.02 * (theirs - exact).abs().mean()
