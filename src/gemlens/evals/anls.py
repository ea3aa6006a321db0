"""ANLS: average normalised Levenshtein similarity. Used for DocVQA, InfoVQA, ST-VQA.

Biten et al., Scene Text Visual Question Answering (arXiv 1905.13648), section 4.2, with the threshold 0.5.
"""

from collections.abc import Sequence

from gemlens.evals.score import Score, check_pairs

THRESHOLD = 0.5


def anls(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """The mean of 1 - distance / length to the nearest reference, where that is at least 0.5; else 0.

    Case does not count, nor does how much white space there is. Length is that of the longer text.
    """
    check_pairs(answers, references)
    pairs = zip(answers, references, strict=True)
    return Score.mean("anls", [_nearest(answer, accepted) for answer, accepted in pairs])


def _nearest(answer: str, accepted: Sequence[str]) -> float:
    best = max((similarity(_plain(answer), _plain(reference)) for reference in accepted), default=0.0)
    return best if best >= THRESHOLD else 0.0


def similarity(first: str, second: str) -> float:
    """1 - edit distance / length of the longer text; 1 for two empty texts."""
    longer = max(len(first), len(second))
    return 1 - edit_distance(first, second) / longer if longer else 1.0


def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions and replacements of characters that make one text the other (Levenshtein)."""
    above = list(range(len(second) + 1))
    for row, letter in enumerate(first, start=1):
        here = [row]
        for column, other in enumerate(second, start=1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (letter != other)))
        above = here
    return above[-1]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
