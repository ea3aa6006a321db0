"""Sound files give views; whatever else a file or an index may be, it gives a sentence and allocates nothing."""

import contextlib
import json
import random
import re
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gemlens.checkpoints.hub import Origin
from gemlens.checkpoints.safetensors import SafetensorsSource, file_dtype, open_weights
from gemlens.errors import CheckpointError

TENSORS = {
    "model.embed_tokens.weight": torch.arange(24.0).reshape(4, 6).bfloat16(),
    "model.norm.weight": torch.ones(8),
    "model.scale": torch.tensor(2.0, dtype=torch.float16),
    "model.nothing": torch.zeros(0, 3),
}
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    names = sorted(TENSORS)
    save_file({name: TENSORS[name] for name in names[:2]}, tmp_path / FIRST)
    save_file({name: TENSORS[name] for name in names[2:]}, tmp_path / SECOND)
    write_index(tmp_path, {name: FIRST if name in names[:2] else SECOND for name in names})
    return tmp_path


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_names_shapes_formats_and_values_come_back(kind: str, request: pytest.FixtureRequest) -> None:
    weights = open_weights(Origin(request.getfixturevalue(kind)))
    assert weights.shapes() == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    assert weights.dtypes()["model.embed_tokens.weight"] == "BF16"
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(weights.tensor(name), tensor, rtol=0, atol=0)
        assert weights.tensor(name, torch.float32).dtype == torch.float32


def test_a_tensor_is_a_view_of_the_file_that_never_writes_to_it(single: Path) -> None:
    before = (single / "model.safetensors").read_bytes()
    weights = open_weights(Origin(single))
    first, again = (weights.tensor("model.norm.weight", dtype) for dtype in (None, torch.float32))
    assert first.data_ptr() == again.data_ptr()
    first.fill_(7)
    assert (single / "model.safetensors").read_bytes() == before
    del weights, again
    assert first.sum() == 56  # the view keeps the mapping alive


def test_a_single_file_wins_over_an_index(sharded: Path) -> None:
    save_file({"only": torch.ones(1)}, sharded / "model.safetensors")
    assert set(open_weights(Origin(sharded)).shapes()) == {"only"}


def test_the_file_dtype_is_that_of_most_bytes(tmp_path: Path) -> None:
    save_file({"a": torch.ones(9), "b": torch.ones(20).bfloat16(), "ids": torch.arange(99)}, tmp_path / "a.safetensors")
    assert file_dtype(SafetensorsSource(tmp_path / "a.safetensors")) == torch.bfloat16
    save_file({"ids": torch.arange(99)}, tmp_path / "b.safetensors")
    assert file_dtype(SafetensorsSource(tmp_path / "b.safetensors")) == torch.float32


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.int64, torch.bool])
def test_a_number_format_that_no_model_computes_in_is_refused_when_asked_for(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    save_file({"odd": torch.ones(4).to(dtype), "even": torch.ones(4)}, tmp_path / "model.safetensors")
    weights = open_weights(Origin(tmp_path))
    assert weights.tensor("even").sum() == 4
    with pytest.raises(
        CheckpointError, match=r"'odd' in .* is stored as \w+, but only F64, F32, F16, BF16 can be read"
    ):
        weights.tensor("odd")


def test_a_tensor_that_is_not_there_is_a_sentence(single: Path) -> None:
    with pytest.raises(CheckpointError, match=r"The weights hold no tensor 'model.nor'"):
        open_weights(Origin(single)).tensor("model.nor")


def test_a_folder_without_weights_is_a_sentence_that_names_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is neither .*; check that this is the folder of a model, whole"):
        open_weights(Origin(tmp_path))
    for name in ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.ckpt", "x.pt", "y.pth"):
        (tmp_path / name).write_bytes(b"\x80\x04.")
        with pytest.raises(
            CheckpointError, match=rf"{name}.*pickles, which can execute code.*Convert them to safetensors"
        ):
            open_weights(Origin(tmp_path))
        (tmp_path / name).unlink()
    (tmp_path / "model-q4.gguf").touch()
    with pytest.raises(CheckpointError, match=r"but 'model-q4.gguf'; pass its name as gguf_file"):
        open_weights(Origin(tmp_path))


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.example/spec/v1\noid sha256:0\nsize 99\n")
    with pytest.raises(CheckpointError, match=r"is a Git LFS pointer, .*git lfs pull"):
        open_weights(Origin(tmp_path))


@pytest.mark.parametrize("length", [100_000_000, 2**31, 2**63, 2**64 - 1])
def test_a_header_that_is_longer_than_the_file_is_not_read(tmp_path: Path, length: int) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" * 50)
    before = peak_memory()
    with pytest.raises(CheckpointError, match=f"has 108 bytes and its header claims {length}"):
        open_weights(Origin(tmp_path))
    assert peak_memory() - before < 10_000


def test_a_header_of_100_megabytes_is_not_parsed(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 90_000_000))
        file.truncate(200_000_000)
    before = peak_memory()
    with pytest.raises(CheckpointError, match="more than the file or a header can hold"):
        open_weights(Origin(tmp_path))
    assert peak_memory() - before < 10_000


def test_a_file_cut_anywhere_is_a_sentence(single: Path) -> None:
    whole = (single / "model.safetensors").read_bytes()
    rng = random.Random(0)
    for end in [0, 1, 7, 8, 9, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(200))]:
        (single / "model.safetensors").write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match="damaged or incomplete; download or save it again"):
            open_weights(Origin(single))


def test_a_file_that_shrinks_after_opening_is_a_sentence(single: Path) -> None:
    weights = open_weights(Origin(single))
    shutil.copy(single / "model.safetensors", single / "shorter")
    with (single / "shorter").open("r+b") as file:
        file.truncate(100)
    (single / "shorter").replace(single / "model.safetensors")
    for name in TENSORS:  # either from the file that was opened, or refused
        with contextlib.suppress(CheckpointError):
            assert weights.tensor(name).shape == TENSORS[name].shape


NUMBERS = [b"-1", b"4294967296", b"18446744073709551615", b"9" * 30, b"1e5", b"2.5", b"null", b"[]", b'"x"']
FIELDS: dict[str, list[Any]] = {
    "dtype": ["F64", "F8_E4M3", "F4", "F6_E2M3", "C64", "BOOL", "X1", None, 3],
    "shape": [[0, 2**62], [2**40, 2**40], [-1], [2**63, 0], [0, 2**64 - 1], [], ["a"], {}, [1] * 1000, [[1]], None],
    "data_offsets": [[0, 0], [0, 32], [8, 40], [5, 2], [0, 2**63], [-8, 0], [1], [0, 1, 2], None],
}


def _with_random_bytes(header: bytes, rng: random.Random) -> bytes:
    changed = bytearray(header)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _with_a_gap(header: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(header))
    return header[:start] + header[start + rng.randrange(1, 20) :]


def _with_another_number(header: bytes, rng: random.Random) -> bytes:
    number = rng.choice(list(re.finditer(rb"\d+", header)))
    return header[: number.start()] + rng.choice(NUMBERS) + header[number.end() :]


def _with_another_field(header: bytes, rng: random.Random) -> bytes:
    content = json.loads(header)
    entry = content[rng.choice([name for name in content if name != "__metadata__"])]
    for name in rng.sample(list(FIELDS), rng.randrange(1, 3)):
        entry[name] = rng.choice(FIELDS[name])
    return json.dumps(content).encode()


def _with_nonsense(header: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        [b"", b"{}", b"null", b"[]", b'{"a":{}}', b"{" * 200, b'{"a":' * 500, b'{"__metadata__":3}', b"\xff"]
    )


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    _with_random_bytes,
    _with_a_gap,
    _with_another_number,
    _with_another_field,
    _with_nonsense,
]


def test_ten_thousand_mutated_headers_are_sentences_or_read_rightly(single: Path) -> None:
    path = single / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, body = whole[8 : 8 + length], whole[8 + length :]
    rng = random.Random(1)
    before, slowest = peak_memory(), 0.0
    said = []
    for _ in range(10_000):
        mutated = rng.choice(MUTATIONS)(header, rng)
        claimed = rng.choice([*[len(mutated)] * 20, 0, length - 1, 2**64 - 1, len(mutated) + len(body) + 1])
        path.write_bytes(struct.pack("<Q", claimed) + mutated + body[: rng.choice([*[len(body)] * 20, 0, 3])])
        start = time.process_time()
        try:
            weights = open_weights(Origin(single))
            for name, shape in weights.shapes().items():
                assert weights.tensor(name, torch.float32).shape == shape
        except CheckpointError as error:
            said.append(str(error))
        slowest = max(slowest, time.process_time() - start)
    assert 8_000 < len(said) < 10_000
    assert [text for text in said if not text.endswith(("again.", "quantization."))] == []
    assert slowest < 1
    assert peak_memory() - before < 50_000


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    with pytest.raises(CheckpointError, match=f"names '{SECOND}', which is not in the folder"):
        open_weights(Origin(sharded))


def test_an_index_that_places_tensors_wrongly_is_refused(sharded: Path) -> None:
    right = json.loads((sharded / INDEX).read_text())["weight_map"]
    write_index(sharded, {**right, "model.ghost": FIRST})
    with pytest.raises(
        CheckpointError, match=r"promises tensors that its files do not hold where it says: 'model.ghost'"
    ):
        open_weights(Origin(sharded))
    write_index(sharded, {**right, "model.scale": FIRST})
    with pytest.raises(
        CheckpointError, match=r"where it says: 'model.scale'; the index and the files are of different"
    ):
        open_weights(Origin(sharded))


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    save_file({name: TENSORS[name] for name in ("model.scale", "model.embed_tokens.weight")}, sharded / SECOND)
    with pytest.raises(CheckpointError, match=r"both hold 'model.embed_tokens.weight'; remove the file that is stale"):
        open_weights(Origin(sharded))


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "a/b.safetensors",
        "a\\b.safetensors",
        "x.bin",
        "",
        "a\0.safetensors",
        "x" * 5000 + ".safetensors",
        7,
        None,
        ["x"],
    ],
)
def test_an_index_may_name_only_safetensors_files_beside_it(sharded: Path, name: object) -> None:
    write_index(sharded, {"model.scale": name})
    with pytest.raises(CheckpointError, match="but only safetensors files beside it may be named"):
        open_weights(Origin(sharded))


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 99_999])
def test_an_index_that_is_none_is_a_sentence(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=INDEX):
        open_weights(Origin(sharded))


def test_shards_of_two_commits_are_not_mixed(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = sharded / "other-commit"
    elsewhere.mkdir()
    (sharded / SECOND).rename(elsewhere / SECOND)
    here = Origin.find
    monkeypatch.setattr(Origin, "find", lambda self, name: elsewhere / name if name == SECOND else here(self, name))
    with pytest.raises(CheckpointError, match="changed during the download; try again"):
        open_weights(Origin(sharded))
