"""BatchFeature: a mapping with attributes, made of lists or tensors, moved as one."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from gemlens.errors import InputError
from gemlens.processing.batch import BatchEncoding, BatchFeature

IDS = [[2, 5, 7], [2, 6, 8]]


def test_entries_are_items_and_attributes_and_unpack() -> None:
    batch = BatchFeature({"input_ids": IDS})
    assert batch.input_ids is batch["input_ids"] is IDS
    assert dict(**batch) == {"input_ids": IDS}
    assert list(batch.keys()) == ["input_ids"]
    assert list(batch.items()) == [("input_ids", IDS)]
    assert "input_ids" in batch
    batch["extra"] = 1
    assert batch.pop("extra") == 1


def test_a_missing_attribute_is_told_with_those_there_are() -> None:
    with pytest.raises(AttributeError, match="no 'pixel_values'; it has input_ids"):
        _ = BatchFeature({"input_ids": IDS}).pixel_values


def test_what_was_passed_in_does_not_change() -> None:
    data: dict[str, Any] = {"input_ids": IDS}
    batch = BatchFeature.make(data)
    batch["labels"] = IDS
    BatchFeature.make(data, "pt").to(torch.float16)
    assert data == {"input_ids": [[2, 5, 7], [2, 6, 8]]}


@pytest.mark.parametrize("kind", [BatchFeature, BatchEncoding])
def test_copies_and_pickles_are_equal(kind: type[BatchFeature]) -> None:
    batch = kind.make({"input_ids": IDS}, "pt")
    for twin in (copy.copy(batch), copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert type(twin) is kind
        assert torch.equal(twin.input_ids, batch.input_ids)


class TestTensors:
    def test_numbers_become_tensors(self) -> None:
        batch = BatchFeature.make({"input_ids": IDS, "sizes": [(1, 2)], "scores": [0.5], "flag": [True], "n": 3}, "pt")
        assert torch.equal(batch.input_ids, torch.tensor(IDS))
        assert batch.sizes.shape == (1, 2)
        assert batch.scores.dtype == torch.float32
        assert batch.flag.dtype == torch.bool
        assert batch.n.shape == ()

    def test_lists_of_arrays_and_tensors_are_stacked(self) -> None:
        picture = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
        still = picture.copy()
        still.flags.writeable = False
        given = {
            "array": picture,
            "arrays": [still, picture],
            "tensors": [torch.ones(2), torch.zeros(2)],
            "deep": [[still]],
        }
        batch = BatchFeature.make(given, "pt")
        assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
            "array": (3, 4, 5),
            "arrays": (2, 3, 4, 5),
            "tensors": (2, 2),
            "deep": (1, 1, 3, 4, 5),
        }
        assert batch.arrays.dtype == torch.float32
        assert torch.equal(batch.arrays[0], torch.tensor(picture))

    def test_a_tensor_stays_that_tensor(self) -> None:
        ids = torch.tensor(IDS)
        assert BatchFeature.make({"input_ids": ids}, "pt").input_ids is ids

    def test_arrays_of_numpy(self) -> None:
        batch = BatchFeature.make({"input_ids": IDS, "pixels": torch.ones(1, 2, requires_grad=True)}, "np")
        assert isinstance(batch.input_ids, np.ndarray)
        assert batch.input_ids.dtype == np.int64
        assert batch.pixels.shape == (1, 2)
        with pytest.raises(InputError, match="'x' is bfloat16, which numpy does not have"):
            BatchFeature.make({"x": torch.ones(1, dtype=torch.bfloat16)}, "np")

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ([[1], [2, 3], [4, 5, 6]], r"'x' has rows of 1, 2 and 3 values.*padding=True"),
            ([torch.ones(2), torch.ones(3)], "'x' makes no tensor: its rows differ in shape"),
            (["a"], "or are not numbers"),
            ([None], "or are not numbers"),
        ],
    )
    def test_what_makes_no_tensor_is_refused(self, value: Any, words: str) -> None:
        with pytest.raises(InputError, match=words):
            BatchFeature.make({"x": value}, "pt")

    @pytest.mark.parametrize(
        ("kind", "words"),
        [("tf", "no TensorFlow tensors"), ("jax", "no JAX"), ("torch", "no such kind"), (3, "no such kind")],
    )
    def test_other_kinds_are_refused(self, kind: Any, words: str) -> None:
        with pytest.raises(InputError, match=f"return_tensors={kind!r}: .*{words}.*'pt', 'np' or None"):
            BatchFeature.make({}, kind)


class TestTo:
    def batch(self) -> BatchFeature:
        return BatchFeature.make({"input_ids": IDS, "pixel_values": [[0.5, 1.0]]}, "pt")

    @pytest.mark.parametrize("targets", [("cpu", torch.bfloat16), (torch.bfloat16, "cpu"), (torch.bfloat16,)])
    def test_only_floating_tensors_are_cast(self, targets: tuple[Any, ...]) -> None:
        batch = self.batch()
        assert batch.to(*targets) is batch
        assert batch.pixel_values.dtype == torch.bfloat16
        assert batch.input_ids.dtype == torch.int64

    def test_devices_by_every_spelling(self) -> None:
        for device in ("meta", torch.device("meta")):
            for batch in (self.batch().to(device), self.batch().to(device=device, dtype=torch.float16)):
                assert all(tensor.is_meta for tensor in batch.values())

    def test_lists_of_tensors_move_and_other_values_stay(self) -> None:
        batch = BatchFeature({"crops": [torch.ones(1), (torch.ones(2), 3)], "names": ["a"], "n": 1}).to(torch.float64)
        assert batch.crops[0].dtype == batch.crops[1][0].dtype == torch.float64
        assert batch.crops[1][1] == 3
        assert batch.names == ["a"]

    @pytest.mark.parametrize("targets", [("cpu", "meta"), (torch.float16, torch.bfloat16), (1.5,), ("gpu0",)])
    def test_other_targets_are_refused(self, targets: tuple[Any, ...]) -> None:
        with pytest.raises(InputError, match=r"one device and one dtype|is no device"):
            self.batch().to(*targets)

    def test_misspelt_targets_are_refused(self) -> None:
        with pytest.raises(InputError, match="not devise"):
            self.batch().to(devise="cpu")
