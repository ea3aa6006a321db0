"""StaticCache against no cache and against DynamicCache, through whole models; and that its shapes never change."""

from types import ModuleType
from typing import Any

import calls
import pytest
import torch
from calls import Calls
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemlens import DynamicCache, InputError, StaticCache
from gemlens.caches.cache import Cache


@pytest.mark.parametrize("family", calls.FAMILIES)
@settings(max_examples=60)
@given(data=st.data(), window=st.integers(1, 9), spare=st.integers(0, 5))
def test_calls_padding_and_windows_do_not_change_the_logits(
    tiny: ModuleType, family: str, data: st.DataObject, window: int, spare: int
) -> None:
    model = tiny.model(family, window)
    batch = data.draw(calls.calls(family, window))
    static = batch.with_cache(model, StaticCache(model.config, batch.ids.shape[1] + spare))
    batch.assert_right(model, static)
    dynamic = batch.with_cache(model, DynamicCache(model.config))
    torch.testing.assert_close(static[batch.real], dynamic[batch.real], **calls.TOLERANCE)


def test_it_is_a_cache(tiny: ModuleType) -> None:
    assert isinstance(StaticCache(tiny.config("gemma3"), 4), Cache)


@pytest.mark.parametrize("family", calls.FAMILIES)
def test_buffers_are_made_once_and_never_change_their_shape(tiny: ModuleType, family: str) -> None:
    model = tiny.model(family, 4)
    cache = StaticCache(model.config, 16)
    model(**tiny.prompt(family, length=9), past_key_values=cache)
    before = [(layer.keys.data_ptr(), layer.keys.shape, layer.values.data_ptr()) for layer in cache.layers]
    for length in (1, 3, 1):
        model(tiny.words(2, length), past_key_values=cache)
    cache.reset()
    model(**tiny.prompt(family, length=7), past_key_values=cache)
    after = [(layer.keys.data_ptr(), layer.keys.shape, layer.values.data_ptr()) for layer in cache.layers]
    assert before == after


@pytest.mark.parametrize(("window", "room", "expected"), [(4, 16, [4, 16, 4]), (30, 16, [16, 16, 16])])
def test_sliding_layers_have_room_for_their_window_only(
    tiny: ModuleType, window: int, room: int, expected: list[int]
) -> None:
    cache = StaticCache(tiny.config("gemma3", window), room)
    assert [layer.max_cache_len for layer in cache.layers] == expected
    assert cache.is_sliding == [True, False, True]
    assert cache.max_cache_len == room
    assert len(cache) == 3


def test_all_layers_of_paligemma_have_room_for_everything(tiny: ModuleType) -> None:
    cache = StaticCache(tiny.config("paligemma2", 4), 16)
    assert [layer.max_cache_len for layer in cache.layers] == [16, 16, 16]


def test_single_tokens_attend_to_the_whole_buffer(tiny: ModuleType) -> None:
    """So that the shapes of decoding are the same at every step."""
    model = tiny.model("gemma3", 4)
    cache = StaticCache(model.config, 16)
    model(tiny.words(1, 6), past_key_values=cache)
    for _ in range(3):
        output = model(tiny.words(1, 1), past_key_values=cache, output_attentions=True)
        # A ring has one slot more, for what is written out of reach.
        assert [weights.shape[-1] for weights in output.attentions] == [5, 16, 5]


def test_empty_slots_are_never_seen(tiny: ModuleType) -> None:
    model = tiny.model("gemma3", 4)
    cache = StaticCache(model.config, 16)
    model(tiny.words(1, 6), past_key_values=cache)
    for layer in cache.layers:
        beyond = slice(6, None) if not layer.is_sliding else slice(4, None)
        layer.keys[:, :, beyond] = 1e4
        layer.values[:, :, beyond] = 1e4
    logits = model(tiny.words(1, 1, seed=1), past_key_values=cache).logits
    expected = model(torch.cat([tiny.words(1, 6), tiny.words(1, 1, seed=1)], dim=1), use_cache=False).logits[:, -1:]
    torch.testing.assert_close(logits, expected, **calls.TOLERANCE)


@pytest.mark.parametrize("padding", [[], [(0, 0), (0, 5), (1, 9)]])
def test_no_two_tokens_of_a_call_are_written_to_one_slot(tiny: ModuleType, padding: list[tuple[int, int]]) -> None:
    """Which of them stays would be undefined on an accelerator. The last slot of a ring is for what nobody sees."""
    model = tiny.model("gemma3", 4)
    batch = calls.text(2, 10, padding=padding)
    cache = StaticCache(model.config, 16)
    model(**batch.arguments(0, 10), past_key_values=cache)
    ring = cache.layers[0].slots
    assert ring.is_ring
    assert ring.writing is not None
    for row in ring.writing.places.tolist():
        seen = [slot for slot in row if slot < ring.size]
        assert sorted(seen) == list(range(ring.size))


@pytest.mark.parametrize(("held", "came"), [(0, 11), (4, 7), (10, 1)])
def test_what_does_not_fit_is_refused_with_the_numbers_and_changes_nothing(
    tiny: ModuleType, held: int, came: int
) -> None:
    model = tiny.model("gemma3", 4)
    cache = StaticCache(model.config, 10)
    batch = calls.text(2, 10, cuts=[held] if 0 < held < 10 else [])
    if held:
        model(batch.ids[:, :held], past_key_values=cache)
    sentence = f"room for 10 tokens; {held} are held and {came} came. .*max_cache_len={held + came} or more"
    with pytest.raises(InputError, match=sentence):
        model(tiny.words(2, came), past_key_values=cache)
    assert cache.get_seq_length() == held
    if held < 10:
        batch.assert_right(model, batch.with_cache(model, cache, first=1 if held else 0), start=held)


def test_the_room_may_be_filled_to_the_last_slot(tiny: ModuleType) -> None:
    model = tiny.model("gemma3", 4)
    batch = calls.text(1, 10, cuts=(9,))
    batch.assert_right(model, batch.with_cache(model, StaticCache(model.config, 10)))


@pytest.mark.parametrize("room", [0, -1, 2.0, None, "8", True])
def test_a_room_that_is_no_positive_number_is_refused(tiny: ModuleType, room: Any) -> None:
    with pytest.raises(InputError, match=r"max_cache_len is .* positive integer"):
        StaticCache(tiny.config("gemma3"), room)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("family", calls.FAMILIES)
def test_reordered_rows_go_on_as_the_rows_they_became(tiny: ModuleType, family: str, plain: bool) -> None:
    model = tiny.model(family, 4)
    before = calls.text(3, 12, cuts=(7, 8), padding=[] if plain else [(0, 0), (1, 5), (1, 6)])
    cache = StaticCache(model.config, 12)
    model(**before.arguments(0, 7), past_key_values=cache)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    after = before.rows([2, 0, 0])
    after.assert_right(model, after.with_cache(model, cache, first=1), start=7)


def test_rows_are_reordered_after_every_step_as_in_beam_search(tiny: ModuleType) -> None:
    model = tiny.model("gemma3", 3)
    batch = calls.text(2, 5, padding=[(0, 0), (0, 1)])
    cache = StaticCache(model.config, 12)
    model(**batch.arguments(0, 5), past_key_values=cache)
    for step, order in enumerate(([1, 0], [0, 0], [1, 1], [1, 0])):
        cache.reorder_cache(torch.tensor(order))
        batch = batch.rows(order)
        ids = torch.cat([batch.ids, tiny.words(2, 1, seed=step)], dim=1)
        real = torch.cat([batch.real, torch.ones(2, 1, dtype=torch.bool)], dim=1)
        batch = Calls(ids, real, -torch.ones(ids.shape), (ids.shape[1],))
        logits = model(**batch.arguments(5 + step, 6 + step), past_key_values=cache).logits
        batch.assert_right(model, logits, start=5 + step)


def test_reset_forgets_everything_and_the_cache_serves_another_batch(tiny: ModuleType) -> None:
    model = tiny.model("gemma3", 4)
    cache = StaticCache(model.config, 9)
    for rows, padding in ((2, [(0, 0)]), (3, []), (1, [(0, 3)])):
        batch = calls.text(rows, 9, cuts=(4, 5), padding=padding)
        batch.assert_right(model, batch.with_cache(model, cache))
        cache.reset()
        assert cache.get_seq_length() == 0
        assert cache.real_tokens() == 0


def test_after_a_reset_the_cache_serves_another_number_format(tiny: ModuleType) -> None:
    model = tiny.fresh("gemma3")
    cache = StaticCache(model.config, 9)
    model(tiny.words(2, 5), past_key_values=cache)
    cache.reset()
    model.to(torch.bfloat16)
    expected = model(tiny.words(2, 5)).logits
    torch.testing.assert_close(model(tiny.words(2, 5), past_key_values=cache).logits, expected)


def test_after_a_reset_a_cache_of_inference_mode_serves_outside(tiny: ModuleType) -> None:
    """Tensors that were made in inference mode may not be written to outside."""
    model = tiny.model("gemma3", 4)
    batch = calls.text(2, 9, cuts=(4, 5))
    cache = StaticCache(model.config, 9)
    with torch.inference_mode():
        batch.assert_right(model, batch.with_cache(model, cache))
    cache.reset()
    batch.assert_right(model, batch.with_cache(model, cache))


def test_real_tokens_and_slots_are_counted_apart(tiny: ModuleType) -> None:
    model = tiny.model("gemma3", 4)
    cache = StaticCache(model.config, 12)
    batch = calls.text(2, 8, cuts=(6, 7), padding=[(0, 0), (0, 7)])
    batch.with_cache(model, cache)
    real = cache.real_tokens()
    assert isinstance(real, Tensor)
    assert real.tolist() == [[6], [8]]
    assert cache.get_seq_length() == cache.get_seq_length(1) == 8


def test_pictures_may_come_in_later_turns_of_gemma_3(tiny: ModuleType) -> None:
    model = tiny.model("gemma3-pictures", 3)
    first, second = tiny.prompt("gemma3-pictures", rows=1, length=6), tiny.prompt("gemma3-pictures", rows=1, seed=2)
    cache = StaticCache(model.config, 15)
    cached = torch.cat([model(**turn, past_key_values=cache).logits for turn in (first, second)], dim=1)
    ids, pictures = (torch.cat([first[key], second[key]], dim) for key, dim in (("input_ids", 1), ("pixel_values", 0)))
    torch.testing.assert_close(cached, model(ids, pictures, use_cache=False).logits, **calls.TOLERANCE)


class TestMistakes:
    """Arguments that do not fit the cache are refused."""

    @pytest.mark.parametrize("rows", [1, 3])
    def test_another_number_of_rows(self, tiny: ModuleType, rows: int) -> None:
        model = tiny.model("gemma3", 4)
        batch = calls.text(2, 8, cuts=(5, 6))
        cache = StaticCache(model.config, 10)
        model(batch.ids[:, :5], past_key_values=cache)
        with pytest.raises(InputError, match=rf"2 rows.* {rows} "):
            model(tiny.words(rows, 1), past_key_values=cache)
        batch.assert_right(model, batch.with_cache(model, cache, first=1), start=5)

    def test_a_cache_made_for_fewer_layers(self, tiny: ModuleType) -> None:
        cache = StaticCache(tiny.config("gemma", num_hidden_layers=2), 10)
        with pytest.raises(InputError, match="made for 2 layers, but the model has 3"):
            tiny.model("gemma")(tiny.words(1, 3), past_key_values=cache)

    def test_keys_before_their_places_are_known(self, tiny: ModuleType) -> None:
        states = torch.zeros(1, 2, 3, 8)
        with pytest.raises(InputError, match=r"update\(\) came before extend\(\)"):
            StaticCache(tiny.config("gemma"), 4).update(states, states, 0)

    def test_packed_rows(self, tiny: ModuleType) -> None:
        model = tiny.model("gemma3", 4)
        positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
        with pytest.raises(InputError, match=r"Packed .*use_cache=False"):
            model(tiny.words(1, 6), position_ids=positions, past_key_values=StaticCache(model.config, 10))
