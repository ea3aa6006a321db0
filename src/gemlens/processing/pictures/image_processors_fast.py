"""Pictures -> `pixel_values` [I, 3, height, width] with torch: on any device, pictures of one shape at a time.

    flatten -> open, RGB -> tensor [C, H, W] -> pan and scan -> resize -> centre crop -> rescale and normalize as one

The fast twins of image_processors.py. Pillow and torch round differently while they resize, so the two differ by at
most one of 255 steps in most pixels; never mix them between training and use.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gemlens.errors import InputError
from gemlens.processing.batch import BatchFeature, check_return_tensors
from gemlens.processing.pictures.image_processor_files import ImageProcessor
from gemlens.processing.pictures.image_processors import PAN_AND_SCAN_DEFAULTS, SHARED_DEFAULTS
from gemlens.processing.pictures.image_settings import (
    FastArguments,
    Gemma3FastArguments,
    ImageSettings,
    PanAndScan,
    choice_of,
    refuse_unknown,
    target_size,
)
from gemlens.processing.pictures.picture_files import PictureLimits
from gemlens.processing.pictures.pictures import open_picture
from gemlens.processing.pictures.pixels import FIRST, LAST, flat, order_of, warn_scaled_twice

if TYPE_CHECKING:
    from gemlens.processing.pictures.picture_urls import UrlRules

_FILTERS = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # of Pillow's six, those that torch has
_FAST_DEFAULTS = MappingProxyType({
    **SHARED_DEFAULTS, "default_to_square": False, "do_center_crop": None, "crop_size": None, "return_tensors": None,
    "data_format": FIRST, "input_data_format": None, "device": None, "disable_grouping": None,
})  # fmt: skip


class SiglipImageProcessorFast(ImageProcessor):
    """The image processor of PaliGemma on torch; see `SiglipImageProcessor` for what is not said here.

    All arguments are given by name, on construction or in a call.

    Args:
        settings: `do_resize`, `size`, `default_to_square` (False: a number for `size` is the length of the shortest
            edge), `resample` (nearest, bilinear or bicubic), `do_center_crop` and `crop_size` (cut out of the middle
            after resizing, padded with 0 where there is nothing), `do_rescale`, `rescale_factor`, `do_normalize`,
            `image_mean`, `image_std`, `do_convert_rgb`, `return_tensors` ("pt", "np" or None), `data_format`
            ("channels_first", the only one), `input_data_format`, `device`, `disable_grouping` (None: pictures of one
            shape are put together unless they are on the CPU).

    Raises:
        InputError: an argument is misspelt or makes no sense.
    """

    is_fast: ClassVar[bool] = True
    _defaults: ClassVar[Mapping[str, Any]] = _FAST_DEFAULTS

    def __init__(self, **settings: Unpack[FastArguments]) -> None:
        self._store(settings)

    def preprocess(
        self, images: Any, *, limits: PictureLimits | None = None, allow_urls: "bool | UrlRules" = True,
        **settings: Unpack[FastArguments],
    ) -> BatchFeature:  # fmt: skip
        """Pictures -> `pixel_values`.

        Args:
            images: as the slow twin takes them.
            limits: what pictures may ask for; see `open_picture`.
            allow_urls: whether pictures may be fetched; see `open_picture`.
            settings: see the class; they win over what is stored.

        Raises:
            InputError: an argument is misspelt or makes no sense, or something is no picture.
            PictureError: a picture is damaged, too large, or may not be fetched.
        """
        values, _ = self._process(images, settings, limits, allow_urls)
        return BatchFeature.make({"pixel_values": values}, settings.get("return_tensors") or self.return_tensors)

    def _process(
        self, images: Any, given: Mapping[str, Any], limits: PictureLimits | None, allow_urls: "bool | UrlRules"
    ) -> tuple[Tensor | list[Tensor], list[int]]:
        """One row per picture and crop, crops after their picture; how many crops each picture has."""
        refuse_unknown(given, self._defaults, type(self).__name__)
        chosen = {name: getattr(self, name) if given.get(name) is None else given[name] for name in self._defaults}
        check_return_tensors(chosen["return_tensors"])
        if choice_of("data_format", chosen["data_format"], (FIRST, LAST)) == LAST:
            raise InputError("data_format='channels_last' came, but fast image processors give channels first only.")
        order = choice_of("input_data_format", chosen["input_data_format"], (FIRST, LAST, "none"))
        settings, device = ImageSettings.of(chosen), _device(chosen["device"])
        pictures = [_tensor(each, settings, order, device, limits, allow_urls) for each in flat(images)]
        grouping = not chosen["disable_grouping"]
        if chosen["disable_grouping"] is None:
            grouping = pictures[0].device.type != "cpu"
        crops = [_crops(picture, settings.pan_and_scan) for picture in pictures]
        parts = [part for picture, pieces in zip(pictures, crops, strict=True) for part in (picture, *pieces)]
        resized = _by_shape(parts, lambda batch: _resized(batch, settings), grouping)
        if chosen["return_tensors"] is None:
            values: Tensor | list[Tensor] = [_finished([row], settings)[0] for row in resized]
        else:
            values = _finished(resized, settings)
        return values, [len(pieces) for pieces in crops]


class Gemma3ImageProcessorFast(SiglipImageProcessorFast):
    """The image processor of Gemma 3 on torch; see `Gemma3ImageProcessor` and `SiglipImageProcessorFast`.

    Args:
        settings: those of `SiglipImageProcessorFast`, with other defaults: bilinear, a number for `size` means a
            square. Besides `do_pan_and_scan`, `pan_and_scan_min_crop_size` (256), `pan_and_scan_max_num_crops` (4) and
            `pan_and_scan_min_ratio_to_activate` (1.2).

    Raises:
        InputError: an argument is misspelt or makes no sense.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values", "num_crops"]
    _defaults = MappingProxyType({**_FAST_DEFAULTS, **PAN_AND_SCAN_DEFAULTS, "default_to_square": True})

    def __init__(self, **settings: Unpack[Gemma3FastArguments]) -> None:
        self._store(settings)

    def pan_and_scan_batched(
        self, images: Tensor, pan_and_scan_min_crop_size: int | None = None,
        pan_and_scan_max_num_crops: int | None = None, pan_and_scan_min_ratio_to_activate: float | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """The crops of pictures of one shape: views [..., height, width] of them, none if they are not long enough.

        Args:
            images: [..., H, W].
            pan_and_scan_min_crop_size: a crop with a shorter side is not made; None: what is stored, or 256.
            pan_and_scan_max_num_crops: the most crops of a picture; None: what is stored, or 4.
            pan_and_scan_min_ratio_to_activate: pictures less long are not cut; None: what is stored, or 1.2.

        Raises:
            InputError: a number is not positive, or `images` has no two axes.
        """
        if not isinstance(images, Tensor) or images.ndim < 2:
            raise InputError("pan_and_scan_batched takes a tensor of pictures, [..., height, width].")
        names = ("min_crop_size", "max_num_crops", "min_ratio_to_activate")
        given = (pan_and_scan_min_crop_size, pan_and_scan_max_num_crops, pan_and_scan_min_ratio_to_activate)
        stored = [getattr(self, f"pan_and_scan_{name}") for name in names]
        chosen: list[Any] = [other if value is None else value for value, other in zip(given, stored, strict=True)]
        return _crops(images, PanAndScan.of(*chosen))

    def preprocess(
        self, images: Any, *, limits: PictureLimits | None = None, allow_urls: "bool | UrlRules" = True,
        **settings: Unpack[Gemma3FastArguments],
    ) -> BatchFeature:  # fmt: skip
        """Pictures -> `pixel_values` and `num_crops`: each picture is followed by its crops, then comes the next.

        Args:
            images: as the slow twin takes them.
            limits: what pictures may ask for; see `open_picture`.
            allow_urls: whether pictures may be fetched; see `open_picture`.
            settings: see the class; they win over what is stored.

        Raises:
            InputError: an argument is misspelt or makes no sense, or something is no picture.
            PictureError: a picture is damaged, too large, or may not be fetched.
        """
        values, num_crops = self._process(images, settings, limits, allow_urls)
        data = {"pixel_values": values, "num_crops": num_crops}
        return BatchFeature.make(data, settings.get("return_tensors") or self.return_tensors)


# -- from pictures to tensors ------------------------------------------------------------------------------------------


def _tensor(
    picture: Any, settings: ImageSettings, order: str | None, device: torch.device | None,
    limits: PictureLimits | None, allow_urls: "bool | UrlRules",
) -> Tensor:  # fmt: skip
    """[C, H, W] of one picture, uint8 or floating, 3 channels if it shall be converted to RGB."""
    if isinstance(picture, (np.ndarray, Tensor)):
        pixels = _numbers(picture)
        found = order_of(tuple(pixels.shape), order)
        pixels = pixels[None] if pixels.ndim == 2 else pixels if found == FIRST else pixels.permute(2, 0, 1)
        pixels = _rgb(pixels) if settings.convert_rgb else pixels
    else:
        if settings.convert_rgb or not isinstance(picture, Image.Image):
            picture = open_picture(picture, limits, allow_urls)
        pixels = torch.from_numpy(np.array(picture))  # a copy: Pillow's own memory must not be written to
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    if pixels.shape[0] not in (1, 3):
        raise InputError(
            f"A picture of {pixels.shape[0]} channels came; pass do_convert_rgb=True, or convert it to RGB."
        )
    if settings.rescale_factor is not None and pixels.is_floating_point() and 0 <= pixels.min() <= pixels.max() <= 1:
        warn_scaled_twice()
    return pixels if device is None else pixels.to(device)


def _numbers(picture: Any) -> Tensor:
    """An array or tensor as a tensor of uint8 or floats."""
    if not isinstance(picture, Tensor):
        if picture.dtype.kind not in "buif":
            raise InputError(f"Pixels of type {picture.dtype} are no numbers from 0 to 255; pass uint8 or floats.")
        if picture.dtype.kind in "ui" and picture.dtype != np.uint8:
            picture = picture.astype(np.int64)
        picture = torch.from_numpy(np.require(picture, requirements=["C", "W"]))
    pixels: Tensor = picture.detach()
    if pixels.dtype == torch.uint8 or pixels.is_floating_point():
        return pixels
    if pixels.dtype == torch.bool or (pixels.min() >= 0 and pixels.max() <= 255):
        return pixels.to(torch.uint8)
    raise InputError(f"Pixels lie within [{int(pixels.min())}, {int(pixels.max())}], but must lie within [0, 255].")


def _rgb(pixels: Tensor) -> Tensor:
    """[3, H, W] from grey or RGBA, on white where it is transparent; values keep their range and dtype."""
    if pixels.shape[0] == 1:
        return pixels.expand(3, -1, -1)
    if pixels.shape[0] != 4:
        return pixels
    white = 255.0 if pixels.dtype == torch.uint8 or pixels.max() > 1 else 1.0
    alpha = pixels[3:].double() / white
    blended = pixels[:3].double() * alpha + white * (1 - alpha)
    return (blended.round() if white == 255.0 else blended).to(pixels.dtype)


def _device(device: Any) -> torch.device | None:
    if device is None:
        return None
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, TypeError, AssertionError):  # torch asserts that it was built for the device
        raise InputError(f"device={device!r} is none of this machine; pass one like 'cpu' or 'cuda:0'.") from None


# -- what is done to them ----------------------------------------------------------------------------------------------


def _crops(pixels: Tensor, numbers: PanAndScan | None) -> list[Tensor]:
    """Views of [..., H, W]."""
    if numbers is None:
        return []
    boxes = numbers.boxes(pixels.shape[-1], pixels.shape[-2])
    return [pixels[..., top:bottom, left:right] for left, top, right, bottom in boxes]


def _by_shape(parts: list[Tensor], work: Callable[[Tensor], Tensor], grouping: bool) -> list[Tensor]:
    """What `work` makes of each part, in order; parts of one shape go through it together as [B, C, H, W]."""
    groups: dict[Any, list[int]] = {}
    for index, part in enumerate(parts):
        groups.setdefault((part.shape, part.dtype, part.device) if grouping else index, []).append(index)
    done: dict[int, Tensor] = {}
    for indices in groups.values():
        batch = torch.stack([parts[index] for index in indices]) if len(indices) > 1 else parts[indices[0]][None]
        done.update(zip(indices, work(batch), strict=True))
    return [done[index] for index in range(len(parts))]


def _resized(batch: Tensor, settings: ImageSettings) -> Tensor:
    """[B, C, H, W] resized and cut; bytes stay bytes, as in torchvision."""
    if settings.size is not None:
        size = target_size(settings.size, batch.shape[-2], batch.shape[-1])
        mode = _FILTERS.get(settings.resample)
        if mode is None:
            raise InputError(
                f"resample={settings.resample} came, but torch resizes with 0 (nearest), 2 (bilinear) and 3 (bicubic) "
                "only; the slow image processor has all filters."
            )
        if size != tuple(batch.shape[-2:]):
            batch = _interpolated(batch, size, mode, in_bytes=batch.device.type == "cpu")
    return batch if settings.crop_size is None else _centre(batch, settings.crop_size)


def _interpolated(batch: Tensor, size: tuple[int, int], mode: str, in_bytes: bool) -> Tensor:
    """[B, C, *size], no value beyond those there are.

    Floats are not rounded; bytes are, after each of two passes, as Pillow does: with `in_bytes` by torch's arithmetic
    in whole numbers, which only CPUs have, else by rounding floats.

    torch changes the width first. Where the other order leaves clearly less to do, Pillow 13 changes the height first;
    so do we, or tall pictures would differ from the slow twin by several steps instead of one.
    """
    height, width = batch.shape[-2:]
    if mode == "nearest-exact" or batch.dtype != torch.uint8:
        half = batch.dtype in (torch.float16, torch.bfloat16)
        values = F.interpolate(batch.float() if half else batch, size, mode=mode, antialias=mode != "nearest-exact")
        values = values.to(batch.dtype)
        return values.clamp_(batch.amin((1, 2, 3), keepdim=True), batch.amax((1, 2, 3), keepdim=True))
    if size[0] < height and 4 * width * size[0] < 3 * size[1] * height:
        batch = _pass(batch, (size[0], width), mode, in_bytes)
    elif not in_bytes:  # the two passes of one call would not be rounded in between
        batch = _pass(batch, (height, size[1]), mode, in_bytes)
    return _pass(batch, size, mode, in_bytes)


def _pass(batch: Tensor, size: tuple[int, int], mode: str, in_bytes: bool) -> Tensor:
    """Bytes [B, C, *size]."""
    if in_bytes:
        batch = batch.contiguous(memory_format=torch.channels_last)  # several times faster than channel after channel
        return F.interpolate(batch, size, mode=mode, antialias=True)
    values = F.interpolate(batch.float(), size, mode=mode, antialias=True)
    return values.round_().clamp_(0, 255).to(torch.uint8)


def _centre(batch: Tensor, size: Mapping[str, int]) -> Tensor:
    """The middle of [B, C, H, W]; 0 where there is no picture."""
    height, width = size["height"], size["width"]
    missing_h, missing_w = max(0, height - batch.shape[-2]), max(0, width - batch.shape[-1])
    padding = (missing_w // 2, (missing_w + 1) // 2, missing_h // 2, (missing_h + 1) // 2)
    batch = F.pad(batch, padding)
    top, left = round((batch.shape[-2] - height) / 2), round((batch.shape[-1] - width) / 2)
    return batch[..., top : top + height, left : left + width]


def _finished(rows: Sequence[Tensor], settings: ImageSettings) -> Tensor:
    """[I, C, H, W]: rescaled and normalised at once, (x - mean / factor) / (std / factor) in float32.

    Raises:
        InputError: the rows differ in shape, or have another number of channels than `image_mean`.
    """
    if len(shapes := {tuple(row.shape) for row in rows}) > 1:
        sizes = " and ".join(sorted(" x ".join(map(str, shape)) for shape in shapes))
        raise InputError(f"Pictures of {sizes} make no tensor; pass do_resize=True or return_tensors=None.")
    factor, channels = settings.rescale_factor, rows[0].shape[0]
    if settings.mean is None or settings.std is None:
        stacked = torch.stack(list(rows))
        return stacked if factor is None else stacked * factor
    for name, values in (("image_mean", settings.mean), ("image_std", settings.std)):
        if len(values) not in (1, channels):
            raise InputError(f"{name} has {len(values)} numbers, but the picture has {channels} channels.")
    if factor == 0:
        raise InputError("rescale_factor=0 came, which makes every picture the same; pass do_rescale=False instead.")
    unit = 1.0 if factor is None else 1.0 / factor
    mean, std = (
        (torch.tensor(values, device=rows[0].device) * unit)[:, None, None] for values in (settings.mean, settings.std)
    )  # [C, 1, 1]
    finished = _room((len(rows), *rows[0].shape), rows[0].device)
    for place, row in zip(finished, rows, strict=True):  # a picture fits into the processor's cache, a batch does not
        place.copy_(row).sub_(mean).div_(std)
    return finished


def _room(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """An empty float32 tensor. On Linux numpy asks for huge pages, torch does not: half the time of a large batch."""
    if device.type == "cpu":
        return torch.from_numpy(np.empty(shape, np.float32))
    return torch.empty(shape, dtype=torch.float32, device=device)
