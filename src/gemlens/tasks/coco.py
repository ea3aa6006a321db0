"""Findings -> COCO JSON, which annotation tools and pycocotools read.

{"images": [{"id", "file_name", "width", "height"}], "annotations": [{"bbox": [x, y, w, h], "segmentation", ...}],
 "categories": [{"id", "name"}]}
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gemlens.errors import InputError
from gemlens.tasks import rle
from gemlens.tasks.boxes import checked_size
from gemlens.tasks.findings import Finding


@dataclass(frozen=True)
class FoundIn:
    """What was found in one picture.

    Args:
        file_name: of the picture.
        size: its (width, height).
        findings: in it.
    """

    file_name: str
    size: tuple[int, int]
    findings: Sequence[Finding]


def to_coco(pictures: Iterable[FoundIn], labels: Sequence[str] | None = None) -> dict[str, Any]:
    """Everything that was found, ready for `json.dump`.

    All numbers (`id`) count from 1, since pycocotools takes an annotation 0 for none. `area` is that of the mask, or of
    the box where there is no mask; such annotations have no `segmentation`. `score` is there where a finding has one.

    Args:
        pictures: in the order in which they are numbered.
        labels: the categories in their order; None: the labels as they come up.

    Raises:
        InputError: a label that is not among `labels`, or a mask of another size than its picture.
    """
    numbers = {label: number for number, label in enumerate(labels or (), 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for picture in pictures:
        width, height = checked_size(picture.size)
        images.append({"id": len(images) + 1, "file_name": picture.file_name, "width": width, "height": height})
        for finding in picture.findings:
            if labels is None:
                numbers.setdefault(finding.label, len(numbers) + 1)
            elif finding.label not in numbers:
                raise InputError(f"{picture.file_name} has {finding.label!r}, which is none of the labels passed.")
            named = {"id": len(annotations) + 1, "image_id": len(images), "category_id": numbers[finding.label]}
            annotations.append(named | _annotation(finding, picture))
    categories = [{"id": number, "name": label} for label, number in numbers.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(finding: Finding, picture: FoundIn) -> dict[str, Any]:
    box, mask = finding.box, finding.mask
    annotation: dict[str, Any] = {
        "bbox": [box.left, box.top, box.width, box.height],
        "area": box.area if mask is None else int(mask.sum()),
        "iscrowd": 0,
    }
    if mask is not None:
        if mask.shape != picture.size[::-1]:
            shapes = f"{list(mask.shape)}, but the picture is {list(picture.size[::-1])}"
            raise InputError(f"A mask in {picture.file_name} is [height, width] {shapes}.")
        annotation["segmentation"] = rle.encode(mask)
    if finding.score is not None:
        annotation["score"] = finding.score
    return annotation
