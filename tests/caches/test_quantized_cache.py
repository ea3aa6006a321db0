"""QuantizedCache: it holds what DynamicCache holds, in eight bits, whatever is done to it."""

from types import ModuleType

import calls
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemlens import DynamicCache, InputError, QuantizedCache
from gemlens.kernels.reference import from_bytes, in_bytes


def rounded(states: Tensor) -> Tensor:
    return from_bytes(in_bytes(states))


class Rounding(DynamicCache):
    """Holds what is rounded as numbers."""

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, cache_kwargs: object = None
    ) -> tuple[Tensor, Tensor]:
        return super().update(rounded(keys).to(keys.dtype), rounded(values).to(values.dtype), layer_idx)


@settings(max_examples=200)
@given(exponent=st.floats(-44, 20), size=st.integers(1, 300), seed=st.integers(0, 2**32 - 1), spread=st.integers(0, 4))
def test_numbers_are_off_by_half_a_step_at_most(exponent: float, size: int, seed: int, spread: int) -> None:
    numbers = torch.randn(3, size, generator=torch.Generator().manual_seed(seed)).pow(2 * spread + 1) * 10.0**exponent
    groups = torch.nn.functional.pad(numbers, (0, -size % 32)).unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1).repeat_interleave(32, -1)[:, :size]
    assert ((rounded(numbers) - numbers).abs() <= torch.where(largest < 1e-36, largest, 0.501 / 127 * largest)).all()


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_is_not_lost(number: float) -> None:
    numbers = torch.randn(2, 3, 72)
    numbers[0, 1, 45] = number
    wanted = torch.zeros(2, 3, 72, dtype=torch.bool)
    wanted[0, 1, 32:64] = True
    assert torch.equal(rounded(numbers).isnan(), wanted)


@settings(max_examples=60)
@given(
    steps=st.lists(st.sampled_from([1, 2, 7, 100, "crop", "swap", "repeat", "reset"]), max_size=8),
    window=st.sampled_from([None, 5]), size=st.sampled_from([1, 8, 72]), seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_it_holds_what_a_dynamic_cache_holds_rounded(
    tiny: ModuleType, steps: list[int | str], window: int | None, size: int, seed: int, dtype: torch.dtype
) -> None:
    config = None if window is None else tiny.model("gemma3", window).config
    plain, cache, chance = DynamicCache(config), QuantizedCache(config), torch.Generator().manual_seed(seed)
    for step in steps:
        if step == "crop" and window is None:
            plain.crop(3), cache.crop(3)
        elif step == "swap":
            order = torch.tensor([1, 0, *range(2, plain.rows() or 2)])
            plain.reorder_cache(order), cache.reorder_cache(order)
        elif step == "repeat" and (plain.rows() or 0) < 8:
            plain.batch_repeat_interleave(2), cache.batch_repeat_interleave(2)
        elif step == "reset":
            plain.reset(), cache.reset()
        elif isinstance(step, int):
            for layer in range(3):
                new = torch.randn(2, plain.rows() or 2, 2, step, size, generator=chance).to(dtype)
                wanted, got = plain.update(*new, layer), cache.update(*new, layer)
                for those, these in zip(wanted, got, strict=True):
                    assert these.dtype is dtype
                    assert torch.equal(these, rounded(those).to(dtype))
        assert cache.rows() == plain.rows()
        for (keys, values), (their_keys, their_values) in zip(cache, plain, strict=True):
            assert (keys is None) == (values is None) == (their_keys is None)
            if keys is not None:
                assert torch.equal(keys, rounded(their_keys))
                assert torch.equal(values, rounded(their_values))


@pytest.mark.parametrize("family", calls.FAMILIES)
@settings(max_examples=20)
@given(data=st.data(), window=st.integers(1, 9))
def test_models_see_rounded_keys_and_values(tiny: ModuleType, family: str, data: st.DataObject, window: int) -> None:
    model = tiny.model(family, window)
    batch = data.draw(calls.calls(family, window))
    assert torch.equal(
        batch.with_cache(model, QuantizedCache(model.config)), batch.with_cache(model, Rounding(model.config))
    )
    assert torch.equal(batch.with_cache(model, QuantizedCache()), batch.with_cache(model, Rounding()))


def test_it_takes_about_half_of_the_memory() -> None:
    states = torch.randn(1, 1, 100, 256).bfloat16()
    cache = QuantizedCache()
    cache.update(states, states, 0)
    assert cache.layers[0].held.nbytes == 100 * (256 + 8 * 4)


def test_gradients_are_refused(tiny: ModuleType) -> None:
    with pytest.raises(InputError, match="A QuantizedCache carries no gradients"):
        tiny.fresh("gemma3")(tiny.words(1, 4), past_key_values=QuantizedCache())


@pytest.mark.parametrize("said", [{}, {"prompt_lookup_num_tokens": 3}, {"num_beams": 3}, {"prefill_chunk_size": 4}])
def test_generate_makes_one(tiny: ModuleType, said: dict[str, int]) -> None:
    """Tokens are those of one that is given, and guesses change none."""
    model, ids = tiny.model("gemma3", 4), tiny.words(1, 12)
    told = {"max_new_tokens": 16, "do_sample": False, "return_dict_in_generate": True, "eos_token_id": None, **said}
    made = model.generate(ids, **told, cache_implementation="quantized")
    assert type(made.past_key_values) is QuantizedCache
    del told["return_dict_in_generate"]
    told.pop("prompt_lookup_num_tokens", None)
    assert torch.equal(made.sequences, model.generate(ids, **told, past_key_values=QuantizedCache()))
