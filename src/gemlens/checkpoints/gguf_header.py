"""The header of a GGUF file: counts, metadata and where the tensors lie, with nothing believed.

    magic, version, counts -> metadata entries -> tensor infos -> GGUFTensor, placed inside the file

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Versions 2 and 3, little-endian, which is all
that Gemma was ever published in. A header is a row of counts, lengths and offsets that may lie, so each is checked
against the file's size, as a Python integer, before anything is skipped or allocated. Metadata values are decoded when
asked for: at opening, a vocabulary of 262144 strings costs one walk over its lengths.
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gemlens.errors import CheckpointError
from gemlens.kernels.formats import BY_TYPE_ID, Format
from gemlens.kernels.machine import machine

Value = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]

# Far above any Gemma (40 keys, 1247 tensors, three arrays of 262144), and low enough that a header that is merely
# huge costs neither 64 MB nor a second.
MOST_KEYS = 2**12
MOST_TENSORS = 2**14
MOST_ELEMENTS = 2**21  # of all arrays together
LONGEST_NAME = 2**8  # bytes; ggml itself stops at 64 for tensors
MOST_AXES = 4

# GGUF's numbers for the types of metadata values, with the letters of `struct`.
_SCALARS: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_UINT32, _STRING, _ARRAY = 4, 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_FETCH_AGAIN = "The file is damaged or cut short; fetch it again."
_CONVERT_AGAIN = "Convert the model again with a current llama.cpp."


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Where a tensor lies and how it is stored.

    Args:
        name: as the file has it.
        shape: in torch's order, the contiguous axis last (ggml's order, reversed).
        format: of its blocks.
        offset: of its first byte in the file.
        nbytes: how many bytes it takes.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    offset: int
    nbytes: int


def read_header(path: Path, data: mmap.mmap) -> tuple[int, Mapping[str, Value], Mapping[str, GGUFTensor]]:
    """The version, {key: value} and {name: tensor} of a mapped file; `path` is only named in errors.

    Raises:
        CheckpointError: this is not a well-formed GGUF file of version 2 or 3.
    """
    header = _Header(path, data)
    version = header.version()
    tensors = header.count(MOST_TENSORS, "tensors")
    keys = header.count(MOST_KEYS, "metadata keys")
    return version, header.metadata(keys), header.tensors(tensors)


class _Header:
    """A cursor. Every step is checked against the file's size before it is made."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size = path, data, len(data)
        self.at = 0
        self.alignment = 32
        self.elements = 0  # of all arrays so far

    def version(self) -> int:
        """Steps over the magic and the version."""
        magic = self.data[self.skip(4, "the magic") : self.at]
        if magic != b"GGUF":
            raise self.error(f"the first bytes are {magic!r}, but {b'GGUF'!r} was expected", "Pass a GGUF file.")
        version = self.number(_U32, "the version")
        if version and version & 0xFFFF == 0:
            raise self.error("the file is big-endian, but only little-endian files are read", _CONVERT_AGAIN)
        if version not in (2, 3):
            raise self.error(f"the file has GGUF version {version}, but versions 2 and 3 are read", _CONVERT_AGAIN)
        return version

    def count(self, most: int, what: str) -> int:
        """Steps over a number of things, which must be one that a real file can have."""
        count = self.number(_U64, f"the number of {what}")
        if count > most:
            raise self.error(f"the file says that it has {count} {what}, but at most {most} are read")
        return count

    def metadata(self, count: int) -> Mapping[str, Value]:
        """Steps over the metadata. Sets `alignment`."""
        entries: dict[str, _Entry] = {}
        for index in range(count):
            key = self.name(f"metadata key {index}")
            if key in entries:
                raise self.error(f"the metadata key {key!r} comes twice")
            entries[key] = self.entry(f"the metadata value {key!r}")
        if (entry := entries.get("general.alignment")) is not None:
            is_number = entry.kind == _UINT32 and not entry.is_array
            self.alignment = _U32.unpack_from(self.data, entry.start)[0] if is_number else 0
            # The specification wants a multiple of 8, ggml a power of two.
            if self.alignment < 8 or self.alignment & (self.alignment - 1):
                raise self.error("general.alignment must be a 32-bit power of two from 8 on, but it is not")
        return _Metadata(self.path, self.data, entries)

    def entry(self, what: str) -> "_Entry":
        """Steps over one metadata value."""
        kind, count = self.number(_U32, f"the type of {what}"), 1
        is_array = kind == _ARRAY
        if is_array:
            kind, count = self.number(_U32, f"the element type of {what}"), self.number(_U64, f"the length of {what}")
            self.elements += count
            if self.elements > MOST_ELEMENTS:
                raise self.error(f"{what} has {count} elements, but all arrays may have {MOST_ELEMENTS} together")
        if kind == _STRING:
            return _Entry(kind, is_array, count, self.skip_strings(count, what))
        if kind not in _SCALARS:
            known = "arrays in arrays are not read" if kind == _ARRAY else "the types go from 0 to 12"
            raise self.error(f"{what} has the type {kind}, but {known}")
        return _Entry(kind, is_array, count, self.skip(count * struct.calcsize(_SCALARS[kind]), what))

    def tensors(self, count: int) -> Mapping[str, GGUFTensor]:
        """Steps over the tensor infos, which must describe bytes of this file, each byte once."""
        infos: dict[str, GGUFTensor] = {}
        for index in range(count):
            info = self.tensor(f"the name of tensor {index}")
            if info.name in infos:
                raise self.error(f"the tensor {info.name!r} comes twice")
            infos[info.name] = info
        start = end = self.at + -self.at % self.alignment
        placed = {name: replace(info, offset=start + info.offset) for name, info in infos.items()}
        for info in sorted(placed.values(), key=lambda info: info.offset):
            if info.offset < end:
                raise self.error(f"the tensor {info.name!r} starts at byte {info.offset}, inside the one before it")
            end = info.offset + info.nbytes
            if end > self.size:
                raise self.error(f"the tensor {info.name!r} ends at byte {end}, but the file at {self.size}")
        return placed

    def tensor(self, what: str) -> GGUFTensor:
        """Steps over one tensor info; its offset is still relative to where the data starts."""
        name = self.name(what)
        what = f"the tensor {name!r}"
        axes = self.number(_U32, f"the number of axes of {what}")
        if not 1 <= axes <= MOST_AXES:
            raise self.error(f"{what} has {axes} axes, but ggml's tensors have 1 to {MOST_AXES}")
        shape = tuple(self.number(_U64, f"the shape of {what}") for _ in range(axes))[::-1]
        type_id = self.number(_U32, f"the type of {what}")
        offset = self.number(_U64, f"the offset of {what}")
        if type_id not in BY_TYPE_ID:
            known = ", ".join(block_format.name for block_format in BY_TYPE_ID.values())
            advice = f"Take or make a file with one of {known}."
            raise self.error(f"{what} has ggml's type {type_id}, which gemlens does not read", advice)
        block_format = BY_TYPE_ID[type_id]
        elements = math.prod(shape)
        if not 0 < elements < 2**63 or shape[-1] % block_format.block_size:
            rows = f"1 to 2^63 - 1 weights in rows of whole blocks of {block_format.block_size}"
            raise self.error(f"{what} has the shape {shape}, but it must hold {rows}")
        if offset % self.alignment:
            raise self.error(f"{what} has the offset {offset}, but a multiple of {self.alignment} was expected")
        nbytes = elements // block_format.block_size * block_format.block_bytes
        return GGUFTensor(name, shape, block_format, offset, nbytes)

    def name(self, what: str) -> str:
        """Steps over a metadata key or a tensor's name."""
        length = self.number(_U64, f"the length of {what}")
        if length > LONGEST_NAME:
            raise self.error(f"{what} is {length} bytes long, but at most {LONGEST_NAME} are read")
        start = self.skip(length, what)
        try:
            return self.data[start : self.at].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8") from error

    def number(self, layout: struct.Struct, what: str) -> int:
        """Steps over an unsigned integer."""
        return int(layout.unpack_from(self.data, self.skip(layout.size, what))[0])

    def skip(self, nbytes: int, what: str) -> int:
        """Steps over bytes, which must be there, and gives where they start."""
        start = self.at
        if nbytes > self.size - start:
            raise self.error(f"{what} takes {nbytes} bytes from byte {start} on, but the file ends at {self.size}")
        self.at = start + nbytes
        return start

    def skip_strings(self, count: int, what: str) -> int:
        """Steps over strings, which must be there, and gives where they start."""
        end, native = self.at, machine().native
        if native is not None and (found := native.end_of_strings(self.data, end, count)) >= 0:
            return self.skip(found - end, what)
        for _ in range(count):
            if end > self.size - 8:
                raise self.error(f"{what} has a string at byte {end}, but the file ends at {self.size}")
            end += 8 + _U64.unpack_from(self.data, end)[0]
        return self.skip(end - self.at, what)

    def error(self, what: str, advice: str = _FETCH_AGAIN) -> CheckpointError:
        """The error that says what came, what was expected and what to do."""
        return CheckpointError(f"{self.path}: {what}. {advice}")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A metadata value that was stepped over: `count` values of a type, from byte `start` on."""

    kind: int
    is_array: bool
    count: int
    start: int


class _Metadata(Mapping[str, Value]):
    """{key: value}, decoded at each access."""

    def __init__(self, path: Path, data: mmap.mmap, entries: dict[str, _Entry]) -> None:
        self._path, self._data, self._entries = path, data, entries

    def __getitem__(self, key: str) -> Value:
        entry = self._entries[key]
        values: list[Any]
        if entry.kind == _STRING:
            native = machine().native
            found = None if native is None else native.strings(self._data, entry.start, entry.count)
            values = list(self._strings(key, entry)) if found is None else found
        else:
            values = list(struct.unpack_from(f"<{entry.count}{_SCALARS[entry.kind]}", self._data, entry.start))
        return values if entry.is_array else values[0]

    def __contains__(self, key: object) -> bool:
        return key in self._entries  # Mapping's own would decode the value

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _strings(self, key: str, entry: _Entry) -> Iterator[str]:
        end = entry.start
        for _ in range(entry.count):
            start = end + 8
            end = start + _U64.unpack_from(self._data, end)[0]
            try:
                yield self._data[start:end].decode()
            except UnicodeDecodeError as error:
                what = f"the metadata value {key!r} has a string at byte {start} that is not UTF-8"
                raise CheckpointError(f"{self._path}: {what}. {_FETCH_AGAIN}") from error
