"""A save is whole or did not happen, and what it wrote opens everywhere."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from gemlens.checkpoints import save
from gemlens.checkpoints.hub import Origin, read_json
from gemlens.checkpoints.safetensors import open_weights
from gemlens.checkpoints.save import parse_size, save_weights, write_json
from gemlens.errors import CheckpointError, InputError

INDEX = "model.safetensors.index.json"


def state(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "a.weight": torch.full((3, 5), value, dtype=torch.bfloat16),
        "b.weight": torch.full((4, 4), value),
        "c.scale": torch.tensor(value, dtype=torch.float16),
        "d.nothing": torch.zeros(0, 7),
        "e.weight": torch.full((2, 2), value, dtype=torch.float64),
    }


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def assert_holds(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    weights = open_weights(Origin(folder))
    assert weights.shapes().keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(weights.tensor(name), tensor, rtol=0, atol=0)


def test_one_file_that_the_reference_library_reads(tmp_path: Path) -> None:
    save_weights(state(), tmp_path / "new" / "folder")
    path = tmp_path / "new" / "folder" / "model.safetensors"
    assert files(path.parent) == {"model.safetensors"}
    for name, tensor in load_file(path).items():
        torch.testing.assert_close(tensor, state()[name], rtol=0, atol=0)
        assert tensor.data_ptr() % tensor.itemsize == 0
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    save_weights(state(), tmp_path, metadata={"format": "pt", "made": "by hand"})
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "made": "by hand"}


def test_a_written_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    save_weights(state(), tmp_path)
    (tmp_path / "other").touch()
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "other").stat().st_mode
    )


def test_shards_and_their_index_are_those_of_transformers(tmp_path: Path) -> None:
    save_weights(state(), tmp_path, max_shard_size=100)
    index = read_json(tmp_path / INDEX)
    assert index["metadata"] == {"total_parameters": 36, "total_size": 30 + 64 + 2 + 0 + 32}
    assert index["weight_map"] == {
        "a.weight": "model-00001-of-00002.safetensors",
        "b.weight": "model-00001-of-00002.safetensors",
        "c.scale": "model-00001-of-00002.safetensors",
        "d.nothing": "model-00001-of-00002.safetensors",
        "e.weight": "model-00002-of-00002.safetensors",
    }
    assert files(tmp_path) == {*index["weight_map"].values(), INDEX}
    assert_holds(tmp_path, state())


def test_a_tensor_larger_than_the_limit_gets_its_own_shard(tmp_path: Path) -> None:
    save_weights(state(), tmp_path, max_shard_size=1)
    assert len(files(tmp_path)) == len(state()) + 1
    assert_holds(tmp_path, state())


def test_tied_weights_are_written_once_and_views_whole(tmp_path: Path) -> None:
    shared = nn.Parameter(torch.randn(6, 4))
    fused = torch.arange(24.0).reshape(6, 4)
    tensors = {"embed": shared, "head": shared, "q": fused[:3], "kv": fused[2:], "turned": fused.T}
    tensors |= {"none": torch.zeros(0), "nothing": torch.zeros(0)}
    save_weights(tensors, tmp_path)
    del tensors["head"]
    assert_holds(tmp_path, {name: tensor.detach() for name, tensor in tensors.items()})


@pytest.mark.parametrize("limits", [(10**6, 100), (100, 10**6), (100, 1), (1, 100), (100, 100)])
def test_an_earlier_save_leaves_nothing_behind(tmp_path: Path, limits: tuple[int, int]) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "adapter_model.safetensors").touch()
    save_weights(state(1.0) | {"only.old": torch.ones(2)}, tmp_path, max_shard_size=limits[0])
    save_weights(state(2.0), tmp_path, max_shard_size=limits[1])
    assert_holds(tmp_path, state(2.0))
    kept = {"config.json", "adapter_model.safetensors"}
    weight_map = read_json(tmp_path / INDEX)["weight_map"] if (tmp_path / INDEX).exists() else {}
    assert files(tmp_path) == kept | (set(weight_map.values()) | {INDEX} if weight_map else {"model.safetensors"})


@pytest.mark.parametrize("limit", [10**6, 100])
def test_a_model_may_be_saved_into_the_folder_it_is_mapped_from(tmp_path: Path, limit: int) -> None:
    save_weights(state(3.0), tmp_path, max_shard_size=limit)
    weights = open_weights(Origin(tmp_path))
    mapped = {name: weights.tensor(name) for name in weights.shapes()}
    mapped["b.weight"].mul_(2)
    save_weights(mapped, tmp_path, max_shard_size=limit)
    assert_holds(tmp_path, state(3.0) | {"b.weight": torch.full((4, 4), 6.0)})
    assert (mapped["a.weight"] == 3).all()


@pytest.mark.parametrize("limit", [10**6, 100])
@pytest.mark.parametrize("step", range(8))
def test_a_save_that_fails_at_any_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, limit: int
) -> None:
    save_weights(state(1.0), tmp_path, max_shard_size=limit)
    before = files(tmp_path)
    done = []

    def full_disk(descriptor: int) -> None:
        done.append(descriptor)
        if len(done) > step:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    try:
        save_weights(state(2.0), tmp_path, max_shard_size=limit)
    except CheckpointError as error:
        assert "No space left on device" in str(error)  # noqa: PT017 - only some steps fail
        assert files(tmp_path) == before
        assert_holds(tmp_path, state(1.0))
    else:
        assert step >= (1 if limit == 10**6 else 3)
        assert_holds(tmp_path, state(2.0))


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("limits", [(10**6, 100), (100, 10**6), (100, 100)])
def test_a_crash_between_renames_never_leaves_a_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, limits: tuple[int, int]
) -> None:
    save_weights(state(1.0), tmp_path, max_shard_size=limits[0])
    rename, done = Path.replace, []

    def crash(self: Path, target: Any) -> Path:
        done.append(target)
        if len(done) > step:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    try:
        save_weights(state(2.0), tmp_path, max_shard_size=limits[1])
    except KeyboardInterrupt:
        try:
            weights = open_weights(Origin(tmp_path))
        except CheckpointError:
            return  # none rather than a mixture
        assert (
            len({weights.tensor(name).sum().item() / max(1, weights.tensor(name).numel()) for name in state()} - {0})
            == 1
        )


def test_what_cannot_be_saved_is_said_before_anything_is_written(tmp_path: Path) -> None:
    odd = [
        torch.zeros(2, device="meta"),
        torch.arange(3),
        torch.eye(2).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
    ]
    for tensor in odd:
        with pytest.raises(InputError, match="'x' is no plain tensor of F64, F32, F16, BF16; only those can be saved"):
            save_weights({"x": tensor}, tmp_path / "never")
    with pytest.raises(InputError, match="There are no tensors to save"):
        save_weights({}, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be written to \(.*; make room or choose another folder"):
        save_weights(state(), tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot be written to"):
        write_json(tmp_path / "file" / "config.json", {})


NAMES = st.text(min_size=1).filter(lambda name: name != "__metadata__")


@given(st.dictionaries(NAMES, st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=5), st.integers(1, 99))
def test_any_names_and_shapes_come_back(tmp_path_factory: pytest.TempPathFactory, shapes: Any, limit: int) -> None:
    folder = tmp_path_factory.mktemp("any")
    tensors = {name: torch.rand(shape) for name, shape in shapes.items()}
    save_weights(tensors, folder, max_shard_size=limit)
    assert_holds(folder, tensors)


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("1.5 gb", 15 * 10**8), ("500MiB", 500 * 2**20), ("7B", 7), ("2TiB", 2**41), (12, 12)],
)
def test_sizes_are_read(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "5", "5 bytes", "-1GB", "0GB", 0, -5, True, 1.5, None, "5GBB", "1e9B", "9" * 400 + "B"]
)
def test_what_is_no_size_is_a_sentence(text: Any) -> None:
    with pytest.raises(InputError, match="is no size of a file; pass a number of bytes or text such as '5GB'"):
        parse_size(text)


def test_json_is_written_whole_sorted_and_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"b": [1, 2.5], "a": {"x": None}})
    assert (tmp_path / "config.json").read_text().endswith("}\n")
    assert list(read_json(tmp_path / "config.json")) == ["a", "b"]
    before = (tmp_path / "config.json").read_bytes()
    for odd in ({"x": float("nan")}, {"x": object()}, {1: 1, "a": 2}):
        with pytest.raises(InputError, match="cannot be written as JSON"):
            write_json(tmp_path / "config.json", odd)
    assert (tmp_path / "config.json").read_bytes() == before
    assert files(tmp_path) == {"config.json"}


def test_the_index_of_a_shard_is_plain_json(tmp_path: Path) -> None:
    save_weights(state(), tmp_path, max_shard_size=1)
    assert json.loads((tmp_path / INDEX).read_text()).keys() == {"metadata", "weight_map"}
    assert save.INDEX_FILE == INDEX
