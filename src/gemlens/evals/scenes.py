"""The six figures of the drawn world, each with an interval: what the embedded model can do.

caption     F1 of the things that captions name, with their numbers
detect      mAP at IoU 0.5
segment     mean IoU of masks
count       share of right numbers
read        share of texts that are right to the letter
position    share of right answers to where something is, and how it lies to something else

Items tell their scene and task by their id, "test:123:detect". What is there comes from the scene and not from the
reference, whose boxes and masks are as coarse as tokens. All items of a scene are drawn together for the intervals.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gemlens.errors import InputError
from gemlens.evals.bootstrap import interval
from gemlens.evals.coco_map import map_50_of
from gemlens.evals.counting import counting_accuracy, f1, hits, things_in
from gemlens.evals.exact_match import exact_match
from gemlens.evals.found import UNSEEN, found_boxes, truths_of
from gemlens.evals.referring import fit
from gemlens.evals.score import Item, of_texts
from gemlens.tasks.findings import Finding, parse
from gemlens.tasks.masks import Codec
from gemlens.tasks.prompts import labels_of

Things = Callable[[int], Sequence[Finding]]
Statistic = Callable[["np.ndarray"], float]  # numbers of items, some more than once -> their score

TASKS = {
    "caption": ("caption",),
    "detect": ("detect",),
    "segment": ("segment",),
    "count": ("count",),
    "read": ("ocr",),
    "position": ("place", "relation"),
}


@dataclass(frozen=True)
class Figure:
    """A score, the interval that holds it 95 times of 100, and how many items it is of."""

    value: float
    low: float
    high: float
    items: int

    def __str__(self) -> str:
        """For a person: "0.912 (0.897 to 0.926, 1000 items)"."""
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f}, {self.items} items)"


def figures(
    items: Sequence[Item],
    things: Things,
    *,
    names: Mapping[str, str],
    codec: Codec,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Figure]:
    """The figures of those tasks that are among the items, in the order above.

    Args:
        items: with answers.
        things: an item's index -> all that is in its scene, with kinds as labels and with masks.
        names: what captions call things -> their kinds: {"cat": "cat", "cats": "cat"}.
        codec: makes masks of `<seg>` tokens.
        draws: of each interval.
        seed: of the draws.

    Raises:
        InputError: no item is of a scene and of one of these tasks.
    """
    makers: dict[str, Callable[[Sequence[Item]], Statistic]] = {
        "caption": lambda group: _captions(group, things, names),
        "detect": lambda group: _boxes(group, things),
        "segment": lambda group: _masks(group, things, codec),
        "count": lambda group: _mean(of_texts(counting_accuracy)(group).items),
        "read": lambda group: _mean(of_texts(exact_match)(group).items),
        "position": lambda group: _mean(of_texts(exact_match)(group).items),
    }
    found = {}
    for name, tasks in TASKS.items():
        if group := [item for item in items if item.id.rpartition(":")[2] in tasks]:
            statistic = makers[name](group)
            scenes = [item.id.rpartition(":")[0] for item in group]
            low, high = interval(statistic, scenes, draws=draws, seed=seed)
            found[name] = Figure(statistic(np.arange(len(group))), low, high, len(group))
    if not found:
        raise InputError("No item has the id of a scene and a task, like 'test:123:detect', so there are no figures.")
    return found


def _captions(items: Sequence[Item], things: Things, names: Mapping[str, str]) -> Statistic:
    said = [things_in(item.answer, names) for item in items]
    true = [Counter(thing.label for thing in things(item.index)) for item in items]
    counts = np.array(hits(said, true))  # [items, 3]
    return lambda rows: f1(*map(int, counts[rows].sum(0)))


def _boxes(items: Sequence[Item], things: Things) -> Statistic:
    """Areas do not matter here, so neither do masks."""
    found = [found_boxes(item, "likelihood") for item in items]
    return map_50_of(found, [truths_of(_asked(item, things)) for item in items])


def _masks(items: Sequence[Item], things: Things, codec: Codec) -> Statistic:
    return _mean([fit(parse(item.answer, item.size or UNSEEN, codec), _asked(item, things)).mask_iou for item in items])


def _asked(item: Item, things: Things) -> list[Finding]:
    """What is there of what a prompt to detect or segment names."""
    labels = labels_of(item.prefix)
    return [thing for thing in things(item.index) if thing.label in labels]


def _mean(values: Sequence[float]) -> Statistic:
    numbers = np.array(values)
    return lambda rows: float(numbers[rows].mean())
