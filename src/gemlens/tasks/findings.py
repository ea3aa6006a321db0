"""An answer with <loc> and <seg> tokens <-> findings.

    "<loc0256><loc0256><loc0767><loc0512> cat ; <loc0000>... dog"  <->  [Finding("cat", Box(...)), Finding("dog", ...)]

The rule of reading: a finding is four <loc> tokens and then none or sixteen <seg> tokens, in range, with a box that has
an area. So counts big_vision's evaluator (transfers/segmentation.py), except that it looks at the first twenty tokens
of an answer only. Whatever else stands there is left out with its label: a box with half a mask is no finding. The
label is the text up to the next token, " ; " or <eos>; it may be empty, as answers to referring expressions have none.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

from gemlens.errors import InputError
from gemlens.tasks import labels
from gemlens.tasks.boxes import BINS, LAST_LOC, Box, checked_bins, checked_size, read_box, write_box
from gemlens.tasks.masks import CODES, LAST_CODE, Codec, decode_mask, encode_mask

if TYPE_CHECKING:
    import numpy as np

# Every branch begins with a sign of its own, so the time to search is linear in the length of the text. Some tokenizers
# put spaces between the tokens.
_TOKEN = r"<(?:loc[0-9]{4}|seg[0-9]{3})>"
_RUN = re.compile(rf"{_TOKEN}(?:\s*{_TOKEN})*")
_NUMBER = re.compile(r"<(loc|seg)([0-9]+)>")


@dataclass(frozen=True)
class Finding:
    """One thing in a picture. Two are equal if all but their masks are: codes stand for those.

    Args:
        label: what it is called; empty if the model did not say.
        box: in pixels of the original picture.
        mask: bool [height, width] of the whole picture.
        codes: the sixteen numbers, 0 to 127, that the mask was written with.
        score: how sure the model is, 0 to 1.
    """

    label: str
    box: Box
    mask: "np.ndarray | None" = field(default=None, compare=False, repr=False)
    codes: tuple[int, ...] | None = None
    score: float | None = None


def parse(text: str, size: tuple[int, int], codec: Codec | None = None, bins: int = BINS) -> list[Finding]:
    """The findings of an answer, in its order. No text raises; what is no finding is left out.

    Args:
        text: what a model answered.
        size: (width, height) of the original picture.
        codec: decodes masks; without it, findings have codes and no masks. A mask takes width * height bytes.
        bins: 1023, or 1024 for models that were trained so.

    Raises:
        InputError: `size` or `bins` mean nothing.
    """
    checked_size(size)
    checked_bins(bins)
    findings = []
    runs = list(_RUN.finditer(text))
    for run, following in zip_longest(runs, runs[1:]):
        if (numbers := _read_run(run[0])) is None:
            continue
        locs, codes = numbers
        box = read_box(locs, size, bins)
        mask = None if codec is None or codes is None else decode_mask(codes, box, size, codec)
        after = text[run.end() : following.start() if following else None]
        findings.append(Finding(_read_label(after, following is not None), box, mask, codes))
    return findings


def write(findings: Iterable[Finding], size: tuple[int, int], codec: Codec | None = None, bins: int = BINS) -> str:
    """Findings as a model writes them: "<loc0000><loc0000><loc0511><loc1023> cat ; <loc0100>...".

    Args:
        findings: in the order in which they are written.
        size: (width, height) of the original picture.
        codec: encodes the masks of findings that have no codes; without it, those are written as boxes.
        bins: 1023, or 1024 for models that were trained so.

    Raises:
        InputError: a box outside the picture; a label that could not be read back: with a token, ' ; ' or <eos> in it,
            or with spaces around it; codes that are not sixteen numbers from 0 to 127.
    """
    return labels.SEPARATOR.join(_written(finding, size, codec, bins) for finding in findings)


def without_repeats(findings: Iterable[Finding], iou: float = 0.9) -> list[Finding]:
    """Findings without those that one before them has told: the same label, and boxes that overlap by `iou` or more.

    Tuned models are known to write the same box again and again.

    Raises:
        InputError: `iou` is not above 0 and up to 1.
    """
    if not 0 < iou <= 1:
        raise InputError(f"iou={iou!r}, but an overlap is a number above 0 and up to 1, like 0.9.")
    kept: dict[str, list[Finding]] = {}
    first = []
    for finding in findings:
        told = kept.setdefault(finding.label, [])
        if all(finding.box.iou(other.box) < iou for other in told):
            told.append(finding)
            first.append(finding)
    return first


def _read_run(run: str) -> tuple[list[int], tuple[int, ...] | None] | None:
    """Four places and, if there are any, sixteen codes; None if the tokens say no such thing."""
    tokens = _NUMBER.findall(run)
    kinds = [kind for kind, _ in tokens]
    numbers = [int(number) for _, number in tokens]
    locs, codes = numbers[:4], numbers[4:]
    if kinds != ["loc"] * 4 + ["seg"] * len(codes) or len(codes) not in (0, CODES):
        return None
    if max(locs) > LAST_LOC or locs[2] <= locs[0] or locs[3] <= locs[1] or max(codes, default=0) > LAST_CODE:
        return None
    return locs, tuple(codes) or None


def _read_label(text: str, more_follows: bool = False) -> str:
    """The label at the beginning of what follows the tokens of a finding."""
    return labels.first(text.partition("<eos>")[0], more_follows)


def _written(finding: Finding, size: tuple[int, int], codec: Codec | None, bins: int) -> str:
    tokens, codes, label = write_box(finding.box, size, bins), finding.codes, finding.label
    if codes is None and finding.mask is not None and codec is not None:
        codes = encode_mask(finding.mask, finding.box, codec)
    if codes is not None:
        tokens += _write_codes(codes)
    labels.check(label)
    if _RUN.search(label) or _read_label(label) != label:
        raise InputError(f"The label {label!r} could not be told from the tokens around it; take them out of it.")
    return f"{tokens} {label}" if label else tokens


def _write_codes(codes: Sequence[int]) -> str:
    if len(codes) != CODES or not all(0 <= code <= LAST_CODE for code in codes):
        raise InputError(f"A mask takes {CODES} codes from 0 to {LAST_CODE}, not {list(codes)}.")
    return "".join(f"<seg{code:03d}>" for code in codes)
