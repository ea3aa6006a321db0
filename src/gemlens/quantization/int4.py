"""int4 weights of torchao: in the order of files, the same everywhere, and in the order of a processor's kernel.

    pack    Int4Tensor: numbers from -8 to 7, two per byte, row by row  ->  what the device's kernel reads
    unpack  the reverse, exactly

Each group of numbers has a scale and a zero: weight = number * scale + zero. Where a number lies differs between
kinds of processors, so what was packed is never written to a file.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gemlens.errors import InputError

_ROWS = 64  # of a packed weight that lie together on every processor; on some it is fewer, which divide 64
# The CUDA kernel reads whole tiles.
_TILE_ROWS, _TILE_COLUMNS = 8, 1024


def quantize(weight: Tensor, group_size: int) -> Tensor:
    """A weight [out, in] rounded to int4 by torchao, for the kernel of its device.

    Raises:
        InputError: the device has no kernel for it.
    """
    rounded: Tensor = _kind(weight, group_size, weight.dtype).from_hp(weight, [1, group_size])
    return rounded


def pack(stored: Any, dtype: torch.dtype) -> Tensor:
    """An Int4Tensor as the kernel of its device reads it.

    Args:
        stored: numbers [out, in / 2], scales and zeros [in / group, out].
        dtype: of the activations, and so of the scales.

    Raises:
        InputError: the device has no kernel for it.
    """
    kind = _kind(stored, stored.block_size[1], dtype)
    numbers = torch.stack([stored.qdata & 15, stored.qdata >> 4 & 15], -1).flatten(1).int() ^ 8  # from 0 to 15
    scales = torch.stack([stored.scale, stored.zero_point], -1).to(dtype)  # [in / group, out, 2]
    if stored.device.type == "cuda":
        rows, columns = -stored.shape[0] % _TILE_ROWS, -stored.shape[1] % _TILE_COLUMNS
        numbers = pad(numbers, (0, columns, 0, rows))
        scales = pad(scales, (0, 0, 0, rows, 0, columns // stored.block_size[1]))
    packed: Tensor = kind(_packed(numbers), scales.contiguous(), stored.block_size, stored.shape)
    return packed


def unpack(weight: Any) -> Tensor:
    """What was packed as an Int4Tensor, the form of files.

    Raises:
        InputError: this processor's kernel has an order that cannot be undone.
    """
    from torchao.quantization import Int4Tensor

    rows, columns = weight.shape
    groups = weight.scale_and_zero.shape[0]
    numbers = _unpacked(weight.qdata, weight.scale_and_zero.shape[1], groups * weight.block_size[1])
    if not torch.equal(_packed(numbers), weight.qdata):
        raise InputError(f"int4 weights cannot be read back from the order of this {weight.device.type}'s kernel.")
    places = (numbers[:rows, :columns] ^ 8).to(torch.uint8)
    scale, zero = weight.scale_and_zero[: columns // weight.block_size[1], :rows].unbind(-1)
    qdata = (places[:, ::2] | places[:, 1::2] << 4).view(torch.int8)
    stored: Tensor = Int4Tensor(qdata, scale.contiguous(), zero.contiguous(), weight.block_size, weight.shape)
    return stored


def _kind(weight: Tensor, group_size: int, dtype: torch.dtype) -> Any:
    """The class of torchao for the int4 kernel of a weight's device."""
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor
    from torchao.quantization import Int4TilePackedTo4dTensor

    if weight.device.type == "cpu":
        if group_size > 128 or weight.shape[0] % 16:
            raise InputError(
                f"On CPU, int4 needs a group_size of 32, 64 or 128 and layers with a multiple of 16 outputs, but it is "
                f"{group_size} and a layer has {weight.shape[0]}; name such layers in modules_to_not_convert."
            )
        return Int4OpaqueTensor
    if weight.device.type != "cuda" or torch.cuda.get_device_capability(weight.device) < (8, 0):
        raise InputError(
            f"int4 runs on CPU and on CUDA from compute capability 8.0 on, but a weight is on {weight.device}; "
            "use int8_weight_only there."
        )
    if dtype != torch.bfloat16:
        raise InputError(f"On CUDA, int4 needs dtype=torch.bfloat16, but it is {dtype}.")
    return Int4TilePackedTo4dTensor


def _packed(numbers: Tensor) -> Tensor:
    """Numbers from 0 to 15, int32 [rows, columns], in the order of the kernel."""
    if numbers.device.type == "cpu":
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
    pairs = (numbers[:, ::2] << 4 | numbers[:, 1::2]).to(torch.uint8)
    return torch.ops.aten._convert_weight_to_int4pack(pairs, 8)


def _unpacked(packed: Tensor, rows: int, columns: int) -> Tensor:
    """The reverse of `_packed`, for a weight of that shape."""
    parts = [(_halves(part), part.shape[0]) for part in torch.split(packed.view(rows, -1), _ROWS)]
    places = {count: _places(count, columns, packed.device) for _, count in parts}
    numbers = [torch.empty_like(halves).scatter_(0, places[count], halves) for halves, count in parts]
    return torch.cat(numbers).view(rows, columns).int()


def _places(rows: int, columns: int, device: torch.device) -> Tensor:
    """Which number of a weight [rows, columns] each half byte of the packed one is.

    The order is documented nowhere, so it is asked for: numbers that tell their own place are packed, 4 bits at a time.
    """
    own = torch.arange(rows * columns, device=device).view(rows, columns)
    found = torch.zeros(rows * columns, dtype=torch.int64, device=device)
    for shift in range(0, (rows * columns).bit_length(), 4):
        found |= _halves(_packed((own >> shift & 15).int())).long() << shift
    return found


def _halves(packed: Tensor) -> Tensor:
    """All half bytes, uint8 from 0 to 15."""
    packed = packed.contiguous().view(torch.uint8).flatten()
    return torch.stack([packed & 15, packed >> 4], -1).flatten()
