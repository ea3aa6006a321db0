"""One picture inside the slow image processors: a Pillow image or an array, cut, resized, rescaled, normalised.

The arithmetic repeats the reference's operation by operation, because float32 results depend on the order and on where
they are rounded: resize to uint8, multiply in float64, round to float32, subtract and divide in float32.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from gemlens.errors import InputError
from gemlens.processing.pictures.image_settings import ImageSettings, PanAndScan, target_size
from gemlens.processing.pictures.picture_files import PictureLimits
from gemlens.processing.pictures.pictures import open_picture

if TYPE_CHECKING:
    from gemlens.processing.pictures.picture_urls import UrlRules

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
FIRST, LAST = "channels_first", "channels_last"


@dataclass(frozen=True)
class Pixels:
    """One picture: a Pillow image, or an array [H, W, C], and the order of axes in which it came."""

    content: Image.Image | Array
    order: str = LAST

    def crops(self, numbers: PanAndScan | None) -> "list[Pixels]":
        """What pan and scan cuts out of it."""
        if numbers is None:
            return []
        if isinstance(self.content, Image.Image):
            return [Pixels(self.content.crop(box)) for box in numbers.boxes(*self.content.size)]
        boxes = numbers.boxes(self.content.shape[1], self.content.shape[0])
        return [Pixels(self.content[top:bottom, left:right], self.order) for left, top, right, bottom in boxes]

    def finished(self, settings: ImageSettings) -> Array:
        """Resized, rescaled and normalised, [H, W, C]."""
        pixels = self._resized(settings)
        if pixels.dtype != np.uint8:
            return arithmetic(pixels, settings)
        # 256 values per channel are all there are: they go through the arithmetic, the pixels pick theirs.
        channels = pixels.shape[-1]
        table = arithmetic(
            np.arange(256, dtype=np.uint8)[:, None, None].repeat(channels, axis=-1), settings
        )  # [256,1,C]
        planes = [table[:, 0, channel].take(pixels[..., channel]) for channel in range(channels)]
        return np.stack(planes).transpose(1, 2, 0)

    def _resized(self, settings: ImageSettings) -> Array:
        size, content = settings.size, self.content
        if isinstance(content, Image.Image):
            if size is not None:
                height, width = target_size(size, content.height, content.width)
                content = content.resize((width, height), settings.resample)
            return _with_channels(np.asarray(content))
        return content if size is None else _resize_array(content, size, settings.resample)


def flat(images: Any) -> list[Any]:
    """The pictures in lists of lists and in arrays of four axes, one after the other.

    Raises:
        InputError: there is none.
    """
    pictures = list(_flat(images, 0))
    if not pictures:
        raise InputError("There is no picture among the images; pass at least one.")
    return pictures


def _flat(images: Any, depth: int) -> Iterator[Any]:
    if depth > 8:
        raise InputError("The images are lists within lists within lists; pass a list of pictures.")
    if isinstance(images, (list, tuple)) or (isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4):
        for each in images:
            yield from _flat(each, depth + 1)
    else:
        yield images


def open_pixels(
    picture: Any, convert_rgb: bool, order: str | None = None, limits: PictureLimits | None = None,
    allow_urls: "bool | UrlRules" = True,
) -> Pixels:  # fmt: skip
    """A picture of any kind, with 1 or 3 channels; with 3 if it shall be converted.

    Args:
        picture: as `open_picture` takes it, but the values of arrays and tensors are kept.
        convert_rgb: False leaves Pillow images and arrays as they are.
        order: of the axes of arrays; None: found.
        limits: for `open_picture`.
        allow_urls: for `open_picture`.

    Raises:
        InputError: it is no picture, or has other channels and shall not be converted.
    """
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        picture = (picture if str(picture.dtype) != "torch.bfloat16" else picture.float()).numpy()
    if isinstance(picture, np.ndarray):
        found = order_of(picture.shape, order)
        array = picture.transpose(1, 2, 0) if found == FIRST else _with_channels(picture)
        return Pixels(as_rgb(array) if convert_rgb else _usable(array), found)
    if convert_rgb or not isinstance(picture, Image.Image):
        return Pixels(open_picture(picture, limits, allow_urls))
    _usable(_with_channels(np.asarray(picture)))
    return Pixels(picture)


def order_of(shape: tuple[int, ...], order: str | None) -> str:
    """Whether the channels of an array come first or last; without channels: last.

    One or three channels are looked for first, as in the reference; where both ends fit, first is believed, with a
    warning. Four (RGBA) come after.

    Raises:
        InputError: the shape is not that of a picture.
    """
    text = " x ".join(map(str, shape)) or "no axes"
    if order == "none" or (len(shape) == 2 and order is None):
        if len(shape) != 2:
            raise InputError(f"An array of {text} came, but input_data_format='none' means [H, W].")
        return LAST
    if len(shape) != 3 or 0 in shape:
        raise InputError(f"An array of {text} is no picture; pass [H, W], [H, W, C] or [C, H, W].")
    if order is not None:
        return order
    for channels in ((1, 3), (4,)):
        if shape[0] in channels and shape[2] in channels and channels == (1, 3):
            warnings.warn(
                f"An array of {text} can be read in two ways; its first axis is taken for the channels. "
                "Pass input_data_format='channels_last' if that is wrong.",
                stacklevel=2,
            )
        if shape[0] in channels and not (channels == (4,) and shape[2] == 4):
            return FIRST
        if shape[2] in channels:
            return LAST
    raise InputError(f"An array of {text} is no picture: neither its first nor its last axis has 1, 3 or 4 channels.")


def as_rgb(array: Array) -> Array:
    """[H, W, 3] from grey or RGBA [H, W, C], on white where it is transparent; values keep their range and dtype."""
    channels = array.shape[-1]
    if channels == 1:
        return array.repeat(3, axis=-1)
    if channels == 4:
        whole = array.dtype == np.uint8 or array.max() > 1
        white = 255.0 if whole else 1.0
        alpha = array[..., 3:].astype(np.float64) / white
        blended = array[..., :3] * alpha + white * (1 - alpha)
        return (np.rint(blended) if whole else blended).astype(array.dtype)
    return _usable(array)


def is_scaled(pixels: Pixels) -> bool:
    """Whether values already lie within [0, 1]."""
    values = pixels.content
    return isinstance(values, np.ndarray) and values.dtype != np.uint8 and values.min() >= 0 and values.max() <= 1


def warn_scaled_twice() -> None:
    """Says that pixels within [0, 1] are about to be rescaled again."""
    warnings.warn(
        "A picture's values already lie within [0, 1] and are multiplied with rescale_factor once more; pass "
        "do_rescale=False for such pictures.",
        stacklevel=4,
    )


def arithmetic(pixels: Array, settings: ImageSettings) -> Array:
    """Rescaled and normalised, [H, W, C]; the plain way, which every kind of value may go.

    Raises:
        InputError: `image_mean` or `image_std` has another number of channels than the pixels.
    """
    if settings.rescale_factor is not None:
        pixels = (pixels.astype(np.float64) * settings.rescale_factor).astype(np.float32)
    if settings.mean is None or settings.std is None:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        pixels = pixels.astype(np.float32)
    for name, values in (("image_mean", settings.mean), ("image_std", settings.std)):
        if len(values) not in (1, pixels.shape[-1]):
            raise InputError(f"{name} has {len(values)} numbers, but the picture has {pixels.shape[-1]} channels.")
    return (pixels - np.array(settings.mean, pixels.dtype)) / np.array(settings.std, pixels.dtype)


def _resize_array(array: Array, size: dict[str, int], resample: int) -> Array:
    """Pillow resizes bytes: floats within [0, 1] become bytes and floats again, as in the reference."""
    height, width = target_size(size, array.shape[0], array.shape[1])
    scaled = array.dtype != np.uint8 and _fractions(array)
    if scaled:
        array = (array.astype(np.float64) * 255).astype(np.float32)
    image = Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)).squeeze(-1) if array.shape[-1] == 1
                            else np.ascontiguousarray(array.astype(np.uint8)))  # fmt: skip
    resized = _with_channels(np.asarray(image.resize((width, height), resample)))
    return (resized.astype(np.float64) * (1 / 255)).astype(np.float32) if scaled else resized


def _fractions(array: Array) -> bool:
    """Whether values lie within [0, 1]; False: within [0, 255], and whole."""
    if not np.isfinite(array).all():
        raise InputError("The picture has values that are infinite or not a number; replace them.")
    least, most = array.min(), array.max()
    whole = np.allclose(array, array.astype(np.int64))
    if least >= 0 and most <= (255 if whole else 1):
        return not whole
    raise InputError(
        f"The picture's values lie within [{least}, {most}]; to be resized they must be whole numbers up to 255 or lie "
        "within [0, 1]."
    )


def _with_channels(array: Array) -> Array:
    return array[..., None] if array.ndim == 2 else array


def _usable(array: Array) -> Array:
    if array.ndim == 3 and array.shape[-1] in (1, 3) and array.size:
        return array
    raise InputError(f"A picture of {array.shape[-1]} channels came; pass do_convert_rgb=True, or convert it to RGB.")
