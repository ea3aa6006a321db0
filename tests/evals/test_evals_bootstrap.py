"""Intervals: as wide as theory says, and wider where items are not independent."""

import numpy as np
import pytest

from gemlens.errors import InputError
from gemlens.evals.bootstrap import interval


def test_the_interval_of_a_share_is_that_of_the_normal_approximation() -> None:
    values = np.array([1.0] * 300 + [0.0] * 100)
    low, high = interval(lambda rows: values[rows].mean(), range(400), draws=4000)
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.006)


def test_items_of_one_picture_are_drawn_together() -> None:
    """Ten copies of each item tell no more than one of it."""
    values = np.repeat([1.0] * 30 + [0.0] * 10, 10)
    groups = [item // 10 for item in range(400)]
    together = interval(lambda rows: values[rows].mean(), groups)
    apart = interval(lambda rows: values[rows].mean(), range(400))
    assert together[1] - together[0] == pytest.approx((apart[1] - apart[0]) * 10**0.5, rel=0.15)


def test_draws_are_the_same_for_the_same_seed() -> None:
    values = np.arange(20.0)
    first, again, other = (interval(lambda rows: values[rows].mean(), range(20), draws=50, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_of_equal_items_the_interval_is_a_point() -> None:
    assert interval(lambda rows: 0.5, ["a", "b"], draws=10) == (0.5, 0.5)


def test_nothing_to_draw_from_is_refused() -> None:
    with pytest.raises(InputError, match="no items"):
        interval(lambda rows: 0.0, [])
    with pytest.raises(InputError, match="level"):
        interval(lambda rows: 0.0, [1], level=1.0)
