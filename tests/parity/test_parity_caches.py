"""Prefill and steps with a cache, ours growing or static, give what the reference gives."""

import itertools
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import CACHED_CASES, WINDOW, Batch, Case, Pair, batch, build, case_named, gap, random_ids
from torch import Tensor

import gemlens

EXACT = 1e-4
STEPS = (1, 1, 3, 1, 1, 4, 1)  # tokens per call after the prompt
CACHES = ["dynamic", "unforgetting", "static"]
WINDOWED = ["Gemma2ForCausalLM", "Gemma3ForCausalLM"]


def our_cache(name: str, config: Any, room: int) -> gemlens.Cache:
    if name == "static":
        return gemlens.StaticCache(config, max_cache_len=room)
    return gemlens.DynamicCache(config) if name == "dynamic" else gemlens.DynamicCache()


def their_cache(pair: Pair) -> transformers.DynamicCache:
    return transformers.DynamicCache(config=pair.reference.config.get_text_config())


@torch.no_grad()
def walk(model: Any, rows: dict[str, Any], news: list[Tensor], cache: Any, result: str) -> list[Tensor]:
    """The results of the prompt and of each call after it."""
    results = [model(**rows, past_key_values=cache, use_cache=True)[result]]
    mask = rows["attention_mask"]
    for new in news:
        mask = torch.cat([mask, torch.ones_like(new)], dim=1)
        output = model(input_ids=new, attention_mask=mask, past_key_values=cache, use_cache=True)
        assert output.past_key_values is cache
        results.append(output[result])
    return results


def steps(count: int, sizes: tuple[int, ...] = STEPS) -> list[Tensor]:
    return [torch.tensor([random_ids(size) for _ in range(count)]) for size in sizes]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("case", CACHED_CASES, ids=str)
def test_steps_are_the_references(case: Case, padding: str, cache: str) -> None:
    pair = build(case)
    rows, news = batch(case, padding), steps(3)
    room = rows.ids.shape[1] + sum(STEPS)
    theirs = walk(pair.reference, rows.reference(), news, their_cache(pair), case.result)
    ours = walk(pair.ours, rows.ours(), news, our_cache(cache, pair.ours.config, room), case.result)
    assert gap(theirs[0], ours[0], rows.real) < EXACT
    assert max(map(gap, theirs[1:], ours[1:])) < EXACT


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("case", CACHED_CASES, ids=str)
def test_attention_weights_of_a_step_are_the_references_where_keys_are_seen(case: Case, cache: str) -> None:
    pair = build(case)
    rows, new = batch(case), torch.tensor([[5], [6], [7]])
    total = rows.ids.shape[1] + 1
    wanted = {"attention_mask": torch.ones(3, total), "use_cache": True, "output_attentions": True}
    outputs = []
    for model, arguments, held in [
        (pair.reference, rows.reference(), their_cache(pair)),
        (pair.ours, rows.ours(), our_cache(cache, pair.ours.config, total)),
    ]:
        with torch.no_grad():
            model(**arguments, past_key_values=held, use_cache=True)
            outputs.append(model(input_ids=new, past_key_values=held, **wanted).attentions)
    for their_weights, our_weights in zip(*outputs, strict=True):
        # Slots may stand in another order or hold nothing: what is seen is the same.
        seen = our_weights.sort(descending=True)[0][..., : their_weights.shape[-1]]
        assert gap(their_weights.sort(descending=True)[0][..., : seen.shape[-1]], seen) < EXACT
        assert seen.sum(-1).sub(1).abs().max() < EXACT


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW])
@pytest.mark.parametrize("name", WINDOWED)
def test_windows_begin_and_end_where_the_references_do(name: str, length: int, cache: str) -> None:
    case = case_named(name)
    pair = build(case)
    ids = torch.tensor([random_ids(length) for _ in range(2)])
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    rows = Batch(ids, mask.bool(), None, mask.bool(), "")
    with torch.no_grad():
        whole = pair.reference(input_ids=ids, attention_mask=mask).logits
        assert gap(whole, pair.ours(input_ids=ids, attention_mask=mask).logits, rows.real) < EXACT
    first = 4
    prompt = {"input_ids": ids[:, :first], "attention_mask": mask[:, :first]}
    news = list(ids[:, first:].split(1, dim=1))
    theirs = walk(pair.reference, prompt, news, their_cache(pair), "logits")
    ours = walk(pair.ours, prompt, news, our_cache(cache, pair.ours.config, length), "logits")
    assert max(map(gap, theirs[1:], ours[1:])) < EXACT
    assert gap(whole[:, first:], torch.cat(ours[1:], dim=1)) < EXACT


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("first", [1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 2 * WINDOW + 5])
@pytest.mark.parametrize("name", WINDOWED)
def test_a_prompt_cut_anywhere_gives_the_references_whole(name: str, first: int, cache: str) -> None:
    case = case_named(name)
    pair = build(case)
    length = 3 * WINDOW
    ids = torch.tensor([random_ids(length) for _ in range(2)])
    held = our_cache(cache, pair.ours.config, length)
    with torch.no_grad():
        theirs = pair.reference(input_ids=ids).logits
        ours = [
            pair.ours(input_ids=part, past_key_values=held).logits for part in ids.split([first, length - first], 1)
        ]
    assert gap(theirs, torch.cat(ours, dim=1)) < EXACT


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("name", WINDOWED)
def test_the_smallest_windows_give_the_references_whole(name: str, window: int, cache: str) -> None:
    pair = build(case_named(name), sliding_window=window)
    ids = torch.tensor([random_ids(12) for _ in range(2)])
    held = our_cache(cache, pair.ours.config, 12)
    with torch.no_grad():
        theirs = pair.reference(input_ids=ids).logits
        ours = [pair.ours(input_ids=part, past_key_values=held).logits for part in ids.split([5, 1, 3, 1, 1, 1], 1)]
    assert gap(theirs, torch.cat(ours, dim=1)) < EXACT


@given(mask=st.lists(st.lists(st.booleans(), min_size=18, max_size=18), min_size=3, max_size=3), data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
@pytest.mark.parametrize("name", ["GemmaForCausalLM", *WINDOWED])
def test_holes_anywhere_in_any_chunks_give_the_row_without_them(
    name: str, mask: list[list[bool]], data: st.DataObject
) -> None:
    """Padding may stand anywhere and the row may be cut anywhere; the reference reads the row whole, without it."""
    pair = build(case_named(name))
    real = torch.tensor(mask)
    ids = torch.tensor([random_ids(18) for _ in mask]).masked_fill(~real, 0)
    cache = data.draw(st.sampled_from(CACHES))
    cuts = sorted({0, *data.draw(st.lists(st.integers(1, 17), max_size=5)), 18})
    held = our_cache(cache, pair.ours.config, 18)
    with torch.no_grad():
        ours = [
            pair.ours(ids[:, start:end], attention_mask=real[:, :end].long(), past_key_values=held).logits
            for start, end in itertools.pairwise(cuts)
        ]
        for row, logits in enumerate(torch.cat(ours, dim=1)):
            assert logits.isfinite().all()
            if real[row].any():
                assert gap(pair.reference(ids[row : row + 1, real[row]]).logits[0], logits[real[row]]) < EXACT


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("case", CACHED_CASES, ids=str)
def test_reordered_rows_go_on_as_in_the_reference(case: Case, cache: str) -> None:
    pair = build(case)
    rows, order = batch(case, "left"), torch.tensor([2, 0, 0])
    room = rows.ids.shape[1] + 3
    mask = torch.nn.functional.pad(rows.real.long()[order], (0, 3), value=1)
    step = {"input_ids": torch.tensor([random_ids(3) for _ in range(3)]), "attention_mask": mask, "use_cache": True}
    results = []
    for model, arguments, held in [
        (pair.reference, rows.reference(), their_cache(pair)),
        (pair.ours, rows.ours(), our_cache(cache, pair.ours.config, room)),
    ]:
        with torch.no_grad():
            model(**arguments, past_key_values=held, use_cache=True)
            held.reorder_cache(order)
            results.append(model(**step, past_key_values=held)[case.result])
    assert gap(*results) < EXACT


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("case", CACHED_CASES, ids=str)
def test_a_cache_that_was_reset_serves_again(case: Case, cache: str) -> None:
    pair = build(case)
    long, short = batch(case, "left", text=20), batch(case, "right")
    held = our_cache(cache, pair.ours.config, long.ids.shape[1])
    with torch.no_grad():
        pair.ours(**long.ours(), past_key_values=held)
        held.reset()
        again = pair.ours(**short.ours(), past_key_values=held)[case.result]
        assert gap(pair.reference(**short.reference())[case.result], again, short.real) < EXACT


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("case", CACHED_CASES, ids=str)
def test_steps_after_right_padding_are_those_of_each_row_alone_in_the_reference(case: Case, cache: str) -> None:
    pair = build(case)
    rows, news = batch(case, "right"), steps(3, (1, 1, 1, 1))
    room = rows.ids.shape[1] + len(news)
    ours = walk(pair.ours, rows.ours(), news, our_cache(cache, pair.ours.config, room), case.result)
    for index in range(3):
        alone = [new[index : index + 1] for new in news]
        theirs = walk(pair.reference, rows.row(index).reference(), alone, their_cache(pair), case.result)
        for their_step, our_step in zip(theirs[1:], ours[1:], strict=True):
            assert gap(their_step[0], our_step[index]) < EXACT


@pytest.mark.parametrize("case", CACHED_CASES, ids=str)
def test_no_cache_gives_the_steps_of_the_cache(case: Case) -> None:
    """Decoding again from the start, as with use_cache=False. PaliGemma then needs to be told what is answer."""
    pair = build(case)
    rows, news = batch(case, "left"), steps(3, (1, 1, 1))
    ours = walk(pair.ours, rows.ours(), news, gemlens.DynamicCache(pair.ours.config), case.result)
    ids = torch.cat([rows.ids, *news], dim=1)
    new = torch.arange(ids.shape[1]).expand(ids.shape) >= rows.ids.shape[1]
    real = torch.nn.functional.pad(rows.real, (0, 3), value=True)
    whole = Batch(ids, real, rows.pixels, new, case.family)
    told = {"labels": whole.labels} if case.family == "paligemma" else {}
    types = {"token_type_ids": new.long()} if case.family == "paligemma" else {}
    with torch.no_grad():
        theirs = pair.reference(**whole.reference(use_cache=False, **told))[case.result]
        again = pair.ours(**whole.ours(use_cache=False, **types))[case.result]
    assert gap(theirs[:, -3:], torch.cat(ours[1:], dim=1)) < EXACT
    assert gap(theirs, again, real) < EXACT
