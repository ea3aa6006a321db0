"""The loss of a run as a picture: every line of its metrics, their running mean, and the evaluations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "loss.png"


def draw_loss(rows: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draws the lines of `gemlens.training.metrics`; gives whether it could: matplotlib may be missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", title="Loss")
    steps, losses = _series(rows, "loss")
    axes.plot(steps, losses, color="0.75", linewidth=0.8, label="training")
    axes.plot(steps, _smooth(losses), color="tab:blue", label="training, smoothed")
    if (scored := _series(rows, "validation_loss"))[0]:
        axes.plot(*scored, color="tab:orange", marker="o", markersize=3, label="validation")
    axes.legend()
    figure.savefig(path, dpi=110)
    return True


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in found], [value for _, value in found]


def _smooth(values: Sequence[float], memory: float = 0.95) -> list[float]:
    """Exponential running mean without the bias of its start (Kingma and Ba 2015, section 3)."""
    smooth, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = memory * mean + (1 - memory) * value, memory * weight + (1 - memory)
        smooth.append(mean / weight)
    return smooth
