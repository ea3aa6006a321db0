"""What every pipeline is: a model, what makes its numbers, and settings that hold for each call.

keywords of `pipeline()` <- keywords of the call -> `settings` -> the task's own frozen settings
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch

from gemlens.errors import InputError
from gemlens.models.auto import _AutoModel
from gemlens.models.pretrained import PreTrainedModel

Row = TypeVar("Row")


class Pipeline(ABC):
    """A model that is called with what a person has.

    Args:
        model: with the head that the task needs; it is put into eval mode.
        encoder: the processor or tokenizer of the model.
        defaults: keywords of a call, for every call that does not say otherwise.

    Attributes:
        task: its name.
        models: the class that picks its model.

    Raises:
        InputError: the model has another head, or a default is wrong.
        TypeError: a default of an unknown name.
    """

    task: ClassVar[str]
    models: ClassVar[type[_AutoModel]]

    def __init__(self, model: PreTrainedModel, encoder: Any, **defaults: Any) -> None:
        known = {each.__name__: each for each in self.models.classes.values()}
        if not isinstance(model, tuple(known.values())):
            raise InputError(
                f"A {type(model).__name__} came for the task {self.task!r}, which takes {' or '.join(known)}."
            )
        self.settings(encoder, defaults)
        self.model = model.eval()
        self._defaults = defaults

    @abstractmethod
    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """Answers."""

    @classmethod
    @abstractmethod
    def settings(cls, encoder: Any, keywords: Mapping[str, Any]) -> Any:
        """What keywords of a call ask for; see the task's `Settings`.

        Raises:
            InputError: a value is wrong.
            TypeError: a keyword of an unknown name.
        """

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return self.model.device


def sort_keywords(given: Mapping[str, Any], *groups: Collection[str], task: str) -> list[dict[str, Any]]:
    """The keywords of a call by group of names; a name belongs to the first group that has it.

    Raises:
        TypeError: no group has it.
    """
    known = {name: number for number, names in reversed(list(enumerate(groups))) for name in names}
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(sorted(known))}."
            raise TypeError(f"A {task} pipeline takes no argument {name!r}; {hint}")
    return [{name: value for name, value in given.items() if known[name] == number} for number in range(len(groups))]


def batches(rows: Sequence[Row], batch_size: int) -> list[Sequence[Row]]:
    """The rows in order, at most `batch_size` together.

    Raises:
        InputError: `batch_size` is no number of rows.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}, but it must be a whole number of at least 1.")
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
