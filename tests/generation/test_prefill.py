"""How prompts are read: in pieces that cut no block, and every picture once, whatever is made of it."""

from typing import Any

import pytest
import torch
from compared import (
    GEMMA,
    GEMMA_3,
    PALIGEMMA,
    PALIGEMMA_2,
    PICTURES,
    RECORDED,
    SETTINGS,
    assert_same_answers,
    build,
    calls,
    ours,
    rows,
)
from pairs import HEADS, TOKENS_PER_PICTURE, Batch, Case
from torch import Tensor

import gemlens
from gemlens.spans import PADDING

ONE_TOKEN = {"max_new_tokens": 1, "eos_token_id": None, "suppress_tokens": None}


def pieces(case: Case, batch: Batch, chunk: int, **settings: Any) -> list[int]:
    """Lengths of the calls in which a prompt is read."""
    model = build(case).ours
    lengths = calls(model)
    model.generate(**batch.ours(), **{**SETTINGS, **ONE_TOKEN}, prefill_chunk_size=chunk, **settings)
    return lengths


def block_ends(case: Case, batch: Batch) -> set[int]:
    """Slots before which a prompt may be cut: in no row do they divide a block."""
    block = build(case).ours.span(batch.ids, batch.real.long()).block.expand(len(batch.ids), -1)
    divides = (block[:, 1:] == block[:, :-1]) & (block[:, 1:] != PADDING)
    return {slot + 1 for slot in range(block.shape[1] - 1) if not divides[:, slot].any()}


@pytest.mark.parametrize("chunk", [1, 3, 7, 16, 100])
@pytest.mark.parametrize("case", HEADS, ids=str)
def test_prompts_in_pieces_give_the_answers_of_whole_prompts(case: Case, chunk: int) -> None:
    for padding in ("none", "left"):
        batch = rows(case, padding=padding)
        expected = ours(case, batch, **RECORDED)
        for cache in ({}, {"cache_implementation": "static"}):
            assert_same_answers(expected, ours(case, batch, **RECORDED, **cache, prefill_chunk_size=chunk))


@pytest.mark.parametrize("chunk", [1, 2, 5, 9])
@pytest.mark.parametrize("case", HEADS, ids=str)
def test_pieces_are_as_long_as_they_may_and_cut_no_block(case: Case, chunk: int) -> None:
    for padding in ("none", "left"):
        batch = rows(case, padding=padding, pictures=(2, 1))
        lengths, allowed, start = pieces(case, batch, chunk), block_ends(case, batch), 0
        for length in lengths:
            stop = start + length
            assert stop == batch.ids.shape[1] or stop in allowed
            longer = [end for end in allowed | {batch.ids.shape[1]} if stop < end <= start + chunk]
            shorter = [end for end in allowed if start < end < stop]
            assert not longer  # or the piece could have been longer
            assert length <= chunk or not shorter  # or it could have been shorter
            start = stop
        assert start == batch.ids.shape[1]


def test_text_is_read_in_pieces_of_the_size_and_paligemmas_prompt_whole() -> None:
    assert pieces(GEMMA_3, rows(GEMMA_3), 4) == [4, 4, 4, 2]
    assert pieces(GEMMA, rows(GEMMA), 13) == [13, 1]
    assert pieces(GEMMA, rows(GEMMA), 14) == [14]
    for case in (PALIGEMMA, PALIGEMMA_2):
        batch = rows(case)
        assert pieces(case, batch, 4) == [batch.ids.shape[1]]
    padded = rows(PALIGEMMA, padding="left", pictures=(0, 0), text=12)
    assert pieces(PALIGEMMA, padded, 1)[0] == padded.ids.shape[1]  # what is padding in one row is prompt in the other
    assert pieces(GEMMA_3, rows(GEMMA_3), 4, use_cache=False) == [14]


def encoded(model: Any) -> list[int]:
    """How many pictures each call of the picture encoder takes, from now on."""
    counts: list[int] = []
    layer = model.vision_tower.vision_model.encoder.layers[0]
    layer.register_forward_pre_hook(lambda _, arguments: counts.append(len(arguments[0])))
    return counts


@pytest.mark.parametrize("case", PICTURES, ids=str)
@pytest.mark.parametrize(
    "search",
    [
        {},
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 5},
        {"prefill_chunk_size": 6},
        {"cache_implementation": "static"},
    ],
    ids=lambda search: next(iter(search), "greedy"),
)
def test_every_picture_is_encoded_once(case: Case, search: dict[str, Any]) -> None:
    model = build(case).ours
    counts = encoded(model)
    model.generate(**rows(case, pictures=(2, 1)).ours(), **{**SETTINGS, **search})
    assert sum(counts) == 3
    assert len(counts) == 1 or search.get("prefill_chunk_size")


@pytest.mark.parametrize("case", PICTURES, ids=str)
def test_guesses_and_later_turns_encode_only_what_is_new(case: Case) -> None:
    model, twin = build(case).ours, build(case).ours
    counts, by_twin = encoded(model), encoded(twin)
    batch = rows(case, pictures=(2,))
    held = model.generate(
        **batch.ours(), **{**SETTINGS, "return_dict_in_generate": True}, assistant_model=twin
    ).past_key_values
    assert (counts, by_twin) == ([2], [2])
    more = rows(case, seed=1, pictures=(1,))
    ids = torch.cat([batch.ids, torch.full((1, held.get_seq_length() + 1 - batch.ids.shape[1]), 5), more.ids], dim=1)
    pixels = torch.cat([batch.pixels, more.pixels])
    model.generate(ids, pixel_values=pixels, past_key_values=held, max_new_tokens=1)
    assert counts == [2, 1]


def test_pictures_that_do_not_match_their_tokens_are_refused() -> None:
    for case in PICTURES:
        batch = rows(case, pictures=(2, 1))
        for pixels in (batch.pixels[:2], torch.cat([batch.pixels, batch.pixels])):
            for search in ({}, {"num_beams": 2}, {"prefill_chunk_size": TOKENS_PER_PICTURE[case.family]}):
                with pytest.raises(gemlens.InputError, match="picture"):
                    build(case).ours.generate(**batch.ours(pixel_values=pixels), **search)


def test_embeddings_cannot_be_cut() -> None:
    model = build(GEMMA_3).ours
    embeds: Tensor = model.get_input_embeddings()(torch.tensor([[5, 6, 7]]))
    with pytest.raises(gemlens.InputError, match="prefill_chunk_size needs input_ids"):
        model.generate(inputs_embeds=embeds, prefill_chunk_size=2)
    whole = model.generate(inputs_embeds=embeds, max_new_tokens=2)
    assert torch.equal(whole, model.generate(inputs_embeds=embeds, prefill_chunk_size=3, max_new_tokens=2))


def test_embeddings_go_on_with_a_cache_only() -> None:
    model = build(GEMMA_3).ours
    embeds: Tensor = model.get_input_embeddings()(torch.tensor([[5, 6, 7]]))
    with pytest.raises(gemlens.InputError, match="use_cache=False needs input_ids"):
        model.generate(inputs_embeds=embeds, use_cache=False)


def test_ids_beside_embeddings_are_only_given_back() -> None:
    model, prompt = build(GEMMA_3).ours, torch.tensor([[5, 6, 7]])
    embeds = model.get_input_embeddings()(prompt)
    whole = model.generate(prompt, max_new_tokens=4)
    assert torch.equal(whole, model.generate(prompt, inputs_embeds=embeds, max_new_tokens=4))
    assert torch.equal(whole[:, 3:], model.generate(inputs_embeds=embeds, max_new_tokens=4))
