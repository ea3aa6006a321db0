"""Caches: a picture in a later turn, PaliGemma's prefix and lack of windows, rings, and an output that goes missing.

Model-facts 3.5, 4.3, 7 and pitfalls 8, 14, 15, 17, 22. What is right is the reference without a cache.
"""

from typing import Any

import pytest
import torch
import transformers
from pairs import IMAGE, PALIGEMMA_CASES, WINDOW, Batch, Case, answers, batch, build, case_named, gap, random_ids

import gemlens

GEMMA_3 = case_named("Gemma3ForConditionalGeneration")
CACHES = ["dynamic", "unforgetting", "static"]
TURNS = [
    [5, 6, 91, *[IMAGE] * 4, 92, 7, 8, 9, 10, 11, 12],
    [13, 14, 91, *[IMAGE] * 4, 92, 15, 91, *[IMAGE] * 4, 92, 16, 17],
    [18, 19, 20],
    [91, *[IMAGE] * 4, 92, 21],
]
PICTURES = [1, 2, 0, 1]


def our_cache(name: str, config: Any) -> gemlens.Cache:
    if name == "static":
        return gemlens.StaticCache(config, max_cache_len=100)
    return gemlens.DynamicCache(config) if name == "dynamic" else gemlens.DynamicCache()


def their_cache(config: Any, kind: str = "dynamic") -> transformers.Cache:
    text = config.get_text_config()
    if kind == "static":
        return transformers.StaticCache(config=text, max_cache_len=100)
    return transformers.DynamicCache(config=text)


def conversation() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Our arguments of each turn, and the reference's for all turns at once."""
    pixels = torch.randn(sum(PICTURES), 3, 20, 20).split(PICTURES)
    turns = [
        {"input_ids": torch.tensor([ids]), **({"pixel_values": part} if len(part) else {})}
        for ids, part in zip(TURNS, pixels, strict=True)
    ]
    ids = torch.cat([turn["input_ids"] for turn in turns], dim=1)
    whole = {"input_ids": ids, "pixel_values": torch.cat(pixels), "token_type_ids": (ids == IMAGE).long()}
    return turns, whole


@pytest.mark.parametrize("cache", CACHES)
@torch.no_grad()
def test_pictures_in_later_turns_give_the_uncached_whole(cache: str) -> None:
    pair = build(GEMMA_3)
    turns, whole = conversation()
    held = our_cache(cache, pair.ours.config)
    ours = torch.cat([pair.ours(**turn, past_key_values=held).logits for turn in turns], dim=1)
    assert gap(pair.reference(**whole).logits, ours) < 1e-4
    assert gap(pair.ours(input_ids=whole["input_ids"], pixel_values=whole["pixel_values"]).logits, ours) < 1e-4


@torch.no_grad()
def test_a_picture_in_a_later_turn_fails_or_is_wrong_there() -> None:
    pair = build(GEMMA_3)
    turns, whole = conversation()
    length = len(TURNS[0])
    right = pair.reference(**whole).logits[:, length : length + len(TURNS[1])]

    def second_turn(**types: torch.Tensor) -> torch.Tensor:
        cache = their_cache(pair.reference.config)
        first_types = (turns[0]["input_ids"] == IMAGE).long()
        pair.reference(**turns[0], token_type_ids=first_types, past_key_values=cache, use_cache=True)
        return pair.reference(**turns[1], **types, past_key_values=cache, use_cache=True).logits

    with pytest.raises(IndexError):  # the types of the new tokens, which its own generate passes
        second_turn(token_type_ids=(turns[1]["input_ids"] == IMAGE).long())
    assert gap(right, second_turn()) > 0.1  # no types: the picture is causal


@pytest.mark.parametrize("cache", CACHES)
@torch.no_grad()
def test_conversations_of_a_batch_may_hold_pictures_in_different_turns(cache: str) -> None:
    pair = build(GEMMA_3)
    first = torch.tensor([[0, 0, 5, 6, 7, 8, 9], [91, *[IMAGE] * 4, 92, 6]])
    second = torch.tensor([[91, *[IMAGE] * 4, 92, 6], [9, 8, 7, 6, 5, 4, 3]])
    ids = torch.cat([first, second], dim=1)
    mask = (ids > 0).long()
    pixels = torch.randn(2, 3, 20, 20)
    held = our_cache(cache, pair.ours.config)
    pair.ours(input_ids=first, pixel_values=pixels[:1], attention_mask=mask[:, :7], past_key_values=held)
    ours = pair.ours(input_ids=second, pixel_values=pixels[1:], attention_mask=mask, past_key_values=held).logits
    whole = {
        "input_ids": ids,
        "pixel_values": pixels.flip(0),
        "attention_mask": mask,
        "token_type_ids": (ids == IMAGE).long(),
    }
    assert gap(pair.reference(**whole).logits[:, 7:], ours) < 1e-4


@torch.no_grad()
def test_a_static_cache_makes_paligemmas_prompt_causal_in_the_references_generate_and_not_here() -> None:
    case = case_named("PaliGemmaForConditionalGeneration-Gemma")
    pair = build(case)
    rows = batch(case, pictures=(1, 1, 1))
    right = pair.reference(**rows.reference()).logits[:, -1]
    first_step = {}
    for name in (None, "static"):
        generated = pair.reference.generate(
            **rows.reference(), max_new_tokens=2, do_sample=False, cache_implementation=name, disable_compile=True,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        first_step[name] = generated.logits[0]
    assert gap(right, first_step[None]) < 1e-4
    assert gap(right, first_step["static"]) > 0.1
    ours = pair.ours(**rows.ours(), past_key_values=our_cache("static", pair.ours.config)).logits[:, -1]
    assert gap(right, ours) < 1e-4


def answered(case: Case, rows: Batch, news: torch.Tensor) -> dict[str, Any]:
    """The reference's arguments to read prompt and answer at once, without a cache."""
    ids = torch.cat([rows.ids, news], dim=1)
    answer = torch.nn.functional.pad(torch.ones_like(news).bool(), (rows.ids.shape[1], 0))
    whole = Batch(ids, torch.ones_like(ids).bool(), rows.pixels, answer, case.family)
    return whole.reference(labels=whole.labels, use_cache=False)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("model", ["PaliGemmaModel-Gemma2", "PaliGemmaForConditionalGeneration-Gemma2"])
@torch.no_grad()
def test_paligemma_2_forgets_its_picture_when_decoding_there_and_not_here(model: str, cache: str) -> None:
    """The original applies no window; at 896 px the reference's sliding layers drop part of the picture."""
    case = case_named(model)
    pair = build(case, sliding_window=WINDOW)
    rows, news = batch(case, pictures=(1, 1, 1)), torch.tensor([random_ids(4) for _ in range(3)])
    right = pair.reference(**answered(case, rows, news))[case.result][:, -4:]
    held = {"reference": their_cache(pair.reference.config), "ours": our_cache(cache, pair.ours.config)}
    steps: dict[str, list[torch.Tensor]] = {"reference": [], "ours": []}
    for name, cached in held.items():
        model_of = getattr(pair, name)
        model_of(**rows.ours(), past_key_values=cached, use_cache=True)
        for place, new in enumerate(news.split(1, dim=1)):
            mask = torch.ones(3, rows.ids.shape[1] + place + 1)
            output = model_of(input_ids=new, attention_mask=mask, past_key_values=cached, use_cache=True)
            steps[name].append(output[case.result])
    assert gap(right, torch.cat(steps["reference"], dim=1)) > 0.1
    assert gap(right, torch.cat(steps["ours"], dim=1)) < 1e-4


@pytest.mark.parametrize("case", [case for case in PALIGEMMA_CASES if case.has_head], ids=str)
@pytest.mark.parametrize("cache", CACHES)
@torch.no_grad()
def test_several_tokens_after_the_prompt_are_answer_without_token_types(case: Case, cache: str) -> None:
    """An extra forward pass, as in assisted decoding, need not say which tokens are answer: the cache knows."""
    pair = build(case)
    rows, news = batch(case, pictures=(1, 1, 1)), torch.tensor([random_ids(6) for _ in range(3)])
    held = our_cache(cache, pair.ours.config)
    pair.ours(**rows.ours(), past_key_values=held)
    ours = torch.cat([pair.ours(input_ids=part, past_key_values=held).logits for part in news.split([4, 2], 1)], dim=1)
    assert gap(pair.reference(**answered(case, rows, news)).logits[:, -6:], ours) < 1e-4


@pytest.mark.parametrize("first", [4, WINDOW, 12])
@pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "Gemma3ForCausalLM"])
@torch.no_grad()
def test_several_tokens_into_a_ring_are_wrong_there_and_right_here(name: str, first: int) -> None:
    pair = build(case_named(name))
    ids = torch.tensor([random_ids(3 * WINDOW) for _ in range(2)])
    right = pair.reference(input_ids=ids).logits[:, first:]
    theirs, ours = their_cache(pair.reference.config, "static"), our_cache("static", pair.ours.config)
    steps = []
    for model, cache in ((pair.reference, theirs), (pair.ours, ours)):
        model(input_ids=ids[:, :first], past_key_values=cache, use_cache=True)
        steps.append(model(input_ids=ids[:, first:], past_key_values=cache, use_cache=True).logits)
    assert gap(right, steps[0]) > 0.1
    assert gap(right, steps[1]) < 1e-4


@torch.no_grad()
def test_gemma_3_keeps_its_new_cache_to_itself_there_and_gives_it_back_here() -> None:
    for name in ("Gemma3Model", "Gemma3ForConditionalGeneration"):
        case = case_named(name)
        theirs, ours = answers(build(case), batch(case))
        assert theirs.past_key_values is None
        assert isinstance(ours.past_key_values, gemlens.DynamicCache)
    # All other classes of the reference give it back.
    theirs, _ = answers(build(case_named("Gemma3ForCausalLM")), batch(case_named("Gemma3ForCausalLM")))
    assert isinstance(theirs.past_key_values, transformers.DynamicCache)


@torch.no_grad()
def test_a_cache_that_forgets_cannot_be_cropped_in_either_and_one_that_does_not_can() -> None:
    pair = build(case_named("Gemma3ForCausalLM"))
    ids = torch.tensor([random_ids(2 * WINDOW)])
    theirs, ours = their_cache(pair.reference.config), gemlens.DynamicCache(pair.ours.config)
    pair.reference(input_ids=ids, past_key_values=theirs, use_cache=True)
    pair.ours(input_ids=ids, past_key_values=ours)
    for cache in (theirs, ours):
        with pytest.raises(ValueError, match="crop"):
            cache.crop(WINDOW)
    whole = gemlens.DynamicCache()
    pair.ours(input_ids=ids, past_key_values=whole)
    whole.crop(WINDOW + 3)
    again = pair.ours(input_ids=ids[:, WINDOW + 3 :], past_key_values=whole).logits
    assert gap(pair.reference(input_ids=ids).logits[:, WINDOW + 3 :], again) < 1e-4
