"""A model, a source -> Report: every example is asked, every answer scored.

    source[i] -> pictures opened -> WrittenAnswers, in batches -> Item -> by metric -> values, and a score per item

A batch at a time is in memory. What cannot be read or asked is an item with an error; it counts as wrong.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import isfinite

from PIL.Image import Image

from gemlens.data.example import Example, Source
from gemlens.errors import InputError
from gemlens.evals.asking import Answers, GivenAnswers, Reader, WrittenAnswers, answer_of, opened, prompt_of
from gemlens.evals.metrics import PERPLEXITY, metric_of, usual_metric
from gemlens.evals.score import Item, Metric
from gemlens.models.generative import GenerativeModel
from gemlens.tasks.masks import Codec
from gemlens.tasks.prompts import kind_of


@dataclass(frozen=True)
class Report:
    """What came out.

    Args:
        values: by name; a metric's name is that of its value that counts.
        items: in the order of the source, with their scores.
        counts: items by kind of prompt.
        errors: items that could not be read or asked. They count as wrong.
        seconds: that the answers took, those of items that were known already left out.
    """

    values: Mapping[str, float]
    items: tuple[Item, ...]
    counts: Mapping[str, int]
    errors: int
    seconds: float


def evaluate(
    model: GenerativeModel,
    processor: Reader,
    source: Source,
    *,
    metric: str | Metric | None = None,
    codec: Codec | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 128,
    limit: int | None = None,
    seed: int | None = None,
    known: Iterable[Item] = (),
    on_item: Callable[[Item], None] | None = None,
) -> Report:
    """Asks a model all examples of a source, greedily, and scores its answers.

    Args:
        model: with a head over the vocabulary, in eval mode.
        processor: of the model; its tokenizer if it takes no pictures.
        source: examples with answers.
        metric: for all items: a name of `gemlens.evals.metrics.NAMES`, or a function; None: by kind of prompt, which is
            cider_d for captions, map for detection, mask_iou (with a codec, else box_iou) for segmentation,
            vqa_accuracy for questions with ten answers, exact_match for everything else. "perplexity" reads the right
            answers instead of asking.
        codec: makes masks of `<seg>` tokens.
        batch_size: examples that are asked together; answers do not depend on it.
        max_new_tokens: of an answer at most.
        limit: ask only so many.
        seed: choose these at random; None: the first ones.
        known: items of an earlier run, which are not asked again.
        on_item: is shown each new item as it comes, without a score.

    Raises:
        InputError: a number out of range, an unknown metric, or no examples.
    """
    for name, number in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens), ("limit", limit)):
        if number is not None and (type(number) is not int or number < 1):
            raise InputError(f"{name} is {number!r}, but it must be a number of at least 1.")
    if isinstance(metric, str):
        metric_of(metric, codec)  # a wrong name is told before anything long begins
    chosen = chosen_examples(source, limit, seed)
    answers: Answers = WrittenAnswers(model, processor, max_new_tokens)
    if metric == PERPLEXITY:
        answers = GivenAnswers(model, processor)
    wanted = set(chosen)
    items = {item.index: item for item in known if item.index in wanted}
    began = time.perf_counter()
    missing = [index for index in chosen if index not in items]
    for batch in _batches(missing, batch_size):
        for item in _asked(answers, source, batch):
            items[item.index] = item
            if on_item is not None:
                on_item(item)
    seconds = time.perf_counter() - began
    return scored([items[index] for index in chosen], metric=metric, codec=codec, seconds=seconds)


def chosen_examples(source: Source, limit: int | None = None, seed: int | None = None) -> list[int]:
    """The numbers of the examples to ask, ascending; see `evaluate` for the arguments.

    Raises:
        InputError: there are none.
    """
    count = len(source)
    if not count:
        raise InputError("The source has no examples, so there is nothing to score.")
    if limit is None or limit >= count:
        return list(range(count))
    return list(range(limit)) if seed is None else sorted(random.Random(seed).sample(range(count), limit))


def scored(
    items: Sequence[Item], *, metric: str | Metric | None = None, codec: Codec | None = None, seconds: float = 0.0
) -> Report:
    """The report on items that were asked; see `evaluate` for the arguments.

    Raises:
        InputError: no items, or an unknown metric.
    """
    if not items:
        raise InputError("There are no items to score.")
    found, values = dict[int, Item](), dict[str, float]()
    for judge, group in _groups(items, metric, codec):
        score = judge(group)
        values |= score.values
        for item, value in zip(group, score.items, strict=True):
            found[item.index] = replace(item, score=value if isfinite(value) else None)
    counts = Counter[str](kind_of(item.prefix) for item in items)
    errors = sum(item.error is not None for item in items)
    return Report(values, tuple(found[item.index] for item in items), counts, errors, seconds)


def _groups(
    items: Sequence[Item], metric: str | Metric | None, codec: Codec | None
) -> Iterator[tuple[Metric, list[Item]]]:
    """Items that are scored together, and by which metric."""
    if metric is not None:
        yield metric_of(metric, codec) if isinstance(metric, str) else metric, list(items)
    else:
        names = [usual_metric(item, codec) for item in items]
        for name in dict.fromkeys(names):
            group = [item for item, own in zip(items, names, strict=True) if own == name]
            yield metric_of(name, codec), group


def _batches(indices: Iterable[int], size: int) -> Iterator[list[int]]:
    rest = iter(indices)
    while batch := list(islice(rest, size)):
        yield batch


def _asked(answers: Answers, source: Source, batch: Sequence[int]) -> Iterator[Item]:
    """The items of a batch, in order."""
    ready: list[tuple[Item, Example]] = []
    failed: list[Item] = []
    for index in batch:
        item = Item(index, f"#{index}")
        try:
            example = source[index]
            references = example.references or (answer_of(example),)
            item = Item(index, example.id, prompt_of(example), references=references)
            example = opened(example)
        except InputError as error:
            failed.append(replace(item, error=str(error)))
            continue
        first = example.pictures[0] if example.pictures else None
        ready.append((replace(item, size=first.size if isinstance(first, Image) else None), example))
    done = [*failed, *_answered(answers, ready)]
    yield from sorted(done, key=lambda item: item.index)


def _answered(answers: Answers, ready: Sequence[tuple[Item, Example]]) -> list[Item]:
    """The items with their answers; where a batch is refused, each by itself, so that one spoils no other."""
    if not ready:
        return []
    try:
        said = answers([example for _, example in ready])
    except InputError as error:
        if len(ready) == 1:
            return [replace(ready[0][0], error=str(error))]
        return [item for one in ready for item in _answered(answers, [one])]
    return [
        replace(item, answer=one.answer, tokens=one.tokens, likelihood=one.likelihood, locations=one.locations)
        for (item, _), one in zip(ready, said, strict=True)
    ]
