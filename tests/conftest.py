"""What all tests share: the hypothesis profile, and the tiny models of models/tiny.py for tests in other folders."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent / "models"))
import tiny as tiny_models

# The same examples every time: a failure is a change of the code, never of the dice. Models are slow to call, and a
# deadline would measure the machine.
settings.register_profile(
    "gemlens",
    derandomize=True,
    deadline=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("gemlens")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The builders of tests/models/tiny.py."""
    return tiny_models
