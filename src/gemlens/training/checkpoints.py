"""Where a run stands: weights that learn and the optimizers' memory of them in safetensors, the rest in JSON.

    checkpoints/step-00000500/model.safetensors      weights.NAME; exp_avg.NAME, exp_avg_sq.NAME or momentum_buffer.NAME
                              state.json             step, best value so far, settings

A folder gets its name when it is complete, so that whatever a crash leaves behind is never taken for a checkpoint.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gemlens.errors import CheckpointError, InputError
from gemlens.training.optimizers import learning, memory_of

FILE = "state.json"
# What may differ between a run and its continuation: none of it changes the weights.
FREE = ("workers", "log_every", "save_every", "keep", "tensorboard")


@dataclass(frozen=True)
class State:
    """What a checkpoint says besides tensors.

    Args:
        step: updates that were made.
        best: the best value of the metric so far; None before the first evaluation.
        settings: of the run, as plain values.
    """

    step: int
    best: float | None
    settings: Mapping[str, Any]


def save(folder: Path, model: nn.Module, optimizers: Sequence[Optimizer], state: State, keep: int) -> Path:
    """Writes a checkpoint below `folder`, and then removes all but the newest `keep`.

    Raises:
        CheckpointError: it cannot be written, as on a full disk; earlier checkpoints are untouched.
    """
    from gemlens.checkpoints.save import save_weights, write_json

    place = folder / f"step-{state.step:08}"
    unfinished = place.with_name(f"{place.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        save_weights(_tensors(model, optimizers), unfinished, max_shard_size="1000TB")
        write_json(unfinished / FILE, {"step": state.step, "best": state.best, "settings": dict(state.settings)})
        _remove(place)
        unfinished.rename(place)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"The checkpoint of step {state.step} cannot be written to '{folder}' ({reason.rstrip('.')}). Earlier ones "
            "are whole: make room and start the same training again, and it goes on from the last."
        ) from error
    for old in found(folder)[:-keep]:
        _remove(old)
    return place


def found(folder: Path) -> list[Path]:
    """The complete checkpoints below a folder, the oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-{'[0-9]' * 8}/{FILE}"))


def read_state(place: Path) -> State:
    """What a checkpoint says.

    Raises:
        CheckpointError: its file is damaged.
    """
    from gemlens.checkpoints.hub import read_json

    content = read_json(place / FILE)
    step, best, settings = (content.get(name) for name in ("step", "best", "settings"))
    if not isinstance(step, int) or not isinstance(settings, dict) or not isinstance(best, int | float | None):
        raise CheckpointError(f"'{place / FILE}' does not say where a training stands; remove '{place}'.")
    return State(step, best, settings)


def check_same(place: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Whether a run may be continued with these settings.

    Raises:
        InputError: they would give other weights.
    """
    differing = [name for name in {**then, **now} if name not in FREE and then.get(name) != now.get(name)]
    if differing:
        name = differing[0]
        raise InputError(
            f"'{place}' is of a training with {name} = {then.get(name)!r}, but {now.get(name)!r} is asked for now; "
            "give another output, or remove that folder to begin anew."
        )


def restore(place: Path, model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    """Fills weights and the optimizers' memory, bit by bit as they were.

    Raises:
        CheckpointError: the file is damaged or of another model.
    """
    from gemlens.checkpoints.safetensors import SINGLE_FILE, SafetensorsSource

    source = SafetensorsSource(place / SINGLE_FILE)
    weights = learning(model)
    owners = {name: memory_of(optimizers, weight) for name, weight in weights.items()}
    expected = {
        f"{part}.{name}": tuple(weight.shape)
        for name, weight in weights.items()
        for part in ("weights", *(owners[name][1] if step else ()))
    }
    if dict(source.shapes()) != expected:
        wrong = sorted(dict(source.shapes()).items() ^ expected.items())[0][0]
        raise CheckpointError(f"'{place}' is of another model: '{wrong}' is missing, left over or of another shape.")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(source.tensor(f"weights.{name}"))
            if step:
                optimizer, parts = owners[name]
                memory = {part: source.tensor(f"{part}.{name}").to(weight.device).clone() for part in parts}
                optimizer.state[weight] = {"step": torch.tensor(float(step), device=weight.device), **memory}


def _tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, weight in learning(model).items():
        tensors[f"weights.{name}"] = weight.detach()
        optimizer, parts = memory_of(optimizers, weight)
        for part in parts:
            if part in (memory := optimizer.state.get(weight, {})):
                tensors[f"{part}.{name}"] = memory[part]
    return tensors


def _remove(folder: Path) -> None:
    """Takes the name away before it empties a folder, so that half of a checkpoint never bears it."""
    doomed = folder.with_name(f"{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
        shutil.rmtree(doomed)
