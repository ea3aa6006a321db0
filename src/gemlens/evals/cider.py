"""CIDEr-D: how much a caption is like what people wrote, rare phrases counting most. Used for COCO, TextCaps, NoCaps.

Vedantam, Zitnick, Parikh: CIDEr (arXiv 1411.5726), equations 1 to 5, sigma 6, n-grams of 1 to 4 words, times 10.
Documents are pictures, so an n-gram's weight is log(pictures / pictures whose references have it); the references that
are scored against are the corpus, which makes the figure one of a whole test set: of one picture it is 0.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt

from gemlens.evals.ptb import words
from gemlens.evals.score import Score, check_pairs

LONGEST = 4
SIGMA = 6.0
Phrase = tuple[str, ...]


def cider_d(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """The mean of CIDEr-D over pictures, from 0 to 10; the tables of papers say it times 100 (141.9 is 1.419 here).

    Args:
        answers: one caption of each picture.
        references: captions by people of each picture, usually five.
    """
    check_pairs(answers, references)
    counted = [[_phrases(words(reference)) for reference in accepted] for accepted in references]
    seen = Counter(phrase for accepted in counted for phrase in set().union(*accepted))  # pictures that have it
    corpus = _Corpus(log(len(references)) if references else 0.0, seen)
    pairs = zip(answers, counted, strict=True)
    return Score.mean("cider_d", [corpus.likeness(_phrases(words(answer)), accepted) for answer, accepted in pairs])


def _phrases(caption: Sequence[str]) -> Counter[Phrase]:
    """How often each run of 1 to 4 words occurs."""
    return Counter(
        tuple(caption[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(caption) - length + 1)
    )


@dataclass(frozen=True)
class _Vector:
    """A caption: weights of its phrases, the length of these vectors by number of words, and its number of words."""

    weights: dict[Phrase, float]
    norms: tuple[float, ...]
    words: int


@dataclass(frozen=True)
class _Corpus:
    """The logarithm of the number of pictures, and how many of them each phrase occurs in."""

    pictures: float
    seen: Counter[Phrase]

    def likeness(self, answer: Counter[Phrase], accepted: Sequence[Counter[Phrase]]) -> float:
        """Ten times the mean over references and lengths of phrases."""
        said = self._vector(answer)
        found = [_likeness(said, self._vector(reference)) for reference in accepted]
        return 10 * sum(found) / len(found) if found else 0.0

    def _vector(self, phrases: Counter[Phrase]) -> _Vector:
        weights = {
            phrase: count * (self.pictures - log(max(1, self.seen[phrase]))) for phrase, count in phrases.items()
        }
        squares = [0.0] * LONGEST
        for phrase, weight in weights.items():
            squares[len(phrase) - 1] += weight**2
        number = sum(count for phrase, count in phrases.items() if len(phrase) == 1)
        return _Vector(weights, tuple(map(sqrt, squares)), number)


def _likeness(said: _Vector, true: _Vector) -> float:
    """Equation 5, without the factor 10: what both have, a repeated phrase counting no more than in the reference."""
    dots = [0.0] * LONGEST
    for phrase, weight in said.weights.items():
        other = true.weights.get(phrase, 0.0)
        dots[len(phrase) - 1] += min(weight, other) * other
    norms = [one * other for one, other in zip(said.norms, true.norms, strict=True)]
    cosines = sum(dot / norm for dot, norm in zip(dots, norms, strict=True) if norm)
    return exp(-((said.words - true.words) ** 2) / (2 * SIGMA**2)) * cosines / LONGEST
