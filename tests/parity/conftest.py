"""Parity with the reference, transformers 4.56.2: same weights, same inputs, same numbers.

test_parity_*   where the reference is right, ours is equal
test_defects_*  where it is wrong: its value, ours, and why ours is right

pairs.py holds the builders, oracle.py a decoder in float64 that says who is right.
"""

import pytest
import torch


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
