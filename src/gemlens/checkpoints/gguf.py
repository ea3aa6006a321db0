"""GGUFFile: an open GGUF file, made for files from strangers.

    path -> memory map -> header, every number checked (gguf_header.py) -> raw(name), tensor(name): views of the map

Its names are the file's own; gguf_names.py turns them into ours.
"""

import copy
import mmap
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gemlens.checkpoints.gguf_header import GGUFTensor, Value, read_header
from gemlens.errors import CheckpointError
from gemlens.kernels.formats import BF16, F16, F32, Format
from gemlens.kernels.reference import dequantize

__all__ = ["GGUFFile", "GGUFTensor", "Value"]

_DTYPES: Mapping[Format, torch.dtype] = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}


class GGUFFile:
    """An open GGUF file; `GGUFFile.open` makes one. The file stays mapped while this or a view of it lives.

    Attributes:
        path: of the file.
        version: of its layout, 2 or 3.
        metadata: {key: value}. Values are decoded at each access, arrays into lists; a string that is not UTF-8
            raises a CheckpointError then.
        tensors: {name: GGUFTensor}, in the file's order.
    """

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.version, self.metadata, self.tensors = read_header(path, data)
        self._bytes = torch.frombuffer(data, dtype=torch.uint8)

    def mapped_again(self) -> "GGUFFile":
        """The same file through another mapping: when that goes, so do the pages that were touched through it.

        Raises:
            CheckpointError: the file cannot be read any more.
        """
        again = copy.copy(self)
        again._bytes = torch.frombuffer(_mapped(self.path), dtype=torch.uint8)
        if len(again._bytes) != len(self._bytes):
            raise CheckpointError(f"{self.path} changed while it was read; load it again.")
        return again

    @classmethod
    def open(cls, path: str | Path) -> "GGUFFile":
        """Maps a file and reads its header; the tensors' bytes are read when they are used.

        Raises:
            CheckpointError: the file is missing, unreadable, or not a well-formed GGUF file of version 2 or 3.
        """
        path = Path(path)
        return cls(path, _mapped(path))

    def raw(self, name: str) -> Tensor:
        """A tensor's bytes as they are: uint8 [nbytes], a view of the map.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} has no tensor {name!r}; it has {len(self.tensors)} others.")
        stored = self.tensors[name]
        return self._bytes[stored.offset : stored.offset + stored.nbytes]

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor's weights in its shape.

        Args:
            name: as the file has it.
            dtype: of the result; None for the file's own, which is float32 for quantised formats.

        Returns:
            A view of the map where the file already holds that dtype, else a new tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        raw, stored = self.raw(name), self.tensors[name]
        if stored.format.is_quantized:
            return dequantize(raw, stored.format, stored.shape, dtype or torch.float32)
        weights = raw.view(_DTYPES[stored.format]).reshape(stored.shape)
        return weights.to(dtype or weights.dtype)


def _mapped(path: Path) -> mmap.mmap:
    try:
        if path.is_file():  # opening a pipe would wait forever
            with path.open("rb") as file:
                # A private, writable map: torch wants writable memory, and nothing written reaches the file.
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise CheckpointError(f"{path} cannot be read: {error}. Pass the path of a complete GGUF file.") from error
    raise CheckpointError(f"{path} is not a file. Pass the path of a GGUF file.")
