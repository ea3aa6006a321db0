"""COCO JSON -> examples that detect, segment or caption.

detect     one per picture: "detect cat ; dog" -> "<loc...> cat ; <loc...> cat", from boxes
segment    one per picture and category: "segment cat" -> "<loc...><seg...> cat", from polygons or run lengths
caption    one per annotation that has a caption

Crowds are left out. Findings stand in the order of the prompt's labels, then from top to bottom and from left to
right: a rule that a model can learn. The file is held in memory.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gemlens.data.example import Example
from gemlens.data.picture_folder import PictureFolder
from gemlens.data.polygons import fill
from gemlens.data.where import Where, shown
from gemlens.errors import InputError
from gemlens.processing.pictures.picture_files import PictureLimits
from gemlens.tasks import findings, prompts, rle
from gemlens.tasks.boxes import Box
from gemlens.tasks.masks import Codec

Task = Literal["detect", "segment", "caption"]
TASKS: tuple[Task, ...] = ("detect", "segment", "caption")
_FURTHEST = 1e6  # pixels; a corner further away is damage


@dataclass(frozen=True)
class CocoSettings:
    """What is made of a COCO file.

    Args:
        tasks: of "detect", "segment" and "caption"; empty: "caption" where annotations have captions, else "detect".
        labels: "all": a prompt to detect names every category, so that absent ones are learned too; "present": only
            those in the picture, and pictures without any are left out.
        prompt: of captions.
        codec: writes masks; needed to segment.

    Raises:
        InputError: an unknown value, or no codec to segment with.
    """

    tasks: tuple[str, ...] = ()
    labels: str = "all"
    prompt: str = "caption en"
    codec: Codec | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.tasks) - set(TASKS):
            raise InputError(f"There is no task {shown(min(unknown))} for COCO data; there are {', '.join(TASKS)}.")
        if self.labels not in ("all", "present"):
            raise InputError(f"labels is {shown(self.labels)}, but it must be 'all' or 'present'.")
        if "segment" in self.tasks and self.codec is None:
            raise InputError("To make masks of COCO data for 'segment' takes a codec; pass codec='vae-oid.npz'.")


@dataclass(frozen=True)
class _Item:
    """One example: a picture, what to do, and the annotations that answer."""

    task: str
    image: int
    annotations: tuple[int, ...]
    labels: tuple[str, ...] = ()


class Coco:
    """A source of the pictures of a COCO file.

    Args:
        path: of the file, for sentences.
        content: of the file.
        folder: where its pictures are.
        settings: what is made of it.

    Raises:
        InputError: the file's lists do not fit each other. When called: an annotation has no box or mask that could be
            written.
    """

    def __init__(self, path: Path, content: Any, folder: PictureFolder, settings: CocoSettings) -> None:
        self._path, self._folder, self._settings = path, folder, settings
        where = self._where("")
        self._images = _by_id(content, "images", where)
        self._annotations = _by_id(content, "annotations", where)
        self._names = self._category_names(_by_id(content, "categories", where) if "categories" in content else {})
        captions = any("caption" in each for each in self._annotations.values())
        tasks = settings.tasks or ("caption" if captions else "detect",)
        grouped = self._grouped()
        self._items = [
            item for image in grouped for task in tasks for item in self._items_of(task, image, grouped[image])
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int, /) -> Example:
        item = self._items[index]
        where = self._where(f"image {item.image}")
        picture = self._folder.picture(self._images[item.image].get("file_name"), where)
        if item.task == "caption":
            (number,) = item.annotations
            where = self._where(f"annotation {number}")
            prompt, suffix = self._settings.prompt, where.text(self._annotations[number].get("caption"), "'caption'")
        else:
            prompt, suffix = self._found(item, where)
        name = f"{where.id} {prompt}" if item.task == "segment" else where.id
        return Example(name, (picture,), prompt, suffix)

    def _found(self, item: _Item, where: Where) -> tuple[str, str]:
        """Prompt and answer of what is to be found."""
        size = _size(self._images[item.image], where)
        found = [self._finding(number, size, item.task) for number in item.annotations]
        place = {label: number for number, label in enumerate(item.labels)}
        found.sort(key=lambda each: (place[each.label], each.box.top, each.box.left))
        ask = prompts.detect if item.task == "detect" else prompts.segment
        try:
            return ask(*item.labels), findings.write(found, size, self._settings.codec)
        except InputError as error:
            where.refuse(str(error))

    # -- which examples there are --------------------------------------------------------------------------------------

    def _category_names(self, categories: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
        """{id: name}. Roboflow writes the name of the whole data as a category too, which nothing is."""
        numbers = (annotation.get("category_id") for annotation in self._annotations.values())
        used = {number for number in numbers if type(number) is int}
        groups = [each.get("supercategory") for each in categories.values()]
        names = {}
        for number, category in categories.items():
            name = self._where(f"category {number}").text(category.get("name"), "its name")
            if number in used or name not in groups:
                names[number] = name
        return names

    def _grouped(self) -> dict[int, list[int]]:
        """Numbers of the annotations of each picture, without crowds."""
        grouped: dict[int, list[int]] = {image: [] for image in self._images}
        for number, annotation in self._annotations.items():
            image = annotation.get("image_id")
            if type(image) is not int or image not in grouped:
                where = self._where(f"annotation {number}")
                where.refuse(f"'image_id' is {shown(image)}, which is none of the pictures.")
            if not annotation.get("iscrowd"):
                grouped[image].append(number)
        return grouped

    def _items_of(self, task: str, image: int, numbers: Sequence[int]) -> list[_Item]:
        if task == "caption":
            return [_Item(task, image, (number,)) for number in numbers]
        by_label = defaultdict[str, list[int]](list)
        for number in numbers:
            by_label[self._label(number)].append(number)
        present = [label for label in dict.fromkeys(self._names.values()) if label in by_label]
        if task == "segment":
            return [_Item(task, image, tuple(by_label[label]), (label,)) for label in present]
        labels = tuple(dict.fromkeys(self._names.values())) if self._settings.labels == "all" else tuple(present)
        return [_Item(task, image, tuple(numbers), labels)] if labels else []

    def _label(self, number: int) -> str:
        category = self._annotations[number].get("category_id")
        if type(category) is not int or category not in self._names:
            where = self._where(f"annotation {number}")
            where.refuse(f"'category_id' is {shown(category)}, which is none of the categories.")
        return self._names[category]

    # -- one annotation ------------------------------------------------------------------------------------------------

    def _finding(self, number: int, size: tuple[int, int], task: str) -> findings.Finding:
        annotation, where = self._annotations[number], self._where(f"annotation {number}")
        left, top, width, height = _numbers(annotation.get("bbox"), "'bbox'", where, 4)
        box = Box(left, top, left + width, top + height)
        if not box.clipped(size).area > 0:
            where.refuse(f"the box of {width:g} x {height:g} pixels at ({left:g}, {top:g}) is not in the picture.")
        mask = _mask(annotation.get("segmentation"), size, where) if task == "segment" else None
        return findings.Finding(self._label(number), box, mask)

    def _where(self, row: str) -> Where:
        return Where(str(self._path), row)


def is_coco(content: Any) -> bool:
    """Whether a JSON value looks like a COCO file."""
    return isinstance(content, Mapping) and "images" in content and "annotations" in content


def _by_id(content: Mapping[str, Any], name: str, where: Where) -> dict[int, Mapping[str, Any]]:
    """{id: object} of one of the lists, in the file's order."""
    rows = content.get(name)
    if not isinstance(rows, list):
        where.refuse(f"'{name}' is {shown(rows)}, but it must be a list.")
    found: dict[int, Mapping[str, Any]] = {}
    for place, row in enumerate(rows, 1):
        number = row.get("id") if isinstance(row, Mapping) else None
        if type(number) is not int or number in found:
            where.refuse(f"entry {place} of '{name}' has no 'id' of its own; it must be a whole number.")
        found[number] = row
    return found


def _size(image: Mapping[str, Any], where: Where) -> tuple[int, int]:
    """(width, height) of a picture, as the file says."""
    width, height = _numbers([image.get("width"), image.get("height")], "the picture's width and height", where, 2)
    try:
        PictureLimits().check_size(math.floor(width), math.floor(height), "the picture")
    except InputError as error:
        where.refuse(str(error))
    return math.floor(width), math.floor(height)


def _mask(segmentation: Any, size: tuple[int, int], where: Where) -> np.ndarray:
    """The mask that polygons or run lengths describe: bool [height, width]."""
    if isinstance(segmentation, Mapping):
        if segmentation.get("size") != [size[1], size[0]]:
            where.refuse(
                f"the mask's size is {shown(segmentation.get('size'))}, but the picture's {[size[1], size[0]]}."
            )
        try:
            return rle.decode(segmentation)
        except InputError as error:
            where.refuse(str(error))
    if not isinstance(segmentation, list) or not segmentation:
        where.refuse(f"'segmentation' is {shown(segmentation)}, but it must be polygons or run lengths.")
    corners = [_numbers(polygon, "a polygon", where) for polygon in segmentation]
    if any(len(each) < 6 or len(each) % 2 for each in corners):
        where.refuse("a polygon is no list of x, y, x, y ... of at least three corners.")
    return fill([list(zip(each[::2], each[1::2], strict=True)) for each in corners], size)


def _numbers(value: Any, name: str, where: Where, count: int | None = None) -> list[float]:
    """Numbers within reason."""
    right = isinstance(value, list) and (count is None or len(value) == count)
    if not right or not all(type(each) in (int, float) and abs(each) <= _FURTHEST for each in value):
        where.refuse(f"{name} is {shown(value)}, but it must be {count or 'a list of'} numbers up to {_FURTHEST:,.0f}.")
    return [float(each) for each in value]
