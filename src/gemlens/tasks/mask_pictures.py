"""Masks -> pictures without loss, for `save("masks.png")`."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from gemlens.errors import InputError
from gemlens.tasks.boxes import checked_size
from gemlens.tasks.findings import Finding

_MOST_IN_ONE = 65_535  # of 16 bits


def mask_pictures(findings: Sequence[Finding], size: tuple[int, int]) -> list[Image.Image | None]:
    """A picture per finding, white in the mask and black outside (mode L); None for a finding without a mask.

    Args:
        findings: as they were parsed with a codec.
        size: (width, height) of the original picture.

    Raises:
        InputError: a mask of another size.
    """
    masks = _masks(findings, size)
    return [None if mask is None else Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks]


def label_picture(findings: Sequence[Finding], size: tuple[int, int]) -> Image.Image:
    """All masks in one picture: 0 outside, n in the mask of the nth finding, counted from 1.

    Where masks overlap, the earlier finding lies on top. Mode L up to 255 findings, I;16 for more.

    Args:
        findings: as they were parsed with a codec; those without a mask keep their number and are not seen.
        size: (width, height) of the original picture.

    Raises:
        InputError: a mask of another size, or more than 65,535 findings.
    """
    if len(findings) > _MOST_IN_ONE:
        raise InputError(
            f"{len(findings)} findings came, but a label picture numbers up to {_MOST_IN_ONE}; pass fewer."
        )
    width, height = checked_size(size)
    numbers = np.zeros((height, width), dtype=np.uint8 if len(findings) <= 255 else np.uint16)
    masks = _masks(findings, size)
    for number in range(len(masks), 0, -1):
        mask = masks[number - 1]
        if mask is not None:
            numbers[mask] = number
    return Image.fromarray(numbers)


def _masks(findings: Sequence[Finding], size: tuple[int, int]) -> list[np.ndarray | None]:
    width, height = checked_size(size)
    for finding in findings:
        if finding.mask is not None and finding.mask.shape != (height, width):
            shape = list(finding.mask.shape)
            raise InputError(f"A mask is [height, width] {shape}, but the picture is {[height, width]}; pass its size.")
    return [finding.mask for finding in findings]
