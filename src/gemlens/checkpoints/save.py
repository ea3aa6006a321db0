"""Tensors -> files, so that a reader sees either the old checkpoint or the new one, whole.

Everything is written under temporary names in the same folder first and renamed at the end. So a crash while writing
leaves the old files as they were, and a model may be saved into the folder that it is memory-mapped from.
"""

import ctypes
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from gemlens.checkpoints.safetensors import DTYPES, INDEX_FILE, SINGLE_FILE
from gemlens.errors import CheckpointError, InputError

_CODES = {dtype: code for code, dtype in DTYPES.items()} | {torch.int8: "I8"}  # int8: parts of quantized weights
_WEIGHT_FILES = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors|model\.safetensors\.index\.json")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def save_weights(
    state: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes `model.safetensors`, or shards and their index if one file would be larger than `max_shard_size`.

    A tensor under several names (a tied head) is written once, under the first. Weight files of an earlier save in this
    folder are replaced or removed. Extra memory: one tensor at a time, if it is not contiguous or not on the CPU.

    Args:
        state: tensors by the names that the file shall have.
        folder: made if it does not exist.
        max_shard_size: bytes, or text such as `"5GB"` or `"500MiB"`; a larger tensor gets a shard of its own.
        metadata: text for the files' headers; `{"format": "pt"}`, which other libraries ask for, unless given.

    Raises:
        InputError: nothing to write, no size, or a tensor without plain floating point values.
        CheckpointError: the folder cannot be written to.
    """
    tensors = _without_twins(state)
    shards = _split(tensors, parse_size(max_shard_size))
    with replacing(Path(folder), stale=_WEIGHT_FILES) as stage:
        for file, names in shards.items():
            chunks = _safetensors({name: tensors[name] for name in names}, metadata or {"format": "pt"})
            write_chunks(stage(file), chunks)
        if len(shards) > 1:
            write_chunks(stage(INDEX_FILE), [_index(tensors, shards)])
            # Renaming follows. Without the old index, a crash between two renames leaves no checkpoint, not a mixture.
            Path(folder, INDEX_FILE).unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Writes a JSON file whole or not at all, with sorted keys, as transformers does.

    Raises:
        InputError: `content` has something that JSON has not.
        CheckpointError: the file cannot be written.
    """
    try:
        text = _json(content)
    except (TypeError, ValueError) as error:
        raise InputError(f"'{path}' cannot be written as JSON ({error}); pass plain finite values.") from error
    with replacing(Path(path).parent) as stage:
        write_chunks(stage(Path(path).name), [text])


def parse_size(size: int | str) -> int:
    """Bytes of `5_000_000`, `"5GB"` (10^9) or `"5GiB"` (2^30).

    Raises:
        InputError: it is no positive size.
    """
    given = size
    if isinstance(size, str) and (parts := re.fullmatch(r"(\d{1,15}(?:\.\d+)?) ?(|[KMGT]I?)B", size.upper())):
        size = int(float(parts[1]) * _UNITS[parts[2]])
    if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
        raise InputError(f"{given!r} is no size of a file; pass a number of bytes or text such as '5GB' or '500MiB'.")
    return size


def _without_twins(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kept: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        # A quantized or distributed tensor is a subclass that has no plain memory of its own to write.
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_meta
        if not plain or tensor.dtype not in _CODES:
            raise InputError(f"'{name}' is no plain tensor of {', '.join(DTYPES)}; only those can be saved.")
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        kept.setdefault(place if tensor.numel() else (name,), name)
    if not kept:
        raise InputError("There are no tensors to save.")
    return {name: state[name] for name in kept.values()}


def _split(tensors: Mapping[str, Tensor], limit: int) -> dict[str, list[str]]:
    """File name -> tensor names: in the given order, a new file whenever the next tensor would pass the limit."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, start=1)}


def _safetensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes | ctypes.Array[ctypes.c_char]]:
    """The bytes of a safetensors file, tensor by tensor: header length (8 bytes), JSON header, data.

    The library's own writer needs numpy, refuses views of one storage and makes files that only their owner may read.
    """
    # Widest numbers first, as the library orders them, so that each tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda name: -tensors[name].itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _CODES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        yield from bytes_of(tensors[name])


def bytes_of(tensor: Tensor) -> Iterator[ctypes.Array[ctypes.c_char]]:
    """What `write_chunks` writes of a tensor: its bytes, not copied where they lie in order on the CPU."""
    plain = tensor.detach().cpu().contiguous()
    if plain.numel():
        yield (ctypes.c_char * plain.nbytes).from_address(plain.data_ptr())  # `plain` lives until resumed


def _index(tensors: Mapping[str, Tensor], shards: Mapping[str, list[str]]) -> bytes:
    total = {
        "total_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "total_size": sum(tensor.nbytes for tensor in tensors.values()),
    }
    return _json({"metadata": total, "weight_map": {name: file for file, names in shards.items() for name in names}})


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def write_chunks(path: Path, chunks: Iterable[bytes | ctypes.Array[ctypes.c_char]]) -> None:
    """Writes a file, to the disk itself."""
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())  # the renaming must not reach the disk before the content does


@contextmanager
def replacing(folder: Path, stale: re.Pattern[str] | None = None) -> Iterator[Callable[[str], Path]]:
    """Yields a function from a file's name to the temporary path to write it to; all get their names at the end.

    If the block fails, none does. Afterwards files of the folder that fit `stale` and were not written are removed.
    """
    staged: dict[Path, Path] = {}

    def stage(name: str) -> Path:
        temporary = folder / f".{name}.{uuid.uuid4().hex}.tmp"
        staged[temporary] = folder / name
        return temporary

    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield stage
        for temporary, path in staged.items():
            temporary.replace(path)
        old = [path for path in folder.iterdir() if stale and stale.fullmatch(path.name)]
        for path in set(old) - set(staged.values()):
            path.unlink()
    except OSError as error:
        raise CheckpointError(
            f"'{folder}' cannot be written to ({error}); make room or choose another folder."
        ) from error
    finally:
        for temporary in staged:
            temporary.unlink(missing_ok=True)
