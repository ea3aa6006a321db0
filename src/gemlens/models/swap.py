"""Changing a finished model from outside: leaves are replaced, and model code never sees what replaced them."""

from collections.abc import Callable

from torch import nn


def swap(model: nn.Module, replacement: Callable[[str, nn.Module], nn.Module | None]) -> list[str]:
    """Replaces modules of a model in place, one after the other, so that each old one's memory is free for the next.

    Args:
        model: whose modules are asked for, innermost first; itself it is not replaced.
        replacement: (name, module) -> the module to put there, or None to leave it.

    Returns:
        Names of the modules that were replaced.
    """
    replaced = []
    modules = [(name, module) for name, module in model.named_modules() if name]
    while modules:
        name, module = modules.pop()
        new = replacement(name, module)
        if new is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, new)
            replaced.append(name)
    return replaced[::-1]
