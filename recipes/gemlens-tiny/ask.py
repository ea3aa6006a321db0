"""Lets all of gemlens-tiny learn at once: a few questions about each picture, which is encoded once for all of them.

    python recipes/gemlens-tiny/ask.py recipes/gemlens-tiny/ask.toml

    scene -> picture -> encoder -> patches -+-> what each patch says, as in see.py
                                            +-> a row per question: patches | prompt | answer
                                                  +-> where each thing is that is named

Patches go on saying what they show, or letters would be learned from the few answers that read. Prompts say where the
things are that they name, and which is named first: each name in the middle of the decoder, and the last token, one
layer before it answers, for the first two. Without that, "is the cat left of the dog?" was answered at chance after
some 25,000 questions. B pictures, Q questions of all of them, S tokens of a row, P patches, D width.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
import torch.nn.functional as F
from see import EDGES, MASK_CODEC, STEPS, Labels, Pupil, Seen, edges_loss, loss_of
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gemlens import PaliGemmaForConditionalGeneration
from gemlens.data.sources import open_source
from gemlens.models.loss import IGNORED
from gemlens.scenes.questions import ASK, Question, segment, single
from gemlens.scenes.scene import Scene, Thing, draw, page
from gemlens.tasks.mask_codec import MaskCodec
from gemlens.training.batches import Collator
from gemlens.training.loading import Batch
from gemlens.training.loop import Run
from gemlens.training.settings import Settings, read_recipe, settings_of
from gemlens.training.train import Evaluation, prepare, settled

PAGES = 0.1  # of the pictures show words only
FULL = 0.5  # of the others show two texts or four things, at least: what is in them is got wrong most
QUESTIONS = 4  # about a picture, at most
TRIES = 1000  # seeds that a picture may use up
# How often each task is asked; of a picture's first task, scenes are drawn until it can be asked of one.
SHARES = {
    "caption": 14, "count": 5, "presence": 1, "place": 1, "relation": 5, "detect": 3, "ocr": 8, "segment": 2,
}  # fmt: skip
SEEING = 0.1  # what the patches' loss counts beside the answers'
NAMING = 0.1  # and what a prompt says
NOWHERE = -1.0


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
    length: int = 2**24

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> Lesson:
        chance = Random(f"lessons:{index}")
        is_page = chance.random() < PAGES
        first, *others = ["ocr"] if is_page else chance.choices(list(SHARES), list(SHARES.values()), k=QUESTIONS)
        is_full = not is_page and chance.random() < FULL
        for number in count(2**53 + index * TRIES):  # far from the seeds of other sources
            scene = (page if is_page else draw)(number)
            if is_full and (len(scene.words) < 2 if first == "ocr" else len(scene.things) < 4):
                continue
            if asked := self._question(first, scene, chance):
                others_asked = (self._question(task, scene, chance) for task in others)
                by_prompt = {each.prompt: each for each in (asked, *others_asked) if each}  # none twice
                return Lesson(f"lesson:{index}", scene=scene, questions=tuple(by_prompt.values()))
        raise AssertionError("scenes do not end")

    def _question(self, task: str, scene: Scene, chance: Random) -> Question | None:
        return segment(scene, chance, self.codec) if task == "segment" else ASK[task](scene, chance)


@dataclass(frozen=True)
class Rows:
    """Lessons -> pixels and the truth about patches, as `Labels` gives them, and a row per question.

    Rows are those of `Collator`, which would prepare a picture as often as it is asked about.

    `input_ids`, `attention_mask` and `answers` (-100 where nothing is learned) are [Q, S], the shortest rows first;
    `picture` [Q] is the number of each row's picture. `places` [Q, S, 4] are the edges of what a token names, as parts
    of the picture's side, where there is one such thing, else -1; `pairs` [Q, 2, 4] those of the first two names, which
    `order` [Q, S] numbers 0 and 1.

    Args:
        labels: the truth about patches.
        processor: of the model.
    """

    labels: Labels
    processor: Any

    def __call__(self, examples: Sequence[Any]) -> Batch:
        """See the class."""
        asked = [
            (number, *self._row(lesson.scene, each))
            for number, lesson in enumerate(examples)
            for each in lesson.questions
        ]
        asked.sort(key=lambda row: len(row[1]))
        numbers, ids, answers, places, order, pairs = zip(*asked, strict=True)
        return {
            **self.labels(examples),
            "picture": torch.tensor(numbers),
            "input_ids": pad_sequence(ids, True),
            "answers": pad_sequence(answers, True, IGNORED),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True),
            "places": pad_sequence(places, True, NOWHERE),
            "order": pad_sequence(order, True, IGNORED),
            "pairs": torch.stack(pairs),
        }

    def _row(self, scene: Scene, asked: Question) -> tuple[Tensor, ...]:
        """Ids [S], those of the answer at their places, where what is named is, and number and places of two names."""
        tokenizer = self.processor.tokenizer
        prompt = [self.processor.image_token_id] * self.processor.image_seq_length
        prompt += tokenizer.encode(f"{tokenizer.bos_token}{asked.prompt}\n", add_special_tokens=False)
        answer = [*tokenizer.encode(asked.answer, add_special_tokens=False), tokenizer.eos_token_id]
        places = torch.full((len(prompt) + len(answer), EDGES), NOWHERE)
        edges = {self._name(thing): self._edges(thing, scene) for thing in single(scene)}
        named = [place for place, token in enumerate(prompt) if token in edges]
        for place in named:
            places[place] = edges[prompt[place]]
        pair = torch.cat([places[named[:2]], torch.full((2, EDGES), NOWHERE)])[:2]
        order = torch.full((len(places),), IGNORED)
        order[named[:2]] = torch.arange(len(named[:2]))
        return torch.tensor(prompt + answer), torch.tensor([IGNORED] * len(prompt) + answer), places, order, pair

    def _name(self, thing: Thing) -> int:
        """The last token of the name of a thing."""
        return int(self.processor.tokenizer.encode(f" {thing.kind.name}", add_special_tokens=False)[-1])

    def _edges(self, thing: Thing, scene: Scene) -> Tensor:
        edges = torch.tensor([thing.box.top, thing.box.left, thing.box.bottom, thing.box.right])
        return edges / torch.tensor(scene.picture.size[::-1] * 2)


class Student(nn.Module):
    """The whole model, and the heads on its encoder's patches and on prompts, which begin with nothing to say.

    Args:
        model: a PaliGemma.
    """

    def __init__(self, model: PaliGemmaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        self.pupil = Pupil(model.vision_tower)
        width = model.config.text_config.hidden_size
        self.place, self.pair = (nn.Linear(width, count * EDGES * (STEPS + 1)) for count in (1, 2))
        self.order = nn.Linear(width, 2)
        for head in (*self.pupil.heads.values(), self.pupil.codes, self.place, self.pair, self.order):
            for weight in head.parameters():
                nn.init.zeros_(weight)


@dataclass(frozen=True)
class Lecture:
    """What is minimised: the mean loss of answers, each alike, and what patches and prompts say.

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
        answers, places = torch.stack([torch.stack(losses_of(student, seen, batch, part)) for part in rows]).sum(0)
        told = answers + NAMING * places
        return len(batch["labels"]) * (told / len(batch["picture"]) + SEEING * loss_of(student.pupil, seen, batch))


def losses_of(student: Student, seen: Tensor, batch: Mapping[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over some rows of the mean cross-entropy of their answers' tokens, and of what prompts say.

    Args:
        student: whose decoder speaks.
        seen: [B, P, vision width], patches.
        batch: see `Rows`.
        rows: their numbers.
    """
    model, width = student.model, int(batch["attention_mask"][rows].sum(1).max())
    ids, mask, labels, places = (
        batch[name][rows, :width] for name in ("input_ids", "attention_mask", "answers", "places")
    )
    embeds = model.get_input_embeddings()(ids)
    pictures = model.model.public_features(model.multi_modal_projector(seen))[batch["picture"][rows]]
    embeds = embeds.masked_scatter(model.model.get_placeholder_mask(ids, None, pictures), pictures.to(embeds.dtype))
    states = model.model(
        inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False, output_hidden_states=True
    ).hidden_states
    assert states is not None
    scored = labels[:, 1:] != IGNORED
    losses = F.cross_entropy(model.lm_head(states[-1][:, :-1][scored]).float(), labels[:, 1:][scored], reduction="none")
    owners = scored.nonzero()[:, 0]
    answers = (losses / owners.bincount()[owners]).sum()
    names, last = states[len(states) // 2], states[-2][torch.arange(len(rows)), scored.int().argmax(1)]
    numbers = student.order(names).float().flatten(0, 1), batch["order"][rows, :width].flatten()
    told = [
        places_loss(student.place(names), places),
        places_loss(student.pair(last).unflatten(-1, (2, -1)), batch["pairs"][rows]),
        F.cross_entropy(*numbers, ignore_index=IGNORED, reduction="sum"),
    ]
    return answers, torch.stack(told).sum()


def places_loss(said: Tensor, places: Tensor) -> Tensor:
    """The sum of the loss of edges over what is named: said [..., 4 * 65] of places [..., 4]."""
    named = places[..., 0] >= 0
    return edges_loss(said[named].float(), places[named]) * named.sum() if named.any() else said.sum() * 0


def main() -> None:
    """Trains, and writes OUTPUT/last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    settings: Settings = settled(settings_of(read_recipe(parser.parse_args().recipe)))
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
