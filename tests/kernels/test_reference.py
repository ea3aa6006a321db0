"""The plain dequantisation against the gguf package's, bit for bit."""

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from gemlens.errors import InputError
from gemlens.kernels import formats, reference
from gemlens.kernels.formats import FORMATS, Format

every_format = pytest.mark.parametrize("block_format", FORMATS, ids=lambda block_format: block_format.name)


def random_blocks(block_format: Format, count: int) -> torch.Tensor:
    seeded = torch.Generator().manual_seed(block_format.type_id)
    return torch.randint(0, 256, (count * block_format.block_bytes,), dtype=torch.uint8, generator=seeded)


def oracle(data: np.ndarray, block_format: Format) -> np.ndarray:
    with np.errstate(all="ignore"):  # infinite scales times zero are part of what is compared
        return gguf.quants.dequantize(data, GGMLQuantizationType(block_format.type_id))


def assert_same_bits(ours: torch.Tensor, theirs: np.ndarray) -> None:
    """Equal bit for bit, minus zero included; where both are NaN any payload will do."""
    mine = ours.numpy()
    assert mine.shape == theirs.shape
    assert mine.dtype == theirs.dtype == np.float32
    both_nan = np.isnan(mine) & np.isnan(theirs)
    assert np.array_equal(mine.view(np.uint32)[~both_nan], theirs.view(np.uint32)[~both_nan])


@every_format
def test_sizes_and_ids_are_those_of_the_gguf_package(block_format: Format) -> None:
    kind = GGMLQuantizationType(block_format.type_id)
    assert kind.name == block_format.name
    assert GGML_QUANT_SIZES[kind] == (block_format.block_size, block_format.block_bytes)
    assert formats.BY_NAME[block_format.name] is formats.BY_TYPE_ID[block_format.type_id] is block_format
    assert block_format.is_quantized == block_format.name.startswith("Q")


@every_format
def test_random_bytes_mean_what_the_gguf_package_says(block_format: Format) -> None:
    """Any byte is legal, so this covers every bit field, subnormal, infinite and NaN scales."""
    data = random_blocks(block_format, 2000)
    ours = reference.dequantize(data, block_format, (500, 4 * block_format.block_size))
    assert ours.isnan().any()
    assert_same_bits(ours, oracle(data.reshape(500, -1).numpy(), block_format))


@every_format
@pytest.mark.parametrize("bits", [0x0000, 0x8000, 0x0001, 0x7BFF, 0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFFFF])
def test_special_scales_mean_what_the_gguf_package_says(block_format: Format, bits: int) -> None:
    """Zero, minus zero, subnormal, largest, infinite and NaN fp16 in every place where a scale may lie."""
    data = np.random.default_rng(bits).integers(0, 256, (64, block_format.block_bytes), dtype=np.uint8)
    for place in (0, 2, -4, -2):
        data[:, place % block_format.block_bytes :][:, :2] = np.frombuffer(np.uint16(bits).tobytes(), np.uint8)
    ours = reference.dequantize(torch.from_numpy(data), block_format, (64, block_format.block_size))
    assert_same_bits(ours, oracle(data, block_format))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_weights_come_back(name: str) -> None:
    """The formats that the gguf package can also write (it has no writer for the K formats)."""
    block_format = formats.BY_NAME[name]
    weights = np.random.default_rng(3).standard_normal((37, 256), dtype=np.float32)
    data = gguf.quants.quantize(weights, GGMLQuantizationType(block_format.type_id)).view(np.uint8)
    ours = reference.dequantize(torch.from_numpy(data), block_format, (37, 256))
    assert_same_bits(ours, oracle(data, block_format))
    assert np.abs(ours.numpy() - weights).max() < 0.5


@every_format
def test_chunks_and_leading_axes_change_nothing(block_format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    data, shape = random_blocks(block_format, 12), (2, 3, 2 * block_format.block_size)
    whole = reference.dequantize(data, block_format, shape)
    monkeypatch.setattr(reference, "WEIGHTS_PER_CHUNK", 5 * block_format.block_size)  # 12 blocks: 5 + 5 + 2
    assert_same_bits(reference.dequantize(data, block_format, shape), whole.numpy())


def test_another_dtype_is_the_float32_rounded() -> None:
    data, shape = random_blocks(formats.Q4_0, 8), (2, 128)
    rounded = reference.dequantize(data, formats.Q4_0, shape, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    assert_same_bits(rounded.float(), reference.dequantize(data, formats.Q4_0, shape).bfloat16().float().numpy())


@every_format
def test_blocks_may_start_at_an_odd_byte(block_format: Format) -> None:
    even, shape = random_blocks(block_format, 1), (1, block_format.block_size)
    odd = torch.cat([even[:1], even])[1:]
    assert_same_bits(reference.dequantize(odd, block_format, shape), oracle(even.numpy()[None], block_format))


@pytest.mark.parametrize(
    ("data", "shape", "sentence"),
    [
        (torch.zeros(18), (32,), "dtype torch.float32"),
        (torch.zeros(18, dtype=torch.uint8), (2, 16), "multiple of 32"),
        (torch.zeros(18, dtype=torch.uint8), (), "multiple of 32"),
        (torch.zeros(17, dtype=torch.uint8), (32,), "17 bytes came, but Q4_0 of the shape"),
    ],
)
def test_bytes_that_do_not_fit_are_a_sentence(data: torch.Tensor, shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        reference.dequantize(data, formats.Q4_0, shape)


@pytest.mark.parametrize("block_format", [formats.Q4_0, formats.Q8_0], ids=lambda block_format: block_format.name)
def test_blocks_are_those_that_the_gguf_package_makes(block_format: Format) -> None:
    """Of usual weights, halves between two steps, zeros, and numbers of very different sizes."""
    chance = np.random.default_rng(0)
    usual = chance.normal(size=(64, 96)).astype(np.float32)
    sizes = usual * 10.0 ** chance.integers(-6, 4, (64, 1)).astype(np.float32)
    halves = (chance.integers(-254, 255, (64, 96)) / 2).astype(np.float32)
    halves[:, ::32] = 127
    for weights in (usual, sizes, halves, np.zeros((2, 64), np.float32), -np.abs(usual)):
        wanted = gguf.quants.quantize(weights, GGMLQuantizationType(block_format.type_id))
        ours = reference.quantize(torch.from_numpy(weights), block_format)
        assert np.array_equal(ours.numpy().reshape(-1), wanted.reshape(-1))


@pytest.mark.parametrize(("bits", "steps"), [(8, 127), (16, 127 * 254)])
def test_numbers_in_bits_are_off_by_half_a_step(bits: int, steps: int) -> None:
    x = torch.randn(50, 96, generator=torch.Generator().manual_seed(0)).pow(3)
    largest = x.view(50, 3, 32).abs().amax(-1).repeat_interleave(32, -1)
    away = (reference.in_bits(x, bits) - x).abs() / largest * steps
    assert 0.4 < away.max() < 0.502


@pytest.mark.parametrize("bits", [8, 16])
def test_the_number_of_a_group_that_stands_out_of_a_token_stays_as_it_is(bits: int) -> None:
    """It makes the steps of others no coarser; two alike do not stand out. The mean squares are about 32, 33 and 54."""
    x = torch.randn(3, 320, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    x[:, 5], x[1, 40], x[1, 70] = 100.1, 10.3, 9.7
    x[2, 40], x[2, 50], x[2, 70], x[2, 80], x[2, 100], x[2, 110] = -40.1, 40.1, 32.7, -30.0, -32.0, 30.0
    peaks = torch.zeros_like(x, dtype=torch.bool)
    peaks[:, 5] = peaks[1, 40] = peaks[2, 70] = True
    others = x.where(~peaks, 0)
    got = reference.in_bits(x, bits)
    assert torch.equal(got[peaks], x[peaks])
    steps = {8: 127, 16: 127 * 254}[bits]
    largest = others.view(3, 10, 32).abs().amax(-1).repeat_interleave(32, -1)
    away = (got - x).abs() / largest * steps
    assert away.max() < 0.502
    assert away[~peaks].max() > 0.4


def test_weights_that_cannot_be_made_blocks_are_a_sentence() -> None:
    with pytest.raises(InputError, match="can be made Q4_0 and Q8_0, not Q6_K"):
        reference.quantize(torch.zeros(2, 256), formats.Q6_K)
    with pytest.raises(InputError, match="must end in a multiple of 32"):
        reference.quantize(torch.zeros(2, 33), formats.Q8_0)
