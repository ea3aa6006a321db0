"""Batches in the order of a run, read ahead by other processes if that is wanted.

Order -> numbers -> source -> examples -> collator -> one Step per update of the weights
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gemlens.data.example import Example, Source
from gemlens.errors import GemlensError, InputError
from gemlens.training.order import Order
from gemlens.training.settings import Settings

Batch = dict[str, Tensor]
Collate = Callable[[Sequence[Example]], Batch]


@dataclass(frozen=True)
class Step:
    """What one update of the weights is made from.

    Args:
        number: of the step, from 0.
        batches: as many as gradients are added up for; fewer if all examples of one were skipped.
        skipped: sentences about examples that could not be read.
    """

    number: int
    batches: tuple[Batch, ...]
    skipped: tuple[str, ...]


def steps_of(settings: Settings, size: int) -> int:
    """How many updates a run makes on so many examples.

    Raises:
        InputError: there are no examples, or the settings ask for no step.
    """
    if size < 1:
        raise InputError("The data holds no examples, so there is nothing to learn from.")
    steps = settings.steps or int(size * settings.epochs // settings.examples_per_step) or int(settings.epochs > 0)
    if steps < 1:
        raise InputError("steps and epochs are both 0; say how long to train.")
    return steps


def read_steps(source: Source, collate: Collate, settings: Settings, start: int, stop: int) -> Iterator[Step]:
    """The steps from `start` to before `stop`.

    Raises:
        GemlensError: an example cannot be read and `on_error` says stop.
    """
    loader: DataLoader[Example | GemlensError] = DataLoader(
        _Readable(source),
        batch_sampler=_Numbers(Order(len(source), settings.seed), settings.examples_per_step, range(start, stop)),
        collate_fn=_Batches(collate, settings.batch_size),
        num_workers=settings.workers,
    )
    steps: Iterator[_Read] = iter(loader)
    for number, step in zip(range(start, stop), steps, strict=True):
        if step.problems and settings.on_error == "stop":
            raise step.problems[0]
        yield Step(number, step.batches, tuple(map(str, step.problems)))


@dataclass(frozen=True)
class _Numbers:
    order: Order
    examples: int
    steps: range

    def __iter__(self) -> Iterator[list[int]]:
        return (self.order.step(step, self.examples) for step in self.steps)


@dataclass(frozen=True)
class _Readable(Dataset["Example | GemlensError"]):
    """A source whose errors are values: torch would wrap an exception of another process in its own text."""

    source: Source

    def __getitem__(self, index: int) -> Example | GemlensError:
        try:
            return self.source[index]
        except GemlensError as error:
            return error


@dataclass(frozen=True)
class _Read:
    batches: tuple[Batch, ...]
    problems: tuple[GemlensError, ...]


@dataclass(frozen=True)
class _Batches:
    """The examples of a step -> batches; those of like length share one, so that little is padding."""

    collate: Collate
    size: int

    def __call__(self, rows: Sequence[Example | GemlensError]) -> _Read:
        problems = [row for row in rows if isinstance(row, GemlensError)]
        examples = sorted((row for row in rows if isinstance(row, Example)), key=_length)
        parts = [self._part(examples[first : first + self.size]) for first in range(0, len(examples), self.size)]
        problems += [problem for part in parts for problem in part.problems]
        return _Read(tuple(batch for part in parts for batch in part.batches), tuple(problems))

    def _part(self, examples: Sequence[Example]) -> _Read:
        """Where not all can be collated, each is tried by itself."""
        try:
            return _Read((self.collate(examples),), ())
        except GemlensError as error:
            if len(examples) == 1:
                return _Read((), (type(error)(f"Example '{examples[0].id}': {error}"),))
        alone = [(example, self._part([example])) for example in examples]
        good = [example for example, part in alone if part.batches]
        problems = tuple(problem for _, part in alone for problem in part.problems)
        return _Read(self._part(good).batches if good else (), problems)


def _length(example: Example) -> int:
    """About how long an example is, without a tokenizer; a picture's tokens are many."""
    texts = [example.prefix, example.suffix, *(str(message) for message in example.messages)]
    return sum(map(len, texts)) + 1000 * len(example.pictures)
