"""Relaxed accuracy: numbers may be off by 5 %. Used for ChartQA.

Masry et al., ChartQA (arXiv 2203.10244), section 5.1; percentages as Pix2Struct's code reads them.
"""

from collections.abc import Sequence
from math import isfinite

from gemlens.evals.score import Score, check_pairs

TOLERANCE = 0.05


def relaxed_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """The share of answers that are right: a number within 5 % of a reference, or its text but for case."""
    check_pairs(answers, references)
    pairs = zip(answers, references, strict=True)
    return Score.mean(
        "relaxed_accuracy",
        [float(any(is_near(answer, reference) for reference in accepted)) for answer, accepted in pairs],
    )


def is_near(answer: str, reference: str) -> bool:
    """Whether the answer is right. 5 % of a reference of 0 is nothing, so there the texts are compared."""
    said, true = _number(answer), _number(reference)
    if said is not None and true:
        return abs(said - true) / abs(true) <= TOLERANCE
    return answer.strip().lower() == reference.strip().lower()


def _number(text: str) -> float | None:
    """The number that a text says, "25%" as 0.25; None where it says none."""
    text = text.strip()
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None
