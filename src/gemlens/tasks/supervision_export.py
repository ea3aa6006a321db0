"""Findings -> `supervision.Detections`, for the annotators, trackers and zones of that library."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gemlens.errors import InputError
from gemlens.tasks.findings import Finding

if TYPE_CHECKING:
    import supervision


def to_supervision(findings: Sequence[Finding], labels: Sequence[str] | None = None) -> "supervision.Detections":
    """The findings as supervision holds them: xyxy, class_id, class names, masks and scores.

    supervision wants masks or scores of all findings or of none: where only some have them, a mask is empty and a score
    is 1.

    Args:
        findings: in their order.
        labels: `class_id` is the place in them; None: the labels as they come up.

    Raises:
        InputError: supervision is not installed, or a label is not among `labels`.
    """
    try:
        import supervision
    except ImportError as error:
        raise InputError("to_supervision needs the package supervision; run 'pip install supervision'.") from error
    names = [finding.label for finding in findings]
    places = {label: place for place, label in enumerate(dict.fromkeys(names) if labels is None else labels)}
    if unknown := set(names) - places.keys():
        raise InputError(f"{min(unknown)!r} was found, which is none of the labels passed.")
    if not findings:
        return supervision.Detections.empty()
    boxes = [(box.left, box.top, box.right, box.bottom) for box in (finding.box for finding in findings)]
    return supervision.Detections(
        xyxy=np.array(boxes, dtype=np.float32),
        mask=_masks(findings),
        confidence=_scores(findings),
        class_id=np.array([places[name] for name in names]),
        data={"class_name": np.array(names)},
    )


def _masks(findings: Sequence[Finding]) -> np.ndarray | None:
    """Bool [N, height, width]."""
    there = [finding.mask for finding in findings if finding.mask is not None]
    if not there:
        return None
    return np.stack([np.zeros_like(there[0]) if finding.mask is None else finding.mask for finding in findings])


def _scores(findings: Sequence[Finding]) -> np.ndarray | None:
    """Floats [N]."""
    scores = [finding.score for finding in findings]
    if all(score is None for score in scores):
        return None
    return np.array([1.0 if score is None else score for score in scores], dtype=np.float32)
