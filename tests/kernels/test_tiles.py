"""Compiled kernels, every instruction set that this processor has, against the plain specification."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from every_kernel import KERNELS, NATIVE, every_kernel, using
from hypothesis import given, settings
from hypothesis import strategies as st

from gemlens.errors import InputError
from gemlens.kernels import machine as machines
from gemlens.kernels import reference, tiles
from gemlens.kernels.formats import BY_TYPE_ID, Q2_K, Q8_0, Format
from gemlens.kernels.machine import Machine, cores, machine
from gemlens.kernels.tiles import FORMATS

every_format = pytest.mark.parametrize("block_format", FORMATS, ids=lambda block_format: block_format.name)
HALVES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # where a block has its scales; else in front

CODES = {name: slice(2, None) for name in ("Q4_0", "Q5_0", "Q8_0")}  # where they are in a block
CODES |= {"Q4_K": slice(16, None), "Q5_K": slice(16, None), "Q6_K": slice(0, 192)}


def blocks(block_format: Format, count: int, seed: int) -> torch.Tensor:
    """Random codes with scales of usual size."""
    chance = np.random.default_rng(seed)
    raw = chance.integers(0, 256, (count, block_format.block_bytes), dtype=np.uint8)
    for place in HALVES.get(block_format.name, (0,)):
        scales = chance.uniform(-0.01, 0.01, (count, 1)).astype(np.float16)
        raw[:, place : place + 2] = scales.view(np.uint8)
    return torch.from_numpy(raw.reshape(-1))


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch):
    def change(kernels: str, threads: int = 2) -> None:
        if kernels != machines.REFERENCE:
            NATIVE.use(kernels, threads)
        native = None if kernels == machines.REFERENCE else NATIVE
        monkeypatch.setattr(tiles, "machine", lambda: Machine(kernels, threads, native))

    yield change
    machine.cache_clear()


@every_kernel
@every_format
@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 70), width=st.integers(1, 3), tokens=st.integers(0, 64), seed=st.integers(0, 2**32 - 1),
    threads=st.integers(1, 5), largest=st.sampled_from([0.0, 1e-30, 1.0, 1e30]), bits=st.sampled_from([8, 16]),
    peaks=st.integers(0, 5),
)  # fmt: skip
def test_products_and_rows_are_those_of_the_specification(
    kernels: str, block_format: Format, count: int, width: int, tokens: int, seed: int, threads: int, largest: float,
    bits: int, peaks: int,
) -> None:  # fmt: skip
    width *= 1 if block_format.is_quantized else 37
    shape = (count, width * block_format.block_size)
    data = blocks(block_format, count * width, seed)
    chance = torch.Generator().manual_seed(seed)
    x = largest * torch.randn(tokens, shape[1], generator=chance)
    x.scatter_(1, torch.randint(shape[1], (tokens, peaks), generator=chance), 100 * largest)
    with using(tiles, kernels, threads):
        packed = replace(tiles.pack(data, block_format, shape), bits=bits)
        got = tiles.linear(x, packed)
        every = tiles.rows(torch.arange(count), packed)
    weights = reference.dequantize(data, block_format, shape)
    assert torch.equal(every, weights)
    seen = (reference.in_bits(x, bits) if block_format.is_quantized else x).double()
    wanted, most = seen @ weights.T.double(), seen.abs() @ weights.T.abs().double()
    assert got.shape == wanted.shape
    assert ((got - wanted).abs() <= 1e-6 * most + 1e-37).all()


@pytest.mark.parametrize("kernels", KERNELS[:-1])
@every_format
def test_a_token_has_the_same_products_alone_and_beside_others(kernels: str, block_format: Format, use) -> None:
    """To the last bit, with peaks and without."""
    use(kernels)
    width = 2 * max(256, block_format.block_size)
    packed = tiles.pack(blocks(block_format, 40 * width // block_format.block_size, 0), block_format, (40, width))
    x = torch.randn(33, width, generator=torch.Generator().manual_seed(0))
    x[::2, ::100] *= 100
    all_together = tiles.linear(x, packed)
    for count in (1, 2, 5, 8):
        assert torch.equal(tiles.linear(x[:count], packed), all_together[:count])


@every_kernel
@pytest.mark.parametrize("block_format", [each for each in FORMATS if each.is_quantized], ids=lambda each: each.name)
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x7F, 0x80])
def test_sums_in_few_bits_hold_the_largest_that_there_can_be(
    kernels: str, block_format: Format, byte: int, use
) -> None:
    use(kernels)
    shape = 18, 2 * block_format.block_size
    raw = blocks(block_format, 36, seed=0).view(36, -1)
    raw[:, CODES[block_format.name]] = byte
    data = raw.reshape(-1)
    weights = reference.dequantize(data, block_format, shape).double()
    packed = tiles.pack(data, block_format, shape)
    for tokens in (1, 2, 4, 8, 24):
        for x in (torch.ones(tokens, shape[1]), -torch.ones(tokens, shape[1])):
            most = x.abs().double() @ weights.abs().T
            assert ((tiles.linear(x, packed) - x.double() @ weights.T).abs() <= 1e-5 * most).all()


@every_kernel
def test_any_bytes_are_legal(kernels: str, use) -> None:
    """Infinite and undefined scales give infinite and undefined weights, as the specification says, and no crash."""
    use(kernels)
    for block_format in FORMATS:
        raw = torch.from_numpy(np.random.default_rng(1).integers(0, 256, 64 * block_format.block_bytes, dtype=np.uint8))
        shape = (64, block_format.block_size)
        packed = tiles.pack(raw, block_format, shape)
        wanted = reference.dequantize(raw, block_format, shape)
        assert torch.equal(tiles.rows(torch.arange(64), packed).nan_to_num(7.0), wanted.nan_to_num(7.0))
        assert tiles.linear(torch.ones(3, shape[1]), packed).shape == (3, 64)


@every_kernel
@pytest.mark.parametrize("bits", [8, 16])
def test_numbers_that_are_not_finite_or_hardly_there(kernels: str, bits: int, use) -> None:
    use(kernels)
    packed = replace(tiles.pack(blocks(Q8_0, 64, 0), Q8_0, (32, 64)), bits=bits)
    x = torch.zeros(5, 64)
    x[0, 3], x[1, 40], x[2, 63], x[3, 5], x[4, 5] = torch.inf, -torch.inf, torch.nan, 1e-45, 1e-37
    got = tiles.linear(x, packed)
    assert got[:3].isnan().all()
    assert not got[3:].any()


def test_a_process_that_was_forked_has_threads_of_its_own() -> None:
    """It has none of those of its parent, for which it would wait for ever."""
    program = """
import os, torch
from gemlens.kernels import tiles
from gemlens.kernels.formats import Q8_0
packed = tiles.pack(torch.zeros(34 * 2048, dtype=torch.uint8), Q8_0, (2048, 32))
x = torch.ones(1, 32)
for generation in range(3):
    assert not tiles.linear(x, packed).any()
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(7)
"""
    environment = {**os.environ, "GEMLENS_THREADS": "3"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=environment, timeout=60)
    assert done.returncode == 7


@every_kernel
def test_other_dtypes_axes_and_strides_come_back_as_they_came(kernels: str, use) -> None:
    use(kernels)
    packed = tiles.pack(blocks(Q8_0, 40, 0), Q8_0, (20, 64))
    x = torch.randn(64, 3, 2, 5).bfloat16().permute(1, 2, 3, 0)
    got = tiles.linear(x, packed)
    assert got.dtype == torch.bfloat16
    assert got.shape == (3, 2, 5, 20)
    assert torch.equal(got, tiles.linear(x.contiguous(), packed))
    assert tiles.linear(x[0, 0, 0], packed).shape == (20,)
    assert tiles.rows(torch.tensor([[3, 0], [19, 3]]), packed).shape == (2, 2, 64)


def test_what_does_not_fit_is_a_sentence() -> None:
    with pytest.raises(InputError, match="No kernel computes in Q2_K; there are kernels for F16, BF16, Q4_0"):
        tiles.pack(torch.zeros(84, dtype=torch.uint8), Q2_K, (1, 256))
    with pytest.raises(InputError, match="34 bytes came, but Q8_0"):
        tiles.pack(torch.zeros(34, dtype=torch.uint8), Q8_0, (2, 32))
    packed = tiles.pack(torch.zeros(34, dtype=torch.uint8), Q8_0, (1, 32))
    with pytest.raises(InputError, match="its last axis must be 32"):
        tiles.linear(torch.zeros(2, 64), packed)
    with pytest.raises(InputError, match="ids go from -1 to 0, but there are 1 rows"):
        tiles.rows(torch.tensor([0, -1]), packed)


def test_torch_knows_the_shapes_beforehand() -> None:
    packed = tiles.pack(blocks(Q8_0, 40, 0), Q8_0, (20, 64))
    arguments = (packed.data, Q8_0.type_id, 20, 64)
    torch.library.opcheck(torch.ops.gemlens.linear.default, (torch.randn(3, 64), *arguments, 8))
    torch.library.opcheck(torch.ops.gemlens.rows.default, (torch.tensor([1, 2]), *arguments))


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_environment_forces_a_path(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMLENS_KERNELS", kernels)
    monkeypatch.setenv("GEMLENS_THREADS", "3")
    machine.cache_clear()
    assert (machine().kernels, machine().threads) == (kernels, min(3, cores()))  # more would wait for each other
    machine.cache_clear()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("GEMLENS_KERNELS", "sse9", "must be one of reference, portable, avx2, avx512"),
        ("GEMLENS_THREADS", "none", "must be a number of threads from 1 to 1024"),
        ("GEMLENS_THREADS", "0", "must be a number of threads from 1 to 1024"),
    ],
)
def test_an_environment_that_asks_for_nonsense_is_a_sentence(
    name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    machine.cache_clear()
    with pytest.raises(InputError, match=sentence):
        machine()
    machine.cache_clear()


def test_without_compiled_kernels_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "_native", lambda: None)
    machine.cache_clear()
    with pytest.warns(UserWarning, match="installed without a C\\+\\+ compiler"):
        assert machine().kernels == machines.REFERENCE
    monkeypatch.setenv("GEMLENS_KERNELS", "avx2")
    machine.cache_clear()
    with pytest.raises(InputError, match="here run only reference"):
        machine()
    machine.cache_clear()


def test_a_process_that_ends_while_threads_wait_ends_cleanly() -> None:
    code = (
        "import torch; from gemlens.kernels import tiles; from gemlens.kernels.formats import Q8_0;"
        "tiles.linear(torch.ones(2, 32), tiles.pack(torch.zeros(34 * 64, dtype=torch.uint8), Q8_0, (64, 32)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_format_of_the_kernels_is_a_format() -> None:
    assert all(BY_TYPE_ID[block_format.type_id] is block_format for block_format in FORMATS)


@every_kernel
@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 3000), width=st.integers(1, 6), k=st.integers(1, 50), seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.0, 0.1, 1.0, 1e36]), ties=st.booleans(), outliers=st.integers(0, 6),
    bits=st.sampled_from([8, 16]), screens=st.booleans(),
)  # fmt: skip
def test_the_largest_products_are_those_of_all(
    kernels: str, count: int, width: int, k: int, seed: int, spread: float, ties: bool, outliers: int, bits: int,
    screens: bool,
) -> None:  # fmt: skip
    shape, chance = (count, 32 * width), torch.Generator().manual_seed(seed)
    data = blocks(Q8_0, count * width, seed)
    if ties and count > 1:  # every second row is the same
        raw = data.view(count, -1)
        raw[1::2] = raw[1:2].clone()
    x = torch.randn(shape[1], generator=chance) * spread
    x[torch.randint(shape[1], (outliers,), generator=chance)] *= 30  # these are bounded otherwise than the others
    with using(tiles, kernels):
        packed = replace(tiles.pack(data, Q8_0, shape), bits=bits)
        products = tiles.linear(x, packed)
        found = tiles.largest(x, packed, min(k, count), screens)
    least = products.topk(min(k, count)).values[-1]
    assert torch.equal(found.products, products.where(products >= least, -torch.inf))
    assert found.products.isfinite().float().mean() <= found.computed <= 1


@every_kernel
def test_the_screen_counts_what_the_first_eight_bits_leave(kernels: str) -> None:
    """By these a row holds less than 112 tiles before it, which are computed first; by what they leave, more."""
    x = torch.where(torch.arange(32) % 3 == 1, -0.4, 0.4)
    x[:4] = 127  # too many to stand out
    codes = torch.zeros(1808, 32, dtype=torch.int8)
    codes[:, 0] = 5
    codes[1800] = 127 * x.sign()
    codes[1800, :4] = torch.tensor([-1, 0, 0, 0])
    scales = torch.full((1808, 1), 0.01, dtype=torch.float16)
    scales[1792:] = 0
    scales[1800] = 0.01
    data = torch.cat([scales.view(torch.uint8), codes.view(torch.uint8)], 1).flatten()
    with using(tiles, kernels):
        packed = replace(tiles.pack(data, Q8_0, (1808, 32)), bits=16)
        products = tiles.linear(x, packed)
        found, best = tiles.largest(x, packed, 1), tiles.best(x.unsqueeze(0), packed)
        all_found, all_best = tiles.largest(x, packed, 1, False), tiles.best(x.unsqueeze(0), packed, False)
    assert products.argmax() == best.rows == all_best.rows == 1800
    assert best.products == all_best.products == products[1800]
    assert torch.equal(found.products, products.where(products >= products[1800], -torch.inf))
    assert torch.equal(all_found.products, found.products)


@every_kernel
@pytest.mark.parametrize("bits", [8, 16])
def test_the_screen_counts_what_lower_halves_add_to_a_peak(kernels: str, bits: int) -> None:
    """It decides here, and 112 tiles before the tokens' rows, which are computed first, say more than their uppers."""
    peaks, rows = 3 + 5 * torch.arange(12), 1800 + 16 * torch.arange(12)  # each token has its own
    x = torch.where(torch.arange(64) % 3 == 1, -0.1, 0.1).repeat(12, 1)
    x[range(12), peaks] = 100
    codes = torch.zeros(1984, 64, dtype=torch.int8)
    codes[:1792, peaks] = 23  # 16 and 7
    codes[rows, peaks] = 31  # 16 and 15
    scales = torch.full((1984, 2, 1), 0.01, dtype=torch.float16)
    scales[1792:] = 0
    scales[rows] = 0.0076
    data = torch.cat([scales.view(torch.uint8), codes.view(torch.uint8).view(1984, 2, 32)], 2).flatten()
    with using(tiles, kernels):
        packed = replace(tiles.pack(data, Q8_0, (1984, 64)), bits=bits)
        products = tiles.linear(x, packed)
        found, firsts = tiles.largest(x[0], packed, 1), [tiles.best(x[:count], packed) for count in (1, 4, 8, 12)]
    assert torch.equal(products.argmax(-1), rows)
    for best in firsts:
        assert torch.equal(best.rows, rows[: len(best.rows)])
    assert torch.equal(found.products, products[0].where(products[0] >= products[0, 1800], -torch.inf))


@every_kernel
@pytest.mark.parametrize("outliers", [0, 2, 12])
@pytest.mark.parametrize("seed", range(5))
def test_the_screen_keeps_a_row_whose_lower_halves_decide(kernels: str, outliers: int, seed: int) -> None:
    """Its upper halves say 0, and 112 tiles before it, which are computed first, say more than it and hold less."""
    chance = torch.Generator().manual_seed(seed)
    half = torch.randn(48, generator=chance)
    half[:outliers] *= 30
    x = torch.cat([half, -half])[torch.randperm(96, generator=chance)]
    codes = torch.where(x > 0, 7, -7).to(torch.int8).repeat(1808, 1)  # 7 |x|, and 8 |x| by upper halves
    codes[1800] = torch.where(x > 0, 15, 0)  # 7.5 |x|
    scales = torch.full((1808, 3, 1), 0.01, dtype=torch.float16)
    scales[1792:] = 0
    scales[1800] = 0.01
    data = torch.cat([scales.view(torch.uint8), codes.view(torch.uint8).view(1808, 3, 32)], 2).flatten()
    with using(tiles, kernels):
        packed = tiles.pack(data, Q8_0, (1808, 96))
        products = tiles.linear(x, packed)
        found, best = tiles.largest(x, packed, 1), tiles.best(x.unsqueeze(0), packed)
    assert products.argmax() == best.rows == 1800
    assert torch.equal(found.products, products.where(products >= products[1800], -torch.inf))


@every_kernel
@every_format
@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(1, 6000), width=st.integers(1, 3), tokens=st.integers(0, 20), seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.0, 0.1, 1.0, 3e36]), ties=st.booleans(), screens=st.booleans(), threads=st.integers(1, 4),
    bits=st.sampled_from([8, 16]), peaks=st.integers(0, 3),
)  # fmt: skip
def test_the_best_product_of_each_token_is_that_of_all(
    kernels: str, block_format: Format, count: int, width: int, tokens: int, seed: int, spread: float, ties: bool,
    screens: bool, threads: int, bits: int, peaks: int,
) -> None:  # fmt: skip
    """And its row the first that has it."""
    if block_format is not Q8_0:  # no screen, which is what asks for many rows and large numbers
        count, spread = count % 600 + 1, min(spread, 1.0)
    shape, chance = (count, width * max(block_format.block_size, 32)), torch.Generator().manual_seed(seed)
    data = blocks(block_format, count * shape[1] // block_format.block_size, seed)
    if ties:  # rows come twice
        raw = data.view(count, -1)
        raw[count - count // 2 :] = raw[: count // 2].clone()
    x = torch.randn(tokens, shape[1], generator=chance) * spread
    x.scatter_(1, torch.randint(shape[1], (tokens, peaks), generator=chance), 30 * spread)
    with using(tiles, kernels, threads):
        packed = replace(tiles.pack(data, block_format, shape), bits=bits)
        products = tiles.linear(x, packed)
        found = tiles.best(x, packed, screens)
    assert torch.equal(found.products, products.amax(-1))
    assert found.rows.tolist() == products.numpy().argmax(-1).tolist()
    assert 0 < found.computed <= 1 or not tokens


@pytest.mark.parametrize("kernels", KERNELS[:-1])
def test_of_many_rows_few_are_computed_for_the_best(kernels: str) -> None:
    """Of those that lie like a token, not of those that do not; and the token's neighbours change nothing."""
    chance = torch.Generator().manual_seed(0)
    x, codes = torch.randn(3, 320, generator=chance), torch.randint(-127, 128, (8000, 320), generator=chance)
    codes[4321] = (x[1] * 127 / x[1].abs().max()).round()
    scales = torch.full((8000, 10, 1), 0.01, dtype=torch.float16)
    data = torch.cat([scales.view(torch.uint8), codes.to(torch.int8).view(torch.uint8).view(8000, 10, 32)], 2).flatten()
    with using(tiles, kernels):
        packed = tiles.pack(data, Q8_0, (8000, 320))
        alone, all_computed, together = tiles.best(x[1:2], packed), tiles.best(x, packed, False), tiles.best(x, packed)
    assert alone.rows == 4321
    assert all(map(torch.equal, (together.products, together.rows), (all_computed.products, all_computed.rows)))
    assert alone.products == together.products[1]
    assert alone.computed < 0.05
    assert all_computed.computed == 1


@every_kernel
def test_the_best_of_what_is_not_finite_is_no_number(kernels: str) -> None:
    x = torch.zeros(3, 64)
    x[0, 3], x[2, 40] = torch.inf, torch.nan
    data = blocks(Q8_0, 64, 0)
    weights = data.clone().view(32, 2, 34)
    weights[20, 1, :2] = torch.tensor([float("nan")], dtype=torch.float16).view(torch.uint8)
    with using(tiles, kernels):
        found = tiles.best(x, tiles.pack(data, Q8_0, (32, 64)))
        of_weights = tiles.best(torch.ones(1, 64), tiles.pack(weights.flatten(), Q8_0, (32, 64)))
    assert found.products[[0, 2]].isnan().all()
    assert found.products[1] == 0
    assert of_weights.products.isnan()
    assert of_weights.rows == 20


@every_kernel
def test_a_token_of_numbers_whose_bounds_no_float_holds_is_not_screened(kernels: str) -> None:
    """By their upper halves all products would be minus infinity."""
    chance = torch.Generator().manual_seed(0)
    x = 1e36 * torch.randn(1, 64, generator=chance).sign()
    codes = -torch.randint(100, 128, (8000, 64), generator=chance) * x.sign().int()
    scales = torch.rand(8000, 2, 1, generator=chance).add(1).mul(0.005).half()
    data = torch.cat([scales.view(torch.uint8), codes.to(torch.int8).view(torch.uint8).view(8000, 2, 32)], 2).flatten()
    with using(tiles, kernels):
        packed = tiles.pack(data, Q8_0, (8000, 64))
        products, best, found = tiles.linear(x, packed), tiles.best(x, packed), tiles.largest(x[0], packed, 3)
    assert products.isfinite().all()
    assert best.rows == products.argmax()
    assert torch.equal(found.products.topk(3).values, products[0].topk(3).values)


def test_the_best_needs_tokens_as_wide_as_rows_and_a_row() -> None:
    packed = tiles.pack(torch.zeros(34, dtype=torch.uint8), Q8_0, (1, 32))
    for x in (torch.zeros(32), torch.zeros(1, 64)):
        with pytest.raises(InputError, match=r"must be \[T, 32\]"):
            tiles.best(x, packed)
    with pytest.raises(InputError, match="there are 0 rows"):
        tiles.best(torch.zeros(1, 32), tiles.pack(torch.zeros(0, dtype=torch.uint8), Q8_0, (0, 32)))


@pytest.mark.parametrize("kernels", KERNELS[:-1])
def test_tiles_in_one_room_are_those_alone_and_do_not_meet(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the room ends and another begins, and of one that is larger than a room."""
    monkeypatch.setattr(tiles, "_ROOM", 20_000)
    shapes = [(40, 32), (17, 64), (100, 32), (800, 64), (40, 32), (16, 96)] * 3
    with using(tiles, kernels):
        room = tiles.Room()
        data = [blocks(Q8_0, rows * width // 32, seed) for seed, (rows, width) in enumerate(shapes)]
        together = [tiles.pack(each, Q8_0, shape, room).data for each, shape in zip(data, shapes, strict=True)]
        for each, shape, packed in zip(data, shapes, together, strict=True):
            assert torch.equal(packed, tiles.pack(each, Q8_0, shape).data)
    places = sorted((each.data_ptr(), len(each)) for each in together)
    assert all(begin % 64 == 0 for begin, _ in places)
    assert all(begin + size <= after for (begin, size), (after, _) in pairwise(places))
