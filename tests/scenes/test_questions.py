"""Questions about scenes: their answers follow from what is there, by a second count."""

import pickle
import re
from collections import Counter
from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch

from gemlens.errors import InputError
from gemlens.scenes import questions
from gemlens.scenes.kinds import BY_NAME, KINDS
from gemlens.scenes.questions import TASKS
from gemlens.scenes.scene import Scene, Thing, draw
from gemlens.scenes.source import Scenes
from gemlens.scenes.words import is_unseen
from gemlens.tasks.findings import parse

NUMBERS = {"no": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}


class Flat:
    """A codec whose codes say how full sixteen parts of a mask are."""

    def encode(self, masks: torch.Tensor) -> torch.Tensor:
        return (masks.unflatten(1, (4, 16)).unflatten(3, (4, 16)).mean((2, 4)).flatten(1) * 127).round().long()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.view(-1, 4, 4).repeat_interleave(16, 1).repeat_interleave(16, 2) / 63.5 - 1


def cases(task: str, count: int = 300, split: str = "train") -> "list[tuple[Scene, str, str]]":
    source = Scenes(split, tasks=(task,), count=count, codec=Flat())
    asked = ((source.scene(number), source[number]) for number in range(count))
    return [(scene, example.prefix, example.suffix) for scene, example in asked]


def single(scene: Scene, name: str) -> Thing:
    [thing] = [thing for thing in scene.things if thing.kind.name == name]
    return thing


def test_captions_say_what_a_recount_says() -> None:
    called = {form: kind.name for kind in KINDS for form in (kind.name, kind.names)}
    for scene, prompt, answer in cases("caption"):
        assert prompt == "caption en"
        counts: Counter[str] = Counter()
        texts = []
        for part in re.split(", | and ", answer):
            first, _, rest = part.partition(" ")
            if first == "the":
                kind, text = rest.split(" ")
                assert (kind == "number") == text.isdigit()
                texts.append(text)
            elif part != "nothing":
                counts[called[rest]] += {"a": 1, "an": 1}.get(first) or NUMBERS[first]
        assert counts == Counter(thing.kind.name for thing in scene.things)
        assert texts == [word.text for word in scene.words]
        assert (answer == "nothing") == (not scene.things and not scene.words)


def test_counts_are_right_and_of_all_sizes() -> None:
    answers: Counter[str] = Counter()
    for scene, prompt, answer in cases("count", 600):
        [names] = re.findall(r"answer en how many (\w+) are there\?", prompt)
        assert int(answer) == sum(thing.kind.names == names for thing in scene.things)
        answers[answer] += 1
    assert answers.keys() >= set("01234")
    assert max(answers.values()) < 0.6 * sum(answers.values())


def test_yes_and_no_come_equally_often_and_are_right() -> None:
    for task in ("presence", "relation"):
        answers = []
        for scene, prompt, answer in cases(task, 400):
            answers.append(answer)
            if task == "presence":
                [one] = re.findall(r"answer en is there an? (\w+)\?", prompt)
                truth = any(thing.kind.name == one for thing in scene.things)
            else:
                [(first, side, second)] = re.findall(r"is the (\w+) (left of|right of|above|below) the (\w+)\?", prompt)
                (x1, y1), (x2, y2) = single(scene, first).centre, single(scene, second).centre
                truth = {"left of": x1 < x2, "right of": x1 > x2, "above": y1 < y2, "below": y1 > y2}[side]
            assert answer == ("yes" if truth else "no")
        assert 0.4 < np.mean([answer == "yes" for answer in answers]) < 0.6


def test_places_are_the_third_that_the_middle_is_in() -> None:
    seen = set()
    for scene, prompt, answer in cases("place"):
        [name] = re.findall(r"answer en where is the (\w+)\?", prompt)
        x, y = single(scene, name).centre
        column, row = int(3 * x / scene.picture.width), int(3 * y / scene.picture.height)
        words = [("top", "", "bottom")[row], ("left", "", "right")[column]]
        assert answer == (" ".join(word for word in words if word) or "center")
        seen.add(answer)
    assert len(seen) == 9


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_findings_are_all_things_of_the_asked_kinds(task: str) -> None:
    empty = 0
    for scene, prompt, answer in cases(task, 150):
        asked = re.sub(r"^(detect|segment) ", "", prompt).split(" ; ")
        assert task == "detect" or len(asked) == 1
        assert asked == sorted(asked)
        assert set(asked) <= BY_NAME.keys()
        found = parse(answer, scene.picture.size, Flat())
        expected = sorted((thing for thing in scene.things if thing.kind.name in asked), key=order)
        assert [finding.label for finding in found] == [thing.kind.name for thing in expected]
        for finding, thing in zip(found, expected, strict=True):
            for edge in ("left", "right", "top", "bottom"):
                side = scene.picture.size[edge in ("top", "bottom")]
                assert abs(getattr(finding.box, edge) - getattr(thing.box, edge)) <= side / 1023
        assert (task == "segment") == any(finding.codes for finding in found) or not found
        empty += not found
    assert (empty > 0) == (task != "segment")


def order(thing: Thing) -> tuple[str, float, float]:
    x, y = thing.centre
    return thing.kind.name, y, x


def test_words_come_as_one_reads_them() -> None:
    for scene, prompt, answer in cases("ocr"):
        assert prompt in ("ocr", "answer en what is written?")
        for word, following in pairwise(scene.words):
            shared = min(word.box.bottom, following.box.bottom) - max(word.box.top, following.box.top)
            same_line = shared > min(word.box.height, following.box.height) / 2
            assert word.box.left < following.box.left if same_line else word.box.top < following.box.top
        assert answer == " ".join(word.text for word in scene.words)


def test_an_example_is_the_same_whatever_was_asked_before() -> None:
    source = Scenes(count=100)
    forwards = [(source[number].prefix, source[number].suffix) for number in range(20)]
    again = Scenes(count=100)
    assert [(again[number].prefix, again[number].suffix) for number in reversed(range(20))] == forwards[::-1]
    other = Scenes(seed=1, count=100)
    assert [(other[number].prefix, other[number].suffix) for number in range(20)] != forwards


def test_seeds_share_no_scene_and_the_count_changes_none() -> None:
    few, many = Scenes(seed=1, count=5), Scenes(seed=1, count=500)
    assert [few[number].suffix for number in range(5)] == [many[number].suffix for number in range(5)]
    first = Scenes(count=500)
    pictures = {first[number].pictures[0].tobytes() for number in range(20)}
    assert pictures.isdisjoint(few[number].pictures[0].tobytes() for number in range(5))


def test_a_source_is_the_same_after_a_pickle() -> None:
    source = Scenes("test", seed=3, count=10, tasks=("segment", "ocr"), codec=Flat())
    again = pickle.loads(pickle.dumps(source))
    for number in range(4):
        assert (again[number].prefix, again[number].suffix) == (source[number].prefix, source[number].suffix)
        assert again[number].pictures[0].tobytes() == source[number].pictures[0].tobytes()


def test_answers_stand_for_four_kinds_of_questions() -> None:
    source = Scenes(tasks=("caption", "answer"), count=80)
    found = Counter(source[number].id.split(":")[2] for number in range(80))
    assert found == {"caption": 40, "count": 10, "presence": 10, "place": 10, "relation": 10}


def test_texts_of_training_hold_no_word_that_is_kept_for_testing() -> None:
    for text in Scenes(tasks=("caption", "ocr")).texts(300):
        assert not any(is_unseen(word) for word in re.findall(r"[A-Z]+|\d+", text))


def test_what_scenes_cannot_do_is_a_sentence() -> None:
    with pytest.raises(InputError, match="no split 'dev'"):
        Scenes("dev")
    with pytest.raises(InputError, match=r"no task 'sing' in scenes; there are answer, caption, .*segment"):
        Scenes(tasks=("sing",))
    with pytest.raises(InputError, match="'segment' needs codec="):
        Scenes(tasks=("segment",))
    with pytest.raises(InputError, match="at least one task"):
        Scenes(tasks=())
    with pytest.raises(IndexError):
        Scenes(count=3)[3]


def test_every_task_can_be_asked() -> None:
    scene = next(scene for scene in map(draw, range(100)) if len(scene.things) > 3 and scene.words)
    asked = {task: questions.ASK[task](scene, Random(0)) for task in questions.ASK}
    assert set(TASKS) == {*asked, "segment"}
    assert all(question is None or question.prompt for question in asked.values())
