"""Parity with the reference, transformers 4.56.2: same weights, same inputs, same numbers. See pairs.py for the builders.

test_parity_*   where the reference is right, ours is equal
test_defects_*  where it is wrong (model-facts, section 9): its value, ours, and why ours is right
"""

import pytest
import torch


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
