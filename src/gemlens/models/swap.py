"""Changing a finished model from outside: leaves are replaced, and model code never sees what replaced them."""

from collections.abc import Callable

from torch import nn


def swap(model: nn.Module, replacement: Callable[[str, nn.Module], nn.Module | None]) -> list[str]:
    """Replaces modules of a model in place.

    Args:
        model: whose modules are asked for, innermost included; itself it is not replaced.
        replacement: (name, module) -> the module to put there, or None to leave it.

    Returns:
        Names of the modules that were replaced.
    """
    found = [(name, new) for name, module in model.named_modules() if name and (new := replacement(name, module))]
    for name, new in found:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new)
    return [name for name, _ in found]
