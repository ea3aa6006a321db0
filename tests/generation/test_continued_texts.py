"""A second generate call with all ids and the cache of the first gives the tokens of a call without a cache."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compared import (
    GEMMA,
    GEMMA_3,
    GEMMA_3_PICTURES,
    PALIGEMMA,
    PALIGEMMA_2,
    RECORDED,
    SETTINGS,
    TEXTS,
    assert_same_answers,
    ours,
    pair,
    rows,
    theirs,
)
from pairs import IMAGE, TOKENS_PER_PICTURE, WINDOW, Case, random_ids
from torch import Tensor

import gemlens
from gemlens.caches.offloaded import OffloadedCache, OffloadedStaticCache

FREE: dict[str, Any] = {**SETTINGS, **RECORDED, "eos_token_id": None, "max_new_tokens": 6}
CACHES: dict[str, Callable[[Any], Any]] = {
    "made by the first call": lambda model: None,
    "dynamic": gemlens.DynamicCache,
    "unforgetting": lambda model: gemlens.DynamicCache(),
    "offloaded": OffloadedCache,
    "static": lambda model: gemlens.StaticCache(model, 120),
    "offloaded static": lambda model: OffloadedStaticCache(model, 120),
}


def turn(case: Case, picture: bool = False, count: int = 2) -> Tensor:
    """[B, S] what a user adds to each row: more than a window of text, around a picture."""
    opened, closed = ([91], [92]) if case.family == "gemma3" else ([], [])
    image = [*opened, *[IMAGE] * TOKENS_PER_PICTURE[case.family], *closed] if picture else []
    return torch.tensor([[*random_ids(3), *image, *random_ids(WINDOW + 1)] for _ in range(count)])


def extended(said: Any, mask: Tensor, more: Tensor) -> dict[str, Tensor]:
    """ids and mask of the next call."""
    ids = torch.cat([said.sequences, more], dim=1)
    new = torch.ones(len(ids), ids.shape[1] - mask.shape[1], dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.cat([mask, new], dim=1)}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("case", TEXTS, ids=str)
def test_three_turns_with_one_cache_are_the_references_without(case: Case, cache: str) -> None:
    batch = rows(case, padding="left", pictures=(0, 0))
    held = CACHES[cache](pair(case).ours.text_model())
    arguments = {"input_ids": batch.ids, "attention_mask": batch.real.long()}
    for _ in range(3):
        expected = pair(case).reference.generate(**arguments, **FREE)
        given = pair(case).ours.generate(**arguments, **FREE, past_key_values=held)
        assert_same_answers(expected, given)
        assert held is None or given.past_key_values is held
        held = given.past_key_values
        assert held.get_seq_length() == given.sequences.shape[1] - 1
        arguments = extended(given, arguments["attention_mask"], turn(case))


@pytest.mark.parametrize("case", [*TEXTS, PALIGEMMA, PALIGEMMA_2], ids=str)
def test_a_second_turn_of_text_is_the_references_with_its_cache(case: Case) -> None:
    """In PaliGemma, what comes later is no prompt: every token sees what stands before it."""
    batch = rows(case, padding="left", pictures=(1, 2))
    first = [library(case, batch, **FREE) for library in (theirs, ours)]
    assert_same_answers(*first)
    arguments = extended(first[1], batch.real.long(), turn(case))
    expected = pair(case).reference.generate(**arguments, **FREE, past_key_values=first[0].past_key_values)
    again = {**arguments, "pixel_values": batch.pixels} if case.family else arguments
    for shown in (arguments, again):  # the pictures of earlier turns may come again, or not
        held = ours(case, batch, **FREE).past_key_values
        assert_same_answers(expected, pair(case).ours.generate(**shown, **FREE, past_key_values=held))


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("cache", CACHES)
def test_pictures_in_the_second_turn_of_gemma_3_are_the_references_without_a_cache(
    cache: str, chunk: int | None
) -> None:
    case = GEMMA_3_PICTURES
    batch = rows(case, padding="left", pictures=(2, 0))
    held = CACHES[cache](pair(case).ours.text_model())
    first = ours(case, batch, **FREE, past_key_values=held, prefill_chunk_size=chunk)
    arguments = extended(first, batch.real.long(), turn(case, picture=True))
    new = torch.randn(2, 3, 20, 20)
    pixels = torch.cat([batch.pixels, new])  # row by row: the first row's three, then the second's
    types = (arguments["input_ids"] == IMAGE).long()
    expected = pair(case).reference.generate(**arguments, **FREE, pixel_values=pixels, token_type_ids=types)
    given = pair(case).ours.generate(
        **arguments, **FREE, pixel_values=pixels, past_key_values=first.past_key_values, prefill_chunk_size=chunk
    )
    assert_same_answers(expected, given)


@pytest.mark.parametrize("case", [PALIGEMMA, PALIGEMMA_2], ids=str)
def test_later_turns_of_paligemma_are_answer(case: Case) -> None:
    """Without a cache token types say so; with one, a later turn may even hold a picture."""
    model = pair(case).ours
    batch = rows(case, padding="left", pictures=(1, 2))
    first = ours(case, batch, **FREE)
    arguments = extended(first, batch.real.long(), turn(case))
    types = torch.ones_like(arguments["input_ids"])
    types[:, : batch.ids.shape[1]] = 0
    whole = model.generate(**arguments, **FREE, pixel_values=batch.pixels, token_type_ids=types, use_cache=False)
    assert_same_answers(whole, model.generate(**arguments, **FREE, past_key_values=first.past_key_values))

    first = ours(case, batch, **FREE)
    arguments = extended(first, batch.real.long(), turn(case, picture=True))
    pixels = torch.randn(2, 3, 20, 20)
    shown = torch.cat([batch.pixels[:1], pixels[:1], batch.pixels[1:], pixels[1:]])
    given = model.generate(**arguments, **FREE, pixel_values=shown, past_key_values=first.past_key_values)
    held = ours(case, batch, **FREE).past_key_values
    arguments["input_ids"] = arguments["input_ids"][:, held.get_seq_length() :]
    with torch.no_grad():
        logits = model(**arguments, pixel_values=pixels, past_key_values=held).logits
    torch.testing.assert_close(given.logits[0], logits[:, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", [GEMMA, GEMMA_3], ids=str)
def test_rows_that_ended_early_go_on_as_without_a_cache(case: Case) -> None:
    """What fills them is padding in the next call, so it must be padding in the cache."""
    model = pair(case).ours
    prompt = rows(case, pictures=(0, 0)).ids
    free = model.generate(prompt, **{**FREE, "pad_token_id": 0})
    ends = int(free.sequences[0, -5])
    first = model.generate(prompt, **{**FREE, "pad_token_id": 0, "eos_token_id": ends})
    assert (first.sequences[:, -1] == 0).tolist() == [True, False]
    ids = torch.cat([first.sequences, turn(case)], dim=1)
    arguments = {"input_ids": ids, "attention_mask": (ids != 0).long(), **FREE, "pad_token_id": 0}
    expected = model.generate(**arguments)
    if case == GEMMA:  # where there is a window, the reference counts padding inside the text
        assert_same_answers(pair(case).reference.generate(**arguments), expected)
    assert_same_answers(expected, model.generate(**arguments, past_key_values=first.past_key_values))


def test_a_cache_given_back_holds_all_tokens_but_the_last() -> None:
    batch = rows(GEMMA_3, pictures=(0,))
    searches: list[dict[str, Any]] = [
        {"do_sample": True, "num_return_sequences": 3},
        {"prompt_lookup_num_tokens": 4},
        {"assistant_model": pair(GEMMA).ours},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 3},
    ]
    for search in searches:
        given = ours(GEMMA_3, batch, **{**FREE, **search})
        assert given.past_key_values.get_seq_length() == given.sequences.shape[1] - 1
        assert given.past_key_values.rows() == len(given.sequences)
    assert ours(GEMMA_3, batch, **{**FREE, "use_cache": False}).past_key_values is None
    beams = ours(GEMMA_3, batch, **{**FREE, "num_beams": 3})
    assert beams.past_key_values.get_seq_length() == beams.sequences.shape[1] - 1
    assert beams.past_key_values.rows() == 3


def test_caches_that_do_not_fit_are_refused() -> None:
    model, prompt = pair(GEMMA_3).ours, torch.tensor([[5, 6, 7]])
    held = model.generate(prompt, **FREE).past_key_values
    with pytest.raises(gemlens.InputError, match=r"The cache holds 8 tokens and the prompt has 3: pass the whole text"):
        model.generate(prompt, past_key_values=held)
    with pytest.raises(gemlens.InputError, match=r"The cache holds 1 rows, but 2 came"):
        model.generate(torch.full((2, 12), 5), past_key_values=held)
    with pytest.raises(gemlens.InputError, match=r"may have 23 tokens, .* room for 21; make it with max_cache_len=22"):
        model.generate(prompt, max_new_tokens=20, past_key_values=gemlens.StaticCache(model.text_model(), 21))
    room = gemlens.StaticCache(model.text_model(), 22)
    assert model.generate(prompt, max_new_tokens=20, eos_token_id=None, past_key_values=room).shape == (1, 23)
    for said in ({"cache_implementation": "static"}, {"use_cache": False}):
        with pytest.raises(gemlens.InputError, match=r"past_key_values came, so cache_implementation and use_cache"):
            model.generate(prompt, past_key_values=gemlens.DynamicCache(), **said)


def test_a_cache_may_hold_whole_pictures_only() -> None:
    batch = rows(GEMMA_3_PICTURES, pictures=(1,))
    model = pair(GEMMA_3_PICTURES).ours
    with torch.no_grad():
        held = model(batch.ids[:, :3]).past_key_values  # before the picture
    whole = ours(GEMMA_3_PICTURES, batch)
    assert torch.equal(whole, model.generate(**batch.ours(), **SETTINGS, past_key_values=held))
    cut = model.generate(batch.ids[:, :3], **{**FREE, "max_new_tokens": 3}).past_key_values
    with pytest.raises(gemlens.InputError, match=r"a cache holds whole pictures"):
        model.generate(**batch.ours(), past_key_values=cut)
