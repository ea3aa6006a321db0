"""Several sources as one, each with a share of the examples."""

import math
from collections.abc import Sequence

import numpy as np

from gemlens.data.example import Example, Source
from gemlens.errors import InputError


class Mixture:
    """A source in which others take turns, evenly spread; what comes at a number depends on nothing else.

    A source that gives more than it has repeats itself; one that gives less than it has leaves out, evenly. Unless told
    otherwise there are as many examples as it takes for every source to be seen whole at least once.

    Args:
        sources: at least one, none empty.
        weights: how many examples come from each, in relation to the others; None: as many as each has.
        count: how many examples there are; None: see above.

    Raises:
        InputError: no source, an empty one, or weights that are not one number above 0 for each.
    """

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float] | None = None, count: int | None = None
    ) -> None:
        lengths = [len(source) for source in sources]
        if not sources or not all(lengths):
            raise InputError(f"A mixture takes sources that hold something; their lengths are {lengths}.")
        weights = lengths if weights is None else weights
        if len(weights) != len(sources) or not all(0 < weight < math.inf for weight in weights):
            raise InputError(f"A mixture takes one weight above 0 per source; {list(weights)} came for {len(sources)}.")
        if count is not None and count < 1:
            raise InputError(f"count is {count}, but a mixture holds at least one example.")
        self._sources, self._lengths = tuple(sources), lengths
        shares = [weight / sum(weights) for weight in weights]
        if count is None:
            count = math.ceil(max(length / share for length, share in zip(lengths, shares, strict=True)) - 1e-9)
        self._counts = _parts(count, shares)
        self._ends = np.cumsum(self._counts)
        # The k-th of n examples of a source stands at (k + 1/2) / n of the way; where two stand alike, sources in turn.
        self._order = np.argsort(np.concatenate([(np.arange(n) + 0.5) / n for n in self._counts if n]), kind="stable")

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int, /) -> Example:
        number, place = self.place(index)
        return self._sources[number][place]

    def place(self, index: int) -> tuple[int, int]:
        """(number of the source, number in it) of an example."""
        flat = int(self._order[index])
        number = int(np.searchsorted(self._ends, flat, side="right"))
        place = flat - int(self._ends[number]) + self._counts[number]
        count, length = self._counts[number], self._lengths[number]
        return number, place % length if count >= length else place * length // count


def _parts(count: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers in relation to the shares whose sum is the count: the largest remainders are rounded up."""
    exact = [count * share for share in shares]
    parts = [math.floor(each + 1e-9) for each in exact]
    by_remainder = sorted(range(len(parts)), key=lambda place: parts[place] - exact[place])
    for place in by_remainder[: count - sum(parts)]:
        parts[place] += 1
    return parts
