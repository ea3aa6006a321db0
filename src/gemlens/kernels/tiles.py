"""Weights in blocks, in the order that kernels read, and the operations on them; each has a twin in reference.py.

    pack(data, format, shape) -> Tiles        blocks as a file has them [N, K] -> 16 rows side by side
    linear(x, tiles)                          [..., K] -> [..., N], activations in eight bits or sixteen
    largest(x, tiles, k), best(x, tiles)      the largest of these, where that is possible without computing all
    rows(ids, tiles)                          [...] -> [..., K], as an embedding gives them

Without compiled kernels the blocks stay as they are, and reference.py works on them.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.kernels import reference
from gemlens.kernels.formats import BF16, BY_TYPE_ID, F16, Q4_0, Q4_K, Q5_0, Q5_K, Q6_K, Q8_0, Format
from gemlens.kernels.machine import machine

_ROOM = 2**26  # bytes that are asked for at once
_LINE = 64  # bytes where tiles begin
FORMATS = (F16, BF16, Q4_0, Q5_0, Q8_0, Q4_K, Q5_K, Q6_K)  # that kernels compute in


@dataclass(frozen=True)
class Tiles:
    """A matrix of weights.

    Args:
        data: uint8, tiles of 16 rows, or the blocks of a file for the reference.
        format: of the blocks.
        shape: (N, K).
        bits: of activations that are multiplied with it, 8 or 16.
    """

    data: Tensor
    format: Format
    shape: tuple[int, int]
    bits: int = 8

    @property
    def matrix(self) -> tuple[int, int, int, int, int]:
        """As kernels take it: the format's number, the tiles' place, rows, blocks of a row, bytes of activations."""
        rows, width = self.shape
        return self.format.type_id, self.data.data_ptr(), rows, width // self.format.block_size, self.bits // 8


class Room:
    """Room for the tiles of a model, side by side in large pages, which no small tensor of its own would get.

    Reading a matrix then misses few translations of addresses, and nothing stops at the ends of small pages.
    """

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def take(self, count: int) -> Tensor:
        """So many bytes, uint8."""
        if count > len(self._free):
            made = torch.empty(max(count, _ROOM), dtype=torch.uint8)
            machine().native.widen_pages(made.data_ptr(), len(made))  # type: ignore[union-attr]  # it wants tiles
            if count >= _ROOM:
                return made
            self._free = made
        taken, self._free = self._free[:count], self._free[math.ceil(count / _LINE) * _LINE :]
        return taken


def pack(data: Tensor, block_format: Format, shape: tuple[int, int], room: Room | None = None) -> Tiles:
    """Puts the blocks of 16 rows side by side.

    Args:
        data: uint8 on a CPU, the blocks of a matrix, row after row.
        block_format: one of FORMATS.
        shape: (N, K).
        room: for the tiles; None for memory of their own.

    Raises:
        InputError: another format, or the bytes are not as many as the shape needs.
    """
    if block_format not in FORMATS:
        names = ", ".join(each.name for each in FORMATS)
        raise InputError(f"No kernel computes in {block_format.name}; there are kernels for {names}.")
    reference.check_blocks(data, block_format, shape)
    native = machine().native
    data = data.reshape(-1).contiguous()
    if native is None:
        return Tiles(data, block_format, shape)
    rows, blocks = shape[0], shape[1] // block_format.block_size
    tile_bytes, last_bytes = native.layout(block_format.type_id)
    size = math.ceil(rows / 16) * blocks * tile_bytes + last_bytes
    tiles = torch.empty(size, dtype=torch.uint8) if room is None else room.take(size)
    native.pack(block_format.type_id, data.data_ptr(), rows, blocks, tiles.data_ptr())
    return Tiles(tiles, block_format, shape)


def linear(x: Tensor, tiles: Tiles) -> Tensor:
    """x W^T [..., N], in x's dtype: x [..., K] in `tiles.bits`, 32 numbers to a scale; sums in float32.

    The largest of 32 stays as it is where it stands out of all K; see `in_bits` in reference.py. With weights that are
    numbers, F16 and BF16, x is as it is.

    Raises:
        InputError: x is not [..., K].
    """
    if x.dim() == 0 or x.shape[-1] != tiles.shape[1]:
        raise InputError(f"x has the shape {tuple(x.shape)}, but its last axis must be {tiles.shape[1]}.")
    result: Tensor = torch.ops.gemlens.linear(x, tiles.data, tiles.format.type_id, *tiles.shape, tiles.bits)
    return result


@dataclass(frozen=True)
class Largest:
    """What `largest` gives.

    Args:
        products: float32 [N]; those that are smaller than the k-th largest are -inf.
        computed: what part of all products was computed in full.
    """

    products: Tensor
    computed: float


def largest(x: Tensor, tiles: Tiles, k: int, screens: bool = True) -> Largest:
    """The k largest of the products of one x [K] with all rows.

    They are those of `linear`, to the last bit. In Q8_0 about half of the bytes are read: the upper halves of codes
    say which products can be among the largest (see `largest` in largest.cpp), and only these are computed.

    Args:
        x: [K].
        tiles: the rows.
        k: how many products are wanted.
        screens: False to read all. Of an x in sixteen bits, the first eight then say what the upper halves would.

    Raises:
        InputError: x is not [K], or k is not from 1 to N.
    """
    if x.shape != (tiles.shape[1],) or not 1 <= k <= tiles.shape[0]:
        raise InputError(
            f"x is {tuple(x.shape)} and k is {k}, but must be [{tiles.shape[1]}] and 1 to {tiles.shape[0]}."
        )
    native, full = machine().native, x.float().contiguous()
    if native is not None and tiles.format is Q8_0:
        products = torch.empty(tiles.shape[0])
        computed = native.largest(*tiles.matrix, full.data_ptr(), k, screens, products.data_ptr())
        if computed >= 0:  # x is finite, and not very large
            return Largest(products, computed / math.ceil(tiles.shape[0] / 16))
    products = linear(full, tiles)
    return Largest(products.where(~(products < products.topk(k).values[-1]), -torch.inf), 1.0)


@dataclass(frozen=True)
class Best:
    """What `best` gives.

    Args:
        products: float32 [T], the largest of each x.
        rows: int64 [T], the first row that has it.
        computed: what part of all products was computed.
    """

    products: Tensor
    rows: Tensor
    computed: float


def best(x: Tensor, tiles: Tiles, screens: bool = True) -> Best:
    """The largest of the products of each x [T, K] with all rows; one that is no number is larger than all.

    They are those of `linear`, to the last bit, but no memory is needed for all. Of a few x and Q8_0 not all are even
    computed; see `largest`.

    Args:
        x: [T, K].
        tiles: with at least one row.
        screens: False to compute all products.

    Raises:
        InputError: x is not [T, K], or there are no rows.
    """
    if x.dim() != 2 or x.shape[1] != tiles.shape[1] or not tiles.shape[0]:
        raise InputError(f"x is {tuple(x.shape)}, but must be [T, {tiles.shape[1]}]; there are {tiles.shape[0]} rows.")
    native = machine().native
    if native is None:
        products, places = linear(x.float(), tiles).max(-1)
        return Best(products, places, 1.0)
    full, count, screens = x.float().contiguous(), len(x), screens and tiles.format is Q8_0
    products, places = torch.empty(count), torch.empty(count, dtype=torch.int64)
    computed = native.best(*tiles.matrix, full.data_ptr(), count, screens, products.data_ptr(), places.data_ptr())
    return Best(products, places, computed / max(1, count * math.ceil(tiles.shape[0] / 16)))


def rows(ids: Tensor, tiles: Tiles) -> Tensor:
    """Rows of the matrix, float32 [..., K].

    Raises:
        InputError: an id out of range.
    """
    result: Tensor = torch.ops.gemlens.rows(ids, tiles.data, tiles.format.type_id, *tiles.shape)
    return result


def _linear(x: Tensor, data: Tensor, type_id: int, count: int, width: int, bits: int) -> Tensor:
    native, block_format = machine().native, BY_TYPE_ID[type_id]
    if native is None:
        return reference.linear(x, data, block_format, (count, width), bits)
    flat = x.reshape(-1, width).float().contiguous()
    result = torch.empty(len(flat), count)
    matrix = type_id, data.data_ptr(), count, width // block_format.block_size, bits // 8
    native.linear(*matrix, flat.data_ptr(), len(flat), result.data_ptr())
    return result.view(*x.shape[:-1], count).to(x.dtype)


def _rows(ids: Tensor, data: Tensor, type_id: int, count: int, width: int) -> Tensor:
    native, block_format = machine().native, BY_TYPE_ID[type_id]
    flat = ids.reshape(-1).long().contiguous()
    if native is None:
        if not flat.numel() or 0 <= int(flat.min()) <= int(flat.max()) < count:
            return reference.rows(ids, data, block_format, (count, width))
    else:
        result = torch.empty(len(flat), width)
        blocks = width // block_format.block_size
        if native.rows(type_id, data.data_ptr(), count, blocks, flat.data_ptr(), len(flat), result.data_ptr()):
            return result.view(*ids.shape, width)
    raise InputError(f"ids go from {int(flat.min())} to {int(flat.max())}, but there are {count} rows.")


def _shape_of_linear(x: Tensor, data: Tensor, type_id: int, count: int, width: int, bits: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], count)


def _shape_of_rows(ids: Tensor, data: Tensor, type_id: int, count: int, width: int) -> Tensor:
    return data.new_empty(*ids.shape, width, dtype=torch.float32)


# As operators of torch they can be part of what torch.compile and torch.export make; shapes are known beforehand.
_LIBRARY: Any = torch.library.Library("gemlens", "DEF")  # type: ignore[no-untyped-call]
for _name, _operand, _how, _kernel, _shape in (
    ("linear", "x", ", int bits", _linear, _shape_of_linear),
    ("rows", "ids", "", _rows, _shape_of_rows),
):
    _LIBRARY.define(f"{_name}(Tensor {_operand}, Tensor data, int type_id, int count, int width{_how}) -> Tensor")
    _LIBRARY.impl(_name, _kernel, "CPU")
    torch.library.register_fake(f"gemlens::{_name}", _shape, lib=_LIBRARY)
