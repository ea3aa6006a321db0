"""An interval around a score: what it would be on other pictures of the same kind.

Efron's percentile bootstrap: pictures are drawn again and again, with replacement, and scored; the interval holds the
middle 95 % of these scores. All items of a picture are drawn together, as they are not independent.
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from gemlens.errors import InputError


def interval(
    statistic: Callable[["np.ndarray"], float],
    groups: Sequence[Hashable],
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The lower and the upper end.

    Args:
        statistic: numbers of items, int64 [n], some more than once -> their score.
        groups: what each item belongs to, such as its picture.
        draws: how often items are drawn.
        level: the part of scores that the interval holds.
        seed: of the draws.

    Raises:
        InputError: no items, or a value out of range.
    """
    if not groups:
        raise InputError("There are no items, so there is no interval.")
    if draws < 1 or not 0 < level < 1:
        raise InputError(f"draws={draws!r} and level={level!r}, but there must be draws, and a level between 0 and 1.")
    members: dict[Hashable, list[int]] = {}
    for item, group in enumerate(groups):
        members.setdefault(group, []).append(item)
    rows = [np.array(items) for items in members.values()]
    numbers = np.random.default_rng(seed)
    scores = [
        statistic(np.concatenate([rows[row] for row in numbers.integers(0, len(rows), len(rows))]))
        for _ in range(draws)
    ]
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
