"""One thing that a prompt names: how well its box and its mask fit. Used for RefCOCO, and for prompts to segment.

mean IoU of masks, mean IoU of boxes, share of boxes with an IoU of at least 0.5 and 0.75, number of invalid answers
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gemlens.evals.score import Score
from gemlens.tasks.findings import Finding

LEVELS = (0.5, 0.75)


@dataclass(frozen=True)
class Fit:
    """How well one answer fits.

    Args:
        box_ious: of each found box and the true one that it belongs to; 0 for each box without a partner.
        mask_iou: of all found masks and all true ones.
        has_box: whether a finding could be read, or there is nothing to find.
        has_mask: the same of a finding with a mask.
    """

    box_ious: tuple[float, ...]
    mask_iou: float
    has_box: bool
    has_mask: bool


def fit(found: Sequence[Finding], true: Sequence[Finding]) -> Fit:
    """Compares findings with the true ones of one picture, whatever their labels say.

    Boxes are put together in pairs, those of the largest overlap first. Several masks count as one. Where nothing is to
    be found and nothing was, all fits.
    """
    has_mask = any(one.mask is not None for one in found)
    return Fit(tuple(_box_ious(found, true)), _mask_iou(found, true), bool(found) or not true, has_mask or not true)


def referring(fits: Iterable[Fit], *, masks: bool) -> Score:
    """The means over many answers.

    Args:
        fits: of each answer.
        masks: whether masks are compared; the items' own numbers are IoUs of masks then, else of boxes.

    Returns:
        mask_iou (with masks), box_iou, box_accuracy_50, box_accuracy_75, invalid (the number of answers without a
        finding, or without a mask).

    Raises:
        InputError: no answers.
    """
    all_fits = list(fits)
    by_box = Score.mean("box_iou", [_mean(one.box_ious) for one in all_fits])
    values = dict(by_box.values)
    for level in LEVELS:
        reached = [_mean([iou >= level for iou in one.box_ious]) for one in all_fits]
        values[f"box_accuracy_{level * 100:.0f}"] = _mean(reached)
    values["invalid"] = float(sum(not (one.has_mask if masks else one.has_box) for one in all_fits))
    if not masks:
        return Score(values, by_box.items)
    by_mask = Score.mean("mask_iou", [one.mask_iou for one in all_fits])
    return Score({**by_mask.values, **values}, by_mask.items)


def _box_ious(said: Sequence[Finding], true: Sequence[Finding]) -> list[float]:
    """IoU of each pair, 0 for what has no partner; [1] where nothing is there and nothing was found."""
    ious = sorted(
        ((one.box.iou(other.box), row, column) for row, one in enumerate(said) for column, other in enumerate(true)),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    kept: list[float] = []
    rows, columns = set(range(len(said))), set(range(len(true)))
    for iou, row, column in ious:
        if row in rows and column in columns:
            kept.append(iou)
            rows.remove(row)
            columns.remove(column)
    return kept + [0.0] * (len(rows) + len(columns)) or [1.0]


def _mask_iou(said: Sequence[Finding], true: Sequence[Finding]) -> float:
    first, second = _union(said), _union(true)
    if first is None or second is None:
        return float(first is None and second is None and not said and not true)
    either = int((first | second).sum())
    return int((first & second).sum()) / either if either else 1.0


def _union(findings: Sequence[Finding]) -> "np.ndarray | None":
    masks = [one.mask for one in findings if one.mask is not None]
    return np.logical_or.reduce(masks) if masks else None


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
