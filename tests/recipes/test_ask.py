"""How gemlens-tiny learns several questions about one picture: as if each had a picture of its own."""

import json
import re
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from gemlens import AutoProcessor, PaliGemmaForConditionalGeneration
from gemlens.data.example import Example
from gemlens.models.loss import IGNORED
from gemlens.tasks.mask_codec import MaskCodec
from gemlens.training.batches import Collator
from gemlens.training.loop import Run
from gemlens.training.settings import settings_of
from training.small_run import model_folder

sys.path.append(str(Path(__file__).parents[2] / "recipes" / "gemlens-tiny"))
import ask
import see

SIDE = 2  # patches
CODEC = MaskCodec.load(see.MASK_CODEC)


@pytest.fixture(scope="module")
def trainee(tmp_path_factory: pytest.TempPathFactory) -> tuple[PaliGemmaForConditionalGeneration, Any]:
    folder = model_folder(tmp_path_factory.mktemp("model"))
    return PaliGemmaForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def rows_of(processor: Any) -> ask.Rows:
    return ask.Rows(see.Labels(processor, SIDE, CODEC), processor)


def lessons(count: int) -> list[ask.Lesson]:
    source = ask.Lessons(CODEC)
    return [source[number] for number in range(count)]


def alone(lesson: ask.Lesson) -> list[Example]:
    assert lesson.scene is not None
    return [Example(lesson.id, (lesson.scene.picture,), asked.prompt, asked.answer) for asked in lesson.questions]


def test_every_task_is_asked_and_none_twice_of_a_picture() -> None:
    prompts: list[str] = []
    for lesson in lessons(100):
        assert 1 <= len(lesson.questions) <= ask.QUESTIONS
        assert len({asked.prompt for asked in lesson.questions}) == len(lesson.questions)
        prompts += [asked.prompt for asked in lesson.questions]
    tasks = ("caption en", "ocr", "detect ", "segment ", "answer en how many", "answer en is there", "answer en where",
             "answer en is the ")  # fmt: skip
    assert all(any(prompt.startswith(task) for prompt in prompts) for task in tasks)


def test_rows_are_those_of_the_collator(trainee: tuple[PaliGemmaForConditionalGeneration, Any]) -> None:
    _, processor = trainee
    asked = lessons(8)
    batch = rows_of(processor)(asked)
    expected = []
    for number, lesson in enumerate(asked):
        for example in alone(lesson):
            row = Collator(processor)([example])
            expected.append((number, row["input_ids"][0].tolist(), row["labels"][0].tolist()))
    found = []
    for picture, ids, answers, mask in zip(
        *(batch[name] for name in ("picture", "input_ids", "answers", "attention_mask")), strict=True
    ):
        real = mask.bool()
        assert (answers[~real] == IGNORED).all()
        found.append((int(picture), ids[real].tolist(), answers[real].tolist()))
    assert sorted(found) == sorted(expected)


def test_rows_say_where_what_they_name_is() -> None:
    """For relations: both things, in the order of their names, with the answer that their places give."""
    processor = AutoProcessor.from_pretrained("gemlens-tiny")  # each name is one token there
    asked = lessons(120)
    batch = rows_of(processor)(asked)
    seen = 0
    for row, (picture, ids) in enumerate(zip(batch["picture"], batch["input_ids"], strict=True)):
        text = processor.tokenizer.decode(ids[batch["attention_mask"][row] == 1], skip_special_tokens=True)
        said = re.search(r"is the (\w+) (left of|right of|above|below) the (\w+)\?\n(yes|no)", text)
        if said is None:
            continue
        scene, seen = asked[int(picture)].scene, seen + 1
        things = {thing.kind.name: thing.box for thing in scene.things}
        width, height = scene.picture.size
        for place, name in zip(batch["pairs"][row], (said[1], said[3]), strict=True):
            box = things[name]
            edges = [box.top / height, box.left / width, box.bottom / height, box.right / width]
            assert place.tolist() == pytest.approx(edges)
        named = batch["order"][row] != IGNORED
        assert batch["order"][row][named].tolist() == [0, 1]
        assert torch.equal(batch["places"][row][named], batch["pairs"][row])
        first, second = (place[:2] + place[2:] for place in batch["pairs"][row])
        axis, is_before = int(said[2].endswith("of")), said[2] in ("left of", "above")
        assert bool(first[axis] < second[axis]) == (is_before == (said[4] == "yes"))
    assert seen > 5


def test_the_loss_is_that_of_each_question_with_a_picture_of_its_own(
    trainee: tuple[PaliGemmaForConditionalGeneration, Any],
) -> None:
    model, processor = trainee
    asked = lessons(6)
    batch = rows_of(processor)(asked)
    with torch.no_grad():
        student = ask.Student(model)
        seen = student.pupil(batch["pixel_values"])
        rows = torch.arange(len(batch["picture"]))
        found = sum(float(ask.losses_of(student, seen, batch, part)[0]) for part in rows.chunk(3))
        examples = [example for lesson in asked for example in alone(lesson)]
        expected = sum(float(model(**Collator(processor)([example])).loss) for example in examples)
    assert len(examples) == len(rows)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_student_learns_with_the_loop_of_gemlens_train(
    trainee: tuple[PaliGemmaForConditionalGeneration, Any], tmp_path: Path
) -> None:
    model, processor = trainee
    said = {"model": "here", "data": ["scenes:train"], "output": str(tmp_path), "steps": 20, "batch_size": 4}
    settings = settings_of({**said, "method": "full", "optimizer": "muon", "learning_rate": 1e-2, "log_every": 1})
    student = ask.Student(model)
    before = model.vision_tower.vision_model.post_layernorm.weight.clone()
    Run(settings, student, ask.Lessons(CODEC), rows_of(processor), ask.Lecture()).train()
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert not torch.equal(before, cast(Any, model).vision_tower.vision_model.post_layernorm.weight)
    assert student.pupil.codes.weight.abs().max() > 0
