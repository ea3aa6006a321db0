"""What generate gives besides ids: the reference's names, shapes and values, in tensors that can be trained on."""

from typing import Any

import pytest
import torch
from compared import (
    GEMMA_3,
    GEMMA_3_PICTURES,
    PALIGEMMA,
    RECORDED,
    TEXTS,
    assert_same_answers,
    assistants,
    build,
    ours,
    pair,
    rows,
    theirs,
)
from pairs import HEADS, Case
from torch import Tensor

import gemlens
from gemlens.generation.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput

ALL = {**RECORDED, "output_attentions": True, "output_hidden_states": True}


def assert_same_insides(expected: Any, given: Any, name: str) -> None:
    """N steps of L tensors."""
    assert len(expected[name]) == len(given[name])
    for theirs_step, step in zip(expected[name], given[name], strict=True):
        assert len(theirs_step) == len(step)
        for right, mine in zip(theirs_step, step, strict=True):
            assert right.shape == mine.shape
            torch.testing.assert_close(mine, right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_hidden_states_and_attentions_are_the_references(case: Case) -> None:
    """Without padding, whose own rows nobody reads and the two fill differently."""
    batch = rows(case, padding="none")
    expected, given = (library(case, batch, **ALL, max_new_tokens=5, eos_token_id=None) for library in (theirs, ours))
    assert_same_answers(expected, given)
    assert_same_insides(expected, given, "hidden_states")
    assert_same_insides(expected, given, "attentions")


@pytest.mark.parametrize("case", TEXTS, ids=str)
def test_prompts_of_beams_and_samples_are_recorded_once_here_and_for_every_beam_there(case: Case) -> None:
    batch = rows(case, padding="none")
    for several in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}):
        answers = []
        for library in (theirs, ours):
            torch.manual_seed(1)
            answers.append(library(case, batch, **several, **ALL, max_new_tokens=4, eos_token_id=None))
        for name in ("hidden_states", "attentions"):
            there, here = (answer[name] for answer in answers)
            for right, mine in zip(there[0], here[0], strict=True):
                assert (len(right), len(mine)) == (9, 3)
                torch.testing.assert_close(mine.repeat_interleave(3, dim=0), right, atol=1e-4, rtol=1e-4)
            assert_same_insides({name: there[1:]}, {name: here[1:]}, name)


def test_names_of_the_outputs_are_the_references() -> None:
    batch = rows(GEMMA_3)
    for search, kind in (({}, GenerateDecoderOnlyOutput), ({"num_beams": 2}, GenerateBeamDecoderOnlyOutput)):
        expected, given = (library(GEMMA_3, batch, **ALL, **search) for library in (theirs, ours))
        assert type(given) is kind
        assert type(expected).__name__ == kind.__name__
        assert set(expected.keys()) == set(given.keys())
    assert isinstance(ours(GEMMA_3, batch), Tensor)


@pytest.mark.parametrize("search", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}], ids=str)
def test_only_what_was_asked_for_is_given(search: dict[str, Any]) -> None:
    batch = rows(GEMMA_3, pictures=(0,))
    names = {"output_scores": "scores", "output_logits": "logits", "output_hidden_states": "hidden_states"}
    for asked, name in names.items():
        given = ours(GEMMA_3, batch, return_dict_in_generate=True, **search, **{asked: True})
        assert [other for other in names.values() if getattr(given, other) is not None] == [name]
    assert isinstance(ours(GEMMA_3, batch, output_scores=True, **search), Tensor)


@pytest.mark.parametrize("case", [GEMMA_3, PALIGEMMA, GEMMA_3_PICTURES], ids=str)
def test_guesses_are_recorded_token_by_token_as_without_them(case: Case) -> None:
    """One entry per new token, whatever was guessed, as the reference gives them."""
    batch = rows(case, pictures=(1,))
    settings = {**ALL, "eos_token_id": None, "repetition_penalty": 0.5}
    expected = ours(case, batch, **settings, cache_implementation="dynamic_full")  # guesses need all keys
    for guess in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": assistants(case).ours}):
        given = ours(case, batch, **settings, **guess)
        assert_same_answers(expected, given)
        assert_same_insides(expected, given, "hidden_states")
        assert_same_insides(expected, given, "attentions")


def test_a_prompt_in_pieces_cannot_be_recorded() -> None:
    batch = rows(GEMMA_3)
    with pytest.raises(gemlens.InputError, match="need the prompt whole; drop prefill_chunk_size"):
        ours(GEMMA_3, batch, **ALL, prefill_chunk_size=4)
    assert ours(GEMMA_3, batch, **RECORDED, prefill_chunk_size=4).logits is not None


@pytest.mark.parametrize(
    "search", [{}, {"num_beams": 2}, {"do_sample": True, "seed": 0}, {"use_cache": False}], ids=str
)
def test_what_was_generated_can_be_trained_on(search: dict[str, Any]) -> None:
    model = build(GEMMA_3).ours.train()
    said = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, eos_token_id=None, **RECORDED, **search)
    tensors = [said.sequences, *said.logits, *said.scores]
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in tensors)
    assert model.training
    loss = model(said.sequences, labels=said.sequences).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_generating_works_inside_inference_mode_and_its_cache_outside() -> None:
    model, prompt = pair(GEMMA_3).ours, torch.tensor([[5, 6, 7]])
    settings = {"eos_token_id": None, "return_dict_in_generate": True}
    whole = model.generate(prompt, max_new_tokens=8, eos_token_id=None)
    for cache in ("dynamic", "static"):
        with torch.inference_mode():
            held = gemlens.StaticCache(model.text_model(), 20) if cache == "static" else None
            first = model.generate(prompt, max_new_tokens=4, past_key_values=held, **settings)
        ids = first.sequences.clone()
        assert torch.equal(
            whole, model.generate(ids, max_new_tokens=4, past_key_values=first.past_key_values, eos_token_id=None)
        )
