"""Scenes as examples: number -> scene and task -> prompt and answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from gemlens.data.example import Example
from gemlens.errors import InputError
from gemlens.scenes.questions import ASK, TASKS, Question, segment
from gemlens.scenes.scene import SPLITS, Scene, draw
from gemlens.tasks.masks import Codec

_TRIES = 1000  # scenes to look at for one that a question can be asked of
_EXAMPLES = 2**40  # of a seed: more than any count, so that seeds share no scene and the count changes none


@dataclass(frozen=True)
class Scenes:
    """A source of examples of the drawn world; see gemlens.data.example.

    Args:
        split: "train" or "test"; they share neither photographs nor scenes, and "test" has words of its own.
        seed: another row of scenes.
        count: how many examples there are.
        tasks: of gemlens.scenes.questions, in turn; "answer" stands for all questions.
        codec: writes masks, for the task "segment"; or the path of its file.

    Raises:
        InputError: an unknown split or task, or "segment" without a codec.
    """

    split: str = "train"
    seed: int = 0
    count: int = 1_000_000
    tasks: Sequence[str] = ("caption", "answer", "detect", "ocr")
    codec: Codec | str | Path | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InputError(f"There is no split {self.split!r} of scenes; there are {', '.join(SPLITS)}.")
        if unknown := [task for task in self.tasks if task not in (*TASKS, "answer")]:
            raise InputError(f"There is no task {unknown[0]!r} in scenes; there are answer, {', '.join(TASKS)}.")
        if not self.tasks or type(self.count) is not int or self.count < 0 or type(self.seed) is not int:
            raise InputError("Scenes need at least one task, and whole numbers as seed and count.")
        if "segment" in self.tasks and self.codec is None:
            raise InputError(
                "The task 'segment' needs codec=, the MaskCodec that writes masks, or the path of its file."
            )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Example:
        scene, question, task = self._asked(index)
        return Example(f"{self.split}:{index}:{task}", (scene.picture,), question.prompt, question.answer)

    def scene(self, index: int) -> Scene:
        """The scene of an example, with its whole truth."""
        return self._asked(index)[0]

    def texts(self, count: int) -> Iterator[str]:
        """Prompts and answers of the first examples, a line each."""
        for index in range(count):
            _, question, _ = self._asked(index)
            yield question.prompt
            yield question.answer

    def _asked(self, index: int) -> tuple[Scene, Question, str]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        task = self._turns[index % len(self._turns)]
        for attempt in range(_TRIES):
            number = (self.seed * _EXAMPLES + index) * _TRIES + attempt
            scene = draw(number, self.split)
            chance = Random(f"{self.split}:{number}:{task}")
            question = segment(scene, chance, self._codec) if task == "segment" else ASK[task](scene, chance)
            if question is not None:
                return scene, question, task
        raise InputError(f"Of {_TRIES} scenes none fits the task {task!r}.")

    @cached_property
    def _turns(self) -> tuple[str, ...]:
        """The tasks in turn; each question is asked a part of the times that "answer" comes."""
        questions = ("count", "presence", "place", "relation")
        if "answer" not in self.tasks:
            return tuple(self.tasks)
        return tuple(asked if task == "answer" else task for asked in questions for task in self.tasks)

    @cached_property
    def _codec(self) -> Codec:
        from gemlens.tasks.mask_codec import MaskCodec

        assert self.codec is not None
        return MaskCodec.load(self.codec) if isinstance(self.codec, str | Path) else self.codec
