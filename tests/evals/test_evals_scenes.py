"""The six figures: 1 for perfect answers, and each falls by its own mistakes only."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from scripted import Scripted
from torch import Tensor

from gemlens.errors import InputError
from gemlens.evals.coco_map import average_precision
from gemlens.evals.counting import object_f1, things_in
from gemlens.evals.found import found_boxes, truths_of
from gemlens.evals.run import evaluate
from gemlens.evals.scenes import Figure, figures
from gemlens.evals.score import Item
from gemlens.scenes.kinds import KINDS
from gemlens.scenes.questions import TASKS
from gemlens.scenes.source import Scenes
from gemlens.tasks.findings import Finding
from gemlens.tasks.prompts import labels_of

NAMES = {form: kind.name for kind in KINDS for form in (kind.name, kind.names)}
FIGURES = ["caption", "detect", "segment", "count", "read", "position"]


class FullBoxes:
    """A codec to which every mask fills its box."""

    def encode(self, masks: Tensor, /) -> Tensor:
        return torch.zeros(len(masks), 16, dtype=torch.int64)

    def decode(self, codes: Tensor, /) -> Tensor:
        return torch.ones(len(codes), 64, 64)


SOURCE = Scenes("test", count=10 * len(TASKS), tasks=TASKS, codec=FullBoxes())


@lru_cache
def things(index: int) -> list[Finding]:
    """All that is in a scene; masks fill their boxes, as the codec has it."""
    found = []
    for thing in SOURCE.scene(index).things:
        mask = np.zeros(SOURCE.scene(index).picture.size[::-1], dtype=np.bool_)
        mask[int(thing.box.top) : int(thing.box.bottom), int(thing.box.left) : int(thing.box.right)] = True
        found.append(Finding(thing.kind.name, thing.box, mask))
    return found


@lru_cache
def perfect() -> tuple[Item, ...]:
    rows = [SOURCE[index] for index in range(len(SOURCE))]
    return tuple(
        Item(index, row.id, row.prefix, row.suffix, row.answers, row.pictures[0].size, tokens=1)  # type: ignore[union-attr]
        for index, row in enumerate(rows)
    )


def scored(items: Sequence[Item], **arguments: Any) -> dict[str, Figure]:
    return figures(items, things, names=NAMES, codec=FullBoxes(), **{"draws": 50, **arguments})


def changed(task: str, answer: Callable[[Item], str]) -> list[Item]:
    return [replace(item, answer=answer(item)) if item.id.endswith(task) else item for item in perfect()]


def test_perfect_answers_have_perfect_figures() -> None:
    """Boxes and masks are as coarse as tokens, so a little is lost."""
    found = scored(perfect())
    assert list(found) == FIGURES
    for name, figure in found.items():
        assert figure.value > 0.95 if name == "segment" else figure.value == pytest.approx(1), name
        assert figure.low <= figure.value + 1e-9
        assert figure.value <= figure.high + 1e-9
    assert {name: figure.items for name, figure in found.items()} == dict.fromkeys(FIGURES, 10) | {"position": 20}


@pytest.mark.parametrize(
    ("task", "figure"),
    [("caption", "caption"), ("detect", "detect"), ("segment", "segment"), ("count", "count"), ("ocr", "read"),
     ("place", "position"), ("relation", "position")],
)  # fmt: skip
def test_wrong_answers_to_one_task_lower_one_figure(task: str, figure: str) -> None:
    before, after = scored(perfect()), scored(changed(task, lambda item: "x"))
    for name in FIGURES:
        assert (after[name].value < before[name].value) == (name == figure)
    assert after[figure].value == pytest.approx(0.5 if figure == "position" else 0, abs=0.31)


def test_questions_whether_something_is_there_are_of_no_figure() -> None:
    assert scored(changed("presence", lambda item: "x")) == scored(perfect())


def test_captions_count_things_and_their_numbers() -> None:
    items = [item for item in perfect() if item.id.endswith("caption")]
    said = [replace(item, answer=item.answer.replace("two", "three")) for item in items]
    true = [Counter(thing.label for thing in things(item.index)) for item in items]
    expected = object_f1([things_in(item.answer, NAMES) for item in said], true).values["object_f1"]
    assert scored(said)["caption"].value == pytest.approx(expected)


def test_captions_of_all_scenes_say_what_is_there() -> None:
    source = Scenes("test", count=200, tasks=("caption",), seed=5)
    for index in range(len(source)):
        there = Counter(thing.kind.name for thing in source.scene(index).things)
        assert things_in(source[index].suffix, NAMES) == there


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a cat, two dogs and the word TREE", {"cat": 1, "dog": 2}),
        ("Two red cats. A cat", {"cat": 3}),
        ("the word CAT and the number 4", {}),
        ("12 monkeys and a key", {"monkey": 12, "key": 1}),
        ("catfish, hot-dog, pigs' pen", {"pig": 1}),
        ("no cats", {}),
        ("cats cats", {"cat": 2}),
        ("nothing", {}),
        ("a house car", {"house": 1, "car": 1}),
    ],
    ids=range(9),
)
def test_things_in_captions(text: str, found: dict[str, int]) -> None:
    assert things_in(text, NAMES) == Counter(found)


def test_things_without_names_are_none() -> None:
    assert things_in("a cat", {}) == Counter()


def test_detection_is_scored_against_the_scene_and_only_what_was_asked_for() -> None:
    items = [item for item in perfect() if item.id.endswith("detect")]
    half = [replace(item, answer=item.answer.split(" ; ")[0]) for item in items]
    truths = [
        truths_of(thing for thing in things(item.index) if thing.label in labels_of(item.prefix)) for item in half
    ]
    found = [found_boxes(item, "likelihood") for item in half]
    assert scored(half)["detect"].value == pytest.approx(average_precision(found, truths).values["map_50"])


def test_what_could_not_be_asked_lowers_every_figure() -> None:
    items = [replace(item, answer="", size=None, error="gone") if item.index < 40 else item for item in perfect()]
    for name, figure in scored(items).items():
        assert figure.value < 0.9, name


def test_more_items_make_narrower_intervals() -> None:
    wrong = [replace(item, answer="x") if item.index % 16 > 7 else item for item in perfect()]
    few, many = scored([item for item in wrong if item.index < 32], draws=300), scored(wrong, draws=300)
    assert many["position"].high - many["position"].low < few["position"].high - few["position"].low
    assert many["position"].low < 0.5 < many["position"].high


def test_figures_are_the_same_every_time_and_read_well() -> None:
    items = changed("count", lambda item: "1")
    assert scored(items) == scored(items)
    assert str(Figure(0.91234, 0.9, 0.925, 1000)) == "0.912 (0.900 to 0.925, 1000 items)"


def test_items_of_other_sources_are_refused() -> None:
    with pytest.raises(InputError, match="like 'test:123:detect'"):
        scored([Item(0, "train.jsonl:3")])


def test_figures_of_a_run(loaded: Callable[[str], tuple[Any, Any]]) -> None:
    """The way `make eval-tiny` goes: evaluate, then figures of its items."""
    _, processor = loaded("paligemma")
    model = Scripted(processor, [item.answer for item in perfect()[:16]])
    report = evaluate(model, processor, SOURCE, limit=16)
    found = scored(report.items)
    assert list(found) == FIGURES
    assert found["position"].value == found["count"].value == 1
