"""Replacing leaves of a finished model."""

import gc
import weakref

from torch import nn

from gemlens.models.swap import swap


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()))


def test_chosen_leaves_are_replaced_in_place_and_named_in_order() -> None:
    changed = model()
    names = swap(changed, lambda name, module: nn.Identity() if isinstance(module, nn.Linear) else None)
    assert names == ["0", "1.0"]
    assert [type(module).__name__ for module in changed.modules()][1:] == ["Identity", "Sequential", "Identity", "ReLU"]


def test_an_old_leaf_is_free_before_the_next_is_asked_for() -> None:
    changed = model()
    old = {name: weakref.ref(changed.get_submodule(name)) for name in ("0", "1.0")}
    alive: list[list[str]] = []

    def replacement(name: str, module: nn.Module) -> nn.Module | None:
        gc.collect()
        alive.append([each for each, reference in old.items() if reference() is not None])
        return nn.Identity() if name in old else None

    swap(changed, replacement)
    assert alive == [["0", "1.0"], ["0", "1.0"], ["0"], ["0"]]  # asked for: 1.1, 1.0, 1, 0


def test_a_module_that_is_replaced_with_its_leaves_may_be_asked_for_too() -> None:
    changed = model()
    assert swap(changed, lambda name, _: nn.Identity() if name.startswith("1") else None) == ["1", "1.0", "1.1"]
    assert isinstance(changed[1], nn.Identity)
