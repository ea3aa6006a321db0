"""DynamicCache against no cache, through whole models."""

from types import ModuleType
from typing import Any

import calls
import pytest
import torch
from calls import Calls
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemlens import DynamicCache, Gemma3TextModel, InputError
from gemlens.caches.cache import Cache

SLIDING = ("gemma2", "gemma3", "gemma3-pictures")


@pytest.mark.parametrize("family", calls.FAMILIES)
@settings(max_examples=60)
@given(data=st.data(), window=st.integers(1, 9))
def test_calls_padding_and_windows_do_not_change_the_logits(
    tiny: ModuleType, family: str, data: st.DataObject, window: int
) -> None:
    model = tiny.model(family, window)
    batch = data.draw(calls.calls(family, window))
    batch.assert_right(model, batch.at_once(model))
    batch.assert_right(model, batch.with_cache(model, DynamicCache(model.config)))
    batch.assert_right(model, batch.with_cache(model, DynamicCache()))


@pytest.mark.parametrize("family", calls.FAMILIES)
def test_the_cache_that_comes_is_the_cache_that_is_filled_and_given_back(tiny: ModuleType, family: str) -> None:
    model = tiny.model(family)
    for cache in (DynamicCache(), DynamicCache(model.config)):
        output = model(**tiny.prompt(family, length=9), past_key_values=cache)
        assert output.past_key_values is cache
        assert cache.get_seq_length() == 9


def test_a_cache_is_made_where_none_comes_and_none_where_none_is_wanted(tiny: ModuleType) -> None:
    model = tiny.model("gemma3", 4)
    made = model(tiny.words(1, 9)).past_key_values
    assert isinstance(made, DynamicCache)
    assert made.is_sliding == [True, False, True]
    assert model(tiny.words(1, 9), use_cache=False).past_key_values is None


def test_it_is_a_cache() -> None:
    assert isinstance(DynamicCache(), Cache)


@pytest.mark.parametrize("family", SLIDING)
@pytest.mark.parametrize("window", [1, 2, 5])
def test_sliding_layers_hold_at_most_the_window_but_one(tiny: ModuleType, family: str, window: int) -> None:
    model = tiny.model(family, window)
    slides = [kind == "sliding_attention" for kind in model.config.get_text_config().layer_types]
    cache, everything = DynamicCache(model.config), DynamicCache()
    for start, end in ((0, 7), (7, 8), (8, 9), (9, 13), (13, 14)):
        ids = tiny.words(2, 14)[:, start:end]
        model(ids, past_key_values=cache)
        model(ids, past_key_values=everything)
        expected = [min(window - 1, end) if sliding else end for sliding in slides]
        assert [keys.shape[2] for keys, _ in cache] == expected
        assert [values.shape[2] for _, values in cache] == expected
        assert {keys.shape[2] for keys, _ in everything} == {end}
        assert cache.get_seq_length() == everything.get_seq_length() == end
    assert cache.is_sliding == slides


def test_what_sliding_layers_forget_leaves_the_memory(tiny: ModuleType) -> None:
    model = tiny.model("gemma3", 3)
    cache = model(tiny.words(1, 100)).past_key_values
    keys, _ = cache[0]
    assert keys.untyped_storage().nbytes() == keys.nbytes


def test_the_decoder_of_paligemma_2_forgets_nothing_although_its_config_has_windows(tiny: ModuleType) -> None:
    model = tiny.model("paligemma2", 3)
    assert set(model.config.text_config.windows) == {3, None}
    for part in (model, model.language_model):
        cache = part(tiny.words(1, 9)).past_key_values
        assert {keys.shape[2] for keys, _ in cache} == {9}


def test_right_padded_prompts_go_on_as_if_they_had_no_padding_past_the_window(tiny: ModuleType) -> None:
    """A window counts real tokens. If it counted slots, the padding would push text out of sight."""
    model = tiny.model("gemma3", 4)
    batch = calls.text(2, 12, cuts=(8, 9, 10, 11), padding=[(0, slot) for slot in range(3, 8)])
    cache = DynamicCache(model.config)
    batch.assert_right(model, batch.with_cache(model, cache))
    real = cache.real_tokens()
    assert isinstance(real, Tensor)
    assert real.tolist() == [[7], [12]]


def test_a_row_may_begin_in_a_later_call(tiny: ModuleType) -> None:
    model = tiny.model("gemma3", 4)
    batch = calls.text(2, 9, cuts=(3, 5), padding=[(1, slot) for slot in range(4)])
    batch.assert_right(model, batch.with_cache(model, DynamicCache(model.config)))


@pytest.mark.parametrize("later", [1, 2])
def test_pictures_may_come_in_later_turns_of_gemma_3(tiny: ModuleType, later: int) -> None:
    model = tiny.model("gemma3-pictures", 3)
    turns = [tiny.prompt("gemma3-pictures", rows=1, length=length, seed=length) for length in (6, 7, 8)]
    for number, turn in enumerate(turns):
        if number not in (0, later):
            turns[number] = {"input_ids": tiny.words(1, 5)}
        turn["input_ids"] = turn["input_ids"].roll(1, dims=1)  # text, picture, text
    cache = DynamicCache(model.config)
    cached = torch.cat([model(**turn, past_key_values=cache).logits for turn in turns], dim=1)
    ids = torch.cat([turn["input_ids"] for turn in turns], dim=1)
    pictures = torch.cat([turn["pixel_values"] for turn in turns if "pixel_values" in turn])
    torch.testing.assert_close(cached, model(ids, pictures, use_cache=False).logits, **calls.TOLERANCE)


def read_then(tiny: ModuleType, family: str, change: Any, index: list[int], plain: bool = False) -> None:
    """Reads a prompt, changes the cache's rows, goes on; compares with the changed rows on their own."""
    model = tiny.model(family, 4)
    padding = [] if plain else [(0, 0), (1, 5), (1, 6)]
    before = calls.text(3, 12, cuts=(7, 8), padding=padding)
    if family in tiny.PICTURE_FAMILIES:
        before.ids[2, 1:5], before.pictures[2, 1] = tiny.PICTURE, 5
    cache = DynamicCache(model.config)
    model(**before.arguments(0, 7), past_key_values=cache)
    change(cache)
    after = before.rows(index)
    after.assert_right(model, after.with_cache(model, cache, first=1), start=7)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("family", calls.FAMILIES)
class TestRows:
    """What beam search and batches do to the rows of a cache."""

    def test_reordered_rows_go_on_as_the_rows_they_became(self, tiny: ModuleType, family: str, plain: bool) -> None:
        read_then(tiny, family, lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0], plain)

    def test_selected_rows_go_on_alone(self, tiny: ModuleType, family: str, plain: bool) -> None:
        read_then(tiny, family, lambda cache: cache.batch_select_indices(torch.tensor([1])), [1], plain)

    def test_repeated_rows_go_on_side_by_side(self, tiny: ModuleType, family: str, plain: bool) -> None:
        read_then(tiny, family, lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2], plain)


def test_rows_are_reordered_after_every_step_as_in_beam_search(tiny: ModuleType) -> None:
    model = tiny.model("gemma3", 3)
    beams = [torch.tensor(order) for order in ([1, 0], [0, 0], [1, 1], [1, 0])]
    batch = calls.text(2, 5, padding=[(0, 0), (0, 1)])
    cache = DynamicCache(model.config)
    model(**batch.arguments(0, 5), past_key_values=cache)
    for step, beam in enumerate(beams):
        cache.reorder_cache(beam)
        batch = batch.rows(beam)
        one = torch.ones(2, 1, dtype=torch.bool)
        ids = torch.cat([batch.ids, tiny.words(2, 1, seed=step)], dim=1)
        batch = Calls(ids, torch.cat([batch.real, one], dim=1), -torch.ones(ids.shape), (ids.shape[1],))
        logits = model(**batch.arguments(5 + step, 6 + step), past_key_values=cache).logits
        batch.assert_right(model, logits, start=5 + step)


def test_changing_the_rows_of_an_empty_cache_does_nothing() -> None:
    cache = DynamicCache()
    cache.batch_repeat_interleave(3)
    cache.reorder_cache(torch.tensor([0]))
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize(("length", "kept"), [(5, 5), (-4, 5), (9, 9), (20, 9), (0, 0), (-20, 0)])
@pytest.mark.parametrize("padding", [[], [(0, 0), (1, 4), (1, 8)]])
def test_a_cropped_cache_goes_on_as_if_the_rest_had_not_been_read(
    tiny: ModuleType, length: int, kept: int, padding: list[tuple[int, int]]
) -> None:
    model = tiny.model("gemma3", 3)
    batch = calls.text(2, 9, padding=padding)
    cache = DynamicCache()
    model(**batch.arguments(0, 9), past_key_values=cache)
    cache.crop(length)
    assert cache.get_seq_length() == kept
    ids = torch.cat([batch.ids[:, :kept], tiny.words(2, 4, seed=7)], dim=1)
    real = torch.cat([batch.real[:, :kept], torch.ones(2, 4, dtype=torch.bool)], dim=1)
    other = Calls(ids, real, -torch.ones(ids.shape), (kept, kept + 2, kept + 4) if kept else (2, 4))
    other.assert_right(model, other.with_cache(model, cache, first=1 if kept else 0), start=kept)


def test_a_sliding_cache_can_be_cropped_until_it_forgets(tiny: ModuleType) -> None:
    model = tiny.model("gemma3", 6)
    batch = calls.text(1, 8, cuts=(3,))
    cache = DynamicCache(model.config)
    model(batch.ids[:, :5], past_key_values=cache)
    cache.crop(3)
    batch.assert_right(model, batch.with_cache(model, cache, first=1), start=3)


def test_a_crop_that_would_need_what_is_forgotten_is_refused_and_changes_nothing(tiny: ModuleType) -> None:
    model = tiny.model("gemma3", 4)
    batch = calls.text(2, 12, cuts=(9, 10), padding=[(1, 0)])
    cache = DynamicCache(model.config)
    model(**batch.arguments(0, 9), past_key_values=cache)
    with pytest.raises(InputError, match=r"from 9 to 6 tokens: .*window of 4.*hold only the last 3.*DynamicCache\(\)"):
        cache.crop(6)
    assert cache.get_seq_length() == 9
    batch.assert_right(model, batch.with_cache(model, cache, first=1), start=9)


def test_a_refused_crop_changes_no_layer_whichever_forgot(tiny: ModuleType) -> None:
    """Layers with another window may still hold everything; they must not be cropped before the others are asked."""
    for windows in ((8, 4, 8), (4, 8, 4), (None, 4, 8)):
        model = tiny.build(Gemma3TextModel, tiny.config("gemma3"), windows=windows)
        cache, untouched = DynamicCache(model), DynamicCache(model)
        for each in (cache, untouched):
            model(tiny.words(1, 6), past_key_values=each)
        with pytest.raises(InputError, match="window of 4"):
            cache.crop(3)
        more = tiny.words(1, 2, seed=1)
        hidden, expected = (model(more, past_key_values=each).last_hidden_state for each in (cache, untouched))
        torch.testing.assert_close(hidden, expected, **calls.TOLERANCE)


def test_reset_forgets_everything_and_the_cache_serves_another_batch(tiny: ModuleType) -> None:
    model = tiny.model("gemma3", 4)
    cache = DynamicCache(model.config)
    for rows, padding in ((2, [(0, 0)]), (3, []), (1, [(0, 3)])):
        batch = calls.text(rows, 9, cuts=(4, 5), padding=padding)
        batch.assert_right(model, batch.with_cache(model, cache))
        cache.reset()
        assert cache.get_seq_length() == 0
        assert cache.real_tokens() == 0


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3"])
def test_legacy_tuples_go_out_and_come_back(tiny: ModuleType, family: str) -> None:
    model = tiny.model(family, 4)
    batch = calls.text(2, 9, cuts=(6, 7))
    cache = DynamicCache()
    model(batch.ids[:, :6], past_key_values=cache)
    legacy = cache.to_legacy_cache()
    assert len(legacy) == len(cache) == 3
    assert all(tensor.shape == (2, 2, 6, 8) for pair in legacy for tensor in pair)
    assert all(torch.equal(keys, cache[index][0]) for index, (keys, _) in enumerate(legacy))
    back = DynamicCache.from_legacy_cache(legacy)
    assert back.get_seq_length() == 6
    batch.assert_right(model, batch.with_cache(model, back, first=1), start=6)


def test_legacy_tuples_of_layers_that_forgot_are_refused(tiny: ModuleType) -> None:
    """Their layers hold different numbers of slots, and nothing says where they stood."""
    cache = tiny.model("gemma3", 4)(tiny.words(1, 9)).past_key_values
    with pytest.raises(InputError, match=r"3.*9|9.*3"):
        DynamicCache.from_legacy_cache(cache.to_legacy_cache())


def test_no_legacy_tuple_is_an_empty_cache() -> None:
    for nothing in (None, ()):
        assert DynamicCache.from_legacy_cache(nothing).get_seq_length() == 0


@pytest.mark.parametrize(("rows", "heads", "size"), [(1, 1, 256), (2, 3, 128), (3, 64, 256), (1, 1, 1)])
def test_what_is_held_stays_where_it_grows_past_what_is_moved_at_once(rows: int, heads: int, size: int) -> None:
    """Also where one slot is more than that."""
    cache, chance = DynamicCache(), torch.Generator().manual_seed(0)
    parts = [torch.randn(rows, heads, count, size, generator=chance) for count in (300, 1, 80, 1, 90)]
    for part in parts:
        cache.update(part, -part, 0)
    keys, values = cache[0]
    assert torch.equal(keys, torch.cat(parts, 2))
    assert torch.equal(values, -torch.cat(parts, 2))


def test_packed_rows_without_a_cache_are_read_apart(tiny: ModuleType) -> None:
    model = tiny.model("gemma3", 4)
    ids, positions = tiny.words(1, 6), torch.tensor([[0, 1, 2, 0, 1, 2]])
    packed = model(ids, position_ids=positions, use_cache=False).logits[:, 3:]
    torch.testing.assert_close(packed, model(ids[:, 3:]).logits, **calls.TOLERANCE)
