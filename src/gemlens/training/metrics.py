"""What a run measured, a JSON object per line: {"step": 10, "loss": 2.3, "rate": 0.0001, ...}.

A run that is taken up again first drops the lines of steps that it will make once more.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemlens.errors import CheckpointError, InputError

FILE = "metrics.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, which need not exist; one that was torn by a crash is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
    return rows


class Metrics:
    """Writes the lines of a run, and events for TensorBoard if they are wanted.

    Args:
        folder: of the run.
        step: updates that were made; lines of later ones are dropped.
        tensorboard: write events too; needs the package tensorboard.

    Raises:
        CheckpointError: the file cannot be written.
        InputError: events are wanted, but the package is missing.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool = False) -> None:
        self._path = folder / FILE
        kept = [row for row in read(self._path) if row["step"] <= step]
        temporary = self._path.with_suffix(".unfinished")
        try:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
            temporary.replace(self._path)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"'{self._path}' cannot be written ({error.strerror}).") from error
        self._events = _events(folder / "tensorboard", step) if tensorboard else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line.

        Raises:
            CheckpointError: it cannot be written.
        """
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(f"'{self._path}' cannot be written ({error.strerror}).") from error
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Ends the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def _events(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("tensorboard = true needs the package tensorboard; pip install 'gemlens[train]'.") from error
    return SummaryWriter(str(folder), purge_step=step + 1)
