"""A mask of the whole picture <-> the sixteen codes of a finding.

    bool [H, W] -> the part in the box -> 64 x 64 in [0, 1] -> codec.encode -> 16 codes
    16 codes -> codec.decode -> 64 x 64 in [-1, 1] -> the size of the box -> above 0 -> pasted into bool [H, W]

As big_vision writes masks (pp/proj/paligemma/segmentation.py) and scores them (transfers/segmentation.py): bilinear,
antialiased where it shrinks. One difference: edges of a box go to the nearest pixel both ways. big_vision's evaluator
cuts fractions off, so that what was written from whole pixels may come back one pixel further to the left and top.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gemlens.errors import InputError
from gemlens.tasks.boxes import Box, checked_size

CODES = 16
LAST_CODE = 127
_SIDE = 64


class Codec(Protocol):
    """What turns masks into codes and back; `gemlens.tasks.mask_codec.MaskCodec` is one."""

    def encode(self, masks: Tensor, /) -> Tensor:
        """Floats [N, 64, 64] in [0, 1] -> codes [N, 16]."""

    def decode(self, codes: Tensor, /) -> Tensor:
        """Codes [N, 16] -> floats [N, 64, 64] in [-1, 1]."""


def encode_mask(mask: np.ndarray, box: Box, codec: Codec) -> tuple[int, ...]:
    """The sixteen codes of what a mask covers inside a box; `mask_in_box` says what is taken and raised."""
    return tuple(codec.encode(mask_in_box(mask, box)[None])[0].tolist())


def mask_in_box(mask: np.ndarray, box: Box) -> Tensor:
    """What a mask covers inside a box, in the size that a codec takes: floats [64, 64] in [0, 1].

    Args:
        mask: bool [height, width] of the whole picture.
        box: in pixels; edges go to the nearest pixel.

    Raises:
        InputError: the mask has another type or shape, or the box lies outside of it.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise InputError(f"A mask is bool [height, width], not {mask.dtype} {list(mask.shape)}.")
    left, top, right, bottom = pixels(box, (mask.shape[1], mask.shape[0]))
    part = Image.fromarray(mask[top:bottom, left:right].astype(np.float32))
    small = np.asarray(part.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)).clip(0, 1)  # may round to 1.0000001
    return torch.from_numpy(small)


def decode_mask(codes: Sequence[int], box: Box, size: tuple[int, int], codec: Codec) -> np.ndarray:
    """The mask of sixteen codes in its place: bool [height, width].

    Args:
        codes: sixteen numbers from 0 to 127.
        box: in pixels; edges go to the nearest pixel, and it covers at least one.
        size: (width, height) of the original picture.
        codec: the network.

    Raises:
        InputError: the box lies outside the picture.
    """
    left, top, right, bottom = pixels(box, size)
    small = codec.decode(torch.tensor([list(codes)]))[0].detach().float().cpu().numpy()
    part = Image.fromarray(small).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    mask = np.zeros((size[1], size[0]), dtype=np.bool_)
    mask[top:bottom, left:right] = np.asarray(part) > 0
    return mask


def pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels of a box, as (left, top, right, bottom) of a slice.

    Edges go to the nearest border between pixels, halves to the even one as Python rounds; a box smaller than a pixel
    takes one. What lies outside the picture is cut off.

    Raises:
        InputError: no part of the box lies inside the picture.
    """
    width, height = checked_size(size)
    inside = box.clipped(size)
    if not inside.area > 0:
        raise InputError(f"{box} covers nothing of a picture of {width} x {height}; leave it out.")
    left, top = min(round(inside.left), width - 1), min(round(inside.top), height - 1)
    return left, top, max(round(inside.right), left + 1), max(round(inside.bottom), top + 1)
