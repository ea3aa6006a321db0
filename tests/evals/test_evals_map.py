"""COCO's twelve numbers, equal to those of pycocotools on random boxes with crowds, sizes, scores and ties."""

import contextlib
import io
import math
from collections.abc import Sequence

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gemlens.errors import InputError
from gemlens.evals.coco_map import Found, Truth, average_precision, map_50_of
from gemlens.evals.found import found_boxes, true_boxes
from gemlens.evals.score import Item
from gemlens.tasks.boxes import Box

LABELS = ["cat", "dog", "Dr. Pepper", "cow"]
NAMES = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large",
         "mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"]  # fmt: skip


def by_pycocotools(found: Sequence[Sequence[Found]], truths: Sequence[Sequence[Truth]]) -> list[float]:
    categories = {label: number for number, label in enumerate(sorted({t.label for row in truths for t in row}), 1)}

    def box(of: Box) -> list[float]:
        return [of.left, of.top, of.right - of.left, of.bottom - of.top]

    annotations, detections = [], []
    for image, (dets, gts) in enumerate(zip(found, truths, strict=True), start=1):
        for gt in gts:
            area = gt.box.area if gt.area is None else gt.area
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": categories[gt.label],
                                "bbox": box(gt.box), "area": area, "iscrowd": int(gt.crowd)})  # fmt: skip
        known = [det for det in dets if det.label in categories]
        detections += [{"image_id": image, "category_id": categories[det.label], "bbox": box(det.box),
                        "score": det.score} for det in known]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        images = [{"id": image} for image in range(1, len(found) + 1)]
        named = [{"id": number, "name": label} for label, number in categories.items()]
        truth.dataset = {"images": images, "annotations": annotations, "categories": named}
        truth.createIndex()
        scored = COCOeval(truth, truth.loadRes(detections) if detections else COCO(), "bbox")
        if not detections:
            scored.cocoDt.dataset = {**truth.dataset, "annotations": []}
            scored.cocoDt.createIndex()
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return list(scored.stats)


def random_pictures(seed: int, pictures: int = 12) -> tuple[list[list[Found]], list[list[Truth]]]:
    """Boxes of all sizes; found ones lie beside true ones or anywhere; few different scores, so many ties."""
    numbers = np.random.default_rng(seed)

    def random_box() -> Box:
        side = numbers.choice([12.0, 31.0, 32.0, 60.0, 96.0, 200.0], 2) + numbers.integers(0, 3)
        left, top = numbers.integers(0, 200, 2)
        return Box(float(left), float(top), float(left + side[0]), float(top + side[1]))

    def moved(box: Box) -> Box:
        by = numbers.integers(-6, 7, 4).astype(float)
        return Box(box.left + by[0], box.top + by[1], box.right + abs(by[2]), box.bottom + abs(by[3]))

    found, truths = [], []
    for _ in range(pictures):
        true = [Truth(str(numbers.choice(LABELS[:3])), random_box(), None, bool(numbers.random() < 0.15))
                for _ in range(numbers.integers(0, 7))]  # fmt: skip
        true = [
            Truth(each.label, each.box, float(each.box.area * numbers.choice([0.4, 1.0])), each.crowd) for each in true
        ]
        true += [Truth(each.label, each.box, each.area, not each.crowd) for each in true[:1]]  # two of the same overlap
        boxes = [moved(each.box) for each in true for _ in range(numbers.integers(0, 4))]
        boxes += [true[0].box] * 2 if true else []
        boxes += [random_box() for _ in range(numbers.integers(0, 4))]
        said = [
            Found(str(numbers.choice(LABELS)), each, float(numbers.choice([0.25, 0.5, 0.5, 0.75, 0.9])))
            for each in boxes
        ]
        known = [Found(each.label, moved(each.box), float(numbers.choice([0.5, 0.75]))) for each in true]
        found.append([*said, *known])
        truths.append(true)
    return found, truths


@pytest.mark.parametrize("seed", range(12))
def test_all_twelve_numbers_are_those_of_pycocotools(seed: int) -> None:
    found, truths = random_pictures(seed)
    score = average_precision(found, truths)
    assert list(score.values) == NAMES
    assert list(score.values.values()) == pytest.approx(by_pycocotools(found, truths), abs=1e-6)


def test_more_than_a_hundred_boxes_of_a_label_are_cut_as_there() -> None:
    numbers = np.random.default_rng(0)
    boxes = [Box(float(x), float(y), float(x) + 40, float(y) + 40) for x, y in numbers.integers(0, 400, (150, 2))]
    found = [[Found("cat", box, float(score)) for box, score in zip(boxes, numbers.integers(0, 20, 150), strict=True)]]
    truths = [[Truth("cat", box) for box in boxes[::5]]]
    ours = average_precision(found, truths).values
    assert list(ours.values()) == pytest.approx(by_pycocotools(found, truths), abs=1e-6)
    assert 0 < ours["mar_10"] < ours["mar_100"] < 1


def test_pictures_where_nothing_was_found_count_as_there() -> None:
    truths = [[Truth("cat", Box(0, 0, 50, 50))], [], [Truth("dog", Box(0, 0, 20, 20), crowd=True)]]
    assert list(average_precision([[], [], []], truths).values.values()) == by_pycocotools([[], [], []], truths)


def test_perfect_boxes_score_one_and_what_does_not_exist_minus_one() -> None:
    truths = [[Truth("cat", Box(0, 0, 50, 50)), Truth("dog", Box(10, 10, 60, 70))]]
    found = [[Found(each.label, each.box, 0.5) for each in truths[0]]]
    score = average_precision(found, truths)
    assert [score.values[name] for name in ("map", "map_50", "map_medium", "mar_100")] == pytest.approx([1] * 4)
    assert score.values["map_small"] == score.values["map_large"] == -1


def test_the_order_by_score_decides() -> None:
    truths = [[Truth("cat", Box(0, 0, 50, 50))]]
    right, wrong = Box(0, 0, 50, 50), Box(100, 100, 150, 150)
    sure, unsure = (
        average_precision([[Found("cat", right, score), Found("cat", wrong, 0.5)]], truths).values["map"]
        for score in (0.9, 0.1)
    )
    assert sure == pytest.approx(1)
    assert unsure == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(3))
def test_map_50_of_drawn_pictures_is_that_of_so_many_copies(seed: int) -> None:
    found, truths = random_pictures(seed)
    numbers = np.random.default_rng(seed)
    found = [[Found(one.label, one.box, float(numbers.random())) for one in boxes] for boxes in found]  # no ties
    drawn = map_50_of(found, truths)
    for rows in (np.arange(len(found)), numbers.integers(0, len(found), 12), np.array([3, 3])):
        copies = [found[row] for row in rows], [truths[row] for row in rows]
        assert drawn(rows) == pytest.approx(average_precision(*copies).values["map_50"], abs=1e-9)


def test_items_have_the_f1_of_their_boxes() -> None:
    box, far = Box(0, 0, 50, 50), Box(100, 100, 150, 150)
    truths = [[Truth("cat", box)], [Truth("cat", box), Truth("dog", far)], [], [], [Truth("cat", box)]]
    found = [
        [Found("cat", box, 1.0)],
        [Found("cat", box, 1.0)],
        [],
        [Found("cow", box, 1.0)],
        [Found("cat", box, 1.0), Found("cat", box, 0.5)],
    ]
    assert average_precision(found, truths).items == pytest.approx((1, 2 / 3, 1, 0, 2 / 3))


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="not a number"):
        average_precision([[Found("cat", Box(0, 0, 1, 1), math.nan)]], [[]])


# -- answers -> boxes --------------------------------------------------------------------------------------------------

CAT, DOG = "<loc0000><loc0000><loc0511><loc0511> cat", "<loc0100><loc0100><loc0900><loc0900> dog"


def test_boxes_are_scored_by_the_probability_of_their_four_tokens() -> None:
    sure, unsure = math.log(0.9), math.log(0.2)
    item = Item(0, "x", answer=f"{CAT} ; {DOG}", size=(100, 50), locations=(sure,) * 4 + (unsure,) * 3 + (sure,))
    first, second = found_boxes(item, "likelihood")
    assert (first.label, second.label) == ("cat", "dog")
    assert first.score == pytest.approx(0.9)
    assert second.score == pytest.approx((0.2**3 * 0.9) ** 0.25)


def test_tokens_of_what_is_no_box_are_not_counted_to_the_next() -> None:
    half, sure = math.log(0.5), math.log(0.9)
    broken = "<loc0500><loc0500> x <loc0900><loc0900><loc0100><loc0100> upside down ; "
    item = Item(0, "x", answer=broken + CAT, size=(100, 50), locations=(half,) * 6 + (sure,) * 4)
    (only,) = found_boxes(item, "likelihood")
    assert (only.label, only.score) == ("cat", pytest.approx(0.9))


def test_boxes_that_are_spelled_out_have_the_probability_of_the_answer() -> None:
    item = Item(0, "x", answer=f"{CAT} ; {DOG}", size=(100, 50), tokens=4, likelihood=4 * math.log(0.3))
    assert [one.score for one in found_boxes(item, "likelihood")] == pytest.approx([0.3, 0.3])


def test_by_order_the_first_boxes_of_all_answers_come_first() -> None:
    scores = [one.score for one in found_boxes(Item(0, "x", answer=f"{CAT} ; {DOG}", size=(100, 50)), "order")]
    assert scores[0] > scores[1]


def test_true_boxes_are_those_of_the_first_reference_in_pixels() -> None:
    item = Item(0, "x", references=(CAT, DOG), size=(1023, 2046))
    assert true_boxes(item) == [Truth("cat", Box(0, 0, 511, 1022))]
    assert true_boxes(Item(0, "x")) == []
