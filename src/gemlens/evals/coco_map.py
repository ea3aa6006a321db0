"""COCO mAP: found boxes against true ones, the twelve numbers of COCO's detection challenge.

    boxes of a picture -> by label -> _match (per area range) -> matches of all pictures, by score -> precision, recall

The rules are those of pycocotools, which the tests compare with; cocodataset.org/#detection-eval says what they mean.
Labels that no picture truly has do not count, as in COCO.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gemlens.errors import InputError
from gemlens.evals.score import Score, check_pairs
from gemlens.tasks.boxes import Box

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # square pixels
MOST = (1, 10, 100)  # found boxes of one label in one picture that are looked at
_AT_HALF = 0  # the place of 0.5 in THRESHOLDS


@dataclass(frozen=True)
class Found:
    """A box that was found; the score says how sure the model is of it, in any unit."""

    label: str
    box: Box
    score: float


@dataclass(frozen=True)
class Truth:
    """A box that is there.

    Args:
        label: what it is.
        box: around it.
        area: in square pixels, that of the mask in COCO; None: of the box.
        crowd: many things in one box: any number of found boxes inside it neither count as right nor as wrong.
    """

    label: str
    box: Box
    area: float | None = None
    crowd: bool = False


def average_precision(found: Sequence[Sequence[Found]], truths: Sequence[Sequence[Truth]]) -> Score:
    """Mean average precision of pictures; each item's own number is the F1 of its boxes at IoU 0.5.

    Returns:
        map (IoU 0.5 to 0.95), map_50, map_75, map_small, map_medium, map_large; mar_1, mar_10, mar_100 (recall with so
        many boxes), mar_small, mar_medium, mar_large. -1 where there is nothing of that kind to find, as in COCO.

    Raises:
        InputError: found boxes came for another number of pictures than true ones, or a score is not a number.
    """
    _check(found, truths)
    labels = sorted({truth.label for boxes in truths for truth in boxes})
    precision = np.full((len(labels), len(AREAS), len(MOST), len(THRESHOLDS), len(RECALLS)), -1.0)
    recall = np.full((len(labels), len(AREAS), len(MOST), len(THRESHOLDS)), -1.0)
    for place, label in enumerate(labels):
        pictures = [_Picture.of(label, *pair) for pair in zip(found, truths, strict=True)]
        for area, limits in enumerate(AREAS.values()):
            matches = [_match(picture, limits) for picture in pictures if picture]
            for most, limit in enumerate(MOST):
                curves = _curves(matches, limit)
                if curves is not None:
                    precision[place, area, most], recall[place, area, most] = curves
    items = tuple(_f1(*pair) for pair in zip(found, truths, strict=True))
    return Score(_twelve(precision, recall), items)


def _check(found: Sequence[Sequence[Found]], truths: Sequence[Sequence[Truth]]) -> None:
    check_pairs(found, truths)
    if any(np.isnan(one.score) for boxes in found for one in boxes):
        raise InputError("A score of a found box is not a number, so the boxes have no order; the model may be broken.")


def _twelve(precision: Floats, recall: Floats) -> dict[str, float]:
    """[labels, areas, MOST, thresholds(, recalls)] -> means over what there is."""
    half, three_quarters = _AT_HALF, 5
    whole = precision[:, :, -1]  # with 100 boxes
    return {
        "map": _mean(whole[:, 0]),
        "map_50": _mean(whole[:, 0, half]),
        "map_75": _mean(whole[:, 0, three_quarters]),
        **{f"map_{name}": _mean(whole[:, area]) for area, name in enumerate(AREAS) if area},
        **{f"mar_{limit}": _mean(recall[:, 0, most]) for most, limit in enumerate(MOST)},
        **{f"mar_{name}": _mean(recall[:, area, -1]) for area, name in enumerate(AREAS) if area},
    }


def _mean(values: Floats) -> float:
    there = values[values > -1]
    return float(there.mean()) if there.size else -1.0


@dataclass(frozen=True)
class _Picture:
    """Boxes of one label in one picture, found ones by falling score.

    Args:
        ious: [found, true].
        scores: [found].
        found_areas: [found].
        areas: [true].
        crowd: [true].
    """

    ious: Floats
    scores: Floats
    found_areas: Floats
    areas: Floats
    crowd: Bools

    @classmethod
    def of(cls, label: str, found: Sequence[Found], truths: Sequence[Truth]) -> "_Picture | None":
        """None where neither is any."""
        true = [truth for truth in truths if truth.label == label]
        seen = sorted((one for one in found if one.label == label), key=lambda one: -one.score)[: MOST[-1]]
        if not true and not seen:
            return None
        crowd = np.array([truth.crowd for truth in true], dtype=np.bool_)
        return cls(
            ious=overlaps(_corners([one.box for one in seen]), _corners([truth.box for truth in true]), crowd),
            scores=np.array([one.score for one in seen], dtype=np.float64),
            found_areas=np.array([one.box.area for one in seen], dtype=np.float64),
            areas=np.array([truth.box.area if truth.area is None else truth.area for truth in true], dtype=np.float64),
            crowd=crowd,
        )


def _corners(boxes: Sequence[Box]) -> Floats:
    corners = [(box.left, box.top, box.right, box.bottom) for box in boxes]
    return np.array(corners, dtype=np.float64).reshape(-1, 4)


def overlaps(found: Floats, true: Floats, crowd: Bools) -> Floats:
    """Intersection over union of boxes [F, 4] and [T, 4], over the found box's area for crowds [T]: [F, T]."""
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, 2:], true[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    first, second = ((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (found, true))
    whole = np.where(crowd[None, :], first[:, None], first[:, None] + second[None, :] - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=shared > 0)


@dataclass(frozen=True)
class _Matches:
    """What became of the found boxes of one label in one picture, by falling score.

    Args:
        scores: [found].
        right: [thresholds, found], whether it has a true box.
        ignored: [thresholds, found], whether it counts neither as right nor as wrong.
        to_find: how many true boxes count.
    """

    scores: Floats
    right: Bools
    ignored: Bools
    to_find: int


def _match(picture: _Picture, limits: tuple[float, float]) -> _Matches:
    """Each found box takes the free true box that it overlaps most; boxes of other sizes and crowds are ignored."""
    low, high = limits
    not_counted = picture.crowd | (picture.areas < low) | (picture.areas > high)
    order = np.argsort(not_counted, kind="stable")  # those that count first
    ious, not_counted, crowd = picture.ious[:, order], not_counted[order], picture.crowd[order]
    right = np.zeros((len(THRESHOLDS), len(picture.scores)), dtype=np.bool_)
    ignored = np.zeros_like(right)
    for row, threshold in enumerate(THRESHOLDS):
        taken = np.zeros(len(order), dtype=np.bool_)
        for column, overlap in enumerate(ious):
            true = _best(overlap, threshold, ~taken | crowd, not_counted)
            if true is not None:
                taken[true], right[row, column], ignored[row, column] = True, True, not_counted[true]
    of_other_size = (picture.found_areas < low) | (picture.found_areas > high)
    return _Matches(picture.scores, right, ignored | (~right & of_other_size), int((~not_counted).sum()))


def _best(overlap: Floats, threshold: float, free: Bools, not_counted: Bools) -> int | None:
    """The true box of the largest overlap that is free and reaches the threshold: one that counts, if any does.

    Of equal ones the last, as pycocotools has it.
    """
    reaches = free & (overlap >= min(threshold, 1 - 1e-10))
    for candidates in (reaches & ~not_counted, reaches & not_counted):
        if candidates.any():
            masked = np.where(candidates, overlap, -1.0)
            return len(masked) - 1 - int(masked[::-1].argmax())
    return None


def _curves(matches: Sequence[_Matches], most: int) -> tuple[Floats, Floats] | None:
    """Precision at RECALLS [thresholds, recalls] and the recall in the end [thresholds]; None: nothing to find."""
    to_find = sum(one.to_find for one in matches)
    if not to_find:
        return None
    order = np.argsort(-np.concatenate([one.scores[:most] for one in matches]), kind="stable")
    right = np.concatenate([one.right[:, :most] for one in matches], axis=1)[:, order]
    counted = ~np.concatenate([one.ignored[:, :most] for one in matches], axis=1)[:, order]
    curves = [_curve(*rows, to_find) for rows in zip(right & counted, ~right & counted, strict=True)]
    precision, recall = zip(*curves, strict=True)
    return np.stack(precision), np.array(recall)


def _curve(hits: npt.NDArray[Any], misses: npt.NDArray[Any], to_find: int) -> tuple[Floats, float]:
    """Precision at RECALLS and the recall in the end, of boxes by falling score: 1 for what each one is, else 0."""
    right, wrong = hits.cumsum(dtype=np.float64), misses.cumsum(dtype=np.float64)
    recall, precision = right / to_find, right / (right + wrong + np.spacing(1))
    falling = np.maximum.accumulate(precision[::-1])[::-1]  # the best at this recall or a larger one
    at_recalls = np.append(falling, 0.0)[np.searchsorted(recall, RECALLS)]  # 0 where a recall is not reached
    return at_recalls, float(recall[-1]) if recall.size else 0.0


def map_50_of(found: Sequence[Sequence[Found]], truths: Sequence[Sequence[Truth]]) -> Callable[[Integers], float]:
    """map_50 of any of these pictures, some more than once, for intervals: boxes are matched once for all.

    Returns:
        numbers of pictures, int64 [n] -> their map_50.

    Raises:
        InputError: as `average_precision`.
    """
    _check(found, truths)
    labels = []
    for label in sorted({truth.label for boxes in truths for truth in boxes}):
        pictures = [_Picture.of(label, *pair) for pair in zip(found, truths, strict=True)]
        matches = [(place, _match(picture, AREAS["all"])) for place, picture in enumerate(pictures) if picture]
        order = np.argsort(-np.concatenate([one.scores for _, one in matches]), kind="stable")
        right = np.concatenate([one.right[_AT_HALF] for _, one in matches])[order]
        counted = ~np.concatenate([one.ignored[_AT_HALF] for _, one in matches])[order]
        owners = np.concatenate([np.full(len(one.scores), place) for place, one in matches])[order]
        to_find = np.bincount([place for place, _ in matches], [one.to_find for _, one in matches], len(found))
        labels.append((right & counted, ~right & counted, owners, to_find))

    def of_rows(rows: Integers) -> float:
        drawn = np.bincount(rows, minlength=len(found))
        means = []
        for hits, misses, owners, to_find in labels:
            if number := int(drawn @ to_find):
                means.append(_curve(hits * drawn[owners], misses * drawn[owners], number)[0].mean())
        return float(np.mean(means)) if means else -1.0

    return of_rows


def _f1(found: Sequence[Found], truths: Sequence[Truth]) -> float:
    """Of one picture at IoU 0.5, all labels together; 1 where nothing is there and nothing was found."""
    matches = [_match(picture, AREAS["all"]) for picture in _by_label(found, truths)]
    right = sum(int((one.right & ~one.ignored)[_AT_HALF].sum()) for one in matches)
    said = sum(int((~one.ignored)[_AT_HALF].sum()) for one in matches)
    there = sum(one.to_find for one in matches)
    return 2 * right / (said + there) if said + there else 1.0


def _by_label(found: Sequence[Found], truths: Sequence[Truth]) -> Iterator[_Picture]:
    for label in dict.fromkeys([*(one.label for one in found), *(truth.label for truth in truths)]):
        if picture := _Picture.of(label, found, truths):
            yield picture
