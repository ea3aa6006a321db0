"""Lets all of gemlens-tiny learn at once: a few questions about each picture, which is encoded once for all of them.

    python recipes/gemlens-tiny/ask.py recipes/gemlens-tiny/ask.toml

    scene -> picture -> encoder -> patches -+-> what each patch says, as in see.py
                                            +-> a row per question: patches | prompt | answer

Patches go on saying what they show, or letters would be learned from the few answers that read. B pictures, Q questions
of all of them, S tokens of a row, P patches, D width.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from see import MASK_CODEC, Labels, Pupil, Seen, loss_of
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gemlens import PaliGemmaForConditionalGeneration
from gemlens.data.sources import open_source
from gemlens.models.loss import IGNORED
from gemlens.scenes.questions import ASK, Question, segment
from gemlens.scenes.scene import Scene, draw, page
from gemlens.tasks.mask_codec import MaskCodec
from gemlens.training.batches import Collator
from gemlens.training.loading import Batch
from gemlens.training.loop import Run
from gemlens.training.objective import Objective
from gemlens.training.settings import Settings, read_recipe, settings_of
from gemlens.training.train import Evaluation, prepare

PAGES = 0.1  # of the pictures show words only
QUESTIONS = 3  # about a picture, at most
# How soon each task has its turn. Scenes are not chosen for tasks, so those that few scenes allow are asked far less:
# of the rows of 500 pictures 4 % are relations and 8 % readings.
SHARES = {
    "caption": 4, "count": 4, "presence": 1, "place": 3, "relation": 8, "detect": 4, "ocr": 6, "segment": 2,
}  # fmt: skip
SEEING = 0.1  # what the patches' loss counts beside the answers'


@dataclass(frozen=True)
class Lesson(Seen):
    """A scene and what is asked of it."""

    questions: tuple[Question, ...] = ()


@dataclass(frozen=True)
class Lessons:
    """Scenes with questions, by number.

    Args:
        codec: writes masks.
    """

    codec: MaskCodec
    count: int = 2**24

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Lesson:
        chance = Random(f"lessons:{index}")
        is_page = chance.random() < PAGES
        scene = (page if is_page else draw)(2**53 + index)  # far from the seeds of other sources
        asked = islice(self._questions(scene, chance, is_page), QUESTIONS)
        return Lesson(f"lesson:{index}", scene=scene, questions=tuple(asked))

    def _questions(self, scene: Scene, chance: Random, is_page: bool) -> Iterator[Question]:
        """Every task once, those with large shares sooner."""
        late = {task: chance.random() ** (1 / share) for task, share in SHARES.items()}
        for task in ("ocr",) if is_page else sorted(late, key=late.__getitem__, reverse=True):
            asked = segment(scene, chance, self.codec) if task == "segment" else ASK[task](scene, chance)
            if asked is not None:
                yield asked


@dataclass(frozen=True)
class Rows:
    """Lessons -> pixels and the truth about patches, as `Labels` gives them, and a row per question.

    Rows are those of `Collator`, which would prepare a picture as often as it is asked about.

    `input_ids`, `attention_mask` and `answers` (-100 where nothing is learned) are [Q, S], the shortest rows first;
    `picture` [Q] is the number of each row's picture.

    Args:
        labels: the truth about patches.
        processor: of the model.
    """

    labels: Labels
    processor: Any

    def __call__(self, examples: Sequence[Any]) -> Batch:
        """See the class."""
        asked = [(number, *self._row(each)) for number, lesson in enumerate(examples) for each in lesson.questions]
        asked.sort(key=lambda row: len(row[1]))
        numbers, ids, answers = zip(*asked, strict=True)
        return {
            **self.labels(examples),
            "picture": torch.tensor(numbers),
            "input_ids": pad_sequence(ids, True),
            "answers": pad_sequence(answers, True, IGNORED),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True),
        }

    def _row(self, asked: Question) -> tuple[Tensor, Tensor]:
        """Ids [S], and those of the answer at their places."""
        tokenizer = self.processor.tokenizer
        prompt = [self.processor.image_token_id] * self.processor.image_seq_length
        prompt += tokenizer.encode(f"{tokenizer.bos_token}{asked.prompt}\n", add_special_tokens=False)
        answer = [*tokenizer.encode(asked.answer, add_special_tokens=False), tokenizer.eos_token_id]
        return torch.tensor(prompt + answer), torch.tensor([IGNORED] * len(prompt) + answer)


class Student(nn.Module):
    """The whole model, and the heads on its encoder's patches, which begin with nothing to say.

    Args:
        model: a PaliGemma.
    """

    def __init__(self, model: PaliGemmaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        self.pupil = Pupil(model.vision_tower)
        for head in (*self.pupil.heads.values(), self.pupil.codes):
            for weight in head.parameters():
                nn.init.zeros_(weight)


@dataclass(frozen=True)
class Lecture:
    """What is minimised: the mean loss of answers, each alike, and what patches say.

    Args:
        parts: in how many parts the decoder reads the rows, so that short ones are padded less.
    """

    parts: int = 3

    def weight(self, labels: Tensor, *rest: object) -> float:
        """How many pictures a batch has."""
        return float(len(labels))

    def __call__(self, student: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The sum over the pictures of a batch."""
        assert isinstance(student, Student)
        seen = student.pupil(batch["pixel_values"])
        rows = torch.arange(len(batch["picture"])).chunk(self.parts)
        answers = torch.stack([answers_loss(student.model, seen, batch, part) for part in rows]).sum()
        patches = loss_of(student.pupil, seen, batch)
        return len(batch["labels"]) * (answers / len(batch["picture"]) + SEEING * patches)


def answers_loss(
    model: PaliGemmaForConditionalGeneration, seen: Tensor, batch: Mapping[str, Tensor], rows: Tensor
) -> Tensor:
    """The sum over some rows of the mean cross-entropy of their answers' tokens.

    Args:
        model: whose decoder speaks.
        seen: [B, P, vision width], patches.
        batch: see `Rows`.
        rows: their numbers.
    """
    width = int(batch["attention_mask"][rows].sum(1).max())
    ids, mask, labels = (batch[name][rows, :width] for name in ("input_ids", "attention_mask", "answers"))
    embeds = model.get_input_embeddings()(ids)
    pictures = model.model.public_features(model.multi_modal_projector(seen))[batch["picture"][rows]]
    embeds = embeds.masked_scatter(model.model.get_placeholder_mask(ids, None, pictures), pictures.to(embeds.dtype))
    return Objective()(model, {"inputs_embeds": embeds, "attention_mask": mask, "labels": labels})


def main() -> None:
    """Trains, and writes OUTPUT/last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    settings: Settings = settings_of(read_recipe(parser.parse_args().recipe))
    trainee = prepare(settings)
    model = cast(PaliGemmaForConditionalGeneration, trainee.model)
    vision, codec = model.config.vision_config, MaskCodec.load(MASK_CODEC)
    rows = Rows(Labels(trainee.processor, vision.image_size // vision.patch_size, codec), trainee.processor)
    evaluation = Evaluation(settings, trainee, open_source(settings.validation), Collator(trainee.processor))

    def watch(step: int, steps: int, values: Mapping[str, float]) -> None:
        if step % settings.log_every == 0 or "validation_loss" in values:
            print(f"step {step} of {steps} ", *(f"{name} {value:.4g}" for name, value in values.items()), flush=True)

    run = Run(settings, Student(model), Lessons(codec), rows, Lecture(), evaluate=evaluation, watch=watch, say=print)
    run.train()
    model.eval()
    trainee.save(Path(settings.output) / "last")


if __name__ == "__main__":
    main()
