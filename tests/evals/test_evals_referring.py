"""Boxes and masks of the one thing that a prompt names."""

import numpy as np
import pytest

from gemlens.errors import InputError
from gemlens.evals.metrics import metric_of
from gemlens.evals.referring import Fit, fit, referring
from gemlens.evals.score import Item
from gemlens.tasks.boxes import Box
from gemlens.tasks.findings import Finding

SIZE = (100, 80)
LEFT, RIGHT = Box(0, 0, 40, 40), Box(60, 0, 100, 40)


def thing(box: Box, *, mask: bool = True) -> Finding:
    """A box, all of it covered."""
    covered = np.zeros(SIZE[::-1], dtype=np.bool_)
    covered[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = True
    return Finding("thing", box, covered if mask else None)


def test_the_overlap_is_that_of_boxes_and_of_masks() -> None:
    half = fit([thing(Box(0, 0, 20, 40))], [thing(LEFT)])
    assert half == Fit((0.5,), 0.5, True, True)
    assert fit([thing(RIGHT)], [thing(LEFT)]) == Fit((0.0,), 0.0, True, True)


def test_a_mask_may_differ_where_the_box_does_not() -> None:
    ring = thing(LEFT)
    assert ring.mask is not None
    ring.mask[10:30, 10:30] = False
    assert fit([ring], [thing(LEFT)]) == Fit((1.0,), (1600 - 400) / 1600, True, True)


def test_labels_do_not_count() -> None:
    found = Finding("", LEFT, thing(LEFT).mask)
    assert fit([found], [thing(LEFT)]).mask_iou == 1


def test_boxes_without_a_partner_overlap_by_nothing() -> None:
    assert sorted(fit([thing(LEFT), thing(RIGHT)], [thing(LEFT)]).box_ious) == [0, 1]
    assert sorted(fit([thing(RIGHT)], [thing(LEFT), thing(RIGHT)]).box_ious) == [0, 1]
    assert fit([thing(RIGHT), thing(LEFT)], [thing(LEFT), thing(RIGHT)]).box_ious == (1, 1)


def test_masks_of_several_things_count_as_one() -> None:
    assert fit([thing(RIGHT), thing(LEFT)], [thing(LEFT), thing(RIGHT)]).mask_iou == 1
    assert fit([thing(LEFT)], [thing(LEFT), thing(RIGHT)]).mask_iou == 0.5


def test_answers_without_a_finding_or_a_mask_are_invalid_and_score_nothing() -> None:
    fits = [fit([], [thing(LEFT)]), fit([thing(LEFT, mask=False)], [thing(LEFT)]), fit([thing(LEFT)], [thing(LEFT)])]
    with_masks, boxes = referring(fits, masks=True), referring(fits, masks=False)
    assert (with_masks.values["invalid"], boxes.values["invalid"]) == (2, 1)
    assert with_masks.items == (0, 0, 1)
    assert boxes.items == (0, 1, 1)
    assert "mask_iou" not in boxes.values


def test_finding_nothing_where_nothing_is_fits() -> None:
    assert fit([], []) == Fit((1.0,), 1.0, True, True)
    assert fit([thing(LEFT)], []).mask_iou == 0


def test_accuracy_is_the_share_of_boxes_that_reach_the_level() -> None:
    widths = [19, 20, 21, 29, 30, 40]  # of 40: the overlaps are 0.475, 0.5, 0.525, 0.725, 0.75 and 1
    score = referring([fit([thing(Box(0, 0, width, 40))], [thing(LEFT)]) for width in widths], masks=True)
    assert score.values["box_accuracy_50"] == 5 / 6
    assert score.values["box_accuracy_75"] == 2 / 6
    assert score.values["box_iou"] == score.values["mask_iou"] == pytest.approx(sum(widths) / 40 / 6)
    assert next(iter(score.values)) == "mask_iou"


def test_no_answers_are_refused() -> None:
    with pytest.raises(InputError, match="There are no answers"):
        referring([], masks=False)


def test_what_could_not_be_asked_is_wrong_even_where_nothing_is() -> None:
    items = [Item(0, "a", "segment cat", "", ("",), SIZE), Item(1, "b", "segment cat", "", ("",), None, "no picture")]
    assert metric_of("box_iou")(items).items == (1, 0)
    assert metric_of("map")(items).items == (1, 0)
