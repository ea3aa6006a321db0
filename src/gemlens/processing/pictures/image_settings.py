"""What image processors are told: documented arguments in, one checked value per call out.

    defaults of the class <- what is stored (constructor, preprocessor_config.json) <- arguments of the call

None means "not given" everywhere, as in the reference.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from PIL import Image

from gemlens.errors import InputError
from gemlens.processing.pictures.pan_and_scan import Box, crop_boxes

Size = dict[str, int]

_RESAMPLING = {int(each): each.name for each in Image.Resampling}
_SIZES: tuple[frozenset[str], ...] = (
    frozenset({"height", "width"}),
    frozenset({"shortest_edge"}),
    frozenset({"shortest_edge", "longest_edge"}),
    frozenset({"max_height", "max_width"}),
)


class SharedArguments(TypedDict, total=False):
    """What all image processors can be told, at construction and in a call."""

    do_resize: bool | None
    size: Size | int | Sequence[int] | None
    resample: int | None
    do_rescale: bool | None
    rescale_factor: float | None
    do_normalize: bool | None
    image_mean: float | Sequence[float] | None
    image_std: float | Sequence[float] | None
    do_convert_rgb: bool | None


class FastArguments(SharedArguments, total=False):
    """What fast image processors can be told besides."""

    default_to_square: bool | None
    do_center_crop: bool | None
    crop_size: Size | int | Sequence[int] | None
    return_tensors: str | None
    data_format: str | None
    input_data_format: str | None
    device: Any
    disable_grouping: bool | None


class PanAndScanArguments(TypedDict, total=False):
    """What the image processors of Gemma 3 can be told besides."""

    do_pan_and_scan: bool | None
    pan_and_scan_min_crop_size: int | None
    pan_and_scan_max_num_crops: int | None
    pan_and_scan_min_ratio_to_activate: float | None


class Gemma3FastArguments(FastArguments, PanAndScanArguments, total=False):
    """All of them."""


@dataclass(frozen=True)
class PanAndScan:
    """The three numbers of `crop_boxes`."""

    min_crop_size: int
    max_num_crops: int
    min_ratio_to_activate: float

    @classmethod
    def of(cls, min_crop_size: int | None, max_num_crops: int | None, min_ratio: float | None) -> "PanAndScan":
        """The numbers given; where there is none, what the reference's processor passes: 256, 4 and 1.2."""
        return cls(
            256 if min_crop_size is None else min_crop_size,
            4 if max_num_crops is None else max_num_crops,
            1.2 if min_ratio is None else min_ratio,
        )

    def boxes(self, width: int, height: int) -> list[Box]:
        """The crops of a picture of this size."""
        return crop_boxes(width, height, self.min_crop_size, self.max_num_crops, self.min_ratio_to_activate)


@dataclass(frozen=True)
class ImageSettings:
    """One call's settings, checked; a step that is off is None.

    Args:
        size: keys as `target_size` takes them; None: pictures keep their size.
        resample: a filter of Pillow, by its number.
        crop_size: of the centre that is cut out after resizing; None: nothing is.
        rescale_factor: what pixels are multiplied with; None: nothing.
        mean: per channel, or one for all; None: no normalisation.
        std: as `mean`.
        convert_rgb: whether everything becomes RGB first.
        pan_and_scan: how long pictures are cut; None: not.
    """

    size: Size | None
    resample: int
    crop_size: Size | None
    rescale_factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    convert_rgb: bool
    pan_and_scan: PanAndScan | None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "ImageSettings":
        """From documented arguments, all of them present.

        Raises:
            InputError: a value has the wrong type or makes no sense.
        """
        for name, value in given.items():
            if name.startswith(("do_", "default_", "disable_")) and value not in (True, False, None):
                raise InputError(f"{name}={value!r} came, but it must be True or False.")
        square = given.get("default_to_square") is not False
        crop = None
        if given.get("do_center_crop"):
            crop = size_of("crop_size", given.get("crop_size"))
            if crop.keys() != {"height", "width"}:
                raise InputError(f"crop_size={crop!r} came, but it must name 'height' and 'width'.")
        names = ("min_crop_size", "max_num_crops", "min_ratio_to_activate")
        numbers = PanAndScan.of(*(given.get(f"pan_and_scan_{name}") for name in names))
        return cls(
            size=size_of("size", given["size"], square) if given["do_resize"] else None,
            resample=_resample(given["resample"]),
            crop_size=crop,
            rescale_factor=_number("rescale_factor", given["rescale_factor"]) if given["do_rescale"] else None,
            mean=_per_channel("image_mean", given["image_mean"]) if given["do_normalize"] else None,
            std=_per_channel("image_std", given["image_std"]) if given["do_normalize"] else None,
            convert_rgb=given["do_convert_rgb"] is not False,
            pan_and_scan=numbers if given.get("do_pan_and_scan") else None,
        )


def refuse_unknown(given: Iterable[str], known: Iterable[str], taker: str) -> None:
    """Refuses misspelt arguments.

    Raises:
        InputError: a name of `given` is not in `known`.
    """
    names = sorted(known)
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(names)}."
            raise InputError(f"{taker} takes no argument {name!r}; {hint}")


def size_of(name: str, size: Any, square: bool = True) -> Size:
    """A size as a dict, from a dict, a pair (height, width), or one number: of a square, or of the shortest edge.

    Raises:
        InputError: it is none of these, or names sides that do not go together.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    elif isinstance(size, (tuple, list)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if not isinstance(size, Mapping) or frozenset(size) not in _SIZES:
        raise InputError(f"{name}={size!r} came, but it must be like {{'height': 224, 'width': 224}}.")
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size.values()):
        raise InputError(f"{name}={size!r} came, but its sides must be positive integers.")
    return dict(size)


def target_size(size: Size, height: int, width: int) -> tuple[int, int]:
    """(height, width) that a picture is resized to.

    `height` and `width` are taken as they are; `shortest_edge`, with or without a `longest_edge` that is not passed,
    and `max_height` with `max_width` keep the picture's proportions, rounded down.
    """
    if "height" in size:
        return size["height"], size["width"]
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return max(1, int(height * scale)), max(1, int(width * scale))
    shorter, longer = min(height, width), max(height, width)
    edge: float = size["shortest_edge"]
    if longer / shorter * edge > size.get("longest_edge", math.inf):
        edge = size["longest_edge"] * shorter / longer
    short = max(1, round(edge))
    long = longer if short == shorter else max(1, int(edge * longer / shorter))
    return (short, long) if height <= width else (long, short)


def choice_of(name: str, value: Any, allowed: Sequence[str]) -> str | None:
    """One of the documented words, given as text or as an enumeration's member; None stays None.

    Raises:
        InputError: it is another one.
    """
    word = getattr(value, "value", value)
    if word is None or word in allowed:
        return word
    raise InputError(f"{name}={value!r} came, but it must be {' or '.join(map(repr, allowed))}.")


def _resample(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and int(value) in _RESAMPLING:
        return int(value)
    known = ", ".join(f"{number} ({name})" for number, name in sorted(_RESAMPLING.items()))
    raise InputError(f"resample={value!r} came, but it must be a filter of Pillow: {known}.")


def _number(name: str, value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return value
    raise InputError(f"{name}={value!r} came, but it must be a finite number.")


def _per_channel(name: str, value: Any) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not values:
        raise InputError(f"{name} is empty; pass a number, or one per channel.")
    checked = tuple(_number(name, each) for each in values)
    if name == "image_std" and 0 in checked:
        raise InputError(f"image_std={value!r} came, but pixels cannot be divided by 0.")
    return checked
