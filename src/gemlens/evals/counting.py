"""Counting: the number that an answer says, and which things, how often, captions name."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from gemlens.evals.score import Score, check_pairs

_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_NUMBERS = {**{word: number for number, word in enumerate(_WORDS)}, "no": 0, "none": 0, "a": 1, "an": 1}


def counting_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """The share of answers whose first number is that of a reference: "two", "2" and "2 cats" are one."""
    check_pairs(answers, references)
    pairs = zip(answers, references, strict=True)
    return Score.mean("counting_accuracy", [float(_same(answer, accepted)) for answer, accepted in pairs])


def number_in(text: str) -> int | None:
    """The first number that a text says, in digits or as a word up to twelve; None where it says none."""
    for word in re.findall(r"\d+|[a-z]+", text.lower()):
        if word[0].isdecimal():
            return int(word[:18])  # longer ones are no counts
        if word in _NUMBERS:
            return _NUMBERS[word]
    return None


def things_in(caption: str, names: Mapping[str, str]) -> Counter[str]:
    """Which things a caption names, and how many of each: "two cats and a dog" -> {"cat": 2, "dog": 1}.

    A name's number stands right before it, or before a word that describes it ("two red cats"); without any it is 1.
    Case matters in names, so that "the word CAT" is no cat.

    Args:
        caption: of a model or a person.
        names: what is looked for -> its kind: {"cat": "cat", "cats": "cat"}. Of two names in one place, the longer
            counts.
    """
    if not names:
        return Counter()
    wanted = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    number = rf"(?:\b(?P<number>\d+|(?i:{'|'.join(_NUMBERS)}))\s+(?:[a-z-]+\s+)??)?"
    found: Counter[str] = Counter()
    for match in re.finditer(rf"{number}(?<![\w-])(?P<name>{wanted})(?![\w-])", caption):
        found[names[match["name"]]] += 1 if match["number"] is None else number_in(match["number"]) or 0
    return +found


def object_f1(said: Sequence[Counter[str]], true: Sequence[Counter[str]]) -> Score:
    """F1 of things in captions: a kind that is named twice and is there three times was found twice and missed once.

    Args:
        said: kinds, and how many of each, that captions name.
        true: those that are there.

    Returns:
        object_f1, object_precision, object_recall over all captions; the items' own numbers are their F1.
    """
    counts = hits(said, true)
    found, named, there = map(sum, zip(*counts, strict=True)) if counts else (0, 0, 0)
    values = {
        "object_f1": f1(found, named, there),
        "object_precision": found / named if named else 1.0,
        "object_recall": found / there if there else 1.0,
    }
    return Score(values, tuple(f1(*one) for one in counts))


def hits(said: Sequence[Counter[str]], true: Sequence[Counter[str]]) -> list[tuple[int, int, int]]:
    """Of each caption: things that it names and that are there, things that it names, things that are there."""
    check_pairs(said, true)
    return [((one & other).total(), one.total(), other.total()) for one, other in zip(said, true, strict=True)]


def f1(found: int, said: int, true: int) -> float:
    """The harmonic mean of found / said and found / true; 1 where there is nothing and nothing was said."""
    return 2 * found / (said + true) if said + true else 1.0


def _same(answer: str, accepted: Sequence[str]) -> bool:
    said = number_in(answer)
    return said is not None and said in map(number_in, accepted)
