"""Item: one example and the answer to it. Metric: items -> Score, one number for all and one for each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from gemlens.errors import InputError


@dataclass(frozen=True)
class Item:
    """An example that a model was asked, and what it said.

    Args:
        index: its number in the source.
        id: what the source calls it.
        prefix: the prompt.
        answer: what the model said, without end token and white space around it; of an item with an error, nothing.
        references: all answers that count as right.
        size: (width, height) of its first picture in pixels; None where there is none or it cannot be read.
        error: why there is no answer; such an item counts as wrong.
        tokens: of the answer, the end token counted.
        likelihood: natural logarithm of the probability of the answer, all tokens together.
        locations: the same of each `<loc>` token of the answer.
        score: of its metric, once it is known; the higher the better.
    """

    index: int
    id: str
    prefix: str = ""
    answer: str = ""
    references: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    error: str | None = None
    tokens: int = 0
    likelihood: float = 0.0
    locations: tuple[float, ...] = ()
    score: float | None = None


@dataclass(frozen=True)
class Score:
    """What a metric says.

    Args:
        values: by name; the first is the one that counts.
        items: one number for each item, in order; the higher the better.
    """

    values: Mapping[str, float]
    items: tuple[float, ...]

    @classmethod
    def mean(cls, name: str, items: Sequence[float]) -> Self:
        """The mean over the items.

        Raises:
            InputError: there are none.
        """
        if not items:
            raise InputError(f"There are no answers, so there is no {name}; pass at least one.")
        return cls({name: sum(items) / len(items)}, tuple(items))


class Metric(Protocol):
    """Scores the answers of items; any function with these arguments will do."""

    def __call__(self, items: Sequence[Item], /) -> Score:
        """Items, at least one -> their score. An item with an error counts as wrong."""


TextMetric = Callable[[Sequence[str], Sequence[Sequence[str]]], Score]


def of_texts(metric: TextMetric) -> Metric:
    """A metric of (answers, references), each answer by itself, as one of items; its value is the mean over all."""

    def score(items: Sequence[Item], /) -> Score:
        found = metric([item.answer for item in items], [item.references for item in items])
        (name,) = found.values
        return Score.mean(name, [0.0 if item.error else value for item, value in zip(items, found.items, strict=True)])

    return score


def check_pairs(answers: Sequence[object], references: Sequence[object]) -> None:
    """Every answer must have its references.

    Raises:
        InputError: one is missing.
    """
    if len(answers) != len(references):
        raise InputError(
            f"{len(answers)} answers came with references for {len(references)}; pass references for each."
        )


def number_text(value: float) -> str:
    """A value as people read it; -1 is COCO's sign for a mean of nothing."""
    return "-" if value == -1 else f"{value:.4f}"
