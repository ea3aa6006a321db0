"""Every rule for the next token changes scores exactly as the reference's class of the same name."""

import re
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import gemlens
from gemlens.generation import logits as rules
from gemlens.generation import warpers

VOCABULARY = 23
ENDS = [1, 4]


def theirs(name: str) -> Any:
    return getattr(transformers.generation.logits_process, name)


def mine(name: str) -> Any:
    return getattr(rules, name, None) or getattr(warpers, name)


def batch(
    length: int, rows: int = 3, seed: int = 0, kinds: int = VOCABULARY, ties: bool = True
) -> tuple[Tensor, Tensor]:
    """ids [B, S] of few kinds of tokens, and scores [B, V] with ties, large ones and forbidden ones."""
    numbers = torch.Generator().manual_seed(seed + 100 * length)
    ids = torch.randint(0, kinds, (rows, length), generator=numbers)
    scores = torch.randn(rows, VOCABULARY, generator=numbers) * 3
    if ties:
        scores[:, 5] = scores[:, 6]
    scores[:, 7] = 20.0 * (torch.arange(rows) % 2)
    scores[:, 8] = -torch.inf
    return ids, scores


def allowed(row: int, ids: Tensor) -> list[int]:
    return [row, len(ids) % VOCABULARY, 20]


PROCESSORS: list[tuple[str, tuple[Any, ...]]] = [
    *[("RepetitionPenaltyLogitsProcessor", (penalty,)) for penalty in (0.5, 1.7)],
    *[("NoRepeatNGramLogitsProcessor", (size,)) for size in (1, 2, 3, 40)],
    ("NoBadWordsLogitsProcessor", ([[3]], None)),
    ("NoBadWordsLogitsProcessor", ([[1], [3], [0, 2], [1, 4], [2, 2, 2], list(range(20))], torch.tensor(ENDS))),
    ("SuppressTokensLogitsProcessor", ([0, 3, 22],)),
    *[("SuppressTokensAtBeginLogitsProcessor", ([0, 3], length)) for length in (1, 6, 7)],
    *[("MinLengthLogitsProcessor", (length, torch.tensor(ENDS))) for length in (0, 6, 7)],
    *[("MinNewTokensLengthLogitsProcessor", (4, new, torch.tensor(ENDS))) for new in (2, 3)],
    ("ForcedBOSTokenLogitsProcessor", (9,)),
    *[("ForcedEOSTokenLogitsProcessor", (length, end)) for length in (6, 7, 8) for end in (1, ENDS)],
    ("PrefixConstrainedLogitsProcessor", (allowed, 1)),
    ("LogitNormalization", ()),
]
WARPERS: list[tuple[str, tuple[Any, ...]]] = [
    *[("TemperatureLogitsWarper", (value,)) for value in (0.3, 2.0)],
    *[("TopKLogitsWarper", (k, -torch.inf, kept)) for k in (1, 5, VOCABULARY, 1000) for kept in (1, 4, 50)],
    *[("TopPLogitsWarper", (p, -torch.inf, kept)) for p in (0.01, 0.5, 0.95, 0.9999) for kept in (1, 4, VOCABULARY)],
    *[("MinPLogitsWarper", (p, -torch.inf, kept)) for p in (0.0, 0.01, 0.5, 1.0) for kept in (1, 4, VOCABULARY)],
    *[("TypicalLogitsWarper", (mass, -torch.inf, kept)) for mass in (0.05, 0.5, 0.99) for kept in (1, 4, VOCABULARY)],
]


def ours_of(arguments: tuple[Any, ...]) -> list[Any]:
    """Our arguments: no filter value, end tokens as plain numbers, no None."""
    plain = [value.tolist() if isinstance(value, Tensor) else value for value in arguments]
    return [value for value in plain if value is not None and value != -torch.inf]


@pytest.mark.parametrize("length", [1, 2, 6, 7, 12])
@pytest.mark.parametrize(
    ("name", "arguments"), PROCESSORS + WARPERS, ids=lambda value: re.sub(" at 0x[^>]*", "", str(value))[:40]
)
def test_scores_equal_the_references(name: str, arguments: tuple[Any, ...], length: int) -> None:
    process = mine(name)(*ours_of(arguments))
    ties = name != "MinPLogitsWarper"  # which of two equal ones it keeps among the fewest is arbitrary
    for seed, rows, kinds in ((0, 3, VOCABULARY), (1, 1, 3), (2, 6, 2)):
        ids, scores = batch(length, rows, seed, kinds, ties)
        before = ids.clone(), scores.clone()
        given = process(ids, scores)
        expected = theirs(name)(*arguments)(ids.clone(), scores.clone())
        assert torch.equal(given, expected)
        assert torch.equal(before[0], ids)
        assert torch.equal(before[1], scores)  # the model's logits may be recorded


@pytest.mark.parametrize(("name", "arguments"), WARPERS, ids=str)
def test_a_row_most_of_whose_tokens_are_forbidden_is_warped_as_any(name: str, arguments: tuple[Any, ...]) -> None:
    ids, scores = batch(4, 2, ties=False)
    scores[:, ::2] = -torch.inf
    process = mine(name)(*ours_of(arguments))
    assert torch.equal(process(ids[:1], scores[:1]), process(ids, scores)[:1])
    forbidden = torch.full_like(scores[:1], -torch.inf)
    assert torch.equal(warpers.TopKLogitsWarper(3)(ids[:1], forbidden), forbidden)


def test_every_rule_of_ours_is_compared() -> None:
    compared = {name for name, _ in PROCESSORS + WARPERS}
    classes = {name for module in (rules, warpers) for name in vars(module) if name.endswith(("Processor", "Warper"))}
    assert classes - compared == {"LogitsProcessor", "ForcedTokensLogitsProcessor"}  # their bases


def test_a_list_applies_one_after_the_other() -> None:
    ids, scores = batch(5)
    chain = [
        rules.SuppressTokensLogitsProcessor([3]),
        warpers.TopKLogitsWarper(4),
        warpers.TemperatureLogitsWarper(2.0),
    ]
    expected = scores
    for process in chain:
        expected = process(ids, expected)
    assert torch.equal(rules.LogitsProcessorList(chain)(ids, scores), expected)
    assert torch.equal(rules.LogitsProcessorList()(ids, scores), scores)


def test_fewer_tokens_than_must_be_kept_are_all_kept() -> None:
    ids, scores = batch(4)
    for process in (
        warpers.TopKLogitsWarper(2, 1000),
        warpers.TopPLogitsWarper(0.1, 1000),
        warpers.MinPLogitsWarper(0.9, 1000),
        warpers.TypicalLogitsWarper(0.1, 1000),
    ):
        assert torch.equal(process(ids, scores), scores)


def test_padding_in_front_of_a_row_is_not_repeated_text() -> None:
    """The padding token counts where it stands in the text, and everywhere in the reference."""
    ids, scores = torch.tensor([[0, 0, 5, 0, 6]]), batch(5, rows=1)[1].abs() + 1
    alone, padded = (rules.RepetitionPenaltyLogitsProcessor(2.0, padding=0)(row, scores) for row in (ids[:, 2:], ids))
    assert torch.equal(alone, padded)
    assert alone[0, 0] == scores[0, 0] / 2
    first = torch.tensor([[0, 0, 5, 6]])
    assert rules.RepetitionPenaltyLogitsProcessor(2.0, padding=0)(first, scores)[0, 0] == scores[0, 0]
    assert theirs("RepetitionPenaltyLogitsProcessor")(2.0)(first, scores)[0, 0] == scores[0, 0] / 2
    only = torch.tensor([[0, 0]])
    assert rules.RepetitionPenaltyLogitsProcessor(2.0, padding=0)(only, scores)[0, 0] == scores[0, 0] / 2


def test_a_function_that_allows_nothing_is_told_so() -> None:
    ids, scores = batch(5)
    with pytest.raises(gemlens.InputError, match=r"prefix_allowed_tokens_fn allows no token after"):
        rules.PrefixConstrainedLogitsProcessor(lambda row, text: [], 1)(ids, scores)
