"""A GGUF file, written whole or not at all: the counterpart of gguf_header.py.

    metadata, tensors' shapes and formats -> header -> each tensor's bytes, made when their turn comes

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian.
"""

import ctypes
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gemlens.checkpoints.gguf_header import Value
from gemlens.checkpoints.save import bytes_of, replacing, write_chunks
from gemlens.errors import InputError
from gemlens.kernels.formats import Format

ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class GGUFEntry:
    """A tensor to be written.

    Args:
        name: of the file's.
        shape: in torch's order.
        format: of its blocks.
        make: gives its bytes, uint8.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) // self.format.block_size * self.format.block_bytes


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Sequence[GGUFEntry]) -> None:
    """Writes a file. Whole numbers become uint32, in lists int32; other numbers float32.

    Raises:
        InputError: a value that has no such type, or bytes that are not as many as a tensor needs.
        CheckpointError: the file cannot be written.
    """
    with replacing(path.parent) as stage:
        write_chunks(stage(path.name), _chunks(metadata, tensors))


def _chunks(
    metadata: Mapping[str, Value], tensors: Sequence[GGUFEntry]
) -> Iterator[bytes | ctypes.Array[ctypes.c_char]]:
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    header += b"".join(_text(key) + _value(key, value) for key, value in metadata.items())
    offset = 0
    for tensor in tensors:
        axes = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        header += _text(tensor.name) + axes + struct.pack("<IQ", tensor.format.type_id, offset)
        offset += tensor.nbytes + -tensor.nbytes % ALIGNMENT
    yield header + bytes(-len(header) % ALIGNMENT)
    for tensor in tensors:
        data = tensor.make().flatten()
        if data.numel() != tensor.nbytes:
            raise InputError(f"'{tensor.name}' has {data.numel()} bytes, but {tensor.nbytes} of {tensor.format.name}.")
        yield from bytes_of(data)
        yield bytes(-tensor.nbytes % ALIGNMENT)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Value) -> bytes:
    if isinstance(value, list):
        kind = _kind(key, value[0], in_list=True) if value else _INT32
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(_packed(key, kind, each) for each in value)
    kind = _kind(key, value)
    return struct.pack("<I", kind) + _packed(key, kind, value)


def _kind(key: str, value: object, in_list: bool = False) -> int:
    for python, kind in ((bool, _BOOL), (int, _INT32 if in_list else _UINT32), (float, _FLOAT32), (str, _STRING)):
        if isinstance(value, python):
            return kind
    raise InputError(f"The metadata value {key!r} is {value!r}, but must be a number, a text or a list of these.")


def _packed(key: str, kind: int, value: object) -> bytes:
    try:
        if kind == _STRING:
            assert isinstance(value, str)
            return _text(value)
        return struct.pack({_BOOL: "<?", _INT32: "<i", _UINT32: "<I", _FLOAT32: "<f"}[kind], value)
    except (struct.error, AssertionError, OverflowError) as error:
        raise InputError(f"The metadata value {key!r} holds {value!r}, which GGUF has no place for.") from error
