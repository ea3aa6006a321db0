"""Which example comes when: a function of seed and step, so that a run can be taken up anywhere.

Nothing is remembered between steps. One process of several takes its part of a step by `share`.
"""

from functools import lru_cache

import torch


class Order:
    """Passes over `size` examples, each in another order.

    Args:
        size: examples of the data; at least 1.
        seed: of the orders.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._seed = seed
        self._pass = lru_cache(maxsize=2)(self._shuffled)

    def step(self, number: int, examples: int, share: tuple[int, int] = (0, 1)) -> list[int]:
        """Numbers of the examples of one step.

        Args:
            number: of the step, from 0.
            examples: how many a step has, over all processes.
            share: (rank, processes): every process takes each `processes`-th example.
        """
        rank, processes = share
        places = range(number * examples + rank, (number + 1) * examples, processes)
        return [int(self._pass(place // self._size)[place % self._size]) for place in places]

    def _shuffled(self, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed_of(self._seed, number))
        return torch.randperm(self._size, generator=generator)


def seed_of(seed: int, number: int) -> int:
    """A seed for the number-th thing of a run, unlike those of its neighbours (SplitMix64, Steele et al. 2014)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number + 0x632BE59BD9B4E019) & _MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & _MASK
    return (mixed ^ (mixed >> 31)) >> 1


_MASK = 2**64 - 1
