"""Who sees whom: two integers per token and one rule. There is no other mask code in gemlens.

Every token has a position (how many real tokens of its row stand before it) and a block. A query sees a key iff they
share a block, or the key's block comes before the query's and the key is less than a window back:

    causal text           PaliGemma: 2 picture tokens,      Gemma 3: text, a picture of 3 tokens, text
                          2 of prompt, 2 of answer
    block  0 1 2 3        block  0 0 0 0 4 5                block  0 1 1 1 4 5
           # . . .               # # # # . .                       # . . . . .
           # # . .               # # # # . .                       # # # # . .
           # # # .               # # # # . .                       # # # # . .
           # # # #               # # # # . .                       # # # # . .
                                 # # # # # .                       # # # # # .
                                 # # # # # #                       # # # # # #

A block's number is the slot (place in the row, padding counted) of its first token, so blocks only grow and a token
keeps its numbers when it is cached. Padding is one last block of its own: no real token sees it, and no row of the mask
is empty. Packed rows carry a third integer, the segment, that must be equal too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

PADDING = 2**40  # the block of padded tokens: after every real one
EMPTY = 2**41  # the block of a cache slot that holds nothing: after padding, so that nobody sees it


class Span:
    """The numbers of T tokens.

    Args:
        position: [B, T] int64, or [1, T] where all rows are alike.
        block: like `position`.
        segment: like `position`, for packed rows.
    """

    plain: ClassVar[bool] = False  # known without looking at numbers; see PlainSpan

    def __init__(self, position: Tensor, block: Tensor, segment: Tensor | None = None) -> None:
        self.position, self.block, self.segment = position, block, segment

    def __len__(self) -> int:
        return self.position.shape[1]

    def real_count(self) -> Tensor | int:
        """How many tokens are no padding: one number if the rows are alike, else [B, 1]."""
        return (self.block < PADDING).sum(1, keepdim=True)

    def last(self, count: int) -> "Span":
        """The last `count` tokens."""
        start = len(self) - count
        return self if start <= 0 else self._with(lambda numbers: numbers[:, start:])

    def first(self, count: int) -> "Span":
        """The first `count` tokens."""
        return self._with(lambda numbers: numbers[:, :count])

    def rows(self, index: Tensor) -> "Span":
        """The chosen rows, in the order of `index` [B']."""
        return self if len(self.position) == 1 else self._with(lambda numbers: numbers[index.to(numbers.device)])

    def for_rows(self, count: int) -> "Span":
        """With numbers of its own for each of so many rows, even if all are alike and plain."""
        position, block = (numbers.expand(count, -1).contiguous() for numbers in (self.position, self.block))
        return Span(position, block, self.segment)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Span":
        return Span(change(self.position), change(self.block), None if self.segment is None else change(self.segment))


class PlainSpan(Span):
    """Of causal text without padding, `length` tokens after `start` others: each is its own block.

    Attention has causal fast paths for it, which ask for no numbers. So these are made only when somebody does.
    """

    plain: ClassVar[bool] = True

    def __init__(self, start: int, length: int, device: torch.device | str) -> None:
        self.start, self.length, self.device, self.segment = start, length, device, None

    @cached_property
    def position(self) -> Tensor:  # type: ignore[override]  # made when it is asked for
        """[1, T]."""
        return torch.arange(self.start, self.start + self.length, device=self.device).unsqueeze(0)

    @property
    def block(self) -> Tensor:  # type: ignore[override]
        """[1, T]."""
        return self.position

    def __len__(self) -> int:
        return self.length

    def real_count(self) -> int:
        """All."""
        return self.length

    def last(self, count: int) -> "PlainSpan":
        """The last `count` tokens."""
        count = min(count, self.length)
        return PlainSpan(self.start + self.length - count, count, self.device)

    def first(self, count: int) -> "PlainSpan":
        """The first `count` tokens."""
        return PlainSpan(self.start, min(count, self.length), self.device)

    def rows(self, index: Tensor) -> "PlainSpan":
        """Itself, as all rows are alike."""
        return self


def span_of(
    slots: Tensor,
    *,
    real: Tensor | None = None,
    before: Tensor | int = 0,
    prefix: Tensor | None = None,
    picture_starts: Tensor | None = None,
    pictures: Tensor | None = None,
    segment: Tensor | None = None,
) -> Span:
    """The span of the S tokens of one call.

    Args:
        slots: [S] places of the tokens in their rows, cached tokens and padding counted.
        real: [B, S] bool, False for padding.
        before: [B, 1] or a number: real tokens that are cached.
        prefix: [B, S] bool, tokens that all see each other (PaliGemma's pictures and prompt).
        pictures: [B, S] bool, tokens of pictures that see their own picture (Gemma 3).
        picture_starts: [B, S] bool, the first token of each picture.
        segment: [B, S] number of the packed text that a token belongs to.
    """
    slots = slots.unsqueeze(0)
    shape = next((mask.shape for mask in (real, prefix, pictures, segment) if mask is not None), slots.shape)
    ones = torch.ones(shape, dtype=torch.bool, device=slots.device) if real is None else real
    position = (before + ones.cumsum(1) - 1).clamp(min=0)
    block = slots.expand(shape)
    if pictures is not None and picture_starts is not None:
        block = torch.where(pictures, torch.where(picture_starts, slots, 0).cummax(1).values, block)
    if prefix is not None:
        block = torch.where(prefix, 0, block)
    if real is not None:
        block = torch.where(real, block, PADDING)
    rows = max(len(position), len(block))
    return Span(position.expand(rows, -1), block.expand(rows, -1), segment)


def join(spans: Sequence[Span]) -> Span:
    """One span after the other; plain if all are and each begins where the one before ends."""
    plain = [span for span in spans if isinstance(span, PlainSpan)]
    if len(plain) == len(spans) and all(one.start + len(one) == other.start for one, other in pairwise(plain)):
        return PlainSpan(plain[0].start, sum(map(len, plain)), plain[0].device)
    rows = max(span.position.shape[0] for span in spans)
    position = torch.cat([span.position.expand(rows, -1) for span in spans], dim=1)
    block = torch.cat([span.block.expand(rows, -1) for span in spans], dim=1)
    return Span(position, block)


def sees(query: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor], window: int | None) -> Tensor:
    """The rule, element by element, for (position, block) of queries and keys of any shapes that broadcast."""
    (query_position, query_block), (key_position, key_block) = query, key
    before = key_block < query_block
    if window is not None:
        before = before & (query_position - key_position < window)
    return before | (key_block == query_block)


@dataclass(frozen=True)
class View:
    """What the queries of one call see of their keys in layers with one window."""

    query: Span
    key: Span
    window: int | None = None

    @cached_property
    def mask(self) -> Tensor:
        """[B, 1, S, T] bool, True where a query sees a key; B may be 1."""
        query, key = self.query, self.key
        queries = (query.position.unsqueeze(2), query.block.unsqueeze(2))
        keys = (key.position.unsqueeze(1), key.block.unsqueeze(1))
        mask = sees(queries, keys, self.window)
        if query.segment is not None and key.segment is not None:
            mask = mask & (query.segment.unsqueeze(2) == key.segment.unsqueeze(1))
        return mask.unsqueeze(1)

    @property
    def plain(self) -> bool:
        """Whether causality and the window say everything."""
        return self.query.plain and self.key.plain

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        """(first, last + 1) of the keys that queries from start to stop may see; all unless the text is plain."""
        if not self.plain:
            return 0, len(self.key)
        before = len(self.key) - len(self.query)  # the queries are the last keys
        first = 0 if self.window is None else max(0, before + start - self.window + 1)
        return first, before + stop

    @property
    def _window_reaches_all(self) -> bool:
        return self.window is None or len(self.key) <= self.window

    @property
    def sees_all(self) -> bool:
        """Whether every query sees every key, known without looking at the tensors: one new token of plain text."""
        return self.plain and len(self.query) == 1 and self._window_reaches_all

    @property
    def is_triangle(self) -> bool:
        """Whether the mask is the plain lower triangle, known without looking at the tensors."""
        return self.plain and len(self.query) == len(self.key) and self._window_reaches_all
