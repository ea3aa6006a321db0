"""What a low-rank adapter is told; without torch, so that the command line can show it at once."""

import math
from dataclasses import dataclass, field
from typing import Any

from gemlens.errors import InputError

_DTYPES = ("float32", "bfloat16")


def _said(default: float | str | bool | tuple[str, ...], meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class LoraSettings:
    """What linear layers get that learns.

    Raises:
        InputError: a value out of range.
    """

    rank: int = _said(16, "Width of the two thin matrices.")
    alpha: float = _said(32.0, "Their product is multiplied by alpha / rank.")
    dropout: float = _said(0.05, "Share of the inputs that they do not see in training.")
    targets: tuple[str, ...] = _said(("language",), "Which linear layers: language, vision, all-linear, or names.")
    dtype: str = _said("float32", "Numbers that they are kept in: float32 or bfloat16.")
    rslora: bool = _said(False, "Multiply by alpha / sqrt(rank) instead (arXiv 2312.03732).")

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise InputError(f"The rank of LoRA is {self.rank!r}, but it must be a whole number, at least 1.")
        if not isinstance(self.alpha, int | float) or not math.isfinite(self.alpha):
            raise InputError(f"The alpha of LoRA is {self.alpha!r}, but it must be a number.")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise InputError(f"The dropout of LoRA is {self.dropout!r}, but it must be at least 0 and below 1.")
        if self.dtype not in _DTYPES:
            raise InputError(f"The dtype of LoRA is {self.dtype!r}, but it must be {' or '.join(_DTYPES)}.")
        if isinstance(self.targets, str) or not self.targets:
            raise InputError(f"The targets of LoRA are {self.targets!r}, but they must be a list of names.")
