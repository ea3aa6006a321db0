"""Weights -> a model that was built on the meta device: every parameter exactly once, or an error and no change.

All names and shapes are compared before a byte is read, and the model is touched only after every tensor was read, so
there is never a half-filled model. Tensors go in as the source gives them: views of the file if nothing is converted.
What is quantized is so right after it was read: of the wide weights, never more than one is in memory.
"""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gemlens.checkpoints.memory import give_back_memory
from gemlens.checkpoints.names import Layout, Match, match, quoted, some_of
from gemlens.errors import CheckpointError

Device = torch.device | str | int


class WeightSource(Protocol):
    """Where tensors come from: safetensors, GGUF, or a test."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, by its name in the source."""

    def tensor(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """One tensor, of the given number format or, if None, of the source's own; a view where possible."""

    def transient(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """The same for a short time: once it is gone, nothing of the file stays in memory for it."""


def fill(
    model: nn.Module,
    weights: WeightSource,
    layout: Layout,
    *,
    dtype: torch.dtype | None = None,
    device: Device | Callable[[str], Device] = "cpu",
    fresh: Collection[str] = (),
    convert: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> None:
    """Gives every parameter of `model` its tensor.

    Parameters that the model shares (one `nn.Parameter` under two names, as a tied head) stay shared; the source needs
    to hold one of the names.

    Args:
        model: a model whose parameters are on the meta device; its buffers must have their values already.
        weights: the tensors, under any names that `names.py` knows.
        layout: which prefix each part has in this model.
        dtype: number format of the parameters; None keeps the source's.
        device: where the parameters go, or a function that tells it by parameter name.
        fresh: parameters that already have values of their own and keep them if the source has none, such as a new
            classification head.
        convert: parameter name -> what makes of its tensor, on its device, the one that the model keeps.

    Raises:
        CheckpointError: names or shapes do not fit, or a tensor cannot be read. The model is then as it was.
    """
    slots = _slots(model)
    found = match(weights.shapes(), layout)
    _check_values(model, fresh)
    _check_fit(slots, weights, found, fresh)
    filled: list[tuple[_Slot, Tensor]] = []
    for slot in slots:
        if held := slot.names_in(found):
            name, file = slot.names[0], found.names[held[0]]
            place = device(name) if callable(device) else device
            if (make := (convert or {}).get(name)) is None:
                filled.append((slot, weights.tensor(file, dtype).to(place)))
            else:
                filled.append((slot, make(weights.transient(file, dtype).to(place))))
                give_back_memory()
    _warn_of_unequal_twins(slots, weights, found)
    _warn_of_nonfinite(filled)
    for slot, tensor in filled:
        parameter = nn.Parameter(tensor, requires_grad=slot.parameter.requires_grad)
        for name in slot.names:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, parameter)


@dataclass(frozen=True)
class _Slot:
    """One parameter of the model and its names: more than one where modules share it."""

    parameter: nn.Parameter
    names: list[str]

    def names_in(self, found: Match) -> list[str]:
        return [name for name in self.names if name in found.names]


def _slots(model: nn.Module) -> list[_Slot]:
    slots: dict[int, _Slot] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        slots.setdefault(id(parameter), _Slot(parameter, [])).names.append(name)
    return list(slots.values())


def _check_values(model: nn.Module, fresh: Collection[str]) -> None:
    """Nothing may be left on the meta device at the end, and buffers and fresh parameters are not ours to fill."""
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    empty += [name for name in fresh if model.get_parameter(name).is_meta]
    if empty:
        raise CheckpointError(
            f"The model class left {quoted(empty)} on the meta device; it must give them values before weights come."
        )


def _check_fit(slots: list[_Slot], weights: WeightSource, found: Match, fresh: Collection[str]) -> None:
    given = found.names.keys() | set(fresh)
    missing = [slot.names[0] for slot in slots if not given & set(slot.names)]
    expected = {name: tuple(slot.parameter.shape) for slot in slots for name in slot.names}
    left_over = found.unknown | {file for name, file in found.names.items() if name not in expected}
    stored = weights.shapes()
    shapes = {name: tuple(stored[file]) for name, file in found.names.items() if name in expected}
    wrong = [
        f"'{found.names[name]}' is {list(shape)} in the file and {list(expected[name])} in the model"
        for name, shape in shapes.items()
        if shape != expected[name]
    ]
    troubles = {"missing": quoted(missing), "left over": quoted(left_over), "of the wrong shape": some_of(wrong)}
    said = [f"{kind}: {names}" for kind, names in troubles.items() if names]
    if said:
        raise CheckpointError(
            f"The weights do not fit the model; {'; '.join(said)}. "
            "Check that config and weights are of one checkpoint, and that it was saved from this model class."
        )


def _warn_of_unequal_twins(slots: list[_Slot], weights: WeightSource, found: Match) -> None:
    """A file may hold a tied head although nobody needs it; if it differs, somebody trained it and should know."""
    unequal = []
    for slot in slots:
        files = [found.names[name] for name in slot.names_in(found)]
        if len(files) > 1:
            used = weights.tensor(files[0], None)
            unequal += [file for file in files[1:] if not torch.equal(used, weights.tensor(file, used.dtype))]
    if unequal:
        warnings.warn(
            f"The file holds {quoted(unequal)} with values of its own, but the config ties it to another weight "
            "(tie_word_embeddings), so it was not used; set tie_word_embeddings=False to use it.",
            stacklevel=3,
        )


def _warn_of_nonfinite(filled: list[tuple[_Slot, Tensor]]) -> None:
    bad = [slot.names[0] for slot, tensor in filled if not _is_finite(tensor)]
    if bad:
        warnings.warn(
            f"These weights hold NaN or infinity, so the model's answers will be garbage: {quoted(bad)}; "
            "the checkpoint is damaged, or its values are too large for the number format asked for.",
            stacklevel=3,
        )


def _is_finite(tensor: Tensor) -> bool:
    """One pass without a temporary (isfinite().all() makes a mask): a NaN anywhere makes both ends NaN."""
    if is_traceable_wrapper_subclass(tensor):  # rounded numbers with scales
        return all(_is_finite(getattr(tensor, part)) for part in tensor.__tensor_flatten__()[0])
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    low, high = torch.aminmax(tensor)
    return bool(low.isfinite() & high.isfinite())
