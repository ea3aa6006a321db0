"""Masks in run lengths, as COCO stores them and pycocotools reads them.

    bool [H, W] <-> {"size": [H, W], "counts": "PPYo0..."}

Pixels are read column by column. Runs alternate: how many are not in the mask (0 if the first one is), how many are,
and so on. The string holds each run, from the fourth on its difference to the one two before it, in groups of five
bits, low ones first; a sixth bit says that more follow, and each group is one character from "0" (48) on. Source:
cocoapi, common/maskApi.c, rleToString.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemlens.errors import InputError

_MORE, _SIGN, _FIRST = 32, 16, 48
_MOST_PIXELS = 1 << 30  # one byte each
_LONGEST = 7  # characters of one number: 35 bits, while pycocotools counts in 32


def encode(mask: np.ndarray) -> dict[str, Any]:
    """A mask bool [height, width] -> {"size": [height, width], "counts": text}.

    Raises:
        InputError: another type or shape.
    """
    return {"size": [int(side) for side in mask.shape], "counts": compress(runs(mask))}


def decode(segmentation: Mapping[str, Any]) -> np.ndarray:
    """{"size": [height, width], "counts": text, bytes or list of runs} -> mask bool [height, width].

    Raises:
        InputError: it is no such thing, or the runs do not fill the size.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(n, int) and n >= 0 for n in size):
        raise InputError(f"Run lengths need 'size': [height, width], not {size!r}.")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", errors="replace")
    lengths = decompress(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, Sequence) or not all(isinstance(n, int) and n >= 0 for n in lengths):
        raise InputError("Run lengths need 'counts': a string, or a list of whole numbers from 0 on.")
    height, width = size
    if height * width > _MOST_PIXELS:
        raise InputError(f"The mask has {height} x {width} pixels, but at most {_MOST_PIXELS} are read.")
    if sum(lengths) != height * width:
        raise InputError(f"The run lengths cover {sum(lengths)} pixels, but the mask has {height} x {width}.")
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, np.array(lengths, dtype=np.int64)).reshape(width, height).T.copy()


def runs(mask: np.ndarray) -> list[int]:
    """A mask bool [height, width] -> the lengths of its runs, column by column; the first is of pixels outside.

    Raises:
        InputError: another type or shape.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise InputError(f"A mask is bool [height, width], not {mask.dtype} {list(mask.shape)}.")
    column_by_column = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(column_by_column, prepend=False))
    return np.diff(changes, prepend=0, append=column_by_column.size).tolist()


def compress(lengths: Sequence[int]) -> str:
    """Run lengths -> the string of COCO."""
    characters = []
    for index, length in enumerate(lengths):
        left = length - lengths[index - 2] if index > 2 else length
        while True:
            group, left = left & 31, left >> 5
            # Done when what is left only repeats the sign of the group.
            more = left != (-1 if group & _SIGN else 0)
            characters.append(chr(_FIRST + (group | _MORE if more else group)))
            if not more:
                break
    return "".join(characters)


def decompress(text: str) -> list[int]:
    """The string of COCO -> run lengths.

    Raises:
        InputError: a character that stands in no such string, or an end in the middle of a number.
    """
    lengths: list[int] = []
    number = bits = 0
    for character in text:
        group = ord(character) - _FIRST
        if not 0 <= group < 2 * _MORE or bits >= 5 * _LONGEST:
            raise InputError(f"The run lengths have {character!r} in a place where no mask has it; they are damaged.")
        number |= (group & 31) << bits
        bits += 5
        if group & _MORE:
            continue
        if group & _SIGN:
            number -= 1 << bits
        lengths.append(number + lengths[-2] if len(lengths) > 2 else number)
        number = bits = 0
    if bits:
        raise InputError("The run lengths end in the middle of a number; they are damaged.")
    return lengths
