"""Answers -> found boxes with scores, and references -> true boxes, as coco_map.py wants them.

PaliGemma writes no scores. Two stand in for them: how probable its <loc> tokens were, and the order of its boxes.
"""

import re
from collections.abc import Iterable
from math import exp
from typing import Literal

from gemlens.evals.coco_map import Found, Truth
from gemlens.evals.score import Item
from gemlens.tasks.findings import Finding, parse

Rank = Literal["likelihood", "order"]

UNSEEN = (1024, 1024)  # stands in for the size of a picture that cannot be read; what is in it still is to be found
_LOC = "<loc"
_RUN = re.compile(r"<(?:loc[0-9]{4}|seg[0-9]{3})>(?:\s*<(?:loc[0-9]{4}|seg[0-9]{3})>)*")  # as parse sees them


def found_boxes(item: Item, by: Rank) -> list[Found]:
    """The boxes of an answer with their scores.

    Args:
        item: with its answer.
        by: "likelihood": the mean probability (geometric) of the box's four tokens, or, where the model spells them
            out in letters, of the answer's tokens. "order": all first boxes of answers come before all second ones.
    """
    findings = parse(item.answer, item.size or UNSEEN)
    if by == "order":
        return [Found(one.label, one.box, -float(place)) for place, one in enumerate(findings)]
    scores = _likelihoods(item)
    return [Found(one.label, one.box, score) for one, score in zip(findings, scores, strict=True)]


def true_boxes(item: Item) -> list[Truth]:
    """The boxes of the first reference."""
    return truths_of(parse(item.references[0], item.size or UNSEEN) if item.references else [])


def truths_of(findings: Iterable[Finding]) -> list[Truth]:
    """Findings as true boxes; the area is that of the mask where there is one."""
    return [Truth(one.label, one.box, None if one.mask is None else float(one.mask.sum())) for one in findings]


def _likelihoods(item: Item) -> list[float]:
    """A score for each finding that `parse` gives, in its order: a finding is a run of tokens."""
    runs = [run[0] for run in _RUN.finditer(item.answer)]
    places = list(item.locations)
    if item.answer.count(_LOC) != len(places):  # spelled out in letters, or an answer that nobody watched
        places = [item.likelihood / max(item.tokens, 1)] * item.answer.count(_LOC)
    found = []
    for run in runs:
        own, places = places[: run.count(_LOC)], places[run.count(_LOC) :]
        if parse(run, item.size or UNSEEN):
            found.append(exp(sum(own) / len(own)))
    return found
