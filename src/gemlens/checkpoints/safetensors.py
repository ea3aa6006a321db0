"""Weights in safetensors files, one or several joined by an index; nothing is read before it is asked for.

Tensors are views of the memory-mapped file: opening costs the header only, and a model at the file's own number format
needs no memory beyond the file's pages. Writing to such a tensor changes the process's copy of a page, never the file.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gemlens.checkpoints.hub import Origin, first_line, read_json
from gemlens.checkpoints.names import quoted
from gemlens.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# What models compute in. Integers and 8-bit floats are other programs' quantization, whose scales we would not know.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# 25 MB name 300,000 tensors and take 60 MB of memory once parsed. The library alone would go up to 100 MB.
_LARGEST_HEADER = 25_000_000
_LENGTH_BYTES = 8
# The last two are torch's, at a dimension that does not fit 64 bits.
_LIBRARY_ERRORS = (SafetensorError, OSError, RuntimeError, TypeError, ValueError)
_SHARD_NAME = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_BROKEN = "the file is damaged or incomplete; download or save it again"


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...


class _Open(Protocol):
    def keys(self) -> list[str]: ...
    def get_slice(self, name: str, /) -> _Slice: ...
    def get_tensor(self, name: str, /) -> Tensor: ...


class SafetensorsSource:
    """The tensors of one or several safetensors files, by name.

    Raises:
        CheckpointError: a file is missing, damaged or holds a tensor that another one holds too.
    """

    def __init__(self, *files: Path) -> None:
        self._paths: dict[str, Path] = {}
        self._opened: dict[Path, _Open] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        for path in files:
            self._add(path)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, by the file's names."""
        return self._shapes

    def dtypes(self) -> Mapping[str, str]:
        """The number format of every tensor as the file writes it, such as `"BF16"`."""
        return self._dtypes

    def paths(self) -> Mapping[str, Path]:
        """The file that holds each tensor."""
        return self._paths

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor: a view of the file if `dtype` is None or the file's own, else a copy.

        Raises:
            CheckpointError: there is no such tensor, its number format is not one that models compute in, or the file
                changed since it was opened.
        """
        self._check_number_format(name)
        tensor = self._get(name, lambda path: self._opened[path])
        return tensor if dtype is None else tensor.to(dtype)

    def transient(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The same through a mapping of its own: when the tensor goes, so do the pages of the file that it touched."""
        self._check_number_format(name)
        tensor = self.raw(name)
        return tensor if dtype is None else tensor.to(dtype)

    def raw(self, name: str) -> Tensor:
        """A tensor of any number format, such as another program's integers, through a mapping of its own.

        Raises:
            CheckpointError: there is no such tensor, or the file changed since it was opened.
        """
        tensor = self._get(name, lambda path: safe_open(path, framework="pt", device="cpu"))
        if tuple(tensor.shape) != self._shapes[name]:
            raise CheckpointError(f"'{self._paths[name]}' changed while it was read; load it again.")
        return tensor

    def _check_number_format(self, name: str) -> None:
        if (stored := self._dtypes.get(name, "F32")) not in DTYPES:
            raise CheckpointError(
                f"'{name}' in '{self._paths[name]}' is stored as {stored}, but only {', '.join(DTYPES)} can be read; "
                "use the checkpoint as it was before quantization."
            )

    def _get(self, name: str, opened: Callable[[Path], _Open]) -> Tensor:
        if name not in self._paths:
            raise CheckpointError(f"The weights hold no tensor '{name}'.")
        path = self._paths[name]
        try:
            return opened(path).get_tensor(name)
        except _LIBRARY_ERRORS as error:
            raise CheckpointError(f"'{name}' cannot be read from '{path}' ({first_line(error)}); {_BROKEN}.") from error

    def _add(self, path: Path) -> None:
        _check_header_length(path)
        try:
            opened: _Open = safe_open(path, framework="pt", device="cpu")
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = {name: part.get_dtype() for name, part in slices.items()}
        except _LIBRARY_ERRORS as error:
            raise CheckpointError(f"'{path}' is no sound safetensors file ({first_line(error)}); {_BROKEN}.") from error
        if twice := shapes.keys() & self._shapes.keys():
            other = self._paths[min(twice)]
            raise CheckpointError(f"'{path}' and '{other}' both hold {quoted(twice)}; remove the file that is stale.")
        self._opened[path] = opened
        self._paths |= dict.fromkeys(shapes, path)
        self._shapes |= shapes
        self._dtypes |= dtypes


def open_weights(origin: Origin) -> SafetensorsSource:
    """The weights of a checkpoint: `model.safetensors`, or the files that `model.safetensors.index.json` names.

    Raises:
        CheckpointError: there are none, they are damaged, or they are in a format that can execute code.
    """
    if (single := origin.find(SINGLE_FILE)) is not None:
        return SafetensorsSource(single)
    if (index := origin.find(INDEX_FILE)) is not None:
        return _open_shards(origin, index)
    raise CheckpointError(_why_nothing(origin))


def file_dtype(weights: SafetensorsSource) -> torch.dtype:
    """The number format that most of the bytes have (`dtype="auto"`); float32 if no tensor is of floating point."""
    size: Counter[torch.dtype] = Counter()
    for name, stored in weights.dtypes().items():
        if (dtype := DTYPES.get(stored)) is not None:
            size[dtype] += dtype.itemsize * torch.Size(weights.shapes()[name]).numel()
    return max(size, key=lambda dtype: size[dtype], default=torch.float32)


def _check_header_length(path: Path) -> None:
    """Refuses a file whose first 8 bytes promise a header that it cannot hold, before anybody allocates that much."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(_LENGTH_BYTES)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read ({error.strerror}).") from error
    if start == b"version ":
        raise CheckpointError(f"'{path}' is a Git LFS pointer, not the weights themselves; run 'git lfs pull' there.")
    length = int.from_bytes(start, "little")
    if len(start) < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _LARGEST_HEADER):
        raise CheckpointError(
            f"'{path}' has {size} bytes and its header claims {length}, "
            f"which is more than the file or a header can hold; {_BROKEN}."
        )


def _open_shards(origin: Origin, index: Path) -> SafetensorsSource:
    shards = _weight_map(index)
    paths = {}
    for shard in sorted(set(shards.values())):
        if (path := origin.find(shard)) is None:
            raise CheckpointError(f"'{index}' names '{shard}', which is not in {origin}; download or save it again.")
        if path.parent != index.parent:  # hub files lie in one folder per commit
            raise CheckpointError(f"{origin} changed during the download; try again, with a commit as revision.")
        paths[shard] = path
    weights = SafetensorsSource(*paths.values())
    held = weights.paths()
    if lies := [name for name, shard in shards.items() if held.get(name) != paths[shard]]:
        raise CheckpointError(
            f"'{index}' promises tensors that its files do not hold where it says: {quoted(lies)}; "
            "the index and the files are of different checkpoints, so download or save them again."
        )
    return weights


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"'{index}' has no 'weight_map' from tensor names to file names; {_BROKEN}.")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise CheckpointError(f"'{index}' names {shard!r}, but only safetensors files beside it may be named.")
    return weight_map


def _why_nothing(origin: Origin) -> str:
    found = origin.listing()
    missing = f"There is neither '{SINGLE_FILE}' nor '{INDEX_FILE}' in {origin}"
    if ggufs := [name for name in found if name.endswith(".gguf")]:
        return f"{missing}, but {quoted(ggufs, 3)}; pass its name as gguf_file=..."
    if pickles := [name for name in found if name.endswith(_PICKLES)]:
        return (
            f"{missing}, only {quoted(pickles, 3)}; such files are pickles, which can execute code when they are "
            "opened. Convert them to safetensors where you trust them, or look for a revision that has safetensors."
        )
    return f"{missing}; check that this is the folder of a model, whole."
