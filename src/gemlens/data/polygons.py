"""Polygons -> the pixels whose centres they hold."""

from collections.abc import Iterable, Sequence

import numpy as np


def fill(polygons: Iterable[Sequence[tuple[float, float]]], size: tuple[int, int]) -> np.ndarray:
    """The mask of what any of the polygons holds: bool [height, width].

    A polygon that crosses itself has holes (the even-odd rule). What lies outside the picture is cut off.

    Args:
        polygons: each the finite (x, y) of its corners in pixels; (0, 0) is the upper left corner of the first pixel.
        size: (width, height) of the picture.
    """
    width, height = size
    mask = np.zeros((height, width), dtype=np.bool_)
    for corners in polygons:
        borders = np.zeros((height, width + 1), dtype=np.int32)  # how many borders begin left of a pixel's centre
        for (x, y), (next_x, next_y) in zip(corners, [*corners[1:], corners[0]], strict=True):
            first, last = (min(max(int(np.ceil(each - 0.5)), 0), height) for each in sorted((y, next_y)))
            rows = np.arange(first, last)  # whose centres the side passes
            if len(rows):
                at = x + (rows + 0.5 - y) * ((next_x - x) / (next_y - y))
                columns = np.clip(np.ceil(at - 0.5), 0, width).astype(np.int64)
                borders[rows, columns] += 1  # each row stands here once
        mask |= (borders.cumsum(axis=1)[:, :width] % 2).astype(np.bool_)
    return mask
