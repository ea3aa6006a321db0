"""Attention by compiled kernels, every instruction set that this processor has, against the plain specification."""

import pytest
import torch
from every_kernel import KERNELS, NATIVE, every_kernel, using
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemlens.errors import InputError
from gemlens.kernels import attention, reference
from gemlens.spans import PlainSpan, Span, View, span_of

# Of the largest value, what roundings may change where many attend: to bfloat16, or to whole numbers of sixteen bits
ROUNDED = {"avx512": 2**-7, "avx2": 2**-9}


def numbers(seed: int, batch: int, steps: int, length: int, heads: tuple[int, int], size: int) -> tuple:
    """Query, keys and values; keys and values lie in larger tensors, as a cache has them."""
    chance = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, steps, heads[0], size, generator=chance)
    held = torch.randn(2, batch, heads[1], length + 5, size, generator=chance)[..., 2 : length + 2, :]
    return query, *held


def kept(held: list[Tensor], dtype: torch.dtype, by_token: bool) -> list[Tensor]:
    """Keys and values as caches hold them: all heads of a token lie side by side, or all tokens of a head."""
    held = [reference.in_bytes(states) if dtype is torch.int8 else states.to(dtype) for states in held]
    return [states.transpose(1, 2).contiguous().transpose(1, 2) if by_token else states for states in held]


def wide(states: Tensor) -> Tensor:
    return reference.from_bytes(states).double() if states.dtype is torch.int8 else states.double()


def view_of(kind: str, seed: int, batch: int, steps: int, length: int, window: int | None) -> View | None:
    """Whom `steps` new tokens see of `length`, themselves the last of these."""
    if kind == "all":
        return None
    if kind == "plain":
        return View(PlainSpan(length - steps, steps, "cpu"), PlainSpan(0, length, "cpu"), window)
    chance = torch.Generator().manual_seed(seed)
    slots = torch.arange(length)
    real = slots >= torch.randint(0, max(1, length // 2), (batch, 1), generator=chance)
    pictures = (slots // 7 % 3 == 1) & real
    starts = pictures & ~torch.nn.functional.pad(pictures, (1, 0))[:, :-1]
    segment = slots.expand(batch, -1) // 40 if kind == "packed" else None
    span = span_of(slots, real=real, pictures=pictures, picture_starts=starts, segment=segment)
    return View(span.last(steps), Span(span.position, span.block, span.segment), window)


@every_kernel
@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["all", "plain", "pictures", "packed"]), batch=st.integers(1, 3), steps=st.integers(1, 90),
    before=st.integers(0, 300), heads=st.sampled_from([(1, 1), (4, 1), (8, 4), (3, 3)]),
    size=st.sampled_from([1, 8, 64, 72, 256]), window=st.sampled_from([None, 1, 20, 64, 500]),
    cap=st.sampled_from([None, 5.0]), seed=st.integers(0, 2**32 - 1), threads=st.integers(1, 4),
    stored=st.sampled_from(attention.KEPT), by_token=st.booleans(),
)  # fmt: skip
def test_what_is_seen_is_what_the_specification_sees(
    kernels: str, kind: str, batch: int, steps: int, before: int, heads: tuple[int, int], size: int,
    window: int | None, cap: float | None, seed: int, threads: int, stored: torch.dtype, by_token: bool,
) -> None:  # fmt: skip
    """`by_token`: all heads of a key lie side by side, else all keys of a head."""
    length = before + steps
    query, *held = numbers(seed, batch, steps, length, heads, size)
    keys, values = kept(held, stored, by_token)
    view = view_of(kind, seed, batch, steps, length, window)
    wanted = reference.attend(query.double(), wide(keys), wide(values), view, size**-0.5, cap)
    with using(attention, kernels, threads):
        got = attention.attend(query, keys, values, view, size**-0.5, cap)
    rounded = ROUNDED.get(kernels) if steps >= 16 else None
    assert got.shape == wanted.shape
    assert got.dtype == torch.float32
    assert (got - wanted).abs().max() <= (rounded or 2e-6) * float(values.abs().max())


@pytest.mark.parametrize("kernels", KERNELS[:-1])
@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 40), size=st.integers(1, 300), exponent=st.floats(-44, 38), seed=st.integers(0, 2**32 - 1),
    odd=st.sampled_from([0.0, torch.nan, torch.inf, -torch.inf]),
)  # fmt: skip
def test_bytes_are_those_of_the_specification(
    kernels: str, count: int, size: int, exponent: float, seed: int, odd: float
) -> None:
    chance = torch.Generator().manual_seed(seed)
    states = torch.randn(count, size, generator=chance) * 10.0**exponent
    states[count // 2 : count // 2 + 1, size // 2] = odd
    got = torch.empty(count, reference.width_in_bytes(size), dtype=torch.int8)
    with using(attention, kernels):
        NATIVE.to_bytes(states.data_ptr(), count, size, got.data_ptr())
    assert torch.equal(got, reference.in_bytes(states))


@pytest.mark.parametrize("kind", ["all", "packed"])
def test_it_is_an_operator_whose_shape_is_known_beforehand(kind: str) -> None:
    given = numbers(0, 2, 20, 60, (4, 2), 8)
    view = view_of(kind, 0, 2, 20, 60, 30)
    arguments = (*given, attention.numbers_of(view), None if view is None else view.window, 0.1, 5.0, False)
    torch.library.opcheck(torch.ops.gemlens.attend.default, arguments)


@every_kernel
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 2), steps=st.integers(1, 90), length=st.integers(1, 400), by_token=st.booleans(),
    heads=st.sampled_from([(1, 1), (4, 1), (3, 3)]), size=st.sampled_from([1, 3, 16, 72, 80, 256]),
    seed=st.integers(0, 2**32 - 1), stored=st.sampled_from(attention.KEPT),
)  # fmt: skip
def test_in_eight_bits_it_is_about_the_same(
    kernels: str, batch: int, steps: int, length: int, heads: tuple[int, int], size: int, seed: int,
    stored: torch.dtype, by_token: bool,
) -> None:  # fmt: skip
    query, *held = numbers(seed, batch, steps, length, heads, size)
    keys, values = kept(held, stored, by_token)
    wanted = reference.attend(query.double(), wide(keys), wide(values), None, size**-0.5, None)
    with using(attention, kernels):
        got = attention.attend(query, keys, values, None, size**-0.5, coarse=True)
    assert (got - wanted).abs().max() <= 2**-5 * float(values.abs().max())


@every_kernel
@pytest.mark.parametrize("coarse", [False, True])
def test_scores_may_grow_from_key_to_key(kernels: str, coarse: bool) -> None:
    """So that what was summed is scaled down time and again, by more than a float holds."""
    query, keys, values = numbers(3, 1, 30, 1000, (2, 2), 16)
    query, keys = torch.ones_like(query), keys * 1e-3 + torch.arange(1000.0)[:, None] * 0.1
    wanted = reference.attend(query.double(), keys.double(), values.double(), None, 0.25, None)
    with using(attention, kernels):
        got = attention.attend(query, keys, values, None, 0.25, coarse=coarse)
    assert (got - wanted).abs().max() <= 0.1 * float(values.abs().max())


@every_kernel
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_key_that_is_no_number_is_seen(kernels: str, coarse: bool, number: float) -> None:
    query, keys, values = numbers(4, 2, 40, 200, (2, 2), 16)
    keys[0, 1, 150, 3] = number
    with using(attention, kernels):
        got = attention.attend(query, keys, values, None, 0.25, coarse=coarse)
    assert bool(got[0, :, 1].isnan().any(-1).sum() > 5)
    assert bool(got[0, :, 0].isfinite().all() and got[1].isfinite().all())


@every_kernel
@pytest.mark.parametrize("steps", [3, 40])
def test_what_is_not_seen_may_be_anything(kernels: str, steps: int) -> None:
    """Keys that nobody sees change nothing, to the last bit, however large they are."""
    query, keys, values = numbers(0, 2, steps, 200, (4, 2), 64)
    view = view_of("plain", 0, 2, steps, 200, 30)
    with using(attention, kernels):
        said = attention.attend(query, keys, values, view, 0.1)
        unseen = 200 - steps - 30  # of the last of these the first query sees the next
        keys[:, :, :unseen], values[:, :, :unseen] = 1e30, 1e30
        assert torch.equal(attention.attend(query, keys, values, view, 0.1), said)


@every_kernel
@pytest.mark.parametrize("steps", [3, 40])
def test_what_is_not_seen_among_what_is_may_be_anything(kernels: str, steps: int) -> None:
    query, keys, values = numbers(0, 1, steps, 200, (4, 2), 64)
    slots = torch.arange(200)
    is_other = (slots % 5 == 2) & (slots < 200 - steps)
    span = span_of(slots, segment=is_other.long()[None])
    view = View(span.last(steps), Span(span.position, span.block, span.segment), None)
    with using(attention, kernels):
        said = attention.attend(query, keys, values, view, 0.1)
        keys[:, :, is_other], values[:, :, is_other] = 1e30, 3e38
        assert torch.equal(attention.attend(query, keys, values, view, 0.1), said)


@pytest.mark.parametrize("kernels", KERNELS[:-1])
@pytest.mark.parametrize("steps", [3, 40])
def test_rows_and_tokens_do_not_depend_on_each_other(kernels: str, steps: int) -> None:
    query, keys, values = numbers(1, 3, steps, 150, (4, 1), 64)
    view = view_of("plain", 0, 3, steps, 150, None)
    with using(attention, kernels):
        together = attention.attend(query, keys, values, view, 0.1)
        for row in range(3):
            alone = attention.attend(query[row : row + 1], keys[row : row + 1], values[row : row + 1], view, 0.1)
            assert torch.equal(alone[0], together[row])


@every_kernel
@pytest.mark.parametrize("steps", [3, 40])
def test_what_is_no_number_stays_in_its_row(kernels: str, steps: int) -> None:
    query, keys, values = numbers(2, 2, steps, 100, (4, 1), 64)
    view = view_of("plain", 0, 2, steps, 100, None)
    with using(attention, kernels):
        said = attention.attend(query, keys, values, view, 0.1)
        query[0, 1, 2, 5] = torch.nan
        again = attention.attend(query, keys, values, view, 0.1)
    assert again[0, 1, 2].isnan().all()
    again[0, 1, 2] = said[0, 1, 2]
    assert torch.equal(again, said)


def test_what_does_not_fit_is_a_sentence() -> None:
    query, keys, values = numbers(0, 2, 3, 9, (4, 2), 8)
    with pytest.raises(InputError, match=r"query is \(2, 3, 4, 8\), keys are \(2, 2, 9, 8\) and values \(2, 2, 8, 8\)"):
        attention.attend(query, keys, values[:, :, 1:], None, 1.0)
    with pytest.raises(InputError, match="K dividing N"):
        attention.attend(query[:, :, :3], keys, values, None, 1.0)
    with pytest.raises(InputError, match=r"Numbers are torch.float64, torch.float32 and torch.float32"):
        attention.attend(query.double(), keys, values, None, 1.0)
    with pytest.raises(InputError, match=r"keys and values both that, torch.bfloat16 or torch.int8"):
        attention.attend(query, keys, values.bfloat16(), None, 1.0)


@pytest.mark.parametrize("kernels", KERNELS[:-1])
def test_what_is_cached_is_rounded_as_torch_rounds(kernels: str) -> None:
    """Halfway cases, the largest numbers, and what is no number."""
    values = torch.randn(10_003, generator=torch.Generator().manual_seed(0))
    values[:6] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, torch.inf, -torch.inf, torch.nan])
    rounded = torch.empty(len(values), dtype=torch.bfloat16)
    with using(attention, kernels):
        NATIVE.to_brains(values.data_ptr(), len(values), rounded.data_ptr())
    assert torch.equal(rounded.view(torch.int16)[:5], values.bfloat16().view(torch.int16)[:5])
    assert bool(rounded[5].isnan())
    assert torch.equal(rounded[6:], values.bfloat16()[6:])
