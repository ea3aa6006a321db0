"""Pictures -> `pixel_values` [I, 3, height, width] with Pillow's resizing: the numbers the models were trained on.

    flatten -> open, RGB -> pan and scan -> resize (Pillow, 8 bits) -> rescale -> normalize -> order of axes

These are the plain twins of image_processors_fast.py, equal to the reference's slow processors bit for bit wherever
those give an answer. Differences: every picture's order of axes is found by itself; grey, transparent and rotated
pictures become upright RGB on white, for PaliGemma too; missing numbers of pan and scan are 256, 4 and 1.2.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gemlens.errors import InputError
from gemlens.processing.batch import BatchFeature, check_return_tensors
from gemlens.processing.pictures.image_processor_files import ImageProcessor
from gemlens.processing.pictures.image_settings import PanAndScan, Size, choice_of, refuse_unknown
from gemlens.processing.pictures.picture_files import PictureLimits
from gemlens.processing.pictures.pixels import FIRST, LAST, Array, flat, is_scaled, open_pixels, warn_scaled_twice

if TYPE_CHECKING:
    from gemlens.processing.pictures.picture_urls import UrlRules

_INPUT_ORDERS = (FIRST, LAST, "none")

SHARED_DEFAULTS = MappingProxyType({
    "do_resize": True, "size": {"height": 224, "width": 224}, "resample": 3, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    "do_convert_rgb": None,
})  # fmt: skip
PAN_AND_SCAN_DEFAULTS = MappingProxyType({
    "resample": 2, "do_convert_rgb": True, "do_pan_and_scan": None, "pan_and_scan_min_crop_size": None,
    "pan_and_scan_max_num_crops": None, "pan_and_scan_min_ratio_to_activate": None,
})  # fmt: skip


class _SlowImageProcessor(ImageProcessor):
    """What both slow processors share."""

    def _rows(self, given: Mapping[str, Any]) -> tuple[list[Array], list[int]]:
        """One array per picture and crop, crops after their picture; how many crops each picture has."""
        check_return_tensors(given["return_tensors"])
        refuse_unknown(given["misspelt"], self._defaults, type(self).__name__)
        settings = self._settings(given)
        order = choice_of("data_format", given["data_format"], (FIRST, LAST))
        input_order = choice_of("input_data_format", given["input_data_format"], _INPUT_ORDERS)
        pictures = [
            open_pixels(each, settings.convert_rgb, input_order, given["limits"], given["allow_urls"])
            for each in flat(given["images"])
        ]
        if settings.rescale_factor is not None and any(map(is_scaled, pictures)):
            warn_scaled_twice()
        crops = [picture.crops(settings.pan_and_scan) for picture in pictures]
        parts = [part for picture, pieces in zip(pictures, crops, strict=True) for part in (picture, *pieces)]
        rows = [_ordered(part.finished(settings), order or part.order) for part in parts]
        return rows, [len(pieces) for pieces in crops]


class SiglipImageProcessor(_SlowImageProcessor):
    """The image processor of PaliGemma: 224 x 224 (or what the checkpoint says), bicubic, values from -1 to 1.

    `do_convert_rgb=None`, which the published files have, means True here: in the reference it leaves grey pictures to
    crash. All arguments can be given anew in a call.

    Args:
        do_resize: whether pictures are resized.
        size: to what, as `{"height": 224, "width": 224}`; a number means a square.
        resample: Pillow's filter; bicubic.
        do_rescale: whether pixels are multiplied with `rescale_factor`.
        rescale_factor: 1/255.
        do_normalize: whether `image_mean` is subtracted and the result divided by `image_std`.
        image_mean: a number or one per channel; 0.5.
        image_std: a number or one per channel; 0.5.
        do_convert_rgb: whether pictures become RGB first, upright and on white.
        others: `image_seq_length` or `processor_class`, which are kept and saved.

    Raises:
        InputError: an argument is misspelt or makes no sense.
    """

    _defaults = SHARED_DEFAULTS

    def __init__(
        self, do_resize: bool = True, size: Size | int | None = None, resample: int = 3, do_rescale: bool = True,
        rescale_factor: float = 1 / 255, do_normalize: bool = True, image_mean: float | list[float] | None = None,
        image_std: float | list[float] | None = None, do_convert_rgb: bool | None = None, **others: Any,
    ) -> None:  # fmt: skip
        self._store(_given(locals()))

    def preprocess(
        self, images: Any, do_resize: bool | None = None, size: Size | int | None = None, resample: int | None = None,
        do_rescale: bool | None = None, rescale_factor: float | None = None, do_normalize: bool | None = None,
        image_mean: float | list[float] | None = None, image_std: float | list[float] | None = None,
        return_tensors: str | None = None, data_format: str | None = FIRST, input_data_format: str | None = None,
        do_convert_rgb: bool | None = None, *, limits: PictureLimits | None = None,
        allow_urls: "bool | UrlRules" = True, **misspelt: Any,
    ) -> BatchFeature:  # fmt: skip
        """Pictures -> `pixel_values`.

        Args:
            images: one picture, a list, nested lists, or an array or tensor of four axes; a picture is whatever
                `open_picture` takes. Arrays within [0, 1] need `do_rescale=False`.
            do_resize: see the class, as for all that is not said here.
            size: see the class.
            resample: see the class.
            do_rescale: see the class.
            rescale_factor: see the class.
            do_normalize: see the class.
            image_mean: see the class.
            image_std: see the class.
            return_tensors: "pt", "np", or None for a list of arrays.
            data_format: "channels_first", "channels_last", or None for the order in which the picture came.
            input_data_format: the order of axes of arrays; None: found for each by itself. "none": [H, W].
            do_convert_rgb: see the class.
            limits: what pictures may ask for; see `open_picture`.
            allow_urls: whether pictures may be fetched; see `open_picture`.
            misspelt: nothing; an error.

        Raises:
            InputError: an argument is misspelt or makes no sense, or something is no picture.
            PictureError: a picture is damaged, too large, or may not be fetched.
        """
        rows, _ = self._rows(locals())
        return BatchFeature.make({"pixel_values": _stacked(rows, return_tensors)}, return_tensors)


class Gemma3ImageProcessor(_SlowImageProcessor):
    """The image processor of Gemma 3: 224 x 224 (published checkpoints say 896), bilinear, values from -1 to 1.

    Long pictures can be shown again in pieces (pan and scan). All arguments can be given anew in a call.

    Args:
        do_resize: whether pictures are resized.
        size: to what, as `{"height": 896, "width": 896}`; a number means a square.
        resample: Pillow's filter; bilinear.
        do_rescale: whether pixels are multiplied with `rescale_factor`.
        rescale_factor: 1/255.
        do_normalize: whether `image_mean` is subtracted and the result divided by `image_std`.
        image_mean: a number or one per channel; 0.5.
        image_std: a number or one per channel; 0.5.
        do_convert_rgb: whether pictures become RGB first, upright and on white.
        do_pan_and_scan: whether long pictures are cut.
        pan_and_scan_min_crop_size: a crop with a shorter side is not made; 256.
        pan_and_scan_max_num_crops: the most crops of a picture; 4.
        pan_and_scan_min_ratio_to_activate: pictures less long than this are not cut; 1.2.
        others: `image_seq_length` or `processor_class`, which are kept and saved.

    Raises:
        InputError: an argument is misspelt or makes no sense.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values", "num_crops"]
    _defaults = MappingProxyType({**SHARED_DEFAULTS, **PAN_AND_SCAN_DEFAULTS})

    def __init__(
        self, do_resize: bool = True, size: Size | int | None = None, resample: int = 2, do_rescale: bool = True,
        rescale_factor: float = 1 / 255, do_normalize: bool = True, image_mean: float | list[float] | None = None,
        image_std: float | list[float] | None = None, do_convert_rgb: bool | None = True,
        do_pan_and_scan: bool | None = None, pan_and_scan_min_crop_size: int | None = None,
        pan_and_scan_max_num_crops: int | None = None, pan_and_scan_min_ratio_to_activate: float | None = None,
        **others: Any,
    ) -> None:  # fmt: skip
        self._store(_given(locals()))

    def pan_and_scan(
        self, image: Any, pan_and_scan_min_crop_size: int | None = None, pan_and_scan_max_num_crops: int | None = None,
        pan_and_scan_min_ratio_to_activate: float | None = None, data_format: str | None = None,
        input_data_format: str | None = None,
    ) -> list[Any]:  # fmt: skip
        """The crops of one picture, without the picture itself; none if it is not long enough.

        Args:
            image: an array or tensor, whose crops are arrays, or a Pillow image, whose crops are Pillow images.
            pan_and_scan_min_crop_size: see the class, as for the next two; None: what is stored.
            pan_and_scan_max_num_crops: see the class.
            pan_and_scan_min_ratio_to_activate: see the class.
            data_format: the order of axes of the crops; None: the picture's own.
            input_data_format: the order of axes of the picture; None: found.

        Raises:
            InputError: a number is not positive, or the array is no picture.
        """
        numbers = PanAndScan.of(
            _first(pan_and_scan_min_crop_size, self.pan_and_scan_min_crop_size),
            _first(pan_and_scan_max_num_crops, self.pan_and_scan_max_num_crops),
            _first(pan_and_scan_min_ratio_to_activate, self.pan_and_scan_min_ratio_to_activate),
        )
        order = choice_of("data_format", data_format, (FIRST, LAST))
        if isinstance(image, Image.Image):
            return [image.crop(box) for box in numbers.boxes(*image.size)]
        picture = open_pixels(image, False, choice_of("input_data_format", input_data_format, _INPUT_ORDERS))
        crops = [np.asarray(crop.content) for crop in picture.crops(numbers)]
        return [_ordered(crop, order or picture.order) for crop in crops]

    def preprocess(
        self, images: Any, do_resize: bool | None = None, size: Size | int | None = None, resample: int | None = None,
        do_rescale: bool | None = None, rescale_factor: float | None = None, do_normalize: bool | None = None,
        image_mean: float | list[float] | None = None, image_std: float | list[float] | None = None,
        return_tensors: str | None = None, data_format: str | None = FIRST, input_data_format: str | None = None,
        do_convert_rgb: bool | None = None, do_pan_and_scan: bool | None = None,
        pan_and_scan_min_crop_size: int | None = None, pan_and_scan_max_num_crops: int | None = None,
        pan_and_scan_min_ratio_to_activate: float | None = None, *, limits: PictureLimits | None = None,
        allow_urls: "bool | UrlRules" = True, **misspelt: Any,
    ) -> BatchFeature:  # fmt: skip
        """Pictures -> `pixel_values` and `num_crops`: each picture is followed by its crops, then comes the next.

        Args:
            images: one picture, a list, nested lists, or an array or tensor of four axes; a picture is whatever
                `open_picture` takes. Arrays within [0, 1] need `do_rescale=False`.
            do_resize: see the class, as for all that is not said here.
            size: see the class.
            resample: see the class.
            do_rescale: see the class.
            rescale_factor: see the class.
            do_normalize: see the class.
            image_mean: see the class.
            image_std: see the class.
            return_tensors: "pt", "np", or None for a list of arrays.
            data_format: "channels_first", "channels_last", or None for the order in which the picture came.
            input_data_format: the order of axes of arrays; None: found for each by itself. "none": [H, W].
            do_convert_rgb: see the class.
            do_pan_and_scan: see the class.
            pan_and_scan_min_crop_size: see the class.
            pan_and_scan_max_num_crops: see the class.
            pan_and_scan_min_ratio_to_activate: see the class.
            limits: what pictures may ask for; see `open_picture`.
            allow_urls: whether pictures may be fetched; see `open_picture`.
            misspelt: nothing; an error.

        Raises:
            InputError: an argument is misspelt or makes no sense, or something is no picture.
            PictureError: a picture is damaged, too large, or may not be fetched.
        """
        rows, num_crops = self._rows(locals())
        pixel_values = _stacked(rows, return_tensors)
        return BatchFeature.make({"pixel_values": pixel_values, "num_crops": num_crops}, return_tensors)


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor by name, those of `**others` among them."""
    return {name: value for name, value in arguments.items() if name not in ("self", "others")} | arguments["others"]


def _first(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _ordered(row: Array, order: str) -> Array:
    """[H, W, C] in the order of axes that was asked for."""
    return row.transpose(2, 0, 1) if order == FIRST else row


def _stacked(rows: list[Array], return_tensors: str | None) -> list[Array] | Tensor:
    """One tensor [I, ...], if tensors are wanted."""
    if return_tensors is None:
        return rows
    if len(shapes := {row.shape for row in rows}) > 1:
        sizes = " and ".join(sorted(" x ".join(map(str, shape)) for shape in shapes))
        raise InputError(f"Pictures of {sizes} make no tensor; pass do_resize=True or return_tensors=None.")
    return torch.from_numpy(np.stack(rows))
