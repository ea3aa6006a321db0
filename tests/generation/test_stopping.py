"""When rows end: end tokens, lengths, time, texts that span tokens, and criteria of the caller's."""

import time
from typing import Any

import pytest
import tiny
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from small_vocabulary import small_tokenizer
from torch import Tensor

import gemlens
from gemlens.generation.stopping import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

TOKENIZER = small_tokenizer()
REFERENCE = transformers.PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer)
TEXT_TOKENS = [i for i in range(len(TOKENIZER)) if not TOKENIZER.convert_ids_to_tokens(i).startswith("<0x")]


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def forced(tokens: list[int], prompt: int) -> Any:
    """A rule by which exactly these tokens come after a prompt of that length."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        only = torch.full_like(scores, -torch.inf)
        only[:, tokens[ids.shape[1] - prompt]] = 0
        return only

    return process


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.fresh("gemma3", vocab_size=len(TOKENIZER))


def said(model: Any, prompt: str, answer: str | list[int], **settings: Any) -> str:
    """What is generated of an answer that the model wants to give."""
    ids, tokens = ids_of(prompt), ids_of(answer) if isinstance(answer, str) else answer
    rule = forced(tokens, len(ids))
    settings = {"max_new_tokens": len(tokens), "eos_token_id": None, "tokenizer": TOKENIZER, **settings}
    given = model.generate(torch.tensor([ids]), logits_processor=[rule], **settings)
    return str(TOKENIZER.decode(given[0, len(ids) :].tolist()))


def test_an_answer_ends_with_its_stop_string(model: Any) -> None:
    text = "the cow on the beach"
    assert said(model, "a", text) == text
    assert said(model, "a", text, stop_strings="cow") == "the cow"
    assert said(model, "a", text, stop_strings=["beach", "on"]) == "the cow on"
    assert said(model, "a", text, stop_strings="missing") == text


def test_a_stop_string_may_span_tokens_and_begin_and_end_inside_them(model: Any) -> None:
    text = "the cow on the beach"
    assert len(ids_of("w on t")) == 3
    assert said(model, "a", text, stop_strings="w on t") == "the cow on the"
    assert said(model, "a", text, stop_strings="e c") == "the cow"
    assert said(model, "a", "a.b.c.d", stop_strings="b.c.") == "a.b.c."


def test_a_stop_string_may_be_split_inside_its_bytes(model: Any) -> None:
    text = "ab\u2603\u2603cd"  # a snowman is three byte tokens
    assert len(ids_of("\u2603")) == 3
    assert said(model, "a", text, stop_strings="\u2603") == "ab\u2603"
    assert said(model, "a", text, stop_strings="\u2603\u2603") == "ab\u2603\u2603"
    assert said(model, "a", text, stop_strings="b\u2603\u2603c") == "ab\u2603\u2603c"


def test_a_control_token_may_be_a_stop_string(model: Any) -> None:
    assert said(model, "a", "the<end_of_turn>cow", stop_strings="<end_of_turn>") == "the<end_of_turn>"


def test_the_prompt_does_not_count(model: Any) -> None:
    assert said(model, "the cow", " on the cow", stop_strings="cow") == " on the cow"
    assert said(model, "the c", "ow on", stop_strings="cow") == "ow on"
    prompt, answer = ids_of("the c"), ids_of("o")
    assert StopStringCriteria(TOKENIZER, "co", len(prompt))(torch.tensor([prompt + answer]), None).tolist() == [False]
    there = transformers.StopStringCriteria(REFERENCE, "co")
    assert there(torch.tensor([prompt + answer]), None).tolist() == [True]


@given(st.lists(st.lists(st.sampled_from(TEXT_TOKENS), min_size=6, max_size=6), min_size=1, max_size=4), st.data())
def test_it_is_complete_where_the_reference_says_so(rows: list[list[int]], data: st.DataObject) -> None:
    text = TOKENIZER.decode(rows[0])
    start = data.draw(st.integers(0, max(0, len(text) - 1)))
    stop = text[start : start + data.draw(st.integers(1, 5))] or "a"
    ids = torch.tensor(rows)
    expected = transformers.StopStringCriteria(REFERENCE, [stop, "zz"])(ids, None)
    assert torch.equal(StopStringCriteria(TOKENIZER, [stop, "zz"])(ids), expected), (text, stop)


def test_stop_strings_need_a_tokenizer(model: Any) -> None:
    with pytest.raises(gemlens.InputError, match="stop_strings came without tokenizer="):
        model.generate(torch.tensor([[5]]), stop_strings="a")


@pytest.mark.parametrize("guess", [{}, {"prompt_lookup_num_tokens": 5}], ids=["plain", "guessed"])
def test_rows_end_at_any_of_the_end_tokens(model: Any, guess: dict[str, int]) -> None:
    prompt = torch.tensor([[5, 6, 7, 8, 5, 6, 7]])
    rule = forced([8, 5, 6, 7, 8, 9], 7)
    settings = {"max_new_tokens": 6, "logits_processor": [rule], **guess}
    for ends, length in ((7, 4), ([9, 6], 3), ([200, 9], 6), (None, 6), (8, 1)):
        given = model.generate(prompt, eos_token_id=ends, **settings)
        assert given[0, 7:].tolist() == [8, 5, 6, 7, 8, 9][:length]


def test_ended_rows_are_filled_with_padding_then_with_an_end_token_then_with_zero(model: Any) -> None:
    prompt = torch.tensor([[5], [6]])

    def ends_first_row(ids: Tensor, scores: Any) -> Tensor:
        return torch.tensor([ids.shape[1] >= 2, False])

    def third_and_fourth(**settings: Any) -> list[int]:
        model.generation_config = type(model.generation_config)()
        return list(model.generate(prompt, max_new_tokens=3, stopping_criteria=[ends_first_row], **settings)[0, 2:])

    assert third_and_fourth(pad_token_id=30, eos_token_id=None) == [30, 30]
    assert third_and_fourth(eos_token_id=[40, 41], suppress_tokens=[40, 41]) == [40, 40]
    assert third_and_fourth() == [0, 0]


def test_time_ends_all_rows_after_a_token(model: Any) -> None:
    def slow(ids: Tensor, scores: Tensor) -> Tensor:
        time.sleep(0.02)
        return scores

    begun = time.monotonic()
    given = model.generate(torch.tensor([[5]]), max_time=0.1, max_new_tokens=100, logits_processor=[slow])
    assert 2 <= given.shape[1] < 50
    assert time.monotonic() - begun < 20
    assert MaxTimeCriteria(100.0)(given) is False
    assert MaxTimeCriteria(-1.0)(given) is True


def test_criteria_are_joined_by_or() -> None:
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]])
    assert EosTokenCriteria(4)(ids).tolist() == [False, True]
    assert StoppingCriteriaList([EosTokenCriteria([4, 9]), MaxLengthCriteria(4)])(ids).tolist() == [False, True]
    assert StoppingCriteriaList([EosTokenCriteria(4), MaxLengthCriteria(3)])(ids).tolist() == [True, True]
    assert StoppingCriteriaList([EosTokenCriteria(4), EosTokenCriteria(3)])(ids).tolist() == [True, True]
    assert StoppingCriteriaList([lambda ids, scores: True])(ids).tolist() == [True, True]
    assert StoppingCriteriaList()(ids).tolist() == [False, False]


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 2)])
def test_a_criterion_of_another_shape_is_refused(model: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(gemlens.InputError, match=r"one bool per row: \[2\]"):
        model.generate(
            torch.tensor([[5], [6]]), stopping_criteria=[lambda ids, scores: torch.zeros(shape, dtype=torch.bool)]
        )


def test_criteria_see_the_recorded_scores(model: Any) -> None:
    seen = []

    def watch(ids: Tensor, scores: Any) -> bool:
        seen.append(len(scores))
        return len(scores) == 3

    settings = {"return_dict_in_generate": True, "output_scores": True, "stopping_criteria": [watch]}
    assert len(model.generate(torch.tensor([[5]]), max_new_tokens=9, eos_token_id=None, **settings).scores) == 3
    assert seen == [1, 2, 3]
