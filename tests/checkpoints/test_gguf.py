"""The GGUF reader against the gguf package's own, and against files that lie."""

import os
import random
import re
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType, GGUFValueType
from gguf_files import array, entry, header, info, text, write_gguf

from gemlens.checkpoints import gguf_header
from gemlens.checkpoints.gguf import GGUFFile
from gemlens.errors import CheckpointError
from gemlens.kernels.formats import FORMATS
from gemlens.kernels.machine import Machine

REAL = Path(__file__).parents[2] / "real" / "gemma-3-270m-q4_k_m.gguf"
VALUES = {
    GGUFValueType.UINT8: 255,
    GGUFValueType.INT8: -128,
    GGUFValueType.UINT16: 65535,
    GGUFValueType.INT16: -32768,
    GGUFValueType.UINT32: 2**32 - 1,
    GGUFValueType.INT32: -(2**31),
    GGUFValueType.FLOAT32: 0.1,
    GGUFValueType.BOOL: True,
    GGUFValueType.STRING: "gr\u00fc\u00df dich \U0001f600",
    GGUFValueType.UINT64: 2**64 - 1,
    GGUFValueType.INT64: -(2**63),
    GGUFValueType.FLOAT64: 0.1,
}


@pytest.fixture(autouse=True, params=["compiled", "plain"])
def walk_over_strings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds whoever walks over strings."""
    if request.param == "plain":
        monkeypatch.setattr(gguf_header, "machine", lambda: Machine("reference", 1, None))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with each type of value, alone and in an array, and a tensor of each format."""
    path = tmp_path_factory.mktemp("gguf") / "sample.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    for kind, value in VALUES.items():
        writer.add_key_value(f"one.{kind.name}", value, kind)
        writer.add_key_value(f"many.{kind.name}", [value] * 3, GGUFValueType.ARRAY, sub_type=kind)
    rng = np.random.default_rng(0)
    for block_format in FORMATS:
        kind = GGMLQuantizationType(block_format.type_id)
        values = rng.integers(0, 256, (2, 3, 512 // block_format.block_size * block_format.block_bytes), dtype=np.uint8)
        writer.add_tensor(f"blk.0.{kind.name}.weight", values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@contextmanager
def at_most(megabytes: float | None = None, seconds: float = 1) -> Iterator[None]:
    """Fails if what runs inside takes more time or, if that is traced, more of Python's memory."""
    started, peak = time.process_time(), 0
    if megabytes is not None:
        tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < seconds
    assert megabytes is None or peak < megabytes * 2**20


def same(ours: Any, theirs: Any) -> bool:
    """Equal values of equal types, where NaN equals NaN."""
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(same(one, other) for one, other in zip(ours, theirs, strict=True))
    return type(ours) is type(theirs) and (ours == theirs or (ours != ours and theirs != theirs))


def assert_agrees_with_the_gguf_package(file: GGUFFile, reader: gguf.GGUFReader) -> None:
    theirs = {key: field.contents() for key, field in reader.fields.items()}
    assert file.version == theirs.pop("GGUF.version")
    assert len(file.tensors) == theirs.pop("GGUF.tensor_count")
    assert len(file.metadata) == theirs.pop("GGUF.kv_count")
    assert list(file.metadata) == list(theirs)
    assert all(same(value, theirs[key]) for key, value in file.metadata.items())
    assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        ours = file.tensors[tensor.name]
        assert ours.shape == tuple(reversed(tensor.shape.tolist()))
        assert ours.format.name == tensor.tensor_type.name
        assert (ours.offset, ours.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert file.raw(tensor.name).numpy().tobytes() == tensor.data.tobytes()


# Files as they should be


def test_a_file_reads_back_as_in_the_gguf_package(sample: Path) -> None:
    file = GGUFFile.open(str(sample))
    assert file.path == sample
    assert_agrees_with_the_gguf_package(file, gguf.GGUFReader(sample))
    assert file.metadata["one.UINT64"] == 2**64 - 1
    assert file.metadata["one.BOOL"] is True
    assert file.metadata["many.STRING"] == [VALUES[GGUFValueType.STRING]] * 3
    assert "one.INT8" in file.metadata
    assert "two.INT8" not in file.metadata


def test_version_2_reads_like_version_3(sample: Path, tmp_path: Path) -> None:
    older = tmp_path / "v2.gguf"
    older.write_bytes(b"GGUF\2" + sample.read_bytes()[5:])
    file = GGUFFile.open(older)
    assert file.version == 2
    assert file.tensors == GGUFFile.open(sample).tensors


@pytest.mark.parametrize("block_format", FORMATS, ids=lambda block_format: block_format.name)
def test_a_tensor_is_the_gguf_packages_dequantisation(sample: Path, block_format: Any) -> None:
    file, name = GGUFFile.open(sample), f"blk.0.{block_format.name}.weight"
    ours = file.tensor(name, torch.float32)
    with np.errstate(all="ignore"):
        raw = file.raw(name).numpy().reshape(2, 3, -1)
        theirs = gguf.quants.dequantize(raw, GGMLQuantizationType(block_format.type_id))
    assert ours.shape == (2, 3, 512)
    assert np.array_equal(ours.numpy(), theirs, equal_nan=True)
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    assert file.tensor(name).dtype == plain.get(block_format.name, torch.float32)
    assert file.tensor(name, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_tensors_are_views_that_never_write_to_the_file(sample: Path, name: str) -> None:
    before, file = sample.read_bytes(), GGUFFile.open(sample)
    name = f"blk.0.{name}.weight"
    view = file.tensor(name)
    assert view.data_ptr() == file.raw(name).data_ptr() == file.tensor(name, view.dtype).data_ptr()
    view.fill_(7)
    assert file.tensor(name)[1, 2, 3] == 7
    assert sample.read_bytes() == before


def test_a_tensor_outlives_its_file_object(sample: Path) -> None:
    view = GGUFFile.open(sample).raw("blk.0.F32.weight")
    assert view.sum() == GGUFFile.open(sample).raw("blk.0.F32.weight").sum()


def test_the_alignment_of_the_file_counts(tmp_path: Path) -> None:
    ones = np.ones((3, 5), dtype=np.float32)
    tensors = dict.fromkeys(("a", "b"), (ones, GGMLQuantizationType.F32))
    path = write_gguf(tmp_path / "aligned.gguf", "gemma3", {}, tensors, alignment=256)
    file = GGUFFile.open(path)
    assert [tensor.offset % 256 for tensor in file.tensors.values()] == [0, 0]
    assert_agrees_with_the_gguf_package(file, gguf.GGUFReader(path))


def test_a_file_without_tensors_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(header(0, 1) + entry(b"k", 9, array(8, 2, text(b"a") + text(b"b"))))
    assert dict(GGUFFile.open(path).metadata) == {"k": ["a", "b"]}


def test_an_unknown_tensor_is_a_sentence(sample: Path) -> None:
    with pytest.raises(CheckpointError, match=r"sample.gguf has no tensor 'nope'; it has 13 others"):
        GGUFFile.open(sample).tensor("nope")


# Files that lie


def one(infos: bytes, count: int = 1) -> bytes:
    """A file of `count` tensor infos and 256 bytes of data."""
    start = header(count, 0) + infos
    return start + bytes(-len(start) % 32 + 256)


def aligned(kind: int, payload: bytes) -> bytes:
    return header(0, 1) + entry(b"general.alignment", kind, payload)


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot be read: .*empty"),
    "no magic": (b"PK\3\4" + bytes(60), r"first bytes are b'PK.*Pass a GGUF file"),
    "reversed magic": (b"FUGG" + bytes(60), "first bytes are b'FUGG'"),
    "only a magic": (b"GGUF", "the version takes 4 bytes from byte 4 on, but the file ends at 4"),
    "version 1": (header(0, 0, version=1), "GGUF version 1, but versions 2 and 3 are read. Convert"),
    "version 4": (header(0, 0, version=4), "GGUF version 4"),
    "version 0": (header(0, 0, version=0), "GGUF version 0"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "2^40 keys": (header(0, 2**40), "says that it has 1099511627776 metadata keys"),
    "2^63 tensors": (header(2**63, 0), "says that it has 9223372036854775808 tensors"),
    "fewer keys than said": (header(0, 2) + entry(b"a", 0, b"\1"), "length of metadata key 1 takes 8 bytes"),
    "fewer tensors than said": (header(2, 0) + info(b"a"), "length of the name of tensor 1 takes 8 bytes"),
    "long key": (header(0, 1) + struct.pack("<Q", 2**63), "metadata key 0 is 9223372036854775808 bytes long"),
    "key behind the end": (header(0, 1) + struct.pack("<Q", 200) + b"a", "metadata key 0 takes 200 bytes"),
    "key not UTF-8": (header(0, 1) + entry(b"\xff\xfe", 0, b"\1"), "metadata key 0 is not UTF-8"),
    "key twice": (header(0, 2) + entry(b"a", 0, b"\1") * 2, "the metadata key 'a' comes twice"),
    "type 13": (header(0, 1) + entry(b"a", 13, bytes(8)), "'a' has the type 13"),
    "type 255": (header(0, 1) + entry(b"a", 255, bytes(8)), "'a' has the type 255"),
    "long string": (header(0, 1) + entry(b"a", 8, struct.pack("<Q", 2**64 - 1)), "'a' takes 18446744073709551623 b"),
    "short number": (header(0, 1) + entry(b"a", 10, bytes(7)), "'a' takes 8 bytes from byte 37 on"),
    "long array": (header(0, 1) + entry(b"a", 9, array(4, 2**62)), "'a' has 4611686018427387904 elements"),
    "array behind the end": (header(0, 1) + entry(b"a", 9, array(4, 9, bytes(32))), "'a' takes 36 bytes"),
    "strings behind the end": (header(0, 1) + entry(b"a", 9, array(8, 9, text(b"b"))), "'a' has a string at byte"),
    "last string behind the end": (header(0, 1) + entry(b"a", 9, array(8, 1, bytes([9] + [0] * 7))), "takes 17 bytes"),
    "array of type 99": (header(0, 1) + entry(b"a", 9, array(99, 1)), "'a' has the type 99"),
    "nested arrays": (header(0, 1) + entry(b"a", 9, array(9, 1) * 1000), "'a' has the type 9, but arrays in arrays"),
    "alignment 0": (aligned(4, struct.pack("<I", 0)), "general.alignment must be a 32-bit power of two"),
    "alignment 3": (aligned(4, struct.pack("<I", 3)), "general.alignment must be"),
    "alignment 4": (aligned(4, struct.pack("<I", 4)), "general.alignment must be"),
    "alignment 48": (aligned(4, struct.pack("<I", 48)), "general.alignment must be"),
    "alignment as uint64": (aligned(10, struct.pack("<Q", 32)), "general.alignment must be"),
    "alignment as text": (aligned(8, text(b"32")), "general.alignment must be"),
    "alignments": (aligned(9, array(4, 1, struct.pack("<I", 32))), "general.alignment must be"),
    "empty alignments": (aligned(9, array(4, 0)), "general.alignment must be"),
    "alignment 2^31": (
        header(1, 1) + entry(b"general.alignment", 4, struct.pack("<I", 2**31)) + info(b"a") + bytes(256),
        "'a' ends at byte 2147483776, but the file at",
    ),
    "long tensor name": (one(struct.pack("<Q", 257)), "the name of tensor 0 is 257 bytes long"),
    "tensor name not UTF-8": (one(info(b"\xff")), "the name of tensor 0 is not UTF-8"),
    "tensor twice": (one(info(b"a") + info(b"a", offset=128), 2), "the tensor 'a' comes twice"),
    "no axes": (one(info(b"a", ())), "'a' has 0 axes"),
    "5 axes": (one(info(b"a", (32, 1, 1, 1, 1))), "'a' has 5 axes"),
    "2^32 - 1 axes": (one(text(b"a") + b"\xff" * 4), "'a' has 4294967295 axes"),
    "zero axis": (one(info(b"a", (32, 0))), r"'a' has the shape \(0, 32\)"),
    "2^63 weights": (one(info(b"a", (2**31, 2**32))), r"'a' has the shape \(4294967296, 2147483648\)"),
    "2^256 weights": (one(info(b"a", (2**64 - 1,) * 4)), "'a' has the shape"),
    "product wraps to 32": (one(info(b"a", (2**60 + 2, 16))), "'a' has the shape"),
    "half a block": (one(info(b"a", (48,), type_id=8)), "'a' has the shape .* whole blocks of 32"),
    "ggml type 4": (one(info(b"a", type_id=4)), "'a' has ggml's type 4, which gemlens does not read. Take or make"),
    "ggml type 255": (one(info(b"a", type_id=255)), "'a' has ggml's type 255"),
    "unaligned offset": (one(info(b"a", offset=16)), "'a' has the offset 16, but a multiple of 32 was expected"),
    "offset behind the end": (one(info(b"a", offset=2**63)), "'a' ends at byte 9223372036854776000, but the file at"),
    "offset wraps": (one(info(b"a", offset=2**64 - 32)), "'a' ends at byte"),
    "data behind the end": (one(info(b"a", (96,))), "'a' ends at byte 448, but the file at 320"),
    "tensors in one place": (one(info(b"a") + info(b"b"), 2), "'b' starts at byte 96, inside the one before it"),
    "tensors overlap": (one(info(b"a") + info(b"b", offset=96), 2), "'b' starts at byte 192, inside the one before"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_a_sentence(lie: str, tmp_path: Path) -> None:
    data, sentence = LIES[lie]
    path = tmp_path / "lie.gguf"
    path.write_bytes(data)
    with at_most(megabytes=1), pytest.raises(CheckpointError, match=sentence) as caught:
        GGUFFile.open(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith(".")


def test_a_string_that_is_not_utf8_is_a_sentence_when_read(tmp_path: Path) -> None:
    path = tmp_path / "latin.gguf"
    path.write_bytes(header(0, 2) + entry(b"a", 8, text(b"\xe4")) + entry(b"b", 9, array(8, 1, text(b"\xe4"))))
    file = GGUFFile.open(path)
    for key in "ab":
        with pytest.raises(CheckpointError, match=f"latin.gguf: the metadata value '{key}' has a string at byte"):
            file.metadata[key]


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_a_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"model.gguf is not a file\. Pass the path of a GGUF file"):
        GGUFFile.open(path)


@pytest.mark.parametrize("what", ["strings", "numbers", "keys", "tensors"])
def test_a_huge_header_costs_neither_a_second_nor_64_mb(what: str, tmp_path: Path) -> None:
    """The worst that the limits let through."""
    wide = "\U0001f600" * 62  # four bytes per character, in the file and in memory
    many = {
        "strings": lambda: header(0, 1) + entry(b"a", 9, array(8, gguf_header.MOST_ELEMENTS)) + bytes(2**24),
        "numbers": lambda: header(0, 1) + entry(b"a", 9, array(10, gguf_header.MOST_ELEMENTS)) + bytes(2**24),
        "keys": lambda: (
            header(0, gguf_header.MOST_KEYS)
            + b"".join(entry(f"{i:08}{wide}".encode(), 0, b"\1") for i in range(gguf_header.MOST_KEYS))
        ),
        "tensors": lambda: (
            (infos := header(gguf_header.MOST_TENSORS, 0) + b"".join(
                info(f"{i:08}{wide}".encode(), (1, 1, 1, 8), offset=32 * i) for i in range(gguf_header.MOST_TENSORS)
            )) + bytes(-len(infos) % 32 + 32 * gguf_header.MOST_TENSORS)
        ),
    }  # fmt: skip
    path = tmp_path / "huge.gguf"
    path.write_bytes(many[what]())
    with at_most():
        GGUFFile.open(path)
    with at_most(megabytes=64, seconds=10):  # tracing takes time
        GGUFFile.open(path)


def test_a_file_cut_short_is_a_sentence(sample: Path, tmp_path: Path) -> None:
    data = sample.read_bytes()
    end = max(tensor.offset + tensor.nbytes for tensor in GGUFFile.open(sample).tensors.values())
    path = tmp_path / "cut.gguf"
    for length in random.Random(0).sample(range(end), 200):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            GGUFFile.open(path)


# Mutations. A base header with every kind of field, small, so that most mutations hit something that matters.

NASTY = [0, 1, 3, 7, 8, 9, 12, 13, 31, 33, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]


def flip(rng: random.Random, data: bytearray, end: int) -> None:
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(end)] ^= 1 << rng.randrange(8)


def scribble(rng: random.Random, data: bytearray, end: int) -> None:
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(end)] = rng.randrange(256)


def splice(rng: random.Random, data: bytearray, end: int) -> None:
    start, length, to = rng.randrange(end), rng.randint(1, 64), rng.randrange(end)
    data[to:to] = data[start : start + length]


def drop(rng: random.Random, data: bytearray, end: int) -> None:
    start = rng.randrange(end)
    del data[start : start + rng.randint(1, 64)]


def lie(rng: random.Random, data: bytearray, end: int) -> None:
    layout = rng.choice(["<I", "<Q"])
    number = rng.choice(NASTY) if rng.random() < 0.8 else rng.randrange(2 ** rng.randrange(1, 64))
    struct.pack_into(layout, data, rng.randrange(end - 8), number % 2 ** (8 * struct.calcsize(layout)))


MUTATIONS: list[Callable[[random.Random, bytearray, int], None]] = [flip, scribble, splice, drop, lie]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """A small file and the length of its header."""
    metadata = {"general.alignment": 32, "n": 7, "f": 0.5, "b": True, "t": "text", "list": ["one", "two"], "ints": [1]}
    half, plain = GGMLQuantizationType.F16, GGMLQuantizationType.F32
    ones = np.ones((2, 32), dtype=np.float32)
    tensors = {"a": (ones, plain), "b": (ones, half), "c": (ones, GGMLQuantizationType.Q8_0), "d": (ones[:, :1], plain)}
    path = write_gguf(tmp_path_factory.mktemp("base") / "base.gguf", "gemma3", metadata, tensors)
    return path.read_bytes(), min(tensor.offset for tensor in GGUFFile.open(path).tensors.values())


def read_all(path: Path) -> GGUFFile:
    """Everything that can be asked of a file."""
    file = GGUFFile.open(path)
    assert len(dict(file.metadata)) == len(file.metadata)
    for name, tensor in file.tensors.items():
        assert file.tensor(name).shape == tensor.shape
    return file


@pytest.mark.parametrize("seed", range(10))
def test_a_mutated_header_is_read_right_or_refused(seed: int, base: tuple[bytes, int], tmp_path: Path) -> None:
    """1000 mutations per seed. What we read, the gguf package reads the same."""
    rng, path, read = random.Random(seed), tmp_path / "mutated.gguf", 0
    for trial in range(1000):
        data = bytearray(base[0])
        for _ in range(rng.choice([1, 1, 2])):
            rng.choice(MUTATIONS)(rng, data, base[1])
        path.write_bytes(data)
        file = None
        with at_most(megabytes=64 if trial % 20 == 0 else None), suppress(CheckpointError):
            file = read_all(path)
        if file is not None:
            read += 1
            assert_agrees_with_the_gguf_package(file, gguf.GGUFReader(path))
    assert 20 < read < 500


# A real file


@pytest.mark.real
@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is missing; make it with `make real`")
@pytest.mark.parametrize("walk_over_strings", ["compiled"], indirect=True)
def test_the_real_270m_reads_and_dequantises_as_in_the_gguf_package() -> None:
    file, reader = GGUFFile.open(REAL), gguf.GGUFReader(REAL)
    assert_agrees_with_the_gguf_package(file, reader)
    assert {tensor.format.name for tensor in file.tensors.values()} == {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}
    for tensor in reader.tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(file.tensor(tensor.name).numpy().view(np.uint32), theirs.view(np.uint32)), tensor.name
