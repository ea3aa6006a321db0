"""Which example comes when, and at which rate it is learned."""

import math
from itertools import pairwise

import pytest

from gemlens.training.order import Order, seed_of
from gemlens.training.schedule import rate
from gemlens.training.settings import Settings, settings_of


def test_a_pass_shows_every_example_once() -> None:
    order = Order(10, seed=3)
    for passed in range(3):
        shown = [number for step in range(5 * passed, 5 * passed + 5) for number in order.step(step, 2)]
        assert sorted(shown) == list(range(10))


def test_passes_and_seeds_differ_and_the_same_is_the_same() -> None:
    first, second = Order(50, seed=0).step(0, 50), Order(50, seed=0).step(1, 50)
    assert first != second
    assert first != Order(50, seed=1).step(0, 50)
    assert first == Order(50, seed=0).step(0, 50)


def test_a_step_may_reach_into_the_next_pass() -> None:
    order = Order(5, seed=0)
    shown = [*order.step(0, 4), *order.step(1, 4)]
    assert sorted(shown[:5]) == list(range(5))


def test_processes_share_a_step() -> None:
    order = Order(20, seed=0)
    whole = order.step(2, 6)
    parts = [order.step(2, 6, (rank, 3)) for rank in range(3)]
    assert [parts[place % 3][place // 3] for place in range(6)] == whole


def test_seeds_of_neighbours_are_unlike() -> None:
    seeds = {seed_of(seed, number) for seed in range(50) for number in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)


def settings(**said: object) -> Settings:
    made: Settings = settings_of({"model": "m", "data": "d", "output": "o", "learning_rate": 2.0, **said})
    return made


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    rates = [rate(settings(warmup=0.1, final_rate=0.1), step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2))
    assert rates[99] > 0.2
    assert all(after < before for before, after in pairwise(rates[10:]))


def test_a_constant_rate_stays_and_no_warmup_starts_at_once() -> None:
    assert [rate(settings(schedule="constant", warmup=0.0), step, 10) for step in range(10)] == [2.0] * 10
