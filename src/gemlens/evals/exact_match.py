"""Exact match: an answer is right if it is one of the references. Used for GQA, OCR-VQA, AI2D, ScienceQA, NLVR2."""

from collections.abc import Sequence

from gemlens.evals.score import Score, check_pairs


def exact_match(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """The share of answers that equal one of their references, but for white space. Case and punctuation count."""
    check_pairs(answers, references)
    pairs = zip(answers, references, strict=True)
    return Score.mean("exact_match", [float(_plain(answer) in map(_plain, accepted)) for answer, accepted in pairs])


def _plain(text: str) -> str:
    return " ".join(text.split())
