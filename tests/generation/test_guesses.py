"""Guessing changes how often the model is called, never the tokens: greedy or drawn, with pictures, stopped early."""

from typing import Any

import pytest
import torch
from compared import (
    GEMMA,
    GEMMA_3,
    GEMMA_3_PICTURES,
    LOOKUP,
    PALIGEMMA,
    PICTURES,
    RECORDED,
    SETTINGS,
    TEXTS,
    assert_same_answers,
    assistants,
    build,
    calls,
    ours,
    pair,
    rows,
    theirs,
)
from pairs import IMAGE, Case
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

import gemlens
from gemlens.generation.speculative import PromptLookup

LIKELY = {"repetition_penalty": 0.7}  # makes random models repeat the text, so that guesses are right


@pytest.mark.parametrize(
    "search", [{}, {"do_sample": True, "seed": 4}, {"do_sample": True, "seed": 5, **LIKELY}], ids=str
)
@pytest.mark.parametrize("guess", ["lookup", "assistant", "cautious", "eager", "itself"])
@pytest.mark.parametrize("case", [GEMMA_3, PALIGEMMA, GEMMA_3_PICTURES], ids=str)
def test_guesses_give_the_tokens_and_scores_of_no_guesses(case: Case, guess: str, search: dict[str, Any]) -> None:
    small = assistants(case).ours
    ways: dict[str, dict[str, Any]] = {
        "lookup": LOOKUP,
        "assistant": {"assistant_model": small, "num_assistant_tokens": 3},
        "cautious": {"assistant_model": small, "assistant_confidence_threshold": 0.9},
        "eager": {
            "assistant_model": small,
            "assistant_confidence_threshold": 0.0,
            "num_assistant_tokens_schedule": "heuristic",
            "num_assistant_tokens": 1,
        },
        "itself": {"assistant_model": pair(case).ours, "assistant_confidence_threshold": 0.0},
    }
    for seed in range(2):
        batch = rows(case, seed, padding="left", pictures=(1, 0)).row(0)
        expected = ours(case, batch, **RECORDED, **search)
        assert_same_answers(expected, ours(case, batch, **RECORDED, **search, **ways[guess]))


@pytest.mark.parametrize("case", TEXTS, ids=str)
def test_guesses_give_the_references_tokens(case: Case) -> None:
    batch = rows(case, pictures=(0,))
    small = assistants(GEMMA)
    for settings in (LIKELY, {"max_new_tokens": 20}):
        plain = theirs(case, batch, **settings)
        assert torch.equal(plain, theirs(case, batch, **settings, assistant_model=small.reference))
        assert torch.equal(plain, ours(case, batch, **settings, assistant_model=small.ours))
        assert torch.equal(plain, theirs(case, batch, **settings, **LOOKUP))
        assert torch.equal(plain, ours(case, batch, **settings, **LOOKUP))


def test_guesses_that_fail_there_give_the_tokens_of_no_guesses_here() -> None:
    """An assistant with windows cannot forget what it guessed; a lookup needs end tokens."""
    batch = rows(GEMMA_3, pictures=(0,))
    plain = theirs(GEMMA_3, batch, eos_token_id=None)
    with pytest.raises(ValueError, match="Cannot `crop` a `DynamicSlidingWindowLayer`"):
        theirs(GEMMA_3, batch, eos_token_id=None, assistant_model=assistants(GEMMA_3).reference)
    with pytest.raises(TypeError, match="isin"):
        theirs(GEMMA_3, batch, eos_token_id=None, **LOOKUP)
    for guess in (LOOKUP, {"assistant_model": assistants(GEMMA_3).ours}):
        assert torch.equal(plain, ours(GEMMA_3, batch, eos_token_id=None, **guess))


@pytest.mark.parametrize("case", PICTURES, ids=str)
def test_guesses_with_pictures_give_the_references_tokens_without_guesses(case: Case) -> None:
    for seed in range(3):
        batch = rows(case, seed, pictures=(2,))
        plain = theirs(case, batch)
        assert torch.equal(plain, ours(case, batch, assistant_model=assistants(case).ours))
        assert torch.equal(plain, ours(case, batch, **LOOKUP))


def test_repetitive_text_needs_fewer_calls_than_tokens() -> None:
    model = build(GEMMA_3).ours
    prompt = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7]])
    settings = {"max_new_tokens": 20, "eos_token_id": None}
    read = calls(model)
    plain = model.generate(prompt, **settings)
    assert read == [11] + [1] * 19
    read.clear()
    assert torch.equal(plain, model.generate(prompt, **settings, **LOOKUP))
    assert len(read) <= 10
    read.clear()
    assert torch.equal(
        plain, model.generate(prompt, **settings, assistant_model=pair(GEMMA_3).ours, num_assistant_tokens=4)
    )
    assert len(read) <= 20


def test_an_assistant_that_is_always_right_saves_all_calls_but_one_in_so_many() -> None:
    model, twin = build(GEMMA_3).ours, build(GEMMA_3).ours
    prompt = torch.tensor([[5, 6, 7, 8]])
    settings = {"max_new_tokens": 21, "eos_token_id": None, "assistant_confidence_threshold": 0.0}
    plain = model.generate(prompt, max_new_tokens=21, eos_token_id=None)
    read, read_by_twin = calls(model), calls(twin)
    given = model.generate(prompt, **settings, assistant_model=twin, num_assistant_tokens=4)
    assert torch.equal(plain, given)
    assert read == [4, 5, 5, 5, 5]
    assert sum(read_by_twin) == 24 - 1  # it need not read the last token, nor any token twice
    read.clear()
    model.generate(
        prompt, **settings, assistant_model=twin, num_assistant_tokens=1, num_assistant_tokens_schedule="heuristic"
    )
    assert read == [4, 2, 4, 6, 8]  # two more guesses after every full success


def test_no_guess_goes_beyond_the_length() -> None:
    model = build(GEMMA_3).ours
    read = calls(model)
    prompt = torch.full((1, 120), 5)
    given = model.generate(prompt, max_new_tokens=8, eos_token_id=None, prompt_lookup_num_tokens=50)
    assert given.shape[1] == 128
    assert sum(read) < 128 + 50
    assert max(read[1:]) <= 7


@pytest.mark.parametrize("case", [GEMMA_3, PALIGEMMA, GEMMA_3_PICTURES], ids=str)
def test_a_text_goes_on_after_guesses_as_without_a_cache(case: Case) -> None:
    """Wrong guesses and those after an end token are forgotten."""
    batch = rows(case, pictures=(1,))
    settings = {**SETTINGS, **RECORDED, "eos_token_id": None}
    whole = ours(case, batch, **settings)
    end = int(whole.sequences[0, batch.ids.shape[1] + 6])
    for guess in (LOOKUP, {"assistant_model": assistants(case).ours, "assistant_confidence_threshold": 0.0}):
        first = ours(case, batch, **{**settings, "eos_token_id": end}, **guess)
        held = first.past_key_values
        assert held.get_seq_length() == first.sequences.shape[1] - 1
        rest = {"max_new_tokens": whole.sequences.shape[1] - first.sequences.shape[1]}
        rest |= {} if batch.pixels is None else {"pixel_values": batch.pixels}  # the assistant sees them anew
        again = pair(case).ours.generate(first.sequences, **{**settings, **rest}, past_key_values=held, **guess)
        assert torch.equal(whole.sequences, again.sequences)


def test_a_guessed_picture_token_is_no_picture() -> None:
    """The words before a picture come again after it; a guess ends where the picture began."""
    before = [5, 6, 7]
    prompt = torch.tensor([[*before, 91, *[IMAGE] * 4, 92, 9, *before]])
    pixels = torch.randn(1, 3, 20, 20)
    model = pair(GEMMA_3_PICTURES).ours
    plain = model.generate(prompt, pixel_values=pixels, **SETTINGS)
    assert torch.equal(plain, model.generate(prompt, pixel_values=pixels, **SETTINGS, **LOOKUP))
    only = {**SETTINGS, "suppress_tokens": [token for token in range(99) if token not in (91, IMAGE)]}
    said = model.generate(prompt, pixel_values=pixels, **only)
    assert (said[0, 13:] == IMAGE).any()
    assert torch.equal(said, model.generate(prompt, pixel_values=pixels, **only, **LOOKUP))


@pytest.mark.parametrize("seed", range(30))
def test_a_lookup_finds_what_the_reference_finds(seed: int) -> None:
    torch.manual_seed(seed)
    ids = torch.randint(0, 2 + seed % 5, (1, 1 + seed))
    for count in (1, 3, 10):
        for longest in (1, 2, 3):
            found = PromptLookup(count, longest)(ids, 100)
            there = PromptLookupCandidateGenerator(torch.tensor([-1]), count, longest, max_length=1000)
            assert torch.equal(torch.cat([ids, found], dim=1), there.get_candidates(ids)[0])
            assert PromptLookup(count, longest)(ids, 2).shape[1] == min(2, found.shape[1])
            assert PromptLookup(count, longest)(ids, 0).shape[1] == 0


@pytest.mark.parametrize("guess", ["prompt_lookup_num_tokens", "assistant_model"])
def test_what_does_not_go_with_guesses_is_refused(guess: str) -> None:
    model = pair(GEMMA_3).ours
    given = {guess: 3 if guess.startswith("prompt") else pair(GEMMA).ours}
    prompt = torch.tensor([[5, 6, 7]])
    for wrong, name in (
        ({"num_beams": 2}, "num_beams"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences"),
        ({"use_cache": False}, "use_cache=False"),
        ({"cache_implementation": "static"}, "a static cache"),
        ({"cache_implementation": "hybrid"}, "a static cache"),
        ({"past_key_values": gemlens.StaticCache(model.text_model(), 50)}, "a static cache"),
    ):
        with pytest.raises(
            gemlens.InputError, match=f"assistant_model and prompt_lookup_num_tokens do not go with {name}"
        ):
            model.generate(prompt, **given, **wrong)
    with pytest.raises(gemlens.InputError, match="several rows"):
        model.generate(prompt.repeat(2, 1), **given)


def test_assistants_that_cannot_follow_are_refused() -> None:
    model, prompt = pair(GEMMA_3).ours, torch.tensor([[5, 6, 7]])
    more = build(GEMMA, vocab_size=120).ours
    with pytest.raises(gemlens.InputError, match="more than the model's 99 tokens"):
        model.generate(prompt, assistant_model=more)
    embeds = model.get_input_embeddings()(prompt)
    with pytest.raises(gemlens.InputError, match="do not go with inputs_embeds"):
        model.generate(inputs_embeds=embeds, assistant_model=pair(GEMMA).ours)
    seen = rows(GEMMA_3_PICTURES, pictures=(1,))
    with pytest.raises(gemlens.InputError, match="The assistant Gemma3ForCausalLM cannot see the pictures"):
        ours(GEMMA_3_PICTURES, seen, assistant_model=model)


def test_a_cache_that_has_forgotten_cannot_take_guesses() -> None:
    model, prompt = pair(GEMMA_3).ours, torch.tensor([[5, 6, 7] * 6])
    held = gemlens.DynamicCache(model.text_model())
    with pytest.raises(gemlens.InputError, match="DynamicCache\\(\\) without a config forgets nothing"):
        model.generate(prompt, **LOOKUP, max_new_tokens=20, eos_token_id=None, past_key_values=held)
    held = gemlens.DynamicCache()
    plain = model.generate(prompt, max_new_tokens=20, eos_token_id=None)
    again = model.generate(prompt, **LOOKUP, max_new_tokens=20, eos_token_id=None, past_key_values=held)
    assert torch.equal(plain, again)
