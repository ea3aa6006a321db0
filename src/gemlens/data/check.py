"""Reads all of a source, pictures too, and says what is wrong with it.

source -> each example: its texts, its pictures, what stood before it -> Report
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gemlens.data.example import Example, Picture, Source
from gemlens.data.picture_folder import open_pictures
from gemlens.data.text_checks import text_problems, texts_of
from gemlens.errors import GemlensError, PictureError
from gemlens.tasks import prompts

WRONG = {
    "unreadable row": "rows that are no examples",
    "missing picture": "pictures that are not there, or outside their folder",
    "damaged picture": "pictures that cannot be read",
    "empty answer": "answers without a word",
    "control token": "control tokens written out in texts",
    "broken box": "boxes and masks that cannot be read back",
    "answer in prompt": "prompts that say their answer",
    "two answers": "the same picture and prompt with another answer",
    "in both": "pictures that the other data has too",
    "no tokens": "examples that make no row of tokens",
}
REMARKS = {
    "no picture": "examples without a picture",
    "small picture": "pictures with a side below 32 pixels",
    "nothing found": "pictures without anything of what is asked for",
    "unasked label": "labels that the prompt does not name",
    "short answer in prompt": "prompts that say their answer of a few words",
    "several captions": "the same picture with another caption",
    "not compared": "of the other data: some of the rows and pictures that cannot be read",
    "repeated": "the same picture, prompt and answer again",
}
_SMALL = 32
_KEPT = 5

Measure = Callable[[Example], tuple[int, int]]


@dataclass(frozen=True)
class Lengths:
    """How long rows of tokens are.

    Args:
        histogram: {most tokens: how many rows}, in steps that double: 16, 32, 64, ...
        longest: tokens of the longest.
    """

    histogram: dict[int, int]
    longest: int

    @classmethod
    def of(cls, values: Sequence[int]) -> "Lengths":
        """Of rows of so many tokens."""
        counts = Counter(max(16, 1 << (value - 1).bit_length()) for value in values)
        return cls({most: counts[most] for most in sorted(counts)}, max(values))


@dataclass
class Report:
    """What was found.

    Attributes:
        examples: how many there are.
        kinds: how many of each kind could be read: "detect", "caption", ...; "chat".
        sizes: how many pictures there are of each (width, height); a picture of several examples counts for each.
        found: how often each problem came, by its name in `WRONG` and `REMARKS`.
        sentences: the first few of each, with their places.
        lengths: tokens of prompt and answer of each example, if they were measured.
    """

    examples: int
    kinds: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    sentences: dict[str, list[str]] = field(default_factory=dict)
    lengths: tuple["array[int]", "array[int]"] = field(default_factory=lambda: (array("L"), array("L")))

    @property
    def is_fine(self) -> bool:
        """Whether nothing is wrong; there may be remarks."""
        return not any(name in WRONG for name in self.found)

    def tell(self, name: str, sentence: str) -> None:
        """Notes a problem."""
        self.found[name] += 1
        told = self.sentences.setdefault(name, [])
        if len(told) < _KEPT:
            told.append(sentence)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        widths, heights = ([size[axis] for size in self.sizes] for axis in (0, 1))
        pictures: dict[str, Any] = {"count": self.sizes.total(), "sizes": len(self.sizes)}
        if self.sizes:
            pictures |= {"widths": [min(widths), max(widths)], "heights": [min(heights), max(heights)]}
        problems = [
            {"name": name, "wrong": name in WRONG, "count": count, "first": self.sentences[name]}
            for name, count in self.found.most_common()
        ]
        return {
            "examples": self.examples,
            "kinds": dict(self.kinds),
            "pictures": pictures,
            "fine": self.is_fine,
            "problems": problems,
            "tokens": {name: asdict(lengths) for name, lengths in self.tokens().items()},
        }

    def tokens(self) -> dict[str, Lengths]:
        """Of "prompt", "answer" and "together", if they were measured."""
        asked, answered = map(list, self.lengths)
        if not asked:
            return {}
        together = [sum(both) for both in zip(asked, answered, strict=True)]
        return {"prompt": Lengths.of(asked), "answer": Lengths.of(answered), "together": Lengths.of(together)}


def check(
    source: Source,
    against: Source | None = None,
    measure: Measure | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Report:
    """Reads every example and every picture.

    Args:
        source: to be checked.
        against: other data, such as that for validation, which must not share pictures with it.
        measure: tells how many tokens prompt and answer of an example have.
        advance: called after each example, of `against` too.
    """
    report, memory = Report(len(source)), _Memory()
    for example in _readable(source, report, advance):
        report.kinds["chat" if example.messages else prompts.kind_of(example.prefix)] += 1
        for name, sentence in text_problems(example):
            report.tell(name, f"{example.id}: {sentence}")
        if measure is not None:
            _measure(example, measure, report)
        if (pictures := memory.pictures(example, report)) is not None:
            memory.compare(example, pictures, report)
    if against is not None:
        _compare(against, memory, report, advance)
    return report


def _compare(other: Source, memory: "_Memory", report: Report, advance: Callable[[], None]) -> None:
    """Looks for the pictures of other data among those in memory."""
    unread = Report(0)
    for example in _readable(other, unread, advance):
        for picture in memory.pictures(example, unread) or ():
            if picture in memory.first_with:
                report.tell("in both", f"{example.id}: the picture is that of {memory.first_with[picture]}.")
    for name in ("unreadable row", "missing picture", "damaged picture"):
        for sentence in unread.sentences.get(name, ()):
            report.tell("not compared", sentence)


def _readable(source: Source, report: Report, advance: Callable[[], None]) -> Iterator[Example]:
    for number in range(len(source)):
        try:
            yield source[number]
        except GemlensError as error:
            report.tell("missing picture" if isinstance(error, PictureError) else "unreadable row", str(error))
        advance()


def _measure(example: Example, measure: Measure, report: Report) -> None:
    try:
        lengths = measure(example)
    except GemlensError as error:
        report.tell("no tokens", f"{example.id}: {error}")
        return
    for values, length in zip(report.lengths, lengths, strict=True):
        values.append(length)


class _Memory:
    """What was seen: pictures, by what they show, and answers.

    Attributes:
        first_with: {picture: id of the first example that has it}.
    """

    def __init__(self) -> None:
        self.first_with: dict[bytes, str] = {}
        self._answers: dict[bytes, tuple[bytes, str]] = {}
        self._files: dict[Path, tuple[bytes, tuple[int, int]]] = {}

    def pictures(self, example: Example, report: Report) -> list[bytes] | None:
        """A fingerprint of each picture of an example; None if one cannot be read, which the report then says."""
        if not example.pictures:
            report.tell("no picture", f"{example.id}: the example has no picture.")
        try:
            found = [self._look(picture, example) for picture in example.pictures]
        except PictureError as error:
            report.tell("damaged picture", str(error))
            return None
        for _, size in found:
            report.sizes[size] += 1
            if min(size) < _SMALL:
                report.tell("small picture", f"{example.id}: the picture is {size[0]} x {size[1]} pixels.")
        return [fingerprint for fingerprint, _ in found]

    def _look(self, picture: Picture, example: Example) -> tuple[bytes, tuple[int, int]]:
        """Fingerprint and size; of a file, once."""
        if isinstance(picture, Path) and picture in self._files:
            return self._files[picture]
        (opened,) = open_pictures(replace(example, pictures=(picture,)))
        seen = _fingerprint(str(opened.size).encode(), opened.tobytes()), opened.size
        if isinstance(picture, Path):
            self._files[picture] = seen
        return seen

    def compare(self, example: Example, pictures: list[bytes], report: Report) -> None:
        """Compares an example with those before it, and remembers it."""
        for picture in pictures:
            self.first_with.setdefault(picture, example.id)
        asked, answered = texts_of(example)
        key, answer = _fingerprint(*pictures, asked.encode()), _fingerprint(answered.encode())
        if key not in self._answers:
            self._answers[key] = answer, example.id
            return
        before, where = self._answers[key]
        if before == answer:
            report.tell("repeated", f"{example.id}: picture, prompt and answer are those of {where}.")
        else:
            name = "several captions" if prompts.kind_of(asked) == "caption" else "two answers"
            report.tell(name, f"{example.id}: picture and prompt are those of {where}, but the answer is another.")


def _fingerprint(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(hashlib.blake2b(part).digest() for part in parts), digest_size=16).digest()
