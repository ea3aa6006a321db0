"""The slow truth: what the bytes of each block format mean, in plain torch.

    blocks, uint8 [n, block_bytes] -> weights, float32 [n, block_size]
    linear, rows: what kernels/tiles.py offers, on blocks as a file has them
    attend, in_bytes, from_bytes: what kernels/attention.py offers, and how a cache keeps keys and values in eight bits

One function per format, bit-equal to `gguf.quants.dequantize` (the fp16 scales are widened first; the order of the fp32
operations is part of the specification). Fast kernels are tested against this file. The layouts are those of
ggml-common.h and ggml-quants.c (https://github.com/ggml-org/ggml).

In the comments n counts blocks, and a block's weights are numbered from 0.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gemlens.errors import InputError
from gemlens.kernels import formats
from gemlens.kernels.formats import Format
from gemlens.spans import View

# Temporaries are a few times the size of one chunk, whatever the size of the tensor.
WEIGHTS_PER_CHUNK = 2**20

GROUP = 32  # activations that share a scale
SMALLEST = 1e-36  # of numbers in eight bits: 127 divided by less is not finite
_STEPS = 127  # from 0 to the largest of them
_PEAK = 3.0  # mean squares of a token, by which the square of what stands out is larger than of its 31 neighbours
_BYTES = 4  # of the size of a step


def dequantize(
    data: Tensor, block_format: Format, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """The weights that a tensor's bytes stand for.

    Args:
        data: uint8, the tensor's blocks one after another, in any shape.
        block_format: how a block is laid out.
        shape: of the result; its last axis is a multiple of the block size.
        dtype: of the result, to which the float32 values are rounded.

    Returns:
        A new tensor of that shape and dtype, on the device of `data`.

    Raises:
        InputError: the bytes are not uint8, or not as many as the shape needs.
    """
    size, count = block_format.block_size, check_blocks(data, block_format, shape)
    blocks = data.reshape(count, block_format.block_bytes)
    weights = torch.empty(count, size, dtype=dtype, device=data.device)
    step = WEIGHTS_PER_CHUNK // size
    for start in range(0, count, step):
        weights[start : start + step] = _DEQUANTIZE[block_format](blocks[start : start + step])
    return weights.reshape(shape)


def quantize(weights: Tensor, block_format: Format) -> Tensor:
    """The blocks that stand for weights [..., K], uint8 [n, block_bytes], bit-equal to `gguf.quants.quantize`.

    Args:
        weights: numbers; K is a multiple of the block size.
        block_format: Q4_0 or Q8_0.

    Raises:
        InputError: another format, or another multiple.
    """
    if block_format not in _QUANTIZE:
        names = " and ".join(each.name for each in _QUANTIZE)
        raise InputError(f"Weights can be made {names}, not {block_format.name}.")
    if weights.dim() == 0 or weights.shape[-1] % block_format.block_size:
        raise InputError(
            f"The shape {tuple(weights.shape)} must end in a multiple of {block_format.block_size} to be stored as "
            f"{block_format.name}."
        )
    groups = weights.reshape(-1, block_format.block_size)
    blocks = torch.empty(len(groups), block_format.block_bytes, dtype=torch.uint8, device=weights.device)
    step = WEIGHTS_PER_CHUNK // block_format.block_size
    for start in range(0, len(groups), step):
        blocks[start : start + step] = _QUANTIZE[block_format](groups[start : start + step].float())
    return blocks


def check_blocks(data: Tensor, block_format: Format, shape: tuple[int, ...]) -> int:
    """How many blocks a tensor of a shape has, if these are its bytes.

    Raises:
        InputError: the bytes are not uint8, or not as many as the shape needs.
    """
    size, nbytes = block_format.block_size, block_format.block_bytes
    if data.dtype != torch.uint8:
        raise InputError(f"The blocks have the dtype {data.dtype}; pass the raw bytes as torch.uint8.")
    if not shape or shape[-1] % size:
        raise InputError(f"The shape {shape} must end in a multiple of {size} to be stored as {block_format.name}.")
    count = math.prod(shape) // size
    if data.numel() != count * nbytes:
        needed = f"{count} blocks of {nbytes} bytes"
        raise InputError(f"{data.numel()} bytes came, but {block_format.name} of the shape {shape} is {needed}.")
    return count


def attend(query: Tensor, keys: Tensor, values: Tensor, view: View | None, scale: float, cap: float | None) -> Tensor:
    """See gemlens.kernels.attention."""
    if keys.dtype is torch.int8:
        keys, values = from_bytes(keys), from_bytes(values)
    batch, steps, _, size = query.shape
    grouped = query.transpose(1, 2).reshape(batch, keys.shape[1], -1, steps, size)  # [B, K, G, S, H]
    scores = grouped @ keys.unsqueeze(2).transpose(-1, -2) * scale  # [B, K, G, S, T]
    scores = scores if cap is None else cap * (scores / cap).tanh()
    if view is not None and not view.sees_all:
        scores = scores.masked_fill(~view.mask.unsqueeze(1), -torch.inf)
    return (scores.softmax(-1) @ values.unsqueeze(2)).flatten(1, 2).transpose(1, 2)


def in_bytes(states: Tensor) -> Tensor:
    """Numbers [..., H] as whole steps, the largest of each 32 is 127, and then the sizes of steps: int8 [..., H + 4 G].

    Of G = H / 32 groups, rounded up, each has a size, which is a float32. Where one of its numbers is not finite, all
    become NaN; where none passes SMALLEST, all become 0.
    """
    size = states.shape[-1]
    padded = F.pad(states.float(), (0, -size % GROUP))
    groups = padded.reshape(*states.shape[:-1], padded.shape[-1] // GROUP, GROUP)
    largest = groups.abs().amax(-1)
    is_finite = largest.isfinite()
    factor = torch.where(largest < SMALLEST, 0, torch.full_like(largest, _STEPS) / largest)
    steps = torch.where(is_finite.unsqueeze(-1), groups * factor.unsqueeze(-1), 0).round().to(torch.int8)
    step = torch.where(is_finite, largest / _STEPS, torch.nan)
    return torch.cat([steps.flatten(-2)[..., :size], _anew(step).view(torch.int8)], -1)


def from_bytes(kept: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers [..., H] of what `in_bytes` gave; exactly in float64, else rounded to float32."""
    size = kept.shape[-1] - _BYTES * math.ceil(kept.shape[-1] / (GROUP + _BYTES))
    step = _anew(kept[..., size:]).view(torch.float32).to(dtype)
    return kept[..., :size] * step.repeat_interleave(GROUP, -1)[..., :size]


def width_in_bytes(size: int) -> int:
    """How many bytes `in_bytes` makes of so many numbers."""
    return size + _BYTES * math.ceil(size / GROUP)


def _anew(states: Tensor) -> Tensor:
    """At a place of its own, whose alignment a view as another dtype needs."""
    return states.clone(memory_format=torch.contiguous_format)


def in_bits(x: Tensor, bits: int) -> Tensor:
    """Numbers [..., K] as kernels multiply them with blocks: in 8 bits, or 16, of which 8 are what the others leave.

    Those that stand out, at most one of each 32, stay as they are, and so make the steps of others no coarser.
    """
    peaks = _peaks(x)
    others = x.float().where(~peaks, 0)
    kept = in_bytes(others)
    if bits == 8:
        return x.float().where(peaks, from_bytes(kept))
    left = others - from_bytes(kept, torch.float64)
    return x.float().where(peaks, from_bytes(kept) + from_bytes(in_bytes(left)))


def _peaks(x: Tensor) -> Tensor:
    """Which of x [..., K] stand out: of 32 the largest, if its square is so much larger than that of any other."""
    squares = x.double().square().reshape(*x.shape[:-1], x.shape[-1] // GROUP, GROUP)
    largest, second = squares.topk(2).values.chunk(2, -1)
    least = _PEAK * squares.mean((-1, -2), keepdim=True).clamp(min=SMALLEST**2)
    return ((squares == largest) & (largest - second > least)).flatten(-2)


def linear(x: Tensor, data: Tensor, block_format: Format, shape: tuple[int, int], bits: int) -> Tensor:
    """x W^T [..., N], in x's dtype: x [..., K] in so many bits where weights are in blocks, sums in float32."""
    x_as_used = in_bits(x, bits) if block_format.is_quantized else x.float()
    return (x_as_used @ dequantize(data, block_format, shape).T).to(x.dtype)


def rows(ids: Tensor, data: Tensor, block_format: Format, shape: tuple[int, int]) -> Tensor:
    """Rows of the matrix, float32 [..., K]."""
    bytes_of_row = shape[1] // block_format.block_size * block_format.block_bytes
    blocks = data.reshape(shape[0], bytes_of_row)[ids.reshape(-1)]
    return dequantize(blocks, block_format, (len(blocks), shape[1])).view(*ids.shape, shape[1])


def _f32(blocks: Tensor) -> Tensor:
    return _view(blocks, torch.float32)


def _f16(blocks: Tensor) -> Tensor:
    return _view(blocks, torch.float16).float()


def _bf16(blocks: Tensor) -> Tensor:
    return _view(blocks, torch.bfloat16).float()


def _q4_0(blocks: Tensor) -> Tensor:
    scale, packed = blocks.split_with_sizes([2, 16], dim=-1)
    quants = _fields(packed, 4).flatten(1)  # [n, 32]: low nibbles are weights 0..15, high nibbles 16..31
    return _f16(scale) * (quants.float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    scale, minimum, packed = blocks.split_with_sizes([2, 2, 16], dim=-1)
    quants = _fields(packed, 4).flatten(1)
    return _f16(scale) * quants.float() + _f16(minimum)


def _q5_0(blocks: Tensor) -> Tensor:
    scale, fifth, packed = blocks.split_with_sizes([2, 4, 16], dim=-1)
    return _f16(scale) * (_five_bits(fifth, packed) - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    scale, minimum, fifth, packed = blocks.split_with_sizes([2, 2, 4, 16], dim=-1)
    return _f16(scale) * _five_bits(fifth, packed) + _f16(minimum)


def _q8_0(blocks: Tensor) -> Tensor:
    scale, quants = blocks.split_with_sizes([2, 32], dim=-1)
    return _view(quants, torch.int8).float() * _f16(scale)


def _q2_k(blocks: Tensor) -> Tensor:
    scales, packed, scale, minimum = blocks.split_with_sizes([16, 64, 2, 2], dim=-1)
    step, offset = _fields(scales, 4).float().unbind(1)  # each [n, 16], one per 16 weights
    step, offset = _f16(scale) * step, _f16(minimum) * offset
    quants = _fields(packed.reshape(-1, 2, 32), 2)  # [n, 2, 4, 32]: each half gives four runs of 32
    return (step.unsqueeze(-1) * quants.reshape(-1, 16, 16).float() - offset.unsqueeze(-1)).flatten(1)


def _q3_k(blocks: Tensor) -> Tensor:
    third, packed, scales, scale = blocks.split_with_sizes([32, 64, 12, 2], dim=-1)
    # 16 scales of 6 bits: the first 8 bytes hold the low four bits of each, the last 4 bytes the high two.
    low, high = scales.split_with_sizes([8, 4], dim=-1)
    steps = _fields(low, 4).flatten(1) | (_fields(high, 2).flatten(1) << 4)  # [n, 16]
    steps = (_f16(scale) * (steps.float() - 32)).unsqueeze(-1)
    quants = _fields(packed.reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    # The third bit is stored inverted: where it is 0, four is subtracted.
    borrow = 4 * (1 - _fields(third, 1).reshape(-1, 16, 16).float())
    return (steps * (quants.float() - borrow)).flatten(1)


def _q4_k(blocks: Tensor) -> Tensor:
    scale, minimum, scales, packed = blocks.split_with_sizes([2, 2, 12, 128], dim=-1)
    steps, offsets = _k_scales(scale, minimum, scales)
    quants = _fields(packed.reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return (steps * quants.float() - offsets).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    scale, minimum, scales, fifth, packed = blocks.split_with_sizes([2, 2, 12, 32, 128], dim=-1)
    steps, offsets = _k_scales(scale, minimum, scales)
    quants = _fields(packed.reshape(-1, 4, 32), 4).reshape(-1, 8, 32) | (_fields(fifth, 1) << 4)
    return (steps * quants.float() - offsets).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    packed, high, scales, scale = blocks.split_with_sizes([128, 64, 16, 2], dim=-1)
    steps = (_f16(scale) * _view(scales, torch.int8).float()).unsqueeze(-1)  # [n, 16, 1]
    low = _fields(packed.reshape(-1, 2, 64), 4).reshape(-1, 8, 32)
    quants = low | (_fields(high.reshape(-1, 2, 32), 2).reshape(-1, 8, 32) << 4)
    return (steps * (quants.reshape(-1, 16, 16).float() - 32)).flatten(1)


def _view(data: Tensor, dtype: torch.dtype) -> Tensor:
    """The same bytes as another dtype. The copy is there because a slice may start at an odd byte."""
    return data.clone(memory_format=torch.contiguous_format).view(dtype)


def _fields(packed: Tensor, bits: int) -> Tensor:
    """The bit fields of each byte, lowest first, on a new axis before the last: [..., m] -> [..., 8 / bits, m]."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device).unsqueeze(-1)
    return torch.bitwise_and(packed.unsqueeze(-2) >> shifts, 2**bits - 1)


def _five_bits(fifth: Tensor, packed: Tensor) -> Tensor:
    """Nibbles [n, 16] and one 32-bit word [n, 4] of fifth bits -> float32 [n, 32]."""
    high = _fields(fifth, 1).transpose(1, 2).flatten(1)  # weight i has bit i % 8 of byte i // 8
    return (_fields(packed, 4).flatten(1) | (high << 4)).float()


def _k_scales(scale: Tensor, minimum: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
    """Steps and offsets, [n, 8, 1] each, of Q4_K and Q5_K, from 12 bytes that hold eight 6-bit numbers of both.

    Bytes 0..3 hold the first four steps and 4..7 the first four offsets, in their low six bits. The other four have
    their low four bits in bytes 8..11 (steps in the low nibble, offsets in the high) and their high two bits above
    the first four.
    """
    step, offset, low = packed.reshape(-1, 3, 4).unbind(1)  # each [n, 4]
    steps = torch.cat([step & 63, (low & 15) | ((step >> 2) & 48)], dim=-1)
    offsets = torch.cat([offset & 63, (low >> 4) | ((offset >> 2) & 48)], dim=-1)
    return (_f16(scale) * steps.float()).unsqueeze(-1), (_f16(minimum) * offsets.float()).unsqueeze(-1)


_DEQUANTIZE: Mapping[Format, Callable[[Tensor], Tensor]] = {
    formats.F32: _f32,
    formats.F16: _f16,
    formats.BF16: _bf16,
    formats.Q4_0: _q4_0,
    formats.Q4_1: _q4_1,
    formats.Q5_0: _q5_0,
    formats.Q5_1: _q5_1,
    formats.Q8_0: _q8_0,
    formats.Q2_K: _q2_k,
    formats.Q3_K: _q3_k,
    formats.Q4_K: _q4_k,
    formats.Q5_K: _q5_k,
    formats.Q6_K: _q6_k,
}


def _to_q8_0(weights: Tensor) -> Tensor:
    scale = weights.abs().amax(-1, keepdim=True) / 127
    steps = weights * torch.where(scale == 0, 0, 1 / scale)
    codes = (steps.abs() + 0.5).floor() * steps.sign()  # halves away from zero
    return torch.cat([_bytes(scale.half()), _bytes(codes.to(torch.int8))], -1)


def _to_q4_0(weights: Tensor) -> Tensor:
    """The weight farthest from zero becomes -8 steps exactly, whichever its sign."""
    farthest = weights.gather(-1, weights.abs().argmax(-1, keepdim=True))
    scale = farthest / -8
    steps = weights.double() * torch.where(scale == 0, 0, 1 / scale).double()
    codes = (steps + 8.5).float().trunc().clamp(0, 15).to(torch.uint8)
    return torch.cat([_bytes(scale.half()), codes[:, :16] | codes[:, 16:] << 4], -1)


def _bytes(numbers: Tensor) -> Tensor:
    return numbers.contiguous().view(torch.uint8)


_QUANTIZE: Mapping[Format, Callable[[Tensor], Tensor]] = {formats.Q4_0: _to_q4_0, formats.Q8_0: _to_q8_0}
